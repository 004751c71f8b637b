//! What cannot be: each is an error with a kind and the endpoint, within the timeout, and without a secret.

use std::{
    future::IntoFuture,
    sync::OnceLock,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use windlass::{Error, ErrorKind};
use windlass_tests::{
    adversity::{self, TIMEOUT},
    etcd::{Cluster, PASSWORD, PASSWORD_IN_URL, Release, Setup},
    place::block_on,
    server_process::port_to_keep,
};

use super::{SLACK, acquire, etcd, locker, nothing_is_left, prefix};

/// With auth, and nothing encrypted.
fn guarded() -> &'static Cluster {
    static ETCD: OnceLock<Cluster> = OnceLock::new();
    ETCD.get_or_init(|| Setup::new(Release::Newest).auth().start())
}

fn encrypted() -> &'static Cluster {
    static ETCD: OnceLock<Cluster> = OnceLock::new();
    ETCD.get_or_init(|| Setup::new(Release::Debian).tls().start())
}

/// The error of an acquire.
fn error(url: &str) -> Error {
    let (error, said) = adversity::failure(url, &[PASSWORD, PASSWORD_IN_URL, "hunter2"]);
    assert!(said.contains("127.0.0.1:"), "names no endpoint: {said}");
    error
}

fn is(url: &str, kind: ErrorKind, says: &str) {
    adversity::is(&error(url), kind, says);
}

#[test]
fn nobody_listens() {
    let url = format!("etcd://127.0.0.1:{}/app", port_to_keep());
    is(&url, ErrorKind::Unavailable, "cannot connect");
    let error = block_on(locker(&url).lock("lock").try_acquire()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("cannot connect"), "{error}");
}

#[test]
fn one_of_several_listens() {
    let prefix = prefix();
    let url = format!("etcd://127.0.0.1:{},{}/{prefix}", port_to_keep(), etcd().address(0));
    block_on(acquire(&locker(&url), "lock").release()).unwrap();
}

#[test]
fn something_else_listens() {
    let server = windlass_tests::server::namespace();
    let address = server.strip_prefix("http://").unwrap();
    is(&format!("etcd://{address}"), ErrorKind::Storage, "no etcd");
}

#[test]
fn a_wrong_password() {
    let address = guarded().address(0);
    is(&format!("etcd://app:hunter2@{address}/app/locks"), ErrorKind::Denied, "password");
    is(&format!("etcd://nobody:hunter2@{address}/app/locks"), ErrorKind::Denied, "password");
}

#[test]
fn no_password() {
    is(&format!("etcd://{}/app/locks", guarded().address(0)), ErrorKind::Denied, "give a user and password");
}

#[test]
fn a_password_that_nobody_asks_for() {
    is(
        &format!("etcd://app:hunter2@{}/app/locks", etcd().address(0)),
        ErrorKind::Denied,
        "authentication is not enabled",
    );
}

#[test]
fn no_right_on_the_prefix() {
    is(&guarded().url("other"), ErrorKind::Denied, "no right");
    let ours = locker(&guarded().url("other"));
    assert_eq!(block_on(ours.list("")).unwrap_err().kind(), ErrorKind::Denied);
    // Nor on one that only begins alike.
    is(&guarded().url("application"), ErrorKind::Denied, "no right");
    block_on(acquire(&locker(&guarded().url("app/locks")), "lock").release()).unwrap();
}

#[test]
fn no_right_for_many_at_once() {
    for release in [Release::Debian, Release::Newest] {
        let etcd = Setup::new(release).auth().start();
        let nobody = format!("etcd://{}/app", etcd.address(0));
        for url in [etcd.url("other"), nobody] {
            let others = locker(&url);
            let asks = (0..100).map(|n| others.lock(format!("lock{}", n % 10)).try_acquire().into_future());
            for answer in block_on(join_all(asks)) {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            }
        }
        let ours = locker(&etcd.url("app"));
        let asks = (0..100).map(|n| ours.lock(format!("lock{n}")).try_acquire().into_future());
        assert!(block_on(join_all(asks)).into_iter().all(|answer| answer.unwrap().is_some()));
    }
}

#[test]
fn tls_to_a_plain_port() {
    // It hangs up in the middle of the handshake, or sooner.
    is(&format!("etcds://{}/app", etcd().address(0)), ErrorKind::Unavailable, "no connection to etcd");
}

#[test]
fn plain_to_a_port_with_tls() {
    // It hangs up on us without a word.
    is(&format!("etcd://{}/app", encrypted().address(0)), ErrorKind::Unavailable, "no connection to etcd");
}

#[test]
fn certificates_that_nobody_trusts() {
    let (url, address) = (encrypted().url("app"), encrypted().address(0));
    is(&format!("etcds://{address}/app"), ErrorKind::Denied, "TLS");
    let without_ours = url.split("&cert=").next().unwrap();
    is(without_ours, ErrorKind::Unavailable, "no connection to etcd");
    block_on(acquire(&locker(&url), "lock").release()).unwrap();
}

#[test]
fn no_quorum() {
    let mut etcd = Setup::new(Release::Debian).members(3).start();
    let ours = locker(&etcd.url("app"));
    block_on(acquire(&ours, "lock").release()).unwrap();
    etcd.kill(0);
    etcd.kill(1);
    let start = Instant::now();
    let error = block_on(ours.lock("lock").timeout(TIMEOUT).into_future()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    assert!(start.elapsed() < TIMEOUT + SLACK, "after {:?}", start.elapsed());
    let error = block_on(ours.list("")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    etcd.start_again(0);
    block_on(acquire(&ours, "lock").release()).unwrap();
}

/// Whoever looks at a line takes an answer that is as long as the line.
#[test]
fn a_line_longer_than_four_mebibytes() {
    let prefix = prefix();
    let ours = locker(&etcd().url(&prefix));
    let huge = "x".repeat(100_000);
    for n in 0..50 {
        etcd().ctl(&["put", "--", &format!("/{prefix}/long/{n}"), &huge]);
    }
    assert_eq!(block_on(ours.list("")).unwrap()[0].waiters.len(), 49);
    assert!(block_on(ours.lock("long").shared().try_acquire()).unwrap().is_none());
    let shared = ours.lock("long").shared().timeout(Duration::from_millis(500));
    let error = block_on(shared.into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    etcd().ctl(&["del", "--prefix", &format!("/{prefix}/long/")]);
    nothing_is_left(etcd(), &prefix);
}

/// Keys of somebody else, with whatever in them, harm nobody but the lock in whose line they stand.
#[test]
fn strange_keys_below_the_prefix() {
    let prefix = prefix();
    let ours = locker(&etcd().url(&prefix));
    let huge = "x".repeat(100_000);
    let strange = [
        ("", ""),
        ("a", "no line"),
        ("//x", "no name"),
        ("%", "no encoding"),
        ("%2f/x", "not its encoding"),
        ("\u{1f319}\n/x", "\u{1}\u{7}"),
        ("deep/c/d/e", "below it, as for Go's Mutex"),
        ("locked/00000000000000000000000000000001", r#"{"mode":"permit","limit":0}"#),
        ("huge/x", &huge),
    ];
    for (key, value) in strange {
        etcd().ctl(&["put", "--", &format!("/{prefix}/{key}"), value]);
    }
    for name in ["a", "b", "\u{1f319}", "%", "%2f", "/"] {
        block_on(acquire(&ours, name).release()).unwrap();
    }
    for name in ["locked", "huge", "deep"] {
        let error = block_on(ours.lock(name).timeout(Duration::from_millis(300)).into_future()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().len() < 1_000, "{} bytes", error.to_string().len());
    }
    let seen: Vec<String> =
        block_on(ours.list("")).unwrap().iter().map(|status| status.name.as_str().to_owned()).collect();
    assert!(seen.contains(&"locked".to_owned()), "{seen:?}");
    for name in ["locked", "huge", "deep"] {
        // An operator can remove it.
        block_on(ours.force_release(name, None)).unwrap();
        block_on(acquire(&ours, name).release()).unwrap();
    }
    etcd().ctl(&["del", "--prefix", &format!("/{prefix}/")]);
    nothing_is_left(etcd(), &prefix);
}
