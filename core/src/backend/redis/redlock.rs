//! Redlock: an exclusive claim over several servers that know nothing of one another. Who has the lock on a majority of them has
//! it, for as long as each of those keeps it by its own clock (<https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/>).
//!
//! - **A round** asks all servers at once. Without a majority, what was had is given back everywhere, also where no answer came,
//!   and after a random pause there is another round: the servers keep no queue, and tell nobody. This process has a line for
//!   each lock, whose head alone asks, and is told when this process lets go.
//! - **The term** counts from when the round began; what it must end early by for clocks that run apart, the lease rules take off.
//! - **Tokens** of servers that know nothing of one another grow each by itself. So a second round makes the greatest token of the
//!   first that of the claim, on a majority: any two majorities have a server in common, and there the next token is greater. That holds as long as
//!   that server keeps what it was told, and is what makes up for the criticism of Redlock, that it has no fencing
//!   (<https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html>).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use event_listener::{Event, EventListener};
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture, Either, join_all},
    stream::{BoxStream, FuturesUnordered},
};

use super::{
    super::{Backend, Capabilities, OnWaiting, in_turn},
    Asking,
    address::Address,
    end, gone, hex,
    link::Link,
    reply::{Granted, Reply},
    scripts::{ACQUIRE, RENEW},
    trouble::Trouble,
};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Holder, Mode, News, Renewal, Status, Term, Waiting},
    error::{Error, LostReason, Result},
    name::{ClaimId, Name},
    options::{DEFAULT_TTL, unsupported},
    per_process::PerProcess,
    rt::Runtime,
};

/// The longest that one server may take in a round, so that one that is down costs little; less where the TTL is short.
const ROUND: Duration = Duration::from_millis(500);
/// Between two rounds: at random, so that those who had each some servers do not meet again.
const PAUSE: Duration = Duration::from_millis(150);

/// Locks on a majority of servers.
#[derive(Debug)]
pub(super) struct Redlock {
    url: String,
    links: Vec<Arc<Link>>,
    rt: Arc<dyn Runtime>,
    /// Of the claims that are held here.
    tokens: Mutex<BTreeMap<ClaimId, u64>>,
    lines: Arc<Lines>,
}

/// Those of a process, at the same servers.
static LINES: PerProcess<Lines> = PerProcess::new();

/// Who of this process waits.
type Lines = Mutex<BTreeMap<Name, Line>>;

/// ... for one lock.
#[derive(Debug, Default)]
struct Line {
    /// First come, first served.
    queue: VecDeque<ClaimId>,
    moves: Arc<Event>,
}

impl Redlock {
    pub(super) fn new(address: &Address, hosts: &[String], rt: Arc<dyn Runtime>) -> Result<Self> {
        let links = hosts.iter().map(|host| Link::new(address.one_of(host), rt.clone()));
        let (url, links) = (address.url(), links.collect::<Result<_>>()?);
        let lines = LINES.find(rt.process(), &format!("{url} {}", address.db), Lines::default);
        Ok(Self { url, links, rt, tokens: Mutex::default(), lines })
    }

    fn majority(&self) -> usize {
        self.links.len() / 2 + 1
    }

    fn here(&self, error: Error) -> Error {
        error.with_backend(&self.url)
    }

    /// What each server answers, until enough have answered the same way, or time is up: most as they should, or so many otherwise
    /// or not at all that most cannot. The others are not waited for: what they were asked goes on.
    async fn each<T: Send + 'static>(
        &self,
        ttl: Duration,
        ask: impl Fn(&Arc<Link>) -> BoxFuture<'static, Result<T>>,
        as_it_should: impl Fn(&T) -> bool,
    ) -> Vec<Result<T>> {
        let mut answers: Vec<Result<T>> = self.links.iter().map(|link| Err(silent(link))).collect();
        let asked = self.links.iter().map(ask).enumerate();
        let mut asked: FuturesUnordered<_> =
            asked.map(|(at, answer)| answer.map(move |answer| (at, answer))).collect();
        let mut time = self.rt.sleep(ROUND.min(ttl / 10)).fuse();
        let spare = self.links.len() - self.majority();
        let (mut fine, mut otherwise, mut failed) = (0, 0, 0);
        while fine < self.majority() && otherwise <= spare && failed <= spare {
            let Either::Left((Some((at, answer)), _)) = future::select(asked.next(), &mut time).await else {
                break;
            };
            match &answer {
                Ok(answer) if as_it_should(answer) => fine += 1,
                Ok(_) => otherwise += 1,
                Err(_) => failed += 1,
            }
            answers[at] = answer;
        }
        answers
    }

    /// One round: a grant; nothing, where others have it; or why there was no majority to ask.
    async fn round(&self, ask: &Ask) -> Result<Option<Grant>> {
        let claim = ask.claim();
        // There is no line to stand in.
        let once = Ask { entry: Entry::Try, ..ask.clone() };
        let answers = self
            .each(
                ask.ttl,
                |link| match link.hub.is_ending(claim.id, self.rt.now()) {
                    // What an earlier round had there is not certainly given back yet, and what this one got would be, too.
                    true => future::ready(Err(silent(link))).boxed(),
                    false => {
                        link.run_for::<Reply>(claim.id, Asking::new(link, &once).call(&ACQUIRE, link.look()))
                    }
                },
                |reply| matches!(reply, Reply::Granted(_)),
            )
            .await;
        let tokens = answers.iter().filter_map(|answer| match answer {
            Ok(Reply::Granted(Granted { token, .. })) => Some(*token),
            _ => None,
        });
        let tokens: Vec<u64> = tokens.collect();
        let greatest = tokens.iter().copied().max().unwrap_or(0);
        if tokens.len() >= self.majority() {
            let (sent, renewed) = self.extend(&claim, ask.ttl, Some(greatest)).await;
            if renewed.iter().filter(|renewal| matches!(renewal, Ok(Some(_)))).count() >= self.majority() {
                let greatest = *self.tokens().entry(claim.id).or_insert(greatest);
                let lease = Some(Term { counted_from: sent, ttl: ask.ttl });
                return Ok(Some(Grant { fencing_token: greatest, mode: ask.mode, lease }));
            }
        }
        self.end(&claim, ask.ttl).await;
        if answers.iter().any(|answer| matches!(answer, Ok(Reply::Over))) {
            return Err(gone(&claim.name));
        }
        let mut errors = answers.into_iter().filter_map(Result::err);
        match errors.next() {
            Some(error) if errors.count() + 1 > self.links.len() - self.majority() => Err(error),
            _ => Ok(None),
        }
    }

    /// Renews the claim, and makes a token its own: what each server that has it says, and when they were asked.
    async fn extend(
        &self,
        claim: &Claim,
        ttl: Duration,
        token: Option<u64>,
    ) -> (crate::time::Moment, Vec<Result<Option<Granted>>>) {
        let sent = self.rt.now();
        let answers = self
            .each(
                ttl,
                |link| {
                    let agreed = token.map_or_else(String::new, |token| token.to_string());
                    let args = (&link.inbox, token.unwrap_or(0), agreed, hex(claim.id));
                    link.run::<Vec<Reply>>(link.call(&RENEW, &claim.name, args))
                },
                |replies| matches!(replies[..], [Reply::Granted(_)]),
            )
            .await;
        let granted = |answer: Vec<Reply>| match answer.into_iter().next() {
            Some(Reply::Granted(granted)) => Some(granted),
            _ => None,
        };
        (sent, answers.into_iter().map(|answer| answer.map(granted)).collect())
    }

    /// Where it was gone already, each server's answer names it.
    async fn end(&self, claim: &Claim, ttl: Duration) -> Vec<Result<Vec<ClaimId>>> {
        self.tokens().remove(&claim.id);
        self.each(ttl, |link| end(link, &claim.name, vec![claim.id], 0), Vec::is_empty).await
    }

    async fn renewed(&self, claim: &Claim) -> Renewal {
        let known = self.tokens().get(&claim.id).copied();
        let (sent, answers) = self.extend(claim, DEFAULT_TTL, known).await;
        let granted: Vec<&Granted> =
            answers.iter().filter_map(|answer| answer.as_ref().ok()?.as_ref()).collect();
        // Of a claim that was granted elsewhere, a majority has the token.
        let agreed = || {
            let count = |token| granted.iter().filter(|granted| granted.token == token).count();
            granted.iter().map(|granted| granted.token).find(|token| count(*token) >= self.majority())
        };
        match (granted.first(), known.or_else(agreed)) {
            (Some(first), Some(token)) if granted.len() >= self.majority() => {
                self.tokens().insert(claim.id, token);
                Renewal::Renewed(Granted { token, ..(*first).clone() }.grant(sent))
            }
            _ => {
                // What most do not have is nobody's, whatever the others would say.
                let not_held = answers.iter().filter(|answer| matches!(answer, Ok(None))).count();
                match answers.iter().find_map(|answer| answer.as_ref().err()) {
                    Some(error) if not_held <= self.links.len() - self.majority() => {
                        Renewal::Unknown(error.clone())
                    }
                    _ => Renewal::NotHeld,
                }
            }
        }
    }

    /// Stands in line, unless it does or holds already.
    fn stand(&self, claim: &Claim) {
        if self.holds(claim) {
            return;
        }
        let mut lines = self.lines();
        let line = lines.entry(claim.name.clone()).or_default();
        if !line.queue.contains(&claim.id) {
            line.queue.push_back(claim.id);
        }
    }

    /// How many are before it, and what rings when that changes, or when this process lets go of the lock.
    fn standing(&self, claim: &Claim) -> Option<(usize, EventListener)> {
        let lines = self.lines();
        let line = lines.get(&claim.name)?;
        let before = line.queue.iter().position(|id| *id == claim.id)?;
        Some((before, line.moves.listen()))
    }

    /// It waits no longer.
    fn leave(&self, claim: &Claim) {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(&claim.name) else { return };
        let Some(place) = line.queue.iter().position(|id| *id == claim.id) else { return };
        line.queue.remove(place);
        line.moves.notify(usize::MAX);
        if line.queue.is_empty() {
            lines.remove(&claim.name);
        }
    }

    /// It holds no longer: the first in line may have it.
    fn let_go(&self, claim: &Claim) {
        if let Some(line) = self.lines().get(&claim.name) {
            line.moves.notify(usize::MAX);
        }
    }

    fn holds(&self, claim: &Claim) -> bool {
        self.tokens().contains_key(&claim.id)
    }

    fn tokens(&self) -> MutexGuard<'_, BTreeMap<ClaimId, u64>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Name, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cannot(&self, what: &str) -> Error {
        self.here(unsupported(what))
    }
}

fn silent(link: &Link) -> Error {
    Trouble::silent().error.with_backend(link.url())
}

#[async_trait]
impl Backend for Redlock {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            shared: false,
            permit: false,
            downgrade: false,
            upgrade: false,
            steal: false,
            force_release: false,
            fair_between_processes: false,
            hand_on_between_processes: true,
            forgets_names: true,
            fencing_token: true,
            see: false,
            keep_place: false,
        }
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        match (ask.mode, ask.entry) {
            (Mode::Exclusive, Entry::Queue | Entry::Try) if ask.keep.is_zero() => {}
            (Mode::Exclusive, Entry::Steal) => return Err(self.cannot("steal")),
            (Mode::Exclusive, _) => return Err(self.cannot("a place in the queue that is kept")),
            _ => return Err(self.cannot("a claim that shares the lock")),
        }
        let claim = ask.claim();
        if ask.entry == Entry::Try {
            if !self.holds(&claim) && self.lines().contains_key(&claim.name) {
                return Ok(None);
            }
            return self.round(ask).await.map_err(|error| self.here(error));
        }
        self.stand(&claim);
        let mut told = None;
        loop {
            let (before, moves) = match self.standing(&claim) {
                Some(standing) => standing,
                None if self.holds(&claim) => (0, Event::new().listen()),
                // It was called off.
                None => return Err(self.here(gone(&claim.name))),
            };
            if before == 0
                && let Some(grant) = self.round(ask).await.map_err(|error| self.here(error))?
            {
                self.leave(&claim);
                return Ok(Some(grant));
            }
            if told.replace(before) != Some(before) {
                waiting(Waiting::default());
            }
            if before > 0 {
                moves.await;
                continue;
            }
            let pause = PAUSE.mul_f64(0.5 + self.rt.jitter());
            future::select(moves, self.rt.sleep(pause)).await;
        }
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        Ok(join_all(claims.iter().map(|claim| self.renewed(claim))).await)
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        claims.iter().for_each(|claim| self.leave(claim));
        // Who waits does so here.
        let held: Vec<bool> = claims.iter().map(|claim| self.holds(claim)).collect();
        let ended = join_all(claims.iter().map(|claim| self.end(claim, ROUND * 10))).await;
        claims.iter().for_each(|claim| self.let_go(claim));
        let mut lost = Vec::new();
        for ((answers, claim), held) in ended.into_iter().zip(claims).zip(held) {
            let gone = answers.iter().filter(|answer| matches!(answer, Ok(gone) if !gone.is_empty())).count();
            // What a majority does not have any more others may have got.
            if held && gone > self.links.len() - self.majority() {
                lost.push(News::lost(claim, LostReason::ForceReleased));
            }
            // Where it could not be taken back, the lock ends by its TTL, and does no harm until then unless many have it.
            let mut errors = answers.into_iter().filter_map(Result::err);
            if let Some(error) = errors.next()
                && errors.count() + 1 > self.links.len() - self.majority()
            {
                return Err(self.here(error));
            }
        }
        Ok(lost)
    }

    async fn change(&self, _claim: &Claim, _to: Mode) -> Result<Grant> {
        Err(self.cannot("a change of the mode"))
    }

    fn detached(&self, claim: &Claim) {
        self.tokens().remove(&claim.id);
    }

    async fn hear(&self) -> Result<Vec<News>> {
        future::pending().await
    }

    async fn inspect(&self, _prefix: &str) -> Result<Vec<Status>> {
        Err(self.cannot("a look at locks"))
    }

    async fn force_release(&self, _name: &Name, _fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        Err(self.cannot("a release by force"))
    }

    async fn changes(&self, _prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        Err(self.cannot("a watch"))
    }
}
