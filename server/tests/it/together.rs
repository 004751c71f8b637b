//! Questions that are asked together: each is what it is by itself.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use windlass_server::{Limits, ServerOptions};

use crate::kit::{Answer, SOON, ask, ask_as, id, serve, serve_file, tokens};

const BUILDER: &str = "token-of-a-builder-0001";
const OPERATOR: &str = "token-of-the-operator-1";
const TOKENS: &str = "\
    token-of-a-builder-0001 builder acquire a/deploy/*\n\
    token-of-the-operator-1 operator all */*\n";

fn acquire(name: &str, claim: &str) -> Value {
    json!({ "acquire": { "name": name, "claim": claim, "wait_ms": 60_000 } })
}

async fn post(address: SocketAddr, path: &str, question: Value) -> Value {
    let (path, question) = (format!("/v1/a/{path}"), question.to_string());
    let answer = timeout(SOON, ask(address, "POST", &path, &[], &question)).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

async fn take(address: SocketAddr, name: &str) -> String {
    let claim = id();
    let taken = post(address, "acquire", json!({ "name": name, "claim": claim, "ttl_ms": 60_000 })).await;
    assert_eq!(taken["outcome"], "granted");
    claim
}

async fn release(address: SocketAddr, name: &str, claim: &str) {
    post(address, "release", json!({ "claims": [{ "name": name, "claim": claim }] })).await;
}

/// The answers, in a task of its own.
fn together(address: SocketAddr, client: &str, questions: &[Value]) -> JoinHandle<Value> {
    let question = json!({ "client": client, "questions": questions });
    tokio::spawn(async move { post(address, "together", question).await["answers"].clone() })
}

/// Until so many wait for it.
async fn waiters(address: SocketAddr, name: &str, count: usize) {
    let look = async {
        loop {
            let answer = ask(address, "GET", &format!("/v1/a/locks?prefix={name}"), &[], "").await;
            let seen: Value = serde_json::from_str(&answer.body).unwrap();
            if seen["locks"][0]["waiters"].as_array().map_or(0, Vec::len) == count {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, look).await.expect("so many wait");
}

#[tokio::test]
async fn without_a_wait_each_has_its_answer() {
    let address = serve(ServerOptions::default()).await;
    let (held, mine) = (take(address, "taken").await, take(address, "mine").await);
    let [free, one, other] = [id(), id(), id()];
    let several = json!([{ "name": "b", "claim": one }, { "name": "a", "claim": other }]);
    let questions = json!([
        acquire("free", &free),
        acquire("taken", &id()),
        { "acquire-all": { "claims": several } },
        { "change": { "name": "mine", "claim": mine, "to": "shared" } },
        { "renew": { "claims": [{ "name": "taken", "claim": held }] } },
        { "change": { "name": "nobody's", "claim": id(), "to": "shared" } },
    ]);
    let answers = post(address, "together", json!({ "wait_ms": 0, "questions": questions })).await;
    let answer = |at: usize| &answers["answers"][at];
    assert_eq!(answer(0)["acquire"]["outcome"], "granted");
    assert_eq!(
        (&answer(1)["acquire"]["outcome"], &answer(1)["acquire"]["place"]),
        (&json!("waiting"), &json!(1))
    );
    assert_eq!(answer(2)["acquire-all"]["grant"].as_array().unwrap().len(), 2);
    assert_eq!(answer(3)["change"]["grant"]["mode"], "shared");
    assert_eq!(answer(4)["renew"]["claims"][0]["state"], "held");
    assert_eq!(
        (&answer(5)["problem"]["status"], &answer(5)["problem"]["kind"]),
        (&json!(409), &json!("not_held"))
    );
    assert_eq!(post(address, "together", json!({ "questions": [] })).await, json!({ "answers": [] }));
}

#[tokio::test]
async fn the_first_answer_is_told_and_the_others_keep_their_places() {
    let address = serve(ServerOptions::default()).await;
    let (one, other) = (take(address, "one").await, take(address, "other").await);
    let [first, second, behind] = [id(), id(), id()];
    let questions = [acquire("one", &first), acquire("other", &second)];
    let asked = together(address, &id(), &questions);
    waiters(address, "other", 1).await;
    let later = tokio::spawn(post(address, "acquire", json!({ "name": "other", "claim": behind })));
    waiters(address, "other", 2).await;
    release(address, "one", &one).await;
    let answers = timeout(SOON, asked).await.unwrap().unwrap();
    assert_eq!((&answers[0]["acquire"]["outcome"], &answers[1]), (&json!("granted"), &Value::Null));
    // The other one's turn comes while nobody asks for it, and is found.
    release(address, "other", &other).await;
    let answers = timeout(SOON, together(address, &id(), &questions)).await.unwrap().unwrap();
    assert_eq!(answers[0]["acquire"]["outcome"], "granted");
    assert_eq!(answers[1]["acquire"]["outcome"], "granted");
    assert!(!later.is_finished());
    release(address, "other", &second).await;
    assert_eq!(timeout(SOON, later).await.unwrap().unwrap()["outcome"], "granted");
}

#[tokio::test]
async fn a_client_that_asks_anew_has_its_answer_and_goes_on_there() {
    let address = serve(ServerOptions::default()).await;
    let (one, other) = (take(address, "one").await, take(address, "other").await);
    let [client, first, second] = [id(), id(), id()];
    let earlier = together(address, &client, &[acquire("one", &first)]);
    waiters(address, "one", 1).await;
    // Others, and what is not held open, are none of its concern.
    let _stranger = together(address, &id(), &[acquire("one", &id())]);
    waiters(address, "one", 2).await;
    let at_once = json!({ "client": client, "wait_ms": 0, "questions": [acquire("other", &second)] });
    post(address, "together", at_once).await;
    sleep(Duration::from_millis(100)).await;
    assert!(!earlier.is_finished());
    let later = together(address, &client, &[acquire("one", &first), acquire("other", &second)]);
    assert_eq!(timeout(SOON, earlier).await.unwrap().unwrap(), json!([null]));
    // Longer than a place is kept that nobody speaks for.
    sleep(Duration::from_secs(3)).await;
    assert!(!later.is_finished());
    release(address, "one", &one).await;
    let answers = timeout(SOON, later).await.unwrap().unwrap();
    assert_eq!(answers[0]["acquire"]["outcome"], "granted", "it came first: {answers}");
    release(address, "other", &other).await;
}

#[tokio::test]
async fn renewals_that_are_parked_in_it_hear_news() {
    let address = serve(ServerOptions::default()).await;
    let [client, mine] = [id(), id()];
    let how = json!({ "name": "mine", "claim": mine, "client": client, "ttl_ms": 60_000 });
    assert_eq!(post(address, "acquire", how).await["outcome"], "granted");
    let holder = take(address, "taken").await;
    let renew = json!({ "renew": { "client": client, "claims": [{ "name": "mine", "claim": mine }] } });
    let asked = together(address, &client, &[acquire("taken", &id()), renew]);
    waiters(address, "taken", 1).await;
    let _contender = tokio::spawn(post(address, "acquire", json!({ "name": "mine", "claim": id() })));
    let answers = timeout(SOON, asked).await.unwrap().unwrap();
    assert_eq!(answers[0], Value::Null);
    let renewed = &answers[1]["renew"];
    assert_eq!(
        (&renewed["claims"][0]["state"], &renewed["news"][0]["happened"]),
        (&json!("held"), &json!("contended"))
    );
    release(address, "taken", &holder).await;
}

#[tokio::test]
async fn one_that_is_refused_is_refused_alone_and_seen() {
    let address = serve(tokens(TOKENS)).await;
    let questions = json!([acquire("deploy/a", &id()), acquire("elsewhere", &id())]);
    let question = json!({ "wait_ms": 0, "questions": questions }).to_string();
    let answer = ask_as(address, BUILDER, "/v1/a/together", &question).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answers: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answers["answers"][0]["acquire"]["outcome"], "granted");
    assert_eq!(answers["answers"][1]["problem"]["status"], 403);
    let numbers = ask_as(address, OPERATOR, "/metrics", "").await.body;
    assert!(numbers.contains(r#"windlass_refusals_total{kind="denied",status="403"} 1"#), "{numbers}");
    // Where it may do nothing it is not let in.
    let nothing = json!({ "questions": [] }).to_string();
    assert_eq!(ask_as(address, BUILDER, "/v1/b/together", &nothing).await.status, 403);
}

#[tokio::test]
async fn one_that_makes_no_sense_is_refused_with_all() {
    let address = serve(ServerOptions::default()).await;
    let all = |claims: Value| json!({ "acquire-all": { "claims": claims } });
    let claim = |name: &str| json!({ "name": name, "claim": id() });
    let senseless = [
        json!({ "acquire": { "name": "n", "claim": id(), "ttl_ms": 1 } }),
        json!({ "acquire": { "name": "n", "claim": id(), "keep_ms": 3_600_001 } }),
        json!({ "acquire": { "name": "n", "claim": "not an id" } }),
        json!({ "acquire-all": { "claims": [claim("n")], "ttl_ms": 3_600_001 } }),
        all(json!([])),
        all(json!([claim("n"), claim("n")])),
        json!({ "change": { "name": "n", "claim": id(), "to": "nothing" } }),
        json!({ "release": { "claims": [claim("n")] } }),
    ];
    for senseless in senseless {
        let questions = json!([acquire("free", &id()), senseless]);
        let question = json!({ "wait_ms": 0, "questions": questions }).to_string();
        let answer = ask(address, "POST", "/v1/a/together", &[], &question).await;
        let problem: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((answer.status, &problem["kind"]), (400, &json!("invalid_input")), "{question}");
    }
    let seen = ask(address, "GET", "/v1/a/locks", &[], "").await;
    assert_eq!(seen.body, r#"{"locks":[]}"#);
}

#[tokio::test]
async fn a_namespace_that_cannot_be_is_refused_whatever_is_asked() {
    let address = serve(ServerOptions::default()).await;
    let question = r#"{"wait_ms": 0, "questions": []}"#;
    let answer = ask(address, "POST", "/v1/null%2Cnull/together", &[], question).await;
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[tokio::test]
async fn a_token_that_is_over_is_said_to_be_so_for_all() {
    let (address, file) = serve_file(TOKENS, |_| {}).await;
    let claim = id();
    let how = json!({ "name": "deploy/a", "claim": claim, "ttl_ms": 60_000 }).to_string();
    assert_eq!(ask_as(address, OPERATOR, "/v1/a/acquire", &how).await.status, 200);
    let questions = json!([acquire("deploy/a", &id())]);
    let question = json!({ "questions": questions }).to_string();
    let asked: JoinHandle<Answer> =
        tokio::spawn(async move { ask_as(address, BUILDER, "/v1/a/together", &question).await });
    let see = || ask_as(address, OPERATOR, "/v1/a/locks", "");
    let waits = async { while !see().await.body.contains("waited_for_ms") {} };
    timeout(SOON, waits).await.unwrap();
    std::fs::write(&file, TOKENS.lines().last().unwrap()).unwrap();
    let forgotten = async { while ask_as(address, BUILDER, "/v1", "").await.status != 401 {} };
    timeout(SOON, forgotten).await.unwrap();
    let claims = json!({ "claims": [{ "name": "deploy/a", "claim": claim }] }).to_string();
    assert_eq!(ask_as(address, OPERATOR, "/v1/a/release", &claims).await.status, 200);
    let answer = timeout(SOON, asked).await.unwrap().unwrap();
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(!answer.field("www-authenticate").is_empty());
}

#[tokio::test]
async fn limits_count_each_of_them() {
    let limits = Limits { waiters_each: 1, ..Limits::default() };
    let address = serve(ServerOptions { limits, ..ServerOptions::default() }).await;
    let holder = take(address, "n").await;
    let questions = [acquire("n", &id()), acquire("n", &id())];
    let answers = post(address, "together", json!({ "wait_ms": 0, "questions": questions })).await;
    let outcomes: Vec<_> =
        (0..2).map(|at| answers["answers"][at]["acquire"]["outcome"] == "waiting").collect();
    assert_eq!(outcomes, [true, false], "{answers}");
    assert_eq!(answers["answers"][1]["problem"]["status"], 429, "{answers}");
    release(address, "n", &holder).await;
}
