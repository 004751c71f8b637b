//! A locker, and what is asked of it.

use std::{cell::Cell, pin::pin};

use futures_channel::oneshot;
use futures_util::{
    FutureExt,
    future::{self, Either, LocalBoxFuture},
};
use js_sys::{Array, Promise};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use windlass::{Guard, Result};

use crate::{
    error::to_js,
    held::Held,
    options::{Asked, Connecting},
    seen,
    watch::Watch,
};

/// A connection to a server.
#[wasm_bindgen]
pub struct Locker(windlass::Locker);

/// Makes a locker; nothing is sent yet.
///
/// # Errors
/// What the core says of the URL and the options.
#[wasm_bindgen]
pub async fn connect(url: String, how: Connecting) -> Result<Locker, JsValue> {
    how.options().connect(&url).await.map(Locker).map_err(|error| to_js(&error))
}

/// An acquire under way.
#[wasm_bindgen]
pub struct Asking {
    answer: Promise,
    /// Dropped when the acquire is given up.
    wanted: Cell<Option<oneshot::Sender<()>>>,
}

#[wasm_bindgen]
impl Asking {
    /// An array of `Held`; undefined when it could not be had at once, or was given up.
    #[wasm_bindgen(getter)]
    pub fn answer(&self) -> Promise {
        self.answer.clone()
    }

    /// Gives up: leaves neither a place in the queue nor a grant.
    #[wasm_bindgen(js_name = giveUp)]
    pub fn give_up(&self) {
        self.wanted.take();
    }
}

#[wasm_bindgen]
impl Locker {
    /// Asks for a lock, or for several, all or none.
    pub fn acquire(&self, names: Vec<String>, how: Asked) -> Asking {
        let (wanted, given_up) = oneshot::channel::<()>();
        let locker = self.0.clone();
        let answer = promise(async move {
            let acquire = pin!(acquire(&locker, &names, &how));
            match future::select(acquire, given_up).await {
                Either::Left((Ok(Some(guards)), _)) => {
                    let all: Array =
                        guards.into_iter().map(|guard| JsValue::from(Held::new(guard))).collect();
                    Ok(all.into())
                }
                Either::Left((Ok(None), _)) | Either::Right(_) => Ok(JsValue::UNDEFINED),
                Either::Left((Err(error), _)) => Err(error),
            }
        });
        Asking { answer, wanted: Cell::new(Some(wanted)) }
    }

    /// Takes up a held lock from a ticket.
    pub fn attach(&self, ticket: String) -> Promise {
        let locker = self.0.clone();
        promise(async move { Ok(Held::new(locker.attach(&ticket.parse()?).await?).into()) })
    }

    /// Gives back what a ticket is for.
    pub fn release(&self, ticket: String) -> Promise {
        let locker = self.0.clone();
        promise(async move { locker.release(&ticket.parse()?).await.map(|()| JsValue::UNDEFINED) })
    }

    /// Who holds and who waits.
    pub fn list(&self, prefix: String) -> Promise {
        let locker = self.0.clone();
        promise(async move {
            let all: Array = locker.list(&prefix).await?.iter().map(seen::status).collect();
            Ok(all.into())
        })
    }

    /// The same, and then what changes.
    pub fn watch(&self, prefix: String) -> Promise {
        let locker = self.0.clone();
        promise(async move { Ok(Watch::new(locker.watch(&prefix).await?).into()) })
    }

    /// Frees a lock as an operator.
    #[wasm_bindgen(js_name = forceRelease)]
    pub fn force_release(&self, name: String, fencing_token: Option<u64>) -> Promise {
        let locker = self.0.clone();
        promise(async move {
            let taken: Array =
                locker.force_release(name, fencing_token).await?.iter().map(seen::holder).collect();
            Ok(taken.into())
        })
    }

    /// Where the locks live.
    #[wasm_bindgen(getter)]
    pub fn url(&self) -> Option<String> {
        self.0.url().ok()
    }

    /// Looks at the clock at once.
    pub fn look(&self) {
        self.0.look();
    }

    /// Releases everything, as a page that goes away must.
    pub fn leave(&self) {
        self.0.leave();
    }

    /// Releases everything and lets nobody acquire any more.
    pub fn close(&self) -> Promise {
        let locker = self.0.clone();
        promise(async move { locker.close().await.map(|()| JsValue::UNDEFINED) })
    }
}

async fn acquire(locker: &windlass::Locker, names: &[String], how: &Asked) -> Result<Option<Vec<Guard>>> {
    // One is just the shortest list.
    let ticket = how.ticket()?;
    let locks = locker.lock_all(names).with(|lock| how.apply(lock).ticket(ticket));
    if how.if_available() { locks.try_acquire().await } else { locks.await.map(Some) }
}

/// A promise of what the core gives.
pub(crate) fn promise(work: impl Future<Output = Result<JsValue>> + 'static) -> Promise {
    // Boxed, so that what makes promises is compiled once and not for each kind of work.
    settle(work.boxed_local())
}

fn settle(work: LocalBoxFuture<'static, Result<JsValue>>) -> Promise {
    future_to_promise(async move { work.await.map_err(|error| to_js(&error)) })
}
