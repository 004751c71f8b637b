//! Pages of other sites: their readers' browsers reach loopback, and must get nothing done there.

use windlass_server::{Server, ServerOptions, Store};

use crate::kit::{Answer, SOON, acquire, ask, id, raw, serve};

const APP: &str = "https://app.example.com";

fn options() -> ServerOptions {
    ServerOptions { origins: vec![APP.to_owned()], ..ServerOptions::default() }
}

#[tokio::test]
async fn a_page_from_elsewhere_is_refused_before_its_body_is_read() {
    let address = serve(options()).await;
    // A form can send this, without asking first. The body never comes, and is not waited for.
    for path in ["/v1/a/acquire", "/acquire", "/release", "/v1/a/locks", "/nothing"] {
        let text = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
             Content-Type: text/plain\r\nContent-Length: 100\r\n\r\n"
        );
        let answer = Answer::of(&raw(address, text).await).unwrap();
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
        assert_eq!(answer.field("access-control-allow-origin"), "");
    }
    for origin in ["null", "http://localhost:1", "https://app.example.com.evil.example"] {
        let answer = ask(address, "GET", "/v1", &[("Origin", origin)], "").await;
        assert_eq!(answer.status, 403, "{origin}");
    }
}

#[tokio::test]
async fn a_name_that_was_made_to_point_here_is_refused() {
    let address = serve(options()).await;
    let evil = format!("evil.example:{}", address.port());
    for fields in [
        vec![("Host", evil.as_str())],
        vec![("Host", evil.as_str()), ("Origin", "http://evil.example")],
        vec![("Host", "localhost"), ("Host", evil.as_str())],
    ] {
        let answer = ask(address, "POST", "/v1/a/acquire", &fields, &acquire("n", &id())).await;
        assert!([400, 403].contains(&answer.status), "{answer:?}");
    }
    let absolute = format!("GET http://{evil}/v1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(Answer::of(&raw(address, absolute).await).unwrap().status, 403);
    for host in ["localhost:1", "127.0.0.1", "[::1]"] {
        assert_eq!(ask(address, "GET", "/v1", &[("Host", host)], "").await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn pages_that_are_allowed_may_ask() {
    let address = serve(options()).await;
    let asks = [("Origin", APP), ("Access-Control-Request-Method", "POST")];
    let answer = ask(address, "OPTIONS", "/v1/a/acquire", &asks, "").await;
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (204, APP));
    assert_eq!(answer.field("access-control-max-age"), "7200");
    assert_eq!(answer.field("access-control-allow-methods"), "GET, POST, DELETE");
    assert_eq!(answer.field("access-control-allow-headers"), "authorization, content-type");
    assert_eq!(answer.field("access-control-allow-credentials"), "");
    let answer = ask(address, "POST", "/v1/a/acquire", &[("Origin", APP)], &acquire("n", &id())).await;
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (200, APP));
    assert_eq!(answer.field("vary"), "origin");
    // The server's own page.
    let own = format!("http://{address}");
    let host = address.to_string();
    let answer = ask(address, "GET", "/v1", &[("Host", &host), ("Origin", &own)], "").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn strangers_reach_no_server_that_asks_nobody_who_they_are() {
    let listen = || async { tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap() };
    let server = Server::new(Store::in_memory());
    let served = tokio::time::timeout(SOON, server.serve(listen().await, std::future::pending())).await;
    let error = served.expect("it does not begin").unwrap_err();
    assert_eq!(error.kind(), windlass::ErrorKind::Denied);
    assert!(error.message().contains("tokens"), "{error}");
    let told = ServerOptions { allow_anonymous: true, ..ServerOptions::default() };
    let server = Server::with_options(Store::in_memory(), told).unwrap();
    server.serve(listen().await, std::future::ready(())).await.unwrap();
}
