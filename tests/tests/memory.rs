//! The conformance suite over `memory:`.

use windlass_tests::{conformance, place::UrlPlace};

fn start() -> UrlPlace {
    UrlPlace::memory()
}

conformance!(start);
