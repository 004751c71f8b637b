//! A bad network between ours and the API server: cut at any byte, dead in one direction or in both, late.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Locker, LostReason};
use windlass_tests::{
    crowd::Crowd,
    place::{acquire, block_on, waits},
    proxy::{Faults, Proxy},
};

use super::{SLACK, TTL, cluster, locker, nothing_is_left};

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

struct Net {
    proxy: Proxy,
    namespace: String,
    url: String,
    /// Over the bad network.
    locker: Locker,
    /// Not over it.
    other: Locker,
}

fn net() -> Net {
    let (proxy, namespace) = (Proxy::before(cluster().address()), cluster().namespace());
    let url = cluster().url_at(proxy.address(), &namespace, "admin-token");
    Net { locker: locker(&url), other: locker(&cluster().url(&namespace)), proxy, namespace, url }
}

/// Wherever the connection breaks, asking again finds the one grant, and nothing is left behind.
#[test]
fn broken_at_every_few_bytes() {
    let requests = |after| Faults { break_after_requests: Some(after), ..NONE };
    let answers = |after| Faults { break_after_answers: Some(after), ..NONE };
    // Side by side, because most of the time is the pause before asking again.
    const PARTS: usize = 6;
    thread::scope(|scope| {
        for part in 0..PARTS {
            scope.spawn(move || broken((1 + 29 * part..1_400).step_by(29 * PARTS).map(requests)));
            scope.spawn(move || broken((1 + 37 * part..1_800).step_by(37 * PARTS).map(answers)));
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
    nothing_is_left(cluster(), &net.namespace);
}

/// A waiter whose watch is cut again and again keeps its place.
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
    nothing_is_left(cluster(), &net.namespace);
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
    assert!(took < 2 * TTL + SLACK, "taken over after {took:?}: {faults:?}");
    assert!(next.fencing_token() > guard.fencing_token());
    // Back on the network it can ask again.
    net.proxy.set(NONE);
    net.proxy.reset();
    next.check().unwrap();
    block_on(next.release()).unwrap();
    block_on(acquire(&net.locker, "lock").release()).unwrap();
    nothing_is_left(cluster(), &net.namespace);
}

/// What the API server said of a release and nobody heard costs time only.
#[test]
fn what_was_not_heard_costs_time_only() {
    let net = net();
    let guard = acquire(&net.other, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, net.locker.lock("lock"));
        net.proxy.set(ANSWERS);
        block_on(guard.release()).unwrap();
        thread::sleep(TTL / 4);
        net.proxy.set(NONE);
        let healed = Instant::now();
        // Nobody waits behind it, so its grant stays.
        block_on(waiting.join().unwrap().release()).unwrap();
        let took = healed.elapsed();
        eprintln!("found out {took:?} later");
        assert!(took < Duration::from_secs(20), "after {took:?}");
    });
    nothing_is_left(cluster(), &net.namespace);
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

/// What was called off and arrives only then holds the lock for nobody for longer than a TTL.
#[test]
fn a_claim_that_arrives_after_it_was_called_off_goes_away() {
    let net = net();
    let live = acquire(&net.locker, "live");
    net.proxy.hold_up();
    let given_up = net.locker.lock("lock").timeout(Duration::from_millis(300));
    let error = block_on(given_up).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    net.proxy.let_go();
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    block_on(acquire(&net.other, "lock").release()).unwrap();
    let took = start.elapsed();
    assert!(took < 2 * TTL, "it stood in the way for {took:?}");
    live.check().unwrap();
    block_on(live.release()).unwrap();
    nothing_is_left(cluster(), &net.namespace);
}

/// Nobody believes to hold what another holds, whatever the network does meanwhile.
#[test]
fn taking_turns_over_a_bad_network() {
    let net = net();
    let crowd = Crowd::start(|| locker(&net.url));
    for faults in [REQUESTS, ANSWERS, BOTH] {
        net.proxy.set(faults);
        thread::sleep(TTL + TTL / 2);
        net.proxy.set(NONE);
        net.proxy.reset();
        eprintln!("turns for everybody {:?} after {faults:?}", crowd.everybody_has_turns());
    }
    for _ in 0..10 {
        net.proxy.reset();
        thread::sleep(Duration::from_millis(100));
    }
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left(cluster(), &net.namespace);
}
