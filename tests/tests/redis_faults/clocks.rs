//! A server whose clock is set: time is the server's, and it knows no other.

use std::{
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, LostReason};
use windlass_tests::redis::{Release, Server, Setup};

use super::{SLACK, TTL, acquire, block_on, locker, locker_with, nothing_is_left_in, waits, worker};

const HOUR: i32 = 3_600;

fn with_own_clock() -> Server {
    Setup::new(Release::Valkey).own_clock().start()
}

/// All that is held has run out then, for the server. The next has a greater token, and who held before is told at the next
/// renewal.
#[test]
fn set_forward() {
    let redis = with_own_clock();
    let long = 5 * TTL;
    let (ours, other) = (locker_with(&redis.url(0), long), locker(&redis.url(0)));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        redis.set_clock(HOUR);
        let set = Instant::now();
        let next = waiting.join().unwrap();
        assert!(set.elapsed() < TTL + SLACK, "after {:?}", set.elapsed());
        assert_eq!(block_on(guard.lost()), LostReason::Expired);
        assert!(set.elapsed() < long, "told after {:?}", set.elapsed());
        assert!(next.fencing_token() > guard.fencing_token());
        thread::sleep(TTL);
        next.check().unwrap();
        block_on(next.release()).unwrap();
    });
    let error = block_on(guard.release()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
    nothing_is_left_in(&redis, 0);
}

/// Those who live notice nothing, and tokens grow. Only the dead are missed an hour late: an operator can help.
#[test]
fn set_back() {
    let redis = with_own_clock();
    let url = redis.url(0);
    let (ours, other) = (locker(&url), locker_with(&url, 5 * TTL));
    let guard = acquire(&ours, "lock");
    let (mut dead, _folder) = worker(&url);
    dead.say("acquire 1 dead exclusive");
    dead.rest_of("acquired 1 ");
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        redis.set_clock(-HOUR);
        thread::sleep(TTL);
        guard.check().unwrap();
        let token = guard.fencing_token();
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        let next = waiting.join().unwrap();
        assert!(released.elapsed() < TTL, "after {:?}", released.elapsed());
        assert!(next.fencing_token() > token);
        thread::sleep(TTL);
        next.check().unwrap();
        block_on(next.release()).unwrap();
    });
    // What has begun since then ends when it should.
    let (mut later, _folder) = worker(&url);
    later.say("acquire 1 later exclusive");
    later.rest_of("acquired 1 ");
    later.kill();
    let killed = Instant::now();
    block_on(acquire(&ours, "later").release()).unwrap();
    assert!(killed.elapsed() < TTL + SLACK, "after {:?}", killed.elapsed());

    dead.kill();
    assert!(block_on(ours.lock("dead").timeout(2 * TTL)).is_err());
    assert_eq!(block_on(ours.force_release("dead", None)).unwrap().len(), 1);
    block_on(acquire(&ours, "dead").release()).unwrap();
    nothing_is_left_in(&redis, 0);
}

/// A clock that is wrong by an hour, all the time, is as good as any.
#[test]
fn wrong_all_the_time() {
    let redis = with_own_clock();
    redis.set_clock(-HOUR);
    let ours = locker(&redis.url(0));
    let guard = acquire(&ours, "lock");
    let start = Instant::now();
    while start.elapsed() < 2 * TTL {
        guard.check().unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    let status = block_on(ours.list("lock")).unwrap().remove(0);
    assert!(status.holders[0].held_for.is_some_and(|held| held < 3 * TTL), "{status:?}");
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&redis, 0);
}
