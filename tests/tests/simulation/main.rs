//! The client layer in virtual time, against a simulated server over a faulty network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

use windlass_tests::{conformance, sim_backend::SimPlace};

/// The suite over the simulated server.
mod suite {
    use super::*;

    fn start() -> SimPlace {
        SimPlace::new(1)
    }

    conformance!(start);
}

mod asking;
mod changing;
mod leases;
mod releasing;
mod setting;
mod soak;
