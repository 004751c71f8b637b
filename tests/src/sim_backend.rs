//! Clients of the simulated server, each over a link of its own that delays, loses, repeats and cuts off.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_channel::{mpsc, oneshot};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, LocalBoxFuture, select},
    stream::{self, BoxStream},
};
use windlass::{
    Backend, Capabilities, Error, ErrorKind, Holder, Locker, Mode, Name, Result, Status, Waiting,
    ask::{Ask, Claim, Grant, Happening, News, Renewal, Term},
    backend::{OnWaiting, in_turn},
    open_backend,
    rt::Runtime,
    table::{Granted, Origin, What},
    time::Moment,
    transport::NotSent,
};

use crate::{
    place::Place,
    sim::{Host, World},
    sim_server::{ROUND, Reply, Request, Server},
};

/// For how long a client waits for an answer that is due.
const PATIENCE: Duration = Duration::from_secs(1);
/// ... and where it leaves that to others.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What comes back: first lines, and the answer.
type Answers = (mpsc::UnboundedReceiver<Waiting>, oneshot::Receiver<Reply>);

/// What goes wrong between a client and the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Requests take up to this long.
    pub request_delay: Duration,
    /// Replies take up to this long.
    pub reply_delay: Duration,
    /// Delays are always the longest.
    pub exact: bool,
    /// The probability that a request is lost.
    pub lose_request: f64,
    /// The probability that a reply is lost.
    pub lose_reply: f64,
    /// The probability that a request comes again later, up to so long.
    pub repeat: f64,
    pub repeat_within: Duration,
    /// Nothing goes to the server.
    pub cut_there: bool,
    /// Nothing comes back.
    pub cut_back: bool,
    /// For how long the client waits for an answer, if not as usual.
    pub patience: Option<Duration>,
    /// A loss is seen at once, as a connection that is reset; else nobody hears anything.
    pub resets: bool,
    /// That a claim was released is not remembered, as by a store: whatever is not there says that it was lost.
    pub keeps_only_what_is_held: bool,
    /// The client's own code panics over a renewal.
    pub renewal_panics: bool,
}

/// The way from one client to the server.
pub struct Link {
    pub rt: Arc<Host>,
    server: Arc<Server>,
    net: Arc<Host>,
    origin: Origin,
    faults: Mutex<Faults>,
    log: Mutex<Vec<(Duration, &'static str)>>,
}

impl Link {
    pub fn new(server: &Arc<Server>, rt: Arc<Host>) -> Arc<Self> {
        Arc::new(Self {
            net: rt.world().host(),
            rt,
            server: server.clone(),
            origin: server.new_origin(),
            faults: Mutex::default(),
            log: Mutex::default(),
        })
    }

    pub fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    /// A locker over this link.
    pub fn locker(self: &Arc<Self>) -> Locker {
        Locker::over(Arc::new(SimBackend(self.clone())), self.rt.clone())
    }

    /// What was sent since the last call, and when.
    pub fn sent(&self) -> Vec<(Duration, &'static str)> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn world(&self) -> &Arc<World> {
        self.rt.world()
    }

    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap()
    }

    fn delay(&self, up_to: Duration) -> Duration {
        if self.faults().exact { up_to } else { self.world().time_below(up_to) }
    }

    /// Sends a request; the receivers are told what comes back, or dropped.
    fn send(self: &Arc<Self>, request: Request, wait: Duration) -> Answers {
        let (tell, reply) = oneshot::channel();
        let (tell_early, early) = mpsc::unbounded();
        let link = self.clone();
        self.net.spawn(
            async move {
                link.net.sleep(wait + link.delay(link.faults().request_delay)).await;
                if link.faults().cut_there && link.faults().resets {
                    return drop(tell.send(Reply::NotSent));
                }
                if link.faults().cut_there || link.world().chance(link.faults().lose_request) {
                    return link.lost(tell).await;
                }
                let (answer, answered) = oneshot::channel();
                let (first_line, first_lines) = mpsc::unbounded();
                let handled = link.server.clone().handle(link.origin, request, first_line);
                link.server.host.spawn(handled.map(|reply| drop(answer.send(reply))).boxed());
                link.net.spawn(link.clone().pass_on(first_lines, tell_early).boxed());
                let Ok(answer) = answered.await else { return };
                if link.does_not_come_back().await {
                    return link.lost(tell).await;
                }
                if let Err(Reply::News(news)) = tell.send(answer) {
                    link.server.not_heard(link.origin, news);
                }
            }
            .boxed(),
        );
        (early, reply)
    }

    async fn pass_on(
        self: Arc<Self>,
        mut first_lines: mpsc::UnboundedReceiver<Waiting>,
        tell: mpsc::UnboundedSender<Waiting>,
    ) {
        while let Some(waiting) = first_lines.next().await {
            if !self.does_not_come_back().await {
                let _ = tell.unbounded_send(waiting);
            }
        }
    }

    async fn does_not_come_back(&self) -> bool {
        self.net.sleep(self.delay(self.faults().reply_delay)).await;
        self.faults().cut_back || self.world().chance(self.faults().lose_reply)
    }

    /// Keeps silent about a loss, unless connections are reset.
    async fn lost(&self, tell: oneshot::Sender<Reply>) {
        if !self.faults().resets {
            let mut tell = tell;
            tell.cancellation().await;
        }
    }

    async fn call(
        self: &Arc<Self>,
        request: Request,
        patience: Duration,
        waiting: Option<OnWaiting<'_>>,
    ) -> Result<Reply> {
        let kind = match &request {
            Request::Acquire(_) => "acquire",
            Request::Renew(_) => "renew",
            Request::Release(_) => "release",
            Request::Change(..) => "change",
            Request::Hear => "hear",
            Request::Inspect(_) => "inspect",
            Request::ForceRelease(..) => "force_release",
        };
        self.log.lock().unwrap().push((self.world().now(), kind));
        self.world().note(format_args!("{:?} sends {}", self.rt, brief(&request)));
        // A change is never repeated by the network: it is sent over one connection, once.
        let faults = self.faults();
        if !matches!(request, Request::Change(..)) && self.world().chance(faults.repeat) {
            let later = self.world().time_below(faults.repeat_within);
            drop(self.send(request.clone(), later));
        }
        let (early, mut reply) = self.send(request, Duration::ZERO);
        let mut early = early.chain(stream::pending());
        let mut limit = self.rt.sleep(faults.patience.unwrap_or(patience));
        loop {
            match select(select(&mut reply, early.next()), &mut limit).await {
                Either::Left((Either::Left((Ok(Reply::NotSent), _)), _)) => {
                    let error = Error::new(ErrorKind::Unavailable, "there is no connection");
                    return Err(error.with_source(NotSent));
                }
                Either::Left((Either::Left((Ok(reply), _)), _)) => return Ok(reply),
                Either::Left((Either::Left((Err(_), _)), _)) => {
                    return Err(Error::new(ErrorKind::Unavailable, "the connection was reset"));
                }
                Either::Left((Either::Right((told, _)), _)) => {
                    if let (Some(waiting), Some(told)) = (waiting, told) {
                        waiting(told);
                    }
                }
                Either::Right(_) => return Err(Error::new(ErrorKind::Unavailable, "no answer")),
            }
        }
    }
}

/// When a term began that the server granted after it had held the request open for so long, by its clock: ours may be
/// slower.
fn later(sent: Moment, parked: Duration) -> Moment {
    sent.plus(parked - parked / 100)
}

/// A client of the simulated server.
#[derive(Debug)]
pub struct SimBackend(pub Arc<Link>);

impl SimBackend {
    fn grant(&self, granted: Granted, counted_from: Moment) -> Grant {
        let lease = granted.ttl.map(|ttl| Term { counted_from, ttl });
        Grant { fencing_token: granted.fencing_token, mode: granted.mode, lease }
    }

    fn now(&self) -> Moment {
        self.0.rt.now()
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn capabilities(&self) -> Capabilities {
        // The pure table can do all that memory can, and the server lets waiters be away.
        let memory = open_backend("memory:", self.0.rt.clone()).unwrap();
        let mut can = memory.capabilities();
        can.keep_place = true;
        can
    }

    fn url(&self) -> String {
        "sim:".into()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        loop {
            let sent = self.now();
            match self.0.call(Request::Acquire(ask.clone()), ROUND + PATIENCE, Some(waiting)).await? {
                Reply::Granted { granted, parked } => {
                    return Ok(Some(self.grant(granted, later(sent, parked))));
                }
                Reply::StillWaiting(told) => waiting(told),
                Reply::Busy => return Ok(None),
                Reply::Over => return Err(Error::new(ErrorKind::NotHeld, "this claim is over")),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        let rt: Arc<dyn Runtime> = self.0.rt.clone();
        in_turn(self, &rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        assert!(!self.0.faults().renewal_panics, "as no backend should");
        let sent = self.now();
        match self.0.call(Request::Renew(claims.to_vec()), FOR_EVER, None).await? {
            Reply::Renewed(outcomes) => Ok(outcomes
                .into_iter()
                .map(|outcome| match outcome {
                    Ok(granted) => Renewal::Renewed(self.grant(granted, sent)),
                    Err(Some(reason)) => Renewal::Lost(reason),
                    Err(None) => Renewal::NotHeld,
                })
                .collect()),
            other => panic!("{other:?}"),
        }
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        match self.0.call(Request::Release(claims.to_vec()), PATIENCE, None).await? {
            Reply::Released { missing, .. } if self.0.faults().keeps_only_what_is_held => Ok(missing),
            Reply::Released { lost, .. } => Ok(lost),
            other => panic!("{other:?}"),
        }
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        loop {
            let sent = self.now();
            match self.0.call(Request::Change(claim.clone(), to), ROUND + PATIENCE, None).await? {
                Reply::Granted { granted, parked } => return Ok(self.grant(granted, later(sent, parked))),
                Reply::StillWaiting(_) => {}
                Reply::Over => return Err(Error::new(ErrorKind::NotHeld, "there is no such claim")),
                Reply::Refused(from) => {
                    let message = format!("a claim that is {from} cannot become {to}");
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn hear(&self) -> Result<Vec<News>> {
        loop {
            let Reply::News(news) = self.0.call(Request::Hear, FOR_EVER, None).await? else { panic!() };
            let news: Vec<News> = news
                .into_iter()
                .filter_map(|(claim, what)| {
                    let what = match what {
                        What::Lost(reason) => Happening::Lost(reason),
                        What::Contended => Happening::Contended,
                        _ => return None,
                    };
                    Some(News { claim, what })
                })
                .collect();
            if !news.is_empty() {
                return Ok(news);
            }
        }
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        match self.0.call(Request::Inspect(prefix.to_owned()), PATIENCE, None).await? {
            Reply::Statuses(statuses) => Ok(statuses),
            other => panic!("{other:?}"),
        }
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        match self.0.call(Request::ForceRelease(name.clone(), fencing_token), PATIENCE, None).await? {
            Reply::Taken(holders) => Ok(holders),
            other => panic!("{other:?}"),
        }
    }

    async fn changes(&self, _prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        Ok(self.0.server.watch().map(Ok).boxed())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?})", self.rt)
    }
}

/// A world with a server in it, as a place for the conformance suite.
#[derive(Debug)]
pub struct SimPlace {
    pub world: Arc<World>,
    pub server: Arc<Server>,
    host: Arc<Host>,
}

impl SimPlace {
    pub fn new(seed: u64) -> Self {
        let world = World::new(seed);
        Self { server: Server::start(&world), host: world.host(), world }
    }

    /// A client on a machine of its own.
    pub fn link(&self) -> Arc<Link> {
        let link = Link::new(&self.server, self.world.host());
        link.set(Faults {
            request_delay: Duration::from_millis(2),
            reply_delay: Duration::from_millis(2),
            ..Faults::default()
        });
        link
    }
}

impl Place for SimPlace {
    fn client(&self) -> Arc<dyn Backend> {
        Arc::new(SimBackend(self.link()))
    }

    fn locker(&self) -> Locker {
        self.link().locker()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.host.clone()
    }

    fn run(&self, test: LocalBoxFuture<'_, ()>) {
        self.world.run(test);
    }

    fn has_threads(&self) -> bool {
        false
    }

    fn leftovers(&self) -> Vec<String> {
        if self.server.is_empty() { vec![] } else { vec![format!("{:?}", self.server.status())] }
    }
}

fn brief(request: &Request) -> String {
    match request {
        Request::Acquire(ask) => format!("acquire {:?} {} {:?}", ask.name, ask.mode, ask.entry),
        Request::Renew(claims) => format!("renew {}", names(claims)),
        Request::Release(claims) => format!("release {}", names(claims)),
        other => format!("{other:?}"),
    }
}

fn names(claims: &[Claim]) -> String {
    let mut names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
    names.sort_unstable();
    names.join(" ")
}
