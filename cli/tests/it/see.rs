//! `ls`, `watch` and `release`.

use serde_json::{Value, json};

use crate::support::{Place, Running, output, status, stderr};

fn stdout(place: &Place, args: &[&str]) -> String {
    String::from_utf8(output(&mut place.windlass(args)).stdout).unwrap()
}

#[test]
fn ls_shows_holders_and_waiters() {
    let place = Place::new();
    let mut holder = place.hold_until_told("deploy", &["--owner", "ann", "--meta", "why=test"]);
    let _shared = place.hold_until_told("report", &["-s", "--owner", "bob"]);
    let _other = place.hold_until_told("report", &["-s", "--owner", "cat"]);
    let mut waiter = place.start_run("deploy", &["--owner", "dan"], "true");
    waiter.stderr.until("waiting");

    let listed = place.json(&["ls", "--json"]);
    let deploy = &listed[0];
    assert_eq!(deploy["name"], "deploy");
    let holds = &deploy["holders"][0];
    assert_eq!((&holds["owner"], &holds["mode"]), (&json!("ann"), &json!("exclusive")), "{listed}");
    assert_eq!(holds["metadata"], json!({ "why": "test" }));
    assert!(holds["fencing_token"].as_u64().unwrap() > 0);
    assert!(holds["held_for_ms"].is_u64(), "{listed}");
    assert_eq!(deploy["waiters"][0]["mode"], "exclusive", "{listed}");
    let report = &listed[1];
    let modes: Vec<&Value> =
        report["holders"].as_array().unwrap().iter().map(|holder| &holder["mode"]).collect();
    assert_eq!((&report["name"], modes), (&json!("report"), vec![&json!("shared"); 2]), "{listed}");

    let table = stdout(&place, &["ls"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "HOLDER", "MODE", "TOKEN", "HELD", "FOR", "WAITERS", "METADATA"]);
    assert_eq!(rows[1][..3], ["deploy", "ann", "exclusive"]);
    assert_eq!(rows[1][rows[1].len() - 2..], ["1", "why=test"]);
    assert_eq!(rows.len(), 4, "{table}");
    assert_eq!(stdout(&place, &["ls", "rep"]).lines().count(), 3);
    assert_eq!(stdout(&place, &["ls", "none"]), "");
    assert_eq!(stdout(&place, &["ls", "none", "--json"]), "[]\n");

    holder.tell();
    assert_eq!((holder.wait(), waiter.wait()), (0, 0));
    assert_eq!(place.status("deploy"), None, "a lock that nobody wants is forgotten");
}

#[test]
fn what_others_wrote_cannot_move_the_cursor() {
    let place = Place::new();
    let _holder = place.hold_until_told("a\nb", &["--owner", "x\x1b[2Jy"]);
    let table = stdout(&place, &["ls"]);
    assert!(table.contains("a\\nb") && table.contains("x\\u{1b}[2Jy"), "{table}");
    assert_eq!(place.status("a\nb").unwrap()["holders"][0]["owner"], "x\x1b[2Jy");
}

#[test]
fn watch_tells_every_change() {
    let place = Place::new();
    let mut holder = place.hold_until_told("a", &["--owner", "ann"]);
    let mut watch = Running::start(place.windlass(["watch", "--json"]));
    let mut text = Running::start(place.windlass(["watch", "a"]));
    let mut next = || -> Value { serde_json::from_str(&watch.stdout.next().unwrap()).unwrap() };
    assert_eq!(next()["holders"][0]["owner"], "ann");
    assert!(text.stdout.next().unwrap().contains("a  held by ann (exclusive, token "));
    holder.tell();
    assert_eq!(holder.wait(), 0);
    let freed = next();
    assert_eq!(freed, json!({ "name": "a", "holders": [], "waiters": [] }));
    assert!(text.stdout.next().unwrap().ends_with("a  free"));
    let _other = place.hold_until_told("b", &["--owner", "bob"]);
    assert_eq!(next()["name"], "b");
    watch.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(watch.wait(), 130);
}

#[test]
fn release_takes_a_lock_away() {
    let place = Place::new();
    let mut holder = place.hold_until_told("a", &["--owner", "ann"]);
    let token = place.status("a").unwrap()["holders"][0]["fencing_token"].as_u64().unwrap();
    let wrong = (token - 1).to_string();
    assert_eq!(status(&mut place.windlass(["release", "a", "--token", &wrong])), 1);
    assert!(place.status("a").is_some());
    let taken = place.json(&["release", "a", "--token", &token.to_string(), "--json"]);
    assert_eq!(taken["name"], "a");
    assert_eq!(taken["taken_from"][0]["owner"], "ann");
    assert_eq!(taken["taken_from"][0]["fencing_token"], token);
    assert_eq!(holder.wait(), 79);

    let nobody = output(&mut place.windlass(["release", "a"]));
    assert_eq!(nobody.status.code(), Some(1));
    assert!(stderr(&nobody).contains("nobody holds \"a\""), "{nobody:?}");
    assert_eq!(place.json(&["release", "a", "--json"]), json!({ "name": "a", "taken_from": [] }));
}

#[test]
fn release_says_whom_it_was_taken_from() {
    let place = Place::new();
    let _holder = place.hold_until_told("a", &["--owner", "ann"]);
    let output = output(&mut place.windlass(["release", "a", "--yes"]));
    assert!(output.stdout.starts_with(b"a: taken from ann (exclusive, token "), "{output:?}");
}
