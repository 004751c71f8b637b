//! Members that are killed, hang, start again and are replaced, under load. Nobody who holds loses the lock by it, everybody
//! who waits keeps the place, and no lock is believed to be held twice.

use std::time::{Duration, Instant};

use windlass::{ErrorKind, LostReason, Result};
use windlass_tests::{
    crowd::Crowd,
    etcd::{Cluster, Release, Setup},
    place::block_on,
};

use super::{acquire, locker, locker_with, nothing_is_left, prefix, waits};

/// Grants go on after an election and as long as it takes to leave a member that hangs; on a machine with much else to do an
/// election may have to be held more than once.
const GOES_ON_WITHIN: Duration = Duration::from_secs(25);
/// The TTL that everybody has.
const LONG: Duration = Duration::from_secs(10);
/// One that an election fits into just so: two thirds of it are left if the leader is harmed at the worst moment, and a try to
/// renew that fails then can put off the next by a third.
const SHORT: Duration = Duration::from_secs(4);
/// A leader that is elected within this, less than another third, is in time for those.
const IN_TIME: Duration = Duration::from_secs(1);

#[test]
fn the_leader_is_killed() {
    harmed(Release::Newest, After::AllHold, |etcd| {
        let leader = etcd.leader();
        etcd.kill(leader);
        Box::new(move |etcd| etcd.start_again(leader))
    });
}

#[test]
fn the_leader_hangs() {
    harmed(Release::Newest, After::SomeAreTold, |etcd| {
        let leader = etcd.leader();
        etcd.stop(leader);
        Box::new(move |etcd| etcd.go_on(leader))
    });
}

#[test]
fn a_follower_is_killed() {
    harmed(Release::Debian, After::AllHold, |etcd| {
        let follower = etcd.follower();
        etcd.kill(follower);
        Box::new(move |etcd| etcd.start_again(follower))
    });
}

#[test]
fn a_follower_hangs() {
    harmed(Release::Debian, After::AllHold, |etcd| {
        let follower = etcd.follower();
        etcd.stop(follower);
        Box::new(move |etcd| etcd.go_on(follower))
    });
}

#[test]
fn a_member_is_replaced() {
    harmed(Release::Newest, After::AllHold, |etcd| {
        etcd.replace(etcd.follower());
        Box::new(|_| {})
    });
}

#[test]
fn all_are_killed_and_start_again() {
    harmed(Release::Debian, After::AllHold, |etcd| {
        (0..3).for_each(|n| etcd.kill(n));
        (0..3).for_each(|n| etcd.start_again(n));
        Box::new(|_| {})
    });
}

/// What becomes of what is held once the harm is mended.
#[derive(Clone, Copy, PartialEq)]
enum After {
    AllHold,
    /// A leader that goes on after it hung for longer than a TTL may revoke the leases that it knows, before it hears that it
    /// leads no longer. Who holds by one is told, and until then only the greater token of the next one tells.
    SomeAreTold,
}

type Mend = Box<dyn FnOnce(&mut Cluster)>;

/// Three members, whose clients begin with each of them, and one harm.
fn harmed(release: Release, after: After, harm: impl FnOnce(&mut Cluster) -> Mend) {
    let mut etcd = Setup::new(release).members(3).start();
    let prefix = prefix();
    let urls: Vec<String> = (0..3)
        .map(|first| {
            let hosts: Vec<_> = (0..3).map(|n| etcd.address((first + n) % 3)).collect();
            etcd.url_at(&hosts, &prefix)
        })
        .collect();
    let next = std::cell::Cell::new(0);
    let crowd = Crowd::start(|| {
        next.set(next.get() + 1);
        locker(&urls[next.get() % 3])
    });
    let lockers = urls.iter().flat_map(|url| [LONG, SHORT].map(|ttl| (ttl, locker_with(url, ttl))));
    let held: Vec<_> = lockers
        .enumerate()
        .map(|(n, (ttl, locker))| {
            let guard = acquire(&locker, &format!("held-{n}"));
            (guard, locker, ttl)
        })
        .collect();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..held.len())
            .map(|n| waits(scope, held[(n + 2) % held.len()].1.lock(format!("held-{n}"))))
            .collect();
        let start = Instant::now();
        let mend = harm(&mut etcd);
        let harmed = Instant::now();
        etcd.leader();
        let in_time = harmed.elapsed() < IN_TIME;
        let is_held = |answer: Result<()>, ttl| match answer.map_err(|error| error.kind()) {
            Ok(()) => {}
            Err(ErrorKind::Lost(LostReason::SessionEnded)) if after == After::SomeAreTold => {}
            Err(ErrorKind::Lost(LostReason::Unreachable)) if ttl == SHORT && !in_time => {}
            Err(kind) => panic!("one with a TTL of {ttl:?}: {kind:?}"),
        };
        crowd.everybody_has_turns();
        let went_on = start.elapsed();
        for (guard, _, ttl) in &held {
            is_held(guard.check(), *ttl);
        }
        crowd.no_overlap_so_far();
        mend(&mut etcd);
        etcd.until_healthy();
        let healed = crowd.everybody_has_turns();
        eprintln!("everybody had turns {went_on:?} after the harm, {healed:?} after it was mended");
        assert!(went_on < GOES_ON_WITHIN, "after {went_on:?}");
        for (guard, _, ttl) in held {
            is_held(block_on(guard.release()), ttl);
        }
        for waiting in waiting {
            block_on(waiting.join().unwrap().release()).unwrap();
        }
    });
    match after {
        After::AllHold => crowd.end(),
        After::SomeAreTold => {
            let (locks, twice) = (crowd.locks(), crowd.end_by_tokens());
            assert!(
                twice <= locks,
                "whoever held when it went on: one of each lock at the most, not {twice}"
            );
        }
    }
    nothing_is_left(&etcd, &prefix);
}
