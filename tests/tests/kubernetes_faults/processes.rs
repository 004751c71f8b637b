//! Processes that stop or die, and clocks that are wrong.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use windlass_tests::{
    adversity,
    place::{Folder, acquire, block_on, waits},
    processes::{Program, until},
};

use super::{SLACK, TTL, cluster, locker, nothing_is_left};

/// A process of ours; and its folder, which has to stay.
fn worker(url: &str) -> (Program, Folder) {
    worker_by(Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker")), url)
}

fn worker_by(mut command: Command, url: &str) -> (Program, Folder) {
    let folder = Folder::new();
    (Program::start(command.arg(format!("{url}&ttl=2s")).arg(folder.path("log"))), folder)
}

/// One whose wall clock is off.
fn worker_at(offset: &str, url: &str) -> (Program, Folder) {
    let mut command = Command::new("faketime");
    // Timers go by the clock that does not jump.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").args(["-f", offset]);
    command.arg(env!("CARGO_BIN_EXE_windlass-tests-worker"));
    worker_by(command, url)
}

#[test]
fn a_killed_holder_frees_the_lock() {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let (holder, _folder) = worker(&url);
    adversity::a_killed_holder_frees_the_lock(holder, &locker(&url));
    nothing_is_left(cluster(), &namespace);
}

/// Where nobody waits, those who only try find out, too.
#[test]
fn a_killed_holder_frees_the_lock_for_those_who_only_try() {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let (mut holder, _folder) = worker(&url);
    holder.say("acquire 1 lock exclusive");
    holder.rest_of("acquired 1 ");
    assert!(block_on(locker(&url).lock("lock").try_acquire()).unwrap().is_none());
    holder.kill();
    until("a try that goes well", || {
        // Each has seen nothing yet of the holder.
        let guard = block_on(locker(&url).lock("lock").try_acquire()).unwrap();
        guard.map(|guard| block_on(guard.release()).unwrap()).is_some()
    });
    nothing_is_left(cluster(), &namespace);
}

#[test]
fn killed_waiters_block_nobody_for_long() {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    let mut dead: Vec<_> = (0..2).map(|_| worker(&url)).collect();
    for (worker, _) in &mut dead {
        worker.say("acquire 1 lock exclusive");
        worker.expect("waiting 1");
    }
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        for (worker, _folder) in dead {
            worker.kill();
        }
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(behind.join().unwrap().release()).unwrap();
        let took = released.elapsed();
        eprintln!("let in {took:?} after two dead waiters");
        assert!(took < 3 * TTL + SLACK, "after {took:?}");
    });
    nothing_is_left(cluster(), &namespace);
}

#[test]
fn a_stopped_holder_knows_that_it_is_over() {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let (holder, _folder) = worker(&url);
    adversity::a_stopped_holder_knows_that_it_is_over(holder, &locker(&url));
    nothing_is_left(cluster(), &namespace);
}

/// It has lost its place, stands in line anew, and is never granted by mistake.
#[test]
fn a_stopped_waiter_queues_again() {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let ours = locker(&url);
    let guard = acquire(&ours, "lock");
    let (mut stopped, _folder) = worker(&url);
    stopped.say("acquire 1 lock exclusive");
    stopped.expect("waiting 1");
    thread::scope(|scope| {
        let behind = waits(scope, ours.lock("lock"));
        stopped.signal(Signal::STOP);
        block_on(guard.release()).unwrap();
        let behind = behind.join().unwrap();
        stopped.signal(Signal::CONT);
        assert!(stopped.is_silent_of("acquired 1 ", 300));
        let token = behind.fencing_token();
        block_on(behind.release()).unwrap();
        assert!(stopped.rest_of("acquired 1 ").parse::<u64>().unwrap() > token);
        stopped.ask("check 1", "held 1");
        stopped.ask("release 1", "released 1");
    });
    nothing_is_left(cluster(), &namespace);
}

/// A clock that is an hour off, either way and on either side, takes no lock from anybody and keeps none from anybody.
#[test]
fn wrong_wall_clocks_decide_nothing() {
    thread::scope(|scope| {
        for offset in ["+1h", "-1h"] {
            scope.spawn(move || {
                holder_at(offset);
                waiter_at(offset);
            });
        }
    });
}

fn holder_at(offset: &str) {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let (mut off, _folder) = worker_at(offset, &url);
    off.say("acquire 1 lock exclusive");
    off.rest_of("acquired 1 ");
    thread::scope(|scope| {
        let ours = locker(&url);
        let waiting = waits(scope, ours.lock("lock"));
        thread::sleep(2 * TTL);
        assert!(!waiting.is_finished(), "taken from a live holder whose clock is {offset}");
        assert!(block_on(ours.lock("lock").try_acquire()).unwrap().is_none());
        off.ask("check 1", "held 1");
        off.kill();
        let killed = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(killed.elapsed() < TTL + SLACK, "{offset}: after {:?}", killed.elapsed());
    });
    nothing_is_left(cluster(), &namespace);
}

fn waiter_at(offset: &str) {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let guard = acquire(&locker(&url), "lock");
    let (mut off, _folder) = worker_at(offset, &url);
    off.say("acquire 1 lock exclusive");
    off.expect("waiting 1");
    assert!(off.is_silent_of("acquired 1 ", u64::try_from((2 * TTL).as_millis()).unwrap()), "{offset}");
    guard.check().unwrap();
    let released = Instant::now();
    block_on(guard.release()).unwrap();
    off.rest_of("acquired 1 ");
    assert!(released.elapsed() < Duration::from_secs(2), "{offset}: after {:?}", released.elapsed());
    off.ask("release 1", "released 1");
    nothing_is_left(cluster(), &namespace);
}
