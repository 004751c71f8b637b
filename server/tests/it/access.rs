//! Who may do what: every route, with every kind of token.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use windlass_server::{
    Access, ServerOptions,
    token::{Claims, JwtKey, JwtKeys, Right, Scope, mint},
};

use crate::kit::{Answer, SOON, acquire, ask, ask_as, id, serve, serve_file, tokens};

const TOKENS: &str = "\
    token-of-the-operator-1 operator all */*\n\
    token-of-a-builder-0001 builder acquire team-a/deploy/* claims=2 ttl=10s\n\
    token-of-a-reader-00001 reader shared team-a/*\n\
    token-of-a-viewer-00001 viewer see team-a/deploy/*\n";
const OPERATOR: &str = "token-of-the-operator-1";
const BUILDER: &str = "token-of-a-builder-0001";
const READER: &str = "token-of-a-reader-00001";
const VIEWER: &str = "token-of-a-viewer-00001";
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Each route with a question about this lock.
fn routes(name: &str) -> Vec<(&'static str, &'static str, String)> {
    let claim = serde_json::json!({ "name": name, "claim": id() });
    let claims = format!(r#"{{"claims":[{claim}],"entry":"try"}}"#);
    let change = serde_json::json!({ "name": name, "claim": id(), "to": "shared" }).to_string();
    let force = serde_json::json!({ "name": name }).to_string();
    vec![
        ("POST", "/v1/team-a/acquire", acquire(name, &id())),
        ("POST", "/v1/team-a/acquire-all", claims.clone()),
        ("POST", "/v1/team-a/renew", claims.clone()),
        ("POST", "/v1/team-a/release", claims),
        ("POST", "/v1/team-a/change", change),
        ("POST", "/v1/team-a/force-release", force),
        ("GET", "/v1/team-a/locks", String::new()),
        ("GET", "/v1/team-a/events", String::new()),
        ("GET", "/v1", String::new()),
        ("POST", "/acquire", String::new()),
        ("POST", "/client/locker/acquire", String::new()),
        ("GET", "/nothing", String::new()),
    ]
}

#[tokio::test]
async fn nothing_without_a_good_token() {
    let address = serve(tokens(TOKENS)).await;
    for (method, path, body) in routes("deploy/web") {
        let answer = ask(address, method, path, &[], &body).await;
        assert_eq!(
            (answer.status, answer.field("www-authenticate")),
            (401, r#"Bearer realm="windlass""#),
            "{path}"
        );
        for bad in ["Bearer token-of-a-stranger-01", "Bearer ", "Bearer a.b.c", "Basic eDp5"] {
            let answer = ask(address, method, path, &[("Authorization", bad)], &body).await;
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
            assert!(answer.field("www-authenticate").contains(r#"error="invalid_token""#), "{answer:?}");
            assert!(!answer.body.contains("stranger"), "{answer:?}");
        }
    }
    assert_eq!(ask(address, "GET", "/healthz", &[], "").await.status, 200);
    // Neither in a query nor in a cookie.
    let query = format!("/v1?access_token={OPERATOR}&token={OPERATOR}");
    let cookie = format!("token={OPERATOR}");
    assert_eq!(ask(address, "GET", &query, &[("Cookie", &cookie)], "").await.status, 401);
}

#[tokio::test]
async fn each_may_do_what_its_line_says() {
    let address = serve(tokens(TOKENS)).await;
    let acquires = async |token, name: &str, more: &str| {
        let body = acquire(name, &id()).replace('{', &format!("{{{more}"));
        ask_as(address, token, "/v1/team-a/acquire", &body).await.status
    };
    assert_eq!(acquires(BUILDER, "deploy/web", "").await, 200);
    assert_eq!(acquires(BUILDER, "deployment", "").await, 403);
    assert_eq!(acquires(BUILDER, "deploy/x", r#""ttl_ms":20000,"#).await, 400);
    assert_eq!(acquires(BUILDER, "deploy/y", "").await, 200);
    assert_eq!(acquires(BUILDER, "deploy/z", "").await, 429);
    assert_eq!(acquires(READER, "shared", "").await, 403);
    assert_eq!(acquires(READER, "shared", r#""mode":"shared","#).await, 200);
    assert_eq!(acquires(VIEWER, "deploy/web", r#""mode":"shared","#).await, 403);
    // To steal is to take by force.
    let steal = acquire("deploy/web", &id()).replace(r#""try""#, r#""steal""#);
    assert_eq!(ask_as(address, BUILDER, "/v1/team-a/acquire", &steal).await.status, 403);
    assert_eq!(ask_as(address, OPERATOR, "/v1/team-a/acquire", &steal).await.status, 200);
    for token in [BUILDER, READER] {
        assert_eq!(ask_as(address, token, "/v1/team-a/locks", "").await.status, 403);
    }
    assert_eq!(ask_as(address, BUILDER, "/v1/team-b/release", r#"{"claims":[]}"#).await.status, 403);
    // A namespace that nobody may use is not made either.
    let seen = ask_as(address, OPERATOR, "/v1", "").await.body;
    assert_eq!(seen, r#"{"namespaces":["team-a"]}"#);
    let locks = ask_as(address, VIEWER, "/v1/team-a/locks", "").await.body;
    assert!(locks.contains("deploy/web") && !locks.contains(r#""name":"shared""#), "{locks}");
    // The protocols without rights are for those who have all of them.
    assert_eq!(ask_as(address, BUILDER, "/team-a/locker/acquire", "{}").await.status, 403);
    assert_eq!(ask_as(address, BUILDER, "/acquire", "{}").await.status, 403);
    assert_ne!(ask_as(address, OPERATOR, "/acquire", "{}").await.status, 403);
}

/// Words and time are the same whether a lock is there or not.
#[tokio::test]
async fn a_refusal_says_nothing_about_what_is_there() {
    let address = serve(tokens(TOKENS)).await;
    ask_as(address, OPERATOR, "/v1/team-a/acquire", &acquire("secret/there", &id())).await;
    let mut times = [Vec::new(), Vec::new()];
    let mut answers = Vec::new();
    for _ in 0..200 {
        for (place, name) in ["secret/there", "secret/never"].into_iter().enumerate() {
            let begun = Instant::now();
            let mut answer = ask_as(address, BUILDER, "/v1/team-a/acquire", &acquire(name, &id())).await;
            times[place].push(begun.elapsed());
            answer.fields.remove("date");
            answers.push(format!("{answer:?}"));
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let [there, never] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    });
    // Generous: other tests run beside this one. That nothing is asked of the locks is what keeps it so.
    assert!((there / never - 1.0).abs() < 0.5, "{there} s and {never} s");
}

#[tokio::test]
async fn who_waits_without_the_right_to_see_is_not_told_for_whom() {
    let address = serve(tokens(TOKENS)).await;
    let held = acquire("deploy/web", &id()).replace('{', r#"{"owner":"ann@build-7","#);
    ask_as(address, OPERATOR, "/v1/team-a/acquire", &held).await;
    let asks =
        acquire("deploy/web", &id()).replace(r#""try""#, r#""queue""#).replace('{', r#"{"wait_ms":0,"#);
    let told = ask_as(address, OPERATOR, "/v1/team-a/acquire", &asks).await.body;
    assert!(told.contains("ann@build-7"), "{told}");
    let told = ask_as(address, BUILDER, "/v1/team-a/acquire", &asks).await.body;
    assert!(told.contains("waiting") && !told.contains("ann@build-7"), "{told}");
}

fn jwt() -> ServerOptions {
    let jwt = Some(JwtKeys::new([JwtKey::of_secret(SECRET).unwrap()], JwtKeys::AUDIENCE));
    ServerOptions { access: Access { tokens: None, jwt }, ..ServerOptions::default() }
}

fn minted(change: impl FnOnce(&mut Claims)) -> String {
    let mut claims = Claims::new("app", Duration::from_secs(60));
    claims.locks = vec![Scope { names: "team-a/*".to_owned(), rights: vec![Right::Acquire] }];
    change(&mut claims);
    mint(&JwtKey::of_secret(SECRET).unwrap(), &claims).unwrap()
}

#[tokio::test]
async fn what_a_signed_token_says_is_what_it_may() {
    let address = serve(jwt()).await;
    let answer = async |token: &str, space: &str| -> Answer {
        ask_as(address, token, &format!("/v1/{space}/acquire"), &acquire(&id(), &id())).await
    };
    let good = minted(|claims| claims.most_claims = Some(1));
    assert_eq!(answer(&good, "team-a").await.status, 200);
    assert_eq!(answer(&good, "team-a").await.status, 429);
    assert_eq!(answer(&good, "team-b").await.status, 403);
    for bad in [
        minted(|claims| claims.exp -= 120),
        minted(|claims| claims.nbf = Some(claims.exp)),
        minted(|claims| claims.aud = "elsewhere".to_owned()),
        format!("{good}x"),
        good.rsplit_once('.').unwrap().0.to_owned() + ".",
    ] {
        assert_eq!(answer(&bad, "team-a").await.status, 401, "{bad}");
    }
}

/// A lock dies with its token, a TTL later at the most.
#[tokio::test]
async fn a_token_that_expires_while_its_renewal_is_parked_renews_nothing() {
    let address = serve(jwt()).await;
    // With the leeway of 30 s it is good for two more.
    let token = minted(|claims| claims.exp -= 60 + 28);
    let claim = id();
    let taken = ask_as(address, &token, "/v1/team-a/acquire", &acquire("n", &claim)).await;
    assert_eq!(taken.status, 200, "{taken:?}");
    let renew = format!(r#"{{"claims":[{{"name":"n","claim":"{claim}"}}],"park_ms":4000}}"#);
    let renewed = ask_as(address, &token, "/v1/team-a/renew", &renew).await;
    assert_eq!(renewed.status, 401, "{renewed:?}");
    assert!(renewed.field("www-authenticate").contains("expired"), "{renewed:?}");
    assert_eq!(ask_as(address, &token, "/v1/team-a/renew", &renew).await.status, 401);
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_is_good_for_nothing() {
    let (address, file) = serve_file(TOKENS, |_| {}).await;
    assert_eq!(ask_as(address, OPERATOR, "/v1", "").await.status, 200);
    std::fs::write(&file, "token-of-somebody-else-1 other all */*\n").unwrap();
    let begun = Instant::now();
    while ask_as(address, OPERATOR, "/v1", "").await.status != 401 {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A lock dies with its token, a TTL later at the most, and so does what its holder was about to hear.
#[tokio::test]
async fn what_began_with_a_token_ends_with_it_and_nobody_elses_does() {
    let (address, file) = serve_file(TOKENS, |_| {}).await;
    let (theirs, ours) = (id(), id());
    let long = |claim: &str| acquire(claim, claim).replace('{', r#"{"ttl_ms":6000,"#);
    for (token, claim) in [(BUILDER, &theirs), (OPERATOR, &ours)] {
        let body =
            long(claim).replace(&format!(r#""name":"{claim}""#), &format!(r#""name":"deploy/{claim}""#));
        assert_eq!(ask_as(address, token, "/v1/team-a/acquire", &body).await.status, 200);
    }
    let parks = |token: &'static str, claim: &str| {
        let body = format!(r#"{{"claims":[{{"name":"deploy/{claim}","claim":"{claim}"}}],"park_ms":4000}}"#);
        tokio::spawn(async move { ask_as(address, token, "/v1/team-a/renew", &body).await })
    };
    let (their_parked, our_parked) = (parks(BUILDER, &theirs), parks(OPERATOR, &ours));
    let their_events = tokio::spawn(async move { ask_as(address, VIEWER, "/v1/team-a/events", "").await });
    let our_events = tokio::spawn(async move { ask_as(address, OPERATOR, "/v1/team-a/events", "").await });
    let waits = format!(r#"{{"name":"deploy/{ours}","claim":"{}"}}"#, id());
    let waits = tokio::spawn(async move { ask_as(address, BUILDER, "/v1/team-a/acquire", &waits).await });
    let line = format!("/v1/team-a/locks?prefix=deploy/{ours}");
    until(async || ask_as(address, OPERATOR, &line, "").await.body.contains(r#""waited_for_ms":"#)).await;
    // Only the operator stays.
    std::fs::write(&file, TOKENS.lines().next().unwrap()).unwrap();
    let their_parked = timeout(SOON, their_parked).await.unwrap().unwrap();
    assert_eq!(their_parked.status, 401, "{their_parked:?}");
    let our_parked = timeout(SOON, our_parked).await.unwrap().unwrap();
    assert!(our_parked.body.contains(r#""state":"held""#), "{our_parked:?}");
    // Not renewed, so it is over within its TTL, which is a change that the stream would have shown.
    until(async || !ask_as(address, OPERATOR, "/v1/team-a/locks", "").await.body.contains(&theirs)).await;
    let seen = timeout(SOON, their_events).await.expect("the stream ends").unwrap();
    assert!(seen.body.contains("event: lock"), "{seen:?}");
    assert!(!our_events.is_finished());
    // Whoever waited is granted nothing any more, and keeps it from nobody.
    let release = format!(r#"{{"claims":[{{"name":"deploy/{ours}","claim":"{ours}"}}]}}"#);
    assert_eq!(ask_as(address, OPERATOR, "/v1/team-a/release", &release).await.status, 200);
    assert_eq!(timeout(SOON, waits).await.unwrap().unwrap().status, 401);
    until(async || ask_as(address, OPERATOR, &line, "").await.body.contains(r#""locks":[]"#)).await;
}

/// Waits until it is so.
async fn until(so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
