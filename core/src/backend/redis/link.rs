//! The way to Redis: one connection, over which requests travel together in the order in which they were sent, and on which
//! Redis tells us what we did not ask for (RESP3). A connection that fails is left, and the next request makes another; it
//! is used only once it is subscribed, so that who looks after that misses nothing.
//!
//! All that is asked here may be asked twice: claims are known by their ids. So what failed with its connection is asked once
//! more at once, and after that by whoever is patient.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind as Kind, FromRedisValue,
    IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, RedisResult,
    ServerErrorKind, TlsCertificates, ToRedisArgs, Value,
    cluster::{ClusterClient, ClusterClientBuilder},
};
use tokio::sync::Mutex;

use super::{
    address::{Address, Place, split},
    connection::{CONNECT_WITHIN, Connection, at_once, config},
    hub::{Hub, Rope},
    keys::Keys,
    reply::{Granted, Reply},
    scripts::{Call, Code},
    trouble::Trouble,
};
use crate::{
    ask::Term,
    awake::Awake,
    error::{Error, ErrorKind, Result},
    lease::has_just_begun,
    name::{ClaimId, Name},
    rt::Runtime,
    time::Moment,
    within::within,
};

/// How long an answer may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// ... of one server of a cluster, and its connection. While it is found to be silent, the others wait; twice, where all are
/// new.
const PART_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// How long replicas may take to say that they have it.
const REPLICATED_WITHIN: Duration = Duration::from_millis(500);
/// How long until another try for those who only hear.
const REVIVE: Duration = Duration::from_secs(1);

pub(super) struct Link {
    address: Address,
    pub(super) rt: Arc<dyn Runtime>,
    pub(super) keys: Keys,
    pub(super) hub: Arc<Hub>,
    pub(super) inbox: String,
    tls: Option<TlsCertificates>,
    connecting: Mutex<Connecting>,
    /// How many tries of a connection have begun.
    tries: AtomicU64,
    /// The number of the connection that is not to be used any more, and of all before it.
    left: RwLock<u64>,
    /// How many there were.
    looks: AtomicU64,
    pub(super) awake: Awake,
}

#[derive(Default)]
struct Connecting {
    /// The last one, and its number.
    connection: Option<(u64, Connection)>,
    /// Why there is none, and which try said so.
    failed: Option<(u64, Error)>,
}

/// When a claim was asked for, and which time that was.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// No other one has it that is told at this inbox.
    pub(super) number: u64,
    pub(super) sent: Moment,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.address).finish()
    }
}

impl Link {
    pub(super) fn new(address: Address, rt: Arc<dyn Runtime>) -> Result<Arc<Self>> {
        let keys = Keys::new(&address.prefix, matches!(address.place, Place::Cluster(_)));
        let tls = match &address.tls {
            None => None,
            Some(files) => {
                // One of a process; whoever was earlier has chosen.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let (root_cert, ours) = files.read()?;
                let client_tls =
                    ours.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
                Some(TlsCertificates { client_tls, root_cert })
            }
        };
        let awake = Awake::new(rt.clone());
        Ok(Arc::new(Self {
            inbox: keys.inbox(rt.random()),
            keys,
            address,
            rt,
            hub: Arc::default(),
            tls,
            connecting: Mutex::default(),
            tries: AtomicU64::new(0),
            left: RwLock::new(0),
            looks: AtomicU64::new(0),
            awake,
        }))
    }

    pub(super) fn url(&self) -> String {
        self.address.url()
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.address.place, Place::Cluster(_))
    }

    pub(super) fn min_replicas(&self) -> u32 {
        self.address.min_replicas
    }

    /// A look that is about to be sent.
    pub(super) fn look(&self) -> Look {
        Look { number: self.looks.fetch_add(1, Ordering::Relaxed), sent: self.rt.now() }
    }

    /// What one was granted, if it is known without another look: it was let in as one that lives after this one, a moment ago.
    pub(super) fn let_in(&self, waiter: &Rope, looked: Look) -> Option<Granted> {
        let granted = self.hub.let_in(waiter, looked.number)?;
        let term = Term { counted_from: looked.sent, ttl: granted.ttl };
        // What replicas have can be asked only after a request of ours.
        (self.min_replicas() == 0 && has_just_begun(&term, self.rt.now())).then_some(granted)
    }

    /// What to run for a lock; those who watch are told by it.
    pub(super) fn call(&self, code: &'static Code, name: &Name, args: impl ToRedisArgs) -> Call {
        Call::new(code, &self.keys.of(name), (self.keys.changes(), args))
    }

    /// Runs it, also if nobody waits for the answer.
    pub(super) fn run<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        call: Call,
    ) -> BoxFuture<'static, Result<T>> {
        self.run_then(call, |_| {})
    }

    /// Runs what asks for a claim; until it has its answer, the claim is in doubt.
    pub(super) fn run_for<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        id: ClaimId,
        call: Call,
    ) -> BoxFuture<'static, Result<T>> {
        self.hub.asked(id, self.rt.now());
        self.run_asked(id, call)
    }

    /// ... for one who waits for it, if it still does.
    pub(super) fn run_for_waiter<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        waiter: &Rope,
        call: Call,
    ) -> Option<BoxFuture<'static, Result<T>>> {
        let id = self.hub.asked_by(waiter, self.rt.now())?;
        Some(self.run_asked(id, call))
    }

    fn run_asked<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        id: ClaimId,
        call: Call,
    ) -> BoxFuture<'static, Result<T>> {
        let hub = self.hub.clone();
        self.run_then(call, move |failed_at| hub.answered(id, failed_at))
    }

    fn run_then<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        call: Call,
        end: impl FnOnce(Option<Moment>) + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let request = move |connection: Connection| {
            let call = call.clone();
            async move { connection.run(&call).await }
        };
        self.ask_then(request, end)
    }

    /// Runs it on this thread, which must be the library's: the answer, and whether the request certainly came to Redis no more than
    /// once.
    pub(super) async fn run_counted<T: FromRedisValue + Send>(
        self: &Arc<Self>,
        call: &Call,
    ) -> Result<(T, bool)> {
        let mut failed_at = None;
        let request = |connection: Connection| connection.run(call);
        let answer = self.ask_here(&request, &mut failed_at).await?;
        // A cluster's client asks again by itself.
        Ok((answer, failed_at.is_none() && !self.is_cluster()))
    }

    /// Renews claims; what is said of those of each lock, and how many replicas have that, or `wanted` as soon as there are so many.
    /// Redis counts for who has written: so nothing is asked for without a renewal.
    pub(super) fn replicated(
        self: &Arc<Self>,
        renewals: Vec<Call>,
        wanted: u32,
    ) -> BoxFuture<'static, Result<(Vec<Vec<Reply>>, u32)>> {
        let within = u64::try_from(REPLICATED_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let renewals = Arc::new(renewals);
        self.ask(move |connection: Connection| {
            let renewals = renewals.clone();
            async move {
                let renewed = renewals.iter().map(|renewal| connection.clone().run(renewal));
                let renewed = try_join_all(renewed).await?;
                let wait = redis::cmd("WAIT").arg(wanted).arg(within).to_owned();
                Ok((renewed, connection.at(None, wait).await?))
            }
        })
    }

    /// The keys of this pattern that hold texts, of all servers.
    pub(super) async fn scan(self: &Arc<Self>, pattern: String) -> Result<Vec<String>> {
        let servers = self.ask(Connection::servers).await?;
        let mut found = Vec::new();
        for server in servers {
            let mut cursor = 0_u64;
            loop {
                let (pattern, server) = (pattern.clone(), server.clone());
                let (next, keys): (u64, Vec<Vec<u8>>) = self
                    .ask(move |connection: Connection| {
                        let mut scan = redis::cmd("SCAN");
                        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
                        scan.arg("TYPE").arg("string");
                        connection.at(server.clone(), scan)
                    })
                    .await?;
                found.extend(keys.into_iter().filter_map(|key| String::from_utf8(key).ok()));
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// From now on what changes is told to the hub.
    pub(super) async fn watch(self: &Arc<Self>) -> Result<()> {
        let channel = self.keys.changes().to_owned();
        self.ask(move |connection: Connection| connection.subscribe(channel.clone())).await
    }

    fn ask<T, F>(
        self: &Arc<Self>,
        request: impl Fn(Connection) -> F + Send + Sync + 'static,
    ) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = RedisResult<T>> + Send + 'static,
    {
        self.ask_then(request, |_| {})
    }

    /// Asks in the background, and then says when it was asked without an answer, if it was.
    fn ask_then<T, F>(
        self: &Arc<Self>,
        request: impl Fn(Connection) -> F + Send + Sync + 'static,
        end: impl FnOnce(Option<Moment>) + Send + 'static,
    ) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = RedisResult<T>> + Send + 'static,
    {
        let link = self.clone();
        self.awake.to_its_end(async move {
            let mut failed_at = None;
            let answer = link.ask_here(&request, &mut failed_at).await;
            end(failed_at);
            answer
        })
    }

    async fn ask_here<T, F>(
        self: &Arc<Self>,
        request: &(impl Fn(Connection) -> F + Sync),
        failed_at: &mut Option<Moment>,
    ) -> Result<T>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        let mut once_more = true;
        loop {
            let (turn, connection) = self.connect().await?;
            let answer = pin!(self.awake.wait(request(connection)));
            let trouble = match within(&self.rt, Some(ANSWER_WITHIN), answer).await {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) => self.trouble(error),
                None => Trouble::silent(),
            };
            *failed_at = Some(self.rt.now());
            // A cluster mends its connections by itself, one by one.
            if trouble.leave && !self.is_cluster() {
                self.leave(turn);
            }
            if !std::mem::take(&mut once_more) || !trouble.again {
                return Err(trouble.error);
            }
        }
    }

    /// A server that sends us elsewhere is of a cluster; what a cluster does not settle by itself is being moved.
    fn trouble(&self, error: RedisError) -> Trouble {
        let elsewhere = [ServerErrorKind::Moved, ServerErrorKind::Ask, ServerErrorKind::CrossSlot];
        let elsewhere = elsewhere.map(Kind::Server).contains(&error.kind());
        if !elsewhere || self.is_cluster() {
            return error.into();
        }
        let message = "this Redis is of a cluster: write redis+cluster://";
        Trouble::new(ErrorKind::InvalidInput, message)
    }

    /// The connection in use, or a new one, and its number.
    async fn connect(self: &Arc<Self>) -> Result<(u64, Connection)> {
        let begun = self.tries.load(Ordering::Relaxed);
        let mut current = self.connecting.lock().await;
        let left = self.left();
        if let Some((turn, connection)) = &current.connection
            && *turn > left
        {
            return Ok((*turn, connection.clone()));
        }
        current.connection = None;
        // All who wait for a silent Redis share a try that began when they did: each by itself would wait for those of all before it.
        if let Some((tried, error)) = &current.failed
            && *tried > begun
        {
            return Err(error.clone());
        }
        let (turn, tried) = (left + 1, self.tries.fetch_add(1, Ordering::Relaxed) + 1);
        // It is large and rare: no request has room for it.
        let opening = Box::pin(self.open(turn));
        let opened = within(&self.rt, Some(ANSWER_WITHIN), opening).await;
        let connection = match opened.unwrap_or_else(|| Err(Trouble::silent())) {
            Ok(connection) => connection,
            Err(Trouble { error, .. }) => {
                current.failed = Some((tried, error.clone()));
                return Err(error);
            }
        };
        *current = Connecting { connection: Some((turn, connection.clone())), failed: None };
        // Who waits may have missed its turn meanwhile, and be in a pause.
        self.hub.broken();
        Ok((turn, connection))
    }

    fn left(&self) -> u64 {
        *self.left.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection of this number is of no use any more; who waits for what is told on it looks again.
    fn leave(self: &Arc<Self>, turn: u64) {
        {
            let mut left = self.left.write().unwrap_or_else(PoisonError::into_inner);
            if *left >= turn {
                return;
            }
            *left = turn;
        }
        self.hub.broken();
        if self.hub.is_watched() {
            self.rt.spawn(self.clone().revive().boxed());
        }
    }

    /// Those who only watch ask for nothing that would make a new connection.
    async fn revive(self: Arc<Self>) {
        while self.hub.is_watched() {
            if self.connect().await.is_ok() {
                return;
            }
            self.rt.sleep(REVIVE).await;
        }
    }

    async fn open(self: &Arc<Self>, turn: u64) -> Result<Connection, Trouble> {
        let connection = match &self.address.place {
            Place::Server(host) => self.open_one(self.client(host)?, turn).await?,
            Place::Socket(path) => {
                self.open_one(Client::open(self.info(ConnectionAddr::Unix(path.clone()))?)?, turn).await?
            }
            Place::Sentinel(sentinels, name) => {
                let master = self.master(sentinels, name).await?;
                self.open_one(self.client(&master)?, turn).await?
            }
            Place::Cluster(hosts) => match self.cluster(hosts, turn)?.get_async_connection().await {
                Ok(connection) => Connection::Cluster(Box::new(connection)),
                Err(error) => {
                    self.probe(hosts).await?;
                    return Err(error.into());
                }
            },
            // Each of its servers has a link of its own.
            Place::Redlock(_) => return Err(Trouble::unavailable("no one server")),
        };
        self.hear_on(connection.clone()).await?;
        Ok(connection)
    }

    async fn hear_on(&self, connection: Connection) -> RedisResult<()> {
        connection.clone().subscribe(self.inbox.clone()).await?;
        if self.hub.is_watched() {
            connection.subscribe(self.keys.changes().to_owned()).await?;
        }
        Ok(())
    }

    /// Somebody was not told that its turn had come: the message was lost, or nothing is heard in a cluster that has mended itself.
    pub(super) fn hear_anew(self: &Arc<Self>) {
        if self.is_cluster() {
            self.rt.spawn(Self::hear_again(Arc::downgrade(self)).boxed());
        }
    }

    /// A cluster mends its connections by itself; but as long as the one on which we heard is away, another one has to do.
    async fn hear_again(link: Weak<Self>) {
        while let Some(link) = link.upgrade() {
            let here = link.clone();
            let hear = move |connection| {
                let here = here.clone();
                async move { here.hear_on(connection).await }
            };
            if link.ask(hear).await.is_ok() {
                return;
            }
            let pause = link.rt.sleep(REVIVE);
            drop(link);
            pause.await;
        }
    }

    async fn open_one(self: &Arc<Self>, client: Client, turn: u64) -> Result<Connection, Trouble> {
        let config = config().set_push_sender(self.listener(turn));
        Ok(Connection::One(client.get_multiplexed_async_connection_with_config(&config).await?))
    }

    /// What hears what Redis tells on a connection. It holds nothing that holds the connection.
    fn listener(self: &Arc<Self>, turn: u64) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        let link = Arc::downgrade(self);
        move |push| {
            let link = link.upgrade().ok_or(())?;
            // What comes late on a connection that was left may be over by now.
            if link.left() >= turn {
                return Err(());
            }
            match (push.kind, &push.data[..]) {
                (PushKind::Message, [Value::BulkString(channel), Value::BulkString(message)]) => {
                    let message = String::from_utf8_lossy(message);
                    if *channel == link.inbox.as_bytes() {
                        link.hub.told(&message);
                    } else {
                        link.hub.changed(|prefix| link.keys.is_below(&message, prefix));
                    }
                }
                (PushKind::Disconnection, _) if link.is_cluster() => {
                    link.hub.broken();
                    link.hear_anew();
                }
                // What was said before is lost.
                (PushKind::Subscribe, _) if link.is_cluster() => link.hub.broken(),
                (PushKind::Disconnection, _) => link.leave(turn),
                _ => {}
            }
            Ok(())
        }
    }

    /// Why none of these leads into a cluster, said as for one server.
    async fn probe(&self, hosts: &[String]) -> Result<(), Trouble> {
        let mut last = None;
        for host in hosts {
            let client = self.client(host)?;
            let ask = async {
                let mut one = client.get_multiplexed_async_connection_with_config(&config()).await?;
                redis::cmd("CLUSTER").arg("SLOTS").query_async::<Value>(&mut one).await
            };
            match within(&self.rt, Some(CONNECT_WITHIN), pin!(ask)).await {
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => last = Some(Trouble::from(error)),
                None => last = Some(Trouble::silent()),
            }
        }
        Err(last.unwrap_or_else(Trouble::silent))
    }

    fn client(&self, host: &str) -> Result<Client, Trouble> {
        let info = self.info(self.addr(host)?)?;
        Ok(match &self.tls {
            None => Client::open(info)?,
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
        })
    }

    fn addr(&self, host: &str) -> Result<ConnectionAddr, Trouble> {
        let (host, port) = split(host)?;
        Ok(match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        })
    }

    fn info(&self, addr: ConnectionAddr) -> RedisResult<ConnectionInfo> {
        let mut redis = RedisConnectionInfo::default()
            .set_db(self.address.db.into())
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.address.user {
            redis = redis.set_username(user);
        }
        if let Some(password) = &self.address.password {
            redis = redis.set_password(password);
        }
        Ok(addr.into_connection_info()?.set_redis_settings(redis).set_tcp_settings(at_once()))
    }

    fn cluster(self: &Arc<Self>, hosts: &[String], turn: u64) -> Result<ClusterClient, Trouble> {
        let nodes: Vec<ConnectionInfo> =
            hosts.iter().map(|host| Ok(self.info(self.addr(host)?)?)).collect::<Result<_, Trouble>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(PART_ANSWERS_WITHIN)
            .response_timeout(PART_ANSWERS_WITHIN)
            .retries(1)
            .tcp_settings(at_once())
            .push_sender(self.listener(turn));
        if let Some(user) = &self.address.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.address.password {
            builder = builder.password(password);
        }
        if let Some(certificates) = &self.tls {
            builder = builder.certs(certificates.clone());
        }
        Ok(builder.build()?)
    }
}
