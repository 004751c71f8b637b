//! Functions of the program, as the core wants to have them.

use js_sys::{Error as JsError, Function, Promise};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use windlass::{Error, ErrorKind, rt::OneThread, transport::TokenSource};

/// A function of the program, called from the core.
pub(crate) struct Callback(OneThread<Function>);

impl Callback {
    pub(crate) fn new(function: Function) -> Self {
        Self(OneThread(function))
    }

    /// Calls it; the facade's functions do not throw.
    pub(crate) fn call(&self, argument: &JsValue) -> Option<JsValue> {
        self.0.0.call1(&JsValue::UNDEFINED, argument).ok()
    }
}

/// The program's function that gives tokens: the facade has seen to it that it gives a promise of a string.
pub(crate) fn token_source(function: Function) -> TokenSource {
    let function = Callback::new(function);
    TokenSource::new(move || {
        let promise = function.call(&JsValue::UNDEFINED).unwrap_or_default();
        OneThread(async move {
            let settled = JsFuture::from(Promise::resolve(&promise)).await;
            settled.map_err(|thrown| refused(&thrown)).map(|token| token.as_string().unwrap_or_default())
        })
    })
}

/// What the program's function failed with. It may come right the next time.
fn refused(thrown: &JsValue) -> Error {
    let text = thrown.dyn_ref::<JsError>().map(|error| String::from(error.message()));
    let text = text.or_else(|| thrown.as_string()).unwrap_or_default();
    Error::new(ErrorKind::Denied, format!("no token: getToken failed: {text}"))
}
