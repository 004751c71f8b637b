//! Requests that are held open until a claim is granted.
//!
//! A claim that waits is spoken for by its request. When the request ends without a grant, because its time is over or its
//! connection broke, the claim keeps its place for [`GRACE`] (rule R16), or for longer if it was asked for so: whoever asks
//! again by its id in time goes on where it was, on whatever connection; otherwise it leaves ([`Space::leave`]), and a
//! grant that came meanwhile with it, unless its TTL has ended that before.
//!
//! The time for which a request may be held open begins when its claim stands in line: locks in memory say so at once, a
//! store has to be asked first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::{Notify, oneshot};
use windlass::{Backend, ClaimId, Error, ErrorKind, Result, Waiting, ask::Claim, protocol::Terms};

use crate::{limits::TooMany, space::Space, spaces::Spaces};

/// How long a claim keeps its place that nobody speaks for.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// How long a store may take to answer what needs no waiting: a bit less than clients wait for that.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// Whom a claim waits for, as last heard.
#[derive(Clone, Default)]
pub(crate) struct Line(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// `None`: it does not stand in line yet.
    heard: Mutex<Option<Waiting>>,
    entered: Notify,
}

impl Line {
    /// What hears it.
    pub(crate) fn hear(self) -> impl Fn(Waiting) + Send + Sync {
        move |waiting| {
            *self.heard() = Some(waiting);
            self.0.entered.notify_one();
        }
    }

    pub(crate) fn last(&self) -> Waiting {
        self.heard().clone().unwrap_or_default()
    }

    fn is_entered(&self) -> bool {
        self.heard().is_some()
    }

    fn heard(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest that a request is held open, and the default.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long to wait for a claim.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// The request may be held open for so long.
    pub(crate) wait: Duration,
    /// Once nobody speaks for it, the claim keeps its place for so long.
    pub(crate) keep: Duration,
}

impl Patience {
    pub(crate) fn of(terms: &Terms) -> Self {
        let keep = Duration::from_millis(terms.keep_ms.unwrap_or(0)).max(GRACE);
        Self { wait: held_open_for(terms.wait_ms), keep }
    }
}

/// For how long a request may be held open.
pub(crate) fn held_open_for(wait_ms: Option<u64>) -> Duration {
    wait_ms.map_or(LONGEST_WAIT, Duration::from_millis).min(LONGEST_WAIT)
}

/// The claims that wait: who speaks for them.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<HashMap<ClaimId, Spoken>>);

enum Spoken {
    /// So many requests are held open for it: one that broke off may be seen to have done so long after the next one came.
    By(u32),
    /// Nobody. It leaves with these.
    Leaves(Arc<Together>),
}

/// Claims that leave together. Its end is heard by the task that waits until they are gone: none of them is left.
type Together = oneshot::Sender<()>;

impl Waiters {
    /// Somebody speaks for these again, has released or renewed them: they do not leave.
    pub(crate) fn stay<'a>(&self, claims: impl IntoIterator<Item = &'a Claim>) {
        let mut waiters = self.lock();
        if !waiters.is_empty() {
            for claim in claims {
                if let Some(Spoken::Leaves(_)) = waiters.get(&claim.id) {
                    waiters.remove(&claim.id);
                }
            }
        }
    }

    fn enter(&self, claims: &[Claim]) {
        let mut waiters = self.lock();
        for claim in claims {
            let by = match waiters.get(&claim.id) {
                Some(Spoken::By(others)) => others + 1,
                _ => 1,
            };
            waiters.insert(claim.id, Spoken::By(by));
        }
    }

    /// These have what they waited for, or are refused.
    fn end(&self, claims: &[Claim]) {
        let mut waiters = self.lock();
        for claim in claims {
            match waiters.get_mut(&claim.id) {
                Some(Spoken::By(1)) => drop(waiters.remove(&claim.id)),
                Some(Spoken::By(others)) => *others -= 1,
                _ => {}
            }
        }
        give_back_room(&mut waiters);
    }

    /// One request less speaks for these.
    fn leave(&self, claims: &[Claim]) -> (Weak<Together>, oneshot::Receiver<()>) {
        let (together, none_is_left) = oneshot::channel();
        let together = Arc::new(together);
        let mut waiters = self.lock();
        for claim in claims {
            match waiters.get_mut(&claim.id) {
                Some(Spoken::By(others)) if *others > 1 => *others -= 1,
                Some(last) => *last = Spoken::Leaves(together.clone()),
                None => {}
            }
        }
        (Arc::downgrade(&together), none_is_left)
    }

    /// Those of them that nobody has spoken for since.
    fn gone(&self, mut gone: Vec<Claim>, together: &Weak<Together>) -> Vec<Claim> {
        let mut waiters = self.lock();
        gone.retain(|claim| match waiters.get(&claim.id) {
            Some(Spoken::Leaves(with)) => Arc::as_ptr(with) == together.as_ptr(),
            _ => false,
        });
        for claim in &gone {
            waiters.remove(&claim.id);
        }
        give_back_room(&mut waiters);
        gone
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClaimId, Spoken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for a crowd that has gone.
fn give_back_room(waiters: &mut HashMap<ClaimId, Spoken>) {
    if waiters.capacity() > 1024 && waiters.len() < waiters.capacity() / 8 {
        waiters.shrink_to_fit();
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

/// What is asked of the locks.
pub(crate) struct Question<T> {
    pub(crate) view: Arc<dyn Backend>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) work: BoxFuture<'static, Result<T>>,
    /// Where the work tells for whom it waits.
    pub(crate) line: Line,
}

/// Waits for the answer, once the claims stand in line with this patience, and only if `admit` has no objection.
pub(crate) async fn wait<T: Send + 'static>(
    spaces: &Arc<Spaces>,
    space: &Arc<Space>,
    question: Question<T>,
    patience: Patience,
    admit: impl FnOnce() -> Result<(), TooMany>,
) -> Waited<T> {
    let Question { view, claims, work, line } = question;
    space.waiters.stay(&claims);
    let keep = patience.keep;
    let mut parked = Parked { space: space.clone(), view, claims, keep, work: Some(work), entered: false };
    // What can be had at once needs no timer.
    if let Some(outcome) = parked.poll_once() {
        return Waited::Over(outcome);
    }
    parked.enter();
    if !line.is_entered() {
        tokio::select! {
            biased;
            outcome = parked.over() => return Waited::Over(outcome),
            () = line.0.entered.notified() => {}
            () = tokio::time::sleep(ANSWERS_WITHIN) => return Waited::Over(Err(no_answer())),
            () = spaces.stopping() => return Waited::NotYet,
        }
    }
    if let Err(too_many) = admit() {
        return parked.withdraw(too_many).await;
    }
    tokio::select! {
        biased;
        outcome = parked.over() => Waited::Over(outcome),
        () = tokio::time::sleep(patience.wait) => Waited::NotYet,
        () = spaces.stopping() => Waited::NotYet,
    }
}

fn no_answer() -> Error {
    Error::new(ErrorKind::Unavailable, "the store of the locks does not answer")
}

/// A claim that is asked for; dropped before the answer, it leaves after its time.
struct Parked<T: Send + 'static> {
    space: Arc<Space>,
    view: Arc<dyn Backend>,
    claims: Vec<Claim>,
    keep: Duration,
    /// `None` once it is over.
    work: Option<BoxFuture<'static, Result<T>>>,
    entered: bool,
}

impl<T: Send + 'static> Parked<T> {
    fn poll_once(&mut self) -> Option<Result<T>> {
        let outcome = self.work.as_mut()?.now_or_never()?;
        self.work = None;
        Some(outcome)
    }

    fn enter(&mut self) {
        self.space.waiters.enter(&self.claims);
        self.entered = true;
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
        if !self.entered {
            return;
        }
        let Some(work) = self.work.take() else { return self.space.waiters.end(&self.claims) };
        let (space, view, claims) = (self.space.clone(), self.view.clone(), std::mem::take(&mut self.claims));
        if space.were_released(&claims) {
            space.waiters.end(&claims);
            // By the view that may still be putting them into the store: the release may have come to another.
            return spawn(async move {
                drop(work);
                give_back(view.as_ref(), &claims).await;
            });
        }
        let (together, none_is_left) = space.waiters.leave(&claims);
        let keep = self.keep;
        let leave = async move {
            // The place in the queue is the claim's and not this future's.
            drop(work);
            // Those who come back again and again leave no crowd of sleepers behind.
            if tokio::time::timeout(keep, none_is_left).await.is_ok() {
                return;
            }
            let gone = space.waiters.gone(claims, &together);
            if !gone.is_empty() {
                space.leave(&view, &gone).await;
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
