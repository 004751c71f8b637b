//! What there is room for: a server without memory, and what is left of names that nobody uses.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use windlass::{ErrorKind, Locker};
use windlass_tests::{
    processes::until,
    redis::{Answer, Release, Server, Setup, of_locks},
};

use super::{TTL, acquire, block_on, fresh, locker, next, nothing_is_left_in, redis, waits};

/// No memory refuses new claims with an error that says so; what is held stays held, what is released goes to who waits.
#[test]
fn no_memory() {
    thread::scope(|scope| {
        for release in [Release::Debian, Release::Newest, Release::Valkey] {
            scope.spawn(move || no_memory_of(release));
        }
    });
}

fn no_memory_of(release: Release) {
    let redis = Setup::new(release).with("maxmemory-policy noeviction").start();
    let ours = locker(&redis.url(0));
    let (kept, guard) = (acquire(&ours, "kept"), acquire(&ours, "lock"));
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        // Less than it has already.
        redis.set("maxmemory", "1");
        let start = Instant::now();
        let error = block_on(ours.lock("new").timeout(Duration::from_secs(20))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{release:?}: {error}");
        assert!(error.to_string().contains("memory"), "{error}");
        let error = block_on(locker(&redis.url(0)).lock("new").try_acquire()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{release:?}: {error}");
        while start.elapsed() < 2 * TTL {
            kept.check().unwrap();
            thread::sleep(TTL / 10);
        }
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        let next = waiting.join().unwrap();
        assert!(released.elapsed() < TTL, "after {:?}", released.elapsed());
        block_on(next.release()).unwrap();
        assert_eq!(block_on(ours.list("")).unwrap().len(), 1);
    });
    redis.set("maxmemory", "0");
    block_on(acquire(&ours, "new").release()).unwrap();
    block_on(kept.release()).unwrap();
    nothing_is_left_in(&redis, 0);
}

/// What is written of a lock does not depend on how it was taken, also where something in it has to be escaped.
#[test]
fn a_lock_looks_the_same_however_it_was_taken() {
    let redis = fresh();
    let ours = locker(&format!("{}?prefix=a%22%5Cb:", redis.url(0)));
    let seen = || {
        let text = redis.ask(&["GET", "a\"\\b:lock"]);
        let mut lock: Value = serde_json::from_str(text.text().strip_prefix("windlass ").unwrap()).unwrap();
        for differs in ["id", "token", "since", "ends"] {
            let value = &mut lock["holders"][0][differs];
            assert!(value.is_string() || value.is_u64(), "{differs}: {value}");
            *value = value.is_string().into();
        }
        lock
    };
    let guard = acquire(&ours, "lock");
    let free = seen();
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        block_on(guard.release()).unwrap();
        let next = waiting.join().unwrap();
        assert_eq!(seen(), free);
        block_on(next.release()).unwrap();
    });
}

/// A server that may not write because it cannot save refuses, and says why.
#[test]
fn no_disk() {
    let redis = Setup::new(Release::Debian).with("save 3600 1").start();
    let ours = locker(&redis.url(0));
    let guard = acquire(&ours, "lock");
    // What it saves would replace a folder, and not an empty one.
    let folder = redis.ask(&["CONFIG", "GET", "dir"]).texts().remove(1);
    std::fs::create_dir_all(format!("{folder}/dump.rdb/in-the-way")).unwrap();
    redis.ask(&["BGSAVE"]);
    until("the save to fail", || redis.info("rdb_last_bgsave_status") == "err");
    let error = block_on(ours.lock("new").timeout(Duration::from_secs(20))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains("disk"), "{error}");
    // Nor can it be renewed.
    block_on(guard.lost());
    redis.set("stop-writes-on-bgsave-error", "no");
    block_on(acquire(&ours, "new").release()).unwrap();
    nothing_is_left_in(&redis, 0);
}

/// A thousand names in all modes, and what is given up, leave one key for good: the last token, which is for all of them.
#[test]
fn idle_names_leave_nothing() {
    let redis = fresh();
    let ours = locker(&redis.url(0));
    let before = memory(&redis, &ours, "a");
    let after = memory(&redis, &ours, "b");
    let keys = redis.keys(0);
    let endless: Vec<&String> =
        keys.iter().filter(|key| redis.ask(&["PTTL", key]) == Answer::Number(-1)).collect();
    assert_eq!(endless.len(), 1, "{endless:?}");
    assert!(
        after < before + 100_000,
        "{before} bytes after a thousand names, {after} after another thousand"
    );
}

/// What it takes after a thousand names have been used.
fn memory(redis: &Server, ours: &Locker, names: &str) -> u64 {
    for n in 0..1_000 {
        let name = format!("{names}-{n}");
        let lock = || ours.lock(&name);
        let guards = match n % 3 {
            0 => vec![block_on(lock()).unwrap()],
            1 => vec![block_on(lock().shared()).unwrap(), block_on(lock().shared()).unwrap()],
            _ => vec![block_on(lock().permit(3)).unwrap()],
        };
        if n % 10 == 0 {
            assert!(block_on(lock().timeout(Duration::from_millis(1))).is_err());
            assert!(block_on(lock().try_acquire()).unwrap().is_none());
        }
        for guard in guards {
            block_on(guard.release()).unwrap();
        }
    }
    until("what was given up to be forgotten", || of_locks(redis.keys(0)).is_empty());
    redis.info("used_memory").parse().unwrap()
}

/// Whatever is called off while nobody knows how far it has come is forgotten by itself: no key that may stay has no end.
#[test]
fn all_keys_but_the_count_have_an_end() {
    let database = next();
    let ours = locker(&redis().url(database));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        for _ in 0..20 {
            // Some of these are dropped before the answer is there.
            let given_up = block_on(ours.lock("lock").timeout(Duration::from_micros(200)));
            assert!(given_up.is_err());
        }
        for key in redis().keys(database) {
            let millis = redis().ask_in(database, &["PTTL", &key]);
            let endless = millis == Answer::Number(-1);
            assert_eq!(endless, key.ends_with(":tokens"), "{key}: {millis:?}");
            assert!(endless || millis.number() <= 120_000, "{key}: {millis:?}");
        }
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    nothing_is_left_in(redis(), database);
}
