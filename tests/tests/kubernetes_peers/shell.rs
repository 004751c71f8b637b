//! The command `windlass` over Kubernetes, as shells start it.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use windlass_tests::{
    kubernetes::LIMITED,
    place::Folder,
    processes::{Program, until},
    server_process::port_to_keep,
};

use super::{SLACK, cluster};

const TTL: Duration = Duration::from_secs(2);

/// A namespace of a test's own.
struct Here {
    namespace: String,
    url: String,
}

impl Here {
    fn new() -> Self {
        let namespace = cluster().namespace();
        let url = cluster().url(&namespace);
        Self { namespace, url }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(super::program());
        command.args(args).env("WINDLASS_URL", &self.url).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// One that holds the lock until it is told to end, and its fencing token.
    fn hold(&self, name: &str, options: &[&str]) -> (Program, u64) {
        let script = "echo holds $WINDLASS_FENCING_TOKEN; read line";
        let args = [&["run", name, "--ttl", "2s"][..], options, &["--", "sh", "-c", script]].concat();
        let program = Program::spawn(self.command(&args).stderr(Stdio::null()));
        let token = program.rest_of("holds ").parse().unwrap();
        (program, token)
    }

    fn ls(&self) -> Value {
        serde_json::from_slice(&self.run(&["ls", "--json"]).stdout).unwrap()
    }

    fn is_empty(&self) {
        until("nothing to be left", || cluster().leases(&self.namespace).is_empty());
    }
}

#[test]
fn who_holds_and_waits_is_seen_and_freed() {
    let here = Here::new();
    let (mut holder, token) = here.hold("deploy", &["--owner", "ann", "--meta", "why=test"]);
    let mut waiter = Program::spawn(
        here.command(&["run", "deploy", "--owner", "bob", "--", "echo", "my turn"]).stderr(Stdio::null()),
    );
    until("bob waits", || here.ls()[0]["waiters"].as_array().is_some_and(|all| all.len() == 1));
    let listed = here.ls();
    let holds = &listed[0]["holders"][0];
    assert_eq!((&listed[0]["name"], &holds["owner"]), (&json!("deploy"), &json!("ann")), "{listed}");
    assert_eq!((&holds["metadata"], &holds["fencing_token"]), (&json!({ "why": "test" }), &json!(token)));
    assert_eq!(here.run(&["run", "deploy", "--try", "true"]).status.code(), Some(1));
    let freed = here.run(&["release", "deploy", "--token", &token.to_string(), "--json"]);
    let freed: Value = serde_json::from_slice(&freed.stdout).unwrap();
    assert_eq!(freed["taken_from"][0]["owner"], "ann");
    assert_eq!(holder.status(), Some(79), "its command is ended");
    waiter.expect("my turn");
    assert_eq!(waiter.status(), Some(0));
    here.is_empty();
}

/// Steps of a number in a file, each read and written under the lock: those of two holders at once would be lost.
#[test]
fn shells_take_turns() {
    const TURNS: usize = 8;
    let (here, folder) = (Here::new(), Folder::new());
    let path = folder.path("number").display().to_string();
    fs::write(&path, "0\n").unwrap();
    let step = format!("read n <{path}; echo $((n + 1)) >{path}");
    let windlass = format!("{} run counter -- sh -c '{step}'", super::program());
    let turns: Vec<String> = (0..TURNS).map(|n| n.to_string()).collect();
    let looped = format!("for turn in {}; do {windlass} || exit; done; echo done", turns.join(" "));
    let mut shells: Vec<Program> = (0..3)
        .map(|_| {
            let mut shell = Command::new("sh");
            Program::spawn(shell.args(["-c", &looped]).env("WINDLASS_URL", &here.url).stderr(Stdio::null()))
        })
        .collect();
    shells.iter_mut().for_each(|shell| shell.expect("done"));
    assert_eq!(fs::read_to_string(&path).unwrap().trim(), (3 * TURNS).to_string());
    here.is_empty();
}

#[test]
fn a_killed_holder_frees_the_lock_also_for_those_who_only_try() {
    let here = Here::new();
    let (holder, token) = here.hold("job", &[]);
    holder.kill();
    let killed = Instant::now();
    let (mut next, later) = here.hold("job", &["--timeout", "30s"]);
    assert!(killed.elapsed() < TTL + SLACK, "after {:?}", killed.elapsed());
    assert!(later > token);
    next.say("");
    assert_eq!(next.status(), Some(0));
    here.is_empty();
}

/// Each ends within the timeout, with the status of its kind, and names the place and no secret.
#[test]
fn what_cannot_be_is_said() {
    let here = Here::new();
    let nobody = ([127, 0, 0, 1], port_to_keep()).into();
    let cases = [
        (cluster().url_at(nobody, &here.namespace, "hunter2"), 69, "cannot connect to the API server"),
        (cluster().url_at(cluster().address(), &here.namespace, "hunter2"), 77, "does not know who we are"),
        (cluster().url_at(cluster().address(), &here.namespace, LIMITED), 77, "a Role with get, list, watch"),
        ("k8s://default/leases?kubeconfig=/nowhere".to_owned(), 64, "/nowhere is not there"),
    ];
    for (url, status, says) in cases {
        let args = ["run", "job", "--timeout", "2s", "--", "echo", "it ran"];
        let output = here.command(&args).env("WINDLASS_URL", url).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(status), &b""[..]), "{says}: {said}");
        assert!(said.contains(says) && said.contains("k8s://") && !said.contains("hunter2"), "{said}");
    }
}
