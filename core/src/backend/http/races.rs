//! What only happens when answers come at the wrong moment: the transport is the test's.

use std::{collections::VecDeque, future::Future};

use futures_channel::oneshot;
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, poll_immediate},
};
use serde::Serialize;

use super::*;
use crate::{
    ask::Entry,
    rt::Native,
    transport::{Request, Response},
};

/// Requests, each with what answers it.
#[derive(Debug, Default)]
struct Wire(Mutex<VecDeque<(String, oneshot::Sender<Result<Response>>)>>);

impl Wire {
    fn next(&self) -> Option<(String, oneshot::Sender<Result<Response>>)> {
        self.0.lock().unwrap().pop_front()
    }
}

impl Transport for Wire {
    fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
        let (tell, answer) = oneshot::channel();
        let path = request.url.rsplit('/').next().unwrap().to_owned();
        self.0.lock().unwrap().push_back((path, tell));
        answer.map(|answer| answer.unwrap()).boxed()
    }

    fn stream(&self, _: Request) -> BoxFuture<'static, Result<Streamed>> {
        future::pending().boxed()
    }
}

/// Polls a question until it is sent, answers it, and gives what came of it.
async fn answered<T>(
    wire: &Wire,
    path: &str,
    mut question: impl Future<Output = T> + Unpin,
    answer: Result<Response>,
) -> T {
    assert!(poll_immediate(&mut question).await.is_none());
    let (asked, tell) = wire.next().expect("a request");
    assert_eq!(asked, path);
    tell.send(answer).unwrap();
    question.await
}

fn json(value: &impl Serialize) -> Result<Response> {
    Ok(Response { status: 200, retry_after: None, missing: None, body: serde_json::to_vec(value).unwrap() })
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "no answer")
}

fn grant() -> protocol::Grant {
    protocol::Grant { fencing_token: 1, mode: Mode::Exclusive, ttl_ms: Some(10_000), proof: None }
}

fn renewed(renewal: protocol::Renewal) -> Result<Response> {
    json(&protocol::Renewed { held_ms: 0, claims: vec![renewal], news: vec![], prove: false })
}

async fn holding() -> (Arc<Wire>, HttpBackend, Claim) {
    let wire = Arc::new(Wire::default());
    let backend = HttpBackend::new("http://test/names", wire.clone(), Arc::new(Native)).unwrap();
    let ask = Ask {
        name: "lock".parse().unwrap(),
        claim_id: ClaimId::from_u128(1),
        mode: Mode::Exclusive,
        entry: Entry::Queue,
        ttl: Duration::from_secs(10),
        owner: Arc::default(),
        keep: Duration::ZERO,
        only_here: false,
    };
    let granted = json(&Acquired::Granted { grant: grant(), held_ms: 0 });
    answered(&wire, "acquire", backend.acquire(&ask, &|_| ()), granted).await.unwrap().unwrap();
    (wire, backend, ask.claim())
}

#[tokio::test]
async fn what_was_released_while_its_renewal_was_under_way_is_not_taken_up_again() {
    let (wire, backend, claim) = holding().await;
    let mut hearing = backend.hear();
    assert!(poll_immediate(&mut hearing).await.is_none());
    let (_, renewal) = wire.next().expect("a renewal");
    let released = answered(&wire, "release", backend.release(&[claim]), Err(gone())).await;
    assert_eq!(released.unwrap_err().kind(), ErrorKind::Unavailable);
    renewal.send(renewed(protocol::Renewal::Held(grant()))).unwrap();
    hearing.await.unwrap();
    assert!(poll_immediate(backend.hear()).await.is_none());
    assert!(wire.next().is_none(), "it would be renewed for ever");
}

#[tokio::test]
async fn an_answer_that_knows_nothing_is_an_error_and_not_a_reason_to_ask_at_once() {
    let (wire, backend, _) = holding().await;
    let unknown = renewed(protocol::Renewal::Unknown(protocol::Problem::of(&gone())));
    let heard = answered(&wire, "renew", backend.hear(), unknown).await;
    assert_eq!(heard.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn news_that_come_along_with_a_renewal_are_not_lost() {
    let (wire, backend, claim) = holding().await;
    let another = Claim { name: "another".parse().unwrap(), id: ClaimId::from_u128(2) };
    let news = |claim: &Claim, what| protocol::News { claim: claim.into(), what };
    let answer = json(&protocol::Renewed {
        held_ms: 0,
        claims: vec![protocol::Renewal::NotHeld],
        news: vec![
            news(&another, protocol::Happening::Lost { reason: LostReason::ForceReleased }),
            news(&claim, protocol::Happening::Contended),
        ],
        prove: false,
    });
    let asked = [another];
    let outcome = answered(&wire, "renew", backend.renew(&asked), answer).await.unwrap();
    assert!(matches!(outcome[..], [Renewal::Lost(LostReason::ForceReleased)]), "{outcome:?}");
    let heard = poll_immediate(backend.hear()).await.expect("at once").unwrap();
    assert!(
        matches!(&heard[..], [News { claim: of, what: Happening::Contended }] if *of == claim),
        "{heard:?}"
    );
}

#[tokio::test]
async fn what_a_server_cannot_do_is_known_after_its_first_answer() {
    let (wire, backend, claim) = holding().await;
    assert_eq!(backend.capabilities(), Capabilities::ALL);
    let answer = renewed(protocol::Renewal::Held(grant())).unwrap();
    let answer = Ok(Response { missing: Some("upgrade, steal".to_owned()), ..answer });
    answered(&wire, "renew", backend.renew(&[claim]), answer).await.unwrap();
    let can = backend.capabilities();
    assert!(!can.steal && !can.upgrade && can.shared);
}

/// An answer that knows nothing of one claim comes at once, whatever it knows of the others.
#[tokio::test]
async fn what_is_in_doubt_is_not_asked_again_and_again() {
    let (wire, backend, claim) = holding().await;
    let unknown = protocol::Renewal::Unknown(protocol::Problem::of(&gone()));
    let news = vec![protocol::News { claim: (&claim).into(), what: protocol::Happening::Contended }];
    let answer = json(&protocol::Renewed { held_ms: 0, claims: vec![unknown], news, prove: false });
    let heard = answered(&wire, "renew", backend.hear(), answer).await.unwrap();
    assert!(matches!(heard[..], [News { what: Happening::Contended, .. }]), "{heard:?}");
    assert!(poll_immediate(backend.hear()).await.is_none());
    assert!(wire.next().is_none(), "it asks without a pause");
}

/// A proof is of the TTL that came with it.
#[tokio::test]
async fn what_is_shown_to_a_server_belongs_together() {
    let (wire, backend, claim) = holding().await;
    let grant = |fencing_token, mode, ttl_ms, proof: &str| protocol::Grant {
        fencing_token,
        mode,
        ttl_ms: Some(ttl_ms),
        proof: Some(proof.to_owned()),
    };
    let asked = [claim.clone()];
    for (told, kept) in [
        (grant(1, Mode::Upgradable, 9_990, "first"), ("first", 9_990, Mode::Upgradable)),
        (grant(2, Mode::Exclusive, 10_000, "upgraded"), ("upgraded", 10_000, Mode::Exclusive)),
        (grant(1, Mode::Upgradable, 9_995, "late"), ("upgraded", 10_000, Mode::Exclusive)),
    ] {
        let answer = renewed(protocol::Renewal::Held(told));
        answered(&wire, "renew", backend.renew(&asked), answer).await.unwrap();
        let proven = backend.proof(&claim).unwrap();
        assert_eq!((&*proven.proof, proven.kept.ttl_ms, proven.kept.mode), kept);
    }
}
