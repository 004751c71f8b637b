//! The server's disk is full: what needs a write is refused with an error that says so, all else goes on, and when there is
//! room again all is well, without a restart.

use std::{fs, os::unix::fs::symlink, path::Path};

use tokio::net::TcpListener;
use windlass::{ErrorKind, protocol::Problem};
use windlass_server::{Server, Store};

use crate::kit::{Answer, acquire, ask, id, serve_at};

/// What is written goes into this file first: from now on there is no room for it.
fn fill(folder: &Path) {
    let _ = fs::remove_file(folder.join("state.new"));
    symlink("/dev/full", folder.join("state.new")).unwrap();
}

fn make_room(folder: &Path) {
    fs::remove_file(folder.join("state.new")).unwrap();
}

#[tokio::test]
async fn what_needs_a_write_is_refused_and_all_else_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let address = serve_at(Server::new(Store::in_directory(folder.path()).unwrap())).await;
    let take = async |name: &str, claim: &str, ttl_ms: u32| -> Answer {
        let question = acquire(name, claim).replace('{', &format!(r#"{{"ttl_ms":{ttl_ms},"#));
        ask(address, "POST", "/v1/a/acquire", &[], &question).await
    };
    let (held, refused) = (id(), id());
    assert_eq!(take("held", &held, 60_000).await.status, 200);
    fill(folder.path());
    // A longer TTL than all before has to be written down first.
    let answer = take("longer", &refused, 120_000).await;
    let problem: Problem = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, problem.kind.as_str()), (507, "storage"), "{answer:?}");
    assert!(problem.detail.contains("state.json") && problem.detail.contains("No space left"), "{answer:?}");
    let locks = ask(address, "GET", "/v1/a/locks", &[], "").await;
    assert!(locks.body.contains("held") && !locks.body.contains("longer"), "{locks:?}");
    // No write, no trouble.
    let claims = format!(r#"{{"claims":[{{"name":"held","claim":"{held}"}}]}}"#);
    let renewed = ask(address, "POST", "/v1/a/renew", &[], &claims).await;
    assert!(renewed.body.contains(r#""state":"held""#), "{renewed:?}");
    assert_eq!(take("other", &id(), 60_000).await.status, 200);
    assert_eq!(ask(address, "POST", "/v1/a/release", &[], &claims).await.status, 200);
    assert_eq!(take("held", &id(), 60_000).await.status, 200);
    make_room(folder.path());
    let answer = take("longer", &refused, 120_000).await;
    assert!(answer.body.contains("granted"), "{answer:?}");
}

#[tokio::test]
async fn a_server_that_cannot_write_does_not_begin() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::new(Store::in_directory(folder.path()).unwrap());
    let error = server.serve(listener, std::future::pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.message().contains("No space left"), "{error}");
}
