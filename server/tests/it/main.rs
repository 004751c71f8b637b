//! What strangers may try on a server, over real sockets. `docs/security.md` has the table that these follow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod kit;

mod access;
mod audit;
mod changes;
mod disk;
mod limits;
mod openapi;
mod places;
mod sites;
mod slow;
mod tls;
mod together;
mod wire;
