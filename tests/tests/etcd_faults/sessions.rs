//! Sessions that end, and processes that stop or die.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_util::future::{self, Either};
use rustix::process::Signal;
use windlass::{
    ErrorKind, LostReason, Mode,
    ask::Happening,
    open_backend,
    rt::{Native, Runtime},
};
use windlass_tests::{
    adversity,
    etcd::{Release, Setup},
    place::{ask, block_on},
    processes::until,
};

use super::{SLACK, TTL, acquire, etcd, locker, locker_with, nothing_is_left, prefix, waits, worker};

/// Whoever is told of a loss hears it at once, and not at the next renewal, which is after a third of this.
const LONG: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn a_killed_holder_frees_the_lock() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let (holder, _folder) = worker(&url);
    adversity::a_killed_holder_frees_the_lock(holder, &locker(&url));
    nothing_is_left(etcd(), &prefix);
}

#[test]
fn a_killed_waiter_blocks_nobody() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    let (mut dead, _folder) = worker(&url);
    dead.say("acquire 1 lock exclusive");
    dead.expect("waiting 1");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        dead.kill();
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(behind.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < TTL + SLACK, "after {:?}", released.elapsed());
    });
    nothing_is_left(etcd(), &prefix);
}

#[test]
fn a_stopped_holder_knows_that_it_is_over() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let (holder, _folder) = worker(&url);
    adversity::a_stopped_holder_knows_that_it_is_over(holder, &locker(&url));
    nothing_is_left(etcd(), &prefix);
}

/// Its session ends while it waits: it has lost its place, stands in line anew, and is never granted by mistake.
#[test]
fn a_stopped_waiter_queues_again() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    let (mut stopped, _folder) = worker(&url);
    stopped.say("acquire 1 lock exclusive");
    stopped.expect("waiting 1");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        stopped.signal(Signal::STOP);
        until("the end of its session", || etcd().keys(&prefix).len() == 2);
        block_on(guard.release()).unwrap();
        let behind = behind.join().unwrap();
        stopped.signal(Signal::CONT);
        until("its new place", || etcd().keys(&prefix).len() == 2);
        assert!(stopped.is_silent_of("acquired 1 ", 100));
        let token = behind.fencing_token();
        block_on(behind.release()).unwrap();
        assert!(stopped.rest_of("acquired 1 ").parse::<u64>().unwrap() > token);
        stopped.ask("check 1", "held 1");
        stopped.ask("release 1", "released 1");
    });
    nothing_is_left(etcd(), &prefix);
}

/// All that hangs on a session is told when somebody ends it; who waits on it stands in line anew.
#[test]
fn all_are_told_that_their_session_was_revoked() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let (ours, other) = (locker_with(&url, LONG), locker(&url));
    let held = ["a", "b"].map(|name| acquire(&ours, name));
    let shared = block_on(ours.lock("c").shared()).unwrap();
    let in_the_way = acquire(&other, "d");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("d"));
        revoke(&prefix, "a");
        let revoked = Instant::now();
        for guard in held.iter().chain([&shared]) {
            assert_eq!(block_on(guard.lost()), LostReason::SessionEnded);
            assert!(!guard.is_held());
        }
        assert!(revoked.elapsed() < AT_ONCE, "after {:?}", revoked.elapsed());
        in_the_way.check().unwrap();
        block_on(in_the_way.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    for guard in held {
        let name = guard.name().as_str().to_owned();
        let error = block_on(guard.release()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost(LostReason::SessionEnded), "{error}");
        block_on(acquire(&ours, &name).release()).unwrap();
    }
    drop(shared);
    nothing_is_left(etcd(), &prefix);
}

/// Ends the session that the holder of a lock has.
fn revoke(prefix: &str, name: &str) {
    let said = etcd().ctl(&["get", "--prefix", &format!("/{prefix}/{name}/"), "--write-out=json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let lease = said["kvs"][0]["lease"].as_i64().unwrap();
    etcd().ctl(&["lease", "revoke", &format!("{lease:x}")]);
}

/// An operator who deletes the key frees the lock, and its holder knows.
#[test]
fn a_deleted_key_is_a_release_by_force() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let (ours, other) = (locker_with(&url, LONG), locker(&url));
    let (guard, kept) = (acquire(&ours, "lock"), acquire(&ours, "kept"));
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        let key = etcd().keys(&format!("{prefix}/lock")).len();
        assert_eq!(key, 2);
        let said = etcd().ctl(&[
            "get",
            "--prefix",
            "--keys-only",
            "--sort-by=CREATE",
            "--limit=1",
            &format!("/{prefix}/lock/"),
        ]);
        assert_eq!(etcd().ctl(&["del", said.trim()]).trim(), "1");
        let deleted = Instant::now();
        assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
        assert!(deleted.elapsed() < AT_ONCE, "after {:?}", deleted.elapsed());
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    kept.check().unwrap();
    block_on(kept.release()).unwrap();
    nothing_is_left(etcd(), &prefix);
}

/// A waiter whose key somebody deletes is not granted what it did not wait for.
#[test]
fn a_waiter_whose_key_is_deleted_queues_again() {
    let prefix = prefix();
    let ours = locker(&etcd().url(&prefix));
    let guard = acquire(&ours, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        let last = etcd().ctl(&[
            "get",
            "--prefix",
            "--keys-only",
            "--sort-by=CREATE",
            "--order=DESCEND",
            "--limit=1",
            &format!("/{prefix}/lock/"),
        ]);
        etcd().ctl(&["del", last.trim()]);
        until("its new place", || etcd().keys(&prefix).len() == 2);
        assert!(!waiting.is_finished());
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    nothing_is_left(etcd(), &prefix);
}

/// Who listens for news may stop at any time, and listen again: what came meanwhile, and what was being looked at, is told then.
#[test]
fn news_is_not_lost_with_who_listened() {
    let prefix = prefix();
    let url = etcd().url(&prefix);
    let (other, backend) = (locker(&url), open_backend(&url, Arc::new(Native)).unwrap());
    let asks = ["lost", "contended"].map(|name| ask(name, Mode::Exclusive));
    for ask in &asks {
        block_on(backend.acquire(ask, &|_| {})).unwrap().unwrap();
    }
    let listen = |time| match block_on(future::select(backend.hear(), Native.sleep(time))) {
        Either::Left((news, _)) => Some(news.unwrap()),
        Either::Right(_) => None,
    };
    assert!(listen(Duration::from_millis(500)).is_none(), "nothing has happened yet");
    block_on(other.force_release("lost", None)).unwrap();
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("contended"));
        thread::sleep(Duration::from_millis(200));
        let mut news = listen(Duration::ZERO).unwrap_or_default();
        while news.len() < 2 {
            news.extend(listen(LONG).expect("it is told"));
        }
        for news in news {
            match news.what {
                Happening::Lost(LostReason::ForceReleased) => assert_eq!(news.claim, asks[0].claim()),
                Happening::Contended => assert_eq!(news.claim, asks[1].claim()),
                other => panic!("{other:?}"),
            }
        }
        block_on(backend.release(&asks.map(|ask| ask.claim()))).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    nothing_is_left(etcd(), &prefix);
}

/// A login that runs out between two waits costs the second one nothing.
#[test]
fn a_login_that_runs_out() {
    for release in [Release::Debian, Release::Newest] {
        let etcd = Setup::new(release).auth().options(&["--auth-token-ttl=2"]).start();
        let url = etcd.url("app");
        let (other, backend) = (locker(&url), open_backend(&url, Arc::new(Native)).unwrap());
        for idle in [Duration::ZERO, Duration::from_secs(5)] {
            thread::sleep(idle);
            let guard = acquire(&other, "lock");
            let ask = ask("lock", Mode::Exclusive);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| block_on(backend.acquire(&ask, &|_| {})));
                thread::sleep(Duration::from_millis(500));
                block_on(guard.release()).unwrap();
                waiting.join().unwrap().unwrap().unwrap();
            });
            block_on(backend.release(&[ask.claim()])).unwrap();
        }
        nothing_is_left(&etcd, "app");
    }
}

/// A closed locker leaves no session behind.
#[test]
fn sessions_end_with_their_lockers() {
    let etcd = Setup::new(Release::Newest).start();
    let url = etcd.url("sessions");
    for n in 0..5 {
        let ours = locker(&url);
        drop(acquire(&ours, &format!("lock-{n}")));
    }
    until("the end of the sessions", || etcd.leases().is_empty());
}
