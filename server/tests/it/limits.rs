//! Those who want everything: told so, and nobody else notices.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use windlass_server::{Limits, ServerOptions};

use crate::kit::{Answer, SOON, acquire, ask, ask_as, id, is_well, raw, request, serve, tokens};

const TOKENS: &str = "token-of-a-squatter-001 squatter all */*\ntoken-of-the-honest-001 honest all */*\n";
const SQUATTER: &str = "token-of-a-squatter-001";
const HONEST: &str = "token-of-the-honest-001";

#[tokio::test]
async fn a_squatter_gets_no_more_than_its_share() {
    let limits = Limits { claims_each: 50, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..tokens(TOKENS) }).await;
    let mut taken = Vec::new();
    for number in 0..60 {
        let claim = id();
        let answer =
            ask_as(address, SQUATTER, "/v1/a/acquire", &acquire(&format!("lock-{number}"), &claim)).await;
        match answer.status {
            200 => taken.push((number, claim)),
            429 => {
                assert!(!answer.field("retry-after").is_empty(), "{answer:?}");
                assert!(
                    answer.body.contains("50 claims") && answer.body.contains("release some"),
                    "{answer:?}"
                );
            }
            _ => panic!("{answer:?}"),
        }
    }
    assert_eq!(taken.len(), 50);
    assert_eq!(ask_as(address, HONEST, "/v1/a/acquire", &acquire("other", &id())).await.status, 200);
    // What is released can be had again.
    let (number, claim) = &taken[0];
    let release = format!(r#"{{"claims":[{{"name":"lock-{number}","claim":"{claim}"}}]}}"#);
    assert_eq!(ask_as(address, SQUATTER, "/v1/a/release", &release).await.status, 200);
    assert_eq!(ask_as(address, SQUATTER, "/v1/a/acquire", &acquire("again", &id())).await.status, 200);
}

#[tokio::test]
async fn claims_that_run_out_make_room() {
    let limits = Limits { claims_each: 1, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..ServerOptions::default() }).await;
    let short = acquire("n", &id()).replace('{', r#"{"ttl_ms":1000,"#);
    assert_eq!(ask(address, "POST", "/v1/a/acquire", &[], &short).await.status, 200);
    let begun = Instant::now();
    while ask(address, "POST", "/v1/a/acquire", &[], &acquire("m", &id())).await.status != 200 {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_queue_cannot_be_stuffed() {
    let limits = Limits { waiters_each: 20, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..tokens(TOKENS) }).await;
    let holder = id();
    ask_as(address, HONEST, "/v1/a/acquire", &acquire("n", &holder)).await;
    let queue = |wait: u64| {
        acquire("n", &id()).replace(r#""try""#, r#""queue""#).replace('{', &format!(r#"{{"wait_ms":{wait},"#))
    };
    let mut waiting = 0;
    for _ in 0..40 {
        let answer = ask_as(address, SQUATTER, "/v1/a/acquire", &queue(0)).await;
        match answer.status {
            200 => waiting += 1,
            429 => assert!(answer.body.contains("waiting claims"), "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
    }
    assert_eq!(waiting, 20);
    // Those who were refused have left no place behind, and the squatters' places run out.
    let body = queue(60_000);
    let honest = tokio::spawn(async move { ask_as(address, HONEST, "/v1/a/acquire", &body).await });
    let release = format!(r#"{{"claims":[{{"name":"n","claim":"{holder}"}}]}}"#);
    ask_as(address, HONEST, "/v1/a/release", &release).await;
    let granted = tokio::time::timeout(SOON, honest).await.unwrap().unwrap();
    assert!(granted.body.contains("granted"), "{granted:?}");
}

#[tokio::test]
async fn all_together_have_limits_too() {
    let limits = Limits { claims: 3, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..tokens(TOKENS) }).await;
    let mut statuses = Vec::new();
    for token in [SQUATTER, SQUATTER, HONEST, HONEST] {
        statuses.push(ask_as(address, token, "/v1/a/acquire", &acquire(&id(), &id())).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 503]);
}

#[tokio::test]
async fn what_one_question_may_have() {
    let limits = Limits { ttl: Duration::from_secs(30), claims_at_once: 2, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..ServerOptions::default() }).await;
    let with = |more: &str| acquire("n", &id()).replace('{', &format!("{{{more}"));
    let large = format!(r#""owner":"{}","#, "o".repeat(4000));
    for body in [with(r#""ttl_ms":60000,"#), with(r#""keep_ms":30001,"#), with(&large)] {
        let answer = ask(address, "POST", "/v1/a/acquire", &[], &body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    let claims: Vec<_> =
        (0..3).map(|n| serde_json::json!({ "name": format!("{n}"), "claim": id() })).collect();
    let body = serde_json::json!({ "claims": claims }).to_string();
    assert_eq!(ask(address, "POST", "/v1/a/acquire-all", &[], &body).await.status, 400);
}

#[tokio::test]
async fn names_of_namespaces_cannot_be_made_up_for_ever() {
    let limits = Limits { namespaces: 3, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..ServerOptions::default() }).await;
    for number in 0..5 {
        let answer =
            ask(address, "POST", &format!("/v1/space-{number}/acquire"), &[], &acquire("n", &id())).await;
        assert_eq!(answer.status, if number < 3 { 200 } else { 503 }, "{answer:?}");
    }
    let answer = ask(address, "POST", "/v1/space-0/acquire", &[], &acquire("m", &id())).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn connections_are_counted() {
    let limits = Limits { connections_each: 3, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..ServerOptions::default() }).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    let refused = Answer::of(&raw(address, "").await).expect("an answer before a word is read");
    assert_eq!((refused.status, refused.field("retry-after")), (503, "2"));
    open.pop();
    let begun = Instant::now();
    loop {
        let text = raw(address, request("GET", "/healthz", &[], "")).await;
        if text.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(begun.elapsed() < SOON, "{text}");
    }
    drop(open);
    is_well(address).await;
}
