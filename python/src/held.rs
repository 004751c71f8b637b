//! A held lock as Python has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use event_listener::Event;
use futures_util::future::{self, BoxFuture, Either, FutureExt};
use pyo3::prelude::*;
use windlass::{
    Error, Guard, LostReason, Ticket,
    rt::{Native, Runtime},
};

use crate::{errors, here::Here, options, pending::Pending, seen, wait::wait};

/// What held locks of both faces have in common.
#[pyclass(frozen, subclass, module = "windlass._windlass")]
pub(crate) struct HeldBase {
    /// In a child of `fork` the guard holds nothing, and says so itself; `Here` keeps even its memory from being given back.
    guard: Here<Arc<Guard>>,
    over: Arc<Over>,
}

/// Tells those who wait for the loss of a lock that it was given back.
#[derive(Default)]
struct Over {
    is_over: AtomicBool,
    event: Event,
}

impl Over {
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.event.notify(usize::MAX);
    }
}

impl HeldBase {
    fn new(guard: Guard) -> Self {
        Self { guard: Here::new(Arc::new(guard)), over: Arc::default() }
    }

    /// Whether this process took the lock, and not its parent.
    pub(crate) fn is_ours(&self) -> bool {
        self.guard.as_ref().is_some()
    }

    fn guard(&self) -> &Arc<Guard> {
        self.guard.inherited()
    }

    pub(crate) fn releasing(&self) -> BoxFuture<'static, Result<(), Error>> {
        if !self.is_ours() {
            return future::ready(Ok(())).boxed();
        }
        let (guard, over) = (self.guard().clone(), self.over.clone());
        async move {
            over.end();
            guard.release_shared().await
        }
        .boxed()
    }

    fn downgrading(&self) -> BoxFuture<'static, Result<(), Error>> {
        let guard = self.guard().clone();
        async move { guard.downgrade().await }.boxed()
    }

    fn upgrading(&self, timeout: Option<Duration>) -> BoxFuture<'static, Result<(), Error>> {
        let guard = self.guard().clone();
        async move { guard.upgrade(timeout).await }.boxed()
    }

    fn losing(&self, timeout: Option<Duration>) -> BoxFuture<'static, Option<LostReason>> {
        if !self.is_ours() {
            return future::ready(None).boxed();
        }
        let lost = Box::pin(self.guard().lost());
        let over = self.over.clone();
        async move {
            let given_back = over.event.listen();
            if over.is_over.load(Ordering::Acquire) {
                return lost.now_or_never();
            }
            let timeout = match timeout {
                Some(timeout) => Native.sleep(timeout),
                None => future::pending().boxed(),
            };
            match future::select(lost, future::select(given_back, timeout)).await {
                Either::Left((reason, _)) => Some(reason),
                Either::Right(_) => None,
            }
        }
        .boxed()
    }

    fn lost_reason(&self) -> Option<String> {
        self.guard().check().err().and_then(|error| error.lost_reason()).map(|reason| reason.to_string())
    }

    pub(crate) fn check_held(&self, py: Python<'_>) -> PyResult<()> {
        self.guard().check().map_err(|error| errors::exception(py, &error))
    }
}

#[pymethods]
impl HeldBase {
    /// Which lock.
    #[getter]
    fn name(&self) -> &str {
        self.guard().name().as_str()
    }

    /// Greater than that of every earlier grant of this lock that it conflicts with. Send it with each side effect: a
    /// resource that refuses a smaller token than the largest it has seen is never written by an old holder.
    ///
    /// Raises:
    ///     Unsupported: The backend has none to give.
    #[getter]
    fn fencing_token(&self, py: Python<'_>) -> PyResult<u64> {
        match self.guard().fencing_token() {
            0 if self.is_ours() => {
                let message = "this backend has no fencing tokens to give; see its page in the documentation";
                Err(errors::error(py, windlass::ErrorKind::Unsupported, message))
            }
            token => Ok(token),
        }
    }

    /// How the lock is shared: "exclusive", "shared", "upgradable" or "permit".
    #[getter]
    fn mode(&self) -> &'static str {
        seen::mode_text(self.guard().mode())
    }

    /// For how many seconds the lock has been held.
    #[getter]
    fn held_for(&self) -> f64 {
        self.guard().held_for().as_secs_f64()
    }

    /// Why the lock was lost: "expired", "unreachable", "force_released", "stolen" or "session_ended"; `None` while it
    /// is held, and when it was given back.
    #[getter]
    fn lost(&self) -> Option<String> {
        self.lost_reason()
    }

    /// Whether the lock is certainly held: answered from the clock, without I/O, at every call.
    pub(crate) fn is_held(&self) -> bool {
        self.guard().is_held()
    }

    /// Raises unless the lock is certainly held: `LockLost` if it was lost, `NotHeld` if it was given back, `Closed` in
    /// a child of `fork`. For use before each step that must not happen without the lock.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.check_held(py)
    }

    /// Ends this hold without releasing the lock, and returns a ticket: text that `Locker.attach` takes, in another process
    /// or language. Until then the lock stays taken, for its TTL at the most. Who has the ticket has the lock: it is a
    /// secret.
    fn detach(&self, py: Python<'_>) -> PyResult<String> {
        let ticket = self.guard().detach_shared().map_err(|error| errors::exception(py, &error))?;
        self.over.end();
        Ok(Ticket::reveal(&ticket))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let held = slf.get();
        let state = match held.lost_reason() {
            Some(reason) => format!("lost: {reason}"),
            None if !held.is_held() => "not held".to_owned(),
            None => match held.guard().fencing_token() {
                0 => "held".to_owned(),
                token => format!("fencing_token={token}"),
            },
        };
        Ok(format!("<{} {:?} {}, {state}>", slf.get_type().name()?, held.name(), held.mode()))
    }
}

/// A lock that is held: what `with lock as held` gives. It belongs to no thread; when nothing refers to it any more, the
/// lock is released.
#[pyclass(frozen, extends = HeldBase, module = "windlass")]
pub(crate) struct Held;

impl Held {
    pub(crate) fn new(py: Python<'_>, guard: Guard) -> PyResult<Py<Self>> {
        Py::new(py, PyClassInitializer::from(HeldBase::new(guard)).add_subclass(Self))
    }
}

#[pymethods]
impl Held {
    /// Releases the lock and waits until the backend has confirmed it. Releasing twice is no error.
    ///
    /// Raises `LockLost` if the lock was lost before, `Unavailable` if the backend could not be told: the lock is then
    /// free when its TTL is over.
    fn release(slf: &Bound<'_, Self>) -> PyResult<()> {
        done(slf.py(), wait(slf.py(), slf.as_super().get().releasing())?)
    }

    /// Makes an exclusive or upgradable hold shared, without a gap, and lets in shared claims that wait.
    fn downgrade(slf: &Bound<'_, Self>) -> PyResult<()> {
        done(slf.py(), wait(slf.py(), slf.as_super().get().downgrading())?)
    }

    /// Makes an upgradable hold exclusive, as soon as the shared ones are gone. After `timeout` seconds raises `Timeout`, and
    /// the hold is upgradable as before; `None`: no limit.
    #[pyo3(signature = (timeout=None))]
    fn upgrade(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = options::limit(slf.py(), "timeout", timeout)?;
        done(slf.py(), wait(slf.py(), slf.as_super().get().upgrading(timeout))?)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (exc_type=None, exc=None, traceback=None, /))]
    #[allow(unused_variables)]
    fn __exit__(
        slf: &Bound<'_, Self>,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        errors::at_the_end_of_with(Self::release(slf), exc)
    }

    /// Waits until the lock is lost, and returns the reason; `None` if it was given back first, or after `timeout`
    /// seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait_lost(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Option<String>> {
        let timeout = options::limit(slf.py(), "timeout", timeout)?;
        let reason = wait(slf.py(), slf.as_super().get().losing(timeout))?;
        Ok(reason.map(|reason| reason.to_string()))
    }
}

/// A lock that is held by a task: what `async with lock as held` gives. When nothing refers to it any more, the lock is
/// released.
#[pyclass(frozen, extends = HeldBase, module = "windlass.aio")]
pub(crate) struct AsyncHeld;

impl AsyncHeld {
    pub(crate) fn new(py: Python<'_>, guard: Guard) -> PyResult<Py<Self>> {
        Py::new(py, PyClassInitializer::from(HeldBase::new(guard)).add_subclass(Self))
    }
}

#[pymethods]
impl AsyncHeld {
    /// Releases the lock and waits until the backend has confirmed it. Releasing twice is no error; a release that is
    /// cancelled goes on in the background.
    ///
    /// Raises `LockLost` if the lock was lost before, `Unavailable` if the backend could not be told: the lock is then
    /// free when its TTL is over.
    fn release(slf: &Bound<'_, Self>) -> Pending {
        Pending::new(slf.as_super().get().releasing(), none)
    }

    /// Makes an exclusive or upgradable hold shared, without a gap, and lets in shared claims that wait.
    fn downgrade(slf: &Bound<'_, Self>) -> Pending {
        Pending::new(slf.as_super().get().downgrading(), none)
    }

    /// Makes an upgradable hold exclusive, as soon as the shared ones are gone. After `timeout` seconds raises `Timeout`, and
    /// the hold is upgradable as before; `None`: no limit.
    #[pyo3(signature = (timeout=None))]
    fn upgrade(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Pending> {
        let timeout = options::limit(slf.py(), "timeout", timeout)?;
        Ok(Pending::new(slf.as_super().get().upgrading(timeout), none))
    }

    /// Waits until the lock is lost, and gives the reason; `None` if it was given back first, or after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait_lost(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Pending> {
        let timeout = options::limit(slf.py(), "timeout", timeout)?;
        let losing = slf.as_super().get().losing(timeout).map(Ok);
        Ok(Pending::new(losing, |py, reason| {
            Ok(reason.map(|reason| reason.to_string()).into_pyobject(py)?.unbind())
        }))
    }
}

pub(crate) fn none(py: Python<'_>, (): ()) -> PyResult<Py<PyAny>> {
    Ok(py.None())
}

fn done(py: Python<'_>, outcome: Result<(), Error>) -> PyResult<()> {
    outcome.map_err(|error| errors::exception(py, &error))
}

/// Either kind of held lock, for one that was just granted.
pub(crate) fn show(py: Python<'_>, guard: Guard, asynchronous: bool) -> PyResult<Py<PyAny>> {
    if asynchronous {
        Ok(AsyncHeld::new(py, guard)?.into_any())
    } else {
        Ok(Held::new(py, guard)?.into_any())
    }
}

/// Several, in the order in which they were asked for.
pub(crate) fn show_all(py: Python<'_>, guards: Vec<Guard>, asynchronous: bool) -> PyResult<Vec<Py<PyAny>>> {
    guards.into_iter().map(|guard| show(py, guard, asynchronous)).collect()
}

/// The error of a release that nothing matches.
pub(crate) fn not_held(py: Python<'_>, message: &str) -> PyErr {
    errors::error(py, windlass::ErrorKind::NotHeld, message)
}
