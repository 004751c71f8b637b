//! All that the crate wants from the outside world besides its backends: clocks, timers, tasks and randomness. Nothing
//! else in the crate calls them (`clippy.toml` sees to it), so the rules run in virtual time under a [`Runtime`] of the
//! tests, and in a browser.

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;

use crate::{
    error::Result,
    time::{Millis, Moment},
};

#[cfg(all(feature = "native", not(target_family = "wasm")))]
mod native;
#[cfg(all(any(feature = "etcd", feature = "http", feature = "redis"), not(target_family = "wasm")))]
pub(crate) use native::is_background;
#[cfg(all(feature = "native", not(target_family = "wasm")))]
pub use native::{Native, thread};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
mod one_thread;
#[cfg(test)]
mod still;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
mod web;
#[cfg(test)]
pub(crate) use still::Still;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
pub use {one_thread::OneThread, web::Web};

/// Clocks, timers, tasks and randomness. [`connect`](crate::connect) brings the right one; only tests and hosts of
/// an unusual kind write their own.
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Starts what it needs in the background, unless that runs already. Called by whoever connects, before anything
    /// else.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) when the system has no thread or descriptor to give.
    fn start(&self) -> Result<()>;

    /// The client's clocks: counting suspend, and the wall (rule R5).
    fn now(&self) -> Moment;

    /// The clock of whoever grants: monotonic, standing still in suspend (rule R7).
    fn monotonic(&self) -> Millis;

    /// Completes once `duration` has passed; may be polled by any executor.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs a task in the background, apart from the program's own tasks: it goes on when those are blocked.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs the program's own code, such as a callback, where neither its slowness nor its panic harms anything.
    fn call(&self, code: Box<dyn FnOnce() + Send>);

    /// The same for code that must not wait for other code of [`call`](Self::call) that is slow: what tells of a loss, or gives what
    /// renewals need.
    fn call_at_once(&self, code: Box<dyn FnOnce() + Send>) {
        self.call(code);
    }

    /// 128 bits from a secure source of randomness.
    fn random(&self) -> u128;

    /// A number that changes in a child of `fork` and never otherwise. What was made under another number belongs to
    /// the parent process (rule R21).
    fn process(&self) -> u32;
}

impl dyn Runtime {
    /// A random number in 0..=1, for pauses that are not the same everywhere.
    pub(crate) fn jitter(&self) -> f64 {
        self.random() as f64 / u128::MAX as f64
    }
}
