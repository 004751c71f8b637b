//! Real processes on the files of one directory: they die, are stopped, and take turns.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Command;

use rustix::process::Signal;
use windlass_tests::{
    beliefs::{Belief, most_at_once, no_overlap},
    place::Folder,
    processes::Program,
};

struct Machine(Folder);

impl Machine {
    fn new() -> Self {
        Self(Folder::new())
    }

    fn process(&self) -> Program {
        let url = format!("file://{}", self.0.path("locks").display());
        Program::start(
            Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker")).arg(url).arg(self.0.path("log")),
        )
    }

    fn believed(&self) -> Vec<Belief> {
        let log = std::fs::read_to_string(self.0.path("log")).unwrap();
        log.lines().map(|line| line.parse().unwrap()).collect()
    }
}

#[test]
fn a_killed_holder_frees_the_lock() {
    let machine = Machine::new();
    let (mut one, mut two) = (machine.process(), machine.process());
    let mut last = 0;
    for mode in ["exclusive", "shared", "permit-1"] {
        one.say(&format!("acquire 1 lock {mode}"));
        last = grows(last, &one.rest_of("acquired 1 "));
        two.say("acquire 2 lock exclusive");
        two.expect("waiting 2");
        one.kill();
        last = grows(last, &two.rest_of("acquired 2 "));
        two.ask("release 2", "released 2");
        one = machine.process();
    }
}

#[test]
fn a_killed_waiter_blocks_nobody() {
    let machine = Machine::new();
    let (mut holder, mut dead, mut next) = (machine.process(), machine.process(), machine.process());
    holder.say("acquire 1 lock shared");
    holder.rest_of("acquired 1 ");
    dead.say("acquire 2 lock exclusive");
    dead.expect("waiting 2");
    next.say("acquire 3 lock shared");
    next.expect("waiting 3");
    dead.kill();
    next.rest_of("acquired 3 ");
    next.ask("release 3", "released 3");
    next.say("acquire 4 lock exclusive");
    next.expect("waiting 4");
    holder.ask("release 1", "released 1");
    next.rest_of("acquired 4 ");
}

/// The kernel's lock stays with a process that is stopped, and so does the belief.
#[test]
fn a_stopped_holder_keeps_the_lock() {
    let machine = Machine::new();
    let (mut stopped, mut other) = (machine.process(), machine.process());
    stopped.say("acquire 1 lock exclusive");
    stopped.rest_of("acquired 1 ");
    stopped.signal(Signal::STOP);
    other.say("acquire 2 lock exclusive");
    other.expect("waiting 2");
    assert!(other.is_silent("acquired 2", 3000));
    stopped.signal(Signal::CONT);
    stopped.ask("check 1", "held 1");
    stopped.ask("release 1", "released 1");
    other.rest_of("acquired 2 ");
}

/// With `max_hold` its time runs out, stopped or not, and it knows when it goes on.
#[test]
fn a_stopped_holder_with_max_hold_knows_that_it_is_over() {
    let machine = Machine::new();
    let (mut stopped, mut other) = (machine.process(), machine.process());
    stopped.say("acquire 1 lock exclusive 200");
    stopped.rest_of("acquired 1 ");
    other.say("acquire 2 lock exclusive");
    other.expect("waiting 2");
    stopped.signal(Signal::STOP);
    assert!(other.is_silent("acquired 2", 3000), "the kernel's lock is where it was");
    stopped.signal(Signal::CONT);
    stopped.ask("check 1", "lost 1 expired");
    other.rest_of("acquired 2 ");
}

/// Who asks is settled by whoever asks, not by whoever has said what is wanted.
#[test]
fn a_lock_made_before_a_fork_is_acquired_in_the_name_of_the_child() {
    let machine = Machine::new();
    let mut process = machine.process();
    process.say("acquire 1 other exclusive");
    process.rest_of("acquired 1 ");
    process.say("inherit lock");
    let inherited = process.rest_of("inherited ");
    let (pid, owner) = inherited.split_once(' ').unwrap();
    assert_ne!(pid, process.pid().to_string());
    assert!(owner.ends_with(&format!(":{pid}")), "{owner} is not the child {pid}");
    process.ask("check 1", "held 1");
}

#[test]
fn eight_processes_take_turns() {
    let machine = Machine::new();
    let mut processes: Vec<Program> = (0..8).map(|_| machine.process()).collect();
    for process in &mut processes {
        process.say("turns lock exclusive 5 500");
    }
    let turns: Vec<f64> =
        processes.iter().map(|process| process.rest_of("turns ").parse().unwrap()).collect();
    let (sum, squares) = (turns.iter().sum::<f64>(), turns.iter().map(|turns| turns * turns).sum::<f64>());
    let jain = sum * sum / (turns.len() as f64 * squares);
    assert!(jain > 0.9, "{jain} of {turns:?}");
    assert!(turns.iter().all(|turns| *turns >= 10.0), "{turns:?}");
    no_overlap(machine.believed(), |_, _| false);
}

#[test]
fn readers_do_not_starve_a_writer() {
    let machine = Machine::new();
    let mut readers: Vec<Program> = (0..6).map(|_| machine.process()).collect();
    let mut writer = machine.process();
    for reader in &mut readers {
        reader.say("turns lock shared 5 2000");
    }
    writer.say("turns lock exclusive 4 500");
    let turns: u32 = writer.rest_of("turns ").parse().unwrap();
    assert!(turns >= 20, "{turns} turns among readers");
    for reader in &readers {
        let turns: u32 = reader.rest_of("turns ").parse().unwrap();
        assert!(turns >= 20, "{turns} turns of a reader");
    }
    no_overlap(machine.believed(), |one, other| one == "shared" && other == "shared");
}

#[test]
fn processes_share_a_semaphore() {
    let machine = Machine::new();
    let mut processes: Vec<Program> = (0..6).map(|_| machine.process()).collect();
    for process in &mut processes {
        process.say("turns pool permit-2 3 1000");
    }
    for process in &processes {
        let turns: u32 = process.rest_of("turns ").parse().unwrap();
        assert!(turns >= 10, "{turns} turns");
    }
    let most = most_at_once(&machine.believed());
    assert!(most <= 2, "{most} of 2 permits");
}

#[test]
fn descriptors_and_threads_stay_flat() {
    let machine = Machine::new();
    let (mut one, mut two) = (machine.process(), machine.process());
    let mut round = |names: usize| {
        for n in 0..names {
            one.say(&format!("acquire {n} lock-{n} exclusive"));
            one.rest_of(&format!("acquired {n} "));
            two.say(&format!("acquire {n} lock-{n} exclusive"));
            two.expect(&format!("waiting {n}"));
            one.ask(&format!("release {n}"), &format!("released {n}"));
            two.rest_of(&format!("acquired {n} "));
            two.ask(&format!("release {n}"), &format!("released {n}"));
        }
        let count = |process: &mut Program| -> (u32, u32) {
            process.say("count");
            let count = process.rest_of("count ");
            let (descriptors, threads) = count.split_once(' ').unwrap();
            (descriptors.parse().unwrap(), threads.parse().unwrap())
        };
        (count(&mut one), count(&mut two))
    };
    let (one_before, two_before) = round(50);
    let (one_after, two_after) = round(200);
    for (before, after) in [(one_before, one_after), (two_before, two_after)] {
        assert!(after.0 <= before.0 + 10, "descriptors: {before:?} to {after:?}");
        assert!(after.1 <= before.1 + 5, "threads: {before:?} to {after:?}");
    }
}

fn grows(last: u64, token: &str) -> u64 {
    let token = token.parse().unwrap();
    assert!(token > last, "{token} after {last}");
    token
}
