//! `windlass serve` and `windlass token`.

use std::{fs, process::Command};

use nix::sys::signal::Signal;

use crate::support::{Place, Running, output, stderr, windlass};

/// A server on a free port.
struct Server {
    running: Running,
    url: String,
}

fn serve(place: &Place, options: &[&str]) -> Server {
    let mut command = windlass(["serve", "--listen", "127.0.0.1:0"]);
    if !options.contains(&"--ephemeral") {
        command.arg("--data-dir").arg(place.path("data"));
    }
    command.args(options);
    let mut running = Running::start(command);
    let line = running.stderr.until("serving locks at");
    let url = line.split_whitespace().find(|word| word.starts_with("http")).unwrap();
    Server { running, url: url.trim_end_matches(';').replace("NAMESPACE", "team-a") }
}

impl Server {
    fn windlass(&self, args: &[&str]) -> Command {
        let mut command = windlass(args);
        command.env("WINDLASS_URL", &self.url);
        command
    }
}

#[test]
fn commands_of_many_take_turns_at_a_server() {
    let place = Place::new();
    let mut server = serve(&place, &[]);
    let mut command =
        server.windlass(&["run", "deploy", "--owner", "ann", "--", "sh", "-c", "echo ready; cat >/dev/null"]);
    command.stdin(std::process::Stdio::piped());
    let mut holder = Running::start(command);
    holder.stdout.until("ready");
    let listed = output(&mut server.windlass(&["ls"]));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("ann"), "{listed:?}");
    let busy = output(&mut server.windlass(&["run", "deploy", "--try", "--", "true"]));
    assert_eq!(busy.status.code(), Some(1));
    assert!(stderr(&busy).contains("held by ann"), "{busy:?}");
    let freed = output(&mut server.windlass(&["release", "deploy", "--yes"]));
    assert!(freed.status.success(), "{freed:?}");
    holder.stderr.until("an operator freed it");
    let done = output(&mut server.windlass(&["run", "deploy", "--", "true"]));
    assert!(done.status.success(), "{done:?}");
    server.running.signal(Signal::SIGTERM);
    assert!(server.running.child.wait().unwrap().success());
}

/// A command that does not listen is ended before another can have the lock, whatever its `--kill-after`.
#[test]
fn a_command_whose_lock_cannot_be_renewed_is_ended_in_time() {
    let place = Place::new();
    let server = serve(&place, &[]);
    let script = "trap 'echo told' TERM; echo ready; while :; do sleep 0.01; done";
    let options = ["run", "deploy", "--ttl", "4s", "--kill-after", "1h", "--", "sh", "-c", script];
    let mut holder = Running::start(server.windlass(&options));
    holder.stdout.until("ready");
    server.running.signal(Signal::SIGSTOP);
    holder.stdout.until("told");
    let reason = holder.stderr.until("could not be renewed");
    assert!(reason.contains("SIGTERM now"), "{reason}");
    assert_eq!(holder.stdout.rest(), [""; 0]);
    let lost = holder.stderr.until("could not be reached");
    assert!(lost.contains("SIGKILL"), "{lost}");
    assert_eq!(holder.wait(), 79);
}

/// Where there is no fencing token, there is none of another lock either.
#[test]
fn a_command_under_a_lock_without_a_fencing_token_has_none() {
    let place = Place::new();
    let mut server = serve(&place, &[]);
    server.url = format!("lockgate+{}/locker", server.url);
    let mut command =
        server.windlass(&["run", "deploy", "--", "sh", "-c", "echo \"<${WINDLASS_FENCING_TOKEN-none}>\""]);
    let done = output(command.env("WINDLASS_FENCING_TOKEN", "7"));
    assert!(done.status.success(), "{done:?}");
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "<none>");
}

#[test]
fn a_data_directory_is_of_one_server() {
    let place = Place::new();
    let _server = serve(&place, &[]);
    let mut second = windlass(["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    let refused = output(second.arg(place.path("data")));
    assert_eq!(refused.status.code(), Some(69));
    assert!(stderr(&refused).contains("another server uses"), "{refused:?}");
}

#[test]
fn a_store_is_one_that_servers_can_share() {
    for (store, more, status, advice) in [
        ("memory:", &[][..], 64, "etcd://"),
        ("nonsense", &[], 64, "is not a URL"),
        ("http://127.0.0.1:1", &["--ephemeral"], 64, "--ephemeral"),
        ("http://127.0.0.1:1", &["--data-dir", "somewhere"], 64, "--data-dir"),
    ] {
        let refused = output(windlass(["serve", "--store", store, "--listen", "127.0.0.1:0"]).args(more));
        assert_eq!(refused.status.code(), Some(status), "{refused:?}");
        assert!(stderr(&refused).contains(advice), "{refused:?}");
    }
}

#[test]
fn an_address_that_cannot_be_had_is_told() {
    let place = Place::new();
    let server = serve(&place, &["--ephemeral"]);
    let address = server.url.split('/').nth(2).unwrap();
    for (address, status, advice) in
        [(address, 69, "another server listens there"), ("nonsense", 64, "127.0.0.1:7420")]
    {
        let refused = output(&mut windlass(["serve", "--ephemeral", "--listen", address]));
        assert_eq!(refused.status.code(), Some(status), "{refused:?}");
        assert!(stderr(&refused).contains(advice), "{refused:?}");
    }
}

#[test]
fn nobody_else_is_served_who_is_not_asked_who_they_are() {
    let refused = output(&mut windlass(["serve", "--ephemeral", "--listen", "0.0.0.0:0"]));
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
    assert!(stderr(&refused).contains("could take and free every lock"), "{refused:?}");
    assert!(!stderr(&refused).contains("serving"), "{refused:?}");
}

#[test]
fn tokens_open_what_they_name() {
    let place = Place::new();
    let made = output(&mut windlass(["token", "ann", "team-a/deploy/*"]));
    assert!(made.status.success(), "{made:?}");
    let said = stderr(&made);
    let token = said.trim().rsplit(' ').next().unwrap();
    assert!(!String::from_utf8_lossy(&made.stdout).contains(token), "the file has its hash alone");
    let (file, key) = (place.path("tokens"), place.path("key"));
    fs::write(&file, &made.stdout).unwrap();
    fs::write(&key, "a secret of thirty-two bytes or more").unwrap();
    let signed = output(windlass(["token", "ci", "team-a/*", "--key"]).arg(&key));
    let signed = String::from_utf8(signed.stdout).unwrap();
    let audit = place.path("audit.log");
    let options = ["--token-file", file.to_str().unwrap(), "--jwt-key", key.to_str().unwrap()];
    let server = serve(&place, &[&options[..], &["--audit", audit.to_str().unwrap()]].concat());
    for (token, name, status) in [
        (token, "deploy/web", 0),
        (token, "other", 77),
        (signed.trim(), "other", 0),
        ("wrong", "deploy/web", 77),
        ("", "deploy/web", 77),
    ] {
        let ran = output(server.windlass(&["run", name, "--", "true"]).env("WINDLASS_TOKEN", token));
        assert_eq!(ran.status.code(), Some(status), "{name}: {ran:?}");
    }
    drop(server);
    let audit = fs::read_to_string(audit).unwrap();
    assert!(audit.contains("\"granted\",\"who\":\"ann\"") && audit.contains("\"refused\""), "{audit}");
    assert!(!audit.contains(token), "no secret in the log");
}

#[test]
fn tokens_that_make_no_sense_are_not_made() {
    for (args, advice) in [
        (&["token", "ann", "deploy"][..], "the slash is missing"),
        (&["token", "ann", "a/*", "--rights", "everything"], "acquire"),
        (&["token", "ann b", "a/*"], "leave out the spaces"),
        (&["token", "ann", "a/*", "--key", "/nonexistent"], "/nonexistent"),
    ] {
        let refused = output(&mut windlass(args));
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        assert!(stderr(&refused).contains(advice), "{refused:?}");
    }
}
