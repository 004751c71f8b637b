//! Stores that keep locks, which others start and count at; and Windlass's locks in them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use serde_json::{Value, json};
use windlass::Locker;

use crate::{
    Result,
    clock::now,
    memory::block_on,
    server::{each, nanos, rate_of_each},
};

/// How long one may take to start.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One server of a store with data of its own; killed and removed when dropped.
pub(crate) trait Server {
    /// Where it is, for those who have words of their own for it.
    fn address(&self) -> String;

    /// Where its locks are for Windlass, and for whoever else takes a URL.
    fn url(&self) -> String;

    /// What it has been asked and what it has done since it began, each in the store's own measure.
    fn work(&self) -> Result<[f64; 2]>;
}

/// So many claims at once, each of a name of its own, all through one locker.
pub(crate) fn pairs(url: &str, claims: usize, time: Duration) -> Result<Value> {
    let locker = connect(url)?;
    rate_of_each(claims, time, |number| {
        let lock = locker.lock(format!("bench-{number}"));
        async move || Ok(lock.clone().await?.release().await?)
    })
}

/// All want one lock, each through a locker of its own, as of a program of its own: from just before a release until the
/// next one, who had been waiting, knows that it is granted; after a quarter of the time to warm up.
pub(crate) fn turns(url: &str, waiters: usize, time: Duration, hold: Duration) -> Result<Value> {
    let (released, samples) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    let warm = now() + nanos(time / 4);
    let lockers = (0..waiters).map(|_| connect(url)).collect::<Result<Vec<_>>>()?;
    each(waiters, time, |number| {
        let (released, samples) = (released.clone(), samples.clone());
        let lock = lockers[number].lock("turns");
        async move || {
            let asked = now();
            let held = lock.clone().await?;
            if asked.max(warm) < released.get() {
                samples.borrow_mut().push(now() - released.get());
            }
            tokio::time::sleep(hold).await;
            released.set(now());
            Ok(held.release().await?)
        }
    })?;
    Ok(json!({ "samples_ns": samples.take() }))
}

fn connect(url: &str) -> Result<Locker> {
    block_on(async { Ok(windlass::connect(url).await?) })
}
