//! What all clients of HTTP have in common, whoever they ask.

use std::{error::Error as StdError, io, time::Duration};

use reqwest::{Client, ClientBuilder, redirect::Policy};

/// How long a connection may take: shorter than a try of a renewal with the default TTL.
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);
/// For how long a connection over which requests travel together may be silent until it is asked, and then until it is given up: all
/// tries of a renewal would go over one that is dead. That leaves half of the default TTL for a new one.
const SILENT: Duration = Duration::from_secs(2);

/// A client to be.
pub(crate) fn builder() -> ClientBuilder {
    // One of a process; whoever was earlier has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("windlass/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(SILENT)
        .http2_keep_alive_timeout(SILENT)
        .redirect(Policy::none())
}

/// What TLS says in an error, if that is what it is. An error of the system may have another one within it, which it does not name
/// as its source.
pub(crate) fn of_tls<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let within = || error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.downcast_ref().or_else(|| of_tls(within()?))
}
