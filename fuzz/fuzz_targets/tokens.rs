//! Tokens that are shown, claims that a key has signed, and files that say who may do what.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| windlass_server::fuzzing::tokens(text));
