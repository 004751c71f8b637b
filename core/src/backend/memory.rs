//! Locks in the memory of this process: the pure lock [`Table`] behind a mutex. Claims die with the process and so
//! have no TTL, requests cannot get lost, and a release hands the lock to the next waiter before it returns.

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
    ask::{Ask, Claim, Grant, Happening, Holder, Mode, News, Renewal, Status, Waiting},
    backend::{Backend, Capabilities, OnWaiting, in_turn},
    error::{Error, ErrorKind, Result},
    name::Name,
    rt::Runtime,
    table::{Changed, Effect, Granted, Origin, Outcome, Rules, Table, What},
    time::Millis,
};

mod spaces;
#[cfg(test)]
mod tests;
mod watch;

use watch::Watch;

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

/// A set of names.
pub(super) struct Space {
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
    next_origin: AtomicU64,
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
        Self::open(Arc::new(Space::new(runtime)), process, "memory:".to_owned())
    }

    /// The locks of this process under `name`; the empty name is the one that everybody uses.
    pub(crate) fn named(name: &str, runtime: Arc<dyn Runtime>) -> Self {
        let process = runtime.process();
        Self::open(spaces::find(name, runtime), process, format!("memory:{name}"))
    }

    fn open(space: Arc<Space>, process: u32, url: String) -> Self {
        let origin = Origin(space.next_origin.fetch_add(1, Ordering::Relaxed));
        let bell = Arc::new(Event::new());
        space.lock().ears.insert(origin, Ear { news: Vec::new(), bell: Arc::clone(&bell) });
        Self { space: ManuallyDrop::new(space), process, origin, bell, url }
    }

    /// The locks, unless they were inherited by `fork`.
    fn space(&self) -> Result<&Space> {
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
        let mut state = space.lock();
        let mut effects = take(&mut state.effects);
        let result = act(&mut state, now, &mut effects);
        state.follow_up(name, &mut effects);
        state.effects = effects;
        let calls = take(&mut state.calls);
        drop(state);
        calls.make();
        Ok(result)
    }

    /// Waits for the grant that the table owes this claim.
    async fn sleep(&self, claim: &Claim, granted: oneshot::Receiver<Granted>) -> Result<Grant> {
        match granted.await {
            Ok(granted) => Ok(grant(granted)),
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
        Capabilities {
            shared: true,
            permit: true,
            downgrade: true,
            upgrade: true,
            steal: true,
            force_release: true,
            // All clients live in this process.
            fair_between_processes: true,
            hand_on_between_processes: false,
            forgets_names: true,
        }
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let claim = Claim { name: ask.name.clone(), id: ask.claim_id };
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
            Asked::Granted(granted) => Ok(Some(grant(granted))),
            Asked::Busy => Ok(None),
            Asked::Over => Err(self.not_held(&ask.name, "this claim was released before")),
            Asked::Queued(granted, why) => {
                waiting(why);
                self.sleep(&claim, granted).await.map(Some)
            }
        }
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let space = self.space()?;
        let now = space.runtime.monotonic();
        let mut state = space.lock();
        let renewed = claims.iter().map(|claim| match state.table.renew(now, claim, self.origin) {
            Some(granted) => Renewal::Renewed(grant(granted)),
            None => Renewal::NotHeld,
        });
        Ok(renewed.collect())
    }

    async fn release(&self, claims: &[Claim]) -> Result<()> {
        for claim in claims {
            self.step(&claim.name, |state, now, effects| {
                state.table.release(now, claim, effects);
                state.forget(claim, self.origin);
            })?;
        }
        Ok(())
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
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
            (Changed::Done(granted), _) => Ok(grant(granted)),
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
    pub(super) fn new(runtime: Arc<dyn Runtime>) -> Self {
        // Tokens grow over restarts of the process as the wall clock does (rule R14); nobody takes and gives back locks
        // at more than one a microsecond for all of a process's life.
        let first_token = u64::try_from(runtime.now().wall.as_micros()).unwrap_or(u64::MAX / 2).max(1);
        let rules = Rules { first_token, expires: false, remember: Duration::ZERO };
        let state = State {
            table: Table::new(rules),
            sleepers: HashMap::new(),
            ears: HashMap::new(),
            watches: Vec::new(),
            effects: Vec::new(),
            calls: Calls::default(),
        };
        Self { runtime, state: Mutex::new(state), next_origin: AtomicU64::new(1) }
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

    /// The claim was released: nobody waits for it any more, and nobody wants news of it.
    fn forget(&mut self, claim: &Claim, origin: Origin) {
        self.dismiss(claim);
        if let Some(ear) = self.ears.get_mut(&origin)
            && !ear.news.is_empty()
        {
            ear.news.retain(|news| news.claim != *claim);
        }
    }

    fn follow_up(&mut self, name: &Name, effects: &mut Vec<Effect>) {
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
                // Claims have no deadlines here.
                What::Left => {}
            }
        }
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

fn grant(granted: Granted) -> Grant {
    Grant { fencing_token: granted.fencing_token, mode: granted.mode, lease: None }
}
