//! A program that uses locks, driven by lines: see `tests/processes.rs`.
//!
//! ```text
//! worker URL LOG
//!
//! acquire ID NAME MODE [MAX_HOLD_MS]  -> "waiting ID" if it waits, then "acquired ID TOKEN"
//! check ID                            -> "held ID" or "lost ID REASON"
//! release ID                          -> "released ID" or "error ..."
//! turns NAME MODE SECONDS HOLD_US     -> "turns COUNT", after so long
//! count                               -> "count DESCRIPTORS THREADS"
//! inherit NAME                        -> "inherited PID OWNER": a child acquires a lock that was made before the fork
//! ```
//! What it believed in `turns` it writes to the log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{Write, stdin, stdout},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, WaitOptions, waitpid};
use windlass::{Guard, Lock, Locker, connect, rt::thread};
use windlass_tests::{
    beliefs::{Belief, nanos},
    place::block_on,
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (url, log) = (arguments.next().expect("a URL"), arguments.next().expect("a log"));
    let locker = block_on(connect(&url)).unwrap();
    let log = Arc::new(OpenOptions::new().append(true).create(true).open(log).unwrap());
    let guards: Arc<Mutex<HashMap<String, Guard>>> = Arc::default();
    println!("ready");
    for line in stdin().lines() {
        let line = line.unwrap();
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match words[0].as_str() {
            "acquire" => {
                let (locker, guards) = (locker.clone(), guards.clone());
                let id = words[1].clone();
                let mut lock = mode(locker.lock(&words[2]), &words[3]);
                if let Some(max_hold) = words.get(4) {
                    let max_hold = Duration::from_millis(max_hold.parse().unwrap());
                    lock = lock.ttl(Duration::from_secs(1)).max_hold(max_hold);
                }
                let waits = id.clone();
                let lock = lock.on_wait(move |_| println!("waiting {waits}"));
                thread("acquire", move || match block_on(lock.into_future()) {
                    Ok(guard) => {
                        let token = guard.fencing_token();
                        guards.lock().unwrap().insert(id.clone(), guard);
                        println!("acquired {id} {token}");
                    }
                    Err(error) => println!("error {error}"),
                })
                .unwrap();
            }
            "check" => match guards.lock().unwrap()[&words[1]].check() {
                Ok(()) => println!("held {}", words[1]),
                Err(error) => println!("lost {} {}", words[1], error.lost_reason().unwrap()),
            },
            "release" => match block_on(guards.lock().unwrap().remove(&words[1]).unwrap().release()) {
                Ok(()) => println!("released {}", words[1]),
                Err(error) => println!("lost {} {}", words[1], error.lost_reason().unwrap()),
            },
            "turns" => {
                let (locker, log) = (locker.clone(), log.clone());
                thread("turns", move || println!("turns {}", turns(&locker, &log, &words))).unwrap();
            }
            "count" => {
                let count = |of: &str| std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count();
                println!("count {} {}", count("fd"), count("task"));
            }
            "inherit" => inherit(&locker, &words[1]),
            other => panic!("unknown command {other:?}"),
        }
    }
}

unsafe extern "C" {
    fn fork() -> i32;
}

fn inherit(locker: &Locker, name: &str) {
    let lock = locker.lock(name);
    // Another thread that had it at the moment of the fork would have it in the child for ever.
    let _output = stdout().lock();
    // SAFETY: windlass promises to stand it, and nothing else that a thread could be busy with is used in the child.
    let child = unsafe { fork() };
    if child == 0 {
        let guard = block_on(lock).unwrap();
        let owner = block_on(locker.list(name)).unwrap().remove(0).holders.remove(0).owner.owner;
        println!("inherited {} {owner}", std::process::id());
        block_on(guard.release()).unwrap();
        std::process::exit(0);
    }
    let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
}

fn turns(locker: &Locker, log: &File, words: &[String]) -> u32 {
    let [_, name, mode_name, seconds, hold] = words else { panic!("{words:?}") };
    let hold = Duration::from_micros(hold.parse().unwrap());
    let end = nanos() + seconds.parse::<u64>().unwrap() * 1_000_000_000;
    let mut turns = 0;
    while nanos() < end {
        let guard = block_on(mode(locker.lock(name), mode_name).into_future()).unwrap();
        if let Some(belief) = Belief::hold(&guard, hold) {
            let mut log = log;
            log.write_all(format!("{belief}\n").as_bytes()).unwrap();
            turns += 1;
        }
        if turns % 2 == 0 { drop(guard) } else { block_on(guard.release()).unwrap() }
    }
    turns
}

fn mode(lock: Lock, mode: &str) -> Lock {
    match mode {
        "exclusive" => lock,
        "shared" => lock.shared(),
        permit => lock.permit(permit.strip_prefix("permit-").expect("a mode").parse().unwrap()),
    }
}
