//! The runtime of a JavaScript host: a page, a worker, Node, an edge runtime. One thread; timers by `setTimeout`.
//!
//! - **A sleeper that is dropped** takes its timer with it: where a host lives for as long as it has timers, as Node does,
//!   none is left behind.
//! - **Late timers** (a hidden page's run once a minute, a frozen page's not at all) are survived by all sleepers:
//!   whether a lock is held is read off the clock, and renewals hang on the server's answers
//!   ([`Locker::look`](crate::Locker::look) makes up for the rest).
//! - **JavaScript's values are not `Send`**, and the futures here must be: [`OneThread`] says why they may.

use std::time::Duration;

use futures_channel::oneshot;
use futures_util::{FutureExt, future::BoxFuture};
use js_sys::Date;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;

use super::{OneThread, Runtime};
use crate::{
    error::Result,
    time::{Millis, Moment},
};

/// The longest delay `setTimeout` takes; longer ones are counted out in pieces.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

#[wasm_bindgen]
extern "C" {
    /// A number, or an object in Node.
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Closure<dyn FnMut()>, millis: f64) -> JsValue;
    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(timer: &JsValue);
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn performance_now() -> f64;
}

/// The clocks and timers of a JavaScript host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Web;

impl Runtime for Web {
    fn start(&self) -> Result<()> {
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment { boot: since_start(), wall: Duration::from_millis(Date::now() as u64) }
    }

    fn monotonic(&self) -> Millis {
        Millis(since_start().as_millis() as u64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let sleeping = async move {
            let mut left = duration;
            while !left.is_zero() {
                let piece = left.min(LONGEST_TIMEOUT);
                let (_timer, over) = Timer::start(piece);
                // It rings for as long as the timer is there.
                let _ = over.await;
                left = left.saturating_sub(piece);
            }
        };
        OneThread(sleeping).boxed()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        spawn_local(task);
    }

    fn call(&self, code: Box<dyn FnOnce() + Send>) {
        spawn_local(async move { code() });
    }

    #[allow(clippy::disallowed_methods, reason = "this is where randomness comes from")]
    fn random(&self) -> u128 {
        let mut bytes = [0; 16];
        // Every host that has WebAssembly has it.
        if getrandom::fill(&mut bytes).is_err() {
            wasm_bindgen::throw_str("this JavaScript host has no crypto.getRandomValues");
        }
        u128::from_ne_bytes(bytes)
    }

    fn process(&self) -> u32 {
        0
    }
}

fn since_start() -> Duration {
    Duration::from_secs_f64(performance_now().max(0.0) / 1000.0)
}

/// A running `setTimeout`, cleared by its drop.
struct Timer {
    id: JsValue,
    _callback: Closure<dyn FnMut()>,
}

impl Timer {
    fn start(delay: Duration) -> (Self, oneshot::Receiver<()>) {
        let (ring, over) = oneshot::channel();
        let mut ring = Some(ring);
        let callback = Closure::new(move || {
            // Whoever listened may be gone.
            let _ = ring.take().map(|ring| ring.send(()));
        });
        // Rounded up: whoever sleeps until a lease is over must not find it alive.
        let id = set_timeout(&callback, (delay.as_secs_f64() * 1000.0).ceil());
        (Self { id, _callback: callback }, over)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        clear_timeout(&self.id);
    }
}
