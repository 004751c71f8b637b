//! What clients send to the server: it is understood or refused, and what is understood can be said again.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use windlass::protocol::{Acquire, AcquireAll, Change, ForceRelease, Release, Renew};

fuzz_target!(|body: &[u8]| {
    if let Some(acquire) = again::<Acquire>(body) {
        let ask = acquire.terms.ask(acquire.claim);
        assert!((1..=1024).contains(&ask.name.as_str().len()));
    }
    again::<AcquireAll>(body);
    again::<Renew>(body);
    again::<Release>(body);
    again::<Change>(body);
    again::<ForceRelease>(body);
});

fn again<Q: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> Option<Q> {
    let question: Q = serde_json::from_slice(body).ok()?;
    let text = serde_json::to_vec(&question).unwrap();
    assert_eq!(serde_json::from_slice::<Q>(&text).unwrap(), question);
    Some(question)
}
