//! Redis with faults: servers that die, hang and are replaced, a bad network, holders that die, no memory, and callers who ask for
//! what cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

mod clocks;
mod cluster;
mod holders;
mod input;
mod network;
mod redlock;
mod replicas;
mod server;
mod storage;

use std::{process::Command, sync::OnceLock, thread::ScopedJoinHandle, time::Duration};

use windlass::{ConnectOptions, Guard, Locker};
use windlass_tests::{
    adversity::{self, SLACK, TTL},
    place::{Folder, acquire, block_on, waits},
    processes::{Program, until},
    redis::{Release, Server, Setup, next, of_locks},
};

/// Who has looked so long ago may be dead.
const LATELY: Duration = Duration::from_millis(600);

/// One that no test harms.
fn redis() -> &'static Server {
    static REDIS: OnceLock<Server> = OnceLock::new();
    REDIS.get_or_init(|| Setup::new(Release::Debian).start())
}

/// One of a test's own.
fn fresh() -> Server {
    Setup::new(Release::Debian).start()
}

fn locker(url: &str) -> Locker {
    locker_with(url, TTL)
}

fn locker_with(url: &str, ttl: Duration) -> Locker {
    block_on(ConnectOptions::new().ttl(ttl).connect(url)).unwrap()
}

/// A process of ours; and its folder, which has to stay.
fn worker(url: &str) -> (Program, Folder) {
    worker_with(url, TTL)
}

fn worker_with(url: &str, ttl: Duration) -> (Program, Folder) {
    let folder = Folder::new();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    let worker = worker.arg(format!("{url}?ttl={}s", ttl.as_secs())).arg(folder.path("log"));
    (Program::start(worker), folder)
}

/// Those who wait have the lock one after another, in whichever order.
fn served<const N: usize>(waiting: [ScopedJoinHandle<'_, Guard>; N]) {
    let mut waiting = Vec::from(waiting);
    while !waiting.is_empty() {
        let mut next = None;
        until("the next one", || {
            next = waiting.iter().position(ScopedJoinHandle::is_finished);
            next.is_some()
        });
        block_on(waiting.remove(next.unwrap()).join().unwrap().release()).unwrap();
    }
}

/// Nothing is left of whatever was under way.
fn nothing_is_left(keys: impl Fn() -> Vec<String>) {
    adversity::nothing_is_left(|| of_locks(keys()));
}

/// ... in a database.
fn nothing_is_left_in(server: &Server, database: u32) {
    nothing_is_left(|| server.keys(database));
}
