//! A bad network between ours and etcd: cut at any byte, dead in one direction or in both, late.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::ErrorKind;
use windlass_tests::{
    adversity::{self, Net},
    crowd::Crowd,
    place::{PATIENCE, block_on},
    proxy::{Faults, Proxy},
};

use super::{SLACK, TTL, acquire, etcd, locker, prefix};

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
