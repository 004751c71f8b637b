//! What cannot be: each is an error with a kind and the place, within the timeout, and without a secret.

use std::{fs, thread, time::Duration};

use serde_json::json;
use windlass::{Error, ErrorKind};
use windlass_tests::{
    adversity,
    place::{Folder, acquire, block_on},
    server_process::port_to_keep,
};

use super::{cluster, locker, nothing_is_left};

const SECRET: &str = "hunter2-hunter2";

/// The error of an acquire.
fn error(url: &str) -> Error {
    adversity::failure(url, &[SECRET]).0
}

fn is(url: &str, kind: ErrorKind, says: &str) {
    let error = error(url);
    adversity::is(&error, kind, says);
    assert!(error.to_string().contains("k8s://"), "names no place: {error}");
}

#[test]
fn nobody_listens() {
    let address = ([127, 0, 0, 1], port_to_keep()).into();
    let url = cluster().url_at(address, "default", SECRET);
    is(&url, ErrorKind::Unavailable, "cannot connect to the API server");
    let error = block_on(locker(&url).lock("lock").try_acquire()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn something_else_listens() {
    let server = windlass_tests::server::namespace();
    let address = server.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let folder = Folder::new();
    let file = folder.path("kubeconfig");
    let config = json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {"token": SECRET}}],
    });
    fs::write(&file, config.to_string()).unwrap();
    let error = error(&format!("k8s:///leases?kubeconfig={}", file.display()));
    assert!(matches!(error.kind(), ErrorKind::Storage | ErrorKind::Denied), "{error}");
}

/// Lockers of one process have one way to a cluster; but not to another one under the same URL.
#[test]
fn a_kubeconfig_that_changes() {
    let folder = Folder::new();
    let file = folder.path("kubeconfig");
    let write = |url: &str| fs::copy(url.rsplit_once("kubeconfig=").unwrap().1, &file).unwrap();
    let url = format!("k8s://default/leases?kubeconfig={}", file.display());
    write(&cluster().url("default"));
    let ours = locker(&url);
    block_on(acquire(&ours, "lock").release()).unwrap();
    write(&cluster().url_at(([127, 0, 0, 1], port_to_keep()).into(), "default", SECRET));
    is(&url, ErrorKind::Unavailable, "cannot connect to the API server");
    block_on(acquire(&ours, "lock").release()).unwrap();
}

#[test]
fn a_token_that_nobody_knows() {
    is(
        &cluster().url_at(cluster().address(), "default", SECRET),
        ErrorKind::Denied,
        "does not know who we are",
    );
}

#[test]
fn a_namespace_that_is_not_there() {
    is(&cluster().url("nowhere"), ErrorKind::Storage, "nowhere");
}

#[test]
fn a_server_that_nobody_trusts() {
    let folder = Folder::new();
    let text = fs::read_to_string(kubeconfig(&json!({"token": SECRET}))).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority");
    let file = folder.path("kubeconfig");
    fs::write(&file, config.to_string()).unwrap();
    is(&format!("k8s://default/leases?kubeconfig={}", file.display()), ErrorKind::Denied, "no TLS");
    // Unless it is told not to look, by another file: what has read this one may still be there.
    config["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = true.into();
    let file = folder.path("careless");
    fs::write(&file, config.to_string()).unwrap();
    is(&format!("k8s://default/leases?kubeconfig={}", file.display()), ErrorKind::Denied, "who we are");
}

#[test]
fn a_kubeconfig_that_makes_no_sense() {
    is(
        "k8s://default/leases?kubeconfig=/nowhere/config",
        ErrorKind::InvalidInput,
        "/nowhere/config is not there",
    );
    let file = kubeconfig(&json!({"token": SECRET}));
    let url = format!("k8s://default/leases?kubeconfig={}&context=there", file.display());
    is(&url, ErrorKind::InvalidInput, "no context \"there\"");
    fs::write(&file, "a: [b").unwrap();
    is(&format!("k8s://default/leases?kubeconfig={}", file.display()), ErrorKind::InvalidInput, "no YAML");
}

#[test]
fn urls_that_make_no_sense() {
    for (url, why) in [
        ("k8s://default/configmaps", "k8s://NAMESPACE/leases"),
        ("k8s://default/configmaps/a%20b", "k8s://NAMESPACE/leases"),
        ("k8s://Default/leases", "is no namespace"),
        ("k8s://default/leases?kubconfig=x", "\"kubconfig\" is not known"),
    ] {
        let error = error(url);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_program_that_logs_in() {
    let namespace = cluster().namespace();
    let exec = |script: &str| {
        json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "sh", "args": ["-c", script],
        }})
    };
    let says = |status: &str| {
        exec(&format!(
            r#"echo '{{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{status}}}'"#
        ))
    };
    let url = |file: std::path::PathBuf| format!("k8s://{namespace}/leases?kubeconfig={}", file.display());
    // What it gives is over at once, so it is run for each request.
    for status in [
        r#"{"token":"admin-token"}"#,
        r#"{"token":"admin-token","expirationTimestamp":"2001-01-01T00:00:00Z"}"#,
    ] {
        block_on(acquire(&locker(&url(kubeconfig(&says(status)))), "lock").release()).unwrap();
    }
    is(&url(kubeconfig(&exec("echo 'first log in' >&2; exit 3"))), ErrorKind::Denied, "first log in");
    is(&url(kubeconfig(&says(&format!(r#"{{"token":"{SECRET}"}}"#)))), ErrorKind::Denied, "who we are");
    nothing_is_left(cluster(), &namespace);
}

/// What it gave before holds while it is run again, and so do the locks.
#[test]
fn a_slow_program_that_logs_in() {
    let namespace = cluster().namespace();
    let folder = Folder::new();
    let script = format!(
        r#"test -e {ran} && sleep 4; touch {ran}; until=$(date -u -d '+12 seconds' +%Y-%m-%dT%H:%M:%SZ)
        echo '{{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1",
        "status":{{"token":"admin-token","expirationTimestamp":"'$until'"}}}}'"#,
        ran = folder.path("ran").display()
    );
    let user = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "sh", "args": ["-c", script],
    }});
    let ours = locker(&format!("k8s://{namespace}/leases?kubeconfig={}", kubeconfig(&user).display()));
    let guard = acquire(&ours, "lock");
    thread::sleep(Duration::from_secs(10));
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
    nothing_is_left(cluster(), &namespace);
}

/// The namespace is that of the context where the URL has none, and names under a prefix are others.
#[test]
fn the_namespace_of_the_context_and_prefixes() {
    let namespace = cluster().namespace();
    let file = cluster().kubeconfig(cluster().address(), &namespace, &json!({"token": "admin-token"}));
    let at = |path: &str| locker(&format!("k8s:///leases{path}?kubeconfig={}", file.display()));
    let (root, team, other) = (at(""), at("/team"), at("/other"));
    let guards = [&root, &team, &other].map(|locker| acquire(locker, "lock"));
    for locker in [&root, &team, &other] {
        assert_eq!(block_on(locker.list("")).unwrap().len(), 1);
    }
    assert_eq!(cluster().leases(&namespace).len(), 3);
    for guard in guards {
        block_on(guard.release()).unwrap();
    }
    nothing_is_left(cluster(), &namespace);
}

fn kubeconfig(user: &serde_json::Value) -> std::path::PathBuf {
    cluster().kubeconfig(cluster().address(), "default", user)
}
