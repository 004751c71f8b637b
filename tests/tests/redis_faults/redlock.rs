//! Three servers that know nothing of one another, of which two have to agree.

use std::{
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, LostReason};
use windlass_tests::{
    crowd::Crowd,
    redis::{Server, redlock_url},
};

use super::{SLACK, TTL, acquire, block_on, fresh, locker, locker_with, nothing_is_left, waits};

fn three() -> [Server; 3] {
    std::array::from_fn(|_| fresh())
}

fn nothing_is_left_on(servers: &[Server]) {
    nothing_is_left(|| {
        servers.iter().filter(|server| server.runs()).flat_map(|server| server.keys(0)).collect()
    });
}

#[test]
fn one_of_three_is_killed() {
    one_is_gone(Server::kill, Server::start_again);
}

#[test]
fn one_of_three_hangs() {
    one_is_gone(Server::stop, Server::go_on);
}

/// Nobody misses it.
fn one_is_gone(harm: impl FnOnce(&mut Server), mend: impl FnOnce(&mut Server)) {
    let mut servers = three();
    let url = redlock_url(&servers, 0);
    let crowd = Crowd::start(|| locker(&url));
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    harm(&mut servers[0]);
    let turns = crowd.everybody_has_turns();
    assert!(turns < 5 * TTL + SLACK, "after {turns:?}");
    let start = Instant::now();
    while start.elapsed() < 2 * TTL {
        guard.check().unwrap();
        thread::sleep(TTL / 10);
    }
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    // Whatever it had is over by now.
    mend(&mut servers[0]);
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left_on(&servers);
}

/// Without most of them there is no lock: who asks is told, and who holds knows in time.
#[test]
fn two_of_three_are_gone() {
    let mut servers = three();
    let url = redlock_url(&servers, 0);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    servers[1].kill();
    servers[2].stop();
    let gone = Instant::now();
    block_on(guard.lost());
    assert!(gone.elapsed() < TTL + Duration::from_millis(100), "told after {:?}", gone.elapsed());
    let start = Instant::now();
    let error = block_on(ours.lock("lock").timeout(TTL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
    servers[2].go_on();
    block_on(acquire(&ours, "lock").release()).unwrap();
    nothing_is_left_on(&servers);
}

/// What a minority has does not count: a claim that only one of them has granted stands in nobody's way for longer than its TTL.
#[test]
fn a_minority_is_nobody() {
    let servers = three();
    let url = redlock_url(&servers, 0);
    let ours = locker_with(&url, 5 * TTL);
    let alone = locker(&servers[0].url(0));
    let half = acquire(&alone, "lock");
    let guard = acquire(&ours, "lock");
    half.check().unwrap();
    guard.check().unwrap();
    block_on(half.release()).unwrap();
    block_on(guard.release()).unwrap();
    nothing_is_left_on(&servers);
}

/// A server that has lost its memory costs nobody the lock; when most have, the release says so, whichever answers first.
#[test]
fn servers_that_lost_their_memory() {
    let servers = three();
    let ours = locker_with(&redlock_url(&servers, 0), 15 * TTL);
    for forgetful in [1, 2, 3].repeat(5) {
        let guard = acquire(&ours, "lock");
        servers.iter().take(forgetful).for_each(|server| drop(server.ask(&["FLUSHALL"])));
        let released = block_on(guard.release()).map_err(|error| error.kind());
        let lost = Err(ErrorKind::Lost(LostReason::ForceReleased));
        assert_eq!(released, if forgetful == 1 { Ok(()) } else { lost });
    }
    nothing_is_left_on(&servers);
}

/// What cannot be agreed on is refused.
#[test]
fn only_exclusive_claims() {
    let servers = three();
    let ours = locker(&redlock_url(&servers, 0));
    for lock in [ours.lock("lock").shared(), ours.lock("lock").permit(2)] {
        let error = block_on(lock).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}
