//! What the Python package `windlass` needs of the core: a thin layer without lock logic. The package's public face is
//! annotated Python over this module, and `_windlass.pyi` says what is in it.
//!
//! Each operation that may wait is a [`Pending`](pending::Pending): `wait()` drives it on the caller's thread, `await`
//! drives it on an event loop. Both poll it once at once, so what needs no waiting touches neither runtime nor thread.

#![allow(clippy::needless_pass_by_value, reason = "what Python passes comes by value")]

mod bell;
mod callbacks;
mod errors;
mod held;
mod here;
mod lock;
mod locker;
mod options;
mod pending;
mod seen;
mod stack;
mod wait;

/// The native half of the package `windlass`. Use `windlass` or `windlass.aio`.
#[pyo3::pymodule]
mod _windlass {
    #[pymodule_export]
    use crate::{
        callbacks::begin_exit,
        held::{AsyncHeld, Held, HeldBase},
        lock::Lock,
        locker::{Changes, Locker, cli, connect, default_if_made, default_locker},
        pending::{Awaiting, Bell, Pending, Watch},
    };
}
