//! etcd with faults: members that die, hang and are replaced, a bad network, sessions that end, a full disk, and callers who
//! ask for what cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

mod input;
mod keys;
mod members;
mod network;
mod sessions;
mod storage;
mod terms;

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    adversity::{self, SLACK, TTL},
    etcd::{Cluster, Release, Setup},
    place::{Folder, acquire, block_on, waits},
    processes::Program,
    server_process::port_to_keep,
};

/// One member that no test harms.
fn etcd() -> &'static Cluster {
    static ETCD: OnceLock<Cluster> = OnceLock::new();
    ETCD.get_or_init(|| Setup::new(Release::Debian).start())
}

/// A prefix of a test's own.
fn prefix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("faults-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn locker(url: &str) -> Locker {
    locker_with(url, TTL)
}

fn locker_with(url: &str, ttl: Duration) -> Locker {
    block_on(ConnectOptions::new().ttl(ttl).connect(url)).unwrap()
}

/// A process of ours; and its folder, which has to stay.
fn worker(url: &str) -> (Program, Folder) {
    let folder = Folder::new();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    let worker = Program::start(worker.arg(format!("{url}?ttl=2s")).arg(folder.path("log")));
    (worker, folder)
}

/// An address at which nobody listens.
fn port_of_nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port_to_keep()))
}

/// Nothing is left of whatever was under way.
fn nothing_is_left(etcd: &Cluster, prefix: &str) {
    adversity::nothing_is_left(|| etcd.keys(prefix));
}
