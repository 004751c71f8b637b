//! Servers over Kubernetes in the layout of werf's own: the ConfigMap `werf-CLIENT_ID` for each client id, made when it is missing.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::json;
use windlass_tests::{
    kubernetes::{Cluster, LIMITED, RIGHTS, configmaps},
    place::block_on,
    processes::{Program, go_peer},
};

use crate::{Servers, acquire, attempt, locker, suite, until, waiters};

/// As werf has it; an API server has one namespace of this name.
const SYNCHRONIZATION: &str = "werf-synchronization";
const CLIENT_ID: &str = "0f0e8bd6-7d3c-4d8e-9f5e-2b5f0a3c6d11";
/// `lock`, as the Go program wants it: in hexadecimal digits.
const LOCK: &str = "6c6f636b";

fn lockgate() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let mut command =
        Command::new(BUILT.get_or_init(|| go_peer("lockgate-http", env!("CARGO_TARGET_TMPDIR"))));
    command.stderr(Stdio::null());
    command
}

/// lockgate's locker for Kubernetes, as werf's own server has it, lockgate's client at either server, and ours: all have the same lock.
#[test]
fn all_have_the_locks_of_a_client_id() {
    let cluster: &Cluster = suite::cluster();
    cluster.make_namespace(SYNCHRONIZATION);
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    cluster.allow_by(
        SYNCHRONIZATION,
        &[
            rule("", "configmaps", &["get", "list", "watch", "create", "patch"]),
            rule("coordination.k8s.io", "leases", &RIGHTS),
        ],
    );
    let store = cluster.url_at(cluster.address(), SYNCHRONIZATION, LIMITED);
    let store = store.replace("/leases?", "/configmaps/werf-*?create=true&");
    let servers = Servers { namespace: CLIENT_ID.to_owned(), ..Servers::over(&store) };
    let (one, other) = (locker(&servers.url_of_one()), locker(&servers.url_of_other()));
    until("the rights", || {
        let taken = block_on(one.lock("lock").try_acquire());
        taken.map(|guard| guard.map(|guard| block_on(guard.release()).unwrap())).is_ok()
    });
    block_on(attempt(&other, "lock").unwrap().release()).unwrap();

    let guard = acquire(&one, "lock");
    let map = format!("werf-{CLIENT_ID}");
    let records = || cluster.annotations(SYNCHRONIZATION, &map);
    assert!(records().iter().any(|(name, _)| name.starts_with("lockgate.io/")), "{:?}", records());
    let mut at_server = Program::start(lockgate().arg(format!("{}/locker", servers.url_of_both())));
    let mut in_map = lockgate();
    in_map.arg("kubernetes").arg(format!("https://{}", cluster.address())).arg(cluster.ca());
    let mut in_map = Program::start(in_map.args(["admin-token", SYNCHRONIZATION, &map]));
    at_server.ask(&format!("try 1 {LOCK} exclusive -"), "busy 1");
    in_map.ask(&format!("try 1 {LOCK} exclusive -"), "busy 1");
    block_on(guard.release()).unwrap();

    in_map.ask(&format!("acquire 2 {LOCK} exclusive -"), "acquired 2");
    at_server.ask(&format!("try 2 {LOCK} exclusive -"), "busy 2");
    let guard = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| acquire(&other, "lock"));
        until("ours waits", || waiters(&one, "lock").len() == 1);
        in_map.ask("release 2", "released 2");
        waiting.join().unwrap()
    });
    block_on(guard.release()).unwrap();

    at_server.ask(&format!("acquire 3 {LOCK} exclusive -"), "acquired 3");
    in_map.ask(&format!("try 3 {LOCK} exclusive -"), "busy 3");
    assert!(attempt(&one, "lock").is_none());
    at_server.ask("release 3", "released 3");
    until("nothing to be left", || records().is_empty());
    let objects = cluster.ask("GET", &configmaps(SYNCHRONIZATION), None);
    assert_eq!(objects["items"].as_array().unwrap().len(), 1, "one for the one client id: {objects}");
}
