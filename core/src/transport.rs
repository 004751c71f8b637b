//! One HTTP request and its answer, as the [`HttpBackend`](crate::backend::HttpBackend) needs them: the one place that
//! knows a client library. Tests and hosts of an unusual kind bring their own.

use std::{error::Error as _, fmt, time::Duration};

use futures_util::{future::BoxFuture, stream::BoxStream};

use crate::error::{Error, Result};

mod authorized;
#[cfg(all(feature = "http", not(target_family = "wasm")))]
mod native;
pub use authorized::{Authorized, TokenSource};
#[cfg(all(feature = "http", not(target_family = "wasm")))]
pub(crate) use native::{Native, Tls};
#[cfg(all(feature = "http", target_family = "wasm", target_os = "unknown"))]
mod web;
#[cfg(all(feature = "http", target_family = "wasm", target_os = "unknown"))]
pub(crate) use web::Web;

/// Sends requests. The futures may be awaited on any executor; dropping one gives the request up.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends a request and reads the whole answer, of at most 16 MiB.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) when there was no answer, whatever its status, with [`NotSent`] as its
    /// source where the server certainly saw nothing of the request; [`Denied`](crate::ErrorKind::Denied) when the server's certificate is not to be trusted.
    fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>>;

    /// Sends a request and gives the body as it comes, if the status is 200; else the whole answer.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    fn stream(&self, request: Request) -> BoxFuture<'static, Result<Streamed>>;
}

/// Why there was no answer: there was no connection.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request was not sent")]
pub struct NotSent;

/// Whether the server certainly saw nothing of the request.
pub(crate) fn was_not_sent(error: &Error) -> bool {
    error.source().is_some_and(|source| source.is::<NotSent>())
}

/// A request.
#[derive(Clone)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Absolute.
    pub url: String,
    /// The bearer token, if there is one.
    pub token: Option<String>,
    /// JSON; empty for a `GET`.
    pub body: Vec<u8>,
    /// How long to wait for the answer at the most.
    pub timeout: Duration,
    /// The server may leave it without an answer for as long: where connections have room for a number of requests, it must not
    /// take that of others.
    pub held_open: bool,
    /// To be sent even if the program ends meanwhile, where a host can: a page that is closed releases its locks.
    pub last_words: bool,
}

impl fmt::Debug for Request {
    /// Without token and body, which hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The header `Retry-After`, where it is a number of seconds.
    pub retry_after: Option<Duration>,
    /// The header [`Windlass-Missing`](crate::protocol::MISSING).
    pub missing: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer as it comes.
pub enum Streamed {
    /// Pieces of the body.
    Body(BoxStream<'static, Result<Vec<u8>>>),
    /// It was another status than 200.
    Refused(Response),
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(_) => f.write_str("Body"),
            Self::Refused(response) => f.debug_tuple("Refused").field(response).finish(),
        }
    }
}
