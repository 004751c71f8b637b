//! A lock object: the methods of `threading.Lock`, its kin, and what the asyncio face needs.
//!
//! Taking and leaving are each one native call. So no signal handler can run between a grant and its being noted, and
//! a `with` is as fast as the backend.

use std::{mem, sync::Mutex, time::Duration};

use futures_util::future::join_all;
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyOverflowError, PyValueError},
    prelude::*,
    types::{PyString, PyTuple},
};
use windlass::{ErrorKind, Guard, Mode, Name};

use crate::{
    callbacks::Callbacks,
    errors,
    held::{Held, none, not_held, show, show_all},
    locker,
    options::{self, Metadata, Options},
    pending::Pending,
    stack::{Claims, Left, Stack},
    wait::wait,
};

/// `threading.TIMEOUT_MAX` on common machines.
const TIMEOUT_MAX: f64 = 9_223_372_036.0;

/// A lock object; see `windlass.Lock`.
#[pyclass(frozen, subclass, module = "windlass._windlass")]
pub(crate) struct Lock {
    locker: windlass::Locker,
    /// The `windlass.Locker` that it was given: as long as that is there, the end of the program waits for releases.
    given: Option<Py<PyAny>>,
    what: What,
    options: Options,
    callbacks: Mutex<Callbacks>,
    reentrant: bool,
    stack: Stack,
}

enum What {
    One(Name),
    Many(Vec<Name>),
}

/// What an acquire came to: `None` for one that was not to wait.
enum Taken {
    One(Guard),
    Many(Vec<Guard>),
}

/// Anything that is true or false to Python, as `threading` takes it.
struct Truth(bool);

impl<'py> FromPyObject<'_, 'py> for Truth {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        value.is_truthy().map(Self)
    }
}

/// How long to wait.
#[derive(Clone, Copy)]
enum Patience {
    /// Not at all.
    None,
    /// As long as the lock object says.
    Own,
    At(Duration),
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (name, *, locker=None, timeout=None, ttl=None, mode="exclusive", steal=false, keep_place=None,
        ticket=None, max_hold=None, hold_at_least=0.0, random_delay=0.0, owner=None, metadata=None, on_wait=None,
        on_acquired=None, on_lost=None, on_contended=None, on_held_too_long=None, limit=None, reentrant=false))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords")]
    fn new(
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        locker: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
        ttl: Option<f64>,
        mode: &str,
        steal: bool,
        keep_place: Option<f64>,
        ticket: Option<&str>,
        max_hold: Option<f64>,
        hold_at_least: f64,
        random_delay: f64,
        owner: Option<String>,
        metadata: Option<Metadata>,
        on_wait: Option<Py<PyAny>>,
        on_acquired: Option<Py<PyAny>>,
        on_lost: Option<Py<PyAny>>,
        on_contended: Option<Py<PyAny>>,
        on_held_too_long: Option<Py<PyAny>>,
        limit: Option<u32>,
        reentrant: bool,
    ) -> PyResult<Self> {
        let what = match name.cast::<PyString>() {
            Ok(name) => What::One(options::name(name)?),
            Err(_) if !name.is_instance_of::<PyTuple>() => {
                return Err(pyo3::exceptions::PyTypeError::new_err(format!(
                    "a lock's name is a str, not {}",
                    name.get_type().name()?
                )));
            }
            Err(_) => {
                let names = name.try_iter()?.map(|name| options::name(name?.cast::<PyString>()?));
                What::Many(names.collect::<PyResult<_>>()?)
            }
        };
        let options = Options {
            mode: options::mode(py, mode, limit)?,
            steal,
            timeout: options::limit(py, "timeout", timeout)?,
            keep_place: keep_place.map(|keep| options::seconds(py, "keep_place", keep)).transpose()?,
            ticket: ticket.map(|ticket| options::ticket(py, ticket)).transpose()?,
            ttl: ttl.map(|ttl| options::seconds(py, "ttl", ttl)).transpose()?,
            max_hold: options::limit(py, "max_hold", max_hold)?,
            hold_at_least: options::seconds(py, "hold_at_least", hold_at_least)?,
            random_delay: options::seconds(py, "random_delay", random_delay)?,
            owner,
            metadata: metadata.unwrap_or_default(),
        };
        let callbacks = Callbacks { on_wait, on_acquired, on_lost, on_contended, on_held_too_long };
        let given = locker.map(|locker| locker.clone().unbind());
        let locker = locker::given_or_default(py, locker)?;
        let stack = Stack::default();
        Ok(Self { locker, given, what, options, callbacks: Mutex::new(callbacks), reentrant, stack })
    }

    /// Which lock; a tuple of names for several that are acquired together.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.what {
            What::One(name) => Ok(PyString::new(py, name.as_str()).into_any()),
            What::Many(names) => Ok(PyTuple::new(py, names.iter().map(Name::as_str))?.into_any()),
        }
    }

    /// What this thread took last through this object and still has; failing that, what any thread did; else `None`.
    #[getter]
    fn held(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.stack.top(py).map(|claims| claims.show(py)).transpose()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if let Some(claims) = self.enter_again(py)? {
            return claims.show(py);
        }
        let claims = self.take(py, Patience::Own)?.ok_or_else(|| {
            errors::error(py, ErrorKind::Internal, "a queued acquire came back with nothing")
        })?;
        let shown = claims.show(py);
        self.stack.push(claims);
        shown
    }

    #[pyo3(signature = (exc_type=None, exc=None, traceback=None, /))]
    #[allow(unused_variables)]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let left = self.leave(py)?;
        errors::at_the_end_of_with(release(py, left), exc)
    }

    /// Takes the lock, as `threading.Lock.acquire` does: `True` if it was taken, `False` if it was not in time.
    #[pyo3(signature = (blocking=Truth(true), timeout=-1.0), text_signature = "($self, blocking=True, timeout=-1.0)")]
    fn acquire(&self, py: Python<'_>, blocking: Truth, timeout: f64) -> PyResult<bool> {
        let Truth(blocking) = blocking;
        if timeout.is_nan() {
            return Err(PyValueError::new_err("Invalid value NaN (not a number)"));
        }
        if !blocking && timeout != -1.0 {
            return Err(PyValueError::new_err("can't specify a timeout for a non-blocking call"));
        }
        if timeout < 0.0 && timeout != -1.0 {
            return Err(PyValueError::new_err("timeout value must be a non-negative number"));
        }
        if timeout > TIMEOUT_MAX {
            return Err(PyOverflowError::new_err("timeout value is too large"));
        }
        self.take_in_time(py, Truth(blocking), (timeout != -1.0).then_some(timeout))
    }

    /// Gives back what was taken last through this object, by this thread if it took anything, as
    /// `threading.Lock.release` does.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        release(py, self.leave(py)?)
    }

    /// Takes the lock: `True` if it was taken, `False` if it was not in time. No `timeout`: that of this object. A ticket is not to be
    /// lost in a `False`.
    fn take_in_time(&self, py: Python<'_>, blocking: Truth, timeout: Option<f64>) -> PyResult<bool> {
        let Truth(blocking) = blocking;
        if self.enter_again(py)?.is_some() {
            return Ok(true);
        }
        let patience = match timeout {
            _ if !blocking => Patience::None,
            None => Patience::Own,
            Some(timeout) if timeout <= 0.0 => Patience::None,
            Some(timeout) => Patience::At(options::seconds(py, "timeout", timeout)?),
        };
        match self.take(py, patience) {
            Ok(Some(claims)) => {
                self.stack.push(claims);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) if self.options.keep_place.is_none() && errors::is(py, &error, "Timeout") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many times it is held through this object.
    fn times_held(&self) -> usize {
        self.stack.len()
    }

    /// Whether somebody holds the lock, here or elsewhere; for a semaphore, whether all permits are taken.
    fn locked(&self, py: Python<'_>) -> PyResult<bool> {
        let limit = options_limit(&self.options);
        if limit.is_none() && self.stack.is_held(py) {
            return Ok(true);
        }
        let names = match &self.what {
            What::One(name) => std::slice::from_ref(name),
            What::Many(names) => names,
        };
        for name in names {
            let listed = wait(py, self.locker.list(name.as_str()))?;
            let all = listed.map_err(|error| errors::exception(py, &error))?;
            let Some(status) = all.into_iter().find(|status| status.name == *name) else { continue };
            let taken = match limit {
                Some(limit) => status.holders.len() >= limit || !status.waiters.is_empty(),
                None => !status.holders.is_empty(),
            };
            if taken {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the lock for the asyncio face, which keeps the held locks itself: gives a held lock (a list for several), or
    /// `None` if `blocking` is false and it was not to be had. No `timeout`: that of this object.
    #[pyo3(signature = (blocking=true, timeout=None))]
    fn ask(&self, py: Python<'_>, blocking: bool, timeout: Option<f64>) -> PyResult<Pending> {
        let patience = match options::limit(py, "timeout", timeout)? {
            _ if !blocking => Patience::None,
            None => Patience::Own,
            Some(timeout) => Patience::At(timeout),
        };
        let taking = self.taking(py, patience);
        Ok(Pending::new(taking, |py, taken| match taken {
            None => none(py, ()),
            Some(Taken::One(guard)) => show(py, guard, true),
            Some(Taken::Many(guards)) => Ok(show_all(py, guards, true)?.into_pyobject(py)?.unbind()),
        }))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let kind = slf.get_type().name()?;
        Ok(format!("<{kind} {} in {}>", slf.get().name(slf.py())?.repr()?, locker::url(&slf.get().locker)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.given)?;
        self.stack.traverse(&visit)?;
        match self.callbacks.try_lock() {
            Ok(callbacks) => callbacks.traverse(&visit),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        let callbacks = self.callbacks.lock().map(|mut callbacks| mem::take(&mut *callbacks));
        drop((callbacks, self.stack.clear()));
    }
}

impl Lock {
    /// The acquire, ready to be polled.
    fn taking(
        &self,
        py: Python<'_>,
        patience: Patience,
    ) -> impl Future<Output = Result<Option<Taken>, windlass::Error>> + Send + use<> {
        let told = |lock: windlass::Lock| {
            let lock = match patience {
                Patience::None => lock,
                Patience::Own => lock.timeout(self.options.timeout),
                Patience::At(timeout) => lock.timeout(timeout),
            };
            let lock = self.options.tell(lock);
            match self.callbacks.lock() {
                Ok(callbacks) => callbacks.tell(py, lock),
                Err(_) => lock,
            }
        };
        let asked = match &self.what {
            What::One(name) => Asked::One(told(self.locker.lock(name.as_str()))),
            What::Many(names) => Asked::Many(self.locker.lock_all(names.iter().map(Name::as_str)).with(told)),
        };
        async move {
            match (asked, patience) {
                (Asked::One(lock), Patience::None) => Ok(lock.try_acquire().await?.map(Taken::One)),
                (Asked::One(lock), _) => Ok(Some(Taken::One(lock.await?))),
                (Asked::Many(locks), Patience::None) => Ok(locks.try_acquire().await?.map(Taken::Many)),
                (Asked::Many(locks), _) => Ok(Some(Taken::Many(locks.await?))),
            }
        }
    }

    fn take(&self, py: Python<'_>, patience: Patience) -> PyResult<Option<Claims>> {
        let taken = wait(py, self.taking(py, patience))?.map_err(|error| errors::exception(py, &error))?;
        match taken {
            None => Ok(None),
            Some(Taken::One(guard)) => Ok(Some(Claims::One(Held::new(py, guard)?))),
            Some(Taken::Many(guards)) => {
                let helds = guards.into_iter().map(|guard| Held::new(py, guard));
                Ok(Some(Claims::Many(helds.collect::<PyResult<_>>()?)))
            }
        }
    }

    /// A re-entrant lock that this thread holds is entered once more; not if it was lost.
    fn enter_again(&self, py: Python<'_>) -> PyResult<Option<Claims>> {
        if !self.reentrant {
            return Ok(None);
        }
        let Some(claims) = self.stack.mine(py) else { return Ok(None) };
        claims.all().iter().try_for_each(|held| held.bind(py).as_super().get().check_held(py))?;
        self.stack.enter_again();
        Ok(Some(claims))
    }

    fn leave(&self, py: Python<'_>) -> PyResult<Left> {
        self.stack.leave(py, self.reentrant).ok_or_else(|| {
            let message = match (self.reentrant, self.options.mode) {
                (true, _) => "cannot release un-acquired lock",
                (false, Mode::Permit(_)) => "semaphore released too many times",
                (false, _) => "release unlocked lock",
            };
            not_held(py, message)
        })
    }
}

enum Asked {
    One(windlass::Lock),
    Many(windlass::LockAll),
}

/// Gives back what was left; what a child of `fork` leaves is its parent's and stays so.
fn release(py: Python<'_>, left: Left) -> PyResult<()> {
    let Left { claims, still_held, is_ours } = left;
    if !is_ours {
        return Ok(());
    }
    if still_held {
        return claims.all().iter().try_for_each(|held| held.bind(py).as_super().get().check_held(py));
    }
    let outcome = match &claims {
        Claims::One(held) => wait(py, held.bind(py).as_super().get().releasing())?,
        Claims::Many(helds) => {
            let all = helds.iter().map(|held| held.bind(py).as_super().get().releasing());
            // A loss says more than what could not be told.
            let failed = wait(py, join_all(all))?.into_iter().filter_map(Result::err);
            failed.min_by_key(|error| !matches!(error.kind(), ErrorKind::Lost(_))).map_or(Ok(()), Err)
        }
    };
    outcome.map_err(|error| errors::exception(py, &error))
}

fn options_limit(options: &Options) -> Option<usize> {
    match options.mode {
        Mode::Permit(limit) => usize::try_from(limit.get()).ok(),
        Mode::Exclusive | Mode::Shared | Mode::Upgradable => None,
    }
}
