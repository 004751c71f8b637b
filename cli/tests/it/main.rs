//! The `windlass` command, as real processes see it.
#![cfg(unix)]
#![allow(clippy::disallowed_methods, reason = "these tests are about real processes in real time")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests are tests, too")]

mod contended;
mod errors;
mod flock;
mod held;
mod lost;
mod see;
mod serve;
mod signals;
mod support;
mod terminal;
mod waiting;
