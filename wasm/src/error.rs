//! From the core's error to JavaScript's classes, which mirror its kinds one to one.

use js_sys::Object;
use wasm_bindgen::prelude::*;
use windlass::{Error, ErrorKind};

use crate::seen;

#[wasm_bindgen(raw_module = "./errors.js")]
extern "C" {
    #[wasm_bindgen(js_name = errorOf)]
    fn error_of(class: &str, message: &str, details: &Object) -> JsValue;
}

/// The error of JavaScript for an error of the core: the one place where kinds become classes.
pub(crate) fn to_js(error: &Error) -> JsValue {
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
        ErrorKind::Internal => "InternalError",
        // A kind that is newer than this package.
        _ => "WindlassError",
    };
    let details = seen::object(&[
        ("lock", error.lock().map(|name| name.as_str().into())),
        ("backend", error.backend().map(Into::into)),
        ("waiting", error.waiting().map(seen::waiting)),
        ("ticket", error.ticket().map(|ticket| ticket.reveal().into())),
        ("retryAfter", error.retry_after().map(seen::millis)),
        ("reason", error.lost_reason().map(|reason| reason.to_string().into())),
    ]);
    error_of(class, &format!("{error:#}"), &details)
}
