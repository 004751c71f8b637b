//! A lock server in virtual time, with the real lock table in it.
//!
//! It holds requests open: an acquire that has to wait is answered after a while with "still waiting" and asked again;
//! news are a request that is answered when there are any.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_channel::{mpsc, oneshot};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
};
use windlass::{
    ClaimId, Holder, LostReason, Mode, Name, Status, Waiting,
    ask::{Ask, Claim, Happening, News},
    rt::Runtime,
    table::{Changed, Effect, Granted, Origin, Outcome, Rules, Table, What},
    time::Millis,
};

use crate::sim::{Host, World};

/// For how long the server holds a request open.
pub const ROUND: Duration = Duration::from_secs(3);
/// For how long a waiter may be away between two rounds, unless it is to keep its place for longer.
const GRACE: Duration = Duration::from_secs(2);
/// Longer than a request can be under way.
const REMEMBER: Duration = Duration::from_secs(120);

/// The server.
pub struct Server {
    pub host: Arc<Host>,
    state: Mutex<ServerState>,
    bell: mpsc::UnboundedSender<()>,
    /// What it does wrong on purpose.
    pub bugs: Bugs,
}

/// Faults of a server that the suite must catch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bugs {
    /// Fencing tokens begin anew for each grant.
    pub token_reset: bool,
}

struct ServerState {
    table: Table,
    /// Each is told the grant and when it was made.
    parked: HashMap<ClaimId, Vec<oneshot::Sender<(Granted, Millis)>>>,
    inboxes: BTreeMap<Origin, Inbox>,
    watchers: Vec<mpsc::UnboundedSender<()>>,
    why_lost: HashMap<ClaimId, LostReason>,
    clients: u64,
}

#[derive(Default)]
struct Inbox {
    news: Vec<(Claim, What)>,
    ear: Option<oneshot::Sender<()>>,
}

/// The first line of an answer that takes its time: for whom one waits.
pub type Early = mpsc::UnboundedSender<Waiting>;

/// What a client asks.
#[derive(Clone, Debug)]
pub enum Request {
    Acquire(Ask),
    Renew(Vec<Claim>),
    Release(Vec<Claim>),
    Change(Claim, Mode),
    Hear,
    Inspect(String),
    ForceRelease(Name, Option<u64>),
}

/// What the server answers.
#[derive(Debug)]
pub enum Reply {
    /// By the network, of a request that did not come here.
    NotSent,
    Granted {
        granted: Granted,
        parked: Duration,
    },
    StillWaiting(Waiting),
    Busy,
    Over,
    Renewed(Vec<Result<Granted, Option<LostReason>>>),
    Released {
        lost: Vec<News>,
        missing: Vec<News>,
    },
    Refused(Mode),
    News(Vec<(Claim, What)>),
    Statuses(Vec<Status>),
    Taken(Vec<Holder>),
}

impl Server {
    pub fn start(world: &Arc<World>) -> Arc<Self> {
        let (bell, mut rings) = mpsc::unbounded();
        let rules = Rules { first_token: 1, expires: true, remember: REMEMBER };
        let state = ServerState {
            table: Table::new(rules),
            parked: HashMap::new(),
            inboxes: BTreeMap::new(),
            watchers: Vec::new(),
            why_lost: HashMap::new(),
            clients: 0,
        };
        let host = world.host();
        let server =
            Arc::new(Self { host: host.clone(), state: Mutex::new(state), bell, bugs: Bugs::default() });
        let expiring = Arc::downgrade(&server);
        host.clone().spawn(
            async move {
                loop {
                    let Some(server) = expiring.upgrade() else { return };
                    let wait = server.expire();
                    drop(server);
                    if let Either::Left((None, _)) = select(rings.next(), host.sleep(wait)).await {
                        return;
                    }
                }
            }
            .boxed(),
        );
        server
    }

    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap()
    }

    /// Ends what is over; how long until there is more to end.
    fn expire(&self) -> Duration {
        let now = self.host.monotonic();
        let mut effects = Vec::new();
        self.state().table.expire(now, &mut effects);
        self.tell(effects);
        self.state().table.next_deadline().map_or(Duration::from_secs(3600), |at| at.since(now))
    }

    /// Whether nothing at all is left: no holder, no waiter, no parked request.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.table.is_empty() && state.parked.is_empty()
    }

    /// Who holds and who waits, as the server knows it.
    pub fn status(&self) -> Vec<Status> {
        self.state().table.status(self.host.monotonic(), "")
    }

    /// The name of a new client.
    pub fn new_origin(&self) -> Origin {
        let mut state = self.state();
        state.clients += 1;
        Origin(state.clients)
    }

    /// Takes back news that nobody was there to receive.
    pub fn not_heard(&self, origin: Origin, news: Vec<(Claim, What)>) {
        let mut state = self.state();
        let inbox = state.inboxes.entry(origin).or_default();
        for (claim, what) in news {
            inbox.push(claim, what);
        }
    }

    /// Those to whom a change of any lock is hinted.
    pub fn watch(&self) -> mpsc::UnboundedReceiver<()> {
        let (tell, hints) = mpsc::unbounded();
        self.state().watchers.push(tell);
        hints
    }

    /// After each step: who has to hear of it, and whether there is now more to end, or sooner.
    fn follow_up(&self, effects: Vec<Effect>) {
        self.tell(effects);
        let _ = self.bell.unbounded_send(());
    }

    fn tell(&self, effects: Vec<Effect>) {
        let now = self.host.monotonic();
        let mut state = self.state();
        if !effects.is_empty() {
            state.watchers.retain(|watcher| watcher.unbounded_send(()).is_ok());
        }
        for Effect { claim, origin, what } in effects {
            match what {
                What::Granted(granted) => {
                    for parked in state.parked.remove(&claim.id).unwrap_or_default() {
                        let _ = parked.send((granted, now));
                    }
                    if granted.contended {
                        state.inboxes.entry(origin).or_default().push(claim, What::Contended);
                    }
                }
                What::Left => drop(state.parked.remove(&claim.id)),
                What::Lost(reason) => {
                    state.why_lost.insert(claim.id, reason);
                    state.inboxes.entry(origin).or_default().push(claim, what);
                }
                What::Contended => state.inboxes.entry(origin).or_default().push(claim, what),
            }
        }
    }

    fn changed(&self) {
        self.state().watchers.retain(|watcher| watcher.unbounded_send(()).is_ok());
    }

    pub async fn handle(self: Arc<Self>, origin: Origin, request: Request, early: Early) -> Reply {
        let now = self.host.monotonic();
        let mut effects = Vec::new();
        match request {
            Request::Acquire(ask) => {
                let outcome = self.state().table.acquire(now, &ask, origin, &mut effects);
                let claim = ask.claim();
                // Whoever is parked by an earlier request of this claim hears of it there.
                self.follow_up(effects);
                self.changed();
                match outcome {
                    Outcome::Granted(granted) => {
                        if granted.contended {
                            self.state().inboxes.entry(origin).or_default().push(claim, What::Contended);
                        }
                        Reply::Granted { granted: self.spoil(granted), parked: Duration::ZERO }
                    }
                    Outcome::Queued { .. } => self.park(claim, ask.keep, &early).await,
                    Outcome::Busy => Reply::Busy,
                    Outcome::Over => Reply::Over,
                }
            }
            Request::Renew(claims) => {
                let mut state = self.state();
                let ServerState { table, why_lost, .. } = &mut *state;
                let renewed = claims.iter().map(|claim| {
                    let granted = table.renew(now, claim, origin);
                    granted.ok_or_else(|| why_lost.get(&claim.id).copied())
                });
                let reply = Reply::Renewed(renewed.collect());
                drop(state);
                let _ = self.bell.unbounded_send(());
                reply
            }
            Request::Release(claims) => {
                let (mut lost, mut missing) = (Vec::new(), Vec::new());
                for claim in &claims {
                    let mut state = self.state();
                    let told = |why| News { claim: claim.clone(), what: Happening::Lost(why) };
                    lost.extend(state.why_lost.get(&claim.id).copied().map(told));
                    let held = state.table.release(now, claim, &mut effects);
                    missing.extend((!held).then(|| told(LostReason::ForceReleased)));
                    state.parked.remove(&claim.id);
                }
                self.follow_up(effects);
                self.changed();
                Reply::Released { lost, missing }
            }
            Request::Change(claim, to) => {
                let changed = self.state().table.change(now, &claim, to, &mut effects);
                self.follow_up(effects);
                self.changed();
                match changed {
                    Changed::Done(granted) => Reply::Granted { granted, parked: Duration::ZERO },
                    Changed::Waiting => self.park(claim, GRACE, &early).await,
                    Changed::NotHeld => Reply::Over,
                    Changed::Refused { from } => Reply::Refused(from),
                }
            }
            Request::Hear => self.hear(origin).await,
            Request::Inspect(prefix) => Reply::Statuses(self.state().table.status(now, &prefix)),
            Request::ForceRelease(name, token) => {
                let taken = self.state().table.force_release(now, &name, token, &mut effects);
                self.follow_up(effects);
                self.changed();
                Reply::Taken(taken)
            }
        }
    }

    fn spoil(&self, granted: Granted) -> Granted {
        if self.bugs.token_reset { Granted { fencing_token: 1, ..granted } } else { granted }
    }

    /// Holds a request open until the claim is granted or the round is over.
    async fn park(self: &Arc<Self>, claim: Claim, keep: Duration, early: &Early) -> Reply {
        let waiting = self.state().table.waiting(self.host.monotonic(), &claim);
        let _ = early.unbounded_send(waiting);
        let (tell, granted) = oneshot::channel();
        self.state().parked.entry(claim.id).or_default().push(tell);
        let since = self.host.monotonic();
        match select(granted, self.host.sleep(ROUND)).await {
            Either::Left((Ok((granted, granted_at)), _)) => {
                // Not until now: this machine may have stood still since.
                let parked = granted_at.since(since);
                Reply::Granted { granted: self.spoil(granted), parked }
            }
            Either::Left((Err(_), _)) => Reply::Over,
            Either::Right(((), granted)) => {
                drop(granted);
                let now = self.host.monotonic();
                let mut state = self.state();
                let others = state.parked.get_mut(&claim.id);
                let alone = others.is_none_or(|others| {
                    others.retain(|parked| !parked.is_canceled());
                    others.is_empty()
                });
                if alone {
                    state.parked.remove(&claim.id);
                    state.table.waiter_gone(now, &claim, keep.max(GRACE));
                }
                let waiting = state.table.waiting(now, &claim);
                drop(state);
                let _ = self.bell.unbounded_send(());
                Reply::StillWaiting(waiting)
            }
        }
    }

    async fn hear(&self, origin: Origin) -> Reply {
        let arrival = {
            let mut state = self.state();
            let inbox = state.inboxes.entry(origin).or_default();
            if inbox.news.is_empty() {
                let (ear, arrival) = oneshot::channel();
                inbox.ear = Some(ear);
                Some(arrival)
            } else {
                None
            }
        };
        if let Some(arrival) = arrival {
            let _ = select(arrival, self.host.sleep(ROUND)).await;
        }
        Reply::News(std::mem::take(&mut self.state().inboxes.entry(origin).or_default().news))
    }
}

impl Inbox {
    fn push(&mut self, claim: Claim, what: What) {
        self.news.push((claim, what));
        if let Some(ear) = self.ear.take() {
            let _ = ear.send(());
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}
