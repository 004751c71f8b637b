//! What is shown to people and programs about locks, as the named tuples of `windlass._seen`.

use std::{collections::BTreeMap, time::Duration};

use pyo3::{prelude::*, sync::PyOnceLock, types::PyDict};
use serde_json::Value;
use windlass::{Holder, Mode, Notice, Status, Waiter, Waiting};

pub(crate) fn waiting<'py>(py: Python<'py>, waiting: &Waiting) -> PyResult<Bound<'py, PyAny>> {
    make(py, "Waiting", (holders(py, &waiting.holders)?, waiting.place))
}

pub(crate) fn status<'py>(py: Python<'py>, status: &Status) -> PyResult<Bound<'py, PyAny>> {
    let waiters: Vec<_> = status.waiters.iter().map(|each| waiter(py, each)).collect::<PyResult<_>>()?;
    make(py, "Status", (status.name.as_str(), holders(py, &status.holders)?, waiters))
}

pub(crate) fn holders<'py>(py: Python<'py>, holders: &[Holder]) -> PyResult<Vec<Bound<'py, PyAny>>> {
    holders.iter().map(|each| holder(py, each)).collect()
}

pub(crate) fn notice<'py>(py: Python<'py>, notice: &Notice) -> PyResult<Bound<'py, PyAny>> {
    let lost = notice.lost.map(|reason| reason.to_string());
    make(py, "Notice", (notice.name.as_str(), notice.fencing_token, notice.held_for.as_secs_f64(), lost))
}

/// Figures and flags by name: whatever the core has, without a list of it here.
pub(crate) fn by_name<'py>(py: Python<'py>, value: Value) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let Value::Object(fields) = value else { return Ok(dict) };
    for (key, value) in fields {
        match value {
            Value::Bool(flag) => dict.set_item(key, flag)?,
            Value::Number(number) => dict.set_item(key, number.as_u64())?,
            other => dict.set_item(key, other.to_string())?,
        }
    }
    Ok(dict)
}

pub(crate) fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        Mode::Upgradable => "upgradable",
        Mode::Permit(_) => "permit",
    }
}

pub(crate) fn mode_limit(mode: Mode) -> Option<u32> {
    match mode {
        Mode::Permit(limit) => Some(limit.get()),
        Mode::Exclusive | Mode::Shared | Mode::Upgradable => None,
    }
}

fn holder<'py>(py: Python<'py>, holder: &Holder) -> PyResult<Bound<'py, PyAny>> {
    let Holder { owner, mode, fencing_token, held_for } = holder;
    make(
        py,
        "Holder",
        (
            &*owner.owner,
            mode_text(*mode),
            mode_limit(*mode),
            *fencing_token,
            held_for.as_ref().map(Duration::as_secs_f64),
            metadata(py, &owner.metadata)?,
        ),
    )
}

fn waiter<'py>(py: Python<'py>, waiter: &Waiter) -> PyResult<Bound<'py, PyAny>> {
    let Waiter { owner, mode, waited_for } = waiter;
    make(
        py,
        "Waiter",
        (
            &*owner.owner,
            mode_text(*mode),
            mode_limit(*mode),
            waited_for.as_ref().map(Duration::as_secs_f64),
            metadata(py, &owner.metadata)?,
        ),
    )
}

fn metadata<'py>(py: Python<'py>, metadata: &BTreeMap<String, String>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in metadata {
        dict.set_item(key, value)?;
    }
    Ok(dict)
}

fn make<'py>(
    py: Python<'py>,
    class: &str,
    fields: impl pyo3::call::PyCallArgs<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("windlass._seen").map(|m| m.into_any().unbind()))?;
    module.bind(py).call_method1(class, fields)
}
