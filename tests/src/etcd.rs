//! etcd, as many members as a test wants: Debian's 3.4, or a 3.6 built from its Go module. Members are killed, stopped and
//! started again; all of it ends with the test's process, however that ends.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;
use serde_json::Value;
use windlass::{Backend, Locker, rt::Runtime};

use crate::{
    certificates::Authority,
    place::{Folder, Place, UrlPlace},
    processes::{Service, go_peer, until},
    server_process::port_to_keep,
};

/// A password in which much has to be encoded, and nothing may be shown.
pub const PASSWORD: &str = "p@ss/word:%41?#";
/// How it stands in a URL.
pub const PASSWORD_IN_URL: &str = "p%40ss%2Fword%3A%2541%3F%23";
const ROOT: &str = "root:root-password";

/// Which etcd.
#[derive(Clone, Copy, Debug)]
pub enum Release {
    /// `etcd-server`, 3.4.
    Debian,
    /// Of `tests/peers/etcd`, 3.6.
    Newest,
}

impl Release {
    fn program(self) -> PathBuf {
        static NEWEST: OnceLock<PathBuf> = OnceLock::new();
        match self {
            Self::Debian => "etcd".into(),
            // Beside what cargo builds.
            Self::Newest => NEWEST
                .get_or_init(|| go_peer("etcd", std::env::current_exe().unwrap().parent().unwrap()))
                .clone(),
        }
    }
}

/// How to start a cluster.
#[derive(Clone, Debug)]
pub struct Setup {
    release: Release,
    members: usize,
    tls: bool,
    auth: bool,
    options: &'static [&'static str],
}

impl Setup {
    pub fn new(release: Release) -> Self {
        Self { release, members: 1, tls: false, auth: false, options: &[] }
    }

    #[must_use]
    pub fn members(self, members: usize) -> Self {
        Self { members, ..self }
    }

    /// Clients and members show certificates of one authority.
    #[must_use]
    pub fn tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// With the user `app` and its [`PASSWORD`], who has all rights on `/app/` and no others.
    #[must_use]
    pub fn auth(self) -> Self {
        Self { auth: true, ..self }
    }

    /// More options for each member.
    #[must_use]
    pub fn options(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }

    /// Starts it, and waits until it serves.
    pub fn start(self) -> Cluster {
        let folder = Folder::new();
        let authority = self.tls.then(|| Authority::new(&folder.path("certificates")));
        let members = (0..self.members).map(Member::new).collect();
        let mut cluster = Cluster { setup: self, members, authority, folder, guarded: false };
        for n in 0..cluster.members.len() {
            cluster.start_again(n);
        }
        cluster.until_healthy();
        if cluster.setup.auth {
            cluster.enable_auth();
        }
        cluster
    }
}

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    setup: Setup,
    members: Vec<Member>,
    authority: Option<Authority>,
    folder: Folder,
    guarded: bool,
}

impl Cluster {
    /// `etcd://…/PREFIX` with all members.
    pub fn url(&self, prefix: &str) -> String {
        let hosts: Vec<SocketAddr> = (0..self.members.len()).map(|n| self.address(n)).collect();
        self.url_at(&hosts, prefix)
    }

    /// ... at these addresses.
    pub fn url_at(&self, hosts: &[SocketAddr], prefix: &str) -> String {
        let user = if self.setup.auth { format!("app:{PASSWORD_IN_URL}@") } else { String::new() };
        let hosts: Vec<String> = hosts.iter().map(SocketAddr::to_string).collect();
        let rest = format!("//{user}{}/{prefix}", hosts.join(","));
        match &self.authority {
            None => format!("etcd:{rest}"),
            Some(authority) => {
                let (ca, app) = (authority.ca().display(), authority.certificate("app").display());
                format!("etcds:{rest}?ca={ca}&cert={app}")
            }
        }
    }

    /// Where clients find a member.
    pub fn address(&self, n: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.members[n].client_port))
    }

    /// Those that run.
    fn running(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|n| self.members[*n].runs()).collect()
    }

    /// Which member leads, and waits for one that does.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        until("a leader", || {
            leader = self.running().into_iter().find(|n| self.leads(*n));
            leader.is_some()
        });
        leader.unwrap()
    }

    /// One that does not lead.
    pub fn follower(&self) -> usize {
        let leader = self.leader();
        self.running().into_iter().find(|n| *n != leader).expect("more than one member")
    }

    fn leads(&self, n: usize) -> bool {
        let Ok(said) = self.try_ctl(&[n], &["endpoint", "status", "--write-out=json"]) else { return false };
        let said: Value = serde_json::from_str(&said).unwrap();
        let status = &said[0]["Status"];
        status["leader"] == status["header"]["member_id"] && status["leader"].as_u64() != Some(0)
    }

    /// `kill -9`; its data stay.
    pub fn kill(&mut self, n: usize) {
        self.members[n].process.take().expect("it runs").end_and_keep_its_data();
    }

    /// `SIGSTOP`.
    pub fn stop(&mut self, n: usize) {
        self.members[n].process.as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn go_on(&mut self, n: usize) {
        self.members[n].process.as_mut().expect("it runs").signal(Signal::CONT);
    }

    /// One that was killed, on its data.
    pub fn start_again(&mut self, n: usize) {
        let first = self.members.iter().take(self.setup.members);
        let peers: Vec<String> =
            first.map(|member| format!("{}={}", member.name, self.peer_url(member))).collect();
        self.launch(n, &peers.join(","), "new");
    }

    /// Takes out a member for good and brings in a new one at the same address; the new one's number.
    pub fn replace(&mut self, n: usize) -> usize {
        self.kill(n);
        let (gone, client_port) = (self.members[n].name.clone(), self.members[n].client_port);
        let list = self.ctl(&["member", "list"]);
        let line = list.lines().find(|line| line.contains(&gone)).expect("it is a member");
        self.ctl(&["member", "remove", line.split(',').next().unwrap()]);
        let mut fresh = Member::new(self.members.len());
        fresh.client_port = client_port;
        let (name, url) = (fresh.name.clone(), self.peer_url(&fresh));
        let mut said = String::new();
        let add = ["member", "add", &name, &format!("--peer-urls={url}")];
        until("etcd to take a new member", || {
            self.try_ctl(&self.running(), &add).map(|answer| said = answer).is_ok()
        });
        let peers = said.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="));
        let peers = peers.expect("what to start it with").trim_matches('"').to_owned();
        self.members.push(fresh);
        let new = self.members.len() - 1;
        self.launch(new, &peers, "existing");
        self.until_healthy();
        new
    }

    fn launch(&mut self, n: usize, peers: &str, state: &str) {
        let member = &self.members[n];
        let (client, peer) = (self.client_url(member), self.peer_url(member));
        let mut command = Command::new(self.setup.release.program());
        command.args(["--unsafe-no-fsync", "--log-level", "error", "--name", &member.name, "--data-dir"]);
        command.arg(self.folder.path(&member.name));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", peers, "--initial-cluster-state", state]);
        command.args(self.setup.options);
        if let Some(authority) = &self.authority {
            let (ca, server) = (authority.ca(), authority.certificate("server"));
            for of in ["", "peer-"] {
                command.arg(format!("--{of}client-cert-auth"));
                for (option, file) in [("trusted-ca-file", ca), ("cert-file", server), ("key-file", server)] {
                    command.arg(format!("--{of}{option}={}", file.display()));
                }
            }
        }
        let log = self.folder.path(&format!("{}.log", member.name));
        self.members[n].process = Some(Service::start(&command, &log, &self.folder));
    }

    /// Until each member that runs has a leader and serves.
    pub fn until_healthy(&self) {
        let members = self.running();
        until("etcd to serve", || {
            members.iter().all(|n| self.try_ctl(&[*n], &["endpoint", "health"]).is_ok())
        });
    }

    /// `etcdctl` with this cluster, as its root; what it says.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(&self.running(), arguments)
            .unwrap_or_else(|said| panic!("etcdctl {arguments:?}: {said}"))
    }

    fn try_ctl(&self, members: &[usize], arguments: &[&str]) -> Result<String, String> {
        let output = self.etcdctl(members, arguments).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }

    /// ... as a command, of all its members.
    pub fn etcdctl_command(&self, arguments: &[&str]) -> Command {
        self.etcdctl(&self.running(), arguments)
    }

    fn etcdctl(&self, members: &[usize], arguments: &[&str]) -> Command {
        let urls: Vec<String> = members.iter().map(|n| self.client_url(&self.members[*n])).collect();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &urls.join(",")]);
        if let Some(authority) = &self.authority {
            let app = authority.certificate("app");
            for (option, file) in [("cacert", authority.ca()), ("cert", app), ("key", app)] {
                command.arg(format!("--{option}={}", file.display()));
            }
        }
        if self.guarded {
            command.args(["--user", ROOT]);
        }
        command.args(arguments);
        command
    }

    fn enable_auth(&mut self) {
        self.ctl(&["user", "add", ROOT]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["role", "add", "app"]);
        self.ctl(&["role", "grant-permission", "app", "readwrite", "--prefix=true", "/app/"]);
        self.ctl(&["user", "add", &format!("app:{PASSWORD}")]);
        self.ctl(&["user", "grant-role", "app", "app"]);
        self.ctl(&["auth", "enable"]);
        self.guarded = true;
    }

    /// The keys below a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let said = self.ctl(&["get", "--prefix", "--keys-only", &format!("/{prefix}/")]);
        said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The leases there are.
    pub fn leases(&self) -> Vec<String> {
        let said = self.ctl(&["lease", "list"]);
        said.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn client_url(&self, member: &Member) -> String {
        self.at(member.client_port)
    }

    fn peer_url(&self, member: &Member) -> String {
        self.at(member.peer_port)
    }

    fn at(&self, port: u16) -> String {
        format!("{}://127.0.0.1:{port}", if self.setup.tls { "https" } else { "http" })
    }
}

#[derive(Debug)]
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Service>,
}

impl Member {
    fn new(n: usize) -> Self {
        Self { name: format!("m{n}"), client_port: port_to_keep(), peer_port: port_to_keep(), process: None }
    }

    fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_stopped())
    }
}

/// A prefix of a test's own in a cluster.
#[derive(Debug)]
pub struct EtcdPlace {
    cluster: &'static Cluster,
    prefix: String,
    place: UrlPlace,
}

impl EtcdPlace {
    pub fn new(cluster: &'static Cluster) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let prefix = format!("app/test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let place = UrlPlace { url: cluster.url(&prefix), folder: None };
        Self { cluster, prefix, place }
    }
}

impl Place for EtcdPlace {
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
        self.cluster.keys(&self.prefix)
    }
}
