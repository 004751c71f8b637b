//! A bad network between ours and the API server: cut at any byte, dead in one direction or in both, late.

use std::{
    thread,
    time::{Duration, Instant},
};

use windlass::ErrorKind;
use windlass_tests::{
    adversity::{self, Net},
    crowd::Crowd,
    place::{acquire, block_on, waits},
    proxy::{Faults, Proxy},
};

use super::{SLACK, TTL, cluster, left, locker, locker_with};

fn net() -> Net {
    let (proxy, namespace) = (Proxy::before(cluster().address()), cluster().namespace());
    let url = cluster().url_at(proxy.address(), &namespace, "admin-token");
    let (locker, other) = (locker(&url), locker(&cluster().url(&namespace)));
    Net { proxy, url, locker, other, left: Box::new(move || left(cluster(), &namespace)) }
}

#[test]
fn broken_at_every_few_bytes() {
    adversity::broken_at_every_few_bytes(net, 6, [29, 1_400], [37, 1_800]);
}

#[test]
fn a_waiter_keeps_its_place_over_broken_connections() {
    adversity::a_waiter_keeps_its_place_over_broken_connections(&net());
}

#[test]
fn cut_off_holders_know_first() {
    adversity::cut_off_holders_know_first(net, 2 * TTL + SLACK);
}

/// What the API server said of a release and nobody heard costs time only.
#[test]
fn what_was_not_heard_costs_time_only() {
    let net = net();
    let guard = acquire(&net.other, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, net.locker.lock("lock"));
        net.proxy.set(Faults::ANSWERS);
        block_on(guard.release()).unwrap();
        thread::sleep(TTL / 4);
        net.proxy.set(Faults::NONE);
        let healed = Instant::now();
        // Nobody waits behind it, so its grant stays.
        block_on(waiting.join().unwrap().release()).unwrap();
        let took = healed.elapsed();
        eprintln!("found out {took:?} later");
        assert!(took < Duration::from_secs(20), "after {took:?}");
    });
    net.nothing_is_left();
}

/// A connection over which nothing comes any more is given up for another one while the leases still last.
#[test]
fn a_connection_that_dies_silently_costs_nothing() {
    const DEFAULT: Duration = Duration::from_secs(10);
    let net = net();
    let ours = locker_with(&net.url, DEFAULT);
    let guard = acquire(&ours, "lock");
    // Until it hears.
    thread::sleep(Duration::from_millis(500));
    net.proxy.hold_up();
    thread::sleep(DEFAULT + DEFAULT / 2);
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    net.nothing_is_left();
}

#[test]
fn short_outages_are_survived() {
    adversity::short_outages_are_survived(&net());
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
    net.nothing_is_left();
}

/// Nobody believes to hold what another holds, whatever the network does meanwhile.
#[test]
fn taking_turns_over_a_bad_network() {
    let net = net();
    let crowd = Crowd::start(|| locker(&net.url));
    for faults in [Faults::REQUESTS, Faults::ANSWERS, Faults::BOTH] {
        net.proxy.set(faults);
        thread::sleep(TTL + TTL / 2);
        net.proxy.set(Faults::NONE);
        net.proxy.reset();
        eprintln!("turns for everybody {:?} after {faults:?}", crowd.everybody_has_turns());
    }
    for _ in 0..10 {
        net.proxy.reset();
        thread::sleep(Duration::from_millis(100));
    }
    crowd.everybody_has_turns();
    crowd.end();
    net.nothing_is_left();
}
