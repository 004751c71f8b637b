//! One namespace of a server, and its clients.
//!
//! A client is whoever says so by an id of its own. The server keeps for it a view of the locks ([`Backend`]), by which it
//! is told news. One of which nothing was heard for a while is forgotten; what it holds runs out by its TTL. Ids cost nothing to
//! make up, so when there are too many, those that ask for nothing just now go sooner: a view takes over what they hold if they
//! come again.
//!
//! In a **shared store** a view is also what keeps claims alive: it is a session there, which lives as long as its client asks
//! this server to renew, and ends by the store's own TTL when the client is dead. So nobody's claims live by the
//! renewals of another: who says no id has a view for each claim ([`EachItsOwn`]). What a client holds is not known by the
//! server that does not know the client: a view takes over what it is asked to renew, or to go on waiting for. That is all it
//! takes for a client to come from another server, or from one that was killed.
//!
//! - **A claim for which nobody speaks any more** is released after the grace where the locks are in memory. In a shared store
//!   it may be spoken for at another server, and a release would take it away there. So its view is given up instead:
//!   what the client renews from then on, a new view takes over, and what is left in the old one ends by the TTL.
//! - **A request still uses a view that was given up**: it keeps alive what is there until its wait is over, a minute at the most.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use windlass::{
    Backend, ClaimId, Error, ErrorKind, Result,
    ask::{Claim, News},
    backend::MemoryStore,
    table::Tally,
};

use crate::{
    parked::{self, Waiters},
    store::Shared,
};

mod changes;
mod each;
mod released;

use changes::Changes;
use each::EachItsOwn;
pub(crate) use released::Released;

/// After how long without a request a client is forgotten, and a namespace in which nothing is held.
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Who was heard of no longer ago counts as a client: the longest pause between two renewals is a third of the longest TTL,
/// but those are rare.
const HEARD_OF_LATELY: Duration = Duration::from_secs(60);
/// How many clients there may be before the server looks whom it can forget.
const LOOK_AT: usize = 64;
/// How many are remembered between their requests, or half as many more.
const MOST: usize = 100_000;
/// ... where each may have a connection of its own to the store.
const MOST_THERE: usize = 5_000;
/// So many times as many are remembered in all namespaces together; with more, each namespace has room for a few.
const IN_ALL: usize = 4;
const FEW: usize = 8;

/// One namespace.
pub(crate) struct Space {
    pub(crate) locks: Locks,
    pub(crate) name: String,
    clients: Mutex<Clients>,
    /// How many clients are remembered in all namespaces, without those of single claims.
    all_clients: Arc<AtomicUsize>,
    pub(crate) waiters: Waiters,
    pub(crate) changes: Changes,
    seen: Mutex<Instant>,
}

/// Where its locks are.
pub(crate) enum Locks {
    Here(MemoryStore),
    /// With what was released there of late.
    There(Arc<Shared>, Released),
}

#[derive(Default)]
struct Clients {
    known: HashMap<ClaimId, Client>,
    /// At how many to look next whom to forget.
    look_at: usize,
    /// For those who say no id, and for what is nobody's. It hears nothing: news name claims by their ids, which are secrets of
    /// whoever asked.
    nobody: Option<Arc<dyn Backend>>,
}

impl Clients {
    /// Forgets those of which nothing was heard for a while and, of more than there may be between their requests, the half of
    /// which nothing was heard for longest. To be dropped when others may go on.
    #[must_use]
    fn forget(&mut self, now: Instant, most: usize) -> Vec<Client> {
        let old = |client: &Client| !client.asks() && now.duration_since(client.seen) >= FORGET_AFTER;
        let mut forgotten: Vec<Client> =
            self.known.extract_if(|_, client| old(client)).map(|(_, client)| client).collect();
        let mut idle: Vec<Instant> =
            self.known.values().filter(|client| client.is_idle()).map(|client| client.seen).collect();
        if idle.len() >= most {
            let half = idle.len() / 2;
            let before = *idle.select_nth_unstable(half).1;
            let gone = self.known.extract_if(|_, client| client.is_idle() && client.seen <= before);
            forgotten.extend(gone.map(|(_, client)| client));
        }
        // What a look costs is shared by those that come until the next one.
        let stay = self.known.len();
        self.look_at = (2 * stay).max(LOOK_AT).min(most.max(stay + stay.max(most) / 2));
        forgotten
    }
}

struct Client {
    view: Arc<dyn Backend>,
    seen: Instant,
    /// The number of its last request for several things together, once there was one.
    together: Option<watch::Sender<u64>>,
    /// `None`: it is that of a claim, which ends with the claim: of those there are no more than the limits allow.
    counted: Option<Counted>,
}

/// A client that is counted.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    /// Whether it has a request under way.
    fn asks(&self) -> bool {
        Arc::strong_count(&self.view) > 1
    }

    fn is_idle(&self) -> bool {
        self.counted.is_some() && !self.asks()
    }
}

impl Space {
    pub(crate) fn new(name: &str, locks: Locks, all_clients: Arc<AtomicUsize>, now: Instant) -> Self {
        Self {
            locks,
            name: name.to_owned(),
            clients: Mutex::default(),
            all_clients,
            waiters: Waiters::default(),
            changes: Changes::default(),
            seen: Mutex::new(now),
        }
    }

    /// A client's view of the locks.
    pub(crate) fn client(self: &Arc<Self>, id: Option<ClaimId>) -> Result<Arc<dyn Backend>> {
        match (id, &self.locks) {
            (Some(id), _) => self.view(id),
            (None, Locks::Here(_)) => self.common(),
            (None, Locks::There(..)) => Ok(Arc::new(EachItsOwn::new(self.clone(), self.common()?))),
        }
    }

    /// A client asks for several things together; completes when it does so another time.
    pub(crate) fn later(&self, id: ClaimId) -> Result<impl Future<Output = ()> + use<>> {
        self.view(id)?;
        let mut clients = self.clients();
        let client = clients.known.get_mut(&id).map(|client| &mut client.together);
        // One that was given up in this moment has no other request.
        let last = client.unwrap_or(&mut None).get_or_insert_with(|| watch::Sender::new(0)).clone();
        drop(clients);
        let (mut latest, mut mine) = (last.subscribe(), 0);
        last.send_modify(|number| {
            *number += 1;
            mine = *number;
        });
        Ok(async move {
            // While `last` is here, it cannot fail.
            let _ = latest.wait_for(|number| *number > mine).await;
            drop(last);
        })
    }

    /// The view for what is no client's.
    fn common(&self) -> Result<Arc<dyn Backend>> {
        let mut clients = self.clients();
        if let Some(view) = &clients.nobody {
            return Ok(view.clone());
        }
        let view = match &self.locks {
            Locks::Here(memory) => memory.stranger(&self.name),
            Locks::There(shared, _) => shared.open(&self.name)?,
        };
        clients.nobody = Some(view.clone());
        Ok(view)
    }

    /// That of a client.
    fn view(&self, id: ClaimId) -> Result<Arc<dyn Backend>> {
        self.view_of(id, false)
    }

    /// ... or of a claim as if it were one.
    fn view_of(&self, id: ClaimId, is_a_claims: bool) -> Result<Arc<dyn Backend>> {
        let mut clients = self.clients();
        let now = Instant::now();
        if let Some(client) = clients.known.get_mut(&id) {
            client.seen = now;
            return Ok(client.view.clone());
        }
        let mut forgotten = Vec::new();
        if clients.known.len() >= clients.look_at {
            let most = self.locks.most_clients();
            let too_many = self.all_clients.load(Ordering::Relaxed) >= IN_ALL * most;
            forgotten = clients.forget(now, if too_many { FEW } else { most });
        }
        let view = match &self.locks {
            Locks::Here(memory) => memory.client(&self.name),
            Locks::There(shared, _) => shared.open(&self.name)?,
        };
        let counted = (!is_a_claims).then(|| Counted::new(&self.all_clients));
        clients.known.insert(id, Client { view: view.clone(), seen: now, together: None, counted });
        drop(clients);
        drop(forgotten);
        Ok(view)
    }

    /// The view of a claim, if it has one of its own, which is no longer known then.
    fn no_more(&self, id: ClaimId) -> Option<Arc<dyn Backend>> {
        self.clients().known.remove(&id).map(|client| client.view)
    }

    /// Takes locks, unless their claims are released before the grant or were before they were asked for.
    pub(crate) async fn take<T>(
        &self,
        view: &dyn Backend,
        claims: &[Claim],
        acquire: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // Memory knows by itself what it has released.
        let Locks::There(_, released) = &self.locks else { return acquire.await };
        let mut asked = released.ask(claims)?;
        let taken = tokio::select! {
            biased;
            over = asked.called_off() => Err(over),
            taken = acquire => taken,
        };
        // Before it is no longer asked for: so a release knows of whatever is given back here.
        let released = released.none_of(claims);
        drop(asked);
        if let Err(over) = released {
            // The release may have come to another view.
            parked::give_back(view, claims).await;
            return Err(over);
        }
        taken
    }

    /// Ends claims, whatever is still asked for them; also when nobody waits for it. News of those that had been lost before.
    pub(crate) async fn release(&self, view: Arc<dyn Backend>, claims: &[Claim]) -> Result<Vec<News>> {
        let Locks::There(_, released) = &self.locks else { return view.release(claims).await };
        let (called_off, claims) = (released.add(claims), claims.to_vec());
        let release = tokio::spawn(async move {
            let others = called_off.await;
            let mut lost = view.release(&claims).await?;
            lost.retain(|news| !others.contains(&news.claim.id));
            Ok(lost)
        });
        release.await.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Unavailable, format!("the release came to no end: {error}")))
        })
    }

    /// Whether one of these was released in a shared store, so that nobody will speak for them again.
    pub(crate) fn were_released(&self, claims: &[Claim]) -> bool {
        matches!(&self.locks, Locks::There(_, released) if released.none_of(claims).is_err())
    }

    /// Nobody has spoken for these claims of a view for the grace.
    pub(crate) async fn leave(&self, view: &Arc<dyn Backend>, gone: &[Claim]) {
        match &self.locks {
            Locks::Here(_) => parked::give_back(view.as_ref(), gone).await,
            Locks::There(..) => {
                let mut clients = self.clients();
                for claim in gone {
                    clients.known.remove(&claim.id);
                }
                clients.known.retain(|_, client| !Arc::ptr_eq(&client.view, view));
            }
        }
    }

    /// How long it takes at the most until the locks have answered what needs no waiting.
    pub(crate) fn answers_within(&self) -> Duration {
        match &self.locks {
            Locks::Here(_) => Duration::ZERO,
            Locks::There(..) => parked::ANSWERS_WITHIN,
        }
    }

    /// Those that have a request under way, or had one lately.
    pub(crate) fn clients_heard_of(&self, now: Instant) -> usize {
        let clients = self.clients();
        let is_there = |client: &&Client| client.asks() || now.duration_since(client.seen) < HEARD_OF_LATELY;
        clients.known.values().filter(is_there).count()
    }

    /// It is asked for.
    pub(crate) fn was_seen(&self, now: Instant) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether nothing is lost when it is forgotten.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        now.duration_since(seen) >= FORGET_AFTER && self.locks.here().is_none_or(MemoryStore::is_empty)
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locks {
    /// Those in this server's own memory.
    pub(crate) fn here(&self) -> Option<&MemoryStore> {
        match self {
            Self::Here(memory) => Some(memory),
            Self::There(..) => None,
        }
    }

    fn most_clients(&self) -> usize {
        match self {
            Self::Here(_) => MOST,
            Self::There(..) => MOST_THERE,
        }
    }

    /// No token that is given here later is smaller; what a shared store gives is its own affair.
    pub(crate) fn next_token(&self) -> u64 {
        self.here().map_or(0, MemoryStore::next_token)
    }

    /// What has happened here.
    pub(crate) fn tally(&self) -> Tally {
        self.here().map(|memory| memory.counted().1).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use windlass::{rt::Native, table::Rules};

    use super::*;
    use crate::{spaces::Spaces, store::Store};

    #[tokio::test]
    async fn made_up_clients_are_forgotten_before_those_that_ask() {
        let space = Spaces::new(Store::in_memory()).get("a").unwrap();
        let view = |n: usize| space.client(Some(ClaimId::from_u128(n as u128))).unwrap();
        let asks = view(0);
        for n in 1..3 * MOST {
            view(n);
            assert!(n % 1000 > 0 || space.clients().known.len() <= MOST + MOST / 2);
        }
        assert!(Arc::ptr_eq(&view(0), &asks), "it has a request under way");
        // Of those that were heard of lately none is forgotten.
        assert!(space.clients().known.contains_key(&ClaimId::from_u128(3 * MOST as u128 - 1)));
    }

    /// Whoever makes up clients makes up namespaces, too.
    #[tokio::test]
    async fn with_many_in_all_each_namespace_has_room_for_few() {
        let spaces = Spaces::new(Store::in_memory());
        let view = |space: &Arc<Space>, n: usize| space.client(Some(ClaimId::from_u128(n as u128))).unwrap();
        let known = |space: &Space| space.clients().known.len();
        let full: Vec<_> = (0..IN_ALL).map(|n| spaces.get(&format!("full-{n}")).unwrap()).collect();
        full.iter().for_each(|space| (0..MOST).for_each(|n| drop(view(space, n))));
        let next = spaces.get("next").unwrap();
        for n in 0..10 * FEW {
            view(&next, n);
            assert!(known(&next) <= 2 * FEW);
        }
        full.iter().for_each(|space| space.clients().known.clear());
        (0..10 * FEW).for_each(|n| drop(view(&next, n)));
        assert!(known(&next) > 5 * FEW, "there is room again");
    }

    #[test]
    fn as_many_as_ask_are_remembered_and_those_of_claims() {
        let mut clients = Clients::default();
        let rules = Rules { first_token: 1, expires: true, remember: Duration::ZERO };
        let here = MemoryStore::new(Arc::new(Native), rules);
        let now = Instant::now();
        let mut asking = Vec::new();
        for n in 0..40 {
            let view = here.client("a");
            asking.push(view.clone());
            let counted = (n >= 5).then(|| Counted::new(&Arc::default()));
            clients.known.insert(ClaimId::from_u128(n), Client { view, seen: now, together: None, counted });
        }
        assert!(clients.forget(now, 20).is_empty());
        assert!(clients.look_at > 40, "not before others come");
        asking.drain(..20);
        assert!(clients.forget(now, 20).is_empty(), "15 are no more than there may be, and 5 are of claims");
        asking.clear();
        assert_eq!(clients.forget(now, 20).len(), 35);
        assert_eq!(clients.forget(now + FORGET_AFTER, 20).len(), 5);
    }
}
