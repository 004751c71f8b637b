//! Python functions that the core calls.
//!
//! `on_wait` and `on_acquired` are called on the thread that polls the acquire; the others on threads of the core's own. No
//! callback can harm a lock: what it raises goes to `sys.unraisablehook`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_channel::oneshot;
use pyo3::{PyTraverseError, PyVisit, exceptions::PyKeyboardInterrupt, ffi, prelude::*};
use windlass::{
    Error, ErrorKind, Notice, Waiting,
    rt::{Native, Runtime},
    transport::TokenSource,
};

use crate::{
    here::process,
    options, seen,
    wait::{self, wait},
};

/// The callbacks that a lock was given.
#[derive(Default)]
pub(crate) struct Callbacks {
    pub(crate) on_wait: Option<Py<PyAny>>,
    pub(crate) on_acquired: Option<Py<PyAny>>,
    pub(crate) on_lost: Option<Py<PyAny>>,
    pub(crate) on_contended: Option<Py<PyAny>>,
    pub(crate) on_held_too_long: Option<Py<PyAny>>,
}

impl Callbacks {
    /// Tells an acquire to call them.
    pub(crate) fn tell(&self, py: Python<'_>, mut lock: windlass::Lock) -> windlass::Lock {
        if let Some(callback) = &self.on_wait {
            let callback = callback.clone_ref(py);
            lock = lock.on_wait(move |waiting| begin_wait(&callback, waiting));
        }
        if let Some(callback) = &self.on_acquired {
            lock = lock.on_acquired(notify(callback.clone_ref(py)));
        }
        if let Some(callback) = &self.on_lost {
            lock = lock.on_lost(notify(callback.clone_ref(py)));
        }
        if let Some(callback) = &self.on_contended {
            lock = lock.on_contended(notify(callback.clone_ref(py)));
        }
        if let Some(callback) = &self.on_held_too_long {
            lock = lock.on_held_too_long(notify(callback.clone_ref(py)));
        }
        lock
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.on_wait)?;
        visit.call(&self.on_acquired)?;
        visit.call(&self.on_lost)?;
        visit.call(&self.on_contended)?;
        visit.call(&self.on_held_too_long)
    }
}

fn notify(callback: Py<PyAny>) -> impl Fn(&Notice) + Send + Sync + 'static {
    move |notice| {
        let Some(_running) = Running::begin() else { return };
        // `None` once the interpreter is on its way out: there is nobody left to tell.
        let _ = Python::try_attach(|py| {
            let told = seen::notice(py, notice).and_then(|notice| callback.call1(py, (notice,)));
            if let Err(error) = told {
                unraisable(py, error, callback.bind(py));
            }
        });
    }
}

/// A function that gives tokens, called on a thread of the core's own.
pub(crate) fn token_source(source: Py<PyAny>) -> TokenSource {
    let source = Arc::new(source);
    TokenSource::new(move || {
        let (tell, token) = oneshot::channel();
        let source = source.clone();
        // Whoever asked may be gone.
        Native.call_at_once(Box::new(move || drop(tell.send(ask_for_token(&source)))));
        async move { token.await.unwrap_or_else(|_| Err(interpreter_ends())) }
    })
}

fn ask_for_token(source: &Py<PyAny>) -> Result<String, Error> {
    let Some(_running) = Running::begin() else { return Err(interpreter_ends()) };
    let token = Python::try_attach(|py| {
        let token = source.call0(py).and_then(|token| token.extract(py));
        token.map_err(|error| Error::new(ErrorKind::Denied, format!("no token: {error}")).with_source(error))
    });
    token.unwrap_or_else(|| Err(interpreter_ends()))
}

fn interpreter_ends() -> Error {
    Error::new(ErrorKind::Closed, "the interpreter is ending: there is nobody to ask for a token")
}

/// How many callbacks run in this process, and whether no more shall begin.
///
/// The interpreter must not end under a callback that runs on a thread of ours: it would die of a lock that the callback
/// holds, such as that of `sys.stdout`.
struct Running {
    process: u32,
}

/// The process in the upper half, a count in the lower: a child of `fork` has none of its parent's callbacks.
static RUNNING: AtomicU64 = AtomicU64::new(0);
static ENDING: AtomicBool = AtomicBool::new(false);

impl Running {
    fn begin() -> Option<Self> {
        let running = Self { process: process() };
        Self::add(running.process, 1);
        // Asked after it was counted, so that whoever is ending either sees it or is seen.
        (!ENDING.load(Ordering::SeqCst)).then_some(running)
    }

    fn count(process: u32, state: u64) -> u32 {
        if state >> 32 == u64::from(process) { state as u32 } else { 0 }
    }

    fn add(process: u32, change: i32) {
        let next = |state| {
            let count = Self::count(process, state).saturating_add_signed(change);
            Some(u64::from(process) << 32 | u64::from(count))
        };
        // Never fails: `next` always gives a state.
        let _ = RUNNING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        Self::add(self.process, -1);
    }
}

/// This thread ends the interpreter: no more callbacks begin, and those that run are waited for, for `patience` seconds
/// at the most.
#[pyfunction]
pub(crate) fn begin_exit(py: Python<'_>, patience: f64) -> PyResult<()> {
    const LOOK_EVERY: Duration = Duration::from_millis(1);
    wait::exit();
    ENDING.store(true, Ordering::SeqCst);
    let end = Native.monotonic().plus(options::seconds(py, "patience", patience)?);
    while Running::count(process(), RUNNING.load(Ordering::SeqCst)) > 0 && Native.monotonic() < end {
        wait(py, Native.sleep(LOOK_EVERY))?;
    }
    Ok(())
}

/// Calls `on_wait` and enters the context manager that it returned, if it returned one.
fn begin_wait(callback: &Py<PyAny>, waiting: &Waiting) -> Option<Wrap> {
    Python::try_attach(|py| {
        let enter = || -> PyResult<Option<Wrap>> {
            let manager = callback.call1(py, (seen::waiting(py, waiting)?,))?.into_bound(py);
            if manager.is_none() || !manager.hasattr("__exit__")? {
                return Ok(None);
            }
            manager.call_method0("__enter__")?;
            Ok(Some(Wrap(manager.unbind())))
        };
        enter().unwrap_or_else(|error| {
            unraisable(py, error, callback.bind(py));
            None
        })
    })
    .flatten()
}

/// A context manager around a wait, left when this is dropped.
struct Wrap(Py<PyAny>);

impl Drop for Wrap {
    fn drop(&mut self) {
        let _ = Python::try_attach(|py| {
            if let Err(error) = self.0.call_method1(py, "__exit__", (py.None(), py.None(), py.None())) {
                unraisable(py, error, self.0.bind(py));
            }
        });
    }
}

fn unraisable(py: Python<'_>, error: PyErr, whence: &Bound<'_, PyAny>) {
    if error.is_instance_of::<PyKeyboardInterrupt>(py) {
        // Ctrl-C is for the program, not for the callback that it happened to hit: let the wait that is under way hear it.
        // SAFETY: attached to the interpreter; only sets a flag.
        unsafe { ffi::PyErr_SetInterrupt() };
    } else {
        error.write_unraisable(py, Some(whence));
    }
}
