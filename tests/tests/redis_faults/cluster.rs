//! A Cluster whose masters die and hang, and whose slots move.

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use windlass::{Guard, Locker};
use windlass_tests::{
    crowd::Crowd,
    redis::{Cluster, Release, Server, key_of},
    server_process::port_to_keep,
};

use super::{SLACK, TTL, acquire, block_on, locker, locker_with, next, nothing_is_left, waits};

/// One that no test harms, though slots move in it.
fn whole() -> &'static Cluster {
    static REDIS: OnceLock<Cluster> = OnceLock::new();
    REDIS.get_or_init(|| Cluster::start(Release::Debian))
}

fn prefix() -> String {
    format!("test-{}:", next())
}

/// Names whose locks are on each of the masters, and elsewhere.
fn one_on_each(cluster: &Cluster, prefix: &str) -> Vec<String> {
    (0..3)
        .map(|master| {
            let mut names = (0..).map(|n| format!("lock-{n}"));
            names.find(|name| cluster.master_of(&key_of(prefix, name)) == master).unwrap()
        })
        .collect()
}

fn nothing_is_left_of(cluster: &Cluster, prefix: &str) {
    nothing_is_left(|| cluster.keys().into_iter().filter(|key| key.contains(prefix)).collect());
}

/// Any of them leads to all, the first one that lives.
#[test]
fn one_of_several_listens() {
    let prefix = prefix();
    let dead = ([127, 0, 0, 1], port_to_keep()).into();
    let names = one_on_each(whole(), &prefix);
    for n in 0..3 {
        let ours = locker(&Cluster::url_at(&[dead, whole().master(n).address()], &prefix));
        for name in &names {
            block_on(acquire(&ours, name).release()).unwrap();
        }
    }
    nothing_is_left_of(whole(), &prefix);
}

/// The master that has the lock is all that is needed.
#[test]
fn a_script_is_missing_while_another_master_hangs() {
    let mut cluster = Cluster::start(Release::Debian);
    let prefix = prefix();
    let names = one_on_each(&cluster, &prefix);
    let ours = locker(&cluster.url(&prefix));
    for name in &names {
        block_on(acquire(&ours, name).release()).unwrap();
    }
    cluster.master(1).forget_scripts();
    cluster.master_mut(0).stop();
    let guard = block_on(ours.lock(&names[1]).try_acquire()).unwrap().unwrap();
    block_on(guard.release()).unwrap();
    cluster.master_mut(0).go_on();
    cluster.until_whole();
    nothing_is_left_of(&cluster, &prefix);
}

/// What is on the others goes on; what is on the dead one is there again when it is.
#[test]
fn a_master_is_killed() {
    harmed(Server::kill, Server::start_again);
}

#[test]
fn a_master_hangs() {
    harmed(Server::stop, Server::go_on);
}

fn harmed(harm: impl FnOnce(&mut Server), mend: impl FnOnce(&mut Server)) {
    let mut cluster = Cluster::start(Release::Newest);
    let prefix = prefix();
    let url = cluster.url(&prefix);
    let names = one_on_each(&cluster, &prefix);
    let ours = locker_with(&url, 10 * TTL);
    let held: Vec<Guard> = names.iter().map(|name| acquire(&ours, name)).collect();
    let crowd = thread::scope(|scope| {
        let waiting: Vec<_> = names.iter().map(|name| waits(scope, ours.lock(name))).collect();
        harm(cluster.master_mut(0));
        // By then the others call it dead.
        thread::sleep(TTL);
        let crowd = Crowd::on(&[&other_than(&cluster, &prefix, 0)], || locker(&url));
        let fresh = locker(&url);
        for name in &names[1..] {
            assert!(block_on(fresh.lock(name).try_acquire()).unwrap().is_none());
        }
        let start = Instant::now();
        let error = block_on(fresh.lock(&names[0]).timeout(TTL)).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:"), "{error}");
        assert!(start.elapsed() < TTL + SLACK, "after {:?}", start.elapsed());
        mend(cluster.master_mut(0));
        cluster.until_whole();
        for (guard, waiting) in held.into_iter().zip(waiting) {
            guard.check().unwrap();
            let token = guard.fencing_token();
            block_on(guard.release()).unwrap();
            let released = Instant::now();
            let next = waiting.join().unwrap();
            assert!(released.elapsed() < TTL + SLACK, "after {:?}", released.elapsed());
            assert!(next.fencing_token() > token);
            block_on(next.release()).unwrap();
        }
        crowd
    });
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left_of(&cluster, &prefix);
}

/// Whoever heard on the one that died hears on another: nobody has to look by itself, which takes seconds.
#[test]
fn who_waits_is_told_while_a_master_is_dead() {
    const TIMES: u32 = 10;
    const AT_ONCE: u32 = 3;
    let mut cluster = Cluster::start(Release::Valkey);
    let prefix = prefix();
    let url = cluster.url(&prefix);
    let name = other_than(&cluster, &prefix, 0);
    // Each hears on one of the masters, as it happens.
    let lockers: [Locker; 12] = std::array::from_fn(|_| locker_with(&url, 10 * TTL));
    for ours in &lockers {
        block_on(acquire(ours, &name).release()).unwrap();
    }
    cluster.master_mut(0).kill();
    // By then the others call it dead.
    thread::sleep(TTL);
    for ours in &lockers {
        let mut at_once = 0;
        for _ in 0..TIMES {
            let guard = acquire(ours, &name);
            thread::scope(|scope| {
                let waiting = waits(scope, ours.lock(&name));
                let released = Instant::now();
                block_on(guard.release()).unwrap();
                let next = waiting.join().unwrap();
                at_once = if released.elapsed() < TTL { at_once + 1 } else { 0 };
                block_on(next.release()).unwrap();
            });
            if at_once == AT_ONCE {
                break;
            }
        }
        // While the cluster mends itself, some may be missed.
        assert_eq!(at_once, AT_ONCE, "in a row, of {TIMES}");
    }
    nothing_is_left_of(&cluster, &prefix);
}

/// A name whose lock is not on this master.
fn other_than(cluster: &Cluster, prefix: &str, master: usize) -> String {
    let mut names = (0..).map(|n| format!("crowd-{n}"));
    names.find(|name| cluster.master_of(&key_of(prefix, name)) != master).unwrap()
}

/// A slot that goes to another master takes its locks along: who holds, holds, who waits, waits, and tokens grow.
#[test]
fn slots_move() {
    let prefix = prefix();
    let url = whole().url(&prefix);
    let [ours, other]: [Locker; 2] = std::array::from_fn(|_| locker(&url));
    let name = "moved";
    let key = key_of(&prefix, name);
    let crowd = Crowd::on(&[name], || locker(&url));
    let mut last = 0;
    for _ in 0..3 {
        let guard = acquire(&ours, name);
        assert!(guard.fencing_token() > last);
        thread::scope(|scope| {
            let waiting = waits(scope, other.lock(name));
            let to = (whole().master_of(&key) + 1) % 3;
            whole().move_slot(&key, to, || {
                // While some of its keys are here and some there.
                guard.check().unwrap();
                thread::sleep(Duration::from_millis(100));
            });
            assert_eq!(whole().master_of(&key), to);
            guard.check().unwrap();
            last = guard.fencing_token();
            block_on(guard.release()).unwrap();
            let next = waiting.join().unwrap();
            assert!(next.fencing_token() > last);
            last = next.fencing_token();
            block_on(next.release()).unwrap();
        });
    }
    crowd.everybody_has_turns();
    crowd.end();
    nothing_is_left_of(whole(), &prefix);
}

/// It is in the middle of its way for longer than a TTL: whatever is asked of it, no lock is given twice.
#[test]
fn a_slot_is_long_on_its_way() {
    let prefix = prefix();
    let url = whole().url(&prefix);
    let ours = locker(&url);
    let name = "on its way";
    let key = key_of(&prefix, name);
    let crowd = Crowd::on(&[name], || locker(&url));
    let to = (whole().master_of(&key) + 1) % 3;
    whole().move_slot(&key, to, || thread::sleep(2 * TTL));
    crowd.everybody_has_turns();
    crowd.end();
    block_on(acquire(&ours, name).release()).unwrap();
    nothing_is_left_of(whole(), &prefix);
}

/// Several locks on several masters at once.
#[test]
fn locks_on_all_masters_together() {
    let prefix = prefix();
    let ours = locker(&whole().url(&prefix));
    let names = one_on_each(whole(), &prefix);
    let guards = block_on(ours.lock_all(&names)).unwrap();
    assert_eq!(guards.len(), 3);
    thread::sleep(TTL);
    for guard in &guards {
        guard.check().unwrap();
    }
    let seen = block_on(ours.list("lock-")).unwrap();
    assert_eq!(seen.len(), 3, "{seen:?}");
    for guard in guards {
        block_on(guard.release()).unwrap();
    }
    nothing_is_left_of(whole(), &prefix);
}
