//! What a command finds while it holds a lock.

use nix::sys::signal::Signal;

use crate::support::{Place, Running, output, status, stderr, windlass};

fn said(place: &Place, args: &[&str]) -> String {
    let output = output(&mut place.windlass(args));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn is_told_the_lock_and_a_growing_token() {
    let place = Place::new();
    let script = "echo $WINDLASS_FENCING_TOKEN $WINDLASS_LOCK";
    let tokens: Vec<u64> = (0..3)
        .map(|_| {
            let said = said(&place, &["run", "a lock / with \u{1f512}", "-c", script]);
            let (token, name) = said.trim_end().split_once(' ').unwrap();
            assert_eq!(name, "a lock / with \u{1f512}");
            token.parse().unwrap()
        })
        .collect();
    assert!(tokens.is_sorted_by(|a, b| 0 < *a && a < b), "{tokens:?}");
}

#[test]
fn inherits_no_file_of_ours() {
    let place = Place::new();
    let files = said(&place, &["run", "a", "-c", "readlink /proc/$$/fd/*; true"]);
    assert!(!files.contains(&*place.path("").to_string_lossy()), "{files}");
    assert!(!files.contains("eventpoll") && !files.contains("/dev/tty"), "{files}");
}

#[test]
fn leads_a_process_group_and_has_its_signals_as_usual() {
    let place = Place::new();
    let said = said(
        &place,
        &["run", "a", "-c", "ps -o pgid= $$; echo $$; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status"],
    );
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[0], words[1], "{said}");
    let mask = |name: &str| {
        let at = words.iter().position(|word| *word == name).unwrap();
        u64::from_str_radix(words[at + 1], 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0, "{said}");
    assert_eq!(mask("SigIgn:") & (1 << (Signal::SIGPIPE as u64 - 1)), 0, "{said}");
}

#[test]
fn what_it_leaves_behind_keeps_the_lock() {
    let place = Place::new();
    let mut holder = place.hold("a", &[], "exec 3<&0; (read line; echo last) <&3 & exit 7");
    assert_eq!(place.run("a", &["-n", "true"]), 1);
    holder.stderr.until("not all that it has started");
    assert_eq!(place.run("a", &["-n", "true"]), 1);
    holder.tell();
    holder.stdout.until("last");
    assert_eq!(holder.wait(), 7);
    assert_eq!(place.run("a", &["-n", "true"]), 0);
}

#[test]
fn who_leaves_the_group_is_not_waited_for() {
    let place = Place::new();
    let left = place.path("left").display().to_string();
    let leaves = format!("exec 3<&0; setsid sh -c ': >{left}; cat >/dev/null' <&3 &");
    let script = format!("{leaves} until [ -e {left} ]; do sleep 0.01; done; exit 3");
    let mut holder = place.hold("a", &[], &script);
    assert_eq!(holder.wait(), 3);
}

#[test]
fn permits_are_counted() {
    let place = Place::new();
    let _first = place.hold_until_told("a", &["--limit", "2"]);
    let mut second = place.hold_until_told("a", &["--limit", "2"]);
    assert_eq!(place.run("a", &["--limit", "2", "-n", "true"]), 1);
    second.tell();
    assert_eq!(second.wait(), 0);
    assert_eq!(place.run("a", &["--limit", "2", "-n", "true"]), 0);
    assert_eq!(place.run("a", &["--limit", "0", "true"]), 64);
}

#[test]
fn is_held_for_at_least_as_long_as_asked() {
    let place = Place::new();
    assert_eq!(place.run("a", &["--hold-at-least", "1ms", "-c", "exit 4"]), 4);
    let mut holder = place.hold("a", &["--hold-at-least", "1h"], "exit 4");
    let said = holder.stderr.until("the command has ended");
    assert!(said.contains("for another"), "{said}");
    assert_eq!(place.run("a", &["-n", "true"]), 1);
    holder.signal(Signal::SIGTERM);
    assert_eq!(holder.wait(), 143);
    assert_eq!(place.run("a", &["-n", "true"]), 0);
}

#[test]
fn owner_and_metadata_are_shown() {
    let place = Place::new();
    let mut holder =
        place.hold_until_told("a", &["--owner", "nightly job", "--meta", "ticket=7", "--meta", "why="]);
    let holder_seen = &place.status("a").unwrap()["holders"][0];
    assert_eq!(holder_seen["owner"], "nightly job");
    assert_eq!(holder_seen["metadata"], serde_json::json!({ "ticket": "7", "why": "" }));
    holder.tell();
    assert_eq!(holder.wait(), 0);
    assert_eq!(place.run("a", &["--meta", "none", "true"]), 64);
}

#[test]
fn tells_its_life_as_json() {
    let place = Place::new();
    let output = output(&mut place.windlass(["run", "a", "--json", "-c", "exit 5"]));
    let lines: Vec<serde_json::Value> =
        stderr(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["event"], &lines[0]["lock"]), (&"acquired".into(), &"a".into()));
    assert!(lines[0]["fencing_token"].as_u64().unwrap() > 0);
    assert_eq!((&lines[1]["event"], &lines[1]["status"]), (&"ended".into(), &5.into()));
}

#[test]
fn without_a_place_locks_are_files_of_this_user_whatever_the_environment() {
    let elsewhere = tempfile::tempdir().unwrap();
    // They are those of the tests' own user.
    let name = format!("tests-{}", elsewhere.path().display());
    let mut holder = Running::start(windlass(["run", &*name, "--", "sh", "-c", "echo ready; cat"]));
    holder.stdout.until("ready");
    for variable in ["XDG_RUNTIME_DIR", "TMPDIR"] {
        let mut command = windlass(["run", "-n", &*name, "true"]);
        assert_eq!(status(command.env(variable, elsewhere.path())), 1, "{variable}");
    }
    let listed = output(&mut windlass(["ls", "--json", &*name]));
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&name), "{listed:?}");
}
