//! Waiting for a future on the caller's thread.
//!
//! The thread is detached from the interpreter meanwhile, so other threads run, and a signal ends the system call, so
//! Ctrl-C is answered at once. The first poll comes before anything else: what needs no waiting costs no descriptor.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use pyo3::prelude::*;

use crate::bell::Bell;

/// Waits for what the future gives.
///
/// # Errors
/// What a signal handler raises, above all `KeyboardInterrupt`: the future is then dropped.
pub(crate) fn wait<F>(py: Python<'_>, future: F) -> PyResult<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    py.detach(|| {
        let mut future = pin!(future);
        match poll(future.as_mut(), Waker::noop()) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => wait_longer(future),
        }
    })
}

fn wait_longer<F: Future>(mut future: Pin<&mut F>) -> PyResult<F::Output> {
    let bell = Arc::new(Ringer(Bell::new()?));
    let waker = Waker::from(bell.clone());
    loop {
        if let Poll::Ready(output) = poll(future.as_mut(), &waker) {
            return Ok(output);
        }
        Python::attach(|py| py.check_signals())?;
        bell.0.wait();
    }
}

/// Polls once.
pub(crate) fn poll<F: Future + ?Sized>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

struct Ringer(Bell);

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.0.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.ring();
    }
}
