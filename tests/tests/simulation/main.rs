//! The client layer in virtual time, against a simulated server over a faulty network.

use windlass_tests::{conformance, sim_backend::SimPlace};

/// The suite over the simulated server.
mod suite {
    use super::*;

    fn start() -> SimPlace {
        SimPlace::new(1)
    }

    conformance!(start);
}

mod rules;
mod soak;
