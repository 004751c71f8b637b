//! What the answers of a server mean.

use crate::{
    ask::{Claim, Happening, News, Renewal},
    error::{Error, ErrorKind, Result},
    json::Json,
    protocol::{self, Problem, kind_of},
    transport::Response,
    wire::Answer,
};

pub(super) fn told(news: protocol::News) -> News {
    let what = match news.what {
        protocol::Happening::Lost { reason } => Happening::Lost(reason),
        protocol::Happening::Contended => Happening::Contended,
    };
    News { claim: news.claim.into(), what }
}

/// What became of a claim; why it was lost, the news say that came along.
pub(super) fn with_reason(claim: &Claim, renewal: Renewal, news: &[protocol::News]) -> Renewal {
    let lost = news.iter().filter(|news| news.claim == claim.into()).find_map(|news| match news.what {
        protocol::Happening::Lost { reason } => Some(reason),
        protocol::Happening::Contended => None,
    });
    match (renewal, lost) {
        (Renewal::NotHeld, Some(reason)) => Renewal::Lost(reason),
        (renewal, _) => renewal,
    }
}

/// What an answer says.
pub(super) fn json(response: &Response) -> Result<Json> {
    if !(200..300).contains(&response.status) {
        return Err(refusal(response));
    }
    // An answer to a release says nothing.
    let body: &[u8] = if response.body.is_empty() { b"null" } else { &response.body };
    Json::parse(body).ok_or_else(another_server)
}

pub(super) fn another_server() -> Error {
    let message = "what answers there is not a Windlass server of this version: look at the URL";
    Error::new(ErrorKind::Storage, message)
}

/// The error that a status other than 200 is.
pub(super) fn refusal(response: &Response) -> Error {
    let problem = Json::parse(&response.body).as_ref().and_then(Problem::read);
    let error = match problem.filter(|problem| !problem.kind.is_empty()) {
        Some(problem) => problem.into_error(),
        None => {
            let status = response.status;
            let message = match status {
                404 => format!("HTTP status {status}: there is no Windlass server at this URL"),
                301 | 302 | 307 | 308 => {
                    format!("HTTP status {status}: the server has moved; use its new URL")
                }
                _ => format!("HTTP status {status}"),
            };
            Error::new(kind_of(status), message)
        }
    };
    match (error.retry_after(), response.retry_after) {
        (None, Some(after)) => error.with_retry_after(after),
        _ => error,
    }
}

/// Whether a piece of a stream of events has some of an event in it, and not only what keeps the connection open. Pieces end
/// anywhere; a hint too many costs a look.
pub(super) fn is_hint(piece: &[u8]) -> bool {
    piece.iter().any(|byte| !b":\r\n".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_seen_in_whatever_pieces_it_comes() {
        let event = b"id: 1\nevent: lock\ndata: {}\n\n";
        for cut in 1..event.len() - 2 {
            assert!(event[..cut].iter().any(u8::is_ascii_alphabetic) == is_hint(&event[..cut]), "{cut}");
            assert!(is_hint(&event[cut..]), "{cut}");
        }
        for silence in [&b":\n\n"[..], b":", b"\n", b"\r\n", b""] {
            assert!(!is_hint(silence));
        }
    }
}
