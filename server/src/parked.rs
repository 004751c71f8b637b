//! Requests that are held open until a claim is granted.
//!
//! A claim that waits is spoken for by its request. When the request ends without a grant, because its time is over or its
//! connection broke, the claim keeps its place for [`GRACE`] (rule R16): whoever asks again by its id in time goes on where
//! it was, on whatever connection; otherwise the claim is released, and a grant that came meanwhile with it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use windlass::{Backend, ClaimId, Result, ask::Claim};

use crate::{
    limits::TooMany,
    spaces::{Space, Spaces},
};

/// How long a claim keeps its place that nobody speaks for.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// The claims that nobody speaks for just now, each with the number of its leaving.
#[derive(Default)]
pub(crate) struct Leaving {
    claims: Mutex<HashMap<ClaimId, u64>>,
    next: AtomicU64,
}

impl Leaving {
    /// Somebody speaks for these again.
    fn stays(&self, claims: &[Claim]) {
        let mut leaving = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if !leaving.is_empty() {
            for claim in claims {
                leaving.remove(&claim.id);
            }
        }
    }

    fn leaves(&self, claims: &[Claim]) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut leaving = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.extend(claims.iter().map(|claim| (claim.id, number)));
        number
    }

    /// Those that nobody has spoken for since.
    fn gone(&self, mut gone: Vec<Claim>, number: u64) -> Vec<Claim> {
        let mut leaving = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|claim| leaving.get(&claim.id) == Some(&number));
        for claim in &gone {
            leaving.remove(&claim.id);
        }
        // Room for a crowd that has gone.
        if leaving.capacity() > 1024 && leaving.len() < leaving.capacity() / 8 {
            leaving.shrink_to_fit();
        }
        gone
    }
}

/// What came of waiting.
pub(crate) enum Waited<T> {
    /// It is over.
    Over(Result<T>),
    /// Not yet.
    NotYet,
    /// There may be no more who wait.
    Refused(TooMany),
}

/// Waits for `work`, which asks for these claims, for at most `wait`, and only if `admit` has no objection.
pub(crate) async fn wait<T: Send + 'static>(
    spaces: &Arc<Spaces>,
    space: &Arc<Space>,
    view: Arc<dyn Backend>,
    claims: Vec<Claim>,
    wait: Duration,
    work: BoxFuture<'static, Result<T>>,
    admit: impl FnOnce() -> Result<(), TooMany>,
) -> Waited<T> {
    space.leaving.stays(&claims);
    let mut parked = Parked { space: space.clone(), view, claims, work: Some(work) };
    // What can be had at once needs no timer.
    if let Some(outcome) = parked.poll_once() {
        return Waited::Over(outcome);
    }
    if let Err(too_many) = admit() {
        return parked.withdraw(too_many).await;
    }
    tokio::select! {
        biased;
        outcome = parked.over() => Waited::Over(outcome),
        () = tokio::time::sleep(wait) => Waited::NotYet,
        () = spaces.stopping() => Waited::NotYet,
    }
}

/// A claim that is asked for; dropped before the answer, it leaves after the grace.
struct Parked<T: Send + 'static> {
    space: Arc<Space>,
    view: Arc<dyn Backend>,
    claims: Vec<Claim>,
    /// `None` once it is over.
    work: Option<BoxFuture<'static, Result<T>>>,
}

impl<T: Send + 'static> Parked<T> {
    fn poll_once(&mut self) -> Option<Result<T>> {
        let outcome = self.work.as_mut()?.now_or_never()?;
        self.work = None;
        Some(outcome)
    }

    /// Leaves at once: whoever is refused keeps no place, not even for the grace.
    async fn withdraw(&mut self, too_many: TooMany) -> Waited<T> {
        match self.view.release(&self.claims).await {
            // Now that they are released, no grant of theirs is under way.
            Ok(()) => {
                self.work = None;
                Waited::Refused(too_many)
            }
            Err(error) => Waited::Over(Err(error)),
        }
    }

    async fn over(&mut self) -> Result<T> {
        let Some(work) = &mut self.work else { return std::future::pending().await };
        let outcome = work.await;
        self.work = None;
        outcome
    }
}

impl<T: Send + 'static> Drop for Parked<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let (space, view, claims) = (self.space.clone(), self.view.clone(), std::mem::take(&mut self.claims));
        let number = space.leaving.leaves(&claims);
        let leave = async move {
            // The place in the queue is the claim's and not this future's.
            drop(work);
            tokio::time::sleep(GRACE).await;
            let gone = space.leaving.gone(claims, number);
            if !gone.is_empty() {
                give_back(view.as_ref(), &gone).await;
            }
        };
        spawn(leave);
    }
}

/// Releases claims that nobody will release.
pub(crate) async fn give_back(view: &dyn Backend, claims: &[Claim]) {
    if let Err(error) = view.release(claims).await {
        tracing::warn!(%error, "a waiter that has gone cannot be taken out of the queue");
    }
}

/// Does what is left to do after a request. Without a runtime the server is at its end, and so are its waiters.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}
