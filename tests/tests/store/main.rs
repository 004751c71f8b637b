//! Servers over one store: they have the same locks, and a claim lives on wherever its client goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "programs of several threads, in real time")]

/// Tests as functions of where the servers' store is: each is run over etcd, over Redis and over Kubernetes.
macro_rules! over_each_store {
    ($($test:ident),*) => {
        mod over_etcd {
            $(#[test]
            fn $test() {
                super::$test(crate::suite::etcd());
            })*
        }
        mod over_redis {
            $(#[test]
            fn $test() {
                super::$test(crate::suite::redis());
            })*
        }
        mod over_kubernetes {
            $(#[test]
            fn $test() {
                super::$test(crate::suite::kubernetes());
            })*
        }
    };
}

mod killed;
mod peers;
mod sessions;
mod suite;
mod suspended;
mod werf;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    place::{acquire, block_on},
    processes::until,
    proxy::Proxy,
    server_process::ServerProcess,
};

/// As short as etcd's own leases can be.
const TTL: Duration = Duration::from_secs(2);

/// Two servers over the store, in a namespace of the test's own.
struct Servers {
    one: ServerProcess,
    other: ServerProcess,
    /// Each connection to it goes to one of the two.
    both: Proxy,
    namespace: String,
}

impl Servers {
    fn over(store: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let start = || ServerProcess::over(program(), store);
        let (one, other) = (start(), start());
        let both = Proxy::before_all([&one, &other].map(|server| server.address().parse().unwrap()).to_vec());
        let namespace = format!("replicas-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { one, other, both, namespace }
    }

    fn url_of_one(&self) -> String {
        self.one.url(&self.namespace)
    }

    fn url_of_other(&self) -> String {
        self.other.url(&self.namespace)
    }

    fn url_of_both(&self) -> String {
        format!("http://{}/{}", self.both.address(), self.namespace)
    }
}

/// `windlass`, as a process.
fn program() -> &'static str {
    env!("CARGO_BIN_EXE_windlass-tests-server")
}

fn locker(url: &str) -> Locker {
    locker_of("somebody", url)
}

fn locker_of(owner: &str, url: &str) -> Locker {
    block_on(ConnectOptions::new().ttl(TTL).owner(owner).connect(url)).unwrap()
}

fn attempt(locker: &Locker, name: &str) -> Option<windlass::Guard> {
    block_on(locker.lock(name).try_acquire()).unwrap()
}

/// The owners of those who wait for a lock, in order.
fn waiters(locker: &Locker, name: &str) -> Vec<String> {
    let all = block_on(locker.list(name)).unwrap();
    all.into_iter().flat_map(|lock| lock.waiters).map(|waiter| waiter.owner.owner).collect()
}
