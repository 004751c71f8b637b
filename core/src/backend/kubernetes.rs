//! Locks in a Kubernetes cluster. A lock is a Lease object, made when it is taken and removed when nobody holds it or waits for it
//! ([`lease`]); or it stands in two annotations of an object that somebody has made, beside others ([`annotation`]).
//!
//! **The record.** All of a lock, its holders and its queue, is one text ([`doc`]) and changes by the rules of
//! [`Record`](crate::record::Record). Whoever changes it reads it, makes the next one, and writes that on the condition that it
//! still is what was read; else it begins again ([`desk`]). What is asked of one object meanwhile goes with the same write. An
//! uncontended acquire of a Lease is one request, which makes the object, and its release another, which deletes it.
//!
//! **Repetition.** A claim is known by its id, so a request whose answer was lost is asked again and finds what it did. The object
//! has only a hash of the id ([`names`]): who may read it can neither renew nor release a claim.
//!
//! **Waiting** is a place in the queue of the record and one watch for all locks ([`hub`]). A release names the next holder in the
//! same write, and nobody else is woken to do anything: the next one takes its grant up by a write of its own, from whose sending
//! it counts its lease; if it waits in the same locker, the release does that, too. One that has come a moment ago needs no such
//! write ([`sight`]). So a hand-over is one message of the watch and one request at the most, and while somebody waits nothing is
//! sent.
//!
//! **The dead.** There is no clock that all agree on. A holder changes its *beat* in the record whenever it renews, and whoever
//! waits takes it for dead when the beat has stood still for the holder's TTL by the waiter's own clock ([`sight`]). A claim that
//! is handed the lock and does not take it up soon loses it again, so that dead ones in the queue hold up nobody for long; they
//! have no beat while they wait. Burying is a change like others, for what was read: it comes to nothing when the holder lives.
//!
//! **Fencing tokens** are resource versions, which grow with each change in the cluster. What is granted by a write for version V
//! gets V + 1: the write's own version is no less, and those of earlier grants were at the most V. A grant that comes with the making
//! of the object or the record has the version of the object that the write made, which is greater than all that was ever removed
//! under its name.
//!
//! **Others.** client-go's leader election sees a Lease of ours as held by another, and ours see its leader as an exclusive holder
//! without a token; with lockgate it is the same in annotations. An object that is taken away is a lock that was freed by force.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use event_listener::Event;
use futures_util::{
    StreamExt, TryFutureExt,
    future::{BoxFuture, join_all},
    stream::{self, BoxStream},
};

use super::{Backend, Capabilities, OnWaiting, in_turn};
use crate::{
    ask::{Ask, Claim, Grant, Holder, Mode, News, Renewal, Status, Term},
    background::to_its_end,
    error::{Error, LostReason, Result},
    lease::each_within,
    name::Name,
    options::unsupported,
    rt::Runtime,
    table::Granted,
    time::{Millis, Moment},
    within::within,
};

pub(crate) mod address;
mod annotation;
mod desk;
mod doc;
mod ears;
mod hub;
mod lease;
mod link;
mod login;
mod names;
mod pace;
mod plugin;
mod shelf;
mod sight;
mod trouble;
mod wait;

use address::Address;
use desk::{Desk, Done};
use doc::{Answer, Order};
use hub::Hub;
use link::Link;
use names::seal;
use wait::gone;

/// For how long it is remembered that a claim was released.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Locks in Kubernetes.
pub struct KubernetesBackend {
    space: Arc<Space>,
}

#[derive(Debug)]
struct Space {
    address: Address,
    link: Arc<Link>,
    hub: Arc<Hub>,
    desk: Desk,
    /// What is held through this value.
    held: Mutex<HashMap<Claim, Held>>,
    /// Something is held that was not before.
    begun: Event,
    over: Mutex<Over>,
}

/// Claims that were released of late, by their seals.
#[derive(Debug, Default)]
struct Over {
    claims: HashSet<Claim>,
    /// In the order of their release.
    since: VecDeque<(Moment, Claim)>,
}

impl Over {
    fn remember(&mut self, now: Moment, claim: Claim) {
        while let Some((since, _)) = self.since.front()
            && now.since(*since) > REMEMBERED
        {
            if let Some((_, forgotten)) = self.since.pop_front() {
                self.claims.remove(&forgotten);
            }
        }
        if self.claims.insert(claim.clone()) {
            self.since.push_back((now, claim));
        }
    }
}

#[derive(Debug)]
struct Held {
    since: Moment,
    ttl: Duration,
    /// That somebody waits was told.
    told: bool,
}

impl Space {
    fn held(&self) -> MutexGuard<'_, HashMap<Claim, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By what a lock is known here.
    fn key(&self, name: &Name) -> String {
        self.address.shelf.key(&self.address.prefix, name)
    }

    /// The claim holds by a request that was sent then.
    ///
    /// # Errors
    /// It was released meanwhile.
    fn hold(&self, claim: &Claim, granted: Granted, sent: Moment) -> Result<Grant> {
        // Whatever a release finds here it has to undo: so first this, then the question.
        let mut ttl = granted.ttl.unwrap_or_default();
        if granted.mode == Mode::Shared {
            // One that was alone before may have a longer one, and speaks as often as a reader from now on.
            ttl = ttl.min(self.address.shelf.longest_shared());
        }
        let known = self.held().get_mut(claim).map(|held| held.ttl = ttl).is_some();
        if !known {
            self.held().insert(claim.clone(), Held { since: sent, ttl, told: false });
            self.begun.notify(usize::MAX);
        }
        if self.over().claims.contains(&sealed(claim)) {
            self.held().remove(claim);
            return Err(gone());
        }
        let lease = Some(Term { counted_from: sent, ttl });
        Ok(Grant { fencing_token: granted.fencing_token, mode: granted.mode, lease })
    }

    fn is_over(&self, order: &Order) -> bool {
        matches!(order, Order::Acquire(ask) if self.over().claims.contains(&ask.claim()))
    }

    async fn renew(self: &Arc<Self>, claim: &Claim) -> Renewal {
        match self.order(&claim.name, Order::Renew(seal(claim.id))).await {
            Ok(Done { answer: Answer::Granted(granted), sent }) => match self.hold(claim, granted, sent) {
                Ok(grant) => Renewal::Renewed(grant),
                Err(_) => Renewal::NotHeld,
            },
            Ok(Done { answer: Answer::Gone(why), .. }) => match self.held().remove(claim) {
                Some(_) => Renewal::Lost(why.unwrap_or(LostReason::ForceReleased)),
                None => Renewal::NotHeld,
            },
            Ok(_) => Renewal::NotHeld,
            Err(error) => Renewal::Unknown(error),
        }
    }

    async fn release(self: &Arc<Self>, claims: &[Claim]) -> Result<Vec<News>> {
        let now = self.link.rt.now();
        let each = claims.iter().map(|claim| {
            self.over().remember(now, sealed(claim));
            self.held().remove(claim);
            let order = self.order(&claim.name, Order::Release(seal(claim.id)));
            order.map_ok(move |done| match done.answer {
                Answer::Gone(why) => Some(News::lost(claim, why.unwrap_or(LostReason::ForceReleased))),
                _ => None,
            })
        });
        let each: Vec<_> = each.collect();
        let lost: Vec<Option<News>> = join_all(each).await.into_iter().collect::<Result<_>>()?;
        Ok(lost.into_iter().flatten().collect())
    }
}

fn sealed(claim: &Claim) -> Claim {
    Claim { name: claim.name.clone(), id: seal(claim.id) }
}

impl KubernetesBackend {
    pub(crate) fn new(address: Address, rt: &Arc<dyn Runtime>) -> Result<Self> {
        // What is wrong with it is said now.
        let login = address.cluster.login().map_err(|error| error.with_backend(address.to_string()))?;
        let hub = Hub::of(&address, &address.place(&login), rt);
        let space = Space {
            address,
            link: hub.link.clone(),
            hub,
            desk: Desk::default(),
            held: Mutex::default(),
            begun: Event::new(),
            over: Mutex::default(),
        };
        Ok(Self { space: Arc::new(space) })
    }

    fn here(&self, error: Error) -> Error {
        error.with_backend(self.url())
    }
}

impl fmt::Debug for KubernetesBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesBackend").field("url", &self.url()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for KubernetesBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities { keep_place: false, ..Capabilities::ALL }
    }

    fn url(&self) -> String {
        self.space.address.to_string()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        if !ask.keep.is_zero() {
            return Err(self.here(unsupported("a place in the queue that is kept")));
        }
        let acquire: BoxFuture<'_, _> = Box::pin(self.space.acquire(ask, waiting));
        acquire.await.map_err(|error| self.here(error))
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.space.link.rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let space = &self.space;
        let limit = {
            let held = space.held();
            each_within(claims.iter().filter_map(|claim| held.get(claim)).map(|held| held.ttl))
        };
        let renewals = claims.iter().map(async |claim| {
            let silent = || Renewal::Unknown(space.link.silent());
            within(&space.link.rt, limit, pin!(space.renew(claim))).await.unwrap_or_else(silent)
        });
        let renewals = join_all(renewals).await;
        let here = |renewal| match renewal {
            Renewal::Unknown(error) => Renewal::Unknown(self.here(error)),
            known => known,
        };
        Ok(renewals.into_iter().map(here).collect())
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        self.space.release(claims).await.map_err(|error| self.here(error))
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        let change: BoxFuture<'_, _> = Box::pin(self.space.change(claim, to));
        change.await.map_err(|error| self.here(error).with_lock(&claim.name))
    }

    async fn hear(&self) -> Result<Vec<News>> {
        self.space.hear().await.map_err(|error| self.here(error))
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        let space = self.space.clone();
        let looked = to_its_end(&*self.space.link.rt, async move { space.link.all().await }).await;
        let (version, all) = looked.map_err(|error| self.here(error))?;
        let Space { address, link, hub, .. } = &*self.space;
        let all = hub::read_all(&address.shelf, &all);
        hub.known().replace(link, version, all.clone());
        let wall = link.rt.now().wall.as_millis();
        let now = Millis(u64::try_from(wall).unwrap_or(u64::MAX));
        let ours = all.into_iter().filter_map(|(key, mut seen)| {
            let name = seen.name.filter(|name| name.as_str().starts_with(prefix))?;
            // Nobody buries the dead of a lock that nobody wants.
            let dead = hub.known().dead(&key, &seen.doc, link.rt.monotonic());
            seen.doc.holders.retain(|entry| !dead.contains(&(entry.id, entry.beat)));
            let record = seen.doc.record();
            let status = Status { name, holders: record.view_holders(now), waiters: record.view_queue(now) };
            (seen.prefix == address.prefix && !seen.doc.is_idle()).then_some(status)
        });
        let mut all: Vec<Status> = ours.collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        let done = self.space.order(name, Order::Force(fencing_token)).await;
        let Answer::Taken(taken) = done.map_err(|error| self.here(error).with_lock(name))?.answer else {
            return Ok(Vec::new());
        };
        for holder in &taken {
            let (owner, token) = (&holder.owner.owner, holder.fencing_token);
            tracing::warn!(lock = %name, holder = owner, fencing_token = token, "taken away by force");
        }
        Ok(taken)
    }

    async fn changes(&self, _prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        self.space.hub.watch().await.map_err(|error| self.here(error))?;
        let (space, url) = (self.space.clone(), self.url());
        let begin = (space.hub.known().changes(), space.link.rt.monotonic());
        let hints = stream::unfold((space, begin, false), move |(space, (seen, told), ended)| {
            let url = url.clone();
            async move {
                if ended {
                    return None;
                }
                loop {
                    let known = space.hub.known();
                    let changed = known.changed.listen();
                    if let Err(error) = space.hub.watch().await {
                        return Some((Err(error.with_backend(url)), (space, (seen, told), true)));
                    }
                    let (changes, now) = (known.changes(), space.link.rt.monotonic());
                    // Nobody says of a holder that it is gone.
                    let gone = known.next_end(told);
                    if changes != seen || gone.is_some_and(|gone| gone <= now) {
                        return Some((Ok(()), (space, (changes, now), false)));
                    }
                    within(&space.link.rt, gone.map(|gone| gone.since(now)), changed).await;
                }
            }
        });
        Ok(hints.boxed())
    }
}
