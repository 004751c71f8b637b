//! lockgate's own server: the conformance suite over `lockgate+http:`, and our client beside lockgate's in Go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::{
    future::IntoFuture,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use rustix::process::Signal;
use windlass::{
    ErrorKind, Guard, Locker, LostReason, connect,
    rt::{Native, Runtime},
};
use windlass_tests::{
    conformance,
    place::{Folder, PATIENCE, UrlPlace, block_on},
    processes::{Program, go_peer},
    proxy::{Faults, Proxy},
    server_process::port_to_keep,
};

fn start() -> UrlPlace {
    UrlPlace { url: format!("lockgate+{}", namespace()), folder: None }
}

conformance!(start);

#[test]
fn ours_and_lockgates_clients_exclude_each_other() {
    let (mut go, locker) = beside_go();
    for (theirs, ours) in [("exclusive", false), ("exclusive", true), ("shared", false)] {
        go.ask(&format!("acquire 1 {LOCK} {theirs} -"), "acquired 1");
        assert!(attempt(&locker, ours).is_none(), "{theirs} lets in shared={ours}");
        let guard = when_it_waits(&locker, ours, || go.ask("release 1", "released 1"));
        go.ask(&format!("try 2 {LOCK} {theirs} -"), "busy 2");
        go.ask(&format!("acquire 2 {LOCK} {theirs} -"), "waits 2");
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
        go.expect("acquired 2");
        go.ask("release 2", "released 2");
    }
    go.ask(&format!("acquire 1 {LOCK} shared -"), "acquired 1");
    let beside = attempt(&locker, true).expect("shared beside shared");
    go.ask("release 1", "released 1");
    go.ask(&format!("try 1 {LOCK} exclusive -"), "busy 1");
    block_on(beside.release()).unwrap();
    go.ask(&format!("try 1 {LOCK} exclusive -"), "acquired 1");
}

/// Whoever queues there comes before us if it came a second earlier, and after us if it came a second later.
#[test]
fn first_come_first_served_among_those_who_queue() {
    let (mut go, locker) = beside_go();
    go.ask(&format!("acquire 1 {LOCK} exclusive -"), "acquired 1");
    go.ask(&format!("acquire 2 {LOCK} exclusive before"), "waits 2");
    pause(1100);
    let ours = std::thread::scope(|scope| {
        let (tell, waits) = mpsc::channel();
        let ours = scope.spawn(|| acquire(&locker, false, tell));
        waits.recv_timeout(PATIENCE).unwrap();
        pause(1100);
        go.ask(&format!("acquire 3 {LOCK} exclusive after"), "waits 3");
        go.ask("release 1", "released 1");
        go.expect("acquired 2");
        assert!(!ours.is_finished());
        go.ask("release 2", "released 2");
        ours.join().unwrap()
    });
    assert!(go.is_silent("acquired 3", 0));
    block_on(ours.release()).unwrap();
    go.expect("acquired 3");
}

/// lockgate's record of a lock that was shared says so for ever.
#[test]
fn an_exclusive_claim_after_shared_ones_is_alone() {
    let (mut go, locker) = beside_go();
    go.ask(&format!("acquire 1 {LOCK} shared -"), "acquired 1");
    let guard = when_it_waits(&locker, false, || go.ask("release 1", "released 1"));
    go.ask(&format!("try 2 {LOCK} shared -"), "busy 2");
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    go.ask(&format!("try 2 {LOCK} shared -"), "acquired 2");
}

#[test]
fn a_lease_is_kept_by_renewals() {
    let (mut go, locker) = beside_go();
    let guard = attempt(&locker, false).unwrap();
    go.say(&format!("timed 1 {LOCK} exclusive - 12"));
    go.expect("failed 1 timeout");
    block_on(guard.release()).unwrap();
}

/// All shared holders have one uuid: a second release would be the other one's.
#[test]
fn a_release_without_an_answer_takes_nothing_from_the_other_holder() {
    let url = namespace();
    let mut go = go(&url);
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let proxy = Proxy::before(address.parse().unwrap());
    let ours = block_on(connect(&format!("lockgate+http://{}/{path}", proxy.address()))).unwrap();
    let guard = attempt(&ours, true).unwrap();
    go.ask(&format!("acquire 1 {LOCK} shared -"), "acquired 1");
    proxy.set(Faults { swallow_answers: true, ..Faults::default() });
    let error = block_on(guard.release()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("not sent again"), "{error}");
    let other = block_on(connect(&format!("lockgate+{url}"))).unwrap();
    assert!(attempt(&other, false).is_none(), "lockgate's client holds it still");
    assert!(go.is_silent("lost 1", 0));
    go.ask("release 1", "released 1");
    assert!(attempt(&other, false).is_some(), "and the release had arrived");
}

/// It leaves a lease that nobody knows of; whoever asked has the lock when that is over.
#[test]
fn an_acquire_without_an_answer_is_granted_later() {
    let url = namespace();
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let proxy = Proxy::before(address.parse().unwrap());
    let ours = block_on(connect(&format!("lockgate+http://{}/{path}", proxy.address()))).unwrap();
    proxy.set(Faults { cut_answer_after: Some(20), ..Faults::default() });
    let other = block_on(connect(&format!("lockgate+{url}"))).unwrap();
    let guard = block_on(ours.lock("lock").timeout(PATIENCE).into_future()).unwrap();
    assert!(attempt(&other, false).is_none());
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    assert!(attempt(&other, false).is_some());
}

/// A server that is gone, and one that hangs.
#[test]
fn a_holder_knows_when_the_server_is_away() {
    std::thread::scope(|scope| {
        for signal in [Signal::KILL, Signal::STOP] {
            scope.spawn(move || {
                let (server, address) = serve("127.0.0.1:0");
                let locker = block_on(connect(&format!("lockgate+http://{address}/names"))).unwrap();
                let guard = attempt(&locker, false).unwrap();
                server.signal(signal);
                // The server would let another in by then, at the earliest.
                pause(10_000);
                assert!(!guard.is_held(), "{signal:?}");
                assert_eq!(block_on(guard.lost()), LostReason::Unreachable);
                let error = block_on(guard.release()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Lost(LostReason::Unreachable), "{error}");
                let error = block_on(locker.lock("lock").try_acquire()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            });
        }
    });
}

/// It keeps its locks in memory only.
#[test]
fn a_holder_is_told_that_the_server_has_forgotten_it() {
    let address = format!("127.0.0.1:{}", port_to_keep());
    let (server, _) = serve(&address);
    let locker = block_on(connect(&format!("lockgate+http://{address}/names"))).unwrap();
    let guard = attempt(&locker, false).unwrap();
    server.kill();
    let _server = serve(&address);
    assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
    assert!(!guard.is_held());
    assert!(attempt(&locker, false).is_some(), "it can be had again");
}

/// A number in a file, each step read and written: steps of two holders at once would be lost.
#[test]
fn nobody_loses_a_step() {
    let (mut go, locker) = beside_go();
    let folder = Folder::new();
    let file = folder.path("number");
    std::fs::write(&file, "0").unwrap();
    go.say(&format!("count 1 {LOCK} 3 {}", file.display()));
    let step = || {
        let guard = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap();
        let number: u32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        std::fs::write(&file, (number + 1).to_string()).unwrap();
        block_on(guard.release()).unwrap();
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..50).for_each(|_| step()));
        }
    });
    go.expect("counted 1");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "103");
}

#[test]
fn what_is_no_lockgate_server_is_told_so() {
    let ours = windlass_tests::server::namespace();
    let locker = block_on(connect(&format!("lockgate+{ours}/elsewhere"))).unwrap();
    let error = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains("no lockgate server at this URL"), "{error}");
}

/// `lock`
const LOCK: &str = "6c6f636b";

fn beside_go() -> (Program, Locker) {
    let url = namespace();
    (go(&url), block_on(connect(&format!("lockgate+{url}"))).unwrap())
}

fn go(url: &str) -> Program {
    Program::start(Command::new(lockgate()).arg(url).stderr(Stdio::null()))
}

fn acquire(locker: &Locker, shared: bool, waits: mpsc::Sender<()>) -> Guard {
    let lock = locker.lock("lock").timeout(PATIENCE).on_wait(move |_| waits.send(()).unwrap());
    block_on(if shared { lock.shared() } else { lock }.into_future()).unwrap()
}

/// Acquires the lock, and does `then` once that has to wait.
fn when_it_waits(locker: &Locker, shared: bool, then: impl FnOnce()) -> Guard {
    std::thread::scope(|scope| {
        let (tell, waits) = mpsc::channel();
        let acquired = scope.spawn(move || acquire(locker, shared, tell));
        waits.recv_timeout(PATIENCE).unwrap();
        then();
        acquired.join().unwrap()
    })
}

fn attempt(locker: &Locker, shared: bool) -> Option<Guard> {
    let lock = locker.lock("lock");
    block_on(if shared { lock.shared() } else { lock }.try_acquire()).unwrap()
}

fn pause(millis: u64) {
    block_on(Native.sleep(Duration::from_millis(millis)));
}

/// Names of its own on the one server of this program.
fn namespace() -> String {
    static SERVER: OnceLock<(Mutex<Program>, String)> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let (_, address) = SERVER.get_or_init(|| {
        let (server, address) = serve("127.0.0.1:0");
        (Mutex::new(server), address)
    });
    format!("http://{address}/test-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn serve(address: &str) -> (Program, String) {
    let server = Program::start(Command::new(lockgate()).args(["serve", address]).stderr(Stdio::null()));
    let address = server.rest_of("address ");
    (server, address)
}

/// The program that is lockgate's server, and drives its client.
fn lockgate() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| go_peer("lockgate-http", env!("CARGO_TARGET_TMPDIR")))
}
