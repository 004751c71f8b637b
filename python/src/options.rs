//! Python's keyword arguments as the core's options.

use std::{collections::BTreeMap, time::Duration};

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyMapping, PyString},
};
use windlass::{ErrorKind, Mode, Name, Ticket};

use crate::errors::{self, error};

/// As good as for ever.
const AGES: Duration = Duration::from_secs(u32::MAX as u64);

/// What a lock is asked with, apart from its name and callbacks.
pub(crate) struct Options {
    pub(crate) mode: Mode,
    pub(crate) steal: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) keep_place: Option<Duration>,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) hold_at_least: Duration,
    pub(crate) random_delay: Duration,
    pub(crate) owner: Option<String>,
    pub(crate) metadata: Metadata,
}

impl Options {
    /// Tells an acquire all but the timeout.
    pub(crate) fn tell(&self, lock: windlass::Lock) -> windlass::Lock {
        let mut lock = lock.mode(self.mode).keep_place(self.keep_place).ticket(self.ticket.clone());
        if self.steal {
            lock = lock.steal();
        }
        if let Some(ttl) = self.ttl {
            lock = lock.ttl(ttl);
        }
        if self.max_hold.is_some() {
            lock = lock.max_hold(self.max_hold);
        }
        if !self.hold_at_least.is_zero() {
            lock = lock.hold_at_least(self.hold_at_least);
        }
        if !self.random_delay.is_zero() {
            lock = lock.random_delay(self.random_delay);
        }
        if let Some(owner) = &self.owner {
            lock = lock.owner(owner);
        }
        for (key, value) in &self.metadata.0 {
            lock = lock.metadata(key, value);
        }
        lock
    }
}

/// A ticket, read.
pub(crate) fn ticket(py: Python<'_>, text: &str) -> PyResult<Ticket> {
    text.parse().map_err(|error| errors::exception(py, &error))
}

/// A name, checked; text that has no UTF-8 (lone surrogates) is no name.
pub(crate) fn name(text: &Bound<'_, PyString>) -> PyResult<Name> {
    let py = text.py();
    let Ok(text) = text.to_cow() else {
        let message =
            "the name is not UTF-8 (it has lone surrogates): give the name as text that can be encoded";
        return Err(error(py, ErrorKind::InvalidName, message));
    };
    text.parse().map_err(|error| errors::exception(py, &error))
}

pub(crate) fn mode(py: Python<'_>, mode: &str, limit: Option<u32>) -> PyResult<Mode> {
    let message = match (mode, limit) {
        ("exclusive", None) => return Ok(Mode::Exclusive),
        ("shared", None) => return Ok(Mode::Shared),
        ("upgradable", None) => return Ok(Mode::Upgradable),
        ("exclusive", Some(limit)) => match limit.try_into() {
            Ok(limit) => return Ok(Mode::Permit(limit)),
            Err(_) => "a semaphore with limit 0 lets nobody in: give a limit of 1 or more".to_owned(),
        },
        (_, Some(_)) => "a semaphore has a limit and no mode: leave out the mode".to_owned(),
        (other, None) => format!("mode={other:?} is not known: exclusive, shared or upgradable"),
    };
    Err(error(py, ErrorKind::InvalidInput, &message))
}

/// A length of time in seconds.
pub(crate) fn seconds(py: Python<'_>, what: &str, value: f64) -> PyResult<Duration> {
    if value.is_nan() || value < 0.0 {
        let message = format!("{what}={value} is no length of time: give seconds, 0 or more");
        return Err(error(py, ErrorKind::InvalidInput, &message));
    }
    Ok(Duration::try_from_secs_f64(value).unwrap_or(AGES).min(AGES))
}

/// A length of time in seconds; `None` and infinity: no limit.
pub(crate) fn limit(py: Python<'_>, what: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    let limit = value.map(|value| seconds(py, what, value)).transpose()?;
    Ok(limit.filter(|limit| *limit < AGES))
}

/// Keys and values of text, from any mapping.
#[derive(Default)]
pub(crate) struct Metadata(pub(crate) BTreeMap<String, String>);

impl<'py> FromPyObject<'_, 'py> for Metadata {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let mapping = value
            .cast::<PyMapping>()
            .map_err(|_| PyTypeError::new_err("metadata is a mapping of text to text"))?;
        let mut pairs = BTreeMap::new();
        for pair in mapping.items()?.iter() {
            let (key, value): (String, String) = pair.extract()?;
            pairs.insert(key, value);
        }
        Ok(Self(pairs))
    }
}
