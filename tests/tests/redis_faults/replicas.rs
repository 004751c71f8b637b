//! A replica that takes over: from a primary that it was in step with, and from one that it was not; led by hand, and by Sentinels.

use std::{
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Guard, Locker, LostReason};
use windlass_tests::{
    crowd::Crowd,
    place::PATIENCE,
    processes::until,
    proxy::{Faults, Proxy},
    redis::{Release, Server, Watched},
};

use super::{
    SLACK, TTL, acquire, block_on, fresh, locker, locker_with, nothing_is_left, nothing_is_left_in, waits,
};

/// How long the answers of a slow replica are on their way: those of two dozen, one after another, take longer than a renewal may;
/// and each less by far than it is waited for.
const SLOW: Duration = Duration::from_millis(100);

/// A primary and its replica behind one address.
struct Pair {
    primary: Server,
    replica: Server,
    /// What the replica follows.
    link: Proxy,
    /// Where clients go.
    front: Proxy,
}

impl Pair {
    fn new() -> Self {
        let (primary, replica) = (fresh(), fresh());
        let (link, front) = (Proxy::before(primary.address()), Proxy::before(primary.address()));
        replica.follow(link.address());
        Self { primary, replica, link, front }
    }

    fn url(&self) -> String {
        self.primary.url_at(self.front.address(), 0)
    }

    /// The primary dies, the replica is made the primary of all clients.
    fn fail_over(&mut self) {
        self.primary.kill();
        self.replica.promote();
        self.front.lead_to(self.replica.address());
        self.front.reset();
    }
}

/// What the replica has is not lost: who holds, holds, and who waits, waits.
#[test]
fn one_in_step_takes_over() {
    let mut pair = Pair::new();
    let (ours, other) = (locker_with(&pair.url(), 5 * TTL), locker_with(&pair.url(), 5 * TTL));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let first = waits(scope, other.lock("lock"));
        let second = waits(scope, ours.lock("lock"));
        pair.primary.until_followed_by(&pair.replica);
        pair.fail_over();
        assert!(block_on(other.lock("lock").timeout(TTL)).is_err());
        guard.check().unwrap();
        assert!(!first.is_finished() && !second.is_finished());
        let token = guard.fencing_token();
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        assert!(first.fencing_token() > token);
        assert!(!second.is_finished());
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    nothing_is_left_in(&pair.replica, 0);
}

/// What the replica has not, is lost: the lock is given to another, whose token is greater, and the first holder is told at its
/// next renewal. Until then both believe.
#[test]
fn one_that_lags_takes_over() {
    let mut pair = Pair::new();
    let (ours, other) = (locker(&pair.url()), locker(&pair.url()));
    // Both have seen tokens of before.
    block_on(acquire(&other, "lock").release()).unwrap();
    pair.primary.until_followed_by(&pair.replica);
    pair.link.hold_up();
    let guard = acquire(&ours, "lock");
    pair.fail_over();
    let start = Instant::now();
    let next = acquire(&other, "lock");
    eprintln!("the first one believes to hold still: {}", guard.is_held());
    assert!(next.fencing_token() > guard.fencing_token(), "what it guards can tell who is the later one");
    assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
    assert!(start.elapsed() < TTL, "told after {:?}", start.elapsed());
    let error = block_on(guard.release()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
    next.check().unwrap();
    block_on(next.release()).unwrap();
    nothing_is_left_in(&pair.replica, 0);
}

/// ... unless a grant is wanted to be on a replica before it is one.
#[test]
fn grants_that_replicas_have() {
    let mut pair = Pair::new();
    let url = format!("{}?min_replicas=1", pair.url());
    let (ours, other) = (locker_with(&url, 5 * TTL), locker(&pair.url()));
    block_on(acquire(&ours, "before").release()).unwrap();
    pair.link.hold_up();
    let start = Instant::now();
    let error = block_on(ours.lock("lock").timeout(TTL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(error.to_string().contains("min_replicas"), "{error}");
    assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
    // It is nobody's, for those who ask for less.
    block_on(acquire(&other, "lock").release()).unwrap();
    pair.link.let_go();
    let guard = acquire(&ours, "lock");
    pair.fail_over();
    assert!(block_on(other.lock("lock").timeout(TTL)).is_err());
    guard.check().unwrap();
    // There is no replica any more, but what is held can be released.
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&pair.replica, 0);
}

/// ... also where it waited for a moment only, and others would hold by what they are told.
#[test]
fn grants_after_a_moment_that_replicas_have() {
    let pair = Pair::new();
    let url = format!("{}?min_replicas=1", pair.url());
    let (ours, other, third) = (locker_with(&url, 5 * TTL), locker(&pair.url()), locker_with(&url, 5 * TTL));
    for ours in [&ours, &third] {
        block_on(acquire(ours, "before").release()).unwrap();
    }
    let guard = acquire(&other, "lock");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(ours.lock("lock").timeout(TTL)).unwrap_err());
        until("it to wait", || block_on(other.list("lock")).unwrap()[0].waiters.len() == 1);
        // The replica says so that it has the place in line, too.
        let heard = acquire(&third, "heard");
        pair.link.hold_up();
        block_on(guard.release()).unwrap();
        let error = waiting.join().unwrap();
        assert!(error.to_string().contains("min_replicas"), "{error}");
        block_on(heard.release()).unwrap();
    });
    block_on(acquire(&other, "lock").release()).unwrap();
    pair.link.let_go();
    nothing_is_left_in(&pair.primary, 0);
}

/// Who waits for replicas asks on by the same claim, and gives nothing back meanwhile that could come late and end what is granted
/// next: nobody is let in in between.
#[test]
fn who_waits_for_replicas_keeps_the_lock() {
    let pair = Pair::new();
    let (ours, other) =
        (locker_with(&format!("{}?min_replicas=1", pair.url()), 5 * TTL), locker(&pair.url()));
    let guard = acquire_where_no_replica_has_it(&pair, &ours, || {
        let start = Instant::now();
        while start.elapsed() < TTL {
            assert!(block_on(other.lock("lock").try_acquire()).unwrap().is_none());
            thread::sleep(TTL / 100);
        }
        pair.link.let_go();
    });
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&pair.primary, 0);
}

/// Cuts the replica off and asks; once the primary has the grant, something happens, by which it counts in the end.
fn acquire_where_no_replica_has_it(pair: &Pair, ours: &Locker, happens: impl FnOnce()) -> Guard {
    block_on(acquire(ours, "before").release()).unwrap();
    pair.primary.until_followed_by(&pair.replica);
    pair.link.hold_up();
    thread::scope(|scope| {
        let asks = scope.spawn(|| acquire(ours, "lock"));
        until("the grant", || pair.primary.keys(0).iter().any(|key| key == "windlass:lock"));
        happens();
        asks.join().unwrap()
    })
}

/// Another is made the primary while one waits for it to have the grant: that it has a replica itself does not count.
#[test]
fn a_grant_that_only_the_old_primary_has_is_none() {
    let (pair, third) = (Pair::new(), fresh());
    third.follow(pair.replica.address());
    let (ours, other) =
        (locker_with(&format!("{}?min_replicas=1", pair.url()), 5 * TTL), locker(&pair.url()));
    let guard = acquire_where_no_replica_has_it(&pair, &ours, || {
        pair.replica.promote();
        pair.front.lead_to(pair.replica.address());
        pair.front.reset();
    });
    assert!(block_on(other.lock("lock").try_acquire()).unwrap().is_none(), "nobody else has it");
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&pair.replica, 0);
}

/// Many that wait for a replica that answers slowly are in the way of nobody who renews.
#[test]
fn who_waits_for_replicas_holds_up_nobody() {
    let pair = Pair::new();
    let ours = locker_with(&format!("{}?min_replicas=1", pair.url()), 3 * TTL);
    let guard = acquire(&ours, "held");
    pair.link.set(Faults { delay: SLOW, ..Faults::NONE });
    let start = Instant::now();
    thread::scope(|scope| {
        for n in 0..24 {
            let lock = ours.lock(format!("lock-{n}")).timeout(TTL);
            scope.spawn(move || {
                while start.elapsed() < 4 * TTL {
                    if let Ok(guard) = block_on(lock.clone().into_future()) {
                        block_on(guard.release()).unwrap();
                    }
                }
            });
        }
        while start.elapsed() < 4 * TTL {
            guard.check().unwrap();
            thread::sleep(TTL / 20);
        }
    });
    pair.link.set(Faults::NONE);
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&pair.primary, 0);
}

/// The replica is made a primary by those who cannot see the old one, which answers its holder all the time: the holder is told
/// before anybody is let in elsewhere, for the replica does not have its renewals.
#[test]
fn a_primary_that_is_cut_off_with_its_holder() {
    let pair = Pair::new();
    let ours = locker(&format!("{}?min_replicas=1", pair.url()));
    let other = locker(&pair.replica.url(0));
    let guard = acquire(&ours, "lock");
    pair.link.hold_up();
    pair.replica.promote();
    assert!(block_on(other.lock("lock").try_acquire()).unwrap().is_none(), "it has the grant");
    let next = acquire(&other, "lock");
    assert!(!guard.is_held(), "two hold");
    assert_eq!(block_on(guard.lost()), LostReason::Unreachable);
    assert!(next.fencing_token() > guard.fencing_token());
    block_on(next.release()).unwrap();
    drop(guard);
    nothing_is_left_in(&pair.replica, 0);
    nothing_is_left_in(&pair.primary, 0);
}

/// An upgrade that the new primary has not heard of is none: who made it is told, for others may read beside it.
#[test]
fn an_upgrade_that_is_lost_is_told() {
    let mut pair = Pair::new();
    let (ours, other) = (locker(&pair.url()), locker(&pair.url()));
    let guard = block_on(ours.lock("lock").upgradable().timeout(PATIENCE)).unwrap();
    pair.primary.until_followed_by(&pair.replica);
    pair.link.hold_up();
    block_on(guard.upgrade(PATIENCE)).unwrap();
    pair.fail_over();
    let start = Instant::now();
    let reads = block_on(other.lock("lock").shared().timeout(PATIENCE)).unwrap();
    assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
    assert!(start.elapsed() < TTL, "told after {:?}", start.elapsed());
    reads.check().unwrap();
    block_on(reads.release()).unwrap();
    drop(guard);
    nothing_is_left_in(&pair.replica, 0);
}

/// ... unless it is wanted to be on a replica before it is one.
#[test]
fn upgrades_that_replicas_have() {
    let pair = Pair::new();
    let ours = locker_with(&format!("{}?min_replicas=1", pair.url()), 5 * TTL);
    let guard = block_on(ours.lock("lock").upgradable().timeout(PATIENCE)).unwrap();
    pair.link.hold_up();
    let error = block_on(guard.upgrade(TTL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    guard.check().unwrap();
    pair.link.let_go();
    block_on(guard.upgrade(PATIENCE)).unwrap();
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&pair.primary, 0);
}

/// A primary that has become a replica under its clients refuses to write: they find the new one.
#[test]
fn a_primary_becomes_a_replica() {
    let pair = Pair::new();
    let ours = locker_with(&pair.url(), 5 * TTL);
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        pair.primary.until_followed_by(&pair.replica);
        pair.replica.promote();
        // The connections that there are lead to the old one still, and it does not break them.
        pair.primary.ask(&["REPLICAOF", "127.0.0.1", &pair.replica.address().port().to_string()]);
        pair.front.lead_to(pair.replica.address());
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    nothing_is_left_in(&pair.replica, 0);
}

/// One who is led to a replica is told that it is one.
#[test]
fn a_replica_is_no_place_for_locks() {
    let pair = Pair::new();
    let url = pair.replica.url(0);
    let start = Instant::now();
    let error = block_on(locker(&url).lock("lock").timeout(TTL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(error.to_string().contains("replica"), "{error}");
    assert!(error.to_string().contains(&pair.replica.address().to_string()), "{error}");
    assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
}

/// What the Sentinels do when the primary is gone: nobody has to do anything. A lock may have been given in the last moment
/// without the new primary's knowing, and then is given again; but never by the same or a lower token.
#[test]
fn sentinels_replace_a_primary_that_is_killed() {
    let mut watched = Watched::start(Release::Debian);
    let crowd = harmed(&mut watched, Server::kill);
    end(crowd, &watched);
    // The old one comes back, is made a replica, and is the next to take over.
    watched.start_again();
    let crowd = harmed(&mut watched, Server::kill);
    end(crowd, &watched);
}

/// The old one goes on as if nothing were, until it is told that it is a replica now.
#[test]
fn sentinels_replace_a_primary_that_hangs() {
    let mut watched = Watched::start(Release::Valkey);
    let old = watched.primary().address();
    let crowd = harmed(&mut watched, Server::stop);
    watched.at(old).go_on();
    crowd.everybody_has_turns();
    watched.until_replica(old);
    crowd.everybody_has_turns();
    end(crowd, &watched);
}

fn harmed(watched: &mut Watched, harm: impl FnOnce(&mut Server)) -> Crowd {
    let url = watched.url(0);
    let crowd = Crowd::start(|| locker(&url));
    let (ours, other) = (locker_with(&url, 10 * TTL), locker_with(&url, 10 * TTL));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        // Nothing else is said of what the replica has not.
        watched.until_in_step();
        let old = watched.primary().address();
        harm(watched.primary_mut());
        let start = Instant::now();
        watched.until_other_than(old);
        let replaced = start.elapsed();
        let turns = crowd.everybody_has_turns();
        eprintln!("replaced {replaced:?} after the harm, {turns:?} later everybody had had turns");
        assert!(turns < 2 * TTL + SLACK, "after {turns:?}");
        guard.check().unwrap();
        assert!(!waiting.is_finished());
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < TTL + SLACK, "after {:?}", released.elapsed());
    });
    crowd
}

fn end(crowd: Crowd, watched: &Watched) {
    eprintln!("{} times two believed to hold at once", crowd.end_by_tokens());
    nothing_is_left(|| watched.primary().keys(0));
}

/// Sentinels that are gone matter to nobody who has a connection, and only all of them to who wants one.
#[test]
fn sentinels_that_die() {
    let mut watched = Watched::start(Release::Debian);
    let ours = locker(&watched.url(0));
    let guard = acquire(&ours, "lock");
    for n in 0..3 {
        watched.sentinel(n).kill();
        if n < 2 {
            block_on(acquire(&locker(&watched.url(0)), "other").release()).unwrap();
        }
    }
    thread::sleep(TTL);
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    let start = Instant::now();
    let error = block_on(locker(&watched.url(0)).lock("lock").timeout(TTL)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
    watched.sentinel(1).start_again();
    block_on(acquire(&ours, "lock").release()).unwrap();
    assert!(start.elapsed() < PATIENCE);
}

/// They have users of their own, of whom nobody has told us.
#[test]
fn sentinels_that_want_a_password() {
    let mut watched = Watched::start(Release::Debian);
    for n in 0..3 {
        watched.sentinel(n).ask(&["ACL", "SETUSER", "default", "resetpass", ">other"]);
    }
    let error = block_on(locker(&watched.url(0)).lock("lock").try_acquire()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("wants a password"), "{error}");
}
