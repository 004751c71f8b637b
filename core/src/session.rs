//! What a locker and its guards share in one process: the backend, the claims held through it, and their ends.
//!
//! A child of `fork` never touches the session of its parent, not even its mutexes, which another thread of the parent
//! may have held at the moment of the fork: the [`Locker`](crate::Locker) makes a new session there (rule R21).

use std::{
    collections::{BTreeMap, btree_map::Entry as Slot},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use event_listener::Event;
use futures_util::{
    FutureExt, TryFutureExt,
    future::{self, BoxFuture, Either},
};
use smallvec::{SmallVec, smallvec};

use crate::{
    ask::{Claim, News, Owner},
    backend::Backend,
    error::{Error, ErrorKind, LostReason, Result},
    held::{Again, End, Held},
    keeper,
    lease::BackOff,
    metrics::{Counters, add_time, count},
    name::{ClaimId, Name},
    options::{Callback, Notice},
    rt::Runtime,
    time::Moment,
    transport::was_not_sent,
    within::{Seconds, within},
};

/// How long a release without a lease behind it is tried again.
pub(crate) const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// How long one try of it may take.
const RELEASE_TRY: Duration = Duration::from_secs(5);

/// One, as a rule.
pub(crate) type Few<T> = SmallVec<[T; 1]>;

pub(crate) struct Session {
    pub(crate) rt: Arc<dyn Runtime>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) owner: Arc<Owner>,
    pub(crate) counters: Counters,
    process: u32,
    /// In an order that a run in virtual time repeats.
    held: Mutex<BTreeMap<ClaimId, Arc<Held>>>,
    closed: AtomicBool,
    closing: Event,
    giving_back: Arc<GivingBack>,
    keeper: keeper::Doorbell,
}

impl Session {
    pub(crate) fn new(rt: Arc<dyn Runtime>, backend: Arc<dyn Backend>, owner: Arc<Owner>) -> Arc<Self> {
        Arc::new(Self {
            process: rt.process(),
            rt,
            backend,
            owner,
            counters: Counters::default(),
            held: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: Event::new(),
            giving_back: Arc::default(),
            keeper: keeper::Doorbell::default(),
        })
    }

    /// Whether this is the process that made the session, and not a child of it.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == self.rt.process()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(closed());
        }
        Ok(())
    }

    /// Does the work, unless the locker is closed meanwhile.
    pub(crate) async fn unless_closed<T>(
        &self,
        mut work: impl Future<Output = Result<T>> + Unpin,
    ) -> Result<T> {
        // As a rule it needs no waiting.
        if let Some(done) = future::poll_immediate(&mut work).await {
            return done;
        }
        let closing = self.closing.listen();
        self.check_open()?;
        match future::select(work, closing).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => Err(closed()),
        }
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, BTreeMap<ClaimId, Arc<Held>>> {
        // No code of others runs under this mutex.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is missing for a reader: which lock, where.
    pub(crate) fn explain(&self, error: Error, name: &Name) -> Error {
        self.explain_backend(if error.lock().is_none() { error.with_lock(name) } else { error })
    }

    /// Adds where it was.
    pub(crate) fn explain_backend(&self, error: Error) -> Error {
        if error.backend().is_none() { error.with_backend(self.backend.url()) } else { error }
    }

    /// Takes a granted claim into care: from now on the keeper renews it.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`]; [`ErrorKind::InvalidInput`] where the claim is in care already.
    pub(crate) fn keep(self: &Arc<Self>, held: &Arc<Held>, now: Moment) -> Result<()> {
        let agenda = held.agenda(now);
        let due_in = [agenda.renew_in, agenda.look_in].into_iter().flatten().min();
        {
            // Whoever closes the locker says so before it takes what is held.
            let mut all = self.held();
            self.check_open()?;
            match all.entry(held.claim.id) {
                Slot::Vacant(slot) => slot.insert(held.clone()),
                Slot::Occupied(_) => {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        "this locker has the ticket's claim already: a ticket is for one guard",
                    ));
                }
            };
        }
        count(&self.counters.acquired);
        self.keeper.added(self, due_in, now);
        Ok(())
    }

    /// Ends a hold as lost, unless it has ended already.
    pub(crate) fn lose(self: &Arc<Self>, held: &Arc<Held>, reason: LostReason) {
        if !self.end_as_lost(held, reason) {
            return;
        }
        if matches!(reason, LostReason::Expired | LostReason::Unreachable) {
            // The backend may still know it: nobody needs to wait for what nobody holds.
            self.in_background(self.give_back(smallvec![held.claim.clone()], Duration::ZERO));
        }
    }

    /// Whether it had not ended before.
    fn end_as_lost(&self, held: &Held, reason: LostReason) -> bool {
        if held.finish(End::Lost(reason)).is_err() {
            return false;
        }
        self.forget(held, self.rt.now());
        self.tell_lost(held, reason);
        true
    }

    fn tell_lost(&self, held: &Held, reason: LostReason) {
        self.counters.lost(reason);
        tracing::warn!(lock = %held.claim.name, fencing_token = held.fencing_token(), %reason, "lock lost");
        if let Some(on_lost) = &held.hold.on_lost {
            self.rt.call_at_once(self.call_of(on_lost, held));
        }
    }

    /// Runs a callback about a claim, apart from the program's tasks and ours.
    pub(crate) fn tell(&self, callback: &Callback, held: &Held) {
        self.rt.call(self.call_of(callback, held));
    }

    fn call_of(&self, callback: &Callback, held: &Held) -> Box<dyn FnOnce() + Send> {
        let (callback, notice): (Callback, Notice) = (callback.clone(), held.notice(self.rt.now()));
        Box::new(move || callback(&notice))
    }

    /// Ends the care for a claim. In this order, renewal stops before the release is sent.
    fn forget(&self, held: &Held, now: Moment) {
        add_time(&self.counters.held_micros, now.since(held.since));
        self.held().remove(&held.claim.id);
    }

    /// Detaches: the claim lives on in the backend and is nobody's here.
    pub(crate) fn detach(&self, held: &Held) -> Result<(), End> {
        held.finish(End::Detached)?;
        self.forget(held, self.rt.now());
        self.backend.detached(&held.claim);
        Ok(())
    }

    /// Releases a claim, after its `hold_at_least` is over. The work goes on in the background if the caller stops
    /// waiting for it.
    ///
    /// Asked again while it is under way, it waits for the outcome; asked again after an error, it tries anew.
    ///
    /// # Errors
    /// What the backend says; [`ErrorKind::Lost`], also where only the release finds out.
    pub(crate) fn release(self: &Arc<Self>, held: Arc<Held>) -> Insist {
        let session = self.clone();
        self.insist(async move {
            let mut now = session.rt.now();
            let wait = held.hold.hold_at_least.saturating_sub(now.since(held.since));
            if !wait.is_zero() {
                session.rt.sleep(wait).await;
                now = session.rt.now();
            }
            if let Some(reason) = held.overdue(now) {
                session.lose(&held, reason);
            }
            let first = held.finish(End::Released);
            match first {
                Ok(()) => session.forget(&held, now),
                Err(End::Lost(reason)) => return Err(lost(reason, &held.claim.name)),
                Err(End::Detached) => return Ok(()),
                Err(End::Released) => match held.begin_release_again() {
                    Again::Failed => {}
                    Again::UnderWay => return held.release_outcome().await,
                    Again::Done => return Ok(()),
                },
            }
            let patience = held.remaining(now).unwrap_or(RELEASE_PATIENCE);
            let claims = smallvec![held.claim.clone()];
            let outcome = session.end_claims(claims, patience).await.and_then(|news| {
                match news.iter().find_map(|news| news.loss_of(&held.claim)) {
                    // Once its own time is over, it may have run out on the way.
                    Some(reason) if first.is_ok() && held.overdue(session.rt.now()).is_none() => {
                        held.was_lost(reason);
                        session.tell_lost(&held, reason);
                        Err(lost(reason, &held.claim.name))
                    }
                    _ => Ok(()),
                }
            });
            held.set_release_outcome(outcome.clone());
            outcome
        })
    }

    /// Does a piece of work that goes on in the background if the caller stops waiting for it.
    pub(crate) fn insist(&self, work: impl Future<Output = Result<()>> + Send + 'static) -> Insist {
        Insist { rt: self.rt.clone(), process: self.process, work: Some(work.boxed()) }
    }

    /// Releases everything that is held, and waits also for what was given back in the background before: a program may end
    /// after this.
    pub(crate) async fn close(self: &Arc<Self>) -> Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        self.closing.notify(usize::MAX);
        let leaving = self.leave();
        self.keeper.ring();
        let outcome = leaving.await;
        self.giving_back.done().await;
        outcome
    }

    /// Releases everything that is held; it goes on in the background if the caller stops waiting for it.
    pub(crate) fn leave(self: &Arc<Self>) -> Insist {
        let all: Vec<Arc<Held>> = self.held().values().cloned().collect();
        let claims: Few<Claim> = all
            .iter()
            .filter(|held| self.end_as_lost(held, LostReason::SessionEnded))
            .map(|held| held.claim.clone())
            .collect();
        let give_back = self.give_back(claims, RELEASE_PATIENCE);
        self.insist(give_back)
    }

    /// Has the keeper look at the clock at once.
    #[cfg(target_family = "wasm")]
    pub(crate) fn look(&self) {
        self.keeper.ring();
    }

    /// Tells the backend that these claims neither hold nor wait. While it is unavailable, tries again until `patience`
    /// is over after the first failure; then their TTL frees them.
    pub(crate) fn give_back(
        &self,
        claims: Few<Claim>,
        patience: Duration,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        self.end_claims(claims, patience).map_ok(drop)
    }

    /// The same, and what the backend has to tell of them.
    fn end_claims(
        &self,
        claims: Few<Claim>,
        patience: Duration,
    ) -> impl Future<Output = Result<Vec<News>>> + Send + 'static {
        let (rt, backend) = (self.rt.clone(), self.backend.clone());
        let giving_back = self.giving_back.clone();
        async move {
            if claims.is_empty() {
                return Ok(Vec::new());
            }
            // Nobody waits for more than one try of what was given up: a backend that is away frees it by its TTL.
            let mut under_way = Some(giving_back.begin());
            let mut back_off = BackOff::default();
            let mut start = None;
            let mut may_be_done = false;
            loop {
                let released = within(&rt, Some(RELEASE_TRY), backend.release(&claims)).await;
                match released.unwrap_or_else(|| Err(no_answer("a release", RELEASE_TRY))) {
                    Err(error)
                        if error.kind() == ErrorKind::Unavailable
                            && rt.now().since(*start.get_or_insert_with(|| rt.now())) < patience =>
                    {
                        may_be_done |= !was_not_sent(&error);
                        drop(under_way.take());
                        rt.sleep(back_off.pause(rt.jitter(), error.retry_after())).await;
                    }
                    // What the next try does not find was not lost.
                    Ok(_) if may_be_done => return Ok(Vec::new()),
                    outcome => return outcome,
                }
            }
        }
    }

    /// Does a piece of work that nobody waits for: as far as it goes without waiting on this thread, the rest in the
    /// background.
    pub(crate) fn in_background(&self, work: impl Future<Output = Result<()>> + Send + 'static) {
        self.insist(work).in_background();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.ring();
    }
}

/// How many releases are under way that may still come through at their first try.
#[derive(Debug, Default)]
struct GivingBack {
    under_way: AtomicUsize,
    done: Event,
}

impl GivingBack {
    fn begin(&self) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self)
    }

    /// Until none is.
    async fn done(&self) {
        loop {
            let listener = self.done.listen();
            if self.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            listener.await;
        }
    }
}

struct UnderWay<'a>(&'a GivingBack);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.done.notify(usize::MAX);
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this locker was closed: connect again")
}

/// The error of a request that was given up.
pub(crate) fn no_answer(to: &str, within: Duration) -> Error {
    Error::new(ErrorKind::Unavailable, format!("no answer to {to} within {}", Seconds(within)))
}

/// The error of a lock that was lost.
pub(crate) fn lost(reason: LostReason, name: &Name) -> Error {
    let message = match reason {
        LostReason::Expired => "lost: it was not renewed in time, so another may hold it now",
        LostReason::Unreachable => {
            "lost: the backend could not be reached until the TTL was over, so another may hold it now"
        }
        LostReason::ForceReleased => {
            "lost: an operator freed it, or the record of it was removed, so another may hold it now"
        }
        LostReason::Stolen => "lost: another claim took it over",
        LostReason::SessionEnded => "lost: the session that it hung on has ended, so another may hold it now",
    };
    Error::new(ErrorKind::Lost(reason), message).with_lock(name)
}

/// Work that is finished in the background when whoever waits for it stops waiting.
pub(crate) struct Insist {
    rt: Arc<dyn Runtime>,
    process: u32,
    work: Option<BoxFuture<'static, Result<()>>>,
}

impl Insist {
    /// Goes on in the background from the start, as far as possible on this thread.
    pub(crate) fn in_background(mut self) {
        if let Some(work) = &mut self.work
            && let Poll::Ready(outcome) = work.poll_unpin(&mut Context::from_waker(Waker::noop()))
        {
            self.work = None;
            log_failure(outcome);
        }
    }
}

impl Future for Insist {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let outcome = std::task::ready!(work.poll_unpin(context));
        self.work = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Insist {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        if self.process == self.rt.process() {
            self.rt.spawn(work.map(log_failure).boxed());
        } else {
            // In a child of `fork` it is the parent's: not even its memory may be given back here.
            std::mem::forget(work);
        }
    }
}

fn log_failure(outcome: Result<()>) {
    match outcome {
        Ok(()) => {}
        // That was said when it was lost.
        Err(error) if matches!(error.kind(), ErrorKind::Lost(_)) => {}
        Err(error) => tracing::warn!(%error, "what was to be done in the background failed"),
    }
}

/// Claims that were asked for and must be given back unless the asking came to an end: whoever drops an acquire half way
/// drops this.
pub(crate) struct Owed {
    session: Arc<Session>,
    claims: Few<Claim>,
}

impl Owed {
    pub(crate) fn new(session: &Arc<Session>, claims: Few<Claim>) -> Self {
        Self { session: session.clone(), claims }
    }

    /// Those that are held here by now are somebody's.
    pub(crate) fn but_for_what_is_held(mut self) -> Self {
        let held = self.session.held();
        self.claims.retain(|claim| !held.contains_key(&claim.id));
        drop(held);
        self
    }

    /// The asking came to an end, and the claims are somebody's or nobody's.
    pub(crate) fn settle(mut self) -> Few<Claim> {
        std::mem::take(&mut self.claims)
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.session.is_ours() {
            // As for Insist.
            std::mem::forget(self.session.clone());
        } else if !self.claims.is_empty() {
            let claims = std::mem::take(&mut self.claims);
            self.session.in_background(self.session.give_back(claims, RELEASE_PATIENCE));
        }
    }
}
