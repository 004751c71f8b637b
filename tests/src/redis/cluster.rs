//! A Cluster of three masters, whose slots can be moved.

use std::net::SocketAddr;

use super::{Answer, Release, Server, Setup};
use crate::{processes::until, server_process::port_to_keep};

const MASTERS: usize = 3;
const SLOTS: usize = 16_384;

/// It runs, and keeps its data.
#[derive(Debug)]
pub struct Cluster {
    masters: Vec<Server>,
}

impl Cluster {
    /// Starts it, and waits until it serves all slots.
    pub fn start(release: Release) -> Self {
        let start = |_| {
            let setup = Setup::new(release)
                .with("appendonly yes")
                .with("cluster-enabled yes")
                .with(format!("cluster-port {}", port_to_keep()))
                .with("cluster-node-timeout 1000")
                // What is on the others stays within reach.
                .with("cluster-require-full-coverage no");
            setup.start()
        };
        let cluster = Self { masters: (0..MASTERS).map(start).collect() };
        for (n, master) in cluster.masters.iter().enumerate() {
            master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
            let (first, next) = (n * SLOTS / MASTERS, (n + 1) * SLOTS / MASTERS);
            master.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(next - 1).to_string()]);
        }
        let first = &cluster.masters[0];
        let bus = first.ask(&["CONFIG", "GET", "cluster-port"]).texts().remove(1);
        for master in &cluster.masters[1..] {
            master.ask(&["CLUSTER", "MEET", "127.0.0.1", &first.port.to_string(), &bus]);
        }
        cluster.until_whole();
        cluster
    }

    /// `redis+cluster://H1,H2,H3`, with a prefix.
    pub fn url(&self, prefix: &str) -> String {
        let hosts: Vec<SocketAddr> = self.masters.iter().map(Server::address).collect();
        Self::url_at(&hosts, prefix)
    }

    /// ... with these hosts to begin with.
    pub fn url_at(hosts: &[SocketAddr], prefix: &str) -> String {
        let hosts: Vec<String> = hosts.iter().map(SocketAddr::to_string).collect();
        format!("redis+cluster://{}?prefix={prefix}", hosts.join(","))
    }

    /// One that runs.
    fn any(&self) -> &Server {
        self.masters.iter().find(|master| master.runs()).expect("one that runs")
    }

    /// The keys of all that run.
    pub fn keys(&self) -> Vec<String> {
        self.masters.iter().filter(|master| master.runs()).flat_map(|master| master.keys(0)).collect()
    }

    /// Which master has a key.
    pub fn master_of(&self, key: &str) -> usize {
        let slot = self.slot_of(key);
        let slots = self.any().ask(&["CLUSTER", "SLOTS"]);
        let range = slots.list().iter().find(|range| {
            let [first, last] = [0, 1].map(|n| range.list()[n].number());
            (first..=last).contains(&slot)
        });
        let port = range.expect("somebody's slot").list()[2].list()[1].number();
        self.masters.iter().position(|master| i64::from(master.port) == port).expect("one of ours")
    }

    fn slot_of(&self, key: &str) -> i64 {
        self.any().ask(&["CLUSTER", "KEYSLOT", key]).number()
    }

    pub fn master(&self, n: usize) -> &Server {
        &self.masters[n]
    }

    /// ... to do something to it.
    pub fn master_mut(&mut self, n: usize) -> &mut Server {
        &mut self.masters[n]
    }

    /// Moves the slot of a key to another master, key by key; calls `half_way` when it is both's.
    pub fn move_slot(&self, key: &str, to: usize, half_way: impl FnOnce()) {
        let (slot, from) = (self.slot_of(key).to_string(), &self.masters[self.master_of(key)]);
        let to = &self.masters[to];
        let [from_id, to_id] = [from, to].map(|master| master.ask(&["CLUSTER", "MYID"]).text().to_owned());
        to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
        half_way();
        loop {
            let keys = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).texts();
            if keys.is_empty() {
                break;
            }
            let port = to.port.to_string();
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            migrate.extend(keys.iter().map(String::as_str));
            from.ask(&migrate);
        }
        // The new one first, so that nobody ever finds the slot to be no one's.
        for master in [to, from].into_iter().chain(&self.masters) {
            master.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
    }

    /// Until all see all, and every slot is somebody's.
    pub fn until_whole(&self) {
        until("a whole Cluster", || {
            self.masters.iter().all(|master| {
                let Some(Answer::Text(said)) = master.try_ask(0, &["CLUSTER", "INFO"]) else { return false };
                let says = |line: &str| said.lines().any(|said| said == line);
                says("cluster_state:ok")
                    && says(&format!("cluster_known_nodes:{MASTERS}"))
                    && says(&format!("cluster_slots_ok:{SLOTS}"))
            })
        });
    }
}
