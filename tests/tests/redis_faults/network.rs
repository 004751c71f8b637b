//! A bad network between ours and Redis: cut at any byte, dead in one direction or in both, late, and repeated.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::ErrorKind;
use windlass_tests::{
    adversity::{self, Net},
    crowd::Crowd,
    place::PATIENCE,
    processes::until,
    proxy::{Faults, Proxy},
};

use super::{
    LATELY, SLACK, TTL, acquire, block_on, fresh, locker, next, nothing_is_left_in, of_locks, redis, waits,
};

fn net() -> Net {
    let (proxy, database) = (Proxy::before(redis().address()), next());
    let url = redis().url_at(proxy.address(), database);
    let (locker, other) = (locker(&url), locker(&redis().url(database)));
    Net { proxy, url, locker, other, left: Box::new(move || of_locks(redis().keys(database))) }
}

#[test]
fn broken_at_every_few_bytes() {
    adversity::broken_at_every_few_bytes(net, 8, [5, 1_000], [3, 400]);
}

#[test]
fn a_waiter_keeps_its_place_over_broken_connections() {
    adversity::a_waiter_keeps_its_place_over_broken_connections(&net());
}

#[test]
fn cut_off_holders_know_first() {
    // Where only answers are lost, renewals arrive until the holder gives up.
    adversity::cut_off_holders_know_first(net, 2 * TTL + SLACK);
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
                net.proxy.set(Faults { delay_answers: TTL * part / 4, ..Faults::NONE });
                let guard = acquire(&net.locker, "lock");
                net.proxy.set(Faults::BOTH);
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
        for faults in [Faults::REQUESTS, Faults::ANSWERS, Faults::BOTH] {
            scope.spawn(move || {
                let net = net();
                let guard = acquire(&net.other, "lock");
                thread::scope(|scope| {
                    let cut_off = waits(scope, net.locker.lock("lock"));
                    let behind = waits(scope, net.other.lock("lock"));
                    net.proxy.set(faults);
                    // Before that it would hold by what it is told, where it can hear.
                    thread::sleep(LATELY);
                    block_on(guard.release()).unwrap();
                    let released = Instant::now();
                    let behind = behind.join().unwrap();
                    let took = released.elapsed();
                    assert!(took < 2 * TTL + SLACK, "after {took:?}: {faults:?}");
                    assert!(!cut_off.is_finished());
                    net.proxy.set(Faults::NONE);
                    net.proxy.reset();
                    behind.check().unwrap();
                    block_on(behind.release()).unwrap();
                    block_on(cut_off.join().unwrap().release()).unwrap();
                });
                net.nothing_is_left();
            });
        }
    });
}

/// An upgrade that was called off, and comes once more behind that, as from a connection that was given up, changes nothing.
#[test]
fn a_change_that_comes_late_is_not_obeyed() {
    let redis = fresh();
    let (ours, other) = (locker(&redis.url(0)), locker(&redis.url(0)));
    redis.set("slowlog-log-slower-than", "0");
    redis.set("slowlog-max-len", "10000");
    let guard = block_on(ours.lock("lock").upgradable()).unwrap();
    let reads = block_on(other.lock("lock").shared()).unwrap();
    assert_eq!(block_on(guard.upgrade(TTL / 4)).unwrap_err().kind(), ErrorKind::Timeout);
    until("the upgrade to be called off", || {
        block_on(other.lock("lock").shared().try_acquire()).unwrap().is_some()
    });
    let log = redis.ask(&["SLOWLOG", "GET", "10000"]);
    // EVALSHA, script, 5, its keys, where it is told, the claim, the mode
    let change = log.list().iter().map(|entry| entry.list()[3].texts());
    let change = change.filter(|words| words[0] == "EVALSHA").find(|words| words[10] == "exclusive").unwrap();
    let words: Vec<&str> = change.iter().map(String::as_str).collect();
    assert_eq!(redis.ask(&words).text(), "over");
    let more = block_on(other.lock("lock").shared().try_acquire()).unwrap();
    block_on(more.expect("nobody is upgrading").release()).unwrap();
    block_on(reads.release()).unwrap();
    block_on(guard.upgrade(None)).unwrap();
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&redis, 0);
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
                    net.proxy.set(Faults::ANSWERS);
                    block_on(guard.release()).unwrap();
                    // Until it has been sent.
                    thread::sleep(Duration::from_millis(100));
                    net.proxy.set(Faults::NONE);
                    let released = Instant::now();
                    block_on(waiting.join().unwrap().release()).unwrap();
                    let took = released.elapsed();
                    eprintln!("looked by itself after {took:?}");
                    assert!(took < 2 * TTL + SLACK, "after {took:?}");
                });
                net.nothing_is_left();
            });
        }
    });
}

#[test]
fn short_outages_are_survived() {
    adversity::short_outages_are_survived(&net());
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
    net.nothing_is_left();
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
    net.proxy.repeat();
    next.check().unwrap();
    thread::sleep(TTL);
    next.check().unwrap();
    let status = block_on(net.other.list("lock")).unwrap();
    assert_eq!(status[0].holders[0].fencing_token, next.fencing_token(), "{status:?}");
    block_on(next.release()).unwrap();
    net.nothing_is_left();
}

/// ... nor does a release by force that comes once more free whoever has come since.
#[test]
fn a_release_by_force_that_is_repeated_later_frees_nobody_else() {
    let net = net();
    net.proxy.record();
    let ours = locker(&net.url);
    let guard = acquire(&net.other, "lock");
    assert_eq!(block_on(ours.force_release("lock", None)).unwrap().len(), 1);
    drop(ours);
    net.proxy.reset();
    let next = acquire(&net.other, "lock");
    net.proxy.repeat();
    thread::sleep(TTL);
    next.check().unwrap();
    let status = block_on(net.other.list("lock")).unwrap();
    assert_eq!(status[0].holders[0].fencing_token, next.fencing_token(), "{status:?}");
    assert!(!guard.is_held());
    block_on(next.release()).unwrap();
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
    net.proxy.set(Faults::ANSWERS);
    let backend = windlass::open_backend(&net.url, Arc::new(windlass::rt::Native)).unwrap();
    let start = Instant::now();
    let watched = block_on(backend.changes(""));
    assert_eq!(watched.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(start.elapsed() < PATIENCE, "after {:?}", start.elapsed());
}
