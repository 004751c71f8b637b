//! Locks in lockgate's own server, by its HTTP protocol: for programs that come to where lockgate's Go programs are.
//!
//! What the protocol lacks decides what this backend can promise:
//!
//! - **It polls**, every one to two seconds while it waits; lockgate's protocol has no other way. The lockers of a process
//!   stand in one line for a lock ([`book`]), whose head has the process's place in lockgate's queue. A release in the
//!   same process lets the next one ask at once.
//! - **A lease lives for nine seconds** after the request was sent (R1): the server adds ten to whole seconds of its clock.
//! - **An acquire is not idempotent.** A lost answer leaves a lease that nobody knows of; the claim that asked waits until
//!   its ten seconds are over, and then takes over. So requests are not given up with the future that wanted them: each
//!   runs to its end in a task of its own, and what nobody wants is given back.
//! - **A release is, for an exclusive lease.** All shared holders have one uuid and a count, so a second release would be
//!   another holder's: one that was sent and not answered is never sent again. If it did not arrive, the count stays one
//!   too high for as long as others hold the lock together, and ten seconds more.
//! - **Who takes over an expired shared lease is shared**, whatever it asked for. So each exclusive grant is tried out, by
//!   asking for a shared one, which a truly exclusive record refuses without a change. Where that is granted, both are given
//!   back, which clears the record.
//! - **Two who ask at the same instant** can both be refused and, worse, one can be told of a lease that nobody has: it is
//!   told of the loss at its first renewal, and nobody else gets the lock before its lease is over.
//! - **No fencing tokens, and no way to see** who holds what.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};

use super::{Backend, Capabilities, OnWaiting, in_turn};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Holder, Mode, News, Renewal, Status, Term, Waiting},
    error::{Error, ErrorKind, LostReason, Result},
    name::Name,
    options::unsupported,
    per_process::PerProcess,
    rt::Runtime,
    time::Moment,
    transport::Transport,
};

mod book;
mod space;
mod wire;

use book::{End, Turn};
use space::{Shared, Space};
use wire::{Client, Refused, Uuid};

/// What a lease certainly lasts: its end is a whole second of the server's clock, up to one too early.
const LEASE: Duration = Duration::from_secs(9);
/// The pause between two looks of a waiter is this long, and up to as long again.
const PAUSE: Duration = Duration::from_secs(1);
/// So many renewals and releases are under way at once.
const AT_ONCE: usize = 16;

/// What the lockers of this process know of a server.
static SERVERS: PerProcess<Shared> = PerProcess::new();

/// Locks in a lockgate server.
pub struct LockgateBackend {
    space: Arc<Space>,
    rt: Arc<dyn Runtime>,
    url: String,
}

impl LockgateBackend {
    /// The locks of a server: `url` is `lockgate+http(s)://HOST[:PORT][/PATH]`, without credentials or options. All
    /// backends of one URL in one process stand in the same lines.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the URL makes no sense.
    pub fn new(url: &str, transport: Arc<dyn Transport>, rt: Arc<dyn Runtime>) -> Result<Self> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidInput, message));
        let url = url.trim_end_matches('/');
        let base = url.strip_prefix("lockgate+").unwrap_or(url);
        let host = base.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
        if host.is_empty() {
            return invalid("the host is missing: write lockgate+http://HOST:PORT");
        }
        if host.contains('@') {
            return invalid("credentials do not belong in the URL, and lockgate's server asks for none");
        }
        let shared = SERVERS.find(rt.process(), url, || Shared::new(rt.random()));
        let space = Space::new(Client::new(format!("{base}/"), transport), rt.clone(), shared);
        Ok(Self { space, rt, url: url.to_owned() })
    }

    fn here(&self, error: Error) -> Error {
        error.with_backend(&self.url)
    }

    fn check(&self, ask: &Ask) -> Result<()> {
        let missing = match (ask.mode, ask.entry) {
            (Mode::Permit(_), _) => "permits",
            (Mode::Upgradable, _) => "upgradable claims",
            (_, Entry::Steal) => "steal",
            (Mode::Exclusive | Mode::Shared, Entry::Queue | Entry::Try) => return Ok(()),
        };
        Err(self.here(unsupported(missing)))
    }

    /// Until the next look, or until there is reason for one.
    async fn pause(&self, claim: &Claim) {
        let Some(bell) = self.space.book().listen(claim) else { return };
        future::select(bell, self.rt.sleep(PAUSE + PAUSE.mul_f64(self.rt.jitter()))).await;
    }

    /// The grant of a claim that has it already: as a lease that certainly runs.
    async fn granted_before(&self, claim: &Claim) -> Result<Grant> {
        match self.renew(std::slice::from_ref(claim)).await?.pop() {
            Some(Renewal::Renewed(grant)) => Ok(grant),
            Some(Renewal::Unknown(error)) => Err(error),
            _ => Err(self.here(not_there())),
        }
    }

    async fn end(&self, claim: &Claim) -> Result<Option<News>> {
        loop {
            let end = self.space.book().end(claim, self.rt.now());
            match end {
                End::Done => return Ok(None),
                End::UnderWay(bell) => bell.await,
                End::Release(uuid, mode) => {
                    let lost = self.space.release(claim, uuid, mode).await?;
                    return Ok(lost.map(|reason| News::lost(claim, reason)));
                }
                End::InDoubt => return Err(space::in_doubt()),
            }
        }
    }

    fn renewal(
        &self,
        claim: &Claim,
        mode: Mode,
        sent: Moment,
        said: &Result<Result<(), LostReason>>,
    ) -> Renewal {
        match said {
            Ok(Ok(())) => Renewal::Renewed(grant(mode, sent)),
            Ok(Err(reason)) => {
                self.space.book().over(claim, self.rt.now());
                Renewal::Lost(*reason)
            }
            Err(error) => Renewal::Unknown(self.here(error.clone())),
        }
    }
}

fn grant(mode: Mode, sent: Moment) -> Grant {
    Grant { fencing_token: 0, mode, lease: Some(Term { counted_from: sent, ttl: LEASE }) }
}

fn not_there() -> Error {
    Error::new(ErrorKind::NotHeld, "the claim is not there: it has run out, was released, or was called off")
}

impl fmt::Debug for LockgateBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockgateBackend").field("url", &self.url).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for LockgateBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            shared: true,
            permit: false,
            downgrade: false,
            upgrade: false,
            steal: false,
            force_release: false,
            // Among those who queue there, by whole seconds, and by chance within one.
            fair_between_processes: false,
            hand_on_between_processes: false,
            forgets_names: false,
            fencing_token: false,
            see: false,
            keep_place: false,
        }
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        self.check(ask)?;
        let claim = ask.claim();
        let bell = {
            let mut book = self.space.book();
            // Whoever only tries does not go before those who wait here.
            if ask.entry == Entry::Try && book.is_behind_others(ask) {
                return Ok(None);
            }
            book.enroll(ask)
        };
        let mut told = false;
        let mut tell = || {
            if !std::mem::replace(&mut told, true) {
                waiting(Waiting::default());
            }
        };
        loop {
            let rings = bell.listen();
            let turn = self.space.book().turn(&claim);
            match turn {
                Turn::Held => return self.granted_before(&claim).await.map(Some),
                Turn::Over => return Err(self.here(not_there())),
                Turn::Listen => {
                    tell();
                    rings.await;
                }
                Turn::Ask => match self.space.ask(ask).await.map_err(|error| self.here(error))? {
                    Some(sent) => return Ok(Some(grant(ask.mode, sent))),
                    None if ask.entry == Entry::Try => {
                        self.space.book().over(&claim, self.rt.now());
                        return Ok(None);
                    }
                    None => {
                        tell();
                        self.pause(&claim).await;
                    }
                },
            }
        }
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let leases: Vec<Option<(Uuid, Mode)>> = {
            let book = self.space.book();
            claims.iter().map(|claim| book.lease(claim)).collect()
        };
        // Shared claims have one lease together: one request is enough.
        let mut distinct: BTreeMap<Uuid, &Name> = BTreeMap::new();
        for (claim, lease) in claims.iter().zip(&leases) {
            distinct.extend(lease.iter().map(|(uuid, _)| (uuid.clone(), &claim.name)));
        }
        let asked: Vec<BoxFuture<'_, _>> =
            distinct.into_iter().map(|(uuid, name)| self.space.renew(name, uuid).boxed()).collect();
        let said: BTreeMap<_, _> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let outcome = |(claim, lease): (&Claim, &Option<(Uuid, Mode)>)| {
            let renewed = lease.as_ref().and_then(|(uuid, mode)| Some((said.get(uuid)?, *mode)));
            renewed.map_or(Renewal::NotHeld, |((sent, said), mode)| self.renewal(claim, mode, *sent, said))
        };
        Ok(claims.iter().zip(&leases).map(outcome).collect())
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        let ends: Vec<BoxFuture<'_, _>> = claims.iter().map(|claim| self.end(claim).boxed()).collect();
        let ended: Vec<Result<Option<News>>> = stream::iter(ends).buffer_unordered(AT_ONCE).collect().await;
        let ended = ended.into_iter().collect::<Result<Vec<_>>>().map_err(|error| self.here(error))?;
        Ok(ended.into_iter().flatten().collect())
    }

    async fn change(&self, _: &Claim, to: Mode) -> Result<Grant> {
        Err(self.here(unsupported(&format!("a change to {to}"))))
    }

    /// There is no news in lockgate's protocol: what became of a claim its renewal tells.
    async fn hear(&self) -> Result<Vec<News>> {
        future::pending().await
    }

    async fn inspect(&self, _: &str) -> Result<Vec<Status>> {
        Err(self.here(unsupported("a list of locks")))
    }

    async fn force_release(&self, _: &Name, _: Option<u64>) -> Result<Vec<Holder>> {
        Err(self.here(unsupported("force-release")))
    }

    async fn changes(&self, _: &str) -> Result<BoxStream<'static, Result<()>>> {
        Err(self.here(unsupported("a watch")))
    }
}
