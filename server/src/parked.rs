//! Requests that are held open until a claim is granted.
//!
//! A claim that waits is spoken for by its request. When the request ends without a grant, because its time is over or its
//! connection broke, the claim keeps its place for [`GRACE`] (rule R16), or for longer if it was asked for so: whoever asks
//! again by its id in time goes on where it was, on whatever connection; otherwise it leaves ([`Space::leave`]), and a
//! grant that came meanwhile with it, unless its TTL has ended that before.
//!
//! A store is not asked anew by each request for a claim, of which there are many where one request asks for many claims
//! ([`together`](crate::together)): what was asked for it goes on for as long as somebody speaks for it and a little longer, and who
//! asks the same again joins it ([`Running`]).
//!
//! The time for which a request may be held open begins when its claim stands in line: locks in memory say so at once, a
//! store has to be asked first.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use windlass::{
    Backend, ClaimId, Error, ErrorKind, Result, Waiting,
    ask::{Ask, Claim, Grant},
    protocol::Terms,
};

use crate::{limits::TooMany, space::Space, spaces::Spaces};

/// How long a claim keeps its place that nobody speaks for.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// For how long what was asked goes on that nobody speaks for: time enough to ask again. A grant that comes meanwhile is taken up, and
/// if that was the last of them, stays for its TTL where the locks are in a store.
const GOES_ON: Duration = Duration::from_secs(1);
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
            self.0.entered.notify_waiters();
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
pub(crate) struct Waiters(Mutex<HashMap<ClaimId, Waiter>>);

struct Waiter {
    spoken: Spoken,
    /// What was asked for it last.
    running: Weak<Running>,
}

enum Spoken {
    /// So many requests are held open for it: one that broke off may be seen to have done so long after the next one came.
    By(u32),
    /// Nobody. It leaves with these.
    Leaves(Arc<Together>),
}

/// Claims that leave together. Its end is heard by the task that waits until they are gone: none of them is left.
type Together = oneshot::Sender<()>;

impl Waiters {
    /// Somebody has released these, or renewed them: they do not leave.
    pub(crate) fn stay<'a>(&self, claims: impl IntoIterator<Item = &'a Claim>) {
        stay(&mut self.lock(), claims);
    }

    /// Somebody speaks for them again: they do not leave. Gives what goes on for the same question.
    fn come_back(&self, question: &Question) -> Option<Arc<Running>> {
        let mut waiters = self.lock();
        let first = question.claims.first().and_then(|claim| waiters.get(&claim.id));
        let running = first.and_then(|waiter| waiter.running.upgrade());
        stay(&mut waiters, &question.claims);
        drop(waiters);
        running.filter(|running| running.is_for(question))
    }

    fn enter(&self, running: &Arc<Running>) {
        let mut waiters = self.lock();
        for claim in &running.claims {
            let by = match waiters.get(&claim.id) {
                Some(Waiter { spoken: Spoken::By(others), .. }) => others + 1,
                _ => 1,
            };
            let running = Arc::downgrade(running);
            waiters.insert(claim.id, Waiter { spoken: Spoken::By(by), running });
        }
    }

    /// These have what they waited for, or are refused.
    fn end(&self, claims: &[Claim]) {
        let mut waiters = self.lock();
        for claim in claims {
            match waiters.get_mut(&claim.id).map(|waiter| &mut waiter.spoken) {
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
            match waiters.get_mut(&claim.id).map(|waiter| &mut waiter.spoken) {
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
            Some(Waiter { spoken: Spoken::Leaves(with), .. }) => Arc::as_ptr(with) == together.as_ptr(),
            _ => false,
        });
        for claim in &gone {
            waiters.remove(&claim.id);
        }
        give_back_room(&mut waiters);
        gone
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClaimId, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stay<'a>(waiters: &mut HashMap<ClaimId, Waiter>, claims: impl IntoIterator<Item = &'a Claim>) {
    if !waiters.is_empty() {
        for claim in claims {
            if let Some(Waiter { spoken: Spoken::Leaves(_), .. }) = waiters.get(&claim.id) {
                waiters.remove(&claim.id);
            }
        }
    }
}

/// Room for a crowd that has gone.
fn give_back_room(waiters: &mut HashMap<ClaimId, Waiter>) {
    if waiters.capacity() > 1024 && waiters.len() < waiters.capacity() / 8 {
        waiters.shrink_to_fit();
    }
}

/// What came of waiting.
pub(crate) enum Waited {
    /// It is over.
    Over(Result<Taken>),
    /// Not yet: who is in the way, as last heard.
    NotYet(Waiting),
    /// There may be no more who wait.
    Refused(TooMany),
}

/// The grants, in the order of the claims; `None`: somebody else has a lock that is not to be waited for.
pub(crate) type Taken = Option<Vec<Grant>>;

/// What is asked of the locks.
pub(crate) struct Question {
    pub(crate) view: Arc<dyn Backend>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) asks: Arc<[Ask]>,
    pub(crate) work: BoxFuture<'static, Result<Taken>>,
    /// Where the work tells for whom it waits.
    pub(crate) line: Line,
}

/// A question whose answer has to be waited for.
struct Running {
    view: Arc<dyn Backend>,
    claims: Vec<Claim>,
    asks: Arc<[Ask]>,
    line: Line,
    work: Shared<BoxFuture<'static, Result<Taken>>>,
}

impl Running {
    fn new(Question { view, claims, asks, work, line }: Question) -> Arc<Self> {
        Arc::new(Self { view, claims, asks, line, work: work.shared() })
    }

    /// Whether it is the same that is asked here. One that is over says what was so then: that is asked anew.
    fn is_for(&self, question: &Question) -> bool {
        Arc::ptr_eq(&self.view, &question.view)
            && self.claims == question.claims
            && self.asks == question.asks
            && self.work.peek().is_none()
    }
}

/// Waits for the answer, once the claims stand in line with this patience, and only if `admit` has no objection.
pub(crate) async fn wait(
    spaces: &Arc<Spaces>,
    space: &Arc<Space>,
    mut question: Question,
    patience: Patience,
    admit: impl FnOnce() -> Result<(), TooMany>,
) -> Waited {
    let running = match space.waiters.come_back(&question) {
        Some(running) => running,
        None => {
            // What can be had at once needs no timer.
            if let Some(outcome) = (&mut question.work).now_or_never() {
                return Waited::Over(outcome);
            }
            Running::new(question)
        }
    };
    let line = running.line.clone();
    let mut parked = Parked::enter(space, running, patience.keep);
    let entered = line.0.entered.notified();
    if !line.is_entered() {
        tokio::select! {
            biased;
            outcome = parked.over() => return Waited::Over(outcome),
            () = entered => {}
            () = tokio::time::sleep(ANSWERS_WITHIN) => return Waited::Over(Err(no_answer())),
            () = spaces.stopping() => return Waited::NotYet(line.last()),
        }
    }
    if let Err(too_many) = admit() {
        return parked.withdraw(too_many).await;
    }
    tokio::select! {
        biased;
        outcome = parked.over() => Waited::Over(outcome),
        () = tokio::time::sleep(patience.wait) => Waited::NotYet(line.last()),
        () = spaces.stopping() => Waited::NotYet(line.last()),
    }
}

fn no_answer() -> Error {
    Error::new(ErrorKind::Unavailable, "the store of the locks does not answer")
}

/// A request for claims that wait; dropped before the answer, they leave after their time.
struct Parked {
    space: Arc<Space>,
    keep: Duration,
    /// `None` once it is over.
    running: Option<Arc<Running>>,
}

impl Parked {
    fn enter(space: &Arc<Space>, running: Arc<Running>, keep: Duration) -> Self {
        space.waiters.enter(&running);
        Self { space: space.clone(), keep, running: Some(running) }
    }

    /// Leaves at once: whoever is refused keeps no place, not even for the grace.
    async fn withdraw(&mut self, too_many: TooMany) -> Waited {
        let Some(running) = &self.running else { return Waited::Refused(too_many) };
        match running.view.release(&running.claims).await {
            // Now that they are released, no grant of theirs is under way.
            Ok(_) => {
                self.is_over();
                Waited::Refused(too_many)
            }
            Err(error) => Waited::Over(Err(error)),
        }
    }

    async fn over(&mut self) -> Result<Taken> {
        let Some(running) = &self.running else { return std::future::pending().await };
        let outcome = running.work.clone().await;
        // A store that was away for a moment may have the claims in its queue still: they leave unless they are asked for again.
        if outcome.as_ref().err().map(Error::kind) != Some(ErrorKind::Unavailable) {
            self.is_over();
        }
        outcome
    }

    fn is_over(&mut self) {
        if let Some(running) = self.running.take() {
            self.space.waiters.end(&running.claims);
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        let (space, view, claims) = (self.space.clone(), running.view.clone(), running.claims.clone());
        let (together, none_is_left) = space.waiters.leave(&claims);
        // Asked after they have left: a release that is not seen here sees that they leave.
        if space.were_released(&claims) {
            space.waiters.stay(&claims);
            // By the view that may still be putting them into the store: the release may have come to another.
            return spawn(async move {
                drop(running);
                give_back(view.as_ref(), &claims).await;
            });
        }
        let keep = self.keep;
        spawn(async move {
            let mut none_is_left = pin!(timeout(keep, none_is_left));
            // The place in the queue is the claims' and not this work's. What it brings now, whoever asks again finds there.
            let goes_on = async {
                let _ = timeout(GOES_ON, running.work.clone()).await;
                drop(running);
            };
            let left = tokio::select! {
                biased;
                left = &mut none_is_left => left,
                () = goes_on => none_is_left.await,
            };
            // Those who come back again and again leave no crowd of sleepers behind.
            if left.is_ok() {
                if space.were_released(&claims) {
                    // What went on may have put them into the store since.
                    give_back(view.as_ref(), &claims).await;
                }
                return;
            }
            let gone = space.waiters.gone(claims, &together);
            if !gone.is_empty() {
                space.leave(&view, &gone).await;
            }
        });
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

#[cfg(test)]
mod tests;
