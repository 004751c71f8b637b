//! Foreign programs on the same locks: lockgate's file locker (Go) and ours exclude each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use windlass::{Guard, Locker, connect};
use windlass_tests::{
    conformance::names::ODD_NAMES,
    place::{Folder, PATIENCE, block_on},
    processes::{Program, go_peer},
};

#[test]
fn lockgate_excludes_ours() {
    for naming in NAMINGS {
        let (_folder, mut lockgate, locker) = start(naming);
        for (theirs, shared) in [("exclusive", false), ("exclusive", true), ("shared", false)] {
            lockgate.ask(&format!("try 1 {LOCK} {theirs}"), "acquired 1");
            assert!(attempt(&locker, shared).is_none(), "{naming}: {theirs} lets in shared={shared}");
            let waiting = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| acquire(&locker, shared));
                std::iter::repeat_with(|| block_on(locker.list("lock")).unwrap())
                    .find(|all| all.iter().any(|status| !status.waiters.is_empty()))
                    .unwrap();
                lockgate.ask("release 1", "released 1");
                waiting.join().unwrap()
            });
            assert!(waiting.is_held());
            block_on(waiting.release()).unwrap();
        }
    }
}

#[test]
fn ours_excludes_lockgate() {
    for naming in NAMINGS {
        let (_folder, mut lockgate, locker) = start(naming);
        for (ours, theirs) in [(false, "exclusive"), (false, "shared"), (true, "exclusive")] {
            let guard = acquire(&locker, ours);
            lockgate.ask(&format!("try 1 {LOCK} {theirs}"), "busy 1");
            lockgate.say(&format!("acquire 2 {LOCK} {theirs}"));
            assert!(lockgate.is_silent("acquired 2", 600), "{naming}: shared={ours} lets in {theirs}");
            block_on(guard.release()).unwrap();
            lockgate.expect("acquired 2");
            assert!(attempt(&locker, false).is_none());
            lockgate.ask("release 2", "released 2");
        }
    }
}

#[test]
fn shared_claims_of_both_hold_together() {
    for naming in NAMINGS {
        let (_folder, mut lockgate, locker) = start(naming);
        let ours = acquire(&locker, true);
        lockgate.ask(&format!("try 1 {LOCK} shared"), "acquired 1");
        block_on(ours.release()).unwrap();
        let ours = attempt(&locker, true).expect("shared beside shared");
        assert!(attempt(&locker, false).is_none());
        lockgate.ask(&format!("try 2 {LOCK} exclusive"), "busy 2");
        lockgate.ask("release 1", "released 1");
        lockgate.ask(&format!("try 3 {LOCK} exclusive"), "busy 3");
        block_on(ours.release()).unwrap();
        lockgate.ask(&format!("try 4 {LOCK} exclusive"), "acquired 4");
    }
}

/// A semaphore lives in the same file, so that one who is alone is alone.
#[test]
fn permits_and_lockgate_exclude_each_other() {
    let (_folder, mut lockgate, locker) = start("sha256");
    let one = block_on(locker.lock("lock").permit(2)).unwrap();
    lockgate.ask(&format!("try 1 {LOCK} exclusive"), "busy 1");
    drop(one);
    lockgate.ask(&format!("try 2 {LOCK} exclusive"), "acquired 2");
    assert!(block_on(locker.lock("lock").permit(2).try_acquire()).unwrap().is_none());
}

#[test]
fn a_holder_that_lockgate_is_has_no_token() {
    let (_folder, mut lockgate, locker) = start("sha256");
    lockgate.ask(&format!("try 1 {LOCK} exclusive"), "acquired 1");
    let error = block_on(locker.lock("lock").timeout(Duration::from_millis(50)).into_future()).unwrap_err();
    assert_eq!(error.kind(), windlass::ErrorKind::Timeout, "{error}");
    for holder in error.waiting().into_iter().flat_map(|waiting| &waiting.holders) {
        assert_eq!(holder.fencing_token, 0, "{holder:?}");
    }
}

#[test]
fn the_killed_free_the_lock() {
    let (_folder, mut lockgate, locker) = start("sha256");
    lockgate.ask(&format!("try 1 {LOCK} exclusive"), "acquired 1");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| acquire(&locker, false));
        lockgate.kill();
        assert!(waiting.join().unwrap().is_held());
    });
}

#[test]
fn files_are_named_as_lockgate_names_them() {
    for naming in NAMINGS {
        let (folder, mut lockgate, locker) = start(naming);
        let mut paths = std::collections::BTreeSet::new();
        for name in ODD_NAMES {
            lockgate.say(&format!("path {}", hex(name)));
            let path = PathBuf::from(lockgate.rest_of("path "));
            assert!(!path.exists(), "{name:?} has the file of another name");
            let guard = block_on(locker.lock(name).try_acquire()).unwrap().expect("free");
            assert!(path.is_file(), "{naming}: {name:?} is not {}", path.display());
            lockgate.ask(&format!("try 1 {} exclusive", hex(name)), "busy 1");
            drop(guard);
            paths.insert(path);
        }
        let files = std::fs::read_dir(folder.path("locks")).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.path());
        assert_eq!(files.collect::<std::collections::BTreeSet<_>>(), paths, "these files and no others");
    }
}

const NAMINGS: [&str; 2] = ["sha256", "murmur3"];
/// `lock`
const LOCK: &str = "6c6f636b";

fn start(naming: &str) -> (Folder, Program, Locker) {
    let folder = Folder::new();
    let locks = folder.path("locks");
    let lockgate = Program::start(Command::new(lockgate()).arg(&locks).arg(naming));
    let locker = block_on(connect(&format!("file://{}?names={naming}", locks.display()))).unwrap();
    (folder, lockgate, locker)
}

fn acquire(locker: &Locker, shared: bool) -> Guard {
    let lock = locker.lock("lock").timeout(PATIENCE);
    block_on(if shared { lock.shared() } else { lock }.into_future()).unwrap()
}

fn attempt(locker: &Locker, shared: bool) -> Option<Guard> {
    let lock = locker.lock("lock");
    block_on(if shared { lock.shared() } else { lock }.try_acquire()).unwrap()
}

fn hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The program that drives lockgate.
fn lockgate() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| go_peer("lockgate", env!("CARGO_TARGET_TMPDIR")))
}
