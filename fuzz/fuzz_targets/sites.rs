//! The heads of requests: where they come from, where they go, who asks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|fields: (&[u8], &[u8], &[u8], &str)| {
    let (host, origin, credentials, path) = fields;
    windlass_server::fuzzing::sites(host, origin, credentials, path);
});
