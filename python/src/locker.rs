//! A connection to where locks live.

use std::{
    ffi::OsString,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, Stream, StreamExt, lock::Mutex as AsyncMutex};
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyDict, types::PyString};
use windlass::{ConnectOptions, Error, ErrorKind, Status};

use crate::{
    callbacks::token_source,
    errors,
    held::{none, show},
    here::Here,
    options::{self, Metadata},
    pending::Pending,
    seen,
    wait::wait,
};

/// A connection to where locks live; see `windlass.Locker`.
#[pyclass(frozen, module = "windlass._windlass")]
pub(crate) struct Locker(windlass::Locker);

/// Connects. No `url`: `$WINDLASS_URL`, else files of this user on this machine.
#[pyfunction]
#[pyo3(signature = (url=None, *, ttl=None, owner=None, metadata=None, token=None))]
pub(crate) fn connect(
    py: Python<'_>,
    url: Option<String>,
    ttl: Option<f64>,
    owner: Option<String>,
    metadata: Option<Metadata>,
    token: Option<Bound<'_, PyAny>>,
) -> PyResult<Pending> {
    let mut options = ConnectOptions::new();
    if let Some(ttl) = ttl {
        options = options.ttl(options::seconds(py, "ttl", ttl)?);
    }
    if let Some(owner) = owner {
        options = options.owner(owner);
    }
    for (key, value) in metadata.unwrap_or_default().0 {
        options = options.metadata(key, value);
    }
    if let Some(token) = token {
        options = match token.cast::<PyString>() {
            Ok(text) => options.token(text.to_cow()?),
            Err(_) if token.is_callable() => options.token_source(token_source(token.unbind())),
            Err(_) => return Err(PyTypeError::new_err("token is text, or a function that gives it")),
        };
    }
    let connecting = async move {
        let url = url.map_or_else(windlass::default_url, Ok)?;
        options.connect(&url).await
    };
    Ok(Pending::new(connecting, |py, locker| Ok(Py::new(py, Locker(locker))?.into_any())))
}

/// The locker of those who named none: made at first use.
#[pyfunction]
pub(crate) fn default_locker(py: Python<'_>) -> PyResult<Locker> {
    shared(py).map(Locker)
}

/// The locker of those who named none, if one of them has made it.
#[pyfunction]
pub(crate) fn default_if_made() -> Option<Locker> {
    default_slot().clone().map(Locker)
}

/// Runs the command line `windlass` with these arguments, and gives its exit status.
#[pyfunction]
pub(crate) fn cli(py: Python<'_>, args: Vec<OsString>) -> i32 {
    #[cfg(feature = "cli")]
    return py.detach(|| windlass_cli::main(args));
    #[cfg(not(feature = "cli"))]
    {
        let _ = (py, args);
        2
    }
}

/// The locker that a lock was given: a native one, or the `_native` of a `windlass.Locker`; else the default.
pub(crate) fn given_or_default(
    py: Python<'_>,
    given: Option<&Bound<'_, PyAny>>,
) -> PyResult<windlass::Locker> {
    let Some(given) = given else { return shared(py) };
    match given.cast::<Locker>() {
        Ok(locker) => Ok(locker.get().0.clone()),
        Err(_) => Ok(given.getattr("_native")?.cast::<Locker>()?.get().0.clone()),
    }
}

pub(crate) fn url(locker: &windlass::Locker) -> String {
    locker.url().unwrap_or_else(|error| error.to_string())
}

fn shared(py: Python<'_>) -> PyResult<windlass::Locker> {
    if let Some(locker) = &*default_slot() {
        return Ok(locker.clone());
    }
    let connecting = async { ConnectOptions::new().connect(&windlass::default_url()?).await };
    let locker = wait(py, connecting)?.map_err(|error| errors::exception(py, &error))?;
    Ok(default_slot().get_or_insert(locker).clone())
}

/// Locked for a few instructions only, in which neither Python runs nor anything waits.
fn default_slot() -> MutexGuard<'static, Option<windlass::Locker>> {
    static DEFAULT: Mutex<Option<windlass::Locker>> = Mutex::new(None);
    DEFAULT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl Locker {
    /// Where the locks live, as a URL without credentials.
    #[getter]
    fn url(&self, py: Python<'_>) -> PyResult<String> {
        self.0.url().map_err(|error| errors::exception(py, &error))
    }

    /// Takes up a held lock from a ticket.
    fn attach(&self, py: Python<'_>, ticket: &str, asynchronous: bool) -> PyResult<Pending> {
        let ticket = options::ticket(py, ticket)?;
        let locker = self.0.clone();
        let attaching = async move { locker.attach(&ticket).await };
        Ok(Pending::new(attaching, move |py, guard| show(py, guard, asynchronous)))
    }

    /// Gives back what a ticket is for.
    fn release(&self, py: Python<'_>, ticket: &str) -> PyResult<Pending> {
        let ticket = options::ticket(py, ticket)?;
        let locker = self.0.clone();
        Ok(Pending::new(async move { locker.release(&ticket).await }, none))
    }

    /// The locks whose names begin with `prefix`.
    fn list(&self, prefix: String) -> Pending {
        let locker = self.0.clone();
        let listing = async move { locker.list(&prefix).await };
        Pending::new(listing, |py, all| {
            let all: Vec<_> = all.iter().map(|status| seen::status(py, status)).collect::<PyResult<_>>()?;
            Ok(all.into_pyobject(py)?.unbind())
        })
    }

    /// The locks whose names begin with `prefix`, and each again when it changes.
    fn watch(&self, prefix: String) -> Pending {
        let locker = self.0.clone();
        let watching = async move { locker.watch(&prefix).await.map(StreamExt::boxed) };
        Pending::new(watching, |py, stream| {
            let stream = Here::new(Arc::new(AsyncMutex::new(stream)));
            Ok(Py::new(py, Changes(stream))?.into_any())
        })
    }

    /// Frees a lock as an operator.
    #[pyo3(signature = (name, fencing_token=None))]
    fn force_release(&self, name: &Bound<'_, PyString>, fencing_token: Option<u64>) -> PyResult<Pending> {
        let (locker, name) = (self.0.clone(), options::name(name)?);
        let freeing = async move { locker.force_release(name.as_str(), fencing_token).await };
        Ok(Pending::new(freeing, |py, taken| Ok(seen::holders(py, &taken)?.into_pyobject(py)?.unbind())))
    }

    /// What this locker has counted in this process.
    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metrics = self.0.metrics().map_err(|error| errors::exception(py, &error))?;
        seen::by_name(py, serde_json::to_value(metrics).unwrap_or_default())
    }

    /// What the backend can promise.
    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let capabilities = self.0.capabilities().map_err(|error| errors::exception(py, &error))?;
        seen::by_name(py, serde_json::to_value(capabilities).unwrap_or_default())
    }

    /// Releases everything that is held, and lets nobody acquire any more.
    fn close(&self) -> Pending {
        let locker = self.0.clone();
        Pending::new(async move { locker.close().await }, none)
    }
}

type Statuses = Pin<Box<dyn Stream<Item = Result<Status, Error>> + Send>>;

/// Locks as they change.
#[pyclass(frozen, module = "windlass._windlass")]
pub(crate) struct Changes(Here<Arc<AsyncMutex<Statuses>>>);

#[pymethods]
impl Changes {
    /// The next change; `None` when there will be none.
    fn next(&self) -> Pending {
        let Some(stream) = self.0.as_ref().cloned() else {
            let error =
                Error::new(ErrorKind::Closed, "this watch belongs to the parent process: watch again");
            return Pending::new(futures_util::future::ready(Err(error)), none);
        };
        let next = async move { stream.lock().await.next().await.transpose() };
        Pending::new(next.boxed(), |py, next| {
            next.map_or_else(|| none(py, ()), |status| Ok(seen::status(py, &status)?.unbind()))
        })
    }
}
