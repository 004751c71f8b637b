//! What cannot be: each is an error with a kind and the endpoint, within the timeout, and without a secret.

use std::{
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use windlass::{Error, ErrorKind};
use windlass_tests::{
    adversity::{self, TIMEOUT},
    etcd::{PASSWORD, PASSWORD_IN_URL},
    place::Folder,
    processes::Program,
    redis::{Cluster, PREFIX, Release, Server, Setup, Watched, key_of},
    server_process::port_to_keep,
};

use super::{SLACK, acquire, block_on, locker, next, nothing_is_left_in, redis};

/// With rights, and nothing encrypted.
fn guarded() -> &'static Server {
    static REDIS: OnceLock<Server> = OnceLock::new();
    REDIS.get_or_init(|| Setup::new(Release::Newest).acl().start())
}

fn encrypted() -> &'static Server {
    static REDIS: OnceLock<Server> = OnceLock::new();
    REDIS.get_or_init(|| Setup::new(Release::Debian).tls().start())
}

fn cluster() -> &'static Cluster {
    static REDIS: OnceLock<Cluster> = OnceLock::new();
    REDIS.get_or_init(|| Cluster::start(Release::Valkey))
}

/// The error of an acquire.
fn error(url: &str) -> Error {
    let (error, said) = adversity::failure(url, &[PASSWORD, PASSWORD_IN_URL, "hunter2"]);
    assert!(said.contains("127.0.0.1:") || said.contains(".sock"), "names no endpoint: {said}");
    error
}

fn is(url: &str, kind: ErrorKind, says: &str) {
    adversity::is(&error(url), kind, says);
}

#[test]
fn nobody_listens() {
    let port = port_to_keep();
    let urls = [
        format!("redis://127.0.0.1:{port}"),
        format!("rediss://127.0.0.1:{port}"),
        format!("redis+sentinel://127.0.0.1:{port}/main"),
        format!("redis+cluster://127.0.0.1:{port}"),
        "redis+unix:///tmp/windlass-no-such.sock".to_owned(),
    ];
    thread::scope(|scope| {
        for url in &urls {
            scope.spawn(|| {
                is(url, ErrorKind::Unavailable, "cannot reach");
                let error = block_on(locker(url).lock("lock").try_acquire()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(error.to_string().contains("cannot reach"), "{error}");
            });
        }
    });
}

#[test]
fn something_else_listens() {
    let server = windlass_tests::server::namespace();
    let address = server.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    is(&format!("redis://{address}"), ErrorKind::Storage, "no Redis");
    is(&format!("redis+sentinel://{address}/main"), ErrorKind::Storage, "no Redis");
    is(&format!("redis+cluster://{address}"), ErrorKind::Storage, "no Redis");
}

/// It takes connections, and says nothing.
#[test]
fn a_silent_port() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    thread::scope(|scope| {
        for scheme in ["redis", "rediss"] {
            scope.spawn(move || {
                let error = error(&format!("{scheme}://{address}"));
                assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
            });
        }
    });
}

/// ... and those who ask together wait together, not each for the try of whoever was before it.
#[test]
fn many_at_a_silent_port() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = locker(&format!("redis://{}", silent.local_addr().unwrap()));
    let start = Instant::now();
    thread::scope(|scope| {
        for n in 0..12 {
            let lock = ours.lock(format!("lock-{n}"));
            scope.spawn(move || block_on(lock.try_acquire()).unwrap_err());
        }
    });
    assert!(start.elapsed() < Duration::from_secs(8), "after {:?}", start.elapsed());
}

#[test]
fn a_wrong_password() {
    let address = guarded().address();
    is(&format!("redis://app:hunter2@{address}"), ErrorKind::Denied, "password");
    is(&format!("redis://nobody:hunter2@{address}"), ErrorKind::Denied, "password");
}

#[test]
fn no_password() {
    is(&format!("redis://{}", guarded().address()), ErrorKind::Denied, "give a user and password");
}

#[test]
fn a_password_that_nobody_asks_for() {
    // For its one user Redis takes any.
    is(&format!("redis://app:hunter2@{}", redis().address()), ErrorKind::Denied, "password");
}

/// A password in the environment is for the user that the URL names.
#[test]
fn a_password_of_the_environment() {
    let start = |password: &str| {
        let folder = Folder::new();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_windlass-tests-worker"));
        worker.arg(format!("redis://app@{}", guarded().address())).arg(folder.path("log"));
        (Program::start(worker.env("WINDLASS_PASSWORD", password)), folder)
    };
    let (mut right, _folder) = start(PASSWORD);
    right.say("acquire 1 environment exclusive");
    right.rest_of("acquired 1 ");
    right.ask("release 1", "released 1");
    let (mut wrong, _folder) = start("hunter2");
    wrong.say("acquire 1 environment exclusive");
    let said = wrong.rest_of("error ");
    assert!(said.contains("password") && !said.contains("hunter2"), "{said}");
}

#[test]
fn no_right_on_the_keys() {
    let address = guarded().address();
    let narrow = format!("redis://narrow:{PASSWORD_IN_URL}@{address}");
    is(&narrow, ErrorKind::Denied, "no right");
    let ours = locker(&narrow);
    for error in [
        block_on(ours.lock("lock").try_acquire()).unwrap_err(),
        block_on(ours.force_release("lock", None)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
    // Nor on those that only begin alike.
    is(&format!("{narrow}?prefix=narrow"), ErrorKind::Denied, "no right");
    block_on(acquire(&locker(&format!("{narrow}?prefix=narrow:")), "lock").release()).unwrap();
}

/// Rights that are taken away under a holder.
#[test]
fn rights_that_end() {
    let redis = Setup::new(Release::Valkey).acl().start();
    let ours = locker(&redis.url(0));
    let guard = acquire(&ours, "lock");
    redis.ask(&["ACL", "SETUSER", "app", "resetkeys"]);
    let error = block_on(ours.lock("other").timeout(TIMEOUT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    block_on(guard.lost());
    redis.ask(&["ACL", "SETUSER", "app", "~*"]);
    block_on(acquire(&ours, "lock").release()).unwrap();
    // A user who is gone is asked for the password again.
    redis.ask(&["ACL", "DELUSER", "app"]);
    let error = block_on(ours.lock("lock").timeout(TIMEOUT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[test]
fn tls_to_a_plain_port() {
    let error = error(&format!("rediss://{}", redis().address()));
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Storage), "{error}");
}

#[test]
fn plain_to_a_port_with_tls() {
    let error = error(&format!("redis://{}", encrypted().address()));
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Storage), "{error}");
}

#[test]
fn certificates_that_nobody_trusts() {
    let url = encrypted().url(0);
    is(&format!("rediss://{}", encrypted().address()), ErrorKind::Denied, "TLS");
    let without_ours = url.split("&cert=").next().unwrap();
    let error = error(without_ours);
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied), "{error}");
    block_on(acquire(&locker(&url), "lock").release()).unwrap();
}

#[test]
fn certificates_that_are_no_files() {
    let address = encrypted().address();
    for option in ["ca", "cert"] {
        let url = format!("rediss://{address}?{option}=/no/such/file");
        let error = block_on(windlass::connect(&url)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }
}

#[test]
fn a_database_that_is_not_there() {
    is(&format!("redis://{}/100000", redis().address()), ErrorKind::InvalidInput, "databases");
}

#[test]
fn a_form_that_it_is_not() {
    // A server that is of a cluster has what is in its slots only.
    let one = cluster().master(0).address();
    let error_of_one = error(&format!("redis://{one}"));
    assert!(error_of_one.to_string().contains("cluster"), "{error_of_one}");
    // One that is of none.
    let alone = redis().address();
    let error_of_none = error(&format!("redis+cluster://{alone}"));
    assert!(error_of_none.to_string().contains("cluster"), "{error_of_none}");
    // One that is no Sentinel.
    let no_sentinel = error(&format!("redis+sentinel://{alone}/main"));
    assert!(no_sentinel.to_string().contains("entinel"), "{no_sentinel}");
}

#[test]
fn a_master_that_sentinels_do_not_know() {
    let mut watched = Watched::start(Release::Debian);
    let address = watched.sentinel(0).address();
    let error = error(&format!("redis+sentinel://{address}/other"));
    assert!(error.to_string().contains("\"other\""), "{error}");
    // A Sentinel is no place for locks.
    let direct = self::error(&format!("redis://{address}"));
    assert!(!matches!(direct.kind(), ErrorKind::Timeout | ErrorKind::Internal), "{direct}");
}

/// What somebody else keeps under the key of a lock, or beside it, harms that lock alone.
#[test]
fn keys_that_are_something_else() {
    let database = next();
    let ours = locker(&redis().url(database));
    let key = |name: &str| key_of(PREFIX, name);
    let strange: [&[&str]; 6] = [
        &["RPUSH", &key("list"), "x"],
        &["SADD", &key("set"), "x"],
        &["HSET", &key("hash"), "x", "y"],
        &["ZADD", &key("zset"), "1", "x"],
        &["XADD", &key("stream"), "*", "x", "y"],
        &["RPUSH", &format!("{{{}}}:queue", key("queue")), "x"],
    ];
    for words in strange {
        redis().ask_in(database, words);
    }
    for name in ["list", "set", "hash", "zset", "stream", "queue"] {
        let start = Instant::now();
        let error = block_on(ours.lock(name).timeout(TIMEOUT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{name}: {error}");
        assert!(error.to_string().contains("something else"), "{error}");
        assert!(start.elapsed() < TIMEOUT + SLACK, "{name}: after {:?}", start.elapsed());
        let error = block_on(ours.lock(name).try_acquire()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{name}: {error}");
    }
    // Others are locked and seen as ever.
    let guard = acquire(&ours, "lock");
    let seen = block_on(ours.list("")).unwrap();
    assert!(seen.iter().any(|status| status.name.as_str() == "lock"), "{seen:?}");
    block_on(guard.release()).unwrap();
    for words in strange {
        assert_eq!(redis().ask_in(database, &["DEL", words[1]]).number(), 1, "{words:?} is as it was");
    }
    for name in ["list", "queue"] {
        block_on(acquire(&ours, name).release()).unwrap();
    }
    nothing_is_left_in(redis(), database);
}

/// Texts under the key of a lock are locks of others, whatever they look like.
#[test]
fn texts_that_are_no_locks_of_ours() {
    let database = next();
    let ours = locker(&redis().url(database));
    let huge = "x".repeat(1_000_000);
    let strange = ["", "x", "windlass", "windlass {", "windlass []", "windlass {\"holders\":{}}", &huge];
    for (n, text) in strange.iter().enumerate() {
        let name = format!("lock-{n}");
        redis().ask_in(database, &["SET", &key_of(PREFIX, &name), text]);
        let error = block_on(ours.lock(&name).timeout(Duration::from_millis(300))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Storage), "{text:.40}: {error}");
        assert!(error.to_string().len() < 1_000, "{} bytes", error.to_string().len());
        assert!(block_on(ours.list("")).is_ok(), "{text:.40}");
        // An operator can remove it.
        block_on(ours.force_release(&name, None)).unwrap();
        block_on(acquire(&ours, &name).release()).unwrap();
    }
    nothing_is_left_in(redis(), database);
}

#[test]
fn urls_that_make_no_sense() {
    for (url, says) in [
        ("redis://", "host"),
        ("redis://127.0.0.1:1,127.0.0.1:2", "redis+cluster"),
        ("redis://127.0.0.1/locks", "database"),
        ("redis://127.0.0.1?unknown=1", "unknown"),
        ("redis://127.0.0.1?ca=/file", "TLS"),
        ("redis+sentinel://127.0.0.1", "name"),
        ("redis+cluster://127.0.0.1/1", "database"),
        ("redis+unix://", "path"),
        ("redis://app@127.0.0.1", "password"),
    ] {
        let error = block_on(windlass::connect(url)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}: {error}");
        assert!(error.to_string().contains(says), "{url}: {error}");
    }
}
