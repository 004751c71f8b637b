//! What becomes of a command whose lock is lost or held for too long.

use std::time::Instant;

use crate::support::{Place, status};

const STUBBORN: &str = "exec 3<&0; trap '' TERM; cat >/dev/null <&3 & cat >/dev/null; wait";

#[test]
fn the_group_is_told_and_the_reason_is_said() {
    let place = Place::new();
    let mut holder = place.hold(
        "a",
        &["--kill-after", "60s"],
        "exec 3<&0; (trap 'echo background told; exit' TERM; echo set; read line; read line) <&3 & trap 'echo told; wait; exit 3' TERM; wait",
    );
    holder.stdout.until("set");
    assert_eq!(status(&mut place.windlass(["release", "a"])), 0);
    let mut said = [holder.stdout.next().unwrap(), holder.stdout.next().unwrap()];
    said.sort_unstable();
    assert_eq!(said, ["background told", "told"]);
    let reason = holder.stderr.until("lock \"a\"");
    assert!(reason.contains("an operator freed it") && reason.contains("SIGKILL in 60 s"), "{reason}");
    assert_eq!(holder.wait(), 79);
}

#[test]
fn who_does_not_listen_is_killed() {
    let place = Place::new();
    let mut holder = place.hold("a", &["--kill-after", "100ms", "--json"], STUBBORN);
    assert_eq!(status(&mut place.windlass(["release", "a"])), 0);
    let lost: serde_json::Value = serde_json::from_str(&holder.stderr.until("\"lost\"")).unwrap();
    assert_eq!(
        lost,
        serde_json::json!({ "event": "lost", "lock": "a", "reason": "force_released", "kill_after_ms": 100 })
    );
    assert_eq!(holder.stdout.rest(), [""; 0], "somebody of the group lives on");
    assert_eq!(holder.wait(), 79);
}

#[test]
fn a_thief_is_told_of() {
    let place = Place::new();
    let mut holder = place.hold_until_told("a", &[]);
    assert_eq!(place.run("a", &["--steal", "true"]), 0);
    let reason = holder.stderr.until("lock \"a\"");
    assert!(reason.contains("another claim took it over"), "{reason}");
    assert_eq!(holder.wait(), 79);
}

#[test]
fn max_hold_ends_the_command() {
    let place = Place::new();
    let mut holder = place.hold("a", &["--max-hold", "100ms", "--kill-after", "100ms"], STUBBORN);
    let said = holder.stderr.until("--max-hold");
    assert!(said.contains("SIGTERM"), "{said}");
    assert_eq!(holder.stdout.rest(), [""; 0]);
    assert_eq!(holder.wait(), 124);
    assert_eq!(place.run("a", &["-n", "true"]), 0);
}

#[test]
fn max_hold_kills_before_the_lease_is_over() {
    let place = Place::new();
    let mut holder = place.hold("a", &["--max-hold", "100ms", "--ttl", "1s", "--kill-after", "1h"], STUBBORN);
    let start = Instant::now();
    assert_eq!(holder.stdout.rest(), [""; 0]);
    assert_eq!(holder.wait(), 79);
    assert!(start.elapsed().as_secs() < 30);
}
