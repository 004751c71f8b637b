//! Functions of the program, as the core wants to have them.

use futures_channel::oneshot;
use js_sys::{Error as JsError, Function, Promise};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use windlass::{Error, ErrorKind, transport::TokenSource};

#[cfg(target_feature = "atomics")]
compile_error!(
    "with threads, JavaScript's values would have to stay on theirs: `OneThread` cannot promise it"
);

/// A function of JavaScript where the core asks for `Send` and `Sync`.
pub(crate) struct OneThread(Function);

// SAFETY: this target has one thread (the compiler is asked for that above), so nothing is ever sent or shared.
unsafe impl Send for OneThread {}
// SAFETY: as above.
unsafe impl Sync for OneThread {}

impl OneThread {
    pub(crate) fn new(function: Function) -> Self {
        Self(function)
    }

    /// Calls it; the facade's functions do not throw.
    pub(crate) fn call(&self, argument: &JsValue) -> Option<JsValue> {
        self.0.call1(&JsValue::UNDEFINED, argument).ok()
    }
}

/// The program's function that gives tokens: the facade has seen to it that it gives a promise of a string.
pub(crate) fn token_source(function: Function) -> TokenSource {
    let function = OneThread::new(function);
    TokenSource::new(move || {
        let promise = function.call(&JsValue::UNDEFINED);
        let (tell, token) = oneshot::channel();
        spawn_local(async move {
            let settled = match promise {
                Some(promise) => JsFuture::from(Promise::resolve(&promise)).await,
                None => Ok(JsValue::UNDEFINED),
            };
            // Whoever asked may be gone.
            let _ = tell.send(
                settled.map_err(|thrown| refused(&thrown)).map(|token| token.as_string().unwrap_or_default()),
            );
        });
        async move { token.await.unwrap_or_else(|_| Ok(String::new())) }
    })
}

/// What the program's function failed with. It may come right the next time.
fn refused(thrown: &JsValue) -> Error {
    let text = thrown.dyn_ref::<JsError>().map(|error| String::from(error.message()));
    let text = text.or_else(|| thrown.as_string()).unwrap_or_default();
    Error::new(ErrorKind::Denied, format!("no token: getToken failed: {text}"))
}
