//! Locks in a lock server, by its own protocol ([`protocol`](crate::protocol)).
//!
//! - **An acquire** is one request where the lock is free. Otherwise the server answers at once whom one waits for and at which
//!   place, and the next request is held open until the grant, for a minute at a time. The claim id makes asking again safe: the server finds the place in the queue, or
//!   the grant whose answer was lost (R11). A dropped future gives the request up; the server keeps the place for two
//!   seconds, and the `release` that the dropper owes ends it at once.
//! - **A term** counts from when its request was sent, plus the time for which the server says it held the request
//!   before it granted (R1): the grant cannot have begun earlier.
//! - **Renewal** is one parked request for all claims, or as many as fit: the server answers it when they are due, or at
//!   once with news. A claim that was granted since it was parked, or did not fit, is renewed by the keeper in time.
//! - **A server that was ended abruptly** has forgotten its claims and asks for the proofs that came with their grants; it is
//!   shown those of the claims that are still held here, and no others (R9).
//! - **No answer** is [`Unavailable`](ErrorKind::Unavailable), whoever in between failed; what it means for a claim the
//!   lease rules decide. Requests for renewals and releases wait for no other: those that are held open go over connections of
//!   their own, or in one of them where connections are few ([`lanes`]).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use event_listener::Event;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};

use super::{Backend, Capabilities, OnWaiting};
use crate::{
    ask::{Ask, Claim, Grant, Happening, Holder, Mode, News, Owner, Renewal, Status, Term},
    error::{Error, ErrorKind, LostReason, Result},
    json::Json,
    lease::counted_from,
    name::{ClaimId, Name},
    protocol::{self, Acquire, AcquireAll, Acquired, ClaimRef, Proven, Terms, millis},
    rt::Runtime,
    table::Kept,
    time::Moment,
    transport::{Streamed, Transport},
    wire::Question,
};

mod answers;
mod lanes;
#[cfg(test)]
mod races;
mod server;

use answers::{is_hint, refusal, told, with_reason};
use lanes::Lanes;
use server::{RELEASE, Server};

/// How long requests of an acquire are held open, but for the first one.
const WAIT: Duration = Duration::from_secs(60);
/// The longest that a renewal is parked.
const LONGEST_PARK: Duration = Duration::from_secs(60);

/// How many bytes of claims are sent in a question at the most: servers read 256 KiB unless they are told otherwise.
const MOST_BYTES: usize = 200 * 1024;
/// ... and in a release: what is to outlive a page may have 64 KiB.
const MOST_LAST_BYTES: usize = 48 * 1024;

/// Locks in a lock server.
pub struct HttpBackend {
    server: Arc<Server>,
    /// Where connections are few.
    lanes: Option<Lanes>,
    /// What was granted: what parked renewals are about, and what is shown to a server that has forgotten it. Boxed, so that
    /// this tree is the same code as that of the session.
    held: Mutex<BTreeMap<ClaimId, Box<Proven>>>,
    /// Rings when that is no longer nothing.
    begun: Event,
    /// News of it that came along with a renewal.
    unheard: Mutex<Vec<protocol::News>>,
    /// How many changes of a mode were asked for: one that comes late is known by its number.
    changes: AtomicU64,
    /// The server did not know what became of a claim: it is not asked at once again.
    in_doubt: AtomicBool,
}

impl HttpBackend {
    /// The locks of a namespace: `url` is `http(s)://HOST[:PORT][/PREFIX]/NAMESPACE`, without credentials or options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the URL makes no sense.
    pub fn new(url: &str, transport: Arc<dyn Transport>, rt: Arc<dyn Runtime>) -> Result<Self> {
        Ok(Self {
            server: Arc::new(Server::new(url, transport, rt)?),
            lanes: None,
            held: Mutex::default(),
            begun: Event::new(),
            unheard: Mutex::default(),
            changes: AtomicU64::new(0),
            in_doubt: AtomicBool::new(false),
        })
    }

    /// For a transport with few connections, as browsers have: one request is held open for all that is waited for, however much
    /// that is.
    #[must_use]
    pub fn with_few_connections(mut self) -> Self {
        self.lanes = Some(Lanes::new(&self.server));
        self
    }

    /// Asks what may have to wait. Gives when it was sent, too.
    async fn ask(&self, path: &str, question: &Json, wait: Duration) -> Result<(Moment, Json)> {
        if let Some(lanes) = &self.lanes
            && let Some(told) = lanes.ask(path, question, wait).await
        {
            return told;
        }
        let sent = self.server.rt.now();
        Ok((sent, self.server.post(path, question, Some(wait)).await?))
    }

    /// Waits for the grants of a question that the server may hold open, asking again as often as need be. `owner`: to whom,
    /// where the claims are new.
    async fn granted(
        &self,
        path: &str,
        claims: &[Claim],
        owner: Option<&Owner>,
        waiting: OnWaiting<'_>,
        question: &(dyn Fn(Duration) -> Json + Sync),
    ) -> Result<Option<Vec<Grant>>> {
        let mut wait = Duration::ZERO;
        loop {
            let (sent, answer) = self.ask(path, &question(wait), wait).await?;
            match self.server.read(&answer)? {
                Acquired::Granted { grant, .. } if grant.len() != claims.len() => {
                    return Err(self.another_question());
                }
                Acquired::Granted { grant, held_ms } => {
                    let from = counted_from(sent, Duration::from_millis(held_ms), self.server.rt.now());
                    let known = owner.is_none();
                    let each = claims.iter().zip(grant);
                    return Ok(Some(
                        each.map(|(claim, grant)| self.grant(claim, owner, known, grant, from)).collect(),
                    ));
                }
                Acquired::Waiting(why) => waiting(why),
                Acquired::Busy => return Ok(None),
            }
            wait = WAIT;
        }
    }

    /// The error of an answer that does not fit what was asked.
    fn another_question(&self) -> Error {
        Error::new(ErrorKind::Storage, "the server answers another question").with_backend(&self.server.url)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ClaimId, Box<Proven>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unheard(&self) -> MutexGuard<'_, Vec<protocol::News>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what was granted; `owner`: to whom, where it is new.
    ///
    /// `was_known`: whether the claim was held here when its request was sent. If it is not any more, it was released
    /// meanwhile: taken up again, it would be renewed for ever where that release got lost.
    fn grant(
        &self,
        claim: &Claim,
        owner: Option<&Owner>,
        was_known: bool,
        grant: protocol::Grant,
        counted_from: Moment,
    ) -> Grant {
        let lease = grant.ttl_ms.map(|ttl| Term { counted_from, ttl: Duration::from_millis(ttl) });
        let told = Grant { fencing_token: grant.fencing_token, mode: grant.mode, lease };
        let mut held = self.held();
        if was_known && !held.contains_key(&claim.id) {
            return told;
        }
        let first = held.is_empty();
        let kept = held.entry(claim.id).or_insert_with(|| {
            Box::new(Proven {
                kept: Kept {
                    name: claim.name.clone(),
                    claim: claim.id,
                    mode: grant.mode,
                    ttl_ms: grant.ttl_ms.unwrap_or(millis(LONGEST_PARK) * 3),
                    fencing_token: None,
                    owner: owner.cloned().unwrap_or_default(),
                    for_ms: 0,
                },
                proof: String::new(),
            })
        });
        // An answer of before an upgrade may come after it.
        if kept.kept.fencing_token <= Some(grant.fencing_token) {
            kept.kept.mode = grant.mode;
            kept.kept.fencing_token = Some(grant.fencing_token);
            // One that has none is known to the server by what came before.
            if grant.proof.is_some() || kept.proof.is_empty() {
                kept.kept.ttl_ms = grant.ttl_ms.unwrap_or(kept.kept.ttl_ms);
                kept.proof = grant.proof.unwrap_or_default();
            }
        }
        drop(held);
        if first {
            self.begun.notify(usize::MAX);
        }
        told
    }

    /// What shows that a claim was granted, where the server gave it.
    fn proof(&self, claim: &Claim) -> Option<Proven> {
        let held = self.held();
        let proven = held.get(&claim.id).filter(|proven| !proven.proof.is_empty());
        proven.map(|proven| Proven::clone(proven))
    }

    fn forget(&self, claim: ClaimId) {
        self.held().remove(&claim);
    }

    fn renewal(
        &self,
        claim: &Claim,
        was_known: bool,
        renewal: protocol::Renewal,
        counted_from: Moment,
    ) -> Renewal {
        let outcome = match renewal {
            protocol::Renewal::Held(grant) => {
                return Renewal::Renewed(self.grant(claim, None, was_known, grant, counted_from));
            }
            protocol::Renewal::Unknown(problem) => return Renewal::Unknown(problem.into_error()),
            protocol::Renewal::Lost { reason } => Renewal::Lost(reason),
            protocol::Renewal::NotHeld => Renewal::NotHeld,
        };
        self.forget(claim.id);
        outcome
    }

    /// Renews claims, in as many questions as it takes.
    async fn renew_all(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let (mut renewals, mut rest) = (Vec::with_capacity(claims.len()), claims);
        while !rest.is_empty() {
            let (some, others) = rest.split_at(how_many_fit(MOST_BYTES, rest.iter().map(named)));
            let known = {
                let held = self.held();
                some.iter().map(|claim| held.contains_key(&claim.id)).collect()
            };
            match self.renew_some(some, known, None).await {
                Ok((renewed, mut news)) => {
                    let each = some.iter().zip(renewed);
                    renewals.extend(each.map(|(claim, renewal)| with_reason(claim, renewal, &news)));
                    let held = self.held();
                    news.retain(|news| held.contains_key(&news.claim.claim));
                    self.unheard().append(&mut news);
                }
                Err(error) if renewals.is_empty() => return Err(error),
                // What came through before has come through.
                Err(error) => {
                    renewals.extend(rest.iter().map(|_| Renewal::Unknown(error.clone())));
                    break;
                }
            }
            rest = others;
        }
        Ok(renewals)
    }

    /// One renewal of claims that fit into a question; `known` says of each whether it is held here. With `park`, one that
    /// is answered when it is due or when there is news.
    async fn renew_some(
        &self,
        claims: &[Claim],
        known: Vec<bool>,
        park: Option<Duration>,
    ) -> Result<(Vec<Renewal>, Vec<protocol::News>)> {
        let (answer, counted_from) = self.ask_to_renew(claims, Vec::new(), park).await?;
        if !answer.prove {
            return Ok((self.renewals(claims, &known, answer.claims, counted_from), answer.news));
        }
        // Once: what is not held then is lost.
        let (mut renewals, mut rest) = (Vec::with_capacity(claims.len()), claims);
        let mut news = answer.news;
        while !rest.is_empty() {
            let proof = |claim| self.proof(claim).map_or(Json::Null, |proven| proven.json());
            let with_proof = |claim| Json::List(vec![named(claim), proof(claim)]);
            let (some, others) = rest.split_at(how_many_fit(MOST_BYTES, rest.iter().map(with_proof)));
            let proven = some.iter().filter_map(|claim| self.proof(claim)).collect();
            let (mut answer, counted_from) = self.ask_to_renew(some, proven, None).await?;
            renewals.extend(self.renewals(some, &known[renewals.len()..], answer.claims, counted_from));
            news.append(&mut answer.news);
            rest = others;
        }
        Ok((renewals, news))
    }

    /// The answer, and from when the terms in it count.
    async fn ask_to_renew(
        &self,
        claims: &[Claim],
        proven: Vec<Proven>,
        park: Option<Duration>,
    ) -> Result<(protocol::Renewed, Moment)> {
        let question = protocol::Renew {
            client: Some(self.server.client),
            claims: claims.iter().map(ClaimRef::from).collect(),
            park_ms: park.map(millis),
            proven,
        };
        let question = question.json();
        let (sent, answer) = match park {
            Some(park) => self.ask("renew", &question, park).await?,
            None => (self.server.rt.now(), self.server.post("renew", &question, None).await?),
        };
        let answer: protocol::Renewed = self.server.read(&answer)?;
        if answer.claims.len() != claims.len() {
            return Err(self.another_question());
        }
        let held = Duration::from_millis(answer.held_ms);
        Ok((answer, counted_from(sent, held, self.server.rt.now())))
    }

    fn renewals(
        &self,
        claims: &[Claim],
        known: &[bool],
        answers: Vec<protocol::Renewal>,
        counted_from: Moment,
    ) -> Vec<Renewal> {
        let each = claims.iter().zip(known).zip(answers);
        each.map(|((claim, known), renewal)| self.renewal(claim, *known, renewal, counted_from)).collect()
    }
}

impl fmt::Debug for HttpBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBackend").field("url", &self.server.url).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for HttpBackend {
    fn capabilities(&self) -> Capabilities {
        self.server.can()
    }

    fn url(&self) -> String {
        self.server.url.clone()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let claim = ask.claim();
        let question =
            |wait| Acquire { claim: (&claim).into(), terms: Terms::of(ask, self.server.client, wait) }.json();
        let claims = std::slice::from_ref(&claim);
        let granted = self.granted("acquire", claims, Some(&ask.owner), waiting, &question).await?;
        Ok(granted.and_then(|mut grants| grants.pop()))
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        let Some(first) = asks.first() else { return Ok(Some(Vec::new())) };
        let claims: Vec<Claim> = asks.iter().map(Ask::claim).collect();
        let question = |wait| {
            let terms = Terms::of(first, self.server.client, wait);
            AcquireAll { claims: claims.iter().map(ClaimRef::from).collect(), terms }.json()
        };
        self.granted("acquire-all", &claims, Some(&first.owner), waiting, &question).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        self.renew_all(claims).await
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        for claim in claims {
            self.forget(claim.id);
        }
        let (mut rest, mut lost) = (claims, Vec::new());
        while !rest.is_empty() {
            let (some, others) = rest.split_at(how_many_fit(MOST_LAST_BYTES, rest.iter().map(named)));
            let claims = some.iter().map(ClaimRef::from).collect();
            let question = protocol::Release { client: Some(self.server.client), claims };
            let answer = self.server.post(RELEASE, &question.json(), None).await?;
            let released: protocol::Released = self.server.read(&answer)?;
            lost.extend(released.lost.into_iter().map(|lost| News::lost(&lost.claim.into(), lost.reason)));
            rest = others;
        }
        Ok(lost)
    }

    fn detached(&self, claim: &Claim) {
        self.forget(claim.id);
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        let client = Some(self.server.client);
        let number = Some(self.changes.fetch_add(1, Ordering::Relaxed));
        let question = |wait| {
            let wait_ms = Some(millis(wait));
            protocol::Change { client, claim: claim.into(), to, number, wait_ms }.json()
        };
        let claims = std::slice::from_ref(claim);
        let granted = self.granted("change", claims, None, &|_| (), &question).await?;
        granted.and_then(|mut grants| grants.pop()).ok_or_else(|| self.another_question())
    }

    async fn hear(&self) -> Result<Vec<News>> {
        loop {
            let begun = self.begun.listen();
            let unheard = std::mem::take(&mut *self.unheard());
            if !unheard.is_empty() {
                return Ok(unheard.into_iter().map(told).collect());
            }
            let held: Vec<(Claim, Duration)> = {
                let held = self.held();
                let kept = held.values().map(|proven| &proven.kept);
                kept.map(|kept| {
                    let claim = Claim { name: kept.name.clone(), id: kept.claim };
                    (claim, Duration::from_millis(kept.ttl_ms))
                })
                .collect()
            };
            let Some(shortest) = held.iter().map(|(_, ttl)| *ttl).min() else {
                begun.await;
                continue;
            };
            if self.in_doubt.swap(false, Ordering::Relaxed) {
                self.server.rt.sleep(shortest / 6).await;
            }
            let mut claims: Vec<Claim> = held.into_iter().map(|(claim, _)| claim).collect();
            // News of all claims of this client come with it; those that do not fit are renewed by the keeper in time.
            claims.truncate(how_many_fit(MOST_BYTES, claims.iter().map(named)));
            let park = Some((shortest / 3).min(LONGEST_PARK));
            let (renewals, news) = self.renew_some(&claims, vec![true; claims.len()], park).await?;
            let mut news: Vec<News> = news.into_iter().map(told).collect();
            let told_lost = |claim: &Claim| {
                news.iter().any(|news| news.claim == *claim && matches!(news.what, Happening::Lost(_)))
            };
            let mut renewed = Vec::with_capacity(claims.len());
            let mut unknown = None;
            for (claim, renewal) in claims.into_iter().zip(renewals) {
                let what = match renewal {
                    Renewal::Renewed(grant) => Happening::Renewed(grant),
                    // Why was said in the news.
                    _ if told_lost(&claim) => continue,
                    Renewal::Lost(reason) => Happening::Lost(reason),
                    Renewal::NotHeld => Happening::Lost(LostReason::Expired),
                    Renewal::Unknown(error) => {
                        unknown = Some(error);
                        continue;
                    }
                };
                renewed.push(News { claim, what });
            }
            news.append(&mut renewed);
            // The answer came at once, and so would the next.
            self.in_doubt.store(unknown.is_some() && !news.is_empty(), Ordering::Relaxed);
            return unknown.filter(|_| news.is_empty()).map_or(Ok(news), Err);
        }
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        let protocol::Locks { locks } = self.server.read(&self.server.get("locks", prefix).await?)?;
        Ok(locks)
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        let question = protocol::ForceRelease { name: name.clone(), fencing_token };
        let answer = self.server.post("force-release", &question.json(), None).await?;
        let protocol::ForceReleased { taken_from } = self.server.read(&answer)?;
        Ok(taken_from)
    }

    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        let url = self.server.url.clone();
        match self.server.stream("events", prefix).await? {
            Streamed::Refused(response) => Err(refusal(&response).with_backend(&self.server.url)),
            Streamed::Body(body) => {
                let hints = body.filter_map(move |piece| {
                    let hint = match piece {
                        Ok(piece) => is_hint(&piece).then_some(Ok(())),
                        Err(error) => Some(Err(error.with_backend(&url))),
                    };
                    async move { hint }
                });
                let over = Error::new(ErrorKind::Unavailable, "the server ended the stream of events");
                let over = over.with_backend(&self.server.url);
                Ok(hints.chain(stream::once(async move { Err(over) })).boxed())
            }
        }
    }
}

fn named(claim: &Claim) -> Json {
    ClaimRef::from(claim).json()
}

/// How many of these, from the first one on, fit into a question of so many bytes; one at the least.
fn how_many_fit(most_bytes: usize, items: impl Iterator<Item = Json>) -> usize {
    let mut text = String::new();
    let fits = |item: &Json| {
        item.write(&mut text);
        text.push(',');
        text.len() <= most_bytes
    };
    items.take_while(fits).count().max(1)
}

/// For the value of a query.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = fmt::Write::write_fmt(&mut encoded, format_args!("%{byte:02X}"));
        }
        encoded
    })
}
