//! Locks in memory: the pure lock [`Table`] behind a mutex. A release hands the lock to the next waiter before it
//! returns.
//!
//! As `memory:` the locks are a process's own: claims die with it and so have no TTL, and requests cannot get lost. As a
//! [`MemoryStore`] they are what a lock server keeps for programs on other machines: claims live for their TTL, and
//! ids of claims that are over are remembered.

use std::{
    collections::HashMap,
    fmt,
    mem::{ManuallyDrop, take},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use event_listener::Event;
use futures_channel::oneshot;
use futures_util::stream::BoxStream;
use smallvec::SmallVec;

use crate::{
    ask::{Ask, Claim, Grant, Happening, Holder, Mode, News, Renewal, Status, Term, Waiting},
    backend::{Backend, Capabilities, OnWaiting, in_turn},
    error::{Error, ErrorKind, LostReason, Result},
    name::Name,
    per_process::PerProcess,
    rt::Runtime,
    table::{Changed, Effect, Granted, Kept, Origin, Outcome, Rules, Table, Tally, What},
    time::{Millis, Moment},
};

mod expiry;
#[cfg(test)]
mod tests;
mod watch;

use watch::Watch;

/// The sets of names of this process.
static SPACES: PerProcess<Space> = PerProcess::new();

/// One locker's view of locks in memory. What it is told by [`hear`](Backend::hear) is about its own claims only.
///
/// Values that a child of `fork` inherits belong to the parent, whose threads may have been half way through a change:
/// they are neither read nor dropped there (rule R21).
#[derive(Debug)]
pub(crate) struct Memory {
    space: ManuallyDrop<Arc<Space>>,
    process: u32,
    /// What the table knows this value by.
    origin: Origin,
    bell: Arc<Event>,
    url: String,
}

/// Locks in memory whose claims live for their TTL: for a server, which grants them to programs elsewhere.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// use windlass::{backend::MemoryStore, rt::Native, table::Rules};
///
/// let rules = Rules { first_token: 1, expires: true, remember: Duration::from_secs(60) };
/// let store = MemoryStore::new(Arc::new(Native), rules);
/// let backend = store.client("http://127.0.0.1:7420/team-a");
/// assert!(backend.capabilities().hand_on_between_processes);
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Space>);

impl MemoryStore {
    /// Locks that nobody holds yet.
    pub fn new(runtime: Arc<dyn Runtime>, rules: Rules) -> Self {
        Self(Arc::new(Space::new(runtime, rules)))
    }

    /// A client's view of them: what it [hears](Backend::hear) is about the claims that it speaks for, which are those
    /// that it asked for or renewed last. `url` is what messages say.
    pub fn client(&self, url: impl Into<String>) -> Arc<dyn Backend> {
        Arc::new(Memory::open(self.0.clone(), self.0.runtime.process(), url.into()))
    }

    /// A view for those who say not who they are: it hears nothing, and nothing is kept for it to hear.
    pub fn stranger(&self, url: impl Into<String>) -> Arc<dyn Backend> {
        let view = Memory::open(self.0.clone(), self.0.runtime.process(), url.into());
        self.0.lock().ears.remove(&view.origin);
        Arc::new(view)
    }

    /// All claims, to be written down.
    pub fn kept(&self) -> Vec<Kept> {
        let now = self.0.runtime.monotonic();
        self.0.lock().table.kept(now)
    }

    /// The longest TTL of all claims, held or waiting. It looks at each.
    pub fn longest_ttl(&self) -> Duration {
        self.0.lock().table.longest_ttl()
    }

    /// Takes up a claim that an earlier store had: see [`Table::reinstate`]. Whoever renews it speaks for it. A waiter
    /// leaves after `grace` unless it is asked for again.
    pub fn reinstate(&self, kept: &Kept, grace: Duration) -> bool {
        let now = self.0.runtime.monotonic();
        self.0.step(|state, effects| {
            let taken = state.table.reinstate(now, kept, Origin::default(), effects).is_some();
            let claim = Claim { name: kept.name.clone(), id: kept.claim };
            taken | state.table.waiter_gone(now, &claim, grace)
        })
    }

    /// The fencing token of the next grant.
    pub fn next_token(&self) -> u64 {
        self.0.lock().table.next_token()
    }

    /// How many names are held, and what has happened.
    pub fn counted(&self) -> (usize, Tally) {
        let state = self.0.lock();
        (state.table.len(), *state.table.tally())
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.lock().table.is_empty()
    }
}

/// A set of names.
pub(super) struct Space {
    runtime: Arc<dyn Runtime>,
    /// Claims live for their TTL.
    expires: bool,
    state: Mutex<State>,
    next_origin: AtomicU64,
    /// Rings when a claim is due earlier than the task that ends claims knows.
    sooner: Event,
}

struct State {
    table: Table,
    /// Those who wait for a grant or an upgrade. One that was dropped stays until its claim is released, as it must be.
    sleepers: HashMap<Claim, Sleepers>,
    ears: HashMap<Origin, Ear>,
    watches: Vec<Weak<Watch>>,
    /// Between two steps these two are empty; the effects are kept for their room.
    effects: Vec<Effect>,
    calls: Calls,
    /// When the task that ends claims looks next; `None`: there is no such task.
    looks_at: Option<Millis>,
}

type Sleepers = SmallVec<[oneshot::Sender<Granted>; 1]>;

/// What one locker has not heard yet.
struct Ear {
    news: Vec<News>,
    bell: Arc<Event>,
}

/// Whom to wake once the mutex is free.
#[derive(Default)]
struct Calls {
    grants: Vec<(Sleepers, Granted)>,
    /// Those whose claim was released while they waited: dropping the channel wakes them.
    dismissed: Vec<Sleepers>,
    bells: Vec<Arc<Event>>,
    watches: Vec<Arc<Watch>>,
}

impl Memory {
    /// Locks that nobody else sees.
    #[allow(dead_code, reason = "for tests and for hosts that bring their own locker")]
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        let process = runtime.process();
        Self::open(Arc::new(Space::of_this_process(runtime)), process, "memory:".to_owned())
    }

    /// The locks of this process under `name`; the empty name is the one that everybody uses.
    pub(crate) fn named(name: &str, runtime: Arc<dyn Runtime>) -> Self {
        let process = runtime.process();
        let space = SPACES.find(process, name, || Space::of_this_process(runtime));
        Self::open(space, process, format!("memory:{name}"))
    }

    fn open(space: Arc<Space>, process: u32, url: String) -> Self {
        let origin = Origin(space.next_origin.fetch_add(1, Ordering::Relaxed));
        let bell = Arc::new(Event::new());
        space.lock().ears.insert(origin, Ear { news: Vec::new(), bell: Arc::clone(&bell) });
        Self { space: ManuallyDrop::new(space), process, origin, bell, url }
    }

    /// The locks, unless they were inherited by `fork`.
    fn space(&self) -> Result<&Arc<Space>> {
        if self.is_inherited() {
            return Err(Error::new(
                ErrorKind::Closed,
                "these locks belong to the parent process: connect again after fork",
            )
            .with_backend(&self.url));
        }
        Ok(&self.space)
    }

    fn is_inherited(&self) -> bool {
        self.process != self.space.runtime.process()
    }

    /// One step of one lock, and then, with the mutex free again, the wake-ups that follow from it.
    fn step<R>(&self, name: &Name, act: impl FnOnce(&mut State, Millis, &mut Vec<Effect>) -> R) -> Result<R> {
        let space = self.space()?;
        let now = space.runtime.monotonic();
        Ok(space.step(|state, effects| {
            let result = act(state, now, effects);
            state.watch_out(name);
            result
        }))
    }

    /// A grant, as its holder may believe in it if it was asked for `since`.
    fn grant(&self, granted: Granted, since: Option<Moment>) -> Grant {
        let lease = since.zip(granted.ttl).map(|(counted_from, ttl)| Term { counted_from, ttl });
        Grant { fencing_token: granted.fencing_token, mode: granted.mode, lease }
    }

    /// Now, where claims live for their TTL.
    fn now(&self) -> Result<Option<Moment>> {
        let space = self.space()?;
        Ok(space.expires.then(|| space.runtime.now()))
    }

    /// Waits for the grant that the table owes this claim. Its term may have begun long ago, unless somebody took it up.
    async fn sleep(&self, claim: &Claim, granted: oneshot::Receiver<Granted>) -> Result<Grant> {
        match granted.await {
            Ok(granted) => {
                // The grant began when it was sent here. Whoever was slow to wake asks again and gets all of its TTL.
                let Some(since) = self.now()? else { return Ok(self.grant(granted, None)) };
                let space = self.space()?;
                let renewed = space.lock().table.renew(space.runtime.monotonic(), claim, self.origin);
                renewed
                    .map(|granted| self.grant(granted, Some(since)))
                    .ok_or_else(|| self.not_held(&claim.name, "the claim was lost before anybody took it up"))
            }
            Err(oneshot::Canceled) => {
                Err(self.not_held(&claim.name, "the claim was released or changed while it waited"))
            }
        }
    }

    fn not_held(&self, name: &Name, message: &str) -> Error {
        Error::new(ErrorKind::NotHeld, message).with_backend(&self.url).with_lock(name)
    }
}

#[async_trait]
impl Backend for Memory {
    fn capabilities(&self) -> Capabilities {
        // All clients live in this process, or speak through it.
        Capabilities { hand_on_between_processes: self.space.expires, keep_place: false, ..Capabilities::ALL }
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let since = self.now()?;
        let claim = ask.claim();
        let asked = self.step(&ask.name, |state, now, effects| {
            match state.table.acquire(now, ask, self.origin, effects) {
                Outcome::Granted(granted) => {
                    if granted.contended {
                        effects.push(Effect {
                            claim: claim.clone(),
                            origin: self.origin,
                            what: What::Contended,
                        });
                    }
                    Asked::Granted(granted)
                }
                Outcome::Queued { .. } => {
                    let why = state.table.waiting(now, &claim);
                    Asked::Queued(state.sleep(&claim), why)
                }
                Outcome::Busy => Asked::Busy,
                Outcome::Over => Asked::Over,
            }
        })?;
        match asked {
            Asked::Granted(granted) => Ok(Some(self.grant(granted, since))),
            Asked::Busy => Ok(None),
            Asked::Over => Err(self.not_held(&ask.name, "this claim was released before")),
            Asked::Queued(granted, why) => {
                waiting(why);
                self.sleep(&claim, granted).await.map(Some)
            }
        }
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.space()?.runtime, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let since = self.now()?;
        let space = self.space()?;
        let now = space.runtime.monotonic();
        let mut state = space.lock();
        let renewed = claims.iter().map(|claim| match state.table.renew(now, claim, self.origin) {
            Some(granted) => Renewal::Renewed(self.grant(granted, since)),
            None => state.table.why_lost(claim).map_or(Renewal::NotHeld, Renewal::Lost),
        });
        Ok(renewed.collect())
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        let mut lost = Vec::new();
        for claim in claims {
            self.step(&claim.name, |state, now, effects| {
                let reason = state.table.why_lost(claim);
                state.table.release(now, claim, effects);
                let unheard = state.forget(claim, self.origin);
                lost.extend(unheard.or(reason).map(|reason| News::lost(claim, reason)));
            })?;
        }
        Ok(lost)
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        let since = self.now()?;
        let (changed, granted) = self.step(&claim.name, |state, now, effects| {
            let changed = state.table.change(now, claim, to, effects);
            match changed {
                Changed::Waiting => (changed, Some(state.sleep(claim))),
                // Whoever waits for an upgrade that is called off has to be told.
                Changed::Done(_) => {
                    state.dismiss(claim);
                    (changed, None)
                }
                Changed::NotHeld | Changed::Refused { .. } => (changed, None),
            }
        })?;
        match (changed, granted) {
            (Changed::Done(granted), _) => Ok(self.grant(granted, since)),
            (Changed::Refused { from }, _) => {
                let message =
                    format!("a claim that is {from} cannot become {to}: only an upgradable one can");
                Err(Error::new(ErrorKind::InvalidInput, message)
                    .with_backend(&self.url)
                    .with_lock(&claim.name))
            }
            (Changed::Waiting, Some(granted)) => self.sleep(claim, granted).await,
            _ => Err(self.not_held(&claim.name, "the claim is not held")),
        }
    }

    async fn hear(&self) -> Result<Vec<News>> {
        loop {
            let rung = self.bell.listen();
            if let Some(ear) = self.space()?.lock().ears.get_mut(&self.origin)
                && !ear.news.is_empty()
            {
                return Ok(take(&mut ear.news));
            }
            rung.await;
        }
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        let space = self.space()?;
        let now = space.runtime.monotonic();
        Ok(space.lock().table.status(now, prefix))
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        self.step(name, |state, now, effects| state.table.force_release(now, name, fencing_token, effects))
    }

    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        let watch = Arc::new(Watch::new(prefix));
        self.space()?.lock().watches.push(Arc::downgrade(&watch));
        Ok(Watch::stream(watch))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.is_inherited() {
            self.space.lock().ears.remove(&self.origin);
            // SAFETY: it is dropped once, here, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.space) };
        }
    }
}

impl Space {
    pub(super) fn of_this_process(runtime: Arc<dyn Runtime>) -> Self {
        // Tokens grow over restarts of the process as the wall clock does (rule R14); nobody takes and gives back locks
        // at more than one a microsecond for all of a process's life.
        let first_token = u64::try_from(runtime.now().wall.as_micros()).unwrap_or(u64::MAX / 2).max(1);
        Self::new(runtime, Rules { first_token, expires: false, remember: Duration::ZERO })
    }

    fn new(runtime: Arc<dyn Runtime>, rules: Rules) -> Self {
        let state = State {
            table: Table::new(rules),
            sleepers: HashMap::new(),
            ears: HashMap::new(),
            watches: Vec::new(),
            effects: Vec::new(),
            calls: Calls::default(),
            looks_at: None,
        };
        Self {
            runtime,
            expires: rules.expires,
            state: Mutex::new(state),
            next_origin: AtomicU64::new(1),
            sooner: Event::new(),
        }
    }

    /// Some change of the table, and then, with the mutex free again, the wake-ups that follow from it.
    fn step<R>(self: &Arc<Self>, act: impl FnOnce(&mut State, &mut Vec<Effect>) -> R) -> R {
        let mut state = self.lock();
        let mut effects = take(&mut state.effects);
        let result = act(&mut state, &mut effects);
        state.follow_up(&mut effects);
        state.effects = effects;
        let calls = take(&mut state.calls);
        let due = if self.expires { state.due_sooner() } else { None };
        drop(state);
        calls.make();
        due.into_iter().for_each(|due| self.look_sooner(due));
        result
    }

    /// A panic of another thread does not make the locks unusable for everybody.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The state may belong to a parent process, and it holds secrets.
        f.debug_struct("Space").finish_non_exhaustive()
    }
}

/// The answer of the table, with what it takes to wait.
enum Asked {
    Granted(Granted),
    Queued(oneshot::Receiver<Granted>, Waiting),
    Busy,
    Over,
}

impl State {
    fn sleep(&mut self, claim: &Claim) -> oneshot::Receiver<Granted> {
        let (granted, sleeping) = oneshot::channel();
        let sleepers = self.sleepers.entry(claim.clone()).or_default();
        sleepers.retain(|sleeper| !sleeper.is_canceled());
        sleepers.push(granted);
        sleeping
    }

    fn dismiss(&mut self, claim: &Claim) {
        if !self.sleepers.is_empty() {
            self.calls.dismissed.extend(self.sleepers.remove(claim));
        }
    }

    /// The claim was released: nobody waits for it any more, and nobody wants news of it but that it was lost.
    fn forget(&mut self, claim: &Claim, origin: Origin) -> Option<LostReason> {
        self.dismiss(claim);
        let ear = self.ears.get_mut(&origin).filter(|ear| !ear.news.is_empty())?;
        ear.news
            .extract_if(.., |news| news.claim == *claim)
            .fold(None, |lost, news| lost.or(news.loss_of(claim)))
    }

    fn follow_up(&mut self, effects: &mut Vec<Effect>) {
        for Effect { claim, origin, what } in effects.drain(..) {
            match what {
                What::Granted(granted) => {
                    if let Some(sleepers) = self.sleepers.remove(&claim) {
                        self.calls.grants.push((sleepers, granted));
                    }
                    if granted.contended {
                        self.say(claim, origin, Happening::Contended);
                    }
                }
                What::Lost(reason) => {
                    // It may have waited for an upgrade.
                    self.dismiss(&claim);
                    self.say(claim, origin, Happening::Lost(reason));
                }
                What::Contended => self.say(claim, origin, Happening::Contended),
                What::Left => self.dismiss(&claim),
            }
        }
    }

    /// Those who watch this name have something to look at.
    fn watch_out(&mut self, name: &Name) {
        if !self.watches.is_empty() {
            self.watches.retain(|watch| watch.strong_count() > 0);
            let concerned =
                self.watches.iter().filter_map(Weak::upgrade).filter(|watch| watch.concerns(name));
            self.calls.watches.extend(concerned);
        }
    }

    fn say(&mut self, claim: Claim, origin: Origin, what: Happening) {
        let Some(ear) = self.ears.get_mut(&origin) else { return };
        // What was said already and not yet heard is not said again.
        if !matches!(what, Happening::Contended) || ear.news.iter().all(|news| news.claim != claim) {
            ear.news.push(News { claim, what });
            self.calls.bells.push(Arc::clone(&ear.bell));
        }
    }
}

impl Calls {
    fn make(self) {
        drop(self.dismissed);
        for (sleepers, granted) in self.grants {
            for sleeper in sleepers {
                // One that is gone owes a release.
                let _ = sleeper.send(granted);
            }
        }
        for bell in self.bells {
            bell.notify(usize::MAX);
        }
        for watch in self.watches {
            watch.hint();
        }
    }
}
