//! Many of everything: waiters, locks, sockets that say nothing, clients that come back all at once. What is bounded by
//! figures here is memory and the number of messages; times are printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "a crowd of clients, in real time")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{sleep, timeout},
};
use windlass::ConnectOptions;
use windlass_tests::{place::PATIENCE, server_process::ServerProcess};

const MIB: u64 = 1 << 20;

/// The tests take their turns: each wants the machine for itself.
fn with_server(test: impl AsyncFnOnce(ServerProcess)) {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let server = ServerProcess::start(env!("CARGO_BIN_EXE_windlass-tests-server"));
    tokio::runtime::Runtime::new().unwrap().block_on(test(server));
}

/// A connection that speaks just enough HTTP to be cheap.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::with_capacity(512, stream) }
    }

    async fn send(&mut self, path: &str, body: &Value) {
        let body = body.to_string();
        let head = format!(
            "POST /v1/team/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all((head + &body).as_bytes()).await.unwrap();
    }

    /// The status of an answer and what it says.
    async fn answer(&mut self) -> io::Result<(u16, Value)> {
        let (mut line, mut status, mut length) = (String::new(), 0, 0);
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let lower = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = lower.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(rest) = lower.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if lower.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    async fn ask(&mut self, path: &str, body: &Value) -> Value {
        self.send(path, body).await;
        let (status, said) = timeout(PATIENCE, self.answer()).await.expect("an answer").unwrap();
        assert_eq!(status, 200, "{path}: {said}");
        said
    }
}

fn claim(n: usize) -> String {
    format!("{n:032x}")
}

async fn scraped(address: &str, metric: &str) -> u64 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line =
        text.lines().find(|line| line.starts_with(metric)).unwrap_or_else(|| panic!("{metric}: {text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Rule R17, and the end of a server with a crowd in it.
#[test]
fn ten_thousand_waiters_of_one_lock() {
    const WAITERS: usize = 10_000;
    const TURNS: usize = 1_000;
    with_server(async |mut server| {
        let address = server.address();
        let mut first = Client::connect(&address).await;
        let empty = server.memory();
        let held = first.ask("acquire", &json!({"name": "hot", "claim": claim(1), "ttl_ms": 300_000})).await;
        let mut token = held["grant"]["fencing_token"].as_u64().unwrap();
        let mut waiters = Vec::with_capacity(WAITERS);
        for n in 0..WAITERS {
            let mut waiter = Client::connect(&address).await;
            let ask = json!({"name": "hot", "claim": claim(100 + n), "ttl_ms": 300_000});
            waiter.send("acquire", &ask).await;
            waiters.push(waiter);
            if n % 500 == 0 {
                // In the order in which they are asked for.
                until("they wait", async || scraped(&address, "windlass_waiters ").await == n as u64 + 1)
                    .await;
            }
        }
        until("all wait", async || scraped(&address, "windlass_waiters ").await == WAITERS as u64).await;
        let crowded = server.memory();
        eprintln!("{} KiB a waiter with its socket", (crowded - empty) / 1024 / WAITERS as u64);
        // Sixteen of them are hyper's, which reads on to see whether the client is still there.
        assert!(crowded < 320 * MIB, "{} MiB", crowded / MIB);

        // Each release is one answer to one waiter: who is told first comes next, and nobody else hears of it.
        let mut crowd: FuturesUnordered<_> = waiters
            .into_iter()
            .enumerate()
            .map(async |(n, mut waiter)| (n, waiter.answer().await, waiter))
            .collect();
        let mut holder = claim(1);
        let start = Instant::now();
        for turn in 0..TURNS {
            first.ask("release", &json!({"claims": [{"name": "hot", "claim": holder}]})).await;
            let (n, answer, _) = timeout(PATIENCE, crowd.next()).await.expect("the next one").unwrap();
            let (status, said) = answer.unwrap();
            assert_eq!((status, &said["outcome"]), (200, &json!("granted")), "{said}");
            let next = said["grant"]["fencing_token"].as_u64().unwrap();
            assert!(token < next, "{token}, then {next}");
            // Those who were sent between two looks at the queue may have overtaken each other on the way.
            assert!(n / 500 == turn / 500 || n.abs_diff(turn) < 500, "waiter {n} at turn {turn}");
            (token, holder) = (next, claim(100 + n));
        }
        eprintln!("{:?} a hand-over, with the answer to the release", start.elapsed() / TURNS as u32);

        let end = Instant::now();
        server.stop();
        eprintln!("the server ended in {:?}", end.elapsed());
        assert!(end.elapsed() < PATIENCE);
        let mut told = 0;
        while let Some((_, answer, _)) = crowd.next().await {
            told +=
                usize::from(answer.is_ok_and(|(status, said)| status == 503 || said["outcome"] == "waiting"));
        }
        assert_eq!(told, WAITERS - TURNS, "all were sent on");
    });
}

/// Over few connections: what a waiter costs without a socket of its own.
#[test]
fn ten_thousand_waiters_of_one_program() {
    const CONNECTIONS: usize = 10;
    const EACH: usize = 1_000;
    with_server(async |server| {
        let address = server.address();
        let empty = server.memory();
        let mut waiting = Vec::with_capacity(CONNECTIONS * EACH);
        for connection in 0..CONNECTIONS {
            let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
            for n in 0..EACH {
                let claim = claim(connection * EACH + n + 1);
                let asked = client
                    .post(format!("http://{address}/v1/team/acquire"))
                    .body(json!({"name": "hot", "claim": claim, "ttl_ms": 300_000}).to_string())
                    .send();
                waiting.push(tokio::spawn(asked));
            }
            let so_far = ((connection + 1) * EACH - 1) as u64;
            until("they wait", async || scraped(&address, "windlass_waiters ").await == so_far).await;
        }
        let crowded = server.memory();
        eprintln!(
            "{} bytes a waiter, {} MiB in all",
            (crowded - empty) / waiting.len() as u64,
            crowded / MIB
        );
        assert!(crowded < 128 * MIB, "{} MiB", crowded / MIB);
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn a_hundred_thousand_held_locks() {
    const LOCKS: usize = 100_000;
    const AT_ONCE: usize = 1_000;
    with_server(async |server| {
        let address = server.address();
        let mut client = Client::connect(&address).await;
        let batches = || {
            (0..LOCKS).step_by(AT_ONCE).map(|from| {
                let claims = (from..from + AT_ONCE)
                    .map(|n| json!({"name": format!("lock {n}"), "claim": claim(n + 1)}));
                Value::Array(claims.collect())
            })
        };
        let before = server.memory();
        for claims in batches() {
            let said = client.ask("acquire-all", &json!({"claims": claims, "ttl_ms": 60_000})).await;
            assert_eq!(said["outcome"], "granted");
        }
        assert_eq!(scraped(&address, "windlass_holders ").await, LOCKS as u64);
        let each = (server.memory() - before) / LOCKS as u64;
        let start = Instant::now();
        for claims in batches() {
            let said = client.ask("renew", &json!({"claims": claims})).await;
            assert!(
                said["claims"].as_array().unwrap().iter().all(|claim| claim["state"] == "held"),
                "{said}"
            );
        }
        eprintln!("{each} bytes a lock; all renewed in {:?}", start.elapsed());
        assert!(each <= 1024, "{each} bytes a lock");
        for claims in batches() {
            client.ask("release", &json!({"claims": claims})).await;
        }
        assert_eq!(scraped(&address, "windlass_holders ").await, 0);
        assert_eq!(scraped(&address, "windlass_locks_held ").await, 0);
    });
}

/// What stays of a claim for two minutes is that its id is over, and of a name nothing.
#[test]
fn names_that_nobody_holds_any_more() {
    const NAMES: usize = 200_000;
    const AT_ONCE: usize = 200;
    with_server(async |server| {
        let mut client = Client::connect(&server.address()).await;
        let mut take_and_give_back = async |names: std::ops::Range<usize>| {
            for from in names.step_by(AT_ONCE) {
                let claims = (from..from + AT_ONCE)
                    .map(|n| json!({"name": format!("{n:0>1000}"), "claim": claim(n + 1)}));
                let claims = Value::Array(claims.collect());
                let said = client.ask("acquire-all", &json!({"claims": claims})).await;
                assert_eq!(said["outcome"], "granted", "{said}");
                client.ask("release", &json!({"claims": claims})).await;
            }
        };
        // The room that questions take is there afterwards, too.
        take_and_give_back(0..10 * AT_ONCE).await;
        let before = server.memory();
        take_and_give_back(10 * AT_ONCE..NAMES).await;
        let each = server.memory().saturating_sub(before) / NAMES as u64;
        eprintln!("{each} bytes a name of 1,000");
        assert!(each <= 200, "{each} bytes stay of a name of 1,000");
        assert_eq!(scraped(&server.address(), "windlass_locks_held ").await, 0);
    });
}

/// Also those that say half a word.
#[test]
fn two_thousand_sockets_that_say_nothing() {
    with_server(async |server| {
        let address = server.address();
        let beginnings = ["", "P", "POST /v1/team/acquire HTTP/1.1\r\nHost: loc"];
        let body = "POST /v1/team/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{";
        let mut slow = Vec::new();
        let before = server.memory();
        for n in 0..2_000 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let beginning = beginnings.get(n % 4).unwrap_or(&body);
            stream.write_all(beginning.as_bytes()).await.unwrap();
            slow.push(stream);
        }
        let mut honest = Client::connect(&address).await;
        let start = Instant::now();
        for n in 0..1_000 {
            let said = honest.ask("acquire", &json!({"name": "lock", "claim": claim(n + 1)})).await;
            assert_eq!(said["outcome"], "granted", "{said}");
            honest.ask("release", &json!({"claims": [{"name": "lock", "claim": claim(n + 1)}]})).await;
        }
        let each = server.memory().saturating_sub(before) / 2_000;
        eprintln!("{:?} a pair beside them, {each} bytes each", start.elapsed() / 1_000);
        assert!(each <= 64 * 1024, "{each} bytes each");
        // What the server says to them, if anything, ends.
        let closed = FuturesUnordered::from_iter(slow.into_iter().map(async |mut stream| {
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
        }));
        timeout(PATIENCE, closed.for_each(async |()| ())).await.expect("all of them are closed");
    });
}

/// Rule R24: those who wait out an outage come back one after another, and nobody who held a lock has lost it.
#[test]
fn a_thousand_clients_come_back() {
    const CLIENTS: usize = 1_000;
    with_server(async |mut server| {
        let options = || ConnectOptions::new().ttl(Duration::from_secs(60));
        let holder = options().connect(&server.url("team")).await.unwrap();
        let held = holder.lock("held").await.unwrap();
        let (back, sum) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut clients = Vec::new();
        let url = server.url("team");
        server.stop();
        for n in 0..CLIENTS {
            let (url, back, sum, options) = (url.clone(), back.clone(), sum.clone(), options());
            clients.push(tokio::spawn(async move {
                let locker = options.connect(&url).await.unwrap();
                let guard = locker.lock(format!("lock {}", n % 10)).await.unwrap();
                back.fetch_add(1, Ordering::SeqCst);
                sum.fetch_add(n, Ordering::SeqCst);
                guard.release().await.unwrap();
            }));
        }
        sleep(Duration::from_secs(10)).await;
        assert_eq!(back.load(Ordering::SeqCst), 0);
        let start = Instant::now();
        server.start_again();
        until("the first is back", async || back.load(Ordering::SeqCst) > 0).await;
        let first = start.elapsed();
        for client in clients {
            timeout(PATIENCE, client).await.expect("everybody comes back").unwrap();
        }
        eprintln!("the first came back after {first:?}, all after {:?}", start.elapsed());
        assert_eq!(sum.load(Ordering::SeqCst), CLIENTS * (CLIENTS - 1) / 2);
        held.check().expect("held all the time");
    });
}
