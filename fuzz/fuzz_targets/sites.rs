//! The heads of requests, in four lines: their `Host`, `Origin` and `Authorization`, and their path.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|head: &[u8]| {
    let mut lines = head.splitn(4, |byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (host, origin, credentials, path) = (next(), next(), next(), next());
    windlass_server::fuzzing::sites(host, origin, credentials, &String::from_utf8_lossy(path));
});
