//! A held lock as the facade has it.

use std::{cell::Cell, pin::pin, rc::Rc};

use futures_channel::oneshot;
use futures_util::future::{self, Either};
use js_sys::{Function, Promise};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;
use windlass::Guard;

use crate::{callbacks::Callback, error::to_js, locker::promise, options::duration, seen};

/// A held lock. Its drop releases the lock, but nothing counts on that: when JavaScript drops something, nobody knows.
#[wasm_bindgen]
pub struct Held {
    guard: Rc<Guard>,
    /// Dropped when the lock is given back: nobody listens for its loss any more.
    listening: Cell<Option<oneshot::Sender<()>>>,
}

impl Held {
    pub(crate) fn new(guard: Guard) -> Self {
        Self { guard: Rc::new(guard), listening: Cell::default() }
    }
}

#[wasm_bindgen]
impl Held {
    /// Which lock.
    #[wasm_bindgen(getter)]
    pub fn name(&self) -> String {
        self.guard.name().as_str().to_owned()
    }

    /// How it is shared.
    #[wasm_bindgen(getter)]
    pub fn mode(&self) -> String {
        seen::mode_text(self.guard.mode()).to_owned()
    }

    /// The number of the grant.
    #[wasm_bindgen(getter, js_name = fencingToken)]
    pub fn fencing_token(&self) -> u64 {
        self.guard.fencing_token()
    }

    /// For how many milliseconds it has been held.
    #[wasm_bindgen(getter, js_name = heldFor)]
    pub fn held_for(&self) -> f64 {
        self.guard.held_for().as_secs_f64() * 1000.0
    }

    /// Whether it is certainly held.
    #[wasm_bindgen(js_name = isHeld)]
    pub fn is_held(&self) -> bool {
        self.guard.is_held()
    }

    /// Throws unless it is certainly held.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self) -> Result<(), JsValue> {
        self.guard.check().map_err(|error| to_js(&error))
    }

    /// Tells once, with the error, when the lock is lost.
    #[wasm_bindgen(js_name = onLost)]
    pub fn on_lost(&self, tell: Function) {
        let (listening, given_back) = oneshot::channel::<()>();
        self.listening.set(Some(listening));
        let (lost, guard) = (self.guard.lost(), Rc::downgrade(&self.guard));
        spawn_local(async move {
            let Either::Left(_) = future::select(pin!(lost), given_back).await else { return };
            if let Some(Err(error)) = guard.upgrade().map(|guard| guard.check()) {
                Callback::new(tell).call(&to_js(&error));
            }
        });
    }

    /// Gives it back, and waits until that is done.
    pub fn release(&self) -> Promise {
        self.listening.take();
        let guard = self.guard.clone();
        promise(async move { guard.release_shared().await.map(|()| JsValue::UNDEFINED) })
    }

    /// Ends this hold and gives a ticket.
    ///
    /// # Errors
    /// Where it is not held.
    pub fn detach(&self) -> Result<String, JsValue> {
        let ticket = self.guard.detach_shared().map_err(|error| to_js(&error))?;
        self.listening.take();
        Ok(ticket.reveal())
    }

    /// Becomes shared.
    pub fn downgrade(&self) -> Promise {
        let guard = self.guard.clone();
        promise(async move { guard.downgrade().await.map(|()| JsValue::UNDEFINED) })
    }

    /// Becomes exclusive.
    pub fn upgrade(&self, timeout: Option<f64>) -> Promise {
        let guard = self.guard.clone();
        promise(async move { guard.upgrade(timeout.map(duration)).await.map(|()| JsValue::UNDEFINED) })
    }
}
