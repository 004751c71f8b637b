//! An API server that dies, hangs or has lost its etcd, and one that many contend at.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use rustix::process::Signal;
use windlass::ErrorKind;
use windlass_tests::{
    adversity,
    crowd::Crowd,
    kubernetes::Cluster,
    place::{acquire, block_on, waits},
};

use super::{TTL, cluster, locker, locker_with, nothing_is_left};

/// It takes some seconds to start.
const LONG: Duration = Duration::from_secs(20);

/// Nobody loses a lock or a place over a restart, and a pause that is shorter than the TTL.
#[test]
fn killed_and_stopped() {
    let mut cluster = Cluster::start();
    let namespace = cluster.namespace();
    let url = cluster.url(&namespace);
    let (ours, other) = (locker_with(&url, LONG), locker_with(&url, LONG));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let first = waits(scope, other.lock("lock"));
        let second = waits(scope, ours.lock("lock"));
        cluster.kill_apiserver();
        cluster.start_apiserver();
        cluster.until_ready();
        guard.check().unwrap();
        for _ in 0..2 {
            cluster.apiserver(Signal::STOP);
            thread::sleep(Duration::from_secs(4));
            cluster.apiserver(Signal::CONT);
            cluster.until_ready();
            guard.check().unwrap();
        }
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        assert!(!second.is_finished());
        // Its etcd hangs: what cannot be done is said, and done later.
        cluster.etcd(Signal::STOP);
        let error = block_on(ours.lock("other").timeout(3 * TTL)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        first.check().unwrap();
        cluster.etcd(Signal::CONT);
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    nothing_is_left(&cluster, &namespace);
}

/// An object that has not changed for longer than the API server remembers is watched all the same.
#[test]
fn annotations_after_a_restart() {
    let mut cluster = Cluster::start();
    let namespace = cluster.namespace();
    let url = cluster.url_of_new_configmap(&namespace, "locks");
    for newer in ["a", "b", "c"] {
        cluster.url_of_new_configmap(&namespace, newer);
    }
    cluster.kill_apiserver();
    cluster.start_apiserver();
    cluster.until_ready();
    let (watches, takes) = (locker(&url), locker(&url));
    thread::scope(|scope| {
        let change = scope.spawn(|| {
            let mut changes = pin!(block_on(watches.watch("")).unwrap());
            block_on(changes.next()).unwrap()
        });
        thread::sleep(Duration::from_secs(2));
        let guard = acquire(&takes, "lock");
        assert_eq!(change.join().unwrap().unwrap().holders.len(), 1);
        block_on(guard.release()).unwrap();
    });
}

/// Nobody believes to hold what another holds while the API server comes and goes.
#[test]
fn taking_turns_at_a_server_that_comes_and_goes() {
    let mut cluster = Cluster::start();
    let namespace = cluster.namespace();
    let url = cluster.url(&namespace);
    let crowd = Crowd::start(|| locker(&url));
    for _ in 0..2 {
        cluster.kill_apiserver();
        cluster.start_apiserver();
        cluster.until_ready();
        eprintln!("killed: turns for everybody after {:?}", crowd.everybody_has_turns());
        cluster.apiserver(Signal::STOP);
        thread::sleep(TTL + TTL / 2);
        cluster.apiserver(Signal::CONT);
        eprintln!("stopped: turns for everybody after {:?}", crowd.everybody_has_turns());
        cluster.etcd(Signal::STOP);
        thread::sleep(TTL + TTL / 2);
        cluster.etcd(Signal::CONT);
        eprintln!("without etcd: turns for everybody after {:?}", crowd.everybody_has_turns());
    }
    crowd.end();
    nothing_is_left(&cluster, &namespace);
}

/// Fifty programs want one lock at once: each has it once, alone, and with a greater token than the one before.
#[test]
fn fifty_contenders() {
    const MANY: usize = 50;
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let (inside, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                let guard = acquire(&locker_with(&url, LONG), "lock");
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                let token = usize::try_from(guard.fencing_token()).unwrap();
                assert!(last.swap(token, Ordering::SeqCst) < token);
                inside.fetch_sub(1, Ordering::SeqCst);
                block_on(guard.release()).unwrap();
            });
        }
    });
    eprintln!("{MANY} had their turns in {:?}", start.elapsed());
    nothing_is_left(cluster(), &namespace);
}

/// While one waits and one holds nothing is sent but renewals.
#[test]
fn who_waits_sends_nothing() {
    let cluster = Cluster::start();
    let namespace = cluster.namespace();
    let url = cluster.url(&namespace);
    let (ours, other) =
        (locker_with(&url, Duration::from_secs(60)), locker_with(&url, Duration::from_secs(60)));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        // Until both have opened their watches.
        thread::sleep(Duration::from_millis(500));
        let before = requests(&cluster);
        thread::sleep(Duration::from_secs(5));
        assert_eq!(requests(&cluster), before, "asked for something");
        block_on(guard.release()).unwrap();
        let next = waiting.join().unwrap();
        // A patch that hands on, and one that takes up.
        assert_eq!(requests(&cluster), before + 2);
        block_on(next.release()).unwrap();
        assert_eq!(requests(&cluster), before + 3);
        block_on(acquire(&ours, "free").release()).unwrap();
        assert_eq!(requests(&cluster), before + 5, "one to take, one to give back");
        let guard = acquire(&ours, "own");
        let waiting = waits(scope, ours.lock("own"));
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert_eq!(requests(&cluster), before + 9, "a lock goes on within a locker by its release");
    });
}

/// Who has come a moment ago is known to live: it holds without a request of its own, and for as long as others do.
#[test]
fn who_waits_for_a_moment_takes_up_nothing() {
    let cluster = Cluster::start();
    let namespace = cluster.namespace();
    let url = cluster.url(&namespace);
    let (ours, other) = (locker(&url), locker(&url));
    let guard = adversity::who_waits_for_a_moment_asks_once(&ours, &other, || requests(&cluster));
    block_on(guard.release()).unwrap();
}

/// How many requests for Leases have been answered.
fn requests(cluster: &Cluster) -> u64 {
    let metrics = cluster.ask("GET", "/metrics", None);
    let lines = metrics.as_str().unwrap().lines().filter(|line| {
        let of_leases = line.starts_with("apiserver_request_total{") && line.contains("resource=\"leases\"");
        // The API server itself renews one, by PUT.
        of_leases && !["WATCH", "PUT"].iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    });
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64).sum()
}
