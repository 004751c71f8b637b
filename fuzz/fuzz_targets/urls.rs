//! URLs of places for locks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|url: &str| {
    let _ = windlass::fuzzing::url(url);
});
