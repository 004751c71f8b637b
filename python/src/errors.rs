//! From the core's error to Python's exceptions, which mirror its kinds one to one.

use std::error::Error as _;

use pyo3::{
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyType},
};
use windlass::{Error, ErrorKind};

use crate::seen;

/// The exception for an error of the core: the one place where kinds become classes.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error.kind() {
        ErrorKind::InvalidName => "InvalidName",
        ErrorKind::InvalidInput => "InvalidInput",
        ErrorKind::Unsupported => "Unsupported",
        ErrorKind::Timeout => "Timeout",
        ErrorKind::Lost(_) => "LockLost",
        ErrorKind::NotHeld => "NotHeld",
        ErrorKind::Denied => "Denied",
        ErrorKind::Unavailable => "Unavailable",
        ErrorKind::Storage => "StorageError",
        ErrorKind::Closed => "Closed",
        // A kind that is newer than this package is still an `Error`.
        ErrorKind::Internal => "InternalError",
        _ => "Error",
    };
    match build(py, class, error) {
        // As `raise` does, and unlike `PyErr::from_value`, this shows the exception being handled as its context.
        Ok(exception) => PyErr::from_type(exception.get_type(), exception.unbind()),
        Err(error) => error,
    }
}

/// An error of this layer, of the same kinds.
pub(crate) fn error(py: Python<'_>, kind: ErrorKind, message: &str) -> PyErr {
    exception(py, &Error::new(kind, message))
}

/// Whether this is one of ours, of this class, and not what a signal handler or a function of the program raised.
pub(crate) fn is(py: Python<'_>, error: &PyErr, class: &str) -> bool {
    self::class(py, class).is_ok_and(|class| error.is_instance(py, &class))
}

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    static MODULE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || py.import("windlass._errors").map(|m| m.into_any().unbind()))?;
    Ok(module.bind(py).getattr(name)?.cast_into::<PyType>()?)
}

fn build<'py>(py: Python<'py>, class: &str, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let class = self::class(py, class)?;
    let details = PyDict::new(py);
    details.set_item(intern!(py, "lock"), error.lock().map(windlass::Name::as_str))?;
    details.set_item(intern!(py, "backend"), error.backend())?;
    if let Some(waiting) = error.waiting() {
        details.set_item(intern!(py, "waiting"), seen::waiting(py, waiting)?)?;
    }
    if let Some(ticket) = error.ticket() {
        details.set_item(intern!(py, "ticket"), ticket.reveal())?;
    }
    if let Some(after) = error.retry_after() {
        details.set_item(intern!(py, "retry_after"), after.as_secs_f64())?;
    }
    if let Some(reason) = error.lost_reason() {
        details.set_item(intern!(py, "reason"), reason.to_string())?;
    }
    let exception = class.call((format!("{error:#}"),), Some(&details))?;
    // What a function of the program raised.
    if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<PyErr>()) {
        exception.setattr(intern!(py, "__cause__"), cause.value(py))?;
    }
    Ok(exception)
}

/// The end of a `with`: the exception that its body raised goes on; that the lock was lost is shown above it, as the innermost
/// of the exceptions that it arose from. What a signal handler raised goes before both.
pub(crate) fn at_the_end_of_with(released: PyResult<()>, exc: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    match (released, exc) {
        (Err(error), Some(exc)) if is(exc.py(), &error, "Error") => add_context(exc, error.value(exc.py())),
        (released, _) => released,
    }
}

fn add_context<'py>(exc: &Bound<'py, PyAny>, lost: &Bound<'py, PyAny>) -> PyResult<()> {
    let (py, class) = (exc.py(), lost.get_type());
    let mut innermost = exc.clone();
    loop {
        if innermost.is_instance(&class)? || innermost.is(lost) {
            return Ok(());
        }
        let context = innermost.getattr(intern!(py, "__context__"))?;
        if context.is_none() {
            break;
        }
        innermost = context;
    }
    // It was raised while `exc` was handled: what it shows as its own context would close a ring.
    lost.setattr(intern!(py, "__context__"), py.None())?;
    innermost.setattr(intern!(py, "__context__"), lost)
}
