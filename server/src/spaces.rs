//! The namespaces of a server, and its clients in them.
//!
//! A client is whoever says so by an id of its own. The server keeps for it only what it takes to tell it news: a view of the
//! locks ([`Backend`]). One of which nothing was heard for a while is forgotten; what it holds runs out by its TTL.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use windlass::{
    Backend, ClaimId, Error, ErrorKind, Result,
    backend::MemoryStore,
    protocol::Proven,
    rt::{Native, Runtime},
    table::{Kept, Rules, Tally},
    time::Moment,
};

use crate::{
    durable::{Durable, Found},
    parked::Leaving,
};

/// How long the ids of claims that are over are remembered: longer than any request can be under way (rule R12).
const REMEMBER: Duration = Duration::from_secs(120);
/// After how long without a request a client is forgotten, and a namespace in which nothing is held.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Who was heard of no longer ago counts as a client: the longest pause between two renewals is a third of the longest TTL,
/// but those are rare.
const HEARD_OF_LATELY: Duration = Duration::from_secs(60);
/// How often it is looked for such a namespace.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// How many clients there may be before the server looks whom it can forget.
const LOOK_AT: usize = 64;
/// How long a waiter's place is kept after a restart.
const WAITERS_COME_BACK: Duration = Duration::from_secs(10);
/// Far less than it takes to use up half of what is reserved.
const LOOK_AT_TOKENS: Duration = Duration::from_secs(1);
/// The longest name of a namespace.
const LONGEST_NAMESPACE: usize = 128;

/// Where a server keeps its locks: in memory, and what it takes to be safe over a restart in a directory.
#[derive(Debug)]
pub struct Store {
    rt: Arc<dyn Runtime>,
    durable: Option<Durable>,
    found: Found,
}

impl Store {
    /// In memory alone: when the server ends, so do the locks, and one that is started again at once may give them to
    /// others while their holders still believe in them. For tests.
    pub fn in_memory() -> Self {
        let rt = Arc::new(Native);
        let first_token = clock(&*rt);
        Self { rt, durable: None, found: Found { first_token, ..Found::default() } }
    }

    /// In memory, with a directory for what outlives the server: after a clean stop everything, after any other end enough that
    /// no lock is given twice. Nothing is written for a single lock.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when another server uses the directory, [`ErrorKind::Storage`] when it cannot be
    /// used.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let rt = Arc::new(Native);
        let (durable, found) = Durable::open(directory, [rt.random(), rt.random()], clock(&*rt))?;
        Ok(Self { rt, durable: Some(durable), found })
    }

    /// How long it will grant nothing new, because the last server in its directory did not end cleanly.
    pub fn grace(&self) -> Option<Duration> {
        self.found.grace
    }
}

/// Tokens grow over restarts as the wall clock does (rule R14).
fn clock(rt: &dyn Runtime) -> u64 {
    u64::try_from(rt.now().wall.as_micros()).unwrap_or(u64::MAX / 2).max(1)
}

/// All namespaces of a server.
pub(crate) struct Spaces {
    rt: Arc<dyn Runtime>,
    durable: Option<Arc<Durable>>,
    /// How many servers there were in its directory, with this one; 0: there is no directory.
    pub(crate) epoch: u64,
    named: Mutex<Named>,
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
    pub(crate) locks: usize,
    pub(crate) clients: usize,
    pub(crate) tally: Tally,
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

/// One namespace.
pub(crate) struct Space {
    locks: MemoryStore,
    pub(crate) name: String,
    clients: Mutex<Clients>,
    pub(crate) leaving: Leaving,
    seen: Mutex<Instant>,
}

#[derive(Default)]
struct Clients {
    known: HashMap<ClaimId, Client>,
    /// At how many to look next whom to forget.
    look_at: usize,
    /// For those who say no id. It hears nothing: news name claims by their ids, which are secrets of whoever asked.
    nobody: Option<Arc<dyn Backend>>,
}

struct Client {
    view: Arc<dyn Backend>,
    seen: Instant,
}

impl Spaces {
    pub(crate) fn new(store: Store) -> Arc<Self> {
        let Store { rt, durable, found } = store;
        let spaces = Self {
            rt,
            epoch: durable.as_ref().map_or(0, Durable::epoch),
            durable: durable.map(Arc::new),
            named: Mutex::new(Named {
                spaces: HashMap::new(),
                first_token: found.first_token,
                past: Tally::default(),
                looked: None,
            }),
            most: AtomicUsize::new(usize::MAX),
            grace_ends: found.grace.map(|grace| Instant::now() + grace),
            no_tokens: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
            sealed: AtomicBool::new(false),
        };
        for (name, claims) in &found.claims {
            match spaces.get(name) {
                Ok(space) => claims.iter().for_each(|kept| {
                    space.locks.reinstate(kept, WAITERS_COME_BACK);
                }),
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
        if name.is_empty() || is_step || name.len() > LONGEST_NAMESPACE || !name.chars().all(letter) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a namespace has 1 to 128 letters, digits and characters of -_.",
            ));
        }
        let now = Instant::now();
        let mut named = self.named();
        if let Some(space) = named.spaces.get(name) {
            *space.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
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
                    past.merge(&space.locks.counted().1);
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
        let space = Arc::new(Space {
            locks: MemoryStore::new(self.rt.clone(), rules),
            name: name.to_owned(),
            clients: Mutex::default(),
            leaving: Leaving::default(),
            seen: Mutex::new(now),
        });
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

    fn may_grant_at_all(&self) -> Result<()> {
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
    pub(crate) fn ready(&self) -> Result<()> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(ending());
        }
        self.may_grant_at_all()
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

    /// In the grace, takes up what is shown with its proof.
    pub(crate) fn take_up(&self, space: &Space, proven: &[Proven]) {
        let (Some(durable), Some(_)) = (&self.durable, self.grace_left()) else { return };
        for Proven { kept, proof } in proven {
            if kept.fencing_token.is_some() && durable.is_proof(&space.name, kept, proof) {
                space.locks.reinstate(kept, Duration::ZERO);
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
        let claims = named.spaces.iter().map(|(name, space)| (name.to_string(), space.locks.kept()));
        let next = named.next_token();
        if let Err(error) = durable.stopped(&claims.collect(), next) {
            tracing::error!(%error, "cannot write the claims down: the next start will be as after a crash");
        }
    }

    fn named(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Moment {
        self.rt.now()
    }

    /// Their names, for operators.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.named().spaces.keys().map(|name| name.to_string()).collect();
        names.sort_unstable();
        names
    }

    /// All that are there now.
    pub(crate) fn all(&self) -> Vec<Arc<Space>> {
        self.named().spaces.values().cloned().collect()
    }

    /// How many namespaces, locks and clients there are, and what has happened in all that ever were.
    pub(crate) fn counted(&self) -> Counted {
        let (all, past) = {
            let named = self.named();
            (named.spaces.values().cloned().collect::<Vec<_>>(), named.past)
        };
        let mut counted = Counted { namespaces: all.len(), tally: past, ..Counted::default() };
        let now = Instant::now();
        for space in &all {
            let (locks, tally) = space.locks.counted();
            counted.locks += locks;
            counted.tally.merge(&tally);
            counted.clients += space.clients_heard_of(now);
        }
        counted
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

/// Keeps tokens reserved, for as long as it is polled.
pub(crate) async fn watch_tokens(spaces: Arc<Spaces>) {
    let Some(durable) = spaces.durable.clone() else { return };
    loop {
        tokio::time::sleep(LOOK_AT_TOKENS).await;
        let (durable, next) = (durable.clone(), spaces.named().next_token());
        let has_tokens = tokio::task::spawn_blocking(move || durable.has_tokens(next)).await.unwrap_or(true);
        spaces.no_tokens.store(!has_tokens, Ordering::Relaxed);
    }
}

fn ending() -> Error {
    Error::new(ErrorKind::Unavailable, "the server ends: ask again")
        .with_retry_after(Duration::from_millis(100))
}

impl Space {
    /// A client's view of the locks.
    pub(crate) fn client(&self, id: Option<ClaimId>) -> Arc<dyn Backend> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = id else {
            return clients.nobody.get_or_insert_with(|| self.locks.stranger(&self.name)).clone();
        };
        let now = Instant::now();
        if let Some(client) = clients.known.get_mut(&id) {
            client.seen = now;
            return client.view.clone();
        }
        if clients.known.len() >= clients.look_at {
            clients.known.retain(|_, client| {
                Arc::strong_count(&client.view) > 1 || now.duration_since(client.seen) < FORGET_AFTER
            });
            clients.look_at = (clients.known.len() * 2).max(LOOK_AT);
        }
        let view = self.locks.client(&self.name);
        clients.known.insert(id, Client { view: view.clone(), seen: now });
        view
    }

    /// Those that have a request under way, or had one lately.
    fn clients_heard_of(&self, now: Instant) -> usize {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = |client: &&Client| {
            Arc::strong_count(&client.view) > 1 || now.duration_since(client.seen) < HEARD_OF_LATELY
        };
        clients.known.values().filter(is_there).count()
    }

    fn is_idle(&self, now: Instant) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        now.duration_since(seen) >= FORGET_AFTER && self.locks.is_empty()
    }
}

impl fmt::Debug for Spaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spaces").finish_non_exhaustive()
    }
}
