//! The runtime of a JavaScript host: a page, a worker, Node, an edge runtime. One thread; timers by `setTimeout`.

use std::time::Duration;

use futures_channel::oneshot;
use futures_util::{FutureExt, future::BoxFuture};
use js_sys::{Date, Function, Promise, Reflect, global};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};

use super::Runtime;
use crate::{
    error::Result,
    time::{Millis, Moment},
};

/// The longest delay `setTimeout` takes; longer ones are counted out in pieces.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// The clocks and timers of a JavaScript host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Web;

impl Runtime for Web {
    fn start(&self) -> Result<()> {
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment { boot: performance_now(), wall: Duration::from_millis(Date::now() as u64) }
    }

    fn monotonic(&self) -> Millis {
        Millis(performance_now().as_millis() as u64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (done, sleeping) = oneshot::channel::<()>();
        spawn_local(async move {
            let mut left = duration;
            while !left.is_zero() && !done.is_canceled() {
                let piece = left.min(LONGEST_TIMEOUT);
                timeout(piece).await;
                left = left.saturating_sub(piece);
            }
            // Whoever slept may be gone.
            let _ = done.send(());
        });
        sleeping.map(|_| ()).boxed()
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
        // Every host that has WebAssembly has crypto.getRandomValues.
        #[allow(clippy::expect_used)]
        getrandom::fill(&mut bytes).expect("this JavaScript host has no crypto.getRandomValues");
        u128::from_ne_bytes(bytes)
    }

    fn process(&self) -> u32 {
        0
    }
}

/// `performance.now()`, or the wall clock where a host has no `performance`.
fn performance_now() -> Duration {
    let millis = member(&global(), "performance")
        .and_then(|performance| {
            member(&performance, "now")?.dyn_into::<Function>().ok()?.call0(&performance).ok()?.as_f64()
        })
        .unwrap_or_else(Date::now);
    Duration::from_secs_f64(millis.max(0.0) / 1000.0)
}

async fn timeout(delay: Duration) {
    let promise = Promise::new(&mut |resolve, _| {
        let set_timeout = member(&global(), "setTimeout").and_then(|f| f.dyn_into::<Function>().ok());
        let millis = JsValue::from_f64(delay.as_millis() as f64);
        let started = set_timeout.map(|f| f.call2(&JsValue::UNDEFINED, &resolve, &millis));
        if !matches!(started, Some(Ok(_))) {
            // No timers here: better an early wake-up, which the sleeper survives, than none.
            let _ = resolve.call0(&JsValue::UNDEFINED);
        }
    });
    let _ = JsFuture::from(promise).await;
}

fn member(object: &JsValue, name: &str) -> Option<JsValue> {
    Reflect::get(object, &name.into()).ok().filter(|value| !value.is_undefined() && !value.is_null())
}
