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

use std::{sync::OnceLock, time::Duration};

use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    adversity::{self, SLACK, TTL},
    kubernetes::{Cluster, apart},
    place::block_on,
};

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

/// Nothing is left of whatever was under way.
fn nothing_is_left(cluster: &Cluster, namespace: &str) {
    adversity::nothing_is_left(|| left(cluster, namespace));
}

fn left(cluster: &Cluster, namespace: &str) -> Vec<String> {
    cluster.leases(namespace).iter().map(ToString::to_string).collect()
}
