//! The conformance suite over `http:`, against our own server.

use windlass_tests::{conformance, place::UrlPlace, server};

fn start() -> UrlPlace {
    UrlPlace { url: server::namespace(), folder: None }
}

conformance!(start);

/// From a host with few connections.
mod few {
    use windlass_tests::{conformance, few::FewPlace, server};

    fn start() -> FewPlace {
        FewPlace { url: server::namespace() }
    }

    conformance!(start);
}
