//! What the API server, or the way to it, says when it does not do what was asked.

use std::{error::Error as StdError, time::Duration};

use reqwest::{Response, header::RETRY_AFTER};
use serde_json::Value;

use super::shelf::Shelf;
use crate::{
    client::of_tls,
    error::{Error, ErrorKind},
};

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    /// Null where it was no JSON, which has no message either.
    pub(super) said: Value,
    retry_after: Option<Duration>,
}

impl Reply {
    pub(super) fn new(status: u16, said: Value) -> Self {
        let retry_after = said["details"]["retryAfterSeconds"].as_u64().map(Duration::from_secs);
        Self { status, said, retry_after }
    }

    pub(super) async fn of(response: Response) -> Result<Self, reqwest::Error> {
        let status = response.status().as_u16();
        // Whoever comes too often is told by this alone.
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let said = response.bytes().await?;
        let mut reply = Self::new(status, serde_json::from_slice(&said).unwrap_or_default());
        reply.retry_after = reply.retry_after.or(header.map(Duration::from_secs));
        Ok(reply)
    }
}

/// A status that is no success; `at` is where the API server is, with a space before it, where that is known.
pub(super) fn refused(reply: &Reply, shelf: &Shelf, at: &str) -> Error {
    let said = reply.said["message"].as_str().unwrap_or("no reason is given");
    let said: String = said.chars().take(400).flat_map(char::escape_debug).collect();
    let status = reply.status;
    let error = match status {
        401 => Error::new(
            ErrorKind::Denied,
            format!(
                "the API server{at} does not know who we are ({said}): look at the token or certificate of the kubeconfig"
            ),
        ),
        403 => Error::new(
            ErrorKind::Denied,
            format!("the API server{at} refuses it: {said}; {}", shelf.rights()),
        ),
        404 => Error::new(ErrorKind::Storage, format!("the API server{at} does not find it: {said}")),
        408 | 409 | 410 | 429 | 500 | 502..=504 => Error::new(
            ErrorKind::Unavailable,
            format!("the API server{at} cannot do it just now ({status}): {said}"),
        ),
        _ => {
            Error::new(ErrorKind::Storage, format!("the API server{at} does not take it ({status}): {said}"))
        }
    };
    match reply.retry_after {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

/// No answer, without the URL.
pub(super) fn of_transport(error: reqwest::Error, at: &str) -> Error {
    let error = error.without_url();
    if error.is_builder() {
        return Error::new(ErrorKind::InvalidInput, "the server in the kubeconfig makes no sense to HTTP");
    }
    let what = match error {
        _ if error.is_timeout() => format!("the API server{at} does not answer"),
        _ if error.is_connect() => format!("cannot connect to the API server{at}"),
        _ => format!("the connection to the API server{at} broke"),
    };
    let (mut cause, mut last) = (error.source(), String::new());
    let mut untrusted = false;
    while let Some(error) = cause {
        untrusted |= of_tls(error).is_some();
        last = error.to_string();
        cause = error.source();
    }
    if untrusted {
        let message = format!(
            "no TLS with the API server{at}: {last}; look at the authority and certificate in the kubeconfig"
        );
        return Error::new(ErrorKind::Denied, message);
    }
    Error::new(ErrorKind::Unavailable, format!("{what}: {last}"))
}

pub(super) fn silent(at: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the API server{at} does not answer"))
}

pub(super) fn broke(at: &str) -> Error {
    let message = format!("the API server{at} ends the watch of the locks again and again");
    Error::new(ErrorKind::Unavailable, message)
}
