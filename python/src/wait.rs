//! Waiting for a future on the caller's thread.
//!
//! The thread is detached from the interpreter meanwhile, so other threads run, and a signal ends the system call, so
//! Ctrl-C is answered at once. The first poll comes before anything else: what needs no waiting costs no descriptor.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use pyo3::prelude::*;

use crate::{bell::Bell, stack::this_thread};

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
            Poll::Ready(output) => Ok(unless_exiting(output)),
            Poll::Pending => wait_longer(future).map(unless_exiting),
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
        match Python::try_attach(|py| py.check_signals()) {
            Some(checked) => checked?,
            // The interpreter is gone and the process about to be: a thread that it left behind must not go on.
            None => park(),
        }
        bell.0.wait();
    }
}

/// Polls once.
pub(crate) fn poll<F: Future + ?Sized>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

/// The thread that ends the interpreter, once it does.
static EXITING: AtomicUsize = AtomicUsize::new(0);

/// From now on this thread ends the interpreter, and the other ones go no further.
pub(crate) fn exit() {
    EXITING.store(this_thread().get(), Ordering::SeqCst);
}

/// What an operation gave, to go on with; but a daemon thread stops here when the interpreter ends, as it would a
/// moment later, instead of reporting on the way out that the locker was closed under it. What it has got by then is
/// given back. To be called while detached.
pub(crate) fn unless_exiting<T>(output: T) -> T {
    let exiting = EXITING.load(Ordering::Relaxed);
    if exiting == 0 || exiting == this_thread().get() {
        return output;
    }
    drop(output);
    park()
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
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
