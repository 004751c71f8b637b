//! lockgate's HTTP protocol: three requests, and the sentences that its answers are told apart by.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind, LostReason, Result},
    name::Name,
    protocol::kind_of,
    transport::{Request, Response, Transport},
};

/// How long an answer to an acquire may take. The server sleeps for a second whenever two changes of one lock meet. After
/// this long a grant would be worth nothing.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(8);
/// How long other answers may take: less than the policy over backends gives a release.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// So much of a sentence of the server's is passed on.
const MOST_TEXT: usize = 200;

/// What the server names a lease by. All shared holders of a lock have one and the same.
pub(super) type Uuid = Arc<str>;

/// Asks a server.
#[derive(Debug)]
pub(super) struct Client {
    transport: Arc<dyn Transport>,
    /// Where the requests go: ends with a slash.
    base: String,
}

/// Why the server did not do it.
pub(super) enum Refused {
    /// Somebody holds the lock, or is ahead in the queue.
    ShouldWait,
    /// The lease is no longer the one of that uuid.
    Gone(LostReason),
}

/// What an answer says: `Ok(Err(...))` is one that the protocol foresees.
pub(super) type Said<T> = Result<Result<T, Refused>>;

impl Client {
    pub(super) fn new(base: String, transport: Arc<dyn Transport>) -> Self {
        Self { transport, base }
    }

    /// Takes a lease if it can be had; with an `acquirer`, stands in the queue otherwise.
    pub(super) async fn acquire(&self, name: &Name, shared: bool, acquirer: &str) -> Result<Option<Uuid>> {
        let opts = Opts { shared, acquirer_id: acquirer };
        let question = Acquire { lock_name: name.as_str(), opts };
        match self.ask("acquire", &question, ACQUIRE_WITHIN).await? {
            Ok(handle) if !handle.uuid.is_empty() => Ok(Some(handle.uuid.into())),
            Ok(_) => Err(no_lockgate()),
            // The lease that was to be taken over or waited for changed under the server's hands.
            Err(_) => Ok(None),
        }
    }

    pub(super) async fn renew(&self, name: &Name, uuid: &str) -> Said<()> {
        Ok(self.ask("renew-lease", &of(name, uuid), ANSWER_WITHIN).await?.map(drop))
    }

    /// Not to be repeated for a shared lease, unless the first one [was not sent](crate::transport::NotSent).
    pub(super) async fn release(&self, name: &Name, uuid: &str) -> Said<()> {
        Ok(self.ask("release", &of(name, uuid), ANSWER_WITHIN).await?.map(drop))
    }

    async fn ask(&self, path: &str, question: &impl Serialize, timeout: Duration) -> Said<Handle> {
        let body = serde_json::to_vec(question)
            .map_err(|e| Error::new(ErrorKind::Internal, "a question cannot be written").with_source(e))?;
        let url = format!("{}{path}", self.base);
        let request =
            Request { method: "POST", url, token: None, body, timeout, held_open: false, last_words: false };
        read(&self.transport.send(request).await?)
    }
}

fn read(response: &Response) -> Said<Handle> {
    if response.status != 200 {
        return Err(refusal(response));
    }
    let answer: Answer = serde_json::from_slice(&response.body).map_err(|e| no_lockgate().with_source(e))?;
    Ok(match answer.err.as_str() {
        "" => Ok(answer.lock_handle),
        "should wait" => Err(Refused::ShouldWait),
        // Only an acquire is told so: the server read a record while it wrote it for another request.
        torn if torn.starts_with("unable to extract lock lease record") => Err(Refused::ShouldWait),
        // The record is not there: the server was started again, or somebody released it.
        "no existing lock lease found" => Err(Refused::Gone(LostReason::ForceReleased)),
        "lock already leased" => Err(Refused::Gone(LostReason::Expired)),
        other => {
            let text: String = other.chars().take(MOST_TEXT).collect();
            let message = format!("the server cannot do it just now: {}", text.escape_debug());
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
    })
}

fn refusal(response: &Response) -> Error {
    let status = response.status;
    let message = match status {
        404 => "HTTP status 404: there is no lockgate server at this URL".to_owned(),
        _ => format!("HTTP status {status}"),
    };
    let error = Error::new(kind_of(status), message);
    match response.retry_after {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

fn no_lockgate() -> Error {
    Error::new(ErrorKind::Storage, "what answers there is not a lockgate server: look at the URL")
}

fn of(name: &Name, uuid: &str) -> OfHandle {
    OfHandle { lock_handle: Handle { uuid: uuid.to_owned(), lock_name: name.as_str().to_owned() } }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Acquire<'a> {
    lock_name: &'a str,
    opts: Opts<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Opts<'a> {
    shared: bool,
    acquirer_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfHandle {
    lock_handle: Handle,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Handle {
    uuid: String,
    lock_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    lock_handle: Handle,
    err: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Response {
        Response { status, retry_after: None, missing: None, body: body.into() }
    }

    #[test]
    fn questions_are_lockgates_to_the_letter() {
        let name: Name = "x".parse().unwrap();
        let opts = Opts { shared: false, acquirer_id: "" };
        assert_eq!(
            serde_json::to_string(&Acquire { lock_name: name.as_str(), opts }).unwrap(),
            r#"{"lockName":"x","opts":{"shared":false,"acquirerId":""}}"#
        );
        assert_eq!(
            serde_json::to_string(&of(&name, "u")).unwrap(),
            r#"{"lockHandle":{"uuid":"u","lockName":"x"}}"#
        );
    }

    #[test]
    fn sentences_are_told_apart() {
        let said = |err: &str| {
            let body = format!(r#"{{"lockHandle":{{"uuid":"","lockName":""}},"err":"{err}"}}"#);
            read(&answer(200, &body))
        };
        assert!(matches!(said(""), Ok(Ok(_))));
        assert!(matches!(said("should wait"), Ok(Err(Refused::ShouldWait))));
        let torn = said(
            "unable to extract lock lease record from data record by key k: unexpected end of JSON input",
        );
        assert!(matches!(torn, Ok(Err(Refused::ShouldWait))));
        assert!(matches!(said("lock already leased"), Ok(Err(Refused::Gone(LostReason::Expired)))));
        let gone = said("no existing lock lease found");
        assert!(matches!(gone, Ok(Err(Refused::Gone(LostReason::ForceReleased)))));
        assert!(matches!(read(&answer(200, r#"{"err":""}"#)), Ok(Ok(_))));
        for (status, body, kind) in [
            (200, r#"{"err":"no quorum"}"#, ErrorKind::Unavailable),
            (502, "", ErrorKind::Unavailable),
            (200, "<html>", ErrorKind::Storage),
            (200, "{}", ErrorKind::Storage),
            (404, "404 page not found", ErrorKind::Storage),
            (403, "", ErrorKind::Denied),
        ] {
            assert_eq!(read(&answer(status, body)).err().map(|error| error.kind()), Some(kind), "{body}");
        }
    }
}
