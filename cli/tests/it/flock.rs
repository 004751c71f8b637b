//! The habits of flock(1): the same cases, run with both.

use std::process::Command;

use crate::support::{Place, Running, status};

/// A case: what is held meanwhile, the options, what follows them, and the exit statuses of flock(1) and windlass.
struct Case {
    held: Option<&'static str>,
    options: &'static [&'static str],
    command: &'static [&'static str],
    flock: i32,
    windlass: i32,
}

const fn same(
    held: Option<&'static str>,
    options: &'static [&'static str],
    command: &'static [&'static str],
    status: i32,
) -> Case {
    Case { held, options, command, flock: status, windlass: status }
}

const X: Option<&str> = Some("-x");
const S: Option<&str> = Some("-s");
const TRUE: &[&str] = &["true"];

const CASES: &[Case] = &[
    same(None, &[], TRUE, 0),
    same(None, &[], &["sh", "-c", "exit 7"], 7),
    same(None, &[], &["-c", "exit 3"], 3),
    same(None, &[], &["sh", "-c", "kill -9 $$"], 137),
    same(None, &[], &["sh", "-c", "kill -15 $$"], 143),
    same(None, &[], &["printf", "%s", "-n"], 0),
    same(None, &["-x"], TRUE, 0),
    same(None, &["-n"], TRUE, 0),
    same(None, &["-w", "5"], TRUE, 0),
    same(None, &["-w", "0"], TRUE, 0),
    same(None, &["-o"], TRUE, 0),
    same(X, &["-n"], TRUE, 1),
    same(X, &["--nonblock"], TRUE, 1),
    same(X, &["--nb"], TRUE, 1),
    same(X, &["-n", "-E", "42"], TRUE, 42),
    same(X, &["-n", "-E", "0"], TRUE, 0),
    same(X, &["-n", "--conflict-exit-code", "255"], TRUE, 255),
    same(X, &["-w", "0"], TRUE, 1),
    same(X, &["-w", ".05"], TRUE, 1),
    same(X, &["--timeout", "0.05"], TRUE, 1),
    same(X, &["--wait", "0.05", "-E", "75"], TRUE, 75),
    same(X, &["-s", "-n"], TRUE, 1),
    same(S, &["-s", "-n"], TRUE, 0),
    same(S, &["-n"], TRUE, 1),
    same(S, &["-e", "-n"], TRUE, 1),
    same(None, &["--bogus"], TRUE, 64),
    same(None, &["-w", "x"], TRUE, 64),
    same(None, &["-E", "256"], TRUE, 64),
    same(None, &["-E", "x"], TRUE, 64),
    same(None, &[], &[], 64),
    same(None, &[], &["-c"], 64),
    same(None, &[], &["-c", "true", "x"], 64),
    // As a shell has it, and env(1), timeout(1), nohup(1): flock(1) is alone with its 69.
    Case { held: None, options: &[], command: &["./no-such-command"], flock: 69, windlass: 127 },
    Case { held: None, options: &[], command: &["/dev/null"], flock: 69, windlass: 126 },
];

#[test]
fn exits_as_flock_does() {
    for (at, case) in CASES.iter().enumerate() {
        let Case { held, options, command, .. } = case;
        let place = Place::new();
        let lock_file = place.lock_file("a lock");
        let mut holder = held.map(|side| {
            let mut flock = Command::new("flock");
            flock.arg(side).arg(&lock_file).args(["sh", "-c", "echo ready; cat"]);
            let mut holder = Running::start(flock);
            holder.stdout.until("ready");
            holder
        });
        let flock =
            status(Command::new("flock").env_remove("SHELL").args(*options).arg(&lock_file).args(*command));
        let windlass = status(place.windlass(["run"]).args(*options).arg("a lock").args(*command));
        assert_eq!(
            (flock, windlass),
            (case.flock, case.windlass),
            "case {at}: held {held:?}, {options:?} LOCK {command:?}"
        );
        if let Some(holder) = &mut holder {
            holder.tell();
            assert_eq!(holder.wait(), 0);
        }
    }
}

#[test]
fn options_may_stand_behind_the_name() {
    let place = Place::new();
    let _holder = place.hold_until_told("a", &[]);
    assert_eq!(place.run("a", &["-n", "-E", "9", "--", "true"]), 9);
    assert_eq!(place.run("a", &["--try", "true"]), 1);
}

#[test]
fn what_we_hold_flock_finds_held() {
    let place = Place::new();
    let flock =
        |args: &[&str]| status(Command::new("flock").args(args).arg(place.lock_file("a")).arg("true"));
    let mut holder = place.hold_until_told("a", &[]);
    assert_eq!(flock(&["-n"]), 1);
    assert_eq!(flock(&["-n", "-s"]), 1);
    holder.tell();
    assert_eq!(holder.wait(), 0);
    assert_eq!(flock(&["-n"]), 0);
    let mut holder = place.hold_until_told("a", &["--shared"]);
    assert_eq!(flock(&["-n"]), 1);
    assert_eq!(flock(&["-n", "-s"]), 0);
    holder.tell();
    assert_eq!(holder.wait(), 0);
}

#[test]
fn a_flock_that_ends_lets_us_in() {
    let place = Place::new();
    let mut flock = Command::new("flock");
    flock.arg(place.lock_file("a")).args(["sh", "-c", "echo ready; cat"]);
    let mut flock = Running::start(flock);
    flock.stdout.until("ready");
    let mut waiter = place.start_run("a", &[], "echo in");
    waiter.stderr.until("waiting for \"a\"");
    flock.tell();
    waiter.stdout.until("in");
    assert_eq!(waiter.wait(), 0);
}

#[test]
fn the_shell_is_that_of_the_environment() {
    let place = Place::new();
    let mut command = place.windlass(["run", "a", "-c", "text"]);
    let output = crate::support::output(command.env("SHELL", "/bin/echo"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "-c text\n");
}
