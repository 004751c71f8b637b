//! The leases of this backend value, and which of its claims hangs on which: one lease for each TTL that was asked for, so that
//! an acquire writes once, a release once, and a renewal renews all claims.
//!
//! **What one lease for all is dangerous for**: a key that is put too late, or whose deletion got lost, does not run out
//! with its own TTL, because the lease is kept alive for the others. So (rule R12):
//!
//! - *A put without an answer* may still be carried out. Its lease is *tainted*: no claim begins on it any more. Whoever asked asks
//!   again by the same id, and finds its key, which then moves to the present lease; or it releases. A release deletes
//!   the key, and if the put can still come, deletes it again until the lease's TTL has passed since ([`Space::sweep`]).
//! - *A deletion without an answer* taints, too, and is repeated in the background until it is confirmed.
//! - A tainted lease is revoked when its last claim has ended or gone over to another lease, as those that hold do with their
//!   next renewal (those that wait stay until they hold). From then on nothing can be put on it: whatever was still under way fails.
//! - *A claim that is no longer renewed*, such as one that was detached and never attached, would live on with the others. So
//!   it is ended here once its own TTL is over, unless it has moved to a lease of somebody else's ([`Space::tend`]).
//!
//! A term counts from when the keep-alive was *sent* (R1). The lease is kept alive by the renewals of the claims that hold
//! and, while one waits, from here. A lease that nobody uses runs out, and the next acquire makes another.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use etcd_client::Client;
use event_listener::Event;
use futures_util::FutureExt;

use super::{
    Space,
    line::Member,
    seats::{Seat, Seats},
    trouble::Trouble,
    wait::Put,
};
use crate::{
    ask::{Claim, Grant, Mode, Term},
    error::{Error, ErrorKind, LostReason, Result},
    lease::{BackOff, Lease as Belief},
    name::{ClaimId, Name},
    time::Moment,
};

/// A lease in etcd.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) id: i64,
    /// As etcd granted it, which may be longer than what was asked for.
    pub(super) ttl: Duration,
    state: Mutex<State>,
    /// Rings when it is over.
    pub(super) end: Event,
}

#[derive(Debug)]
struct State {
    counted_from: Moment,
    over: Option<LostReason>,
    tainted: bool,
    /// How many claims hang on it, or may.
    claims: usize,
}

impl Lease {
    fn new(id: i64, ttl: Duration, counted_from: Moment) -> Arc<Self> {
        let state = State { counted_from, over: None, tainted: false, claims: 0 };
        Arc::new(Self { id, ttl, state: Mutex::new(state), end: Event::new() })
    }

    pub(super) fn term(&self) -> Term {
        Term { counted_from: self.state().counted_from, ttl: self.ttl }
    }

    /// One more hangs on it, or may.
    pub(super) fn begin(&self) {
        self.state().claims += 1;
    }

    /// Whether something may still be put on it that nobody wants.
    pub(super) fn is_tainted(&self) -> bool {
        self.state().tainted
    }

    /// Why it is over, if it is.
    pub(super) fn over(&self) -> Option<LostReason> {
        self.state().over
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a claim.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) name: Name,
    /// Where it is written.
    pub(super) key: Vec<u8>,
    /// Which of this value's own keys that is, if it is one.
    pub(super) seat: Option<Seat>,
    pub(super) mode: Mode,
    pub(super) lease: Arc<Lease>,
    /// The revision at which its key was put; 0: not known to be there.
    pub(super) created: i64,
    /// Whether it holds; since when, or since its last renewal.
    pub(super) held: Option<Moment>,
    /// It is being put, so that it may be there from another revision on.
    pub(super) is_being_put: bool,
    /// The puts that had no answer: of which key, on which lease and when. They count as claims there.
    pub(super) in_doubt: Vec<(Vec<u8>, Arc<Lease>, Moment)>,
    /// Its holder has heard that somebody waits.
    pub(super) told: bool,
}

impl Known {
    /// Whether it is this key that is known, on the lease that is known.
    pub(super) fn hangs_with(&self, member: &Member) -> bool {
        (self.created, self.lease.id) == (member.created, member.lease)
    }

    /// Whether it is known at which revision its key was put.
    pub(super) fn is_put(&self) -> bool {
        self.created != 0 && !self.is_being_put
    }

    pub(super) fn spot(&self, claim: &Claim) -> Spot {
        Spot { claim: claim.clone(), key: self.key.clone() }
    }

    pub(super) fn grant(&self) -> Grant {
        Grant {
            fencing_token: super::line::token(self.created),
            mode: self.mode,
            lease: Some(self.lease.term()),
        }
    }
}

/// A claim, and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) claim: Claim,
    pub(super) key: Vec<u8>,
}

/// The leases and claims of a backend value.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) seats: Seats,
    leases: tokio::sync::Mutex<BTreeMap<u64, Arc<Lease>>>,
    claims: Mutex<BTreeMap<ClaimId, Known>>,
    /// Rings when a claim has begun to be held.
    pub(super) begun: Event,
}

impl Session {
    pub(super) fn new(whose: u128) -> Self {
        Self {
            seats: Seats::new(whose),
            leases: tokio::sync::Mutex::default(),
            claims: Mutex::default(),
            begun: Event::new(),
        }
    }

    pub(super) fn claims(&self) -> MutexGuard<'_, BTreeMap<ClaimId, Known>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self, claim: &Claim) -> Option<Known> {
        self.claims().get(&claim.id).filter(|known| known.name == claim.name).cloned()
    }

    pub(super) fn change<T>(&self, id: ClaimId, change: impl FnOnce(&mut Known) -> T) -> Option<T> {
        self.claims().get_mut(&id).map(change)
    }
}

impl Space {
    /// The lease for claims of this TTL, made or kept alive if need be.
    pub(super) async fn lease(self: &Arc<Self>, ttl: Duration) -> Result<Arc<Lease>, Trouble> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let mut leases = self.session.leases.lock().await;
        if let Some(lease) = leases.get(&seconds).cloned() {
            let belief = Belief::new(lease.term());
            let usable = !lease.state().tainted && lease.over().is_none() && belief.is_held(self.rt.now());
            if usable && !belief.renew_in(self.rt.now()).is_zero() {
                return Ok(lease);
            }
            if usable {
                match self.keep_alive(&lease).await {
                    Ok(()) => return Ok(lease),
                    Err(Trouble::LeaseGone) => {}
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        let sent = self.rt.now();
        let asked = i64::try_from(seconds).unwrap_or(i64::MAX);
        let granted = self
            .link
            .ask(move |mut client: Client| async move { client.lease_grant(asked, None).await })
            .await?;
        let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default());
        let lease = Lease::new(granted.id(), ttl, sent);
        leases.insert(seconds, lease.clone());
        drop(leases);
        self.rt.spawn(tend(Arc::downgrade(self), lease.clone()).boxed());
        Ok(lease)
    }

    /// ... which has all of its term before it. For claims whose holders may believe in terms that another lease gave them, as long
    /// as those: what they hang on must not end before.
    pub(super) async fn fresh_lease(self: &Arc<Self>, ttl: Duration) -> Result<Arc<Lease>, Trouble> {
        let asked = self.rt.now();
        let lease = self.lease(ttl).await?;
        if asked.since(lease.term().counted_from) > Duration::ZERO {
            self.keep_alive(&lease).await?;
        }
        Ok(lease)
    }

    /// Takes a claim that holds from a tainted lease to another one, if one can be had: its place and its token stay.
    ///
    /// # Errors
    /// When nobody knows on which of the two its key is.
    pub(super) async fn go_over(
        self: Arc<Self>,
        claim: Claim,
        mine: Member,
        ttl: Duration,
    ) -> Result<(), Trouble> {
        let fresh = match self.fresh_lease(ttl).await {
            Ok(fresh) => fresh,
            Err(trouble) => {
                tracing::debug!(error = %trouble.into_error(), "a claim stays on a lease that is to be given up");
                return Ok(());
            }
        };
        let spot = Spot { claim, key: mine.key.clone() };
        match self.put(&spot, self.to_lease(&spot.claim, &mine, &fresh), &fresh).await {
            Ok(Put::Fresh(..)) => Ok(()),
            Ok(Put::Not(_)) => {
                let message = "the claim has changed while it was renewed";
                Err(Trouble::Unknown(Error::new(ErrorKind::Unavailable, message)))
            }
            Err(Trouble::Unknown(error)) => Err(Trouble::Unknown(error)),
            Err(_) => Ok(()),
        }
    }

    /// One keep-alive, on a stream of its own: the answer that comes is the answer to this one, and its term counts from
    /// when this one was sent.
    pub(super) async fn keep_alive(self: &Arc<Self>, lease: &Arc<Lease>) -> Result<(), Trouble> {
        if lease.over().is_some() {
            return Err(Trouble::LeaseGone);
        }
        let (sent, id) = (self.rt.now(), lease.id);
        // A member that hangs is left while there is time to ask another one.
        let limit = Belief::new(lease.term()).try_timeout();
        let kept = self
            .link
            .ask_within(limit, move |mut client: Client| async move {
                client.lease_keep_alive(id).await.map(drop)
            })
            .await;
        match &kept {
            Ok(()) => {
                let mut state = lease.state();
                if sent.since(state.counted_from) > Duration::ZERO {
                    state.counted_from = sent;
                }
            }
            Err(Trouble::LeaseGone) => self.over(lease),
            Err(_) => {}
        }
        kept
    }

    /// A claim begins to be held here; `None`: it was released meanwhile.
    pub(super) fn holds(&self, claim: &Claim) -> Option<Grant> {
        let now = self.rt.now();
        let grant = self.session.change(claim.id, |known| {
            known.held = Some(now);
            known.grant()
        });
        self.session.begun.notify(usize::MAX);
        grant
    }

    /// A claim that was not known is to hang on this lease, with this key; `held`: since when it holds. What is known of it.
    pub(super) fn enroll(
        &self,
        claim: &Claim,
        key: impl FnOnce() -> (Vec<u8>, Option<Seat>),
        mode: Mode,
        lease: &Arc<Lease>,
        held: Option<Moment>,
    ) -> Known {
        let mut claims = self.session.claims();
        let known = claims.entry(claim.id).or_insert_with(|| {
            lease.begin();
            let (key, seat) = key();
            Known {
                name: claim.name.clone(),
                key,
                seat,
                mode,
                lease: lease.clone(),
                created: 0,
                held,
                is_being_put: false,
                in_doubt: Vec::new(),
                told: false,
            }
        });
        known.clone()
    }

    /// A claim's key has been put on this lease, whatever it was on before.
    pub(super) fn has_put(self: &Arc<Self>, spot: &Spot, lease: &Arc<Lease>) {
        let replaced = |known: &mut Known| std::mem::replace(&mut known.lease, lease.clone());
        match self.session.change(spot.claim.id, replaced) {
            Some(left) => self.leave(&left),
            // It has ended meanwhile. A release has its deletion come after this, others know of another lease only.
            None => self.sweep(spot.clone(), lease.clone(), None),
        }
    }

    /// A put on this lease has failed.
    pub(super) fn not_put(self: &Arc<Self>, spot: &Spot, lease: &Arc<Lease>, trouble: &Trouble) {
        match trouble {
            Trouble::LeaseGone => self.over(lease),
            Trouble::Unknown(_) => self.doubt(spot, lease),
            Trouble::Refused(_) | Trouble::Busy(_) => {}
        }
        self.leave(lease);
    }

    /// A put on this lease has no answer.
    fn doubt(self: &Arc<Self>, spot: &Spot, lease: &Arc<Lease>) {
        self.taint(lease);
        lease.begin();
        let now = self.rt.now();
        let doubt = (spot.key.clone(), lease.clone(), now);
        let known = self.session.change(spot.claim.id, |known| known.in_doubt.push(doubt));
        if known.is_none() {
            // Released meanwhile: what may still come is nobody's.
            self.sweep(spot.clone(), lease.clone(), Some(now));
        }
    }

    /// A claim is over here; `gone`: its key is certainly not there, but for puts that may still come.
    pub(super) fn end(self: &Arc<Self>, claim: &Claim, known: Known, gone: bool) {
        let spot = known.spot(claim);
        match (gone, known.seat) {
            (false, _) => self.sweep(spot, known.lease, None),
            (true, seat) => {
                self.leave(&known.lease);
                if let Some(seat) = seat.filter(|_| known.in_doubt.is_empty()) {
                    self.session.seats.give_back(&claim.name, seat);
                }
            }
        }
        for (key, lease, when) in known.in_doubt {
            self.sweep(Spot { claim: claim.clone(), key }, lease, Some(when));
        }
    }

    /// etcd no longer knows the lease: all that hangs on it is lost at once.
    pub(super) fn over(&self, lease: &Lease) {
        let belief = Belief::new(lease.term());
        let in_time = belief.is_held(self.rt.now());
        let reason = if in_time { LostReason::SessionEnded } else { LostReason::Expired };
        lease.state().over.get_or_insert(reason);
        lease.end.notify(usize::MAX);
        self.session.begun.notify(usize::MAX);
    }

    /// A write on this lease has no answer.
    pub(super) fn taint(&self, lease: &Lease) {
        lease.state().tainted = true;
    }

    /// A claim no longer hangs on the lease.
    pub(super) fn leave(self: &Arc<Self>, lease: &Arc<Lease>) {
        let last = {
            let mut state = lease.state();
            state.claims -= 1;
            state.claims == 0 && state.tainted && state.over.is_none()
        };
        if last {
            // Once: if that gets lost, it runs out, for nobody keeps it alive.
            let id = lease.id;
            self.over(lease);
            drop(self.link.ask(move |mut client: Client| async move { client.lease_revoke(id).await }));
        }
    }

    /// Deletes the key of a claim from this lease until it is certain that it is gone and stays so; `written`: when a put had
    /// no answer.
    fn sweep(self: &Arc<Self>, spot: Spot, lease: Arc<Lease>, written: Option<Moment>) {
        let space = self.clone();
        let sweep = async move {
            let mut back_off = BackOff::default();
            loop {
                let gone = space.swept(&spot, &lease).await.unwrap_or(false);
                let too_late = written.is_none_or(|when| space.rt.now().since(when) > lease.ttl);
                if gone && too_late || lease.over().is_some() {
                    break;
                }
                space.rt.sleep(back_off.pause(space.rt.jitter(), None)).await;
            }
            space.leave(&lease);
        };
        self.rt.spawn(sweep.boxed());
    }

    /// Deletes it once; whether nothing is left to be deleted. A deletion may be carried out late, and the claim may be taken up
    /// again by then, as who asks for it next writes its key anew: so only what was found there is deleted.
    async fn swept(self: &Arc<Self>, spot: &Spot, lease: &Arc<Lease>) -> Result<bool, Trouble> {
        let found = self.some(std::slice::from_ref(&spot.key)).await?.pop().flatten();
        let there = found.filter(|member| member.lease == lease.id && member.is_of(spot.claim.id));
        let Some(member) = there else { return Ok(true) };
        // After the look: whoever takes it up from now on comes after what was found.
        let wanted = |known: Known| known.key == spot.key && Arc::ptr_eq(&known.lease, lease);
        if self.session.known(&spot.claim).is_some_and(wanted) {
            return Ok(true);
        }
        let unchanged = member.unchanged();
        Ok(self.post.send(self.deletion(&spot.claim.name, member.key, Some(unchanged))).await?.so)
    }

    /// Keeps a lease alive while a claim waits on it, and ends the claims that nobody renews. How long until the next
    /// look; `None`: the lease is no more.
    async fn tend(self: &Arc<Self>, lease: &Arc<Lease>) -> Option<Duration> {
        let now = self.rt.now();
        if lease.over().is_some() {
            return None;
        }
        let (mut overdue, mut waits, mut next) = (Vec::new(), false, lease.ttl / 3);
        for (id, known) in self.session.claims().iter().filter(|(_, known)| Arc::ptr_eq(&known.lease, lease))
        {
            match known.held.map(|since| lease.ttl.saturating_sub(now.since(since))) {
                None => waits = true,
                Some(Duration::ZERO) => overdue.push(Claim { name: known.name.clone(), id: *id }),
                Some(left) => next = next.min(left + Duration::from_millis(1)),
            }
        }
        for claim in overdue {
            if let Some(known) = self.session.claims().remove(&claim.id) {
                self.end(&claim, known, false);
            }
        }
        if waits {
            // Tried again sooner when there is no answer.
            if self.keep_alive(lease).await.is_err() {
                next = next.min(lease.ttl / 6);
            }
        } else if lease.state().claims == 0 && now.since(lease.term().counted_from) > lease.ttl {
            self.over(lease);
            return None;
        }
        Some(next)
    }
}

async fn tend(space: Weak<Space>, lease: Arc<Lease>) {
    loop {
        let Some(there) = space.upgrade() else { return };
        let Some(pause) = there.tend(&lease).await else { return };
        let sleep = there.rt.sleep(pause);
        drop(there);
        sleep.await;
    }
}
