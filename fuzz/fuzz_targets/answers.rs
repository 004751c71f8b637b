//! What the client reads, from a server or from whatever stands in between.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use windlass::protocol::{Acquired, ForceReleased, Grant, Locks, Problem, Renewed};

fuzz_target!(|body: &[u8]| {
    again::<Acquired<Grant>>(body);
    again::<Acquired<Vec<Grant>>>(body);
    again::<Renewed>(body);
    again::<ForceReleased>(body);
    again::<Locks>(body);
    if let Some(problem) = again::<Problem>(body) {
        let error = problem.into_error();
        let told = Problem::of(&error).into_error();
        assert_eq!((told.kind(), told.message()), (error.kind(), error.message()));
    }
});

fn again<A: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> Option<A> {
    let answer: A = serde_json::from_slice(body).ok()?;
    let text = serde_json::to_vec(&answer).unwrap();
    assert_eq!(serde_json::from_slice::<A>(&text).unwrap(), answer);
    Some(answer)
}
