//! Few connections, as a browser has: what waits takes none from what keeps locks alive and gives them back (rule R24).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use windlass::{Guard, Lock, Locker, rt::Native};
use windlass_tests::{
    few,
    place::{PATIENCE, block_on},
    processes::until,
    proxy::{Faults, Proxy},
    server,
};

const TTL: Duration = Duration::from_secs(3);

fn locker(url: &str) -> Locker {
    let backend = few::client(url, few::CONNECTIONS).with_few_connections();
    Locker::over(Arc::new(backend), Arc::new(Native))
}

/// Waits in the background.
fn wait(lock: Lock) -> thread::JoinHandle<Guard> {
    thread::spawn(move || block_on(lock).unwrap())
}

fn acquire(lock: Lock) -> Guard {
    block_on(lock.timeout(PATIENCE)).unwrap()
}

fn waiters(locker: &Locker) -> usize {
    block_on(locker.list("")).unwrap().iter().map(|lock| lock.waiters.len()).sum()
}

fn stays(guard: &Guard, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        guard.check().unwrap();
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn many_waits_cost_no_lock_and_no_release() {
    let url = server::namespace();
    let (one, other) = (locker(&url), locker(&url));
    let names: Vec<String> = (0..3 * few::CONNECTIONS).map(|n| format!("lock-{n}")).collect();
    let taken: Vec<Guard> = names.iter().map(|name| acquire(other.lock(name))).collect();
    let held = acquire(one.lock("held").ttl(TTL));
    let waiting: Vec<_> = names.iter().map(|name| wait(one.lock(name).ttl(TTL))).collect();
    until("all wait", || waiters(&other) == names.len());
    stays(&held, TTL * 2);
    let released = Instant::now();
    block_on(held.release()).unwrap();
    assert!(released.elapsed() < TTL * 10, "requests that are held open are answered after a minute");
    // What they wait for comes to them, each as it is free, and stays theirs.
    let mut granted = Vec::new();
    for (taken, waiting) in taken.into_iter().zip(waiting) {
        block_on(taken.release()).unwrap();
        granted.push(waiting.join().unwrap());
    }
    granted.iter().for_each(|guard| stays(guard, Duration::from_millis(50)));
    granted.into_iter().for_each(|guard| block_on(guard.release()).unwrap());
    assert!(block_on(other.list("")).unwrap().is_empty());
}

/// Several at once, and a change of mode, are waited for as well.
#[test]
fn all_kinds_of_waiting_go_together() {
    let url = server::namespace();
    let (one, other) = (locker(&url), locker(&url));
    let readers: Vec<Guard> = (0..8).map(|n| acquire(other.lock(format!("up-{n}")).shared())).collect();
    let upgradable: Vec<Guard> =
        (0..8).map(|n| acquire(one.lock(format!("up-{n}")).upgradable().ttl(TTL))).collect();
    let taken: Vec<Guard> = (0..8).map(|n| acquire(other.lock(format!("several-{n}")))).collect();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for guard in &upgradable {
            scope.spawn(|| {
                block_on(guard.upgrade(PATIENCE)).unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for n in 0..8 {
            let (one, done) = (&one, &done);
            scope.spawn(move || {
                let names = [format!("several-{n}"), format!("free-{n}")];
                let guards =
                    block_on(one.lock_all(names).with(|lock| lock.ttl(TTL).timeout(PATIENCE))).unwrap();
                done.fetch_add(1, Ordering::SeqCst);
                drop(guards);
            });
        }
        until("all wait", || waiters(&other) == 8);
        upgradable.iter().for_each(|guard| stays(guard, TTL / 5));
        assert_eq!(done.load(Ordering::SeqCst), 0);
        readers.into_iter().chain(taken).for_each(|guard| block_on(guard.release()).unwrap());
    });
    upgradable.iter().for_each(|guard| guard.check().unwrap());
}

/// A crowd that asks at once stands in nobody's way.
#[test]
fn a_crowd_costs_no_lock() {
    let url = server::namespace();
    let (address, namespace) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let proxy = Proxy::before(address);
    let far = locker(&format!("http://{}/{namespace}", proxy.address()));
    let held = acquire(far.lock("held").ttl(TTL));
    proxy.set(Faults { delay: Duration::from_millis(100), ..Faults::default() });
    let crowd: Vec<_> = (0..400).map(|n| wait(far.lock(format!("lock-{n}")).timeout(PATIENCE))).collect();
    stays(&held, TTL * 2);
    let guards: Vec<Guard> = crowd.into_iter().map(|asking| asking.join().unwrap()).collect();
    held.check().unwrap();
    proxy.set(Faults::default());
    guards.into_iter().for_each(|guard| block_on(guard.release()).unwrap());
}
