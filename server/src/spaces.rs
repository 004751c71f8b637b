//! The namespaces of a server; what may be granted now.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use windlass::{
    Error, ErrorKind, Name, Result,
    backend::{Capabilities, MemoryStore},
    protocol::Proven,
    rt::Runtime,
    table::{Kept, Rules, Tally},
    time::Moment,
};

use crate::{
    durable::Durable,
    elsewhere,
    space::{FORGET_AFTER, Locks, Released, Space},
    store::{Shared, Store},
};

/// How long the ids of claims that are over are remembered: longer than any request can be under way (rule R12).
const REMEMBER: Duration = Duration::from_secs(120);
/// How often it is looked for such a namespace.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// How long a waiter's place is kept after a restart.
const WAITERS_COME_BACK: Duration = Duration::from_secs(10);
/// Far less than it takes to use up half of what is reserved.
const LOOK_AT_TOKENS: Duration = Duration::from_secs(1);
/// At every how many of these it looks at the TTLs: longer than it takes from a request to its claim.
const LOOK_AT_TTLS: u64 = 60;
/// The longest name of a namespace.
const LONGEST_NAMESPACE: usize = 128;

/// All namespaces of a server.
pub(crate) struct Spaces {
    rt: Arc<dyn Runtime>,
    durable: Option<Arc<Durable>>,
    /// Where the locks are, if not in this server's memory.
    shared: Option<Arc<Shared>>,
    /// The namespaces that are used at any server over the store.
    elsewhere: Mutex<BTreeSet<String>>,
    /// How many servers there were in its directory, with this one; 0: there is no directory.
    pub(crate) epoch: u64,
    named: Mutex<Named>,
    /// How many clients they remember.
    clients: Arc<AtomicUsize>,
    /// How many there may be.
    most: AtomicUsize,
    /// Until when nothing new is granted.
    grace_ends: Option<Instant>,
    /// All tokens that are reserved are given.
    no_tokens: AtomicBool,
    stopping: AtomicBool,
    stop: Notify,
    /// What is granted from now on is not written down any more.
    sealed: AtomicBool,
}

/// What there is, in numbers.
#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) namespaces: usize,
    pub(crate) clients: usize,
    /// How many locks are held, and what has happened; `None`: others have a part in that, too.
    pub(crate) locks: Option<(usize, Tally)>,
}

struct Named {
    spaces: HashMap<Box<str>, Arc<Space>>,
    /// No namespace that is made anew begins with a token below it: it may have been there before.
    first_token: u64,
    /// What happened in those that are forgotten.
    past: Tally,
    /// When it was last looked for one to forget.
    looked: Option<Instant>,
}

impl Spaces {
    pub(crate) fn new(store: Store) -> Arc<Self> {
        let Store { rt, durable, found, shared } = store;
        let spaces = Self {
            rt,
            epoch: durable.as_ref().map_or(0, Durable::epoch),
            durable: durable.map(Arc::new),
            shared: shared.map(Arc::new),
            elsewhere: Mutex::default(),
            named: Mutex::new(Named {
                spaces: HashMap::new(),
                first_token: found.first_token,
                past: Tally::default(),
                looked: None,
            }),
            clients: Arc::default(),
            most: AtomicUsize::new(usize::MAX),
            grace_ends: found.grace.map(|grace| Instant::now() + grace),
            no_tokens: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
            sealed: AtomicBool::new(false),
        };
        for (name, claims) in &found.claims {
            match spaces.get(name) {
                Ok(space) => claims.iter().for_each(|kept| reinstate(&space, kept, WAITERS_COME_BACK)),
                Err(error) => tracing::error!(%error, "the claims of a namespace are lost"),
            }
        }
        Arc::new(spaces)
    }

    /// There may be so many.
    pub(crate) fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// The namespace of this name, made at first use.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Space>> {
        let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // Proxies and clients take `.` and `..` for something else.
        let is_step = matches!(name, "." | "..");
        let is_theirs = self.shared.is_some() && name == elsewhere::NAMESPACE;
        if name.is_empty()
            || is_step
            || is_theirs
            || name.len() > LONGEST_NAMESPACE
            || !name.chars().all(letter)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a namespace has 1 to 128 letters, digits and characters of -_.",
            ));
        }
        let now = Instant::now();
        let mut named = self.named();
        if let Some(space) = named.spaces.get(name) {
            space.was_seen(now);
            return Ok(space.clone());
        }
        let Named { spaces, first_token, past, looked } = &mut *named;
        // One of which nothing was heard for long is forgotten, so that names made up by strangers do not pile up. Sooner
        // would be too soon: it remembers ids, and has news that are not yet heard. Now and then: strangers may be many.
        if looked.is_none_or(|looked| now.duration_since(looked) >= FORGET_EVERY) {
            *looked = Some(now);
            spaces.retain(|_, space| {
                let stays = Arc::strong_count(space) > 1 || !space.is_idle(now);
                if !stays {
                    *first_token = space.locks.next_token().max(*first_token);
                    past.merge(&space.locks.tally());
                }
                stays
            });
        }
        let most = self.most.load(Ordering::Relaxed);
        if spaces.len() >= most {
            let message = format!("the server has {most} namespaces, as many as it may: use one of those");
            return Err(Error::new(ErrorKind::Unavailable, message).with_retry_after(FORGET_AFTER / 10));
        }
        let rules = Rules { first_token: *first_token, expires: true, remember: REMEMBER };
        let locks = match &self.shared {
            Some(shared) => Locks::There(shared.clone(), Released::default()),
            None => Locks::Here(MemoryStore::new(self.rt.clone(), rules)),
        };
        let space = Arc::new(Space::new(name, locks, self.clients.clone(), now));
        spaces.insert(name.into(), space.clone());
        Ok(space)
    }

    /// Whether something new may be granted now, for this TTL: not in the grace after an abrupt end, not without tokens,
    /// and not before the TTL is written down if it is longer than all before.
    pub(crate) async fn may_grant(&self, ttl: Duration) -> Result<()> {
        self.may_grant_at_all()?;
        match &self.durable {
            Some(durable) if !durable.knows(ttl) => {
                let durable = durable.clone();
                let written = tokio::task::spawn_blocking(move || durable.will_grant(ttl)).await;
                written.unwrap_or_else(|_| Err(ending()))
            }
            _ => Ok(()),
        }
    }

    /// ... whatever its TTL.
    pub(crate) fn may_grant_at_all(&self) -> Result<()> {
        if let Some(left) = self.grace_left() {
            let message = format!(
                "this server was ended abruptly and waits until all earlier claims are renewed or over: {} s left",
                left.as_secs() + 1
            );
            return Err(Error::new(ErrorKind::Unavailable, message).with_retry_after(left));
        }
        if self.no_tokens.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Storage,
                "no more fencing tokens can be reserved: look at the server's disk",
            ));
        }
        Ok(())
    }

    /// Whether it makes sense to ask this server for a lock now.
    pub(crate) async fn ready(&self) -> Result<()> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(ending());
        }
        self.may_grant_at_all()?;
        match &self.shared {
            Some(shared) => shared.is_there().await,
            None => Ok(()),
        }
    }

    /// What the locks can promise.
    pub(crate) fn promises(&self) -> Capabilities {
        self.shared.as_ref().map_or(Capabilities::ALL, |shared| shared.promises())
    }

    /// Whether a grant of which nothing was heard for its TTL lives on, because its holder renews it at another server.
    pub(crate) async fn lives_on(&self, namespace: &str, name: &Name, fencing_token: u64) -> Result<bool> {
        if self.shared.is_none() {
            return Ok(false);
        }
        let lock = self.get(namespace)?.client(None)?.inspect_one(name).await?;
        let mut holders = lock.iter().flat_map(|lock| &lock.holders);
        Ok(holders.any(|holder| holder.fencing_token == fencing_token))
    }

    /// To be asked before a grant is told, and before anything that it takes to be true later: once this server has written its
    /// claims down, what it does is not part of them, and the next server must be asked.
    pub(crate) fn not_sealed(&self) -> Result<()> {
        if self.sealed.load(Ordering::SeqCst) { Err(ending()) } else { Ok(()) }
    }

    /// How long earlier claims may still be shown, and nothing new is granted.
    pub(crate) fn grace_left(&self) -> Option<Duration> {
        let left = self.grace_ends?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The proof of what was granted, where a later server may want to see it.
    pub(crate) fn proof(&self, space: &Space, kept: &Kept) -> Option<String> {
        self.durable.as_ref().map(|durable| durable.proof(&space.name, kept))
    }

    /// In the grace, takes up what is shown with its proof. A claim with a longer TTL than what was written down was there no more
    /// at the end of the server that gave it.
    pub(crate) fn take_up(&self, space: &Space, proven: &[Proven]) {
        let (Some(durable), Some(_)) = (&self.durable, self.grace_left()) else { return };
        for Proven { kept, proof } in proven {
            let was_there = durable.knows(Duration::from_millis(kept.ttl_ms));
            if was_there && kept.fencing_token.is_some() && durable.is_proof(&space.name, kept, proof) {
                reinstate(space, kept, Duration::ZERO);
            }
        }
    }

    /// The beginning of this server, before anything is granted.
    pub(crate) fn begin(&self) -> Result<()> {
        self.durable.as_ref().map_or(Ok(()), |durable| durable.begin())
    }

    /// Writes the claims down: the end of this server.
    pub(crate) fn write_down(&self) {
        self.sealed.store(true, Ordering::SeqCst);
        let Some(durable) = &self.durable else { return };
        // In the grace some holders have not come yet, and only the next server's grace can wait for them.
        if self.grace_left().is_some() {
            return;
        }
        let named = self.named();
        let kept = |space: &Space| space.locks.here().map(MemoryStore::kept).unwrap_or_default();
        let claims = named.spaces.iter().map(|(name, space)| (name.to_string(), kept(space)));
        let (claims, next) = (claims.collect(), named.next_token());
        // Whoever looks at them has the state of the disk in its hands.
        drop(named);
        if let Err(error) = durable.stopped(&claims, next) {
            tracing::error!(%error, "cannot write the claims down: the next start will be as after a crash");
        }
    }

    /// Of all claims in this server's memory.
    fn longest_ttl(&self) -> Duration {
        let spaces: Vec<_> = self.named().spaces.values().cloned().collect();
        let here = spaces.iter().filter_map(|space| space.locks.here());
        here.map(MemoryStore::longest_ttl).max().unwrap_or_default()
    }

    fn named(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Moment {
        self.rt.now()
    }

    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// The names of those that have clients here.
    pub(crate) fn used(&self) -> BTreeSet<String> {
        let now = Instant::now();
        let all = self.named().spaces.values().cloned().collect::<Vec<_>>();
        all.iter().filter(|space| space.clients_heard_of(now) > 0).map(|space| space.name.clone()).collect()
    }

    /// The names of those that have clients anywhere.
    pub(crate) fn are_elsewhere(&self, names: BTreeSet<String>) {
        *self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Their names, for operators.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let mut names = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).clone();
        names.extend(self.named().spaces.keys().map(|name| name.to_string()));
        names
    }

    /// All that are there now, here or elsewhere.
    pub(crate) fn all(&self) -> Vec<Arc<Space>> {
        let mut all: Vec<_> = self.named().spaces.values().cloned().collect();
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for space in &all {
            elsewhere.remove(&space.name);
        }
        // One that there is no room for here is not shown.
        all.extend(elsewhere.iter().filter_map(|name| self.get(name).ok()));
        all
    }

    /// How many namespaces, locks and clients there are, and what has happened in all that ever were.
    pub(crate) fn counted(&self) -> Counted {
        let (all, past) = {
            let named = self.named();
            (named.spaces.values().cloned().collect::<Vec<_>>(), named.past)
        };
        let now = Instant::now();
        let clients = all.iter().map(|space| space.clients_heard_of(now)).sum();
        let here = || all.iter().filter_map(|space| space.locks.here());
        let add = |(locks, mut tally): (usize, Tally), (more, happened): (usize, Tally)| {
            tally.merge(&happened);
            (locks + more, tally)
        };
        let locks = || here().map(MemoryStore::counted).fold((0, past), add);
        Counted { namespaces: all.len(), clients, locks: self.shared.is_none().then(locks) }
    }

    /// Sends all on who wait.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.notify_waiters();
    }

    /// Completes when the server is about to end.
    pub(crate) async fn stopping(&self) {
        let stop = self.stop.notified();
        // Registered first, so that nothing is missed in between.
        tokio::pin!(stop);
        stop.as_mut().enable();
        if !self.stopping.load(Ordering::SeqCst) {
            stop.await;
        }
    }
}

impl Named {
    fn next_token(&self) -> u64 {
        let tokens = self.spaces.values().map(|space| space.locks.next_token());
        tokens.fold(self.first_token, u64::max)
    }
}

/// Keeps tokens reserved, and the next grace no longer than it need be, for as long as it is polled.
pub(crate) async fn watch_durable(spaces: Arc<Spaces>) {
    let Some(durable) = spaces.durable.clone() else { return };
    for looks in 1_u64.. {
        tokio::time::sleep(LOOK_AT_TOKENS).await;
        let (durable, here) = (durable.clone(), spaces.clone());
        let look = move || {
            if looks.is_multiple_of(LOOK_AT_TTLS) && here.grace_left().is_none() {
                let shorter = durable.no_longer(|| here.longest_ttl());
                shorter.inspect_err(|error| tracing::warn!(%error, "the next grace may be long")).ok();
            }
            let next = here.named().next_token();
            durable.has_tokens(next)
        };
        let has_tokens = tokio::task::spawn_blocking(look).await.unwrap_or(true);
        spaces.no_tokens.store(!has_tokens, Ordering::Relaxed);
    }
}

/// Takes up a claim of an earlier server, whose locks were in its memory as well.
fn reinstate(space: &Space, kept: &Kept, grace: Duration) {
    if let Some(memory) = space.locks.here() {
        memory.reinstate(kept, grace);
    }
}

fn ending() -> Error {
    Error::new(ErrorKind::Unavailable, "the server ends: ask again")
        .with_retry_after(Duration::from_millis(100))
}

impl fmt::Debug for Spaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spaces").finish_non_exhaustive()
    }
}
