//! The conformance suite over `http:`, against our own server.

use windlass_tests::{conformance, place::UrlPlace, server};

fn start() -> UrlPlace {
    UrlPlace { url: server::namespace(), folder: None }
}

conformance!(start);
