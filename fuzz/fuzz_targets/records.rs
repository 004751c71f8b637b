//! Files in the directory of locks: anybody may have written anything into them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| windlass::fuzzing::record(bytes));
