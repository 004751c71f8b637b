//! A server that dies, with its data or without; that hangs, is slow, hangs up, and forgets scripts.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use windlass::{ConnectOptions, ErrorKind, LostReason};
use windlass_tests::{
    adversity,
    crowd::Crowd,
    processes::until,
    redis::{Cluster, Release, Server, Setup, Watched},
};

use super::{
    SLACK, TTL, acquire, block_on, fresh, locker, locker_with, next, nothing_is_left_in, redis, served, waits,
};

/// With all that it has said on its disk nobody notices more than a pause.
#[test]
fn killed_with_its_data_on_disk() {
    let mut redis = Setup::new(Release::Debian).durable().start();
    let crowd = Crowd::start(|| locker(&redis.url(0)));
    // With the TTL that everybody has; each with a locker of its own.
    let held: Vec<_> = (0..6)
        .map(|n| {
            let locker = block_on(windlass::connect(&redis.url(0))).unwrap();
            (acquire(&locker, &format!("held-{n}")), locker)
        })
        .collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..held.len())
            .map(|n| waits(scope, held[(n + 1) % held.len()].1.lock(format!("held-{n}"))))
            .collect();
        redis.kill();
        redis.start_again();
        let healed = crowd.everybody_has_turns();
        eprintln!("everybody had turns {healed:?} after it was there again");
        assert!(healed < 2 * TTL + SLACK, "after {healed:?}");
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "who waits, waits on");
        for (guard, _) in held {
            guard.check().unwrap();
            block_on(guard.release()).unwrap();
        }
        for waiting in waiting {
            block_on(waiting.join().unwrap().release()).unwrap();
        }
    });
    crowd.end();
    nothing_is_left_in(&redis, 0);
}

/// ... also while it is away for longer than it takes to ask twice.
#[test]
fn away_for_a_while() {
    let mut redis = Setup::new(Release::Debian).durable().start();
    let ours = block_on(windlass::connect(&redis.url(0))).unwrap();
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let first = waits(scope, ours.lock("lock"));
        let second = waits(scope, ours.lock("lock"));
        redis.kill();
        thread::sleep(Duration::from_secs(3));
        guard.check().unwrap();
        redis.start_again();
        thread::sleep(Duration::from_secs(1));
        guard.check().unwrap();
        let token = guard.fencing_token();
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        assert!(!second.is_finished(), "the places are what they were");
        assert!(first.fencing_token() > token);
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    nothing_is_left_in(&redis, 0);
}

/// What it had only in memory is gone: whoever is let in then has a greater token, and whoever held before is told.
#[test]
fn killed_without_its_data() {
    let mut redis = fresh();
    let long = 5 * TTL;
    let (ours, other) = (locker_with(&redis.url(0), long), locker(&redis.url(0)));
    let guard = acquire(&ours, "lock");
    let token = guard.fencing_token();
    redis.kill();
    redis.start_again();
    let again = Instant::now();
    let next = acquire(&other, "lock");
    assert!(next.fencing_token() > token, "what it guards can tell who is the later one");
    assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
    let told = again.elapsed();
    eprintln!("told {told:?} after it was there again");
    assert!(told < long, "after {told:?}");
    next.check().unwrap();
    let error = block_on(guard.release()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
    block_on(next.release()).unwrap();
    // A locker that has never seen a token.
    let fresh = acquire(&locker(&redis.url(0)), "other lock");
    assert!(fresh.fencing_token() > token);
    block_on(fresh.release()).unwrap();
    nothing_is_left_in(&redis, 0);
}

/// Those who waited when all was lost get the lock.
#[test]
fn killed_without_its_line() {
    let mut redis = fresh();
    let (ours, other) = (locker(&redis.url(0)), locker(&redis.url(0)));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = [&ours, &other].map(|locker| waits(scope, locker.lock("lock")));
        redis.kill();
        redis.start_again();
        let again = Instant::now();
        served(waiting);
        assert!(again.elapsed() < TTL + SLACK, "after {:?}", again.elapsed());
    });
    block_on(guard.lost());
    nothing_is_left_in(&redis, 0);
}

/// Killed again and again under load, and empty each time: it may give a lock twice then, but never twice by the same or a
/// lower token.
#[test]
fn tokens_grow_over_restarts_that_lose_all() {
    let mut redis = fresh();
    let crowd = Crowd::start(|| locker(&redis.url(0)));
    for _ in 0..4 {
        redis.kill();
        redis.start_again();
        crowd.everybody_has_turns();
    }
    eprintln!("{} times two believed to hold at once", crowd.end_by_tokens());
    nothing_is_left_in(&redis, 0);
}

/// A holder knows by its own clock when a server that hangs may let in the next; a shorter pause costs nobody a lock.
#[test]
fn a_server_that_hangs() {
    let mut redis = fresh();
    let (ours, patient) = (locker(&redis.url(0)), locker_with(&redis.url(0), 10 * TTL));
    let (guard, kept) = (acquire(&ours, "lock"), acquire(&patient, "kept"));
    redis.stop();
    thread::sleep(TTL / 4);
    redis.go_on();
    thread::sleep(TTL);
    guard.check().unwrap();

    redis.stop();
    let stopped = Instant::now();
    thread::sleep(TTL);
    assert!(!guard.is_held(), "so long after the last time that it can have been renewed");
    assert_eq!(block_on(guard.lost()), LostReason::Unreachable);
    let told = stopped.elapsed();
    assert!(told < TTL + SLACK, "told after {told:?}");
    let start = Instant::now();
    let error = block_on(ours.lock("lock").timeout(TTL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
    redis.go_on();
    let next = acquire(&ours, "lock");
    assert!(next.fencing_token() > guard.fencing_token());
    kept.check().unwrap();
    block_on(next.release()).unwrap();
    block_on(kept.release()).unwrap();
    nothing_is_left_in(&redis, 0);
}

/// One who waits at a server that hangs has the place still when it goes on.
#[test]
fn places_outlive_a_server_that_hangs() {
    let mut redis = fresh();
    let ours = locker_with(&redis.url(0), 10 * TTL);
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let first = waits(scope, ours.lock("lock"));
        let second = waits(scope, ours.lock("lock"));
        redis.stop();
        thread::sleep(TTL);
        redis.go_on();
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        assert!(!second.is_finished());
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    nothing_is_left_in(&redis, 0);
}

/// Answers that take a second, again and again, cost nobody a lock that has time enough.
#[test]
fn a_slow_server() {
    let redis = fresh();
    let crowd = Crowd::start(|| locker_with(&redis.url(0), 3 * TTL));
    let ours = locker_with(&redis.url(0), 3 * TTL);
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        for _ in 0..5 {
            redis.sleep(1.0);
            guard.check().unwrap();
        }
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < TTL, "after {:?}", released.elapsed());
    });
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left_in(&redis, 0);
}

/// Connections that it breaks, again and again, cost nobody a lock or a place, and those who wait are woken still.
#[test]
fn all_connections_are_killed() {
    let redis = fresh();
    let crowd = Crowd::start(|| locker(&redis.url(0)));
    let [ours, other] = [(); 2].map(|()| locker_with(&redis.url(0), 3 * TTL));
    for _ in 0..3 {
        let guard = acquire(&ours, "lock");
        thread::scope(|scope| {
            let first = waits(scope, other.lock("lock"));
            let second = waits(scope, ours.lock("lock"));
            // For longer than it takes until a renewal.
            for _ in 0..50 {
                redis.kill_connections();
                thread::sleep(Duration::from_millis(50));
            }
            guard.check().unwrap();
            block_on(guard.release()).unwrap();
            let released = Instant::now();
            let first = first.join().unwrap();
            assert!(released.elapsed() < TTL, "woken {:?} after the release", released.elapsed());
            assert!(!second.is_finished());
            block_on(first.release()).unwrap();
            block_on(second.join().unwrap().release()).unwrap();
        });
    }
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left_in(&redis, 0);
}

/// A release is told, in every form of the place: nobody has to look by itself, which would take much longer.
#[test]
fn who_waits_is_told_at_once() {
    // Starts what a URL leads to, and has to live for it.
    type Start = Box<dyn FnOnce() -> (String, Box<dyn Any>)>;
    let places: [(&str, Start); 4] = [
        ("a server", Box::new(|| (redis().url(next()), Box::new(())))),
        ("a socket", Box::new(|| (redis().socket_url(next()), Box::new(())))),
        (
            "Sentinels",
            Box::new(|| {
                let watched = Watched::start(Release::Newest);
                (watched.url(0), Box::new(watched))
            }),
        ),
        (
            "a Cluster",
            Box::new(|| {
                let cluster = Cluster::start(Release::Debian);
                (cluster.url("told:"), Box::new(cluster))
            }),
        ),
    ];
    for (form, start) in places {
        let (url, _lives) = start();
        let [ours, other] = [(); 2].map(|()| locker_with(&url, 10 * TTL));
        let mut longest = Duration::ZERO;
        for n in 0..10 {
            let name = format!("lock-{n}");
            let guard = acquire(&ours, &name);
            thread::scope(|scope| {
                let waiting = waits(scope, other.lock(&name));
                let released = Instant::now();
                block_on(guard.release()).unwrap();
                let next = waiting.join().unwrap();
                longest = longest.max(released.elapsed());
                block_on(next.release()).unwrap();
            });
        }
        eprintln!("{form}: told within {longest:?}");
        assert!(longest < TTL / 2, "{form}: told after {longest:?}");
    }
}

/// The very moment of a release is when the connection of who is told of it breaks: it looks by itself.
#[test]
fn a_waiter_is_woken_though_its_connection_breaks_at_the_release() {
    let redis = fresh();
    let (ours, other) = (locker(&redis.url(0)), locker(&redis.url(0)));
    for _ in 0..20 {
        let guard = acquire(&ours, "lock");
        thread::scope(|scope| {
            let waiting = waits(scope, other.lock("lock"));
            scope.spawn(|| redis.kill_connections());
            block_on(guard.release()).unwrap();
            let released = Instant::now();
            block_on(waiting.join().unwrap().release()).unwrap();
            assert!(released.elapsed() < TTL + SLACK, "woken {:?} after the release", released.elapsed());
        });
    }
    nothing_is_left_in(&redis, 0);
}

#[test]
fn forgotten_scripts_are_loaded_again() {
    let redis = fresh();
    let ours = locker(&redis.url(0));
    let crowd = Crowd::start(|| locker(&redis.url(0)));
    for _ in 0..10 {
        redis.forget_scripts();
        let guard = acquire(&ours, "lock");
        redis.forget_scripts();
        thread::scope(|scope| {
            let waiting = waits(scope, ours.lock("lock"));
            redis.forget_scripts();
            guard.check().unwrap();
            block_on(guard.release()).unwrap();
            redis.forget_scripts();
            block_on(waiting.join().unwrap().release()).unwrap();
        });
        assert!(block_on(ours.list("lock")).unwrap().is_empty());
    }
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left_in(&redis, 0);
}

/// There is room for no more connections than those that there are: what has one goes on, what has none is told.
#[test]
fn no_more_connections() {
    let redis = fresh();
    let ours = locker(&redis.url(0));
    let guard = acquire(&ours, "lock");
    let clients: u32 = redis.info("connected_clients").parse().unwrap();
    // The operator's own, that asked just now, is one of them.
    redis.set("maxclients", &(clients - 1).max(1).to_string());
    let start = Instant::now();
    let refused = locker(&redis.url(0));
    let error = block_on(refused.lock("other").timeout(TTL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
    thread::sleep(TTL);
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
}

/// Many that wait through a pause are all served after it.
#[test]
fn many_wait_out_a_pause() {
    let mut redis = fresh();
    let ours = locker_with(&redis.url(0), 10 * TTL);
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting: Vec<_> =
            (0..200).map(|_| scope.spawn(|| block_on(acquire(&ours, "lock").release()).unwrap())).collect();
        until("all to wait", || block_on(ours.list("lock")).unwrap()[0].waiters.len() == waiting.len());
        redis.stop();
        thread::sleep(TTL);
        redis.go_on();
        block_on(guard.release()).unwrap();
    });
    nothing_is_left_in(&redis, 0);
}

/// However many wait, one release is told to one of them, and makes nobody else ask.
#[test]
fn a_release_wakes_one_of_many() {
    const MANY: usize = 300;
    let redis = fresh();
    let ours = locker_with(&redis.url(0), 10 * TTL);
    let guard = acquire(&ours, "lock");
    let calls = |command| calls(&redis, command);
    thread::scope(|scope| {
        let first = waits(scope, ours.lock("lock"));
        let go = Arc::new(AtomicBool::new(false));
        for _ in 0..MANY {
            let (ours, go) = (&ours, go.clone());
            scope.spawn(move || {
                let guard = acquire(ours, "lock");
                assert!(go.load(Ordering::SeqCst), "let in too early");
                block_on(guard.release()).unwrap();
            });
        }
        until("all to wait", || block_on(ours.list("lock")).unwrap()[0].waiters.len() == MANY + 1);
        let before = [calls("publish"), calls("evalsha")];
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        let after = [calls("publish"), calls("evalsha")];
        let [told, asked] = [0, 1].map(|n| after[n] - before[n]);
        eprintln!("{told} were told, {asked} asked");
        // To say that the lock has changed hands is told to those who watch, too. Some ask because it is time to.
        assert!(told <= 5 && asked < MANY as u64 / 3, "{told} were told, {asked} asked");
        go.store(true, Ordering::SeqCst);
        block_on(first.release()).unwrap();
    });
    nothing_is_left_in(&redis, 0);
}

/// One that looked a moment before it was let in holds by what it is told, for as long as if it had asked.
#[test]
fn who_waits_for_a_moment_asks_once() {
    let redis = fresh();
    let (ours, other) = (locker(&redis.url(0)), locker(&redis.url(0)));
    let asked = || calls(&redis, "evalsha");
    let guard = adversity::who_waits_for_a_moment_asks_once(&ours, &other, asked);
    block_on(guard.release()).unwrap();
    nothing_is_left_in(&redis, 0);
}

/// How often it was given this command.
fn calls(redis: &Server, command: &str) -> u64 {
    let said = redis.info(&format!("cmdstat_{command}"));
    said.strip_prefix("calls=").unwrap().split(',').next().unwrap().parse().unwrap()
}

/// Programs that start while it is starting wait for it.
#[test]
fn one_who_asks_before_it_is_there() {
    let mut redis = fresh();
    let url = redis.url(0);
    redis.kill();
    thread::scope(|scope| {
        let asks = scope.spawn(|| acquire(&locker(&url), "lock"));
        thread::sleep(TTL / 2);
        assert!(!asks.is_finished());
        redis.start_again();
        block_on(asks.join().unwrap().release()).unwrap();
    });
    nothing_is_left_in(&redis, 0);
}

#[test]
fn databases_are_places_of_their_own() {
    let [one, other] = [next(), next()];
    let guard = acquire(&locker(&redis().url(one)), "lock");
    let beside = acquire(&locker(&redis().url(other)), "lock");
    let prefixed =
        block_on(ConnectOptions::new().ttl(TTL).connect(&format!("{}?prefix=other:", redis().url(one))));
    let prefixed = acquire(&prefixed.unwrap(), "lock");
    for guard in [guard, beside, prefixed] {
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
    }
    nothing_is_left_in(redis(), one);
    nothing_is_left_in(redis(), other);
}

/// What holds for one holds for its kin.
#[test]
fn valkey_and_the_newest_are_killed_too() {
    for release in [Release::Newest, Release::Valkey] {
        let mut redis: Server = Setup::new(release).durable().start();
        let ours = locker_with(&redis.url(0), 5 * TTL);
        let guard = acquire(&ours, "lock");
        thread::scope(|scope| {
            let waiting = waits(scope, ours.lock("lock"));
            redis.kill();
            redis.start_again();
            redis.forget_scripts();
            redis.kill_connections();
            thread::sleep(TTL);
            guard.check().unwrap();
            assert!(!waiting.is_finished());
            let token = guard.fencing_token();
            block_on(guard.release()).unwrap();
            let waiting = waiting.join().unwrap();
            assert!(waiting.fencing_token() > token);
            block_on(waiting.release()).unwrap();
        });
        nothing_is_left_in(&redis, 0);
    }
}
