//! etcd with faults: members that die, hang and are replaced, a bad network, sessions that end, a full disk, and callers who
//! ask for what cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

mod crowd;
mod input;
mod members;
mod network;
mod sessions;
mod storage;

use std::{
    future::IntoFuture,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use windlass::{ConnectOptions, Guard, Lock, Locker};
use windlass_tests::{
    etcd::{Cluster, Release, Setup},
    place::{Folder, PATIENCE, block_on},
    processes::{Program, until},
};

const TTL: Duration = Duration::from_secs(2);
/// What a take-over takes beyond the TTL: an election and etcd's own second, as well as a busy machine.
const SLACK: Duration = Duration::from_secs(3);

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

/// Must be had, sooner or later.
fn acquire(locker: &Locker, name: &str) -> Guard {
    block_on(locker.lock(name).timeout(PATIENCE).into_future()).unwrap()
}

/// Asks for a lock on a thread of its own, and returns once it stands in line.
fn waits<'scope>(scope: &'scope Scope<'scope, '_>, lock: Lock) -> ScopedJoinHandle<'scope, Guard> {
    let (tell, waits) = mpsc::channel();
    let waiting = scope.spawn(move || {
        let lock = lock.timeout(PATIENCE).on_wait(move |_| {
            // Told more than once, when it hears more.
            let _ = tell.send(());
        });
        block_on(lock.into_future()).unwrap()
    });
    waits.recv_timeout(PATIENCE).unwrap();
    waiting
}

/// A process of ours; and its folder, which has to stay.
fn worker(url: &str) -> (Program, Folder) {
    let folder = Folder::new();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    let worker = Program::start(worker.arg(format!("{url}?ttl=2s")).arg(folder.path("log")));
    (worker, folder)
}

/// Nothing is left of whatever was under way, after two TTLs at the latest.
fn nothing_is_left(etcd: &Cluster, prefix: &str) {
    let start = Instant::now();
    until("nothing to be left", || etcd.keys(prefix).is_empty());
    let took = start.elapsed();
    assert!(took < 2 * TTL + SLACK, "that took {took:?}");
}
