//! A primary and a replica, and three Sentinels that see to it that there is always a primary.

use std::net::SocketAddr;

use super::{Answer, Release, Server, Setup};
use crate::processes::until;

/// How the Sentinels call what they watch.
const MASTER: &str = "main";
/// After which they take a server for dead: longer than one that lives is silent on a busy machine.
const DOWN_AFTER_MILLIS: u32 = 1_000;
const FAILOVER_TIMEOUT_MILLIS: u32 = 3_000;

/// They run, and watch each other.
#[derive(Debug)]
pub struct Watched {
    servers: Vec<Server>,
    sentinels: Vec<Server>,
}

impl Watched {
    /// Starts all, and waits until the Sentinels know all of each other.
    pub fn start(release: Release) -> Self {
        let servers: Vec<Server> = (0..2).map(|_| Setup::new(release).start()).collect();
        let primary = servers[0].address();
        servers[1].follow(primary);
        let monitor = format!("sentinel monitor {MASTER} {} {} 2", primary.ip(), primary.port());
        let sentinels = (0..3).map(|_| {
            let sentinel = Setup { sentinel: true, ..Setup::new(release) }
                .with(&monitor)
                .with(format!("sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MILLIS}"))
                .with(format!("sentinel failover-timeout {MASTER} {FAILOVER_TIMEOUT_MILLIS}"));
            let sentinel = sentinel.start();
            // They see what has changed only when they look, which is every ten seconds.
            sentinel.ask(&["SENTINEL", "DEBUG", "INFO-PERIOD", "200", "PUBLISH-PERIOD", "200"]);
            sentinel
        });
        let this = Self { sentinels: sentinels.collect(), servers };
        this.until_watched();
        this
    }

    /// `redis+sentinel://H1,H2,H3/MASTER` of a database.
    pub fn url(&self, database: u32) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis+sentinel://{}/{MASTER}?db={database}", hosts.join(","))
    }

    /// The one that clients are led to.
    pub fn primary(&self) -> &Server {
        &self.servers[self.which()]
    }

    /// ... to do something to it.
    pub fn primary_mut(&mut self) -> &mut Server {
        let which = self.which();
        &mut self.servers[which]
    }

    fn which(&self) -> usize {
        let mut which = None;
        until("Sentinels to agree on a primary", || {
            let said = self.sentinels.iter().filter(|sentinel| sentinel.runs()).map(|sentinel| {
                let address = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).texts();
                let port: u16 = address[1].parse().unwrap();
                self.servers.iter().position(|server| server.port == port)
            });
            let mut said: Vec<Option<usize>> = said.collect();
            said.dedup();
            which = said[0];
            said.len() == 1
        });
        which.expect("one of ours")
    }

    /// Waits until the replica has all that the primary has by now.
    pub fn until_in_step(&self) {
        let primary = self.which();
        self.servers[primary].until_followed_by(&self.servers[1 - primary]);
    }

    /// Waits until the one that is the primary now no longer is.
    pub fn until_other_than(&self, old: SocketAddr) {
        until("a fail-over", || self.primary().address() != old);
        until("the new primary to be one", || self.primary().info("role") == "master");
    }

    /// The one at this address.
    pub fn at(&mut self, address: SocketAddr) -> &mut Server {
        self.servers.iter_mut().find(|server| server.address() == address).expect("one of ours")
    }

    /// Waits until the one at this address is a replica.
    pub fn until_replica(&mut self, address: SocketAddr) {
        let server = self.at(address);
        until("a replica", || server.info("role") == "slave");
    }

    /// The one that was killed, which has to become the other's replica.
    pub fn start_again(&mut self) {
        let dead = self.servers.iter_mut().find(|server| server.process.is_none());
        dead.expect("one that was killed").start_again();
        self.until_watched();
    }

    /// A Sentinel.
    pub fn sentinel(&mut self, n: usize) -> &mut Server {
        &mut self.sentinels[n]
    }

    /// Until each Sentinel that runs sees the primary, a replica in step, and enough Sentinels.
    fn until_watched(&self) {
        until("Sentinels that know all", || {
            self.sentinels.iter().filter(|sentinel| sentinel.runs()).all(|sentinel| {
                let replicas = sentinel.ask(&["SENTINEL", "REPLICAS", MASTER]);
                let in_step = replicas.list().iter().any(|replica| {
                    field(replica, "flags") == "slave" && field(replica, "master-link-status") == "ok"
                });
                let said = sentinel.ask(&["SENTINEL", "MASTER", MASTER]);
                in_step && field(&said, "flags") == "master" && field(&said, "num-other-sentinels") == "2"
            })
        });
    }
}

/// In a list of names and values.
fn field(list: &Answer, name: &str) -> String {
    let list = list.texts();
    let value = list.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone());
    value.unwrap_or_else(|| panic!("no {name} in {list:?}"))
}
