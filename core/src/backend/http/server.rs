//! The server and a namespace of it: where it is, how it is asked, and what it can do.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    answers::{another_server, json},
    percent_encode,
};
use crate::{
    backend::Capabilities,
    error::{Error, ErrorKind, Result},
    json::Json,
    name::ClaimId,
    protocol,
    rt::Runtime,
    transport::{Request, Streamed, Transport},
    wire::Answer,
};

/// How long an answer may take that nothing is waited for.
const AT_ONCE: Duration = Duration::from_secs(10);
/// How much longer than it is held open an answer may take.
const GRACE: Duration = Duration::from_secs(5);
/// What is sent to the end, where a host can.
pub(super) const RELEASE: &str = "release";

pub(super) struct Server {
    transport: Arc<dyn Transport>,
    pub(super) rt: Arc<dyn Runtime>,
    /// Without credentials.
    pub(super) url: String,
    /// Where the protocol's requests go: ends with a slash.
    base: String,
    /// Who it knows us as.
    pub(super) client: ClaimId,
    /// What it can do, by its last answer.
    can: Mutex<Capabilities>,
}

impl Server {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the URL makes no sense.
    pub(super) fn new(url: &str, transport: Arc<dyn Transport>, rt: Arc<dyn Runtime>) -> Result<Self> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidInput, message));
        let url = url.trim_end_matches('/');
        let Some((scheme, rest)) = url.split_once("://") else {
            return invalid("the host is missing: write http://HOST:PORT/NAMESPACE");
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return invalid("the host is missing: write http://HOST:PORT/NAMESPACE");
        }
        if host.contains('@') {
            return invalid("credentials do not belong in the URL: give a token, or set WINDLASS_TOKEN");
        }
        let (prefix, namespace) = path.rsplit_once('/').unwrap_or(("", path));
        let namespace = if namespace.is_empty() { protocol::DEFAULT_NAMESPACE } else { namespace };
        let slash = if prefix.is_empty() { "" } else { "/" };
        let base = format!("{scheme}://{host}{slash}{prefix}/v1/{namespace}/");
        let client = ClaimId::from_u128(rt.random());
        Ok(Self { transport, rt, url: url.to_owned(), base, client, can: Mutex::new(Capabilities::ALL) })
    }

    /// One over a store that can do less says so with each answer; until the first one it is asked and refuses.
    pub(super) fn can(&self) -> Capabilities {
        *self.can.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks; the answer as it comes is for [`read`](Self::read).
    /// `wait`: for how long the server may hold it open; `None`: not at all.
    pub(super) async fn post(&self, path: &str, question: &Json, wait: Option<Duration>) -> Result<Json> {
        self.post_text(path, question.to_text(), wait).await
    }

    /// Asks what is written already.
    pub(super) async fn post_text(
        &self,
        path: &str,
        question: String,
        wait: Option<Duration>,
    ) -> Result<Json> {
        self.answer(self.request("POST", path, question.into_bytes(), wait)).await
    }

    /// Asks for what a route tells of the names that begin with `prefix`.
    pub(super) async fn get(&self, path: &str, prefix: &str) -> Result<Json> {
        self.answer(self.about(path, prefix)).await
    }

    /// The same as it comes.
    pub(super) async fn stream(&self, path: &str, prefix: &str) -> Result<Streamed> {
        let stream = self.transport.stream(self.about(path, prefix)).await;
        stream.map_err(|error| error.with_backend(&self.url))
    }

    pub(super) fn read<A: Answer>(&self, answer: &Json) -> Result<A> {
        A::read(answer).ok_or_else(|| another_server().with_backend(&self.url))
    }

    fn about(&self, path: &str, prefix: &str) -> Request {
        self.request("GET", &format!("{path}?prefix={}", percent_encode(prefix)), Vec::new(), None)
    }

    fn request(&self, method: &'static str, path: &str, body: Vec<u8>, wait: Option<Duration>) -> Request {
        Request {
            method,
            url: format!("{}{path}", self.base),
            token: None,
            body,
            timeout: wait.map_or(AT_ONCE, |wait| wait + GRACE),
            held_open: wait.is_some_and(|wait| !wait.is_zero()),
            last_words: path == RELEASE,
        }
    }

    async fn answer(&self, request: Request) -> Result<Json> {
        let answer = self.transport.send(request).await;
        let answer = answer.and_then(|response| {
            let said = json(&response)?;
            let can = Capabilities::all_but(response.missing.as_deref().unwrap_or_default());
            *self.can.lock().unwrap_or_else(PoisonError::into_inner) = can;
            Ok(said)
        });
        answer.map_err(|error| error.with_backend(&self.url))
    }
}
