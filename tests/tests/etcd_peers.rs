//! Foreign lockers in the same etcd: Go's `concurrency.Mutex`, `etcdctl lock`, and elock, whose locks are Go's below `/elock`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::{
    future::IntoFuture,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::ScopedJoinHandle,
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use rustix::process::Signal;
use windlass::{ConnectOptions, ErrorKind, Guard, Lock, Locker};
use windlass_tests::{
    etcd::{Cluster, Release, Setup},
    place::{Folder, PATIENCE, block_on, in_vain, waits},
    processes::{Program, go_peer, until},
};

const TTL: Duration = Duration::from_secs(2);
/// How each of ours asks.
const MODES: [fn(Lock) -> Lock; 3] = [|lock| lock, Lock::shared, |lock| lock.permit(2)];

#[test]
fn ours_and_gos_mutex_wait_for_each_other() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    for mode in MODES {
        let lock = || mode(locker.lock("a"));
        go.say(&here.line("lock 1", "a"));
        let theirs: u64 = go.rest_of("acquired 1 ").parse().unwrap();
        assert!(block_on(lock().try_acquire()).unwrap().is_none());
        let guard = std::thread::scope(|scope| {
            let waiting = waits(scope, lock());
            go.ask("unlock 1", "released 1");
            waiting.join().unwrap()
        });
        assert!(guard.fencing_token() > theirs);
        go.ask(&here.line("try 2", "a"), "busy 2");
        go.say(&here.line("lock 3", "a"));
        here.until_in_line("a", 2);
        guard.check().unwrap();
        assert!(go.is_silent_of("acquired 3 ", 50));
        let token = guard.fencing_token();
        block_on(guard.release()).unwrap();
        let theirs: u64 = go.rest_of("acquired 3 ").parse().unwrap();
        assert!(theirs > token, "its revision is a fencing token beside ours");
        go.ask("unlock 3", "released 3");
    }
    here.is_empty();
}

/// Whoever waits is served in the order of coming, whoever it is.
#[test]
fn one_line_for_all() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    let guard = block_on(locker.lock("a")).unwrap();
    std::thread::scope(|scope| {
        go.say(&here.line("lock 1", "a"));
        here.until_in_line("a", 2);
        let second = waits(scope, locker.lock("a"));
        let third = here.etcdctl_lock("a");
        here.until_in_line("a", 4);
        let fourth = waits(scope, locker.lock("a").shared());
        go.say(&here.line("lock 5", "a"));
        here.until_in_line("a", 6);
        let sixth = waits(scope, locker.lock("a").shared());

        block_on(guard.release()).unwrap();
        go.rest_of("acquired 1 ");
        here.is_held_alone(&[&second, &fourth, &sixth]);
        go.ask("unlock 1", "released 1");
        let second = second.join().unwrap();
        assert!(third.is_silent_of("/", 50));
        block_on(second.release()).unwrap();
        third.rest_of("/");
        here.is_held_alone(&[&fourth, &sixth]);
        third.signal(Signal::INT);
        let fourth = fourth.join().unwrap();
        here.is_held_alone(&[&sixth]);
        block_on(fourth.release()).unwrap();
        go.rest_of("acquired 5 ");
        here.is_held_alone(&[&sixth]);
        go.ask("unlock 5", "released 5");
        block_on(sixth.join().unwrap().release()).unwrap();
    });
    here.is_empty();
}

#[test]
fn gos_mutex_waits_for_all_who_share() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    for mode in &MODES[1..] {
        let [one, other] = [(); 2].map(|()| block_on(mode(locker.lock("a"))).unwrap());
        go.say(&here.line("lock 1", "a"));
        here.until_in_line("a", 3);
        std::thread::scope(|scope| {
            let later = waits(scope, mode(locker.lock("a")));
            block_on(one.release()).unwrap();
            assert!(go.is_silent_of("acquired 1 ", 100), "the other one holds it still");
            block_on(other.release()).unwrap();
            go.rest_of("acquired 1 ");
            here.is_held_alone(&[&later]);
            go.ask("unlock 1", "released 1");
            block_on(later.join().unwrap().release()).unwrap();
        });
    }
    here.is_empty();
}

#[test]
fn etcdctl_lock_and_ours_wait_for_each_other() {
    let here = Here::new();
    let locker = here.locker();
    let theirs = here.etcdctl_lock("a");
    theirs.rest_of("/");
    let guard = std::thread::scope(|scope| {
        let waiting = waits(scope, locker.lock("a"));
        theirs.signal(Signal::INT);
        waiting.join().unwrap()
    });
    let theirs = here.etcdctl_lock("a");
    here.until_in_line("a", 2);
    assert!(theirs.is_silent_of("/", 100));
    block_on(guard.release()).unwrap();
    theirs.rest_of("/");
    theirs.signal(Signal::INT);
    here.until_in_line("a", 0);
}

/// One process at a time goes over from elock.
#[test]
fn elocks_locks_are_ours_below_its_prefix() {
    let here = Here { prefix: "elock".to_owned(), ..Here::new() };
    let (mut go, locker) = (here.go(), here.locker());
    let job = unique("job");
    go.say(&format!("lock 1 /elock/{job}"));
    go.rest_of("acquired 1 ");
    let error = block_on(in_vain(|| locker.lock(&job)));
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("the lease "), "says who holds it: {error}");
    go.ask("unlock 1", "released 1");
    let guard = block_on(locker.lock(&job)).unwrap();
    go.ask(&format!("try 2 /elock/{job}"), "busy 2");
    block_on(guard.release()).unwrap();
    go.say(&format!("lock 3 /elock/{job}"));
    go.rest_of("acquired 3 ");
    go.ask("unlock 3", "released 3");
}

/// A list shows strangers, too.
#[test]
fn strangers_are_seen() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    go.say(&here.line("lock 1", "a"));
    go.rest_of("acquired 1 ");
    go.say(&here.line("lock 2", "a"));
    here.until_in_line("a", 2);
    let status = block_on(locker.list("")).unwrap().remove(0);
    assert_eq!((status.name.as_str(), status.holders.len(), status.waiters.len()), ("a", 1, 1), "{status:?}");
    let owners = [&status.holders[0].owner.owner, &status.waiters[0].owner.owner];
    assert!(owners.iter().all(|owner| owner.starts_with("the lease ")), "{owners:?}");
    assert_ne!(owners[0], owners[1]);
}

/// Neither a key of ours nor one of theirs that is given up keeps anybody waiting.
#[test]
fn who_gives_up_is_in_nobodys_way() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    let guard = block_on(locker.lock("a")).unwrap();
    go.say(&here.line("lock 1", "a"));
    here.until_in_line("a", 2);
    std::thread::scope(|scope| {
        let behind = waits(scope, locker.lock("a"));
        go.ask("cancel 1", "cancelled 1");
        block_on(guard.release()).unwrap();
        block_on(behind.join().unwrap().release()).unwrap();
    });
    go.say(&here.line("lock 2", "a"));
    go.rest_of("acquired 2 ");
    std::thread::scope(|scope| {
        let (give_up, told) = oneshot::channel::<()>();
        let lock = locker.lock("a").into_future();
        let given_up = scope.spawn(|| matches!(block_on(select(lock, told)), Either::Right(_)));
        here.until_in_line("a", 2);
        go.say(&here.line("lock 3", "a"));
        here.until_in_line("a", 3);
        give_up.send(()).unwrap();
        assert!(given_up.join().unwrap());
    });
    go.ask("unlock 2", "released 2");
    go.rest_of("acquired 3 ");
    go.ask("unlock 3", "released 3");
    here.is_empty();
}

#[test]
fn the_dead_of_both_free_the_lock() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    go.say(&here.line("lock 1", "a"));
    go.rest_of("acquired 1 ");
    let guard = std::thread::scope(|scope| {
        let waiting = waits(scope, locker.lock("a"));
        go.kill();
        waiting.join().unwrap()
    });
    block_on(guard.release()).unwrap();

    let folder = Folder::new();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    let worker = worker.arg(format!("{}?ttl=2s", here.url())).arg(folder.path("log"));
    let mut worker = Program::start(worker);
    worker.say("acquire 1 a exclusive");
    worker.rest_of("acquired 1 ");
    let mut go = here.go();
    go.say(&here.line("lock 2", "a"));
    here.until_in_line("a", 2);
    worker.kill();
    go.rest_of("acquired 2 ");
}

/// A number in a file, each step read and written: steps of two holders at once would be lost.
#[test]
fn nobody_loses_a_step() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    let folder = Folder::new();
    let file = folder.path("number");
    std::fs::write(&file, "0").unwrap();
    let step = |guard: Guard| {
        let number: u32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        std::fs::write(&file, (number + 1).to_string()).unwrap();
        block_on(guard.release()).unwrap();
    };
    for id in 1..=2 {
        go.say(&format!("{} 50 {}", here.line(&format!("count {id}"), "a"), file.display()));
    }
    std::thread::scope(|scope| {
        for mode in [MODES[0], MODES[0], |lock: Lock| lock.permit(1)] {
            let locker = locker.clone();
            scope.spawn(move || {
                (0..50).for_each(|_| step(block_on(mode(locker.lock("a")).timeout(PATIENCE)).unwrap()));
            });
        }
    });
    go.expect("counted 1");
    go.expect("counted 2");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "250");
    here.is_empty();
}

/// In etcd itself the keys of `a/b` are below those of `a`.
#[test]
fn a_name_below_another_is_another() {
    let here = Here::new();
    let (mut go, locker) = (here.go(), here.locker());
    let inner = block_on(locker.lock("a/b")).unwrap();
    let outer = block_on(locker.lock("a").try_acquire()).unwrap().expect("a free lock");
    block_on(outer.release()).unwrap();
    go.say(&here.line("try 1", "a"));
    go.rest_of("acquired 1 ");
    go.ask("unlock 1", "released 1");
    go.ask(&here.line("try 2", "a%2Fb"), "busy 2");
    block_on(inner.release()).unwrap();
}

#[test]
fn raw_names_are_those_of_others() {
    let here = Here::new();
    let mut go = here.go();
    let locker = block_on(ConnectOptions::new().connect(&format!("{}?raw_names=true", here.url()))).unwrap();
    go.say(&here.line("lock 1", "a/b"));
    go.rest_of("acquired 1 ");
    assert!(block_on(locker.lock("a/b").try_acquire()).unwrap().is_none());
    assert!(block_on(locker.lock("a").try_acquire()).unwrap().is_none(), "as it is for Go's");
    assert!(block_on(locker.lock("a/c").try_acquire()).unwrap().is_some());
    let guard = std::thread::scope(|scope| {
        let waiting = waits(scope, locker.lock("a/b"));
        go.ask("unlock 1", "released 1");
        waiting.join().unwrap()
    });
    go.ask(&here.line("try 2", "a/b"), "busy 2");
    block_on(guard.release()).unwrap();
}

/// A prefix of a test's own, and those who lock below it.
struct Here {
    etcd: &'static Cluster,
    prefix: String,
}

impl Here {
    fn new() -> Self {
        static ETCD: OnceLock<Cluster> = OnceLock::new();
        Self { etcd: ETCD.get_or_init(|| Setup::new(Release::Debian).start()), prefix: unique("locks") }
    }

    fn url(&self) -> String {
        self.etcd.url(&self.prefix)
    }

    fn locker(&self) -> Locker {
        block_on(ConnectOptions::new().ttl(TTL).connect(&self.url())).unwrap()
    }

    fn go(&self) -> Program {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let mutex = BUILT.get_or_init(|| go_peer("etcd-mutex", env!("CARGO_TARGET_TMPDIR")));
        let endpoint = self.etcd.address(0).to_string();
        Program::start(Command::new(mutex).args([&endpoint, "2"]).stderr(Stdio::null()))
    }

    /// `etcdctl lock`; it says its key, which begins with a slash, when it has the lock, and releases it at SIGINT.
    fn etcdctl_lock(&self, name: &str) -> Program {
        let key = format!("/{}/{name}", self.prefix);
        Program::spawn(self.etcd.etcdctl_command(&["lock", "--ttl=2", &key]).stderr(Stdio::null()))
    }

    fn line(&self, command: &str, name: &str) -> String {
        format!("{command} /{}/{name}", self.prefix)
    }

    fn until_in_line(&self, name: &str, how_many: usize) {
        let line = format!("{}/{name}", self.prefix);
        until(&format!("{how_many} in the line"), || self.etcd.keys(&line).len() == how_many);
    }

    /// These wait on. They may only be early, never late.
    fn is_held_alone(&self, waiting: &[&ScopedJoinHandle<'_, Guard>]) {
        // Which takes a while, so that what is wrong could show.
        assert!(!self.etcd.keys(&self.prefix).is_empty());
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    }

    fn is_empty(&self) {
        until("nothing to be left", || self.etcd.keys(&self.prefix).is_empty());
    }
}

fn unique(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
