//! What the audit log says, and what it does not.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use windlass_server::{Audit, ServerOptions};

use crate::kit::{SOON, acquire, ask, ask_as, id, serve, tokens};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const BUILDER: &str = "token-of-a-builder-0001";
const OPERATOR: &str = "token-of-the-operator-1";

#[tokio::test]
async fn it_says_who_did_what_and_no_secret() {
    let log = Shared::default();
    let audit = Some(Audit::to(log.clone()).unwrap());
    let lines = "token-of-a-builder-0001 builder acquire a/*\ntoken-of-the-operator-1 operator all */*\n";
    let address = serve(ServerOptions { audit, ..tokens(lines) }).await;
    let [released, forced, expired] = [id(), id(), id()];
    let with_owner =
        |name: &str, id: &str| acquire(name, id).replace('{', r#"{"owner":"ann","ttl_ms":1000,"#);
    ask_as(address, BUILDER, "/v1/a/acquire", &with_owner("n\nm", &released)).await;
    let release = serde_json::json!({ "claims": [{ "name": "n\nm", "claim": released }] }).to_string();
    ask_as(address, BUILDER, "/v1/a/release", &release).await;
    ask_as(address, BUILDER, "/v1/a/acquire", &with_owner("forced", &forced)).await;
    ask_as(address, OPERATOR, "/v1/a/force-release", r#"{"name":"forced"}"#).await;
    let renew = format!(r#"{{"claims":[{{"name":"forced","claim":"{forced}"}}]}}"#);
    ask_as(address, BUILDER, "/v1/a/renew", &renew).await;
    ask_as(address, BUILDER, "/v1/a/acquire", &with_owner("expired", &expired)).await;
    ask_as(address, BUILDER, "/v1/b/acquire", &acquire("n", &id())).await;
    let steal = acquire("n", &id()).replace(r#""try""#, r#""steal""#);
    ask_as(address, BUILDER, "/v1/a/together", &format!(r#"{{"questions":[{{"acquire":{steal}}}]}}"#)).await;
    ask(address, "GET", "/v1/a/locks", &[], "").await;
    let begun = Instant::now();
    let text = loop {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        if text.contains(r#""reason":"expired""#) {
            break text;
        }
        assert!(begun.elapsed() < SOON, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut seen: Vec<String> = text
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let word = |field: &str| line[field].as_str().map_or(line[field].to_string(), str::to_owned);
            assert!(line["at_ms"].is_u64());
            format!("{} {} {} {}", word("event"), word("reason"), word("who"), word("lock"))
        })
        .collect();
    seen.sort();
    let mut expected = [
        "granted null builder n\nm",
        "released null builder n\nm",
        "granted null builder forced",
        "force_released null operator forced",
        "lost force_released builder forced",
        "granted null builder expired",
        "lost expired builder expired",
        "refused 403 builder null",
        "refused 403 builder null",
        "refused 401 127.0.0.1 null",
    ]
    .map(str::to_owned);
    expected.sort();
    assert_eq!(seen, expected, "{text}");
    for secret in [&released, &forced, &expired, BUILDER, OPERATOR] {
        assert!(!text.contains(secret), "{text}");
    }
}
