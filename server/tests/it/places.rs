//! Places in the queue, by the bare protocol: who keeps one for how long.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use windlass_server::{Limits, ServerOptions};

use crate::kit::{SOON, ask, id, serve};

/// Longer than a place stays that is not to be kept.
const AWAY: Duration = Duration::from_secs(3);

/// Asks for the lock `n`, and gives what the answer says.
async fn acquire(address: SocketAddr, claim: &str, more: Value) -> Value {
    let mut question = json!({ "name": "n", "claim": claim });
    question.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(address, "acquire", question).await
}

async fn post(address: SocketAddr, path: &str, question: Value) -> Value {
    let (path, question) = (format!("/v1/a/{path}"), question.to_string());
    let answer = timeout(SOON, ask(address, "POST", &path, &[], &question)).await.expect("an answer");
    serde_json::from_str(&answer.body).unwrap()
}

async fn release(address: SocketAddr, claim: &str) {
    post(address, "release", json!({ "claims": [{ "name": "n", "claim": claim }] })).await;
}

/// A server on which the lock is held.
async fn held(options: ServerOptions) -> (SocketAddr, String) {
    let (address, holder) = (serve(options).await, id());
    assert_eq!(acquire(address, &holder, json!({ "ttl_ms": 60_000 })).await["outcome"], "granted");
    (address, holder)
}

#[tokio::test]
async fn a_place_is_kept_for_as_long_as_was_told() {
    let (address, holder) = held(ServerOptions::default()).await;
    let (kept, forgotten) = (id(), id());
    let waiting = acquire(address, &forgotten, json!({ "wait_ms": 0 })).await;
    assert_eq!((&waiting["outcome"], &waiting["place"]), (&json!("waiting"), &json!(1)));
    let waiting = acquire(address, &kept, json!({ "wait_ms": 0, "keep_ms": 60_000 })).await;
    assert_eq!(waiting["place"], 2);
    sleep(AWAY).await;
    let again = acquire(address, &kept, json!({ "wait_ms": 0 })).await;
    assert_eq!(again["place"], 1, "the one before has left, and this one has not: {again}");
    // It said nothing of keeping this time.
    sleep(AWAY).await;
    assert_eq!(acquire(address, &id(), json!({ "wait_ms": 0 })).await["place"], 1);
    release(address, &holder).await;
}

#[tokio::test]
async fn a_request_that_ends_late_takes_no_place_from_the_next() {
    let (address, holder) = held(ServerOptions::default()).await;
    let claim = id();
    let earlier = acquire(address, &claim, json!({ "wait_ms": 500 }));
    let later = async {
        let later = acquire(address, &claim, json!({}));
        let released = async {
            sleep(AWAY + Duration::from_millis(500)).await;
            release(address, &holder).await;
        };
        tokio::join!(later, released).0
    };
    let (earlier, later) = tokio::join!(earlier, later);
    assert_eq!((&earlier["outcome"], &later["outcome"]), (&json!("waiting"), &json!("granted")), "{later}");
}

#[tokio::test]
async fn a_turn_is_taken_up_by_its_renewal() {
    let (address, holder) = held(ServerOptions::default()).await;
    let claim = id();
    acquire(address, &claim, json!({ "wait_ms": 0, "keep_ms": 3_000 })).await;
    release(address, &holder).await;
    let renew = || post(address, "renew", json!({ "claims": [{ "name": "n", "claim": claim }] }));
    assert_eq!(renew().await["claims"][0]["state"], "held");
    sleep(AWAY + Duration::from_millis(500)).await;
    assert_eq!(renew().await["claims"][0]["state"], "held");
}

#[tokio::test]
async fn places_count_as_waiters_until_they_are_released() {
    let limits = Limits { waiters_each: 1, ..Limits::default() };
    let (address, _holder) = held(ServerOptions { limits, ..ServerOptions::default() }).await;
    let kept = id();
    acquire(address, &kept, json!({ "wait_ms": 0, "keep_ms": 60_000 })).await;
    sleep(AWAY).await;
    let refused = acquire(address, &id(), json!({ "wait_ms": 0 })).await;
    assert_eq!(refused["status"], 429, "{refused}");
    release(address, &kept).await;
    assert_eq!(acquire(address, &id(), json!({ "wait_ms": 0 })).await["outcome"], "waiting");
}
