//! Both sides write and read the same: what the client writes the server's side reads, and the other way round.

use serde::{Serialize, de::DeserializeOwned};

use super::*;
use crate::{
    error::{Error, ErrorKind},
    table::Kept,
};

fn name() -> Name {
    "n/\u{1f512} \"\\\n".parse().unwrap()
}

fn claim_ref() -> ClaimRef {
    ClaimRef { name: name(), claim: ClaimId::from_u128(7) }
}

fn modes() -> [Mode; 4] {
    [Mode::Exclusive, Mode::Shared, Mode::Upgradable, Mode::Permit(3.try_into().unwrap())]
}

fn somebody() -> Owner {
    Owner { owner: "ann@host:1".into(), metadata: [("why".into(), "because".into())].into() }
}

fn holders() -> Vec<Holder> {
    let holder = |mode, held_for| Holder { owner: somebody(), mode, fencing_token: u64::MAX, held_for };
    modes()
        .map(|mode| holder(mode, Some(Duration::from_millis(12))))
        .into_iter()
        .chain([holder(Mode::Shared, None)])
        .collect()
}

fn asked<Q: Question + DeserializeOwned + PartialEq + std::fmt::Debug>(question: &Q) {
    let mut text = String::new();
    question.json().write(&mut text);
    assert_eq!(&serde_json::from_str::<Q>(&text).unwrap(), question, "{text}");
}

fn answered<A: Answer + Serialize + PartialEq + std::fmt::Debug>(answer: &A) {
    let text = serde_json::to_vec(answer).unwrap();
    let json = Json::parse(&text).unwrap();
    assert_eq!(A::read(&json).as_ref(), Some(answer), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn the_server_reads_what_the_client_asks() {
    for mode in modes() {
        for entry in [Entry::Queue, Entry::Try, Entry::Steal] {
            let full = Terms {
                client: Some(ClaimId::from_u128(u128::MAX)),
                mode,
                entry,
                ttl_ms: 15_000,
                wait_ms: Some(0),
                keep_ms: Some(1),
                owner: somebody().owner,
                metadata: somebody().metadata,
            };
            let bare = Terms {
                client: None,
                wait_ms: None,
                keep_ms: None,
                metadata: BTreeMap::new(),
                ..full.clone()
            };
            for terms in [full, bare] {
                asked(&Acquire { claim: claim_ref(), terms: terms.clone() });
                asked(&AcquireAll { claims: vec![claim_ref(), claim_ref()], terms });
            }
        }
        asked(&Change {
            client: Some(ClaimId::from_u128(8)),
            claim: claim_ref(),
            to: mode,
            number: Some(6),
            wait_ms: Some(1),
        });
        let kept = Kept {
            name: name(),
            claim: ClaimId::from_u128(9),
            mode,
            ttl_ms: 1,
            fencing_token: Some(u64::MAX),
            owner: somebody(),
            for_ms: 2,
        };
        let proven = vec![Proven { kept, proof: "proof".into() }];
        asked(&Renew {
            client: Some(ClaimId::from_u128(1)),
            claims: vec![claim_ref()],
            park_ms: Some(5),
            proven,
        });
    }
    asked(&Change { client: None, claim: claim_ref(), to: Mode::Shared, number: None, wait_ms: None });
    asked(&Renew { client: None, claims: Vec::new(), park_ms: None, proven: Vec::new() });
    asked(&Release { client: None, claims: vec![claim_ref()] });
    asked(&Release { client: Some(ClaimId::from_u128(8)), claims: vec![claim_ref()] });
    asked(&ForceRelease { name: name(), fencing_token: Some(3) });
    asked(&ForceRelease { name: name(), fencing_token: None });
}

#[test]
fn the_client_reads_what_the_server_answers() {
    let grant =
        |mode, ttl_ms| Grant { fencing_token: u64::MAX, mode, ttl_ms, proof: ttl_ms.map(|_| "proof".into()) };
    let reasons = [
        LostReason::Expired,
        LostReason::Unreachable,
        LostReason::ForceReleased,
        LostReason::Stolen,
        LostReason::SessionEnded,
    ];
    for mode in modes() {
        answered(&Acquired::Granted { grant: vec![grant(mode, None); 2], held_ms: 0 });
        let single = serde_json::to_vec(&Acquired::Granted { grant: grant(mode, Some(10)), held_ms: 3 });
        let list = Acquired::Granted { grant: vec![grant(mode, Some(10))], held_ms: 3 };
        assert_eq!(Acquired::read(&Json::parse(&single.unwrap()).unwrap()), Some(list));
    }
    answered(&Acquired::<Vec<Grant>>::Busy);
    answered(&Acquired::<Vec<Grant>>::Waiting(Waiting { holders: holders(), place: Some(3) }));
    answered(&Acquired::<Vec<Grant>>::Waiting(Waiting { holders: Vec::new(), place: None }));

    let error =
        Error::new(ErrorKind::Denied, "no").with_lock(&name()).with_retry_after(Duration::from_millis(7));
    answered(&Problem::of(&error));
    answered(&Problem::of(&Error::new(ErrorKind::Storage, "full")));
    let lost = reasons.map(|reason| Renewal::Lost { reason });
    let mut claims = vec![Renewal::Held(grant(Mode::Shared, Some(1))), Renewal::NotHeld];
    claims.push(Renewal::Unknown(Problem::of(&error)));
    claims.extend(lost);
    let what = reasons.map(|reason| Happening::Lost { reason }).into_iter().chain([Happening::Contended]);
    let news = what.map(|what| News { claim: claim_ref(), what }).collect();
    answered(&Renewed { held_ms: 1, claims, news, prove: true });
    answered(&Renewed { held_ms: 1, claims: Vec::new(), news: Vec::new(), prove: false });

    let waiter = |waited_for| Waiter { owner: somebody(), mode: Mode::Shared, waited_for };
    let waiters = vec![waiter(None), waiter(Some(Duration::from_millis(1)))];
    answered(&Locks { locks: vec![Status { name: name(), holders: holders(), waiters }] });
    answered(&ForceReleased { taken_from: holders() });
}

#[test]
fn what_is_another_answer_is_none() {
    for text in [
        "null",
        "[]",
        "7",
        r#"{"outcome":"else"}"#,
        r#"{"outcome":"granted"}"#,
        r#"{"claims":[{"state":"else"}],"held_ms":1}"#,
    ] {
        let json = Json::parse(text.as_bytes()).unwrap();
        assert_eq!(Acquired::<Vec<Grant>>::read(&json), None, "{text}");
        assert_eq!(Renewed::read(&json), None, "{text}");
        assert_eq!(Problem::read(&json).filter(|problem| !problem.kind.is_empty()), None, "{text}");
    }
}
