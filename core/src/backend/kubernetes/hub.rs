//! What is known of all locks of a place: kept up by one watch, which is opened when somebody first waits or listens and lasts as
//! long as anybody in the process uses the place.
//!
//! What is known may be old, never wrong: whoever changes a lock says which version the change is for, and looks anew when it is
//! another. A write of ours is known here before the watch tells of it, and what the watch tells late of older versions is passed
//! over. A watch that breaks is taken up where it was; one that comes too late for that (410) begins with a list.
//!
//! A watch can fall silent without breaking. Nothing polls for that: a holder that renews is heard of all the time, so whoever
//! waits and hears nothing for a TTL takes it for dead, looks, and finds that it is the watch that has died ([`Hub::distrust`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_listener::Event;
use futures_channel::oneshot;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, Either},
};
use serde_json::Value;

use super::{
    address::{Address, Place},
    doc::Doc,
    lease,
    link::{Event as Told, Link},
    shelf::{Seen, Shelf},
    sight::Sight,
    trouble::broke,
};
use crate::{
    error::{Error, Result},
    lease::BackOff,
    name::ClaimId,
    per_process::PerProcess,
    rt::Runtime,
    time::Millis,
    within::within,
};

/// Of so many locks that nobody watches it is kept what was seen.
const MOST_UNWATCHED: usize = 1_000;
/// A watch that lasted for less is not taken up again at once.
const LASTED: Duration = Duration::from_secs(1);
/// How long the first list and watch may take before whoever needs them is told.
const THERE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Hub {
    known: Arc<Known>,
    pub(super) link: Arc<Link>,
    /// Dropped, the watch ends.
    ends: Mutex<Option<oneshot::Sender<()>>>,
}

/// All locks, as far as they were seen.
#[derive(Debug, Default)]
pub(super) struct Known {
    state: Mutex<State>,
    /// Something has changed.
    pub(super) changed: Event,
}

#[derive(Debug, Default)]
struct State {
    locks: BTreeMap<String, (Seen, Sight)>,
    watch: Watch,
    /// How often something has changed that people see.
    changes: u64,
    /// How often the watch was not believed any more.
    distrusted: u64,
}

#[derive(Debug, Default)]
enum Watch {
    #[default]
    None,
    Opening,
    On,
    Broken(Error),
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lock; and whether all is known that there is, so that one that is not known is not there.
    pub(super) fn lock(&self, object: &str) -> (Option<(Seen, Sight)>, bool) {
        let state = self.state();
        (state.locks.get(object).cloned(), matches!(state.watch, Watch::On))
    }

    /// The holders of a lock that are dead, as far as was seen here, at their beats.
    pub(super) fn dead(&self, object: &str, doc: &Doc, now: Millis) -> Vec<(ClaimId, u64)> {
        let state = self.state();
        let sight = state.locks.get(object).map(|(_, sight)| sight);
        sight.map_or_else(Vec::new, |sight| sight.dead(now, doc, 0, ClaimId::from_u128(0)).holders)
    }

    /// The first instant after this one at which a holder of any lock is to be taken for dead.
    pub(super) fn next_end(&self, after: Millis) -> Option<Millis> {
        self.state().locks.values().filter_map(|(seen, sight)| sight.next_end(&seen.doc, after)).min()
    }

    /// Those who wait for a lock and have come so short a time ago that they live.
    pub(super) fn came_lately(&self, object: &str, now: Millis) -> BTreeSet<ClaimId> {
        let state = self.state();
        state.locks.get(object).map_or_else(BTreeSet::new, |(_, sight)| sight.came_lately(now))
    }

    pub(super) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// This was seen just now.
    pub(super) fn see(&self, link: &Link, object: &str, seen: Seen) {
        if seen.is_nothing() {
            return self.forget(object, seen.version);
        }
        let now = link.rt.monotonic();
        let mut state = self.state();
        match state.locks.get_mut(object) {
            Some((known, _)) if known.version >= seen.version => return,
            Some((known, sight)) => {
                let same = known.doc.looks_like(&seen.doc);
                sight.see(now, &seen.doc);
                *known = seen;
                state.changes += u64::from(!same);
            }
            None => {
                if matches!(state.watch, Watch::None) && state.locks.len() >= MOST_UNWATCHED {
                    state.locks.clear();
                }
                let mut sight = Sight::default();
                sight.see(now, &seen.doc);
                state.locks.insert(object.to_owned(), (seen, sight));
                state.changes += 1;
            }
        }
        drop(state);
        self.changed.notify(usize::MAX);
    }

    /// It is gone, at this version or after it.
    pub(super) fn forget(&self, object: &str, version: u64) {
        let mut state = self.state();
        if state.locks.get(object).is_some_and(|(known, _)| known.version <= version) {
            state.locks.remove(object);
            state.changes += 1;
            drop(state);
            self.changed.notify(usize::MAX);
        }
    }

    /// This is all there is.
    pub(super) fn replace(&self, link: &Link, version: u64, all: BTreeMap<String, Seen>) {
        let mut state = self.state();
        let before = state.locks.len();
        // What we wrote meanwhile is newer than the list.
        state.locks.retain(|object, (known, _)| all.contains_key(object) || known.version > version);
        state.changes += u64::from(state.locks.len() != before);
        drop(state);
        for (object, seen) in all {
            self.see(link, &object, seen);
        }
        self.changed.notify(usize::MAX);
    }

    fn set(&self, watch: Watch) {
        self.state().watch = watch;
        self.changed.notify(usize::MAX);
    }
}

impl Hub {
    /// That of the place; all who use it have the same one.
    pub(super) fn of(address: &Address, place: &Place, rt: &Arc<dyn Runtime>) -> Arc<Self> {
        static PLACES: PerProcess<Hub> = PerProcess::new();
        // Whatever the locks begin with.
        let address = Address { prefix: String::new(), ..address.clone() };
        PLACES.find(rt.process(), &format!("{place:?} {address:?}"), || Self {
            known: Arc::default(),
            link: Arc::new(Link::new(address.clone(), place.clone(), rt.clone())),
            ends: Mutex::default(),
        })
    }

    pub(super) fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// Until all that there is is known, and goes on to be; an error while it cannot be.
    pub(super) async fn watch(&self) -> Result<()> {
        self.start();
        let ready = pin!(async {
            loop {
                let changed = self.known.changed.listen();
                match &self.known.state().watch {
                    Watch::On => return Ok(()),
                    Watch::Broken(error) => return Err(error.clone()),
                    Watch::None | Watch::Opening => {}
                }
                changed.await;
            }
        });
        within(&self.link.rt, Some(THERE_WITHIN), ready).await.unwrap_or_else(|| Err(self.link.silent()))
    }

    /// What the watch should have told was found out without it, after this version.
    pub(super) fn distrust(&self) {
        self.known.state().distrusted += 1;
        self.known.changed.notify(usize::MAX);
    }

    fn start(&self) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.is_none() {
            let (end, ended) = oneshot::channel();
            *ends = Some(end);
            self.known.set(Watch::Opening);
            let work = run(self.known.clone(), self.link.clone());
            self.link.rt.spawn(
                async move {
                    future::select(pin!(work), ended).await;
                }
                .boxed(),
            );
        }
    }
}

async fn run(known: Arc<Known>, link: Arc<Link>) {
    let believed = known.state().distrusted;
    let mut watcher = Watcher { known, link, back_off: BackOff::default(), from: None, believed };
    loop {
        let error = watcher.follow().await;
        tracing::debug!(%error, "the watch of locks broke");
        let Watcher { known, link, back_off, .. } = &mut watcher;
        let pause = back_off.pause(link.rt.jitter(), error.retry_after());
        known.set(Watch::Broken(error));
        link.rt.sleep(pause).await;
    }
}

struct Watcher {
    known: Arc<Known>,
    link: Arc<Link>,
    back_off: BackOff,
    /// All up to this version is known.
    from: Option<u64>,
    believed: u64,
}

/// Why a watch is taken up again at once.
enum Ended {
    /// It was cut, or over.
    Cut,
    TooOld,
}

impl Watcher {
    /// Lists where that is needed, and then watches for as long as that goes well.
    async fn follow(&mut self) -> Error {
        let mut listed = false;
        loop {
            let from = match self.from {
                Some(version) => version,
                None => match self.list().await {
                    Ok(version) => {
                        listed = true;
                        version
                    }
                    Err(error) => return error,
                },
            };
            let begun = self.link.rt.monotonic();
            match self.watch(from).await {
                Ok(Ended::TooOld) if !listed => self.from = None,
                // An object may be older than all that the API server remembers.
                Ok(Ended::TooOld) if from > 0 && !self.link.address.shelf.is_listed() => {
                    self.from = Some(0);
                    continue;
                }
                // One that is cut again and again needs a pause.
                Ok(Ended::Cut) if self.link.rt.monotonic().since(begun) > LASTED => {}
                Ok(_) => return broke(self.link.at()),
                Err(error) => return error,
            }
            listed = false;
        }
    }

    async fn list(&mut self) -> Result<u64> {
        let (version, all) = self.link.all().await?;
        self.known.replace(&self.link, version, read_all(&self.link.address.shelf, &all));
        self.from = Some(version);
        Ok(version)
    }

    async fn watch(&mut self, from: u64) -> Result<Ended> {
        let mut events = self.link.watch(from).await?;
        self.known.set(Watch::On);
        self.back_off = BackOff::default();
        loop {
            let changed = self.known.changed.listen();
            let distrusted = self.known.state().distrusted;
            if distrusted != self.believed {
                (self.believed, self.from) = (distrusted, None);
                return Err(self.link.silent());
            }
            let event = match future::select(events.next(), changed).await {
                Either::Left((event, _)) => event,
                Either::Right(_) => continue,
            };
            match event {
                Some(Ok(Told::TooOld)) => return Ok(Ended::TooOld),
                Some(Ok(told)) => self.hear(told),
                // What it has told is known, and the next one goes on from there.
                Some(Err(error)) => {
                    tracing::debug!(%error, "the watch of locks is taken up again");
                    return Ok(Ended::Cut);
                }
                None => return Ok(Ended::Cut),
            }
        }
    }

    fn hear(&mut self, told: Told) {
        let (Self { known, link, .. }, shelf) = (&*self, &self.link.address.shelf);
        let version = |object: &Value| lease::version(&object["metadata"]).ok().or(self.from);
        self.from = match told {
            Told::Is(object) => {
                let version = version(&object);
                let locks = read_all(shelf, std::slice::from_ref(&object));
                match shelf {
                    Shelf::Leases => locks.into_iter().for_each(|(key, seen)| known.see(link, &key, seen)),
                    // All of them are in it.
                    Shelf::Annotations(_) => known.replace(link, version.unwrap_or_default(), locks),
                }
                version
            }
            Told::Gone(object) => {
                let version = version(&object);
                let at = version.unwrap_or_default();
                match shelf {
                    Shelf::Leases => {
                        known.forget(object["metadata"]["name"].as_str().unwrap_or_default(), at);
                    }
                    Shelf::Annotations(_) => known.replace(link, at, BTreeMap::new()),
                }
                version
            }
            Told::UpTo(version) => Some(version),
            Told::TooOld => None,
        };
    }
}

/// The locks in these objects. A damaged one is left out here: whoever asks for it is told.
pub(super) fn read_all(shelf: &Shelf, objects: &[Value]) -> BTreeMap<String, Seen> {
    let locks = objects.iter().flat_map(|object| shelf.read(object));
    let readable = locks.filter_map(|(key, seen)| match seen {
        Ok(seen) => Some((key, seen)),
        Err(error) => {
            tracing::warn!(%error, "a lock is passed over");
            None
        }
    });
    readable.collect()
}
