//! lockgate's own locker for Kubernetes and ours in the annotations of one ConfigMap.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use windlass::{ConnectOptions, Guard, Locker};
use windlass_tests::{
    place::{Folder, acquire, block_on, waits},
    processes::{Program, go_peer, until},
};

use super::{SLACK, cluster};

/// Of `lock`, in hexadecimal for the peer.
const NAME: &str = "6c6f636b";
/// lockgate's leases live for ten seconds, and it looks every two.
const DEAD: Duration = Duration::from_secs(10);
const LOOKS: Duration = Duration::from_secs(2);

/// A ConfigMap of a test's own.
struct Map {
    namespace: String,
    url: String,
    ours: Locker,
}

fn map() -> Map {
    let namespace = cluster().namespace();
    let url = cluster().url_of_new_configmap(&namespace, "locks");
    let ours = block_on(ConnectOptions::new().owner("ours").connect(&url)).unwrap();
    Map { namespace, url, ours }
}

impl Map {
    fn lockgate(&self) -> Program {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let program = BUILT.get_or_init(|| go_peer("lockgate-http", env!("CARGO_TARGET_TMPDIR")));
        let mut command = Command::new(program);
        command.arg("kubernetes").arg(format!("https://{}", cluster().address())).arg(cluster().ca());
        Program::start(command.args(["admin-token", &self.namespace, "locks"]))
    }

    /// lockgate's record, if there is one.
    fn record(&self) -> Option<Value> {
        let all = cluster().annotations(&self.namespace, "locks");
        let found = all.into_iter().find(|(name, _)| name.starts_with("lockgate.io/"));
        found.map(|(_, text)| serde_json::from_str(&text).unwrap())
    }

    fn nothing_is_left(&self) {
        until("nothing to be left", || cluster().annotations(&self.namespace, "locks").is_empty());
    }
}

#[test]
fn exclusive_excludes_both_ways() {
    let map = map();
    let mut lockgate = map.lockgate();
    let guard = acquire(&map.ours, "lock");
    lockgate.ask(&format!("try 1 {NAME} exclusive -"), "busy 1");
    lockgate.ask(&format!("try 2 {NAME} shared -"), "busy 2");
    lockgate.ask(&format!("acquire 3 {NAME} exclusive -"), "waits 3");
    assert!(lockgate.is_silent("acquired 3", 2_500));
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    lockgate.expect("acquired 3");
    assert!(block_on(map.ours.lock("lock").try_acquire()).unwrap().is_none());
    assert!(block_on(map.ours.lock("lock").shared().try_acquire()).unwrap().is_none());
    thread::scope(|scope| {
        let waiting = waits(scope, map.ours.lock("lock"));
        let status = &block_on(map.ours.list("lock")).unwrap()[0];
        assert_eq!(status.holders[0].owner.owner, "lockgate");
        // It renews, and we see it.
        thread::sleep(DEAD + LOOKS);
        assert!(!waiting.is_finished(), "taken from a live holder");
        lockgate.say("release 3");
        let released = Instant::now();
        let guard = waiting.join().unwrap();
        assert!(released.elapsed() < LOOKS, "after {:?}", released.elapsed());
        lockgate.expect("released 3");
        block_on(guard.release()).unwrap();
    });
    map.nothing_is_left();
}

#[test]
fn the_record_is_lockgates() {
    let map = map();
    let guard = acquire(&map.ours, "lock");
    let record = map.record().unwrap();
    let mut keys: Vec<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let wanted = ["ExpireAtTimestamp", "IsShared", "QueueMembers", "SharedHoldersCount", "lockName", "uuid"];
    assert_eq!(keys, wanted);
    assert_eq!((&record["lockName"], &record["SharedHoldersCount"]), (&"lock".into(), &1.into()));
    assert_eq!((record["uuid"].as_str().unwrap().len(), &record["IsShared"]), (36, &false.into()));
    block_on(guard.release()).unwrap();
    map.nothing_is_left();
}

#[test]
fn shared_both_ways() {
    let map = map();
    let mut lockgate = map.lockgate();
    // Ours first, and then theirs.
    let one = block_on(map.ours.lock("lock").shared()).unwrap();
    lockgate.ask(&format!("try 1 {NAME} shared -"), "acquired 1");
    lockgate.ask(&format!("try 2 {NAME} exclusive -"), "busy 2");
    let two = block_on(map.ours.lock("lock").shared().try_acquire()).unwrap().unwrap();
    assert_eq!(map.record().unwrap()["SharedHoldersCount"], 3);
    thread::scope(|scope| {
        let writer = waits(scope, map.ours.lock("lock"));
        // Whoever comes after the writer waits for it, lockgate's readers, too.
        lockgate.ask(&format!("try 3 {NAME} shared -"), "busy 3");
        block_on(one.release()).unwrap();
        lockgate.ask("release 1", "released 1");
        assert!(!writer.is_finished());
        block_on(two.release()).unwrap();
        block_on(writer.join().unwrap().release()).unwrap();
    });
    map.nothing_is_left();
    // Theirs first, and then ours, which outlives it.
    lockgate.ask(&format!("try 4 {NAME} shared -"), "acquired 4");
    let guard = block_on(map.ours.lock("lock").shared().try_acquire()).unwrap().unwrap();
    lockgate.ask("release 4", "released 4");
    assert!(block_on(map.ours.lock("lock").try_acquire()).unwrap().is_none());
    lockgate.ask(&format!("try 5 {NAME} exclusive -"), "busy 5");
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    map.nothing_is_left();
}

/// Each lives on by renewals for longer than a lease, together and over renewals of the other.
#[test]
fn shared_ones_keep_each_other() {
    let map = map();
    let mut lockgate = map.lockgate();
    let guard = block_on(map.ours.lock("lock").shared()).unwrap();
    lockgate.ask(&format!("try 1 {NAME} shared -"), "acquired 1");
    thread::sleep(2 * DEAD + LOOKS);
    guard.check().unwrap();
    assert_eq!(map.record().unwrap()["SharedHoldersCount"], 2);
    assert!(lockgate.is_silent("lost 1", 10));
    thread::scope(|scope| {
        let writer = waits(scope, map.ours.lock("lock"));
        block_on(guard.release()).unwrap();
        // It dies, and the writer gets the lock.
        lockgate.kill();
        let killed = Instant::now();
        block_on(writer.join().unwrap().release()).unwrap();
        assert!(killed.elapsed() < 2 * DEAD + SLACK, "after {:?}", killed.elapsed());
    });
    map.nothing_is_left();
}

#[test]
fn the_dead_make_room_both_ways() {
    let map = map();
    let (mut lockgate, mut another) = (map.lockgate(), map.lockgate());
    lockgate.ask(&format!("try 1 {NAME} exclusive -"), "acquired 1");
    thread::scope(|scope| {
        let waiting = waits(scope, map.ours.lock("lock"));
        lockgate.kill();
        let killed = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(killed.elapsed() < DEAD + SLACK, "after {:?}", killed.elapsed());
    });
    let folder = Folder::new();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    let mut worker = Program::start(worker.arg(&map.url).arg(folder.path("log")));
    worker.say("acquire 1 lock exclusive");
    worker.rest_of("acquired 1 ");
    another.ask(&format!("acquire 2 {NAME} exclusive -"), "waits 2");
    worker.kill();
    let killed = Instant::now();
    another.expect("acquired 2");
    assert!(killed.elapsed() < DEAD + LOOKS + SLACK, "after {:?}", killed.elapsed());
    another.ask("release 2", "released 2");
    // What the dead one left beside the record goes with the next of ours.
    block_on(acquire(&map.ours, "lock").release()).unwrap();
    map.nothing_is_left();
}

/// One in lockgate's line is next when ours give the lock back, and has time to see it.
#[test]
fn lockgates_line_is_served() {
    let map = map();
    let mut lockgate = map.lockgate();
    let guard = acquire(&map.ours, "lock");
    lockgate.ask(&format!("acquire 1 {NAME} exclusive me"), "waits 1");
    until("its place in line", || map.record().unwrap()["QueueMembers"].get("me").is_some());
    block_on(guard.release()).unwrap();
    assert!(block_on(map.ours.lock("lock").try_acquire()).unwrap().is_none(), "it is lockgate's turn");
    lockgate.expect("acquired 1");
    lockgate.ask("release 1", "released 1");
    map.nothing_is_left();
}

/// One that tried and went has left a place in lockgate's line, which holds up ours once, and not for ever.
#[test]
fn lockgates_line_passes() {
    let map = map();
    let mut lockgate = map.lockgate();
    let guard = acquire(&map.ours, "lock");
    lockgate.ask(&format!("try 1 {NAME} exclusive me"), "busy 1");
    assert!(map.record().unwrap()["QueueMembers"].get("me").is_some());
    block_on(guard.release()).unwrap();
    let released = Instant::now();
    until("a try that goes well", || {
        let guard = block_on(map.ours.lock("lock").try_acquire()).unwrap();
        guard.map(|guard| block_on(guard.release()).unwrap()).is_some()
    });
    assert!(released.elapsed() < DEAD, "after {:?}", released.elapsed());
    map.nothing_is_left();
}

/// While a writer of ours waits for readers of lockgate no more of them come in, and when it has gone they do again.
#[test]
fn readers_of_lockgate_starve_no_writer() {
    let map = map();
    let mut lockgate = map.lockgate();
    lockgate.ask(&format!("try 1 {NAME} shared -"), "acquired 1");
    let given_up = map.ours.lock("lock").timeout(LOOKS).on_wait(|_| {});
    thread::scope(|scope| {
        let gives_up = scope.spawn(|| block_on(given_up).unwrap_err());
        until("the writer", || map.record().unwrap()["IsShared"] == false);
        lockgate.ask(&format!("try 2 {NAME} shared -"), "busy 2");
        gives_up.join().unwrap();
    });
    until("the writer to go", || map.record().unwrap()["IsShared"] == true);
    lockgate.ask(&format!("try 3 {NAME} shared -"), "acquired 3");
    thread::scope(|scope| {
        let writer = waits(scope, map.ours.lock("lock"));
        lockgate.ask(&format!("try 4 {NAME} shared -"), "busy 4");
        // Longer than the readers would live if they did not renew.
        thread::sleep(DEAD + LOOKS);
        assert!(!writer.is_finished(), "taken from live readers");
        lockgate.ask("release 1", "released 1");
        lockgate.ask("release 3", "released 3");
        block_on(writer.join().unwrap().release()).unwrap();
    });
    map.nothing_is_left();
}

/// A reader of lockgate that comes and goes leaves the record of all with its own short lease: ours hold on, whatever TTL they want.
#[test]
fn readers_hold_on_whatever_their_ttl() {
    holds_on(|ours| block_on(ours.lock("lock").shared()).unwrap());
}

#[test]
fn who_has_become_a_reader_holds_on_whatever_the_ttl() {
    holds_on(|ours| {
        let guard = acquire(ours, "lock");
        block_on(guard.downgrade()).unwrap();
        guard
    });
}

fn holds_on(reads: impl FnOnce(&Locker) -> Guard) {
    let map = map();
    let mut lockgate = map.lockgate();
    let ours = block_on(ConnectOptions::new().ttl(6 * DEAD).connect(&map.url)).unwrap();
    let guard = reads(&ours);
    lockgate.ask(&format!("try 1 {NAME} shared -"), "acquired 1");
    lockgate.ask("release 1", "released 1");
    thread::sleep(DEAD + 2 * LOOKS);
    lockgate.ask(&format!("try 2 {NAME} exclusive -"), "busy 2");
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    map.nothing_is_left();
}

/// A number in a file is counted up by both, and no step is lost.
#[test]
fn taking_turns() {
    const TURNS: u32 = 6;
    let map = map();
    let mut lockgate = map.lockgate();
    let folder = Folder::new();
    let file = folder.path("number");
    fs::write(&file, "0").unwrap();
    lockgate.say(&format!("count 1 {NAME} {TURNS} {}", file.display()));
    for _ in 0..TURNS {
        let guard = acquire(&map.ours, "lock");
        let number: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        thread::sleep(Duration::from_millis(20));
        fs::write(&file, (number + 1).to_string()).unwrap();
        block_on(guard.release()).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    lockgate.expect("counted 1");
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), (2 * TURNS).to_string());
    map.nothing_is_left();
}

/// Who takes the lock by force takes it from lockgate as well, which is told at its next renewal.
#[test]
fn taken_by_force() {
    let map = map();
    let mut lockgate = map.lockgate();
    lockgate.ask(&format!("try 1 {NAME} exclusive -"), "acquired 1");
    let guard = block_on(map.ours.lock("lock").steal()).unwrap();
    lockgate.expect("lost 1");
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    lockgate.ask(&format!("try 2 {NAME} exclusive -"), "acquired 2");
    assert_eq!(block_on(map.ours.force_release("lock", None)).unwrap().len(), 1);
    block_on(acquire(&map.ours, "lock").release()).unwrap();
    lockgate.expect("lost 2");
    map.nothing_is_left();
}
