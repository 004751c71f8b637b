//! What is no request: refused and closed, and nobody else notices.

use windlass_server::ServerOptions;

use crate::kit::{Answer, acquire, ask, id, is_well, raw, request, serve};

/// Sends it, and looks that the first answer is one of these and the connection closed without another.
async fn refused(bytes: impl AsRef<[u8]>, expected: &[u16]) {
    let address = serve(ServerOptions::default()).await;
    let shown = String::from_utf8_lossy(&bytes.as_ref()[..bytes.as_ref().len().min(200)]).into_owned();
    let text = raw(address, bytes).await;
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {text}");
    let status = Answer::of(&text).unwrap().status;
    assert!(expected.contains(&status), "{shown:?}: {text}");
    is_well(address).await;
}

const SMUGGLED: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn two_lengths_smuggle_nothing() {
    let head = "POST /v1/a/release HTTP/1.1\r\nHost: localhost\r\n";
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: \tchunked\r\nTransfer-Encoding: x\r\n",
    ] {
        refused(format!("{head}{fields}\r\n0\r\n\r\n{SMUGGLED}"), &[400, 411]).await;
    }
    for fields in [
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 4, 5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x4\r\n",
        "Content-Length: 99999999999999999999\r\n",
    ] {
        refused(format!("{head}{fields}\r\n{{}}  {SMUGGLED}"), &[400]).await;
    }
}

#[tokio::test]
async fn heads_are_read_strictly() {
    for text in [
        "GET /healthz HTTP/1.1\nHost: localhost\n\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\0: b\r\n\r\n",
        "GET /heal\0thz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        refused(text, &[400, 505]).await;
    }
}

/// A connection speaks one protocol: what a proxy lets through as an upgrade would not be looked at by it any more.
#[tokio::test]
async fn nothing_is_upgraded() {
    let address = serve(ServerOptions::default()).await;
    for (method, target, fields) in [
        (
            "GET",
            "/v1",
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings, close\r\n",
        ),
        (
            "GET",
            "/v1",
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nConnection: upgrade, close\r\n",
        ),
        ("POST", "/v1/a/acquire", "Upgrade: TLS/1.0\r\nConnection: Upgrade, close\r\nContent-Length: 0\r\n"),
        ("CONNECT", "localhost:22", "Connection: close\r\n"),
        ("TRACE", "/v1", "Connection: close\r\n"),
        ("OPTIONS", "*", "Connection: close\r\n"),
    ] {
        let text =
            raw(address, format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")).await;
        let answer = Answer::of(&text).unwrap();
        let plain =
            if (method, target) == ("GET", "/v1") { answer.status == 200 } else { answer.status >= 400 };
        assert!(plain && answer.field("upgrade").is_empty(), "{method} {target}: {answer:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    }
    is_well(address).await;
}

#[tokio::test]
async fn heads_have_limits() {
    let long = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    refused(long, &[431]).await;
    let many = "X: a\r\n".repeat(100);
    refused(format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"), &[431]).await;
    refused(format!("GET /{} HTTP/1.1\r\n", "a".repeat(1 << 20)), &[414, 431]).await;
}

#[tokio::test]
async fn bodies_have_limits() {
    let head = "POST /v1/a/release HTTP/1.1\r\nHost: localhost\r\n";
    // Said to be a GiB: refused before any of it is sent.
    refused(format!("{head}Content-Length: 1073741824\r\n\r\n"), &[413]).await;
    refused(request("POST", "/v1/a/release", &[], &" ".repeat(300 * 1024)), &[413]).await;
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused() {
    let address = serve(ServerOptions::default()).await;
    let claim = id();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_in_a_field = format!(r#"{{"name":"n","claim":"{claim}","more":{deep}}}"#);
    let too_long = acquire(&"n".repeat(1025), &claim);
    let empty = acquire("", &claim);
    let no_id = acquire("n", "0123");
    let broken = r#"{"name": "n", "claim": "#;
    let half = format!(r#"{{"name":"\ud800","claim":"{claim}"}}"#);
    for body in [&deep, &deep_in_a_field, &too_long, &empty, &no_id, broken, &half, "null", "[]", "\0", " "] {
        let answer = ask(address, "POST", "/v1/a/acquire", &[], body).await;
        assert_eq!(answer.status, 400, "{}: {answer:?}", &body[..body.len().min(60)]);
        assert!(answer.field("content-type").starts_with("application/problem+json"), "{answer:?}");
        assert!(!answer.body.contains(&claim), "{answer:?}");
    }
    let head =
        "POST /v1/a/acquire HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 12\r\n\r\n";
    let mut not_text = head.as_bytes().to_vec();
    not_text.extend(b"{\"name\":\"\xff\"}");
    assert_eq!(Answer::of(&raw(address, not_text).await).unwrap().status, 400);
    for path in ["/v1/%00/acquire", "/v1/../acquire", "/v1/a%2fb/acquire", "/v1/%ff/acquire", "/v1//acquire"]
    {
        let answer = ask(address, "POST", path, &[], &acquire("n", &id())).await;
        assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    // Odd, but a name: of 1,024 bytes, with NUL and line breaks.
    for name in ["\0", "\r\n\r\nGET / HTTP/1.1", "../../etc/passwd", &"\u{1f512}".repeat(256)] {
        let answer = ask(address, "POST", "/v1/a/acquire", &[], &acquire(name, &id())).await;
        assert!(answer.body.contains("granted"), "{name:?}: {answer:?}");
    }
    is_well(address).await;
}
