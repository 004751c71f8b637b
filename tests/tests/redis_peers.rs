//! Beside others in the same Redis: redis-py's `Lock`, Go's redsync and redislock, node-redlock. Their locks are keys with the
//! names of ours, below the same prefix.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "beside other programs, in real time")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use windlass::{ConnectOptions, ErrorKind, Guard, Lock, Locker, LostReason};
use windlass_tests::{
    place::{Folder, PATIENCE, acquire, block_on, in_vain, waits},
    processes::{Program, go_peer, until},
    redis::{Answer, PREFIX, Release, Server, Setup, key_of, of_locks},
};

const TTL: Duration = Duration::from_secs(2);
/// For as long as no test takes.
const LONG: &str = "600000";
/// What it takes, at the most, to see that a stranger has let go, who tells nobody.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How each of ours asks.
const MODES: [fn(Lock) -> Lock; 3] = [|lock| lock, Lock::shared, |lock| lock.permit(2)];

#[test]
fn ours_and_theirs_wait_for_each_other() {
    each(|theirs, here| {
        let locker = ours();
        for mode in MODES {
            let lock = || mode(locker.lock(&here.name));
            theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
            assert!(block_on(lock().try_acquire()).unwrap().is_none());
            let guard = std::thread::scope(|scope| {
                let waiting = waits(scope, lock());
                theirs.ask("unlock 1", "released 1");
                let released = Instant::now();
                let guard = waiting.join().unwrap();
                assert!(released.elapsed() < SEEN_WITHIN, "after {:?}", released.elapsed());
                guard
            });
            theirs.ask(&format!("try 2 {} {LONG}", here.key), "busy 2");
            theirs.say(&format!("lock 3 {} {LONG}", here.key));
            assert!(theirs.is_silent_of("acquired 3", 200));
            guard.check().unwrap();
            block_on(guard.release()).unwrap();
            theirs.expect("acquired 3");
            theirs.ask("unlock 3", "released 3");
        }
    });
}

/// One who holds longer than it said loses the lock to ours, and takes nothing from it any more.
#[test]
fn theirs_runs_out() {
    each(|theirs, here| {
        let locker = ours();
        let asked = Instant::now();
        theirs.ask(&format!("lock 1 {} 500", here.key), "acquired 1");
        let guard = acquire(&locker, &here.name);
        let after = asked.elapsed();
        // Its time has begun since then; a little less, because the server's clock is another one.
        assert!(after > Duration::from_millis(490), "taken from one who held it, after {after:?}");
        assert!(after < Duration::from_millis(500) + SEEN_WITHIN, "after {after:?}");
        theirs.ask(&format!("extend 1 {LONG}"), "lost 1");
        theirs.ask("unlock 1", "lost 1");
        theirs.ask(&format!("try 2 {} {LONG}", here.key), "busy 2");
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
    });
}

/// One of ours that was stopped for too long knows that it is over, and takes nothing from theirs.
#[test]
fn ours_runs_out() {
    each(|theirs, here| {
        let folder = Folder::new();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
        let worker = worker.arg(format!("{}&ttl=1s", url())).arg(folder.path("log"));
        let mut worker = Program::start(worker);
        worker.say(&format!("acquire 1 {} exclusive", here.name));
        worker.rest_of("acquired 1 ");
        worker.signal(Signal::STOP);
        theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
        worker.signal(Signal::CONT);
        worker.ask("check 1", "lost 1 expired");
        worker.ask("release 1", "lost 1 expired");
        theirs.ask(&format!("extend 1 {LONG}"), "extended 1");
        assert!(block_on(ours().lock(&here.name).try_acquire()).unwrap().is_none());
        theirs.ask("unlock 1", "released 1");
    });
}

#[test]
fn the_dead_of_both_free_the_lock() {
    for library in Library::ALL {
        let here = Here::new();
        let mut theirs = library.start();
        theirs.ask(&format!("lock 1 {} 1000", here.key), "acquired 1");
        theirs.kill();
        block_on(acquire(&ours(), &here.name).release()).unwrap();

        let folder = Folder::new();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
        let mut worker = Program::start(worker.arg(format!("{}&ttl=1s", url())).arg(folder.path("log")));
        worker.say(&format!("acquire 1 {} exclusive", here.name));
        worker.rest_of("acquired 1 ");
        worker.kill();
        let mut theirs = library.start();
        theirs.ask(&format!("lock 2 {} {LONG}", here.key), "acquired 2");
        theirs.ask("unlock 2", "released 2");
        here.is_empty();
    }
}

/// While ours stand in line, the lock goes from one to the next, and no stranger comes between.
#[test]
fn our_line_is_ours() {
    each(|theirs, here| {
        let locker = ours();
        let first = acquire(&locker, &here.name);
        std::thread::scope(|scope| {
            let second = waits(scope, locker.lock(&here.name));
            let third = waits(scope, locker.lock(&here.name));
            theirs.say(&format!("lock 1 {} {LONG}", here.key));
            assert!(theirs.is_silent_of("acquired 1", 100));
            block_on(first.release()).unwrap();
            let second = second.join().unwrap();
            assert!(theirs.is_silent_of("acquired 1", 100));
            block_on(second.release()).unwrap();
            let third = third.join().unwrap();
            assert!(theirs.is_silent_of("acquired 1", 100));
            block_on(third.release()).unwrap();
            theirs.expect("acquired 1");
        });
        theirs.ask("unlock 1", "released 1");
    });
}

/// Ours that gives up while theirs holds takes nothing from it, and leaves nothing.
#[test]
fn who_gives_up_is_in_nobodys_way() {
    each(|theirs, here| {
        let locker = ours();
        theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
        let lock = locker.lock(&here.name).timeout(Duration::from_millis(200));
        let error = block_on(lock).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        until("nothing of ours to be left", || here.keys() == [here.key.clone()]);
        theirs.ask(&format!("extend 1 {LONG}"), "extended 1");
        theirs.ask("unlock 1", "released 1");
    });
}

/// A number in a file, each step read and written: steps of two holders at once would be lost.
#[test]
fn nobody_loses_a_step() {
    const OF_EACH: u32 = 25;
    let here = Here::new();
    let locker = ours();
    let folder = Folder::new();
    let file = folder.path("number");
    std::fs::write(&file, "0").unwrap();
    let step = |guard: Guard| {
        let number: u32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        std::fs::write(&file, (number + 1).to_string()).unwrap();
        block_on(guard.release()).unwrap();
    };
    let mut theirs = Library::ALL.map(Library::start);
    for theirs in &mut theirs {
        theirs.say(&format!("count 1 {} {OF_EACH} {}", here.key, file.display()));
    }
    let modes: [fn(Lock) -> Lock; 3] = [MODES[0], MODES[0], |lock| lock.permit(1)];
    std::thread::scope(|scope| {
        for mode in modes {
            let (locker, name, step) = (locker.clone(), &here.name, &step);
            scope.spawn(move || {
                for _ in 0..OF_EACH {
                    step(block_on(mode(locker.lock(name)).timeout(PATIENCE)).unwrap());
                }
            });
        }
    });
    for theirs in &theirs {
        theirs.expect("counted 1");
    }
    let steps = OF_EACH * u32::try_from(theirs.len() + modes.len()).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), steps.to_string());
    here.is_empty();
}

/// Our tokens grow whoever held the lock between.
#[test]
fn tokens_grow_over_theirs() {
    each(|theirs, here| {
        let locker = ours();
        let mut last = 0;
        for _ in 0..3 {
            let guard = acquire(&locker, &here.name);
            assert!(guard.fencing_token() > last);
            last = guard.fencing_token();
            block_on(guard.release()).unwrap();
            theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
            theirs.ask("unlock 1", "released 1");
        }
    });
}

/// redis-py's, unless told otherwise, never ends: an operator can end it.
#[test]
fn one_without_an_end_is_ended_by_force() {
    let here = Here::new();
    let (mut theirs, locker) = (Library::RedisPy.start(), ours());
    theirs.ask(&format!("lock 1 {} 0", here.key), "acquired 1");
    assert_eq!(redis().ask(&["PTTL", &here.key]), Answer::Number(-1));
    std::thread::scope(|scope| {
        let waiting = waits(scope, locker.lock(&here.name));
        let freed = block_on(locker.force_release(&here.name, None)).unwrap();
        assert_eq!(freed.len(), 1, "{freed:?}");
        let guard = waiting.join().unwrap();
        theirs.ask("unlock 1", "lost 1");
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
    });
    here.is_empty();
}

#[test]
fn theirs_can_be_stolen() {
    each(|theirs, here| {
        theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
        let guard = block_on(ours().lock(&here.name).steal()).unwrap();
        theirs.ask("unlock 1", "lost 1");
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
    });
}

/// Who deletes the key as an operator would has released by force.
#[test]
fn ours_that_is_deleted_is_told() {
    let here = Here::new();
    let mut theirs = Library::RedisPy.start();
    let guard = acquire(&ours(), &here.name);
    redis().ask(&["DEL", &here.key]);
    theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
    let deleted = Instant::now();
    assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
    assert!(deleted.elapsed() < TTL, "after {:?}", deleted.elapsed());
    assert!(!guard.is_held());
    let error = block_on(guard.release()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
    theirs.ask("unlock 1", "released 1");
    here.is_empty();
}

/// Whom one waits for is said, as well as it is known, and not by what would prove that it is theirs.
#[test]
fn strangers_are_seen() {
    each(|theirs, here| {
        let locker = ours();
        theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
        let secret = redis().ask(&["GET", &here.key]).text().to_owned();
        let error = block_on(in_vain(|| locker.lock(&here.name)));
        let held_by = &error.waiting().expect("whom it waited for").holders;
        assert_eq!(held_by.len(), 1, "{held_by:?}");
        assert!(!held_by[0].owner.owner.is_empty());
        std::thread::scope(|scope| {
            let waiting = waits(scope, locker.lock(&here.name));
            let status = block_on(locker.list(&here.name)).unwrap().remove(0);
            assert_eq!((status.holders.len(), status.waiters.len()), (1, 1), "{status:?}");
            for said in [format!("{error} {error:?}"), format!("{status:?}")] {
                assert!(!said.contains(&secret), "{said}");
            }
            theirs.ask("unlock 1", "released 1");
            block_on(waiting.join().unwrap().release()).unwrap();
        });
    });
}

/// Whatever a name is made of, it is the same lock for all.
#[test]
fn odd_names_are_the_same() {
    let here = Here::new();
    let mut theirs = Library::RedisPy.start();
    let locker = ours();
    for odd in ["a/b", "a:b", "50%", "\u{1f319}", "{a}", "}{", "\"'\\", "*?[a]"] {
        let name = format!("{}{odd}", here.name);
        let key = key_of("", &name);
        let guard = acquire(&locker, &name);
        theirs.ask(&format!("try 1 {key} {LONG}"), "busy 1");
        block_on(guard.release()).unwrap();
        theirs.ask(&format!("lock 2 {key} {LONG}"), "acquired 2");
        assert!(block_on(locker.lock(&name).try_acquire()).unwrap().is_none(), "{name}");
        theirs.ask("unlock 2", "released 2");
    }
}

/// Unless told otherwise our names are below a prefix.
#[test]
fn below_a_prefix_they_are_others() {
    let here = Here::new();
    let mut theirs = Library::RedisPy.start();
    let locker = block_on(windlass::connect(&redis().url(0))).unwrap();
    theirs.ask(&format!("lock 1 {} {LONG}", here.key), "acquired 1");
    let guard = acquire(&locker, &here.name);
    theirs.ask(&format!("try 2 {} {LONG}", key_of(PREFIX, &here.name)), "busy 2");
    block_on(guard.release()).unwrap();
    theirs.ask("unlock 1", "released 1");
}

/// Runs a test beside each library, and looks for what is left.
fn each(test: impl Fn(&mut Program, &Here) + Sync) {
    std::thread::scope(|scope| {
        for library in Library::ALL {
            let test = &test;
            scope.spawn(move || {
                eprintln!("beside {library:?}");
                let here = Here::new();
                test(&mut library.start(), &here);
                here.is_empty();
            });
        }
    });
}

/// Those who lock by `SET NX PX` and release by comparing.
#[derive(Clone, Copy, Debug)]
enum Library {
    RedisPy,
    Redsync,
    Redislock,
    Redlock,
}

impl Library {
    const ALL: [Self; 4] = [Self::RedisPy, Self::Redsync, Self::Redislock, Self::Redlock];

    fn start(self) -> Program {
        static GO: OnceLock<PathBuf> = OnceLock::new();
        let go = || Command::new(GO.get_or_init(|| go_peer("redis", env!("CARGO_TARGET_TMPDIR"))));
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = match self {
            // Of what `scripts/setup python peers` installs.
            Self::RedisPy => {
                let mut python = Command::new(here.join("../.venv/bin/python"));
                python.arg(here.join("peers/redis-py/peer.py"));
                python
            }
            Self::Redlock => {
                let mut node = Command::new("node");
                node.arg(here.join("peers/redlock/peer.mjs"));
                node
            }
            Self::Redsync => {
                let mut go = go();
                go.arg("redsync");
                go
            }
            Self::Redislock => {
                let mut go = go();
                go.arg("redislock");
                go
            }
        };
        Program::start(command.arg(redis().address().to_string()))
    }
}

fn redis() -> &'static Server {
    static REDIS: OnceLock<Server> = OnceLock::new();
    REDIS.get_or_init(|| Setup::new(Release::Debian).start())
}

/// Where names are those of others.
fn url() -> String {
    format!("{}?prefix=", redis().url(0))
}

fn ours() -> Locker {
    block_on(ConnectOptions::new().ttl(TTL).connect(&url())).unwrap()
}

/// A lock of a test's own, by our name and by theirs.
struct Here {
    name: String,
    key: String,
}

impl Here {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("lock-{}-", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { key: key_of("", &name), name }
    }

    /// What there is of this lock.
    fn keys(&self) -> Vec<String> {
        let keys = redis().keys(0).into_iter().filter(|key| key.contains(&self.key));
        of_locks(keys.collect())
    }

    fn is_empty(&self) {
        until("nothing to be left", || self.keys().is_empty());
    }
}
