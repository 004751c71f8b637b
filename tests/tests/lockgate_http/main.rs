//! lockgate's HTTP client (Go) and ours on the same locks of our server: they exclude each other, and stand in one line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod faults;
mod raw;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use windlass::{
    ErrorKind, Guard, Locker, Mode, connect,
    rt::{Native, Runtime},
};
use windlass_tests::{
    place::{Folder, PATIENCE, block_on},
    processes::{Program, go_peer},
    server,
};

#[test]
fn lockgate_excludes_ours_and_ours_lockgate() {
    let (mut go, locker) = start();
    for (theirs, ours) in [("exclusive", false), ("exclusive", true), ("shared", false)] {
        go.ask(&format!("acquire 1 {LOCK} {theirs} -"), "acquired 1");
        assert!(attempt(&locker, ours).is_none(), "{theirs} lets in shared={ours}");
        let guard = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| acquire(&locker, ours));
            until_waiters(&locker, 1);
            go.ask("release 1", "released 1");
            waiting.join().unwrap()
        });
        go.ask(&format!("try 2 {LOCK} {theirs} -"), "busy 2");
        go.ask(&format!("acquire 2 {LOCK} {theirs} -"), "waits 2");
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
        go.expect("acquired 2");
        go.ask("release 2", "released 2");
    }
}

#[test]
fn a_holder_is_seen_with_its_name_and_token() {
    let (mut go, locker) = start();
    go.ask(&format!("acquire 1 {LOCK} exclusive builder-7"), "acquired 1");
    let holders = block_on(locker.list("lock")).unwrap().remove(0).holders;
    assert_eq!((holders.len(), holders[0].owner.owner.as_str()), (1, "lockgate:builder-7"));
    assert!(holders[0].fencing_token > 0 && holders[0].mode == Mode::Exclusive);
    go.ask("release 1", "released 1");
    let guard = attempt(&locker, false).expect("free");
    assert!(guard.fencing_token() > holders[0].fencing_token);
}

#[test]
fn shared_holders_hold_together_each_by_a_uuid_of_its_own() {
    let (mut go, locker) = start();
    let ours = acquire(&locker, true);
    go.ask(&format!("acquire 1 {LOCK} shared -"), "acquired 1");
    go.ask(&format!("acquire 2 {LOCK} shared -"), "acquired 2");
    go.say("uuid 1");
    let one = go.rest_of("uuid ");
    go.say("uuid 2");
    assert_ne!(one, go.rest_of("uuid "));
    go.ask("release 1", "released 1");
    block_on(ours.release()).unwrap();
    assert!(attempt(&locker, false).is_none());
    go.ask("release 2", "released 2");
    assert!(attempt(&locker, false).is_some());
}

/// A try is answered at once and leaves no place in line, so the lock is not kept for one who has left.
#[test]
fn a_try_does_not_wait() {
    let (mut go, locker) = start();
    let guard = acquire(&locker, false);
    for mode in ["exclusive", "shared"] {
        go.ask(&format!("try 1 {LOCK} {mode} -"), "busy 1");
    }
    assert_eq!(waiters(&locker), Vec::<String>::new());
    block_on(guard.release()).unwrap();
    let guard = attempt(&locker, false).expect("nobody is in line");
    block_on(guard.release()).unwrap();
    go.ask(&format!("try 1 {LOCK} exclusive -"), "acquired 1");
    assert!(attempt(&locker, true).is_none());
}

#[test]
fn a_timeout_ends_the_wait_and_the_place_in_line() {
    let (mut go, locker) = start();
    let guard = acquire(&locker, false);
    go.say(&format!("timed 1 {LOCK} exclusive - 1"));
    go.say(&format!("timed 2 {LOCK} exclusive a 3"));
    go.expect("failed 1 timeout");
    go.expect("failed 2 timeout");
    until_waiters(&locker, 0);
    block_on(guard.release()).unwrap();
    assert!(attempt(&locker, false).is_some());
}

/// With names the place is one's own from the first request on.
#[test]
fn first_come_first_served_among_go_and_native_waiters() {
    let (mut go, locker) = start();
    let first = acquire(&locker, false);
    go.ask(&format!("acquire 1 {LOCK} exclusive a"), "waits 1");
    let second = std::thread::scope(|scope| {
        let native = scope.spawn(|| acquire(&locker, false));
        until_waiters(&locker, 2);
        go.ask(&format!("acquire 3 {LOCK} exclusive c"), "waits 3");
        assert_eq!(waiters(&locker).len(), 3);
        block_on(first.release()).unwrap();
        go.expect("acquired 1");
        assert!(!native.is_finished());
        go.ask("release 1", "released 1");
        native.join().unwrap()
    });
    assert_eq!(waiters(&locker), ["lockgate:c"]);
    block_on(second.release()).unwrap();
    go.expect("acquired 3");
}

/// Without names they have places, too, once they have come back.
#[test]
fn the_nameless_are_not_overtaken_for_ever() {
    let (mut go, locker) = start();
    let first = acquire(&locker, false);
    for id in [1, 2] {
        go.say(&format!("acquire {id} {LOCK} exclusive -"));
    }
    until_waiters(&locker, 2);
    std::thread::scope(|scope| {
        let native = scope.spawn(|| acquire(&locker, false));
        until_waiters(&locker, 3);
        block_on(first.release()).unwrap();
        for _ in [1, 2] {
            let id = go.rest_of("acquired ");
            assert!(!native.is_finished(), "it came after them");
            go.ask(&format!("release {id}"), &format!("released {id}"));
        }
        assert!(native.join().unwrap().is_held());
    });
}

/// A waiter that readers could overtake would wait for ever.
#[test]
fn a_waiting_writer_holds_back_readers() {
    let (mut go, locker) = start();
    go.ask(&format!("acquire 1 {LOCK} shared -"), "acquired 1");
    go.say(&format!("acquire 2 {LOCK} exclusive -"));
    until_waiters(&locker, 1);
    go.ask(&format!("try 3 {LOCK} shared -"), "busy 3");
    assert!(attempt(&locker, true).is_none());
    go.ask("release 1", "released 1");
    go.expect("acquired 2");
}

/// For longer than a TTL.
#[test]
fn a_lease_is_kept_by_renewals() {
    let (mut go, locker) = start();
    go.ask(&format!("acquire 1 {LOCK} exclusive -"), "acquired 1");
    let error = block_on(locker.lock("lock").timeout(Duration::from_secs(13)).into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    go.ask("release 1", "released 1");
    assert!(go.is_silent("lost 1", 0));
}

#[test]
fn a_holder_is_told_that_its_lease_was_taken() {
    let (mut go, locker) = start();
    go.ask(&format!("acquire 1 {LOCK} exclusive -"), "acquired 1");
    assert_eq!(block_on(locker.force_release("lock", None)).unwrap().len(), 1);
    let guard = attempt(&locker, false).expect("free");
    go.expect("lost 1");
    guard.check().unwrap();
}

#[test]
fn the_lease_of_the_killed_ends() {
    let (mut go, locker) = start();
    go.ask(&format!("acquire 1 {LOCK} exclusive -"), "acquired 1");
    go.kill();
    assert!(acquire(&locker, false).is_held());
}

/// A number in a file, each step read and written: steps of two holders at once would be lost.
#[test]
fn nobody_loses_a_step() {
    let (mut go, locker) = start();
    let folder = Folder::new();
    let file = folder.path("number");
    std::fs::write(&file, "0").unwrap();
    for id in [1, 2] {
        go.say(&format!("count {id} {LOCK} 3 {}", file.display()));
    }
    let step = || {
        let guard = acquire(&locker, false);
        let number: u32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        std::fs::write(&file, (number + 1).to_string()).unwrap();
        block_on(guard.release()).unwrap();
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..100).for_each(|_| step()));
        }
    });
    go.expect("counted 1");
    go.expect("counted 2");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "206");
}

/// `lock`
const LOCK: &str = "6c6f636b";

/// lockgate's client by werf's paths, and ours, in a namespace of their own.
fn start() -> (Program, Locker) {
    let url = server::namespace();
    let go = Program::start(Command::new(lockgate()).arg(format!("{url}/locker")).stderr(Stdio::null()));
    (go, block_on(connect(&url)).unwrap())
}

fn acquire(locker: &Locker, shared: bool) -> Guard {
    let lock = locker.lock("lock").timeout(PATIENCE);
    block_on(if shared { lock.shared() } else { lock }.into_future()).unwrap()
}

fn attempt(locker: &Locker, shared: bool) -> Option<Guard> {
    let lock = locker.lock("lock");
    block_on(if shared { lock.shared() } else { lock }.try_acquire()).unwrap()
}

fn waiters(locker: &Locker) -> Vec<String> {
    let all = block_on(locker.list("lock")).unwrap();
    all.into_iter().flat_map(|lock| lock.waiters).map(|waiter| waiter.owner.owner).collect()
}

fn until_waiters(locker: &Locker, count: usize) {
    for _ in 0..1500 {
        if waiters(locker).len() == count {
            return;
        }
        block_on(Native.sleep(Duration::from_millis(20)));
    }
    panic!("in line are {:?}, and not {count}", waiters(locker));
}

/// The program that drives lockgate.
fn lockgate() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| go_peer("lockgate-http", env!("CARGO_TARGET_TMPDIR")))
}
