//! What every backend has to pass, and the simulated world that the client layer is tested in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

/// The page for elock's users. Its program in Rust starts an etcd for itself.
#[cfg(doctest)]
#[doc = include_str!("../../docs/elock.md")]
mod elock {}

pub mod adversity;
pub mod beliefs;
pub mod certificates;
pub mod conformance;
pub mod crowd;
pub mod etcd;
pub mod few;
pub mod kubernetes;
pub mod place;
pub mod processes;
pub mod proxy;
pub mod redis;
pub mod server;
pub mod server_process;
pub mod sim;
pub mod sim_backend;
pub mod sim_server;
pub mod soak;
