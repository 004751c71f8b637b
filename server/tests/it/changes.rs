//! Changes of a mode that come in another order than they were asked for.

use std::net::SocketAddr;

use serde_json::{Value, json};
use windlass_server::ServerOptions;

use crate::kit::{Answer, ask, id, serve};

async fn post(address: SocketAddr, what: &str, question: Value) -> Answer {
    ask(address, "POST", &format!("/v1/a/{what}"), &[], &question.to_string()).await
}

/// What a client has given up may come after what it has asked for since.
#[tokio::test]
async fn one_that_comes_late_is_not_obeyed() {
    let address = serve(ServerOptions::default()).await;
    let (client, claim) = (id(), id());
    let asked = json!({ "client": client, "name": "lock", "claim": claim, "mode": "upgradable" });
    assert!(post(address, "acquire", asked).await.body.contains("granted"));
    let change = async |to: &str, number: u64| {
        let asked = json!({ "client": client, "name": "lock", "claim": claim, "to": to, "number": number });
        post(address, "change", asked).await
    };
    assert!(change("exclusive", 3).await.body.contains(r#""mode":"exclusive""#));
    let late = change("upgradable", 2).await;
    assert_eq!(late.status, 409, "{late:?}");
    assert!(late.body.contains("not_held") && late.body.contains("comes late"), "{late:?}");
    let reader = json!({ "name": "lock", "claim": id(), "mode": "shared", "entry": "try" });
    assert!(post(address, "acquire", reader).await.body.contains("busy"), "a reader beside a writer");
    assert!(change("exclusive", 3).await.body.contains(r#""mode":"exclusive""#), "once more");
    assert!(change("upgradable", 4).await.body.contains(r#""mode":"upgradable""#));
}
