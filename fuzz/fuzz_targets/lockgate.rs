//! What lockgate's and werf's clients send.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| windlass_server::fuzzing::lockgate(body));
