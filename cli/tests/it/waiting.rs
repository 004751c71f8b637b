//! Waiting for a lock, off a terminal.

use nix::sys::signal::Signal;

use crate::support::{Place, output, stderr, until};

#[test]
fn says_once_for_whom_it_waits() {
    let place = Place::new();
    let mut holder = place.hold_until_told("a", &["--owner", "ann"]);
    let mut waiter = place.start_run("a", &[], "true");
    let said = waiter.stderr.until("waiting");
    assert!(said.starts_with("windlass: waiting for \"a\": held by ann (exclusive"), "{said}");
    let mut quiet = place.start_run("a", &["-q"], "true");
    let mut json = place.start_run("a", &["--json"], "true");
    let event: serde_json::Value = serde_json::from_str(&json.stderr.next().unwrap()).unwrap();
    assert_eq!(
        (&event["event"], &event["holders"][0]["owner"]),
        (&"waiting".into(), &"ann".into()),
        "{event}"
    );
    holder.tell();
    assert_eq!((waiter.wait(), quiet.wait(), json.wait()), (0, 0, 0));
    assert_eq!(waiter.stderr.rest(), [""; 0]);
    assert_eq!(quiet.stderr.rest(), [""; 0]);
}

#[test]
fn that_ends_in_vain_says_who_holds_the_lock() {
    let place = Place::new();
    let _holder = place.hold_until_told("a", &["--owner", "ann"]);
    let timeout = output(&mut place.windlass(["run", "-w", "0.05", "a", "true"]));
    let said = stderr(&timeout);
    assert!(said.lines().last().unwrap().contains("not acquired within 0.05 s: held by ann"), "{said}");
    let attempt = stderr(&output(&mut place.windlass(["run", "-n", "a", "true"])));
    assert!(attempt.starts_with("windlass: \"a\" is taken: held by ann (exclusive"), "{attempt}");
    for args in [["run", "-q", "-n", "a", "true"], ["run", "-q", "-w.01", "a", "true"]] {
        assert_eq!(stderr(&output(&mut place.windlass(args))), "");
    }
}

#[test]
fn that_is_stopped_keeps_nobody_out() {
    let place = Place::new();
    let mut holder = place.hold_until_told("a", &[]);
    let mut stopped = place.start_run("a", &["--owner", "zed"], "true");
    place.until_waiting("a", 1);
    stopped.signal(Signal::SIGSTOP);
    until("its threads have stopped", || {
        let mut threads = std::fs::read_dir(format!("/proc/{}/task", stopped.pid())).unwrap();
        threads.all(|thread| {
            std::fs::read_to_string(thread.unwrap().path().join("stat"))
                .is_ok_and(|stat| stat.contains(") T "))
        })
    });
    holder.tell();
    assert_eq!(holder.wait(), 0);
    assert_eq!(place.run("a", &["-n", "true"]), 0);
    let listed = place.json(&["ls", "--json"]);
    assert_eq!(
        (&listed[0]["name"], &listed[0]["holders"], &listed[0]["waiters"][0]["owner"]),
        (&"a".into(), &serde_json::json!([]), &"zed".into()),
        "{listed}"
    );
    stopped.signal(Signal::SIGCONT);
    assert_eq!(stopped.wait(), 0);
}

#[test]
fn names_who_holds_the_lock_now_not_who_held_it_last() {
    let place = Place::new();
    assert_eq!(place.run("a", &["--owner", "ann", "true"]), 0);
    let holder = place.hold_until_told("a", &["-s", "--owner", "bob"]);
    let said = stderr(&output(&mut place.windlass(["run", "-w", "2", "a", "true"])));
    // How sharers call themselves is not written down.
    let pid = holder.pid();
    for line in said.lines() {
        assert!(line.contains(&format!(":{pid} (shared")) && !line.contains("ann"), "{said}");
    }
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn leaves_nothing_behind_when_interrupted() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::new();
        let mut holder = place.hold_until_told("a", &[]);
        let mut waiter = place.start_run("a", &[], "echo never");
        waiter.stderr.until("waiting");
        place.until_waiting("a", 1);
        waiter.signal(signal);
        assert_eq!(waiter.wait(), 128 + signal as i32);
        assert_eq!(waiter.stdout.rest(), [""; 0]);
        place.until_waiting("a", 0);
        holder.tell();
        assert_eq!(holder.wait(), 0);
        assert_eq!(place.run("a", &["-n", "true"]), 0);
    }
}

#[test]
fn dies_of_the_signal_so_that_scripts_end_too() {
    use std::os::unix::process::ExitStatusExt;
    let place = Place::new();
    let _holder = place.hold_until_told("a", &[]);
    let mut waiter = place.start_run("a", &[], "true");
    waiter.stderr.until("waiting");
    waiter.signal(Signal::SIGINT);
    assert_eq!(waiter.wait_raw().signal(), Some(Signal::SIGINT as i32));
}

#[test]
fn a_place_that_is_not_there_is_told_while_waiting_and_is_no_lock_that_is_taken() {
    let place = Place::new();
    let nowhere = ["--url", "http://127.0.0.1:1/x"];
    let vain = output(&mut place.windlass(["run", nowhere[0], nowhere[1], "-w", "3", "a", "true"]));
    assert_eq!(vain.status.code(), Some(69), "{}", stderr(&vain));
    assert!(stderr(&vain).contains("cannot connect"), "{}", stderr(&vain));
    let mut waiter = place.start_run("a", &nowhere, "true");
    let said = waiter.stderr.until("no answer yet");
    assert!(said.contains("cannot connect"), "{said}");
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.wait(), 128 + Signal::SIGTERM as i32);
}
