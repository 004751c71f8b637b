//! The one trait that a place for locks implements. See CONTRIBUTING.md for the steps to add one.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{
    future::{self, Either},
    stream::BoxStream,
};
use serde::Serialize;

use crate::{
    ask::{Ask, Claim, Grant, Holder, Mode, News, Renewal, Status, Waiting},
    error::{Error, ErrorKind, Result},
    lease::Lease,
    name::Name,
    rt::Runtime,
    time::Moment,
    within::within,
};

#[cfg(all(feature = "etcd", not(target_family = "wasm")))]
pub(crate) mod etcd;
#[cfg(all(feature = "etcd", not(target_family = "wasm")))]
pub use etcd::EtcdBackend;
#[cfg(all(feature = "file", not(target_family = "wasm")))]
pub(crate) mod file;
#[cfg(all(feature = "file", not(target_family = "wasm")))]
pub use file::{FileBackend, Naming};
#[cfg(feature = "http")]
pub(crate) mod http;
#[cfg(feature = "http")]
pub use http::HttpBackend;
#[cfg(all(feature = "kubernetes", not(target_family = "wasm")))]
pub(crate) mod kubernetes;
#[cfg(all(feature = "kubernetes", not(target_family = "wasm")))]
pub use kubernetes::KubernetesBackend;
#[cfg(feature = "lockgate")]
pub(crate) mod lockgate;
#[cfg(feature = "lockgate")]
pub use lockgate::LockgateBackend;
#[cfg_attr(
    all(feature = "http", target_family = "wasm"),
    allow(dead_code, reason = "see `memory` in connect.rs")
)]
pub(crate) mod memory;
pub use memory::MemoryStore;
#[cfg(all(feature = "redis", not(target_family = "wasm")))]
pub(crate) mod redis;
#[cfg(all(feature = "redis", not(target_family = "wasm")))]
pub use redis::RedisBackend;

/// A place where locks live: memory, files, a server, a store.
///
/// A backend speaks one protocol and keeps no policy. Timeouts, retries, back-off, renewal and what follows a loss
/// are the [`Locker`](crate::Locker)'s. The methods are for implementors: one an operation, no defaults, no sugar.
///
/// Every future may be dropped at any await point. Whoever drops an `acquire`, `acquire_all` or `change` half way owes
/// the backend a `release` (or a `change` back), because the answer may be on its way.
///
/// Of errors, two kinds tell the caller to go on: after [`Unavailable`](crate::ErrorKind::Unavailable) it asks again by
/// the same ids, after a pause; after [`NotHeld`](crate::ErrorKind::NotHeld) from an acquire the claim is over, and it
/// asks with new ids. All others end the acquire.
///
/// The first poll does what can be done without waiting: where the lock is free in this machine's memory or files the
/// future is ready at once, on the caller's thread.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What this backend can promise.
    fn capabilities(&self) -> Capabilities;

    /// The URL without credentials, for messages.
    fn url(&self) -> String;

    /// Takes the lock. With [`Entry::Queue`](crate::ask::Entry) it stands in line until it is granted; `None` only for
    /// [`Entry::Try`](crate::ask::Entry). Calls `waiting` once it stands in line and again when it hears more.
    ///
    /// Idempotent in the claim id: asked again after a lost answer it takes up the same place or gives the same grant.
    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>>;

    /// Takes all of these locks or, with [`Entry::Try`](crate::ask::Entry), none. After an error the caller asks again by the same
    /// ids or releases all of them. The asks come sorted by name, each name once. Backends
    /// that have no such request take them [in turn](in_turn), which cannot deadlock because of the order.
    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>>;

    /// Lets the claims live for their TTL more, in one request: an outcome for each, in order.
    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>>;

    /// After this the claims neither hold their locks nor stand in line for them, nor will they by a request that is
    /// still under way. Idempotent; a claim that nobody knows is no error.
    ///
    /// Returns news of those that had been lost before. For a store that keeps only what is held that is each claim that is not
    /// there: it counts for whoever held the claim and had not released it. What the call may have ended itself, by a request
    /// that was sent twice, is not told.
    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>>;

    /// Changes the mode of a held claim in place: to [`Mode::Shared`] (never waits), from [`Mode::Upgradable`] to
    /// [`Mode::Exclusive`] (waits until the other shared claims are gone), or to [`Mode::Upgradable`] again, which is
    /// also how an upgrade under way is called off.
    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant>;

    /// The claim lives on in the backend, and is nobody's here: this value does not renew it or hear of it any more, unless it is
    /// acquired by its id again. For those that renew or remember more than they are asked to.
    fn detached(&self, _claim: &Claim) {}

    /// Waits for news of any claim that was granted through this backend value: lost, contended, renewed along the
    /// way. It may hold a request open for as long as a renewal can wait, and may stay pending for ever.
    async fn hear(&self) -> Result<Vec<News>>;

    /// Who holds and who stands in line, for the names that begin with `prefix`.
    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>>;

    /// The same of one name; nothing, where nobody holds or waits. For stores that find one name sooner than those that begin with it.
    async fn inspect_one(&self, name: &Name) -> Result<Option<Status>> {
        Ok(self.inspect(name.as_str()).await?.into_iter().find(|status| status.name == *name))
    }

    /// Frees a lock as an operator: all its claims, or those with this fencing token, which shared claims may have in
    /// common. Those who held it are told
    /// [`ForceReleased`](crate::LostReason::ForceReleased). Returns whom it was taken from.
    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>>;

    /// A hint each time that something under the prefix may have changed since the last one; the reader looks again
    /// with `inspect`. The stream watches from the moment the call returns, so nothing is missed in between.
    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>>;
}

/// Told by a backend while a claim stands in line.
pub type OnWaiting<'a> = &'a (dyn Fn(Waiting) + Send + Sync);

/// What a backend can promise. Asking for what it cannot is an
/// [`Unsupported`](crate::ErrorKind::Unsupported) error, before anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// Shared claims.
    pub shared: bool,
    /// Permits (semaphores).
    pub permit: bool,
    /// `downgrade()` without a gap.
    pub downgrade: bool,
    /// Upgradable claims and `upgrade()`.
    pub upgrade: bool,
    /// Taking a lock from its holders.
    pub steal: bool,
    /// Freeing a lock as an operator.
    pub force_release: bool,
    /// The queue is first come, first served among all clients; otherwise only within a process.
    pub fair_between_processes: bool,
    /// A claim can be handed to another process; otherwise only within the process.
    pub hand_on_between_processes: bool,
    /// A name that nobody holds or waits for takes no place at all.
    pub forgets_names: bool,
    /// Every grant carries a fencing token; otherwise it is 0.
    pub fencing_token: bool,
    /// Who holds and who waits can be listed and watched.
    pub see: bool,
    /// A place in the queue can be kept while nobody asks for it, and taken up again by its ticket.
    pub keep_place: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self {
        shared: true,
        permit: true,
        downgrade: true,
        upgrade: true,
        steal: true,
        force_release: true,
        fair_between_processes: true,
        hand_on_between_processes: true,
        forgets_names: true,
        fencing_token: true,
        see: true,
        keep_place: true,
    };

    /// The names of those that are missing, as in `steal, upgrade`: how a server says what its store cannot do.
    pub fn missing(mut self) -> String {
        let missing = self.each().into_iter().filter(|(_, there)| !**there).map(|(name, _)| name);
        missing.collect::<Vec<_>>().join(", ")
    }

    /// All but those that are named so.
    #[cfg(feature = "http")]
    pub(crate) fn all_but(missing: &str) -> Self {
        let mut all = Self::ALL;
        for (name, there) in all.each() {
            *there = missing.split(',').all(|missing| missing.trim() != name);
        }
        all
    }

    fn each(&mut self) -> [(&'static str, &mut bool); 12] {
        [
            ("shared", &mut self.shared),
            ("permit", &mut self.permit),
            ("downgrade", &mut self.downgrade),
            ("upgrade", &mut self.upgrade),
            ("steal", &mut self.steal),
            ("force_release", &mut self.force_release),
            ("fair_between_processes", &mut self.fair_between_processes),
            ("hand_on_between_processes", &mut self.hand_on_between_processes),
            ("forgets_names", &mut self.forgets_names),
            ("fencing_token", &mut self.fencing_token),
            ("see", &mut self.see),
            ("keep_place", &mut self.keep_place),
        ]
    }
}

/// `acquire_all` for backends without a request for several: one after another, in the order given, and all given back
/// when one cannot be had. What it has it renews while it waits for the next.
///
/// # Errors
/// What the backend says. Whoever drops the future owes a release of all the asks.
pub async fn in_turn(
    backend: &dyn Backend,
    rt: &Arc<dyn Runtime>,
    asks: &[Ask],
    waiting: OnWaiting<'_>,
) -> Result<Option<Vec<Grant>>> {
    let (mut taken, mut grants) = (Vec::with_capacity(asks.len()), Vec::with_capacity(asks.len()));
    for ask in asks {
        let mut acquire = backend.acquire(ask, waiting);
        let answer = loop {
            if let Some(answer) = within(rt, renew_in(rt.now(), &grants), &mut acquire).await {
                break answer;
            }
            // A renewal that hangs must not keep the acquire from being polled.
            let renewed = pin!(renew_all(backend, rt, &taken, &mut grants));
            match future::select(&mut acquire, renewed).await {
                Either::Left((answer, _)) => break answer,
                Either::Right((renewed, _)) => renewed?,
            }
        };
        match answer {
            Ok(Some(grant)) => {
                taken.push(ask.claim());
                grants.push(grant);
            }
            Ok(None) => {
                backend.release(&taken).await?;
                return Ok(None);
            }
            // What was taken stays: whoever asked asks again by the same ids, or gives all back. An id that was
            // released can never be asked for again, because the release may still be under way.
            Err(error) => return Err(error),
        }
    }
    Ok(Some(grants))
}

/// How long until the first of these is due for renewal; `None`: they have no leases.
fn renew_in(now: Moment, grants: &[Grant]) -> Option<Duration> {
    grants.iter().filter_map(|grant| grant.lease).map(|term| Lease::new(term).renew_in(now)).min()
}

/// Renews these, or says that one of them is gone, which is the end of taking them in turn.
async fn renew_all(
    backend: &dyn Backend,
    rt: &Arc<dyn Runtime>,
    claims: &[Claim],
    grants: &mut [Grant],
) -> Result<()> {
    let try_timeout =
        grants.iter().filter_map(|grant| grant.lease).map(|term| Lease::new(term).try_timeout()).min();
    let Some(renewals) = within(rt, try_timeout, backend.renew(claims)).await else { return Ok(()) };
    for ((claim, grant), renewal) in claims.iter().zip(grants).zip(renewals?) {
        match renewal {
            Renewal::Renewed(renewed) => *grant = renewed,
            Renewal::Unknown(error) => return Err(error),
            Renewal::Lost(_) | Renewal::NotHeld => {
                let message = "lost while others of the locks that were asked for together were waited for";
                return Err(Error::new(ErrorKind::NotHeld, message).with_lock(&claim.name));
            }
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_and_understood() {
        assert_eq!(Capabilities::ALL.missing(), "");
        assert_eq!(Capabilities::all_but(""), Capabilities::ALL);
        let some = Capabilities { steal: false, upgrade: false, ..Capabilities::ALL };
        assert_eq!(some.missing(), "upgrade, steal");
        for missing in ["upgrade, steal", "steal,upgrade", "upgrade, steal, something new"] {
            assert_eq!(Capabilities::all_but(missing), some, "{missing}");
        }
    }
}
