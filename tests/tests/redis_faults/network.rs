//! A bad network between ours and Redis: cut at any byte, dead in one direction or in both, late, and repeated.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Locker, LostReason};
use windlass_tests::{
    crowd::Crowd,
    place::PATIENCE,
    proxy::{Faults, Proxy},
};

use super::{SLACK, TTL, acquire, block_on, locker, next, nothing_is_left_in, redis, waits};

struct Net {
    proxy: Proxy,
    database: u32,
    url: String,
    /// Over the bad network.
    locker: Locker,
    /// Not over it.
    other: Locker,
}

fn net() -> Net {
    let (proxy, database) = (Proxy::before(redis().address()), next());
    let url = redis().url_at(proxy.address(), database);
    Net { locker: locker(&url), other: locker(&redis().url(database)), proxy, database, url }
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

/// Wherever the connection breaks, asking again finds the one grant, and nothing is left behind.
#[test]
fn broken_at_every_few_bytes() {
    let requests = |after| Faults { break_after_requests: Some(after), ..NONE };
    let answers = |after| Faults { break_after_answers: Some(after), ..NONE };
    // Side by side, because most of the time is the pause before asking again.
    const PARTS: usize = 8;
    thread::scope(|scope| {
        for part in 0..PARTS {
            scope.spawn(move || broken((1 + 5 * part..1_000).step_by(5 * PARTS).map(requests)));
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
    nothing_is_left_in(redis(), net.database);
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
    nothing_is_left_in(redis(), net.database);
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
    // Where only answers are lost, renewals arrive until the holder gives up.
    assert!(took < 2 * TTL + SLACK, "taken over after {took:?}: {faults:?}");
    assert!(next.fencing_token() > guard.fencing_token());
    // Back on the network it can ask again.
    net.proxy.set(NONE);
    net.proxy.reset();
    next.check().unwrap();
    block_on(next.release()).unwrap();
    block_on(acquire(&net.locker, "lock").release()).unwrap();
    nothing_is_left_in(redis(), net.database);
}

/// A lease counts from when it was asked for, not from when the answer came: whoever heard late believes no longer for it.
#[test]
fn late_answers_lengthen_nothing() {
    thread::scope(|scope| {
        for part in [1, 2, 3] {
            scope.spawn(move || {
                let net = net();
                // The connection is there.
                block_on(acquire(&net.locker, "before").release()).unwrap();
                net.proxy.set(Faults { delay_answers: TTL * part / 4, ..NONE });
                let guard = acquire(&net.locker, "lock");
                net.proxy.set(BOTH);
                let next = acquire(&net.other, "lock");
                assert!(!guard.is_held(), "{part} quarters of a TTL late");
                block_on(next.release()).unwrap();
            });
        }
    });
}

/// A waiter that is cut off is in nobody's way for long.
#[test]
fn cut_off_waiters_are_passed_over() {
    thread::scope(|scope| {
        for faults in [REQUESTS, ANSWERS, BOTH] {
            scope.spawn(move || {
                let net = net();
                let guard = acquire(&net.other, "lock");
                thread::scope(|scope| {
                    let cut_off = waits(scope, net.locker.lock("lock"));
                    let behind = waits(scope, net.other.lock("lock"));
                    net.proxy.set(faults);
                    block_on(guard.release()).unwrap();
                    let released = Instant::now();
                    let behind = behind.join().unwrap();
                    let took = released.elapsed();
                    assert!(took < 2 * TTL + SLACK, "after {took:?}: {faults:?}");
                    assert!(!cut_off.is_finished());
                    net.proxy.set(NONE);
                    net.proxy.reset();
                    behind.check().unwrap();
                    block_on(behind.release()).unwrap();
                    block_on(cut_off.join().unwrap().release()).unwrap();
                });
                nothing_is_left_in(redis(), net.database);
            });
        }
    });
}

/// A message that does not arrive costs time and no more (R18): the connection is fine, and yet whoever waits is not told.
#[test]
fn lost_messages_cost_time_only() {
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                let net = net();
                let guard = acquire(&net.other, "lock");
                thread::scope(|scope| {
                    let waiting = waits(scope, net.locker.lock("lock"));
                    net.proxy.set(ANSWERS);
                    block_on(guard.release()).unwrap();
                    // Until it has been sent.
                    thread::sleep(Duration::from_millis(100));
                    net.proxy.set(NONE);
                    let released = Instant::now();
                    block_on(waiting.join().unwrap().release()).unwrap();
                    let took = released.elapsed();
                    eprintln!("looked by itself after {took:?}");
                    assert!(took < 2 * TTL + SLACK, "after {took:?}");
                });
                nothing_is_left_in(redis(), net.database);
            });
        }
    });
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
    nothing_is_left_in(redis(), net.database);
}

/// What was called off and arrives only then holds the lock for nobody.
#[test]
fn a_claim_that_arrives_after_it_was_called_off_goes_away() {
    thread::scope(|scope| {
        for late in [Duration::ZERO, TTL / 2, 3 * TTL] {
            scope.spawn(move || arrives_after_it_was_called_off(late));
        }
    });
}

fn arrives_after_it_was_called_off(late: Duration) {
    let net = net();
    let live = acquire(&net.locker, "live");
    net.proxy.hold_up();
    let error = block_on(net.locker.lock("lock").timeout(Duration::from_millis(300))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    thread::sleep(late);
    net.proxy.let_go();
    // Until it has arrived.
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    block_on(acquire(&net.other, "lock").release()).unwrap();
    let took = start.elapsed();
    // A grant would have kept it for a TTL.
    assert!(took < TTL / 2, "{late:?} late, it stood in the way for {took:?}");
    drop(live);
    nothing_is_left_in(redis(), net.database);
}

/// ... also where it was asked for once more meanwhile, and held, and released.
#[test]
fn a_first_request_that_arrives_last_takes_nothing() {
    let net = net();
    // The connection is there.
    block_on(acquire(&net.locker, "before").release()).unwrap();
    net.proxy.hold_up();
    // Over the next one, when the first has been silent for long enough.
    block_on(acquire(&net.locker, "lock").release()).unwrap();
    net.proxy.let_go();
    // Until it has arrived.
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    block_on(acquire(&net.other, "lock").release()).unwrap();
    let took = start.elapsed();
    assert!(took < TTL / 2, "it stood in the way for {took:?}");
    nothing_is_left_in(redis(), net.database);
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
    nothing_is_left_in(redis(), net.database);
}

/// Requests that come once more, when all is over, do nothing that lasts: neither to a holder that has come since, nor to a free
/// lock.
#[test]
fn requests_that_are_repeated_later_take_nothing() {
    let net = net();
    net.proxy.record();
    let ours = locker(&net.url);
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    drop(ours);
    net.proxy.reset();
    let next = acquire(&net.other, "lock");
    until_recorded(&net.proxy);
    next.check().unwrap();
    thread::sleep(TTL);
    next.check().unwrap();
    let status = block_on(net.other.list("lock")).unwrap();
    assert_eq!(status[0].holders[0].fencing_token, next.fencing_token(), "{status:?}");
    block_on(next.release()).unwrap();
    nothing_is_left_in(redis(), net.database);
}

/// What went over connections that have ended is recorded once they have.
fn until_recorded(proxy: &Proxy) {
    thread::sleep(Duration::from_millis(200));
    proxy.repeat();
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
    nothing_is_left_in(redis(), net.database);
}

/// A watch is over, or goes on, when its connection has broken; it is never silent for good.
#[test]
fn a_watch_outlives_its_connection() {
    use futures_util::StreamExt;
    let net = net();
    let backend = windlass::open_backend(&net.url, Arc::new(windlass::rt::Native)).unwrap();
    let mut changes = block_on(backend.changes("")).unwrap();
    for _ in 0..3 {
        net.proxy.reset();
        thread::sleep(Duration::from_millis(200));
        let guard = acquire(&net.other, "lock");
        let start = Instant::now();
        block_on(changes.next()).unwrap().unwrap();
        assert!(start.elapsed() < PATIENCE / 3, "after {:?}", start.elapsed());
        block_on(guard.release()).unwrap();
    }
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
    assert!(start.elapsed() < PATIENCE, "after {:?}", start.elapsed());
}
