//! Locks in Redis or Valkey. The rules run there, in scripts (`scripts/`): each request is one round trip, and each step is
//! whole or not done.
//!
//! - **A lock** is the key that others `SET NX` too, as long as somebody holds it: so it excludes redis-py's `Lock` and its kin, and
//!   is excluded by them. Who waits is kept beside it. An idle lock leaves nothing but its share in the last fencing token.
//! - **A release** hands the lock to the next in line in the same step, and tells only it ([`hub`]). The new holder has two seconds
//!   to say that it knows (R16): that renews its lease, whose term counts from that request (R1). One that has looked half a
//!   second ago or less, and whose connection stands, is let in as one that lives: it is told its whole grant, and holds at once. Its
//!   term counts from that look, for the lock was handed over later; which look that was it is told too, so that no message of before
//!   can be taken for it.
//! - **Time** is Redis's. A holder that is gone loses the lock by its TTL, a waiter its place some seconds after its last
//!   look, so that a Redis that is away for a moment costs nobody a place. Nothing happens in Redis when that time comes: the next
//!   in line looks then. What a clock does that is set, Redis does; see the docs.
//! - **A request comes twice, or its answer is lost**: the claim id says that it is the same (R11). What calls off one that
//!   is under way waits for its answer; where there is none, it is kept out for as long as it may come late (R12). A change of the
//!   mode has a number for that, and is not obeyed after a later one.
//! - **A token** is greater than the last one and than Redis's clock in microseconds, and than those that this client has seen: so
//!   it grows also where Redis has lost what it wrote last, by a fail-over or without its disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use event_listener::EventListener;
use futures_channel::mpsc;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture, Either, join_all},
    stream::{self, BoxStream},
};

use super::{Backend, Capabilities, OnWaiting, in_turn};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Holder, Mode, News, Renewal, Status},
    background,
    error::{Error, ErrorKind, LostReason, Result},
    lease::each_within,
    name::{ClaimId, Name},
    protocol::millis,
    rt::Runtime,
    time::Moment,
    within::within,
};

pub(crate) mod address;
mod connection;
mod hub;
mod keys;
mod link;
mod redlock;
mod reply;
mod scripts;
mod sentinel;
mod trouble;

use address::Address;
use hub::Bell;
use link::{Link, Look};
use redlock::Redlock;
use reply::{Reply, holders, mode_words, waiters};
use scripts::{ACQUIRE, CHANGE, Call, Code, FORCE, INSPECT, LOOK, RELEASE, RENEW};
use trouble::Trouble;

/// For how long a place stays after a look at the most, as `record.lua` has it.
const STAYS: Duration = Duration::from_secs(8);
/// The longest pause of one whose place that is, before it looks again where Redis did not answer: shorter than the time in which a
/// grant has to be taken up.
const AGAIN: Duration = Duration::from_secs(1);
/// For how long requests that were called off are kept out.
const LATE: Duration = Duration::from_secs(20);
/// How many locks are looked at together.
const TOGETHER: usize = 200;

/// Locks in Redis.
#[derive(Debug)]
pub struct RedisBackend {
    link: Arc<Link>,
    /// Nothing, where replicas are not waited for.
    replicas: Option<Replicas>,
}

/// Where it is waited for replicas, so that nothing else has to wait behind that.
#[derive(Debug)]
struct Replicas {
    /// How many of them there have to be.
    wanted: u32,
    grants: Arc<Link>,
    /// In a cluster a primary that is cut off from most of the others stops by itself before it is replaced, and a part that
    /// hangs would be waited for with the claims of all.
    renewals: Option<Arc<Link>>,
}

impl Replicas {
    fn new(address: &Address, rt: &Arc<dyn Runtime>) -> Result<Option<Self>> {
        let wanted = address.min_replicas;
        if wanted == 0 {
            return Ok(None);
        }
        let link = || Link::new(address.clone(), rt.clone());
        let grants = link()?;
        let renewals = (!grants.is_cluster()).then(link).transpose()?;
        Ok(Some(Self { wanted, grants, renewals }))
    }

    fn too_few(&self, have: u32) -> Option<Error> {
        let message = || {
            format!(
                "{have} of the {} replicas that min_replicas wants have the grant or its renewal",
                self.wanted
            )
        };
        (have < self.wanted).then(|| Error::new(ErrorKind::Unavailable, message()))
    }
}

/// Opens the place that an address leads to.
pub(crate) fn open(address: Address, rt: Arc<dyn Runtime>) -> Result<Arc<dyn Backend>> {
    Ok(match address.redlock() {
        Some(hosts) => Arc::new(Redlock::new(&address, hosts, rt)?),
        None => {
            let replicas = Replicas::new(&address, &rt)?;
            Arc::new(RedisBackend { link: Link::new(address, rt)?, replicas })
        }
    })
}

impl RedisBackend {
    fn here(&self, error: Error) -> Error {
        error.with_backend(self.link.url())
    }

    async fn take(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let claim = ask.claim();
        let bell = self.link.hub.bell(claim.id);
        let asking = Asking::new(&self.link, ask);
        let (rings, look) = (bell.listen(), self.link.look());
        let (why, look_in) = match self.link.run_for(claim.id, asking.call(&ACQUIRE, look)).await? {
            Reply::Waiting { why, look_in } => (why, look_in),
            reply => return self.taken(&bell, &claim, reply, look.sent).await,
        };
        let mut told = why.place;
        waiting(why);
        let mut looks = asking.look_again(&bell, rings, look, look_in);
        loop {
            match looks.next().await.unwrap_or_else(|| Err(background::gone()))? {
                (Reply::Waiting { why, .. }, _) => {
                    if told != why.place {
                        told = why.place;
                        waiting(why);
                    }
                }
                (reply, sent) => return self.taken(&bell, &claim, reply, sent).await,
            }
        }
    }

    /// What an answer is that is the last one.
    async fn taken(&self, bell: &Bell, claim: &Claim, reply: Reply, sent: Moment) -> Result<Option<Grant>> {
        match reply {
            Reply::Granted(granted) => match self.too_few_replicas(claim).await? {
                // It is not released: whoever asked asks again by the same id, or gives it back, and a release that comes late
                // would end the next grant.
                Some(error) => Err(error),
                None if self.link.hub.hold(bell, claim, &granted) => Ok(Some(granted.grant(sent))),
                None => Err(gone(&claim.name)),
            },
            Reply::Busy => Ok(None),
            _ => Err(gone(&claim.name)),
        }
    }

    /// That a grant does not count, for too few replicas have it.
    async fn too_few_replicas(&self, claim: &Claim) -> Result<Option<Error>> {
        let Some(replicas) = &self.replicas else { return Ok(None) };
        let renewal = vec![self.renewal(&claim.name, &[claim.id])];
        let (renewed, have) = replicas.grants.replicated(renewal, replicas.wanted).await?;
        // A server that knows nothing of it, for it has been a replica itself, says nothing of it by its own replicas.
        let is_there = matches!(&renewed[..], [renewed] if matches!(renewed[..], [Reply::Granted(_)]));
        Ok(replicas.too_few(if is_there { have } else { 0 }))
    }

    fn renewal(&self, name: &Name, ids: &[ClaimId]) -> Call {
        let hexes: Vec<String> = ids.iter().copied().map(hex).collect();
        self.link.call(&RENEW, name, (&self.link.inbox, self.floor(), "", hexes))
    }

    /// The claims of each lock.
    fn by_name(claims: &[Claim]) -> BTreeMap<&Name, Vec<ClaimId>> {
        let mut names: BTreeMap<&Name, Vec<ClaimId>> = BTreeMap::new();
        for claim in claims {
            names.entry(&claim.name).or_default().push(claim.id);
        }
        names
    }

    async fn end(&self, claims: &[Claim]) -> Result<Vec<News>> {
        let names = Self::by_name(claims).into_iter();
        let ends: Vec<_> = names.map(|(name, ids)| end(&self.link, name, ids, self.floor())).collect();
        let gone: Vec<Vec<ClaimId>> = join_all(ends).await.into_iter().collect::<Result<_>>()?;
        let lost = claims.iter().filter(|claim| gone.iter().flatten().any(|id| *id == claim.id));
        Ok(lost.map(|claim| News::lost(claim, LostReason::ForceReleased)).collect())
    }

    async fn renewed(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let sent = self.link.rt.now();
        let names = Self::by_name(claims);
        let known = claims.iter().filter_map(|claim| Some((claim.id, self.link.hub.token(claim.id)?)));
        let known: BTreeMap<ClaimId, u64> = known.collect();
        let (answers, too_few) = self.ask_to_renew(&names).await;
        if let [Err(error)] = &answers[..] {
            return Err(error.clone());
        }
        let mut each = BTreeMap::new();
        for ((name, ids), answers) in names.into_iter().zip(answers) {
            for (at, id) in ids.into_iter().enumerate() {
                let claim = Claim { name: name.clone(), id };
                let renewal = match &answers {
                    Err(error) => Renewal::Unknown(error.clone()),
                    Ok(answers) => match answers.get(at) {
                        // Redis has lost an upgrade, and may have let in others since.
                        Some(Reply::Granted(granted)) if known.get(&id) > Some(&granted.token) => {
                            drop(end(&self.link, name, vec![id], self.floor()));
                            Renewal::Lost(LostReason::ForceReleased)
                        }
                        Some(Reply::Granted(granted)) => {
                            self.link.hub.hold_on(&claim, granted, known.contains_key(&id));
                            match &too_few {
                                // Where that is made the primary instead, the claim runs out with the last term that it has.
                                Some(error) => Renewal::Unknown(error.clone()),
                                None => Renewal::Renewed(granted.grant(sent)),
                            }
                        }
                        Some(Reply::Gone(now)) => match self.link.hub.let_go(id) {
                            // Before its time: somebody has deleted it, or Redis has lost it.
                            Some(ends) if *now < ends => Renewal::Lost(LostReason::ForceReleased),
                            _ => Renewal::NotHeld,
                        },
                        _ => Renewal::NotHeld,
                    },
                };
                each.insert(id, renewal);
            }
        }
        let not_held = || Renewal::NotHeld;
        Ok(claims.iter().map(|claim| each.get(&claim.id).cloned().unwrap_or_else(not_held)).collect())
    }

    /// What is said of the claims of each lock, and that too few replicas have it, where they do.
    async fn ask_to_renew(
        &self,
        names: &BTreeMap<&Name, Vec<ClaimId>>,
    ) -> (Vec<Result<Vec<Reply>>>, Option<Error>) {
        let limit = |ids: &[ClaimId]| each_within(ids.iter().filter_map(|id| self.link.hub.ttl(*id)));
        let silent = || Trouble::silent().error;
        if let Some(replicas) = &self.replicas
            && let Some(link) = &replicas.renewals
        {
            let renewals = names.iter().map(|(name, ids)| self.renewal(name, ids)).collect();
            let answer = link.replicated(renewals, replicas.wanted);
            let limit = names.values().filter_map(|ids| limit(ids)).min();
            let answer = within(&link.rt, limit, answer).await.unwrap_or_else(|| Err(silent()));
            return match answer {
                Ok((renewed, have)) => (renewed.into_iter().map(Ok).collect(), replicas.too_few(have)),
                Err(error) => (vec![Err(error)], None),
            };
        }
        let asked = names.iter().map(|(name, ids)| {
            let answer = self.link.run::<Vec<Reply>>(self.renewal(name, ids));
            // A part of a cluster that hangs must not hold up the claims of the others.
            let limit = limit(ids);
            async move { within(&self.link.rt, limit, answer).await.unwrap_or_else(|| Err(silent())) }
        });
        (join_all(asked.collect::<Vec<_>>()).await, None)
    }

    async fn changed(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        let bell = self.link.hub.bell(claim.id);
        loop {
            let (rings, look) = (bell.listen(), self.link.look());
            let known = self.link.hub.token(claim.id).is_some();
            let args = (hex(claim.id), mode_words(to).0, &self.link.inbox, self.floor(), look.number);
            match self.link.run(self.link.call(&CHANGE, &claim.name, args)).await? {
                Reply::Granted(granted) => {
                    if to == Mode::Exclusive
                        && let Some(error) = self.too_few_replicas(claim).await?
                    {
                        return Err(error);
                    }
                    self.link.hub.hold_on(claim, &granted, known);
                    return Ok(granted.grant(look.sent));
                }
                Reply::Waiting { look_in, .. } => {
                    sleep(&self.link, rings, look_in).await;
                }
                Reply::Refused(from) => {
                    let message = format!("a claim that is {from} cannot become {to}");
                    return Err(Error::new(ErrorKind::InvalidInput, message).with_lock(&claim.name));
                }
                _ => return Err(gone(&claim.name)),
            }
        }
    }

    async fn seen(&self, prefix: &str) -> Result<Vec<Status>> {
        let keys = self.link.scan(self.link.keys.pattern(prefix)).await?;
        let mut names: Vec<Name> = keys.iter().filter_map(|key| self.link.keys.name_of(key)).collect();
        names.sort();
        // A scan may show a key twice.
        names.dedup();
        let (mut seen, mut due) = (Vec::new(), None);
        for names in names.chunks(TOGETHER) {
            let looks: Vec<_> = names.iter().map(|name| self.seen_one(name)).collect();
            for look in join_all(looks).await {
                if let Some((status, first_end)) = look? {
                    seen.push(status);
                    due = due.into_iter().chain(first_end).min();
                }
            }
        }
        self.link.hub.looked(prefix, due.map(|due| self.link.rt.now().plus(due)));
        Ok(seen)
    }

    /// Who has the lock, if somebody does, and when the first of them may be gone.
    async fn seen_one(&self, name: &Name) -> Result<Option<(Status, Option<Duration>)>> {
        let look = self.link.call(&INSPECT, name, None::<&str>);
        let Some((held, wait, first_end)) = self.link.run::<Option<(String, String, i64)>>(look).await?
        else {
            return Ok(None);
        };
        let status = Status { name: name.clone(), holders: holders(&held)?, waiters: waiters(&wait)? };
        // What ends within this millisecond is seen as gone in the next.
        let first_end = u64::try_from(first_end).ok().map(|millis| Duration::from_millis(millis + 1));
        Ok(Some((status, first_end)))
    }

    async fn freed(&self, name: &Name, token: Option<u64>) -> Result<Vec<Holder>> {
        let token = token.map_or_else(String::new, |token| token.to_string());
        // By a number of its own: if it comes again, because its answer was lost, it must not free whoever has come since.
        let number = format!("{:032x}", self.link.rt.random());
        let call = self.link.call(&FORCE, name, (token, self.floor(), number, millis(LATE)));
        holders(&self.link.run::<String>(call).await?)
    }

    fn floor(&self) -> u64 {
        self.link.hub.floor()
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn url(&self) -> String {
        self.link.url()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let take: BoxFuture<'_, _> = Box::pin(self.take(ask, waiting));
        take.await.map_err(|error| self.here(error))
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.link.rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        self.renewed(claims).await.map_err(|error| self.here(error))
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        self.end(claims).await.map_err(|error| self.here(error))
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        self.changed(claim, to).await.map_err(|error| self.here(error))
    }

    fn detached(&self, claim: &Claim) {
        self.link.hub.let_go(claim.id);
    }

    async fn hear(&self) -> Result<Vec<News>> {
        Ok(self.link.hub.news().await)
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        self.seen(prefix).await.map_err(|error| self.here(error))
    }

    async fn inspect_one(&self, name: &Name) -> Result<Option<Status>> {
        let seen = self.seen_one(name).await.map_err(|error| self.here(error))?;
        Ok(seen.map(|(status, _)| status))
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        let freed = self.freed(name, fencing_token).await.map_err(|error| self.here(error))?;
        for Holder { owner, fencing_token, .. } in &freed {
            tracing::warn!(lock = %name, holder = owner.owner, fencing_token, "taken away by force");
        }
        Ok(freed)
    }

    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        let (hints, due) = self.link.hub.watch(prefix);
        self.link.watch().await.map_err(|error| self.here(error))?;
        let rt = self.link.rt.clone();
        let hints = stream::unfold(hints, move |mut hints| {
            let (due, rt) = (due.clone(), rt.clone());
            async move {
                let due = due.lock().unwrap_or_else(PoisonError::into_inner).take();
                let pause = due.map(|due| due.since(rt.now()));
                let hint = within(&rt, pause, hints.next()).await.unwrap_or(Some(Ok(())))?;
                Some((hint, hints))
            }
        });
        Ok(hints.boxed())
    }
}

/// What is asked for a claim until it is let in.
struct Asking {
    link: Arc<Link>,
    ask: Ask,
    owner: String,
}

impl Asking {
    fn new(link: &Arc<Link>, ask: &Ask) -> Self {
        let owner = serde_json::to_string(&*ask.owner).unwrap_or_else(|_| r#"{"owner":""}"#.to_owned());
        Self { link: link.clone(), ask: ask.clone(), owner }
    }

    fn call(&self, code: &'static Code, look: Look) -> Call {
        let Self { link, ask, owner } = self;
        let entry = match ask.entry {
            Entry::Queue => "queue",
            Entry::Try => "try",
            Entry::Steal => "steal",
        };
        let (asked, times) = ((mode_words(ask.mode), entry), [ask.ttl, ask.keep].map(millis));
        let party = (hex(ask.claim_id), asked, times[0], owner, &link.inbox, times[1]);
        let args = (party, link.hub.floor(), look.number);
        link.call(code, &ask.name, args)
    }

    /// Looks when it is told to and after each pause, for as long as the bell is there; what it is told, and when it asked. It
    /// looks in the background: who is let in need not wake another thread to say that it knows.
    fn look_again(
        self,
        bell: &Bell,
        mut rings: EventListener,
        mut looked: Look,
        mut pause: Duration,
    ) -> mpsc::UnboundedReceiver<Result<(Reply, Moment)>> {
        let (tell, told) = mpsc::unbounded();
        let (rt, rope) = (self.link.rt.clone(), bell.rope());
        let stays = STAYS.min(self.ask.ttl);
        let look = async move {
            let link = &self.link;
            loop {
                let rung = sleep(link, rings, pause).await;
                rings = rope.listen();
                if let Some(granted) = link.let_in(&rope, looked) {
                    // Whoever asked may be gone.
                    let _ = tell.unbounded_send(Ok((Reply::Granted(granted), looked.sent)));
                    return;
                }
                let look = link.look();
                let sent = look.sent;
                // Who waits is to be let in also where memory runs out meanwhile.
                let Some(answer) = link.run_for_waiter(&rope, self.call(&LOOK, look)) else { return };
                let answer = answer.await;
                match &answer {
                    Err(error)
                        if error.kind() == ErrorKind::Unavailable && sent.since(looked.sent) < stays =>
                    {
                        pause = AGAIN.mul_f64(link.rt.jitter());
                        continue;
                    }
                    Ok(Reply::Waiting { look_in, .. }) => (looked, pause) = (look, *look_in),
                    Ok(Reply::Granted(_)) if !rung => link.hear_anew(),
                    _ => {}
                }
                let goes_on = matches!(answer, Ok(Reply::Waiting { .. }));
                if tell.unbounded_send(answer.map(|reply| (reply, sent))).is_err() || !goes_on {
                    return;
                }
            }
        };
        rt.spawn(look.boxed());
        told
    }
}

/// Whether it rang.
async fn sleep(link: &Link, rings: EventListener, pause: Duration) -> bool {
    matches!(future::select(rings, link.rt.sleep(pause)).await, Either::Left(_))
}

/// Ends claims of one lock. What asked for them and is under way is waited for, or kept out. Those that were not there when the
/// request came, if it came once only.
fn end(
    link: &Arc<Link>,
    name: &Name,
    ids: Vec<ClaimId>,
    floor: u64,
) -> BoxFuture<'static, Result<Vec<ClaimId>>> {
    let (here, name) = (link.clone(), name.clone());
    for id in &ids {
        link.hub.ends(*id, link.rt.now());
    }
    link.awake.to_its_end(async move {
        let mut late = Duration::ZERO;
        for id in &ids {
            if here.hub.may_come_late(*id).await {
                late = LATE;
            }
        }
        let hexes: Vec<String> = ids.iter().copied().map(hex).collect();
        let ended = here.run_counted(&here.call(&RELEASE, &name, (millis(late), floor, &hexes))).await;
        let once = matches!(ended, Ok((_, true)));
        ids.iter().for_each(|id| here.hub.has_ended(*id, ended.is_ok(), once, here.rt.now()));
        let (gone, once): (Vec<String>, bool) = ended?;
        let gone = ids.into_iter().zip(&hexes).filter(|(_, hex)| once && gone.contains(hex));
        Ok(gone.map(|(id, _)| id).collect())
    })
}

fn hex(id: ClaimId) -> String {
    format!("{:032x}", id.reveal())
}

fn gone(name: &Name) -> Error {
    let message = "the claim is not there: it has run out, was released, or was called off";
    Error::new(ErrorKind::NotHeld, message).with_lock(name)
}
