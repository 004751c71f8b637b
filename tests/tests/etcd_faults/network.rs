//! A bad network between ours and etcd: cut at any byte, dead in one direction or in both, late.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::{ConnectOptions, ErrorKind};
use windlass_tests::{
    adversity::{self, Net},
    crowd::Crowd,
    place::{PATIENCE, block_on},
    processes::until,
    proxy::{Faults, Proxy},
};

use super::{SLACK, TTL, acquire, etcd, locker, port_of_nobody, prefix, waits};

fn net() -> Net {
    let (proxy, prefix) = (Proxy::before(etcd().address(0)), prefix());
    let url = etcd().url_at(&[proxy.address()], &prefix);
    let (locker, other) = (locker(&url), locker(&etcd().url(&prefix)));
    Net { proxy, url, locker, other, left: Box::new(move || etcd().keys(&prefix)) }
}

/// After which a request is given up, and its claim with it.
const NO_ANSWER: Duration = Duration::from_secs(3);

#[test]
fn broken_at_every_few_bytes() {
    adversity::broken_at_every_few_bytes(net, 8, [3, 500], [3, 400]);
}

#[test]
fn a_waiter_keeps_its_place_over_broken_connections() {
    adversity::a_waiter_keeps_its_place_over_broken_connections(&net());
}

#[test]
fn cut_off_holders_know_first() {
    adversity::cut_off_holders_know_first(net, TTL + SLACK);
}

#[test]
fn short_outages_are_survived() {
    adversity::short_outages_are_survived(&net());
}

/// What was called off and arrives only then holds the lock for nobody: at once, or when all else of it has long been
/// forgotten, while another claim keeps the session alive.
#[test]
fn a_claim_that_arrives_after_it_was_called_off_goes_away() {
    thread::scope(|scope| {
        for late in [Duration::ZERO, NO_ANSWER + TTL / 2, NO_ANSWER + 3 * TTL] {
            scope.spawn(move || arrives_after_it_was_called_off(late));
        }
    });
}

fn arrives_after_it_was_called_off(late: Duration) {
    let net = net();
    let live = acquire(&net.locker, "live");
    net.proxy.hold_up();
    let given_up = net.locker.lock("lock").timeout(Duration::from_millis(300));
    let error = block_on(given_up).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    thread::sleep(late);
    net.proxy.let_go();
    // Until it has arrived.
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    block_on(acquire(&net.other, "lock").release()).unwrap();
    let took = start.elapsed();
    assert!(took < 2 * TTL, "{late:?} late, it stood in the way for {took:?}");
    live.check().unwrap();
    assert_eq!((net.left)().len(), 1, "{late:?}");
    block_on(live.release()).unwrap();
    net.nothing_is_left();
}

/// A release that nobody answers frees the lock all the same, as soon as it arrives.
#[test]
fn a_release_that_arrives_late_releases() {
    let net = net();
    let (kept, guard) = (acquire(&net.locker, "kept"), acquire(&net.locker, "lock"));
    net.proxy.hold_up();
    // Whatever becomes of it, it is over here.
    let releasing = thread::spawn(move || block_on(guard.release()).map_err(|error| error.kind()));
    thread::sleep(TTL / 4);
    net.proxy.let_go();
    block_on(acquire(&net.other, "lock").release()).unwrap();
    releasing.join().unwrap().unwrap();
    kept.check().unwrap();
    block_on(kept.release()).unwrap();
    net.nothing_is_left();
}

/// What becomes of one claim of a session costs another claim of it no place: not even when that is its last one, and moves to
/// another session.
#[test]
fn a_waiter_whose_session_is_given_up_keeps_its_place() {
    let net = net();
    let url = etcd().url(net.url.rsplit('/').next().unwrap());
    let [ours, theirs] = [("first", &net.url), ("second", &url)]
        .map(|(owner, url)| block_on(ConnectOptions::new().owner(owner).connect(url)).unwrap());
    let (in_the_way, released) = (acquire(&net.other, "lock"), acquire(&ours, "released"));
    let waiters = || -> Vec<String> {
        let line = block_on(theirs.list("lock")).unwrap().remove(0);
        line.waiters.into_iter().map(|waiter| waiter.owner.owner).collect()
    };
    thread::scope(|scope| {
        let first = waits(scope, ours.lock("lock"));
        let second = waits(scope, theirs.lock("lock"));
        assert_eq!(waiters(), ["first", "second"]);
        // A release without an answer: the session is given up when its claims have left it.
        net.proxy.hold_up();
        let releasing = thread::spawn(move || block_on(released.release()));
        thread::sleep(Duration::from_millis(200));
        net.proxy.reset();
        let _ = releasing.join().unwrap();
        until("the release", || block_on(theirs.list("released")).unwrap().is_empty());
        // Longer than it is tried again for.
        thread::sleep(Duration::from_secs(1));
        // An outage in which the first one finds that it cannot look: it asks again.
        net.proxy.lead_to(port_of_nobody());
        net.proxy.reset();
        thread::sleep(Duration::from_millis(500));
        net.proxy.lead_to(etcd().address(0));
        thread::sleep(2 * TTL);
        assert_eq!(waiters(), ["first", "second"]);
        block_on(in_the_way.release()).unwrap();
        block_on(first.join().unwrap().release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    net.nothing_is_left();
}

/// Connections break at random under load.
#[test]
fn nothing_is_held_twice_over_a_network_that_breaks() {
    let net = net();
    let crowd = Crowd::start(|| locker(&net.url));
    for n in 1..=40 {
        match n % 4 {
            0 => net.proxy.reset(),
            1 => net.proxy.set(Faults { break_after_requests: Some(n * 97), ..Faults::NONE }),
            2 => net.proxy.set(Faults { break_after_answers: Some(n * 61), ..Faults::NONE }),
            _ => net.proxy.set(Faults { delay: Duration::from_millis(20), ..Faults::NONE }),
        }
        thread::sleep(Duration::from_millis(100));
    }
    net.proxy.set(Faults::NONE);
    crowd.everybody_has_turns();
    crowd.end();
    net.nothing_is_left();
}

/// It is not asked without end whether anything has changed.
#[test]
fn a_watch_that_is_not_answered_fails() {
    let net = net();
    net.proxy.set(Faults::ANSWERS);
    let backend = windlass::open_backend(&net.url, Arc::new(windlass::rt::Native)).unwrap();
    let start = Instant::now();
    let watched = block_on(backend.changes(""));
    assert_eq!(watched.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(start.elapsed() < PATIENCE);
}
