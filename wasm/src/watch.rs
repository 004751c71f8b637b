//! Watching locks.

use std::rc::Rc;

use futures_util::{
    Stream, StreamExt,
    lock::Mutex,
    stream::{self, AbortHandle, BoxStream},
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;
use windlass::{Result, Status};

use crate::{locker::promise, seen};

/// Locks as they change.
#[wasm_bindgen]
pub struct Watch {
    statuses: Rc<Mutex<BoxStream<'static, Result<Status>>>>,
    abort: AbortHandle,
}

impl Watch {
    pub(crate) fn new(statuses: impl Stream<Item = Result<Status>> + Send + 'static) -> Self {
        let (statuses, abort) = stream::abortable(statuses);
        Self { statuses: Rc::new(Mutex::new(statuses.boxed())), abort }
    }
}

#[wasm_bindgen]
impl Watch {
    /// The next lock that changed; undefined at the end.
    pub fn next(&self) -> Promise {
        let statuses = self.statuses.clone();
        promise(async move {
            let status = statuses.lock().await.next().await.transpose()?;
            Ok(status.as_ref().map_or(JsValue::UNDEFINED, seen::status))
        })
    }

    /// Ends it: whoever waits for the next one is told, and the request is given up.
    pub fn end(&self) {
        self.abort.abort();
        let statuses = self.statuses.clone();
        spawn_local(async move { *statuses.lock().await = stream::empty().boxed() });
    }
}
