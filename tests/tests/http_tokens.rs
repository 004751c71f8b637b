//! Tokens that end, and where new ones come from.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

use std::{
    fs,
    future::{IntoFuture, ready},
    io,
    panic::resume_unwind,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use windlass::{ConnectOptions, Error, ErrorKind, Locker, LostReason, transport::TokenSource};
use windlass_server::{
    Access, Server, ServerOptions, Store,
    token::{Claims, JwtKey, JwtKeys, Right, Scope, mint},
};
use windlass_tests::place::{Folder, PATIENCE, block_on};

/// How long after their end the server takes tokens, because of clocks that differ.
const LEEWAY: u64 = 30;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

#[test]
fn tokens_of_two_seconds_keep_a_lock_for_many_times_their_life() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let source = TokenSource::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        ready(Ok::<_, Error>(token_that_lives(2)))
    });
    let locker = connect(ConnectOptions::new().ttl(Duration::from_secs(3)).token_source(source));
    let guard = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        guard.check().unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    block_on(guard.release()).unwrap();
    let (asked, lives) = (asked.load(Ordering::SeqCst), start.elapsed().as_secs() as usize / 2);
    assert!(
        asked >= 3 && asked <= 2 * lives + 2,
        "asked for {asked} tokens in {lives} lives: one for each is enough"
    );
}

#[test]
fn those_who_ask_at_once_share_one_token() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let source = TokenSource::new(move || {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        async move {
            thread::sleep(Duration::from_millis(200));
            // The first one is refused, for all at once.
            Ok::<_, Error>(if nth == 0 { "not.a.token".into() } else { token_that_lives(60) })
        }
    });
    let locker = connect(ConnectOptions::new().token_source(source));
    thread::scope(|scope| {
        for n in 0..16 {
            let locker = &locker;
            scope.spawn(move || {
                block_on(locker.lock(format!("lock-{n}")).timeout(PATIENCE).into_future()).unwrap()
            });
        }
    });
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// An acquire says so at once; a holder's renewals go on being tried.
#[test]
fn a_source_that_fails_is_named() {
    let works = Arc::new(AtomicBool::new(false));
    let asks = works.clone();
    let source = TokenSource::new(move || {
        let works = asks.load(Ordering::SeqCst);
        ready(if works { Ok(token_that_lives(1)) } else { Err(io::Error::other("the vault is sealed")) })
    });
    let locker = connect(ConnectOptions::new().ttl(Duration::from_secs(6)).token_source(source));
    let error = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("no token: the vault is sealed"), "{error}");

    works.store(true, Ordering::SeqCst);
    let guard = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap();
    for _ in 0..3 {
        works.store(false, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1_500));
        works.store(true, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(2_500));
        guard.check().unwrap();
    }
    works.store(false, Ordering::SeqCst);
    assert_eq!(block_on(guard.lost()), LostReason::Unreachable);
}

#[test]
fn an_error_of_ours_stays_as_it_is() {
    let source =
        TokenSource::new(|| ready(Err::<String, _>(Error::new(ErrorKind::Unavailable, "try later"))));
    let locker = connect(ConnectOptions::new().token_source(source));
    let error = block_on(locker.lock("lock").timeout(Duration::from_secs(3)).into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("within 3 s: try later"), "tried again until then: {error}");
}

#[test]
fn a_source_that_panics_can_be_asked_again() {
    let asked = AtomicUsize::new(0);
    let source = TokenSource::new(move || {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            // Not by `panic!`: its backtrace reads this program's debug information from the disk, on the thread that renews the
            // locks of the other tests.
            resume_unwind(Box::new("this test's panic"));
        }
        ready(Ok::<_, Error>(token_that_lives(60)))
    });
    let locker = connect(ConnectOptions::new().token_source(source));
    let error = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap().check().unwrap();
}

#[test]
fn a_token_that_is_refused_is_said_so_at_once() {
    for (token, says) in [
        ("no-such-token", "the token is refused"),
        ("two\nlines", "no token has"),
        ("", "the token is empty"),
        (&token_that_lives(-1), "the token is refused"),
    ] {
        let locker = connect(ConnectOptions::new().token(token));
        let error = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(token.is_empty() || !format!("{error:#} {locker:?}").contains(token), "{error:#}");
    }
}

/// As Kubernetes changes the tokens of a pod.
#[test]
fn a_file_is_read_again_when_its_token_is_refused() {
    let folder = Folder::new();
    let file = folder.path("token");
    let locker = connect(ConnectOptions::new().token_source(TokenSource::file(&file)));
    let error = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains(&*file.to_string_lossy()), "{error}");
    for _ in 0..2 {
        fs::write(&file, format!("{}\n", token_that_lives(1))).unwrap();
        block_on(block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap().release()).unwrap();
        thread::sleep(Duration::from_millis(2_100));
        let error = block_on(locker.lock("lock").timeout(PATIENCE).into_future()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[test]
fn the_command_reads_tokens_from_the_environment() {
    let folder = Folder::new();
    let file = folder.path("token");
    fs::write(&file, format!("{}\n", token_that_lives(60))).unwrap();
    let run = |variables: &[(&str, &str)]| {
        let worker = env!("CARGO_BIN_EXE_windlass-tests-server");
        let mut command = Command::new(worker);
        command.args(["run", "lock", "--timeout", "10s", "--url", &format!("http://{}/team", server())]);
        command.args(["--", "true"]).env_remove("WINDLASS_TOKEN").env_remove("WINDLASS_TOKEN_FILE");
        command.envs(variables.iter().copied()).output().unwrap()
    };
    assert!(run(&[("WINDLASS_TOKEN_FILE", &file.to_string_lossy())]).status.success());
    assert!(run(&[("WINDLASS_TOKEN", &token_that_lives(60))]).status.success());
    let refused = run(&[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("WINDLASS_TOKEN"), "{refused:?}");
}

#[test]
fn a_token_for_a_place_that_asks_for_none_is_refused() {
    for url in ["memory:", "lockgate+http://127.0.0.1:1"] {
        let error = block_on(ConnectOptions::new().token("token").connect(url)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

fn connect(options: ConnectOptions) -> Locker {
    block_on(options.connect(&format!("http://{}/team", server()))).unwrap()
}

/// That long, as the server sees it.
fn token_that_lives(seconds: i64) -> String {
    let mut claims = Claims::new("somebody", Duration::from_secs(1));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    claims.exp = (now - LEEWAY).checked_add_signed(seconds).unwrap();
    claims.locks = vec![Scope { names: "team/*".into(), rights: vec![Right::Acquire] }];
    mint(&JwtKey::of_secret(SECRET).unwrap(), &claims).unwrap()
}

/// The address of a server of its own.
fn server() -> std::net::SocketAddr {
    let (tell, address) = mpsc::channel();
    thread::spawn(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let jwt = Some(JwtKeys::new([JwtKey::of_secret(SECRET).unwrap()], "windlass"));
            let access = Access { tokens: None, jwt };
            let options = ServerOptions { access, ..ServerOptions::default() };
            let server = Server::with_options(Store::in_memory(), options).unwrap();
            server.serve(listener, std::future::pending()).await.unwrap();
        });
    });
    address.recv().unwrap()
}
