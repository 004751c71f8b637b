//! A bad network between ours and etcd: cut at any byte, dead in one direction or in both, late.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Locker, LostReason};
use windlass_tests::{
    crowd::Crowd,
    place::{PATIENCE, block_on},
    proxy::{Faults, Proxy},
};

use super::{SLACK, TTL, acquire, etcd, locker, nothing_is_left, prefix, waits};

struct Net {
    proxy: Proxy,
    prefix: String,
    url: String,
    /// Over the bad network.
    locker: Locker,
    /// Not over it.
    other: Locker,
}

fn net() -> Net {
    let (proxy, prefix) = (Proxy::before(etcd().address(0)), prefix());
    let url = etcd().url_at(&[proxy.address()], &prefix);
    Net { locker: locker(&url), other: locker(&etcd().url(&prefix)), proxy, prefix, url }
}

const REQUESTS: Faults = Faults { swallow_requests: true, ..NONE };
const ANSWERS: Faults = Faults { swallow_answers: true, ..NONE };
const BOTH: Faults = Faults { swallow_requests: true, swallow_answers: true, ..NONE };
const NONE: Faults = Faults {
    delay: Duration::ZERO,
    delay_answers: Duration::ZERO,
    swallow_requests: false,
    swallow_answers: false,
    cut_request_after: None,
    cut_answer_after: None,
    break_after_requests: None,
    break_after_answers: None,
};

/// After which a request is given up, and its claim with it.
const NO_ANSWER: Duration = Duration::from_secs(3);

/// Wherever the connection breaks, asking again finds the one grant, and nothing is left behind.
#[test]
fn broken_at_every_few_bytes() {
    let requests = |after| Faults { break_after_requests: Some(after), ..NONE };
    let answers = |after| Faults { break_after_answers: Some(after), ..NONE };
    // Side by side, because most of the time is the pause before asking again.
    const PARTS: usize = 8;
    thread::scope(|scope| {
        for part in 0..PARTS {
            scope.spawn(move || broken((1 + 3 * part..500).step_by(3 * PARTS).map(requests)));
            scope.spawn(move || broken((1 + 3 * part..400).step_by(3 * PARTS).map(answers)));
        }
    });
}

fn broken(breaks: impl Iterator<Item = Faults>) {
    let net = net();
    let mut last_token = 0;
    for faults in breaks {
        net.proxy.set(faults);
        let guard = acquire(&net.locker, "lock");
        assert!(guard.fencing_token() > last_token, "{faults:?}");
        last_token = guard.fencing_token();
        let status = &block_on(net.other.list("lock")).unwrap()[0];
        assert_eq!((status.holders.len(), status.waiters.len()), (1, 0), "{faults:?}");
        assert_eq!(status.holders[0].fencing_token, last_token, "one grant, and this one: {faults:?}");
        net.proxy.set(faults);
        block_on(guard.release()).unwrap();
        assert!(block_on(net.other.list("lock")).unwrap().is_empty(), "{faults:?}");
    }
    nothing_is_left(etcd(), &net.prefix);
}

/// A waiter whose connections break again and again keeps its place.
#[test]
fn a_waiter_keeps_its_place_over_broken_connections() {
    let net = net();
    let guard = acquire(&net.other, "lock");
    thread::scope(|scope| {
        let first = waits(scope, net.locker.lock("lock"));
        let second = waits(scope, net.other.lock("lock"));
        for _ in 0..20 {
            net.proxy.reset();
            thread::sleep(Duration::from_millis(20));
        }
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        assert!(!second.is_finished());
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    nothing_is_left(etcd(), &net.prefix);
}

/// A holder that is cut off knows before anybody else is let in, whichever direction is dead.
#[test]
fn cut_off_holders_know_first() {
    thread::scope(|scope| {
        for faults in [REQUESTS, ANSWERS, BOTH] {
            scope.spawn(move || cut_off(faults));
        }
    });
}

fn cut_off(faults: Faults) {
    let net = net();
    let guard = Arc::new(acquire(&net.locker, "lock"));
    net.proxy.set(faults);
    let cut = Instant::now();
    let held = guard.clone();
    let lost = thread::spawn(move || (block_on(held.lost()), Instant::now()));
    let next = acquire(&net.other, "lock");
    let granted = Instant::now();
    assert!(!guard.is_held(), "{faults:?}");
    let (reason, told) = lost.join().unwrap();
    assert_eq!(reason, LostReason::Unreachable, "{faults:?}");
    assert!(told <= granted + Duration::from_millis(100), "told late: {faults:?}");
    let took = granted - cut;
    assert!(took < TTL + SLACK, "taken over after {took:?}: {faults:?}");
    assert!(next.fencing_token() > guard.fencing_token());
    // Back on the network it can ask again.
    net.proxy.set(NONE);
    net.proxy.reset();
    next.check().unwrap();
    block_on(next.release()).unwrap();
    block_on(acquire(&net.locker, "lock").release()).unwrap();
    nothing_is_left(etcd(), &net.prefix);
}

/// A network that is dead for less than the TTL costs nobody a lock.
#[test]
fn short_outages_are_survived() {
    let net = net();
    let guard = acquire(&net.locker, "lock");
    for _ in 0..5 {
        net.proxy.set(BOTH);
        thread::sleep(TTL / 4);
        net.proxy.set(NONE);
        net.proxy.reset();
        thread::sleep(TTL / 2);
        guard.check().unwrap();
    }
    block_on(guard.release()).unwrap();
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
    assert_eq!(etcd().keys(&net.prefix).len(), 1, "{late:?}");
    block_on(live.release()).unwrap();
    nothing_is_left(etcd(), &net.prefix);
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
    nothing_is_left(etcd(), &net.prefix);
}

/// Connections break at random under load.
#[test]
fn nothing_is_held_twice_over_a_network_that_breaks() {
    let net = net();
    let crowd = Crowd::start(|| locker(&net.url));
    for n in 1..=40 {
        match n % 4 {
            0 => net.proxy.reset(),
            1 => net.proxy.set(Faults { break_after_requests: Some(n * 97), ..NONE }),
            2 => net.proxy.set(Faults { break_after_answers: Some(n * 61), ..NONE }),
            _ => net.proxy.set(Faults { delay: Duration::from_millis(20), ..NONE }),
        }
        thread::sleep(Duration::from_millis(100));
    }
    net.proxy.set(NONE);
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left(etcd(), &net.prefix);
}

/// It is not asked without end whether anything has changed.
#[test]
fn a_watch_that_is_not_answered_fails() {
    let net = net();
    net.proxy.set(ANSWERS);
    let backend = windlass::open_backend(&net.url, Arc::new(windlass::rt::Native)).unwrap();
    let start = Instant::now();
    let watched = block_on(backend.changes(""));
    assert_eq!(watched.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(start.elapsed() < PATIENCE);
}
