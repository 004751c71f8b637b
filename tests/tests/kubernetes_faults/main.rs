//! Kubernetes with faults: an API server that dies, hangs or has lost its etcd, a bad network, processes that end, objects that
//! are taken away, rights that are missing, wrong clocks, and callers who ask for what cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

mod input;
mod network;
mod objects;
mod processes;
mod rights;
mod server;
mod watch;

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    kubernetes::{Cluster, apart},
    place::block_on,
    processes::until,
};

const TTL: Duration = Duration::from_secs(2);
/// What a take-over takes beyond the TTL: the time to take up a grant, and a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// One that no test harms.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

fn locker(url: &str) -> Locker {
    locker_with(url, TTL)
}

fn locker_with(url: &str, ttl: Duration) -> Locker {
    let url = if url.contains("kubeconfig=") { apart(url) } else { url.to_owned() };
    block_on(ConnectOptions::new().ttl(ttl).connect(&url)).unwrap()
}

/// Nothing is left of whatever was under way, after two TTLs at the latest.
fn nothing_is_left(cluster: &Cluster, namespace: &str) {
    let start = Instant::now();
    until("nothing to be left", || cluster.leases(namespace).is_empty());
    let took = start.elapsed();
    assert!(took < 2 * TTL + SLACK, "that took {took:?}");
}
