//! lockgate's client, the shell and ours, each at whatever server its connection leads to.

use std::process::{Command, Stdio};

use windlass_tests::{
    place::block_on,
    processes::{Program, go_peer},
};

use crate::{Servers, acquire, attempt, locker, program, until, waiters};

over_each_store! { lockgate_and_ours_exclude_each_other, the_shell_and_ours_exclude_each_other }

/// `lock`, as the Go program wants it: in hexadecimal digits.
const LOCK: &str = "6c6f636b";

/// Its lease is renewed and released at another server than the one that gave it.
fn lockgate_and_ours_exclude_each_other(store: &'static str) {
    let servers = Servers::over(store);
    let lockgate = go_peer("lockgate-http", env!("CARGO_TARGET_TMPDIR"));
    let url = format!("{}/locker", servers.url_of_both());
    let mut go = Program::start(Command::new(lockgate).arg(url).stderr(Stdio::null()));
    let (one, other) = (locker(&servers.url_of_one()), locker(&servers.url_of_other()));
    for (mode, name) in [("exclusive", "-"), ("exclusive", "builder"), ("shared", "-")] {
        go.ask(&format!("acquire 1 {LOCK} {mode} {name}"), "acquired 1");
        assert!(attempt(&one, "lock").is_none() && attempt(&other, "lock").is_none());
        let guard = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| acquire(&other, "lock"));
            until("ours waits", || waiters(&one, "lock").len() == 1);
            go.ask("release 1", "released 1");
            waiting.join().unwrap()
        });
        go.ask(&format!("acquire 1 {LOCK} {mode} {name}"), "waits 1");
        block_on(guard.release()).unwrap();
        go.expect("acquired 1");
        go.ask("release 1", "released 1");
    }
}

fn the_shell_and_ours_exclude_each_other(store: &'static str) {
    let servers = Servers::over(store);
    let (one, other) = (servers.url_of_one(), servers.url_of_other());
    let run = |url: &str, attempt: &str, command: &[&str]| {
        let mut run = Command::new(program());
        run.args(["run", attempt, "--url", url, "lock", "--"]).args(command).stderr(Stdio::null());
        run.status().unwrap().code()
    };
    let guard = acquire(&locker(&one), "lock");
    assert_eq!(run(&other, "--try", &["true"]), Some(1));
    block_on(guard.release()).unwrap();
    assert_eq!(
        run(&other, "--try", &[program(), "run", "--try", "--url", &one, "lock", "--", "true"]),
        Some(1)
    );
    assert_eq!(run(&one, "--timeout=30s", &["true"]), Some(0));
}
