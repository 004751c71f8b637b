//! Holders and waiters that stop or die, and what somebody else does to what they hold.

use std::{thread, time::Instant};

use rustix::process::Signal;
use windlass::{ErrorKind, LostReason};
use windlass_tests::{
    adversity,
    processes::until,
    redis::{PREFIX, key_of},
};

use super::{
    LATELY, SLACK, TTL, acquire, block_on, fresh, locker, locker_with, next, nothing_is_left_in, redis,
    served, waits, worker, worker_with,
};

#[test]
fn a_killed_holder_frees_the_lock() {
    let database = next();
    let url = redis().url(database);
    let (holder, _folder) = worker(&url);
    adversity::a_killed_holder_frees_the_lock(holder, &locker(&url));
    nothing_is_left_in(redis(), database);
}

/// ... also right after its look, when it would be taken for one that lives if its connection were not gone.
#[test]
fn a_killed_waiter_blocks_nobody() {
    let redis = fresh();
    // Long, so that it is not the TTL that ends it.
    let ours = locker_with(&redis.url(0), 15 * TTL);
    let guard = acquire(&ours, "lock");
    let (mut dead, _folder) = worker_with(&redis.url(0), 15 * TTL);
    dead.say("acquire 1 lock exclusive");
    dead.expect("waiting 1");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        let connected = || redis.info("connected_clients").parse::<u32>().unwrap();
        let before = connected();
        dead.kill();
        until("Redis to see that it is gone", || connected() < before);
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(behind.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < TTL + SLACK, "after {:?}", released.elapsed());
    });
    nothing_is_left_in(&redis, 0);
}

/// A whole line of the dead is no longer in the way than one of them.
#[test]
fn a_line_of_the_dead_blocks_nobody() {
    let database = next();
    let url = redis().url(database);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    let (mut dead, _folder) = worker(&url);
    for id in 1..=20 {
        dead.say(&format!("acquire {id} lock exclusive"));
        dead.expect(&format!("waiting {id}"));
    }
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        dead.kill();
        // Longer than a place is kept for one who says nothing.
        until("the dead to be seen as such", || block_on(ours.list("lock")).unwrap()[0].waiters.len() == 1);
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(behind.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < TTL + SLACK, "after {:?}", released.elapsed());
    });
    nothing_is_left_in(redis(), database);
}

#[test]
fn a_stopped_holder_knows_that_it_is_over() {
    let database = next();
    let url = redis().url(database);
    let (holder, _folder) = worker(&url);
    adversity::a_stopped_holder_knows_that_it_is_over(holder, &locker(&url));
    nothing_is_left_in(redis(), database);
}

/// It has lost its place, stands in line anew, and is never granted by mistake.
#[test]
fn a_stopped_waiter_queues_again() {
    let database = next();
    let url = redis().url(database);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    let (mut stopped, _folder) = worker(&url);
    stopped.say("acquire 1 lock exclusive");
    stopped.expect("waiting 1");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        stopped.signal(Signal::STOP);
        let waiters = || block_on(ours.list("lock")).unwrap()[0].waiters.len();
        until("the end of its place", || waiters() == 1);
        block_on(guard.release()).unwrap();
        let behind = behind.join().unwrap();
        stopped.signal(Signal::CONT);
        until("its new place", || waiters() == 1);
        assert!(stopped.is_silent_of("acquired 1 ", 100));
        let token = behind.fencing_token();
        block_on(behind.release()).unwrap();
        assert!(stopped.rest_of("acquired 1 ").parse::<u64>().unwrap() > token);
        stopped.ask("check 1", "held 1");
        stopped.ask("release 1", "released 1");
    });
    nothing_is_left_in(redis(), database);
}

/// A grant that its new holder has not noticed, because it was stopped, goes on to the next.
#[test]
fn a_grant_to_one_who_is_stopped_goes_on() {
    let database = next();
    let url = redis().url(database);
    // Long, so that it is not the TTL that ends it.
    let ours = locker_with(&url, 15 * TTL);
    let guard = acquire(&ours, "lock");
    let (mut stopped, _folder) = worker_with(&url, 15 * TTL);
    stopped.say("acquire 1 lock exclusive");
    stopped.expect("waiting 1");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        stopped.signal(Signal::STOP);
        // Until its last look is so long ago that it may be dead.
        thread::sleep(LATELY);
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        let behind = behind.join().unwrap();
        assert!(released.elapsed() < TTL + SLACK, "after {:?}", released.elapsed());
        stopped.signal(Signal::CONT);
        assert!(stopped.is_silent_of("acquired 1 ", 100));
        behind.check().unwrap();
        block_on(behind.release()).unwrap();
        stopped.rest_of("acquired 1 ");
        stopped.ask("check 1", "held 1");
        stopped.ask("release 1", "released 1");
    });
    nothing_is_left_in(redis(), database);
}

/// A turn waits for whoever keeps a place for as long as it is kept, and not for the TTL.
#[test]
fn a_place_is_kept_no_longer_than_told() {
    let redis = fresh();
    let ours = locker_with(&redis.url(0), 15 * TTL);
    let guard = acquire(&ours, "lock");
    let error = block_on(ours.lock("lock").timeout(TTL / 20).keep_place(TTL)).unwrap_err();
    assert!(error.ticket().is_some(), "{error}");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(behind.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < 5 * TTL, "after {:?}", released.elapsed());
    });
    nothing_is_left_in(&redis, 0);
}

/// A child of `fork` uses the same lock by itself, and takes nothing from its parent.
#[test]
fn a_fork_is_another_client() {
    let database = next();
    let (mut parent, _folder) = worker(&redis().url(database));
    parent.say("acquire 1 held exclusive");
    parent.rest_of("acquired 1 ");
    for _ in 0..3 {
        parent.say("inherit other");
        let said = parent.rest_of("inherited ");
        let child = said.split(' ').next().unwrap();
        assert!(said.ends_with(&format!(":{child}")), "{said}");
        parent.ask("check 1", "held 1");
    }
    thread::sleep(TTL);
    parent.ask("check 1", "held 1");
    parent.ask("release 1", "released 1");
    nothing_is_left_in(redis(), database);
}

/// An operator who deletes the key frees the lock, and its holder knows at the next renewal.
#[test]
fn a_deleted_key_is_a_release_by_force() {
    let database = next();
    let url = redis().url(database);
    let long = 5 * TTL;
    let (ours, other) = (locker_with(&url, long), locker(&url));
    let (guard, kept) = (acquire(&ours, "lock"), acquire(&ours, "kept"));
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        redis().ask_in(database, &["DEL", &key_of(PREFIX, "lock")]);
        let deleted = Instant::now();
        assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
        assert!(deleted.elapsed() < long, "after {:?}", deleted.elapsed());
        assert!(!guard.is_held());
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    kept.check().unwrap();
    block_on(kept.release()).unwrap();
    nothing_is_left_in(redis(), database);
}

/// ... or at its release, if that comes first, also where somebody else has the lock by then.
#[test]
fn a_release_says_that_the_key_was_deleted() {
    let database = next();
    let url = redis().url(database);
    let (ours, other) = (locker_with(&url, 15 * TTL), locker(&url));
    for taken in [false, true] {
        let (guard, kept) = (acquire(&ours, "lock"), acquire(&ours, "kept"));
        redis().ask_in(database, &["DEL", &key_of(PREFIX, "lock")]);
        let next = taken.then(|| acquire(&other, "lock"));
        let error = block_on(guard.release()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost(LostReason::ForceReleased), "{error}");
        block_on(kept.release()).unwrap();
        if let Some(next) = next {
            next.check().unwrap();
            block_on(next.release()).unwrap();
        }
    }
    assert_eq!(ours.metrics().unwrap().lost_force_released, 2);
    nothing_is_left_in(redis(), database);
}

/// All that is known of a line may be deleted: who waited stands in line anew, and is not granted what is held.
#[test]
fn a_deleted_line_forms_again() {
    let database = next();
    let ours = locker(&redis().url(database));
    let guard = acquire(&ours, "lock");
    let lock = key_of(PREFIX, "lock");
    thread::scope(|scope| {
        let waiting = [(); 3].map(|()| waits(scope, ours.lock("lock")));
        for key in redis().keys(database).iter().filter(|key| **key != lock) {
            redis().ask_in(database, &["DEL", key]);
        }
        until("their new places", || block_on(ours.list("lock")).unwrap()[0].waiters.len() == 3);
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
        served(waiting);
    });
    nothing_is_left_in(redis(), database);
}

/// All that there is goes at once, under holders and waiters.
#[test]
fn a_flushed_database_is_told() {
    let redis = fresh();
    let ours = locker(&redis.url(0));
    let guard = acquire(&ours, "lock");
    let token = guard.fencing_token();
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        redis.ask(&["FLUSHALL"]);
        assert!(matches!(block_on(guard.lost()), LostReason::ForceReleased | LostReason::Expired));
        let waiting = waiting.join().unwrap();
        assert!(waiting.fencing_token() > token, "also where the last one is forgotten");
        block_on(waiting.release()).unwrap();
    });
    let error = block_on(guard.release()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
    // One who has never seen a token of this lock.
    let other = acquire(&locker(&redis.url(0)), "lock");
    assert!(other.fencing_token() > token);
    block_on(other.release()).unwrap();
    nothing_is_left_in(&redis, 0);
}
