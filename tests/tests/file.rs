//! The conformance suite over `file:`.

use windlass_tests::{conformance, place::UrlPlace};

fn start() -> UrlPlace {
    UrlPlace::file()
}

conformance!(start);
