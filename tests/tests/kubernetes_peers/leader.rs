//! client-go's leader election and ours on one Lease.

use std::{
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    kubernetes::leases,
    place::{Folder, acquire, block_on, waits},
    processes::{Program, go_peer, until},
};

use super::{SLACK, cluster};

/// No longer than the peer's `LeaseDuration`.
const TTL: Duration = Duration::from_secs(2);
const LEASE_DURATION: Duration = Duration::from_secs(3);

struct Controller {
    namespace: String,
    url: String,
    ours: Locker,
}

impl Controller {
    fn new() -> Self {
        let namespace = cluster().namespace();
        let url = cluster().url(&namespace);
        let ours = block_on(ConnectOptions::new().ttl(TTL).owner("ours").connect(&url)).unwrap();
        Self { namespace, url, ours }
    }

    /// One of client-go's candidates.
    fn candidate(&self, identity: &str) -> Program {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let program = BUILT.get_or_init(|| go_peer("leader-election", env!("CARGO_TARGET_TMPDIR")));
        let mut command = Command::new(program);
        command.arg(format!("https://{}", cluster().address())).arg(cluster().ca());
        Program::start(command.args(["admin-token", &self.namespace, "controller", identity]))
    }

    fn lease(&self) -> Value {
        cluster().ask("GET", &(leases(&self.namespace) + "/controller"), None)
    }
}

#[test]
fn one_leads_at_a_time() {
    let it = Controller::new();
    let mut theirs = it.candidate("theirs");
    let guard = acquire(&it.ours, "controller");
    theirs.say("run");
    // It reads a holder that renews.
    assert!(theirs.is_silent("leads", u64::try_from((2 * LEASE_DURATION).as_millis()).unwrap()));
    guard.check().unwrap();
    assert!(it.lease()["spec"]["holderIdentity"].as_str().unwrap().starts_with("ours #"));
    block_on(guard.release()).unwrap();
    theirs.expect("leads");
    assert_eq!(it.lease()["spec"]["holderIdentity"], "theirs");
    assert!(block_on(it.ours.lock("controller").try_acquire()).unwrap().is_none());
    let guard = thread::scope(|scope| {
        let waiting = waits(scope, it.ours.lock("controller"));
        let status = &block_on(it.ours.list("")).unwrap()[0];
        assert_eq!((&*status.holders[0].owner.owner, status.waiters.len()), ("theirs", 1));
        thread::sleep(2 * LEASE_DURATION);
        assert!(!waiting.is_finished(), "taken from a leader that renews");
        theirs.say("resign");
        theirs.expect("resigned");
        let resigned = Instant::now();
        let guard = waiting.join().unwrap();
        assert!(resigned.elapsed() < SLACK, "after {:?}", resigned.elapsed());
        guard
    });
    theirs.say("run");
    assert!(theirs.is_silent("leads", u64::try_from(LEASE_DURATION.as_millis()).unwrap()));
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    theirs.expect("leads");
}

#[test]
fn the_dead_make_room_both_ways() {
    let it = Controller::new();
    let (mut theirs, mut next) = (it.candidate("theirs"), it.candidate("next"));
    theirs.say("run");
    theirs.expect("leads");
    thread::scope(|scope| {
        let waiting = waits(scope, it.ours.lock("controller"));
        theirs.kill();
        let killed = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(killed.elapsed() < LEASE_DURATION + SLACK, "after {:?}", killed.elapsed());
    });
    let folder = Folder::new();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    let mut worker = Program::start(worker.arg(format!("{}&ttl=2s", it.url)).arg(folder.path("log")));
    worker.say("acquire 1 controller exclusive");
    worker.rest_of("acquired 1 ");
    next.say("run");
    until("it is seen", || it.lease()["spec"]["leaseTransitions"].as_u64().is_some());
    worker.kill();
    let killed = Instant::now();
    next.expect("leads");
    assert!(killed.elapsed() < 2 * LEASE_DURATION + SLACK, "after {:?}", killed.elapsed());
}
