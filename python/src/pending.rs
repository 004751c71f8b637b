//! An operation under way, to be driven on a thread (`wait`), by an event loop (`await`), or in the background of an
//! event loop (`watch`).
//!
//! On an event loop the future is polled by the loop's own thread: at once when it is awaited, and whenever it was woken.
//! A waker takes neither the interpreter nor a thread: it puts the future's [`Slot`] on the list of the loop's [`Bell`]
//! and rings, which the loop hears like any readable file. So a wake-up cannot hang on the interpreter, a cancelled task
//! drops its future before the cancellation reaches the program, and nothing runs at the interpreter's exit.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Wake, Waker},
};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};
use pyo3::{
    exceptions::{PyRuntimeError, PyStopIteration},
    intern,
    prelude::*,
    sync::PyOnceLock,
};
use windlass::{
    Error,
    rt::{Native, Runtime},
};

use crate::{bell, errors, here::Here, options, wait};

/// Turns an outcome into a Python object.
type Finish = Box<dyn for<'py> FnOnce(Python<'py>) -> PyResult<Py<PyAny>> + Send>;
type Work = BoxFuture<'static, Finish>;

/// An operation that has not begun. It begins with `wait()`, `await` or `watch()`, and can be used once.
#[pyclass(frozen, generic, module = "windlass._windlass")]
pub(crate) struct Pending(Mutex<Option<Here<Work>>>);

impl Pending {
    /// The operation `work`, whose outcome `finish` shows to Python.
    pub(crate) fn new<T: Send + 'static>(
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
        finish: impl for<'py> FnOnce(Python<'py>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> Self {
        let work = work.map(|outcome| -> Finish {
            Box::new(|py| match outcome {
                Ok(value) => finish(py, value),
                Err(error) => Err(errors::exception(py, &error)),
            })
        });
        Self(Mutex::new(Some(Here::new(work.boxed()))))
    }

    fn take(&self) -> PyResult<Work> {
        let work = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.and_then(Here::into_inner).ok_or_else(|| {
            PyRuntimeError::new_err("this operation was awaited before, or by the parent process")
        })
    }
}

#[pymethods]
impl Pending {
    /// Waits on this thread; after `timeout` seconds gives up and returns `None`.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let Some(timeout) = options::limit(py, "timeout", timeout)? else {
            return wait::wait(py, self.take()?)?(py);
        };
        let work = future::select(self.take()?, Native.sleep(timeout));
        match wait::wait(py, work)? {
            Either::Left((finish, _)) => finish(py),
            Either::Right(((), _)) => Ok(py.None()),
        }
    }

    fn __await__(&self, py: Python<'_>) -> PyResult<Awaiting> {
        let mut work = self.take()?;
        let first = py.detach(|| wait::unless_exiting(wait::poll(work.as_mut(), Waker::noop())));
        let state = match first {
            Poll::Ready(finish) => Await::Done(finish(py)?),
            Poll::Pending => {
                let (running_loop, bell) = loop_and_bell(py)?;
                let future = running_loop.call_method0(intern!(py, "create_future"))?;
                let slot = Slot::start(py, &bell, work, Listener::Future(future.clone().unbind()))?;
                Await::New(Watch(Here::new(slot)), future.unbind())
            }
        };
        Ok(Awaiting(Mutex::new(state)))
    }

    /// Does what can be done at once, and raises if that fails. The rest of a release goes on in the background; other
    /// operations end here.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let mut work = self.take()?;
        match py.detach(|| wait::unless_exiting(wait::poll(work.as_mut(), Waker::noop()))) {
            Poll::Ready(finish) => finish(py).map(drop),
            Poll::Pending => {
                py.detach(|| drop(work));
                Ok(())
            }
        }
    }

    /// Drives the operation by the running event loop and calls `callback` there with what it gives, unless the returned
    /// value is gone by then. An operation that is done at once is not watched: `callback` is called before this returns.
    fn watch(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<Option<Watch>> {
        let mut work = self.take()?;
        match py.detach(|| wait::unless_exiting(wait::poll(work.as_mut(), Waker::noop()))) {
            Poll::Ready(finish) => {
                callback.call1(py, (finish(py)?,))?;
                Ok(None)
            }
            Poll::Pending => {
                let (_, bell) = loop_and_bell(py)?;
                let slot = Slot::start(py, &bell, work, Listener::Callback(callback))?;
                Ok(Some(Watch(Here::new(slot))))
            }
        }
    }
}

/// An `await` under way.
#[pyclass(frozen, module = "windlass._windlass")]
pub(crate) struct Awaiting(Mutex<Await>);

enum Await {
    Done(Py<PyAny>),
    New(Watch, Py<PyAny>),
    Waiting(Watch),
    Over,
}

#[pymethods]
impl Awaiting {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let state = mem::replace(&mut *self.state(), Await::Over);
        let value = match state {
            Await::New(watch, future) => {
                // What `Future.__await__` does: the task waits for the future that is yielded to it.
                future.setattr(py, intern!(py, "_asyncio_future_blocking"), true)?;
                *self.state() = Await::Waiting(watch);
                return Ok(future);
            }
            Await::Done(value) => value,
            Await::Waiting(watch) => match watch.outcome() {
                Some(finish) => finish(py)?,
                None => return Err(PyRuntimeError::new_err("await wasn't used with future")),
            },
            Await::Over => return Err(PyRuntimeError::new_err("cannot reuse already awaited operation")),
        };
        Err(PyStopIteration::new_err((value,)))
    }
}

impl Awaiting {
    fn state(&self) -> MutexGuard<'_, Await> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps an operation going on an event loop. When it is gone, so is the operation.
#[pyclass(frozen, module = "windlass._windlass")]
pub(crate) struct Watch(Here<Arc<Slot>>);

impl Watch {
    fn outcome(&self) -> Option<Finish> {
        let mut state = self.0.as_ref()?.state();
        match mem::replace(&mut *state, State::Over) {
            State::Done(finish) => Some(finish),
            other => {
                *state = other;
                None
            }
        }
    }
}

#[pymethods]
impl Watch {
    /// Ends the operation.
    fn cancel(&self) {
        let Some(slot) = self.0.as_ref() else { return };
        let state = mem::replace(&mut *slot.state(), State::Over);
        // Dropping the work of a cancelled acquire gives its claim back: not with the interpreter in hand.
        let _ = Python::try_attach(|py| py.detach(|| drop(state)));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// An operation on an event loop.
struct Slot {
    alarm: Arc<Alarm>,
    /// On the alarm's list.
    queued: AtomicBool,
    state: Mutex<State>,
}

enum State {
    Running(Work, Listener),
    /// Somebody polls it just now.
    Polled,
    Done(Finish),
    Over,
}

enum Listener {
    Future(Py<PyAny>),
    Callback(Py<PyAny>),
}

impl Slot {
    fn start(py: Python<'_>, bell: &Bound<'_, Bell>, work: Work, listener: Listener) -> PyResult<Arc<Self>> {
        let slot = Arc::new(Self {
            alarm: bell.get().0.clone(),
            queued: AtomicBool::new(false),
            state: Mutex::new(State::Running(work, listener)),
        });
        // The poll before this one left no waker.
        slot.poll(py)?;
        Ok(slot)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let state = mem::replace(&mut *self.state(), State::Polled);
        let State::Running(mut work, listener) = state else {
            *self.state() = state;
            return Ok(());
        };
        let waker = Waker::from(self.clone());
        let polled = py.detach(|| wait::unless_exiting(wait::poll(Pin::new(&mut work), &waker)));
        match (polled, listener) {
            (Poll::Pending, listener) => {
                let mut state = self.state();
                // Unless it was cancelled by a callback that this poll called.
                if matches!(*state, State::Polled) {
                    *state = State::Running(work, listener);
                }
                Ok(())
            }
            (Poll::Ready(finish), Listener::Future(future)) => {
                *self.state() = State::Done(finish);
                let done: bool = future.call_method0(py, intern!(py, "done"))?.extract(py)?;
                if !done {
                    future.call_method1(py, intern!(py, "set_result"), (py.None(),))?;
                }
                Ok(())
            }
            (Poll::Ready(finish), Listener::Callback(callback)) => {
                *self.state() = State::Over;
                callback.call1(py, (finish(py)?,)).map(drop)
            }
        }
    }
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.alarm.ring(Arc::downgrade(&self));
        }
    }
}

/// What wakes one event loop. The loop watches `fileno()` where there is one, and calls `answer` when it is readable.
#[pyclass(frozen, module = "windlass._windlass")]
pub(crate) struct Bell(Arc<Alarm>);

struct Alarm {
    woken: Mutex<Vec<Weak<Slot>>>,
    #[cfg(unix)]
    bell: bell::Bell,
    /// The loop's `call_soon_threadsafe`, and this alarm's `answer`.
    #[cfg(not(unix))]
    call_soon: (Py<PyAny>, PyOnceLock<Py<PyAny>>),
}

#[pymethods]
impl Bell {
    /// A bell for the loop with this `call_soon_threadsafe`.
    #[new]
    #[cfg_attr(unix, allow(unused_variables))]
    fn new(call_soon_threadsafe: Py<PyAny>) -> PyResult<Self> {
        Ok(Self(Arc::new(Alarm {
            woken: Mutex::default(),
            #[cfg(unix)]
            bell: bell::Bell::new()?,
            #[cfg(not(unix))]
            call_soon: (call_soon_threadsafe, PyOnceLock::new()),
        })))
    }

    /// The descriptor to be watched; -1 where the loop is called instead.
    fn fileno(&self) -> i32 {
        #[cfg(unix)]
        return self.0.bell.descriptor();
        #[cfg(not(unix))]
        return -1;
    }

    /// Goes on with every operation that was woken.
    fn answer(slf: Bound<'_, Self>) {
        #[cfg(unix)]
        slf.get().0.bell.hush();
        let woken = mem::take(&mut *slf.get().0.woken());
        for slot in woken.iter().filter_map(Weak::upgrade) {
            slot.queued.store(false, Ordering::Release);
            if let Err(error) = slot.poll(slf.py()) {
                error.write_unraisable(slf.py(), Some(&slf));
            }
        }
    }
}

impl Alarm {
    fn woken(&self) -> MutexGuard<'_, Vec<Weak<Slot>>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(unix)]
    fn ring(&self, slot: Weak<Slot>) {
        self.woken().push(slot);
        self.bell.ring();
    }

    #[cfg(not(unix))]
    fn ring(self: &Arc<Self>, slot: Weak<Slot>) {
        self.woken().push(slot);
        let alarm = self.clone();
        Native.call(Box::new(move || {
            let _ = Python::try_attach(|py| {
                let (call_soon, answer) = &alarm.call_soon;
                let answer = answer.get_or_try_init(py, || {
                    Bound::new(py, Bell(alarm.clone()))?.getattr("answer").map(Bound::unbind)
                })?;
                // An error is a loop that was closed: nobody waits there any more.
                call_soon.call1(py, (answer,))
            });
        }));
    }
}

/// The running event loop and its bell.
fn loop_and_bell(py: Python<'_>) -> PyResult<(Bound<'_, PyAny>, Bound<'_, Bell>)> {
    static FIND: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let find =
        FIND.get_or_try_init(py, || py.import("windlass._bells")?.getattr("find").map(Bound::unbind))?;
    let (running_loop, bell): (Bound<'_, PyAny>, Bound<'_, PyAny>) = find.bind(py).call0()?.extract()?;
    Ok((running_loop, bell.cast_into::<Bell>()?))
}
