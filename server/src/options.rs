//! What can be said to a server when it starts.

use std::{path::PathBuf, time::Duration};

use crate::{access::Access, audit::Audit};

/// How a server behaves. The default is for programs of one machine: no authentication, and so nobody but this machine
/// may reach it.
///
/// ```
/// use windlass_server::{Limits, ServerOptions};
///
/// let options = ServerOptions { limits: Limits { namespaces: 10, ..Limits::default() }, ..ServerOptions::default() };
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Who may do what; nobody is asked who they are by default.
    pub access: Access,
    /// Serve everybody who can reach an address other than loopback without asking who they are. Whoever reaches the server
    /// can then take and free every lock.
    pub allow_anonymous: bool,
    /// The names in `Host` that the server answers to besides the loopback names and the address it listens at, without
    /// port; `*` for any. A page of another site whose name was made to point here says another name.
    pub hosts: Vec<String>,
    /// The web origins besides the server's own whose pages may ask, such as `https://app.example.com`.
    pub origins: Vec<String>,
    /// The certificate to show; without, the server speaks plain HTTP.
    pub tls: Option<Tls>,
    /// How much of everything there may be.
    pub limits: Limits,
    /// How long a client may take for each step.
    pub deadlines: Deadlines,
    /// Where it is written who got, lost and was refused what.
    pub audit: Option<Audit>,
}

/// The certificate of a server, and of whom it wants to see one. The files are looked at again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and those that lead to its authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM; it may be the same file.
    pub key: PathBuf,
    /// The authorities, in PEM, that sign the certificates of clients. A client without one is let in only where it can show a
    /// token instead.
    pub client_ca: Option<PathBuf>,
}

/// How much of everything there may be. Whoever wants more is told so and when to ask again (HTTP 413, 429 or 503); others do
/// not notice.
///
/// "Each" is a token or certificate, and where nobody is asked who they are, an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body: some thousand claims with short names.
    pub body_bytes: usize,
    /// Bytes of a request's head; for HTTP/1.1 at least 8 KiB.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub head_fields: usize,
    /// Bytes of a claim's owner and metadata together.
    pub metadata_bytes: usize,
    /// The longest TTL.
    pub ttl: Duration,
    /// Claims in one request.
    pub claims_at_once: usize,
    /// Claims of each, held or waiting.
    pub claims_each: usize,
    /// Claims of all.
    pub claims: usize,
    /// Waiting claims of each.
    pub waiters_each: usize,
    /// Waiting claims of all.
    pub waiters: usize,
    /// Namespaces. One in which nothing happens for ten minutes is forgotten.
    pub namespaces: usize,
    /// Connections of one address (of an IPv6 network of 64 bits): half of all, so that nobody can use up those of others.
    pub connections_each: usize,
    /// Connections of all.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection. A client's renewals share the connection with its waiting acquires, so this is
    /// no way to limit waiters.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 256 * 1024,
            head_bytes: 16 * 1024,
            head_fields: 64,
            metadata_bytes: 2048 + 1024,
            ttl: windlass::MAX_TTL,
            claims_at_once: 10_000,
            claims_each: 200_000,
            claims: 1_000_000,
            waiters_each: 20_000,
            waiters: 100_000,
            namespaces: 10_000,
            connections_each: 10_240,
            connections: 20_480,
            streams: 10_000,
        }
    }
}

/// How long a client may take for each step before its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// The TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// A request's body.
    pub body: Duration,
    /// Until some of an answer is taken.
    pub write: Duration,
    /// Between two requests: longer than clients keep idle connections, so that no request meets a closing one.
    pub idle: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            write: Duration::from_secs(30),
            idle: Duration::from_secs(75),
        }
    }
}
