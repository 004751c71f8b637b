//! The keeper: one task a session that renews all claims in one request, hears what the backend has to tell, and ends
//! what is over. It runs on the [`Runtime`](crate::rt::Runtime)'s own thread, so a program that is busy keeps its locks.
//!
//! - **Nothing waits for a request.** Renewals and hearing are polled beside the timer, so a hung request delays no loss, and
//!   no renewal of other claims.
//! - **Adding a claim wakes the keeper only when it must**: it publishes until when it sleeps, and whoever adds a claim that
//!   is due earlier rings. While it looks, it has published "ring always", and it listens before it looks, so no ring
//!   is missed (rule R18).
//! - **A suspended machine** stops the timer with it. While claims have leases the keeper looks at the clock twice a
//!   second at least, so a loss by suspend is told that soon after the machine wakes (rule R5).
//! - **It ends with the session**, whose drop rings; the task itself holds the session only while it looks.
//! - **A panic ends no care**: whatever panics under it (a backend, a subscriber of traces), the keeper begins again. All
//!   that it must know is in the session; a renewal that was under way is asked for anew.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use event_listener::{Event, EventListener};
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};

use crate::{
    ask::{Happening, News, Renewal},
    backend::Backend,
    error::{LostReason, Result},
    held::Held,
    lease::BackOff,
    metrics::count,
    name::ClaimId,
    rt::Runtime,
    session::{Session, no_answer},
    time::Moment,
};

/// The longest sleep while claims have leases.
const GLANCE: Duration = Duration::from_millis(500);
/// How long the keeper goes on hearing after the last claim has ended: the next one often comes soon. It begins when
/// something wakes the keeper; where nothing does, because claims have no leases, hearing costs nothing. Not in JavaScript,
/// where a request that is held open keeps a program from ending.
const LINGER: Duration = if cfg!(target_family = "wasm") { Duration::ZERO } else { Duration::from_secs(5) };
/// The pause before it begins again after a panic.
const AFTER_PANIC: Duration = Duration::from_millis(100);
/// Published while nobody may assume that the keeper looks by itself.
const RING_ALWAYS: u64 = u64::MAX;
/// When a claim is due of which nothing is due.
const NEVER_DUE: u64 = RING_ALWAYS - 1;

/// How a session and its keeper find each other.
#[derive(Debug)]
pub(crate) struct Doorbell {
    bell: Arc<Event>,
    /// Until when the keeper sleeps, in nanoseconds of [`Moment::boot`].
    sleeps_until: Arc<AtomicU64>,
    started: AtomicBool,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self {
            bell: Arc::default(),
            sleeps_until: Arc::new(AtomicU64::new(RING_ALWAYS)),
            started: AtomicBool::new(false),
        }
    }
}

impl Doorbell {
    /// A claim was added that is due in `due_in`: starts the keeper, or wakes it if it would sleep for longer.
    pub(crate) fn added(&self, session: &Arc<Session>, due_in: Option<Duration>, now: Moment) {
        if !self.started.load(Ordering::Relaxed) {
            if !self.started.swap(true, Ordering::Relaxed) {
                let (weak, bell, sleeps_until) =
                    (Arc::downgrade(session), self.bell.clone(), self.sleeps_until.clone());
                session.rt.spawn(keep(weak, bell, sleeps_until).boxed());
            }
            return;
        }
        let due = due_in.map_or(NEVER_DUE, |due_in| nanos(now.boot.saturating_add(due_in)));
        if due < self.sleeps_until.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    pub(crate) fn ring(&self) {
        self.bell.notify(usize::MAX);
    }
}

/// Keeps, and begins again after a panic, for as long as there is a session.
async fn keep(session: Weak<Session>, bell: Arc<Event>, sleeps_until: Arc<AtomicU64>) {
    loop {
        let Some(here) = session.upgrade() else { return };
        let rt = here.rt.clone();
        let keeper = Keeper::new(&here, bell.clone(), sleeps_until.clone());
        drop(here);
        if AssertUnwindSafe(keeper.run()).catch_unwind().await.is_ok() {
            return;
        }
        tracing::error!("the keeper of locks has panicked and begins again; please report it");
        rt.sleep(AFTER_PANIC).await;
    }
}

struct Keeper {
    session: Weak<Session>,
    rt: Arc<dyn Runtime>,
    backend: Arc<dyn Backend>,
    bell: Arc<Event>,
    sleeps_until: Arc<AtomicU64>,
    /// One, as a rule; several where requests hang.
    renewals: Vec<BoxFuture<'static, Round>>,
    /// What those are about.
    in_flight: BTreeMap<ClaimId, Arc<Held>>,
    hearing: Option<BoxFuture<'static, Result<Vec<News>>>>,
    hear_back_off: BackOff,
    idle_since: Option<Moment>,
}

/// One request to renew, and what came of it.
struct Round {
    claims: Vec<Arc<Held>>,
    outcome: Result<Vec<Renewal>>,
}

enum Woken {
    TimeOrBell,
    Renewal(Round),
    News(Result<Vec<News>>),
}

impl Keeper {
    fn new(session: &Arc<Session>, bell: Arc<Event>, sleeps_until: Arc<AtomicU64>) -> Self {
        Self {
            session: Arc::downgrade(session),
            rt: session.rt.clone(),
            backend: session.backend.clone(),
            bell,
            sleeps_until,
            renewals: Vec::new(),
            in_flight: BTreeMap::new(),
            hearing: None,
            hear_back_off: BackOff::default(),
            idle_since: None,
        }
    }

    async fn run(mut self) {
        loop {
            self.sleeps_until.store(RING_ALWAYS, Ordering::SeqCst);
            let bell = self.bell.listen();
            let Some(session) = self.session.upgrade() else { return };
            let sleep = self.look(&session);
            drop(session);
            match self.wait(bell, sleep).await {
                Woken::TimeOrBell => {}
                Woken::Renewal(round) => self.renewed(round),
                Woken::News(news) => self.heard(news),
            }
        }
    }

    /// Does what is due; how long there is nothing more to do, `None`: until the bell rings.
    fn look(&mut self, session: &Arc<Session>) -> Option<Duration> {
        let now = self.rt.now();
        let all: Vec<Arc<Held>> = session.held().values().cloned().collect();
        // With each, the time until it is due and how long a try may take.
        let mut to_renew = Vec::new();
        let mut sleep: Option<Duration> = None;
        let mut earliest = |time: Duration| sleep = Some(sleep.map_or(time, |sleep| sleep.min(time)));
        for held in &all {
            let agenda = held.agenda(now);
            if let Some(reason) = agenda.lose {
                session.lose(held, reason);
                continue;
            }
            if agenda.too_long {
                tracing::warn!(lock = %held.claim.name, "held for longer than max_hold");
                if let Some(callback) = &held.hold.on_held_too_long {
                    session.tell(callback, held);
                }
                // The TTL that is left to the holder begins to run.
                earliest(Duration::ZERO);
            }
            if let Some(look_in) = agenda.look_in {
                earliest(look_in);
            }
            let Some(try_timeout) = agenda.try_timeout else { continue };
            earliest(GLANCE);
            if let Some(renew_in) = agenda.renew_in
                && !self.in_flight.contains_key(&held.claim.id)
            {
                to_renew.push((renew_in, try_timeout, held));
            }
        }
        if to_renew.iter().any(|(renew_in, ..)| renew_in.is_zero()) {
            // What is due within half a try's time-out comes along: one request for all.
            let soon = to_renew.extract_if(.., |(renew_in, try_timeout, _)| *renew_in <= *try_timeout / 2);
            let (mut claims, mut shortest) = (Vec::new(), Duration::MAX);
            for (_, try_timeout, held) in soon {
                self.in_flight.insert(held.claim.id, held.clone());
                claims.push(held.clone());
                shortest = shortest.min(try_timeout);
            }
            self.renewals.push(self.renew(claims, shortest));
        }
        for (renew_in, ..) in to_renew {
            earliest(renew_in);
        }
        let linger = self.hear_while(!all.is_empty(), session.is_closed(), now);
        let sleep = [sleep, linger].into_iter().flatten().min();
        // Who hears needs no bell for a claim of which nothing is due, as those of backends without leases.
        let for_ever = if self.hearing.is_some() { NEVER_DUE } else { RING_ALWAYS };
        let until = sleep.map_or(for_ever, |sleep| nanos(now.boot.saturating_add(sleep)));
        let hears_or_needs_not = self.hearing.is_some() || all.is_empty();
        self.sleeps_until.store(if hears_or_needs_not { until } else { RING_ALWAYS }, Ordering::SeqCst);
        sleep
    }

    /// Hears while something is held, and a little longer unless nothing can follow; when to look whether that is over.
    fn hear_while(&mut self, holding: bool, closed: bool, now: Moment) -> Option<Duration> {
        if holding {
            self.idle_since = None;
            if self.hearing.is_none() {
                let backend = self.backend.clone();
                self.hearing = Some(async move { backend.hear().await }.boxed());
            }
            return None;
        }
        self.hearing.as_ref()?;
        let idle_for = now.since(*self.idle_since.get_or_insert(now));
        if closed || idle_for >= LINGER {
            self.hearing = None;
            return None;
        }
        Some(LINGER.saturating_sub(idle_for))
    }

    fn renew(&self, claims: Vec<Arc<Held>>, try_timeout: Duration) -> BoxFuture<'static, Round> {
        let (backend, limit) = (self.backend.clone(), self.rt.sleep(try_timeout));
        async move {
            let asked: Vec<_> = claims.iter().map(|held| held.claim.clone()).collect();
            let outcome = match future::select(backend.renew(&asked), limit).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(((), _)) => Err(no_answer("a renewal", try_timeout)),
            };
            Round { claims, outcome }
        }
        .boxed()
    }

    fn renewed(&mut self, round: Round) {
        for held in &round.claims {
            self.in_flight.remove(&held.claim.id);
        }
        let Some(session) = self.session.upgrade() else { return };
        let now = self.rt.now();
        let outcomes = match round.outcome {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::warn!(%error, "renewal failed");
                round.claims.iter().map(|_| Renewal::Unknown(error.clone())).collect()
            }
        };
        for (held, outcome) in round.claims.iter().zip(outcomes) {
            match outcome {
                Renewal::Renewed(grant) => {
                    count(&session.counters.renewals);
                    if held.renewed(&grant, now) {
                        count(&session.counters.late_renewals);
                        tracing::warn!(lock = %held.claim.name, "renewed only after two thirds of the TTL");
                    }
                }
                Renewal::Lost(reason) => session.lose(held, reason),
                Renewal::NotHeld => session.lose(held, LostReason::Expired),
                Renewal::Unknown(error) => {
                    tracing::debug!(lock = %held.claim.name, %error, "not renewed");
                    held.not_renewed(now, session.rt.jitter(), error.retry_after());
                }
            }
        }
    }

    fn heard(&mut self, news: Result<Vec<News>>) {
        let Some(session) = self.session.upgrade() else { return };
        let news = match news {
            Ok(news) => {
                self.hear_back_off = BackOff::default();
                news
            }
            Err(error) => {
                tracing::debug!(%error, "hearing broke off");
                let pause = self.hear_back_off.pause(session.rt.jitter(), error.retry_after());
                let (backend, pause) = (self.backend.clone(), self.rt.sleep(pause));
                self.hearing = Some(
                    async move {
                        pause.await;
                        backend.hear().await
                    }
                    .boxed(),
                );
                return;
            }
        };
        for News { claim, what } in news {
            let Some(held) = session.held().get(&claim.id).cloned() else { continue };
            match what {
                Happening::Renewed(grant) => {
                    held.renewed(&grant, self.rt.now());
                    count(&session.counters.renewals);
                }
                Happening::Lost(reason) => session.lose(&held, reason),
                Happening::Contended => {
                    if let Some(callback) = &held.hold.on_contended {
                        session.tell(callback, &held);
                    }
                }
            }
        }
    }

    async fn wait(&mut self, bell: EventListener, sleep: Option<Duration>) -> Woken {
        let timer = match sleep {
            Some(sleep) => self.rt.sleep(sleep),
            None => future::pending().boxed(),
        };
        let mut time_or_bell = future::select(bell, timer);
        poll_fn(|context| {
            for (at, renewal) in self.renewals.iter_mut().enumerate() {
                if let Poll::Ready(round) = renewal.poll_unpin(context) {
                    drop(self.renewals.swap_remove(at));
                    return Poll::Ready(Woken::Renewal(round));
                }
            }
            if let Some(hearing) = &mut self.hearing
                && let Poll::Ready(news) = hearing.poll_unpin(context)
            {
                self.hearing = None;
                return Poll::Ready(Woken::News(news));
            }
            time_or_bell.poll_unpin(context).map(|_| Woken::TimeOrBell)
        })
        .await
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER_DUE).min(NEVER_DUE - 1)
}
