//! Clients that say nothing, or little, or do not listen.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use windlass_server::{Deadlines, ServerOptions};

use crate::kit::{SOON, acquire, id, is_well, request, serve};

const SHORT: Duration = Duration::from_millis(300);
/// For those who do as they should, too: more than they need, however busy the machine.
const ENOUGH: Duration = Duration::from_secs(3);

/// One step may take so long, all others a minute.
fn only(change: impl FnOnce(&mut Deadlines)) -> ServerOptions {
    let long = Duration::from_secs(60);
    let mut deadlines =
        Deadlines { first_byte: long, handshake: long, head: long, body: long, write: long, idle: long };
    change(&mut deadlines);
    ServerOptions { deadlines, ..ServerOptions::default() }
}

/// Sends this, and then a byte now and then, until the server closes the connection.
async fn is_closed(options: ServerOptions, begin: &str, more: &str) {
    let address = serve(options).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(begin.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut all = Vec::new();
    let dripping = async {
        for byte in more.bytes().cycle() {
            sleep(SHORT / 10).await;
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        // Closed, as the reader will see.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        read = timeout(SOON, read.read_to_end(&mut all)) => drop(read.expect("the server closes")),
        () = dripping => {}
    }
    is_well(address).await;
}

#[tokio::test]
async fn silence() {
    is_closed(only(|deadlines| deadlines.first_byte = SHORT), "", "").await;
}

#[tokio::test]
async fn a_head_byte_by_byte() {
    let begin = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ";
    is_closed(only(|deadlines| deadlines.head = SHORT), begin, "a").await;
}

#[tokio::test]
async fn what_could_become_http2() {
    is_closed(only(|deadlines| deadlines.head = SHORT), "PRI * HTTP/2.0\r\n\r\n", "").await;
}

#[tokio::test]
async fn a_body_byte_by_byte() {
    let begin = "POST /v1/a/release HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
    is_closed(only(|deadlines| deadlines.body = SHORT), begin, " ").await;
}

#[tokio::test]
async fn a_second_head_byte_by_byte() {
    let begin = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea";
    is_closed(only(|deadlines| (deadlines.head, deadlines.idle) = (SHORT, SHORT)), begin, "").await;
}

#[tokio::test]
async fn idleness() {
    let begin = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    is_closed(only(|deadlines| (deadlines.first_byte, deadlines.idle) = (SHORT, SHORT)), begin, "").await;
}

/// A browser's connections and a pool's are idle for long, and are not in a head meanwhile.
#[tokio::test]
async fn an_idle_connection_is_kept() {
    let address = serve(only(|deadlines| (deadlines.first_byte, deadlines.head) = (ENOUGH, ENOUGH))).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        sleep(ENOUGH + SHORT).await;
        let mut rest = [0; 4096];
        let _ = stream.try_read(&mut rest);
    }
}

/// A waiter says nothing for a long time, and that is as it should be.
#[tokio::test]
async fn a_waiter_is_not_late() {
    let options = only(|deadlines| {
        *deadlines = Deadlines { first_byte: ENOUGH, head: ENOUGH, body: ENOUGH, ..*deadlines }
    });
    let address = serve(options).await;
    let (holder, waiter) = (id(), id());
    let took = crate::kit::ask(address, "POST", "/v1/a/acquire", &[], &acquire("n", &holder)).await;
    assert!(took.body.contains("granted"), "{took:?}");
    let body = format!(r#"{{"name":"n","claim":"{waiter}","wait_ms":60000}}"#);
    let waiting =
        tokio::spawn(async move { crate::kit::ask(address, "POST", "/v1/a/acquire", &[], &body).await });
    sleep(ENOUGH + SHORT).await;
    let body = format!(r#"{{"claims":[{{"name":"n","claim":"{holder}"}}]}}"#);
    crate::kit::ask(address, "POST", "/v1/a/release", &[], &body).await;
    let granted = timeout(SOON, waiting).await.unwrap().unwrap();
    assert!(granted.body.contains(r#""outcome":"granted""#), "{granted:?}");
}

#[tokio::test]
async fn an_answer_that_nobody_reads() {
    let address = serve(only(|deadlines| deadlines.write = SHORT)).await;
    let metadata = "m".repeat(2000);
    for lock in 0..300 {
        let body = serde_json::json!({
            "name": format!("lock-{lock}"), "claim": id(), "ttl_ms": 60_000, "metadata": {"m": metadata}
        });
        crate::kit::ask(address, "POST", "/v1/a/acquire", &[], &body.to_string()).await;
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Sixty answers of more than half a megabyte do not fit into the sockets of both sides.
    let question = "GET /v1/a/locks HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(60);
    stream.write_all(question.as_bytes()).await.unwrap();
    sleep(SHORT * 5).await;
    let mut all = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut all)).await.expect("the server has closed");
    assert!(read.is_err() || all.len() < 60 * 600_000, "{} bytes", all.len());
    is_well(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_who_are_silent_disturb_nobody() {
    let address = serve(only(|deadlines| (deadlines.first_byte, deadlines.head) = (ENOUGH, ENOUGH))).await;
    let mut silent = Vec::new();
    for number in 0..500 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"POST /v1/a/acq").await.unwrap();
        }
        silent.push(stream);
    }
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < SHORT * 3 {
        let asked = Instant::now();
        is_well(address).await;
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    for mut stream in silent {
        let mut all = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut all)).await.expect("closed");
    }
    let answer = crate::kit::raw(address, request("GET", "/healthz", &[], "")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
