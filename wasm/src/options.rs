//! What the facade says, checked there already.

use std::time::Duration;

use js_sys::Function;
use wasm_bindgen::prelude::*;
use windlass::{ConnectOptions, Lock, Result, Ticket};

use crate::{
    callbacks::{Callback, token_source},
    seen,
};

#[wasm_bindgen]
extern "C" {
    /// What a locker is made with. Times are in milliseconds, metadata is keys and values in turn.
    pub type Connecting;
    #[wasm_bindgen(method, getter)]
    fn ttl(this: &Connecting) -> Option<f64>;
    #[wasm_bindgen(method, getter)]
    fn owner(this: &Connecting) -> String;
    #[wasm_bindgen(method, getter)]
    fn metadata(this: &Connecting) -> Vec<String>;
    #[wasm_bindgen(method, getter)]
    fn token(this: &Connecting) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = getToken)]
    fn get_token(this: &Connecting) -> Option<Function>;

    /// What a lock is asked for with.
    pub type Asked;
    #[wasm_bindgen(method, getter)]
    fn mode(this: &Asked) -> String;
    #[wasm_bindgen(method, getter)]
    fn limit(this: &Asked) -> u32;
    #[wasm_bindgen(method, getter)]
    fn steal(this: &Asked) -> bool;
    #[wasm_bindgen(method, getter, js_name = ifAvailable)]
    pub(crate) fn if_available(this: &Asked) -> bool;
    #[wasm_bindgen(method, getter)]
    fn timeout(this: &Asked) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = keepPlace)]
    fn keep_place(this: &Asked) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = ticket)]
    fn asked_ticket(this: &Asked) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = ttl)]
    fn asked_ttl(this: &Asked) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = owner)]
    fn asked_owner(this: &Asked) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = metadata)]
    fn asked_metadata(this: &Asked) -> Vec<String>;
    #[wasm_bindgen(method, getter, js_name = maxHold)]
    fn max_hold(this: &Asked) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = holdAtLeast)]
    fn hold_at_least(this: &Asked) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = randomDelay)]
    fn random_delay(this: &Asked) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = onWait)]
    fn on_wait(this: &Asked) -> Function;
    #[wasm_bindgen(method, getter, js_name = onContended)]
    fn on_contended(this: &Asked) -> Option<Function>;
    #[wasm_bindgen(method, getter, js_name = onHeldTooLong)]
    fn on_held_too_long(this: &Asked) -> Option<Function>;
}

impl Connecting {
    pub(crate) fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new().owner(self.owner());
        if let Some(ttl) = self.ttl() {
            options = options.ttl(duration(ttl));
        }
        if let Some(token) = self.token() {
            options = options.token(token);
        }
        if let Some(source) = self.get_token() {
            options = options.token_source(token_source(source));
        }
        pairs(&self.metadata()).fold(options, |options, (key, value)| options.metadata(key, value))
    }
}

impl Asked {
    pub(crate) fn ticket(&self) -> Result<Option<Ticket>> {
        self.asked_ticket().map(|ticket| ticket.parse()).transpose()
    }

    pub(crate) fn apply(&self, mut lock: Lock) -> Lock {
        lock = match self.mode().as_str() {
            "shared" => lock.shared(),
            "upgradable" => lock.upgradable(),
            "permit" => lock.permit(self.limit()),
            _ => lock,
        };
        if self.steal() {
            lock = lock.steal();
        }
        if let Some(ttl) = self.asked_ttl() {
            lock = lock.ttl(duration(ttl));
        }
        if let Some(owner) = self.asked_owner() {
            lock = lock.owner(owner);
        }
        lock = pairs(&self.asked_metadata()).fold(lock, |lock, (key, value)| lock.metadata(key, value));
        if let Some(shortest) = self.hold_at_least() {
            lock = lock.hold_at_least(duration(shortest));
        }
        if let Some(longest) = self.random_delay() {
            lock = lock.random_delay(duration(longest));
        }
        if let Some(tell) = self.on_contended().map(Callback::new) {
            lock = lock.on_contended(move |_| drop(tell.call(&JsValue::UNDEFINED)));
        }
        if let Some(tell) = self.on_held_too_long().map(Callback::new) {
            lock = lock.on_held_too_long(move |_| drop(tell.call(&JsValue::UNDEFINED)));
        }
        let tell = Callback::new(self.on_wait());
        lock.timeout(self.timeout().map(duration))
            .keep_place(self.keep_place().map(duration))
            .max_hold(self.max_hold().map(duration))
            .on_wait(move |waiting| drop(tell.call(&seen::waiting(waiting))))
    }
}

/// Of milliseconds; what is none is longer than any that is taken.
pub(crate) fn duration(millis: f64) -> Duration {
    Duration::try_from_secs_f64(millis / 1000.0).unwrap_or(Duration::MAX)
}

fn pairs(flat: &[String]) -> impl Iterator<Item = (&str, &str)> {
    flat.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str()))
}
