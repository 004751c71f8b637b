//! The messages, as Go's JSON reads and writes them: what is missing or `null` is empty, and what follows is not looked at.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize};
use windlass::ClaimId;

use crate::routes::of_this_moment;

#[derive(Default, Deserialize)]
pub(super) struct Acquire {
    #[serde(default, rename = "lockName", deserialize_with = "or_empty")]
    pub(super) lock_name: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) opts: Opts,
}

#[derive(Default, Deserialize)]
pub(super) struct Opts {
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) shared: bool,
    #[serde(default, rename = "acquirerId", deserialize_with = "or_empty")]
    pub(super) acquirer_id: String,
}

/// `/renew-lease` and `/release`.
#[derive(Default, Deserialize)]
pub(super) struct OfHandle {
    #[serde(default, rename = "lockHandle", deserialize_with = "or_empty")]
    pub(super) lock_handle: Handle,
}

#[derive(Default, Deserialize, Serialize)]
pub(super) struct Handle {
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) uuid: String,
    #[serde(default, rename = "lockName", deserialize_with = "or_empty")]
    pub(super) lock_name: String,
}

#[derive(Default, Deserialize)]
pub(super) struct Echo {
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) echo: String,
}

/// Every answer about a lock.
#[derive(Default, Serialize)]
pub(super) struct Done {
    #[serde(rename = "lockHandle", skip_serializing_if = "Option::is_none")]
    pub(super) lock_handle: Option<Handle>,
    pub(super) err: String,
}

/// Reads a question, or says what lockgate says of what is none.
#[allow(clippy::result_large_err, reason = "it is the answer")]
pub(super) fn read<'a, Q: Deserialize<'a>>(body: &'a [u8]) -> Result<Q, Response> {
    Q::deserialize(&mut serde_json::Deserializer::from_slice(body)).map_err(|error| {
        let text = format!("unable to unmarshal request json: {error}\n");
        of_this_moment((StatusCode::BAD_REQUEST, text))
    })
}

pub(super) fn write(answer: &impl Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => with_type(body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) fn with_type(body: impl IntoResponse) -> Response {
    of_this_moment(([(header::CONTENT_TYPE, "application/json")], body))
}

/// A UUID of version 4 out of random bits: 122 of them stay.
pub(super) fn new_uuid(random: u128) -> ClaimId {
    let version = random & !(0xf << 76) | 4 << 76;
    ClaimId::from_u128(version & !(0b11 << 62) | 0b10 << 62)
}

pub(super) fn uuid(id: ClaimId) -> String {
    let mut text = format!("{:032x}", id.reveal());
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}

/// The claim that a UUID names; `None` if it is another text.
pub(super) fn claim_id(uuid: &str) -> Option<ClaimId> {
    let dashes = |at| matches!(at, 8 | 13 | 18 | 23);
    let fits = |(at, byte): (usize, u8)| if dashes(at) { byte == b'-' } else { byte.is_ascii_hexdigit() };
    if uuid.len() != 36 || !uuid.bytes().enumerate().all(fits) {
        return None;
    }
    u128::from_str_radix(&uuid.replace('-', ""), 16).ok().map(ClaimId::from_u128)
}

/// Reads a body as each of the questions.
#[cfg(fuzzing)]
pub fn fuzz(body: &[u8]) {
    let _ = (read::<Acquire>(body).is_ok(), read::<Echo>(body).is_ok());
    if let Ok(OfHandle { lock_handle }) = read(body)
        && let Some(id) = claim_id(&lock_handle.uuid)
    {
        assert_eq!(uuid(id), lock_handle.uuid.to_ascii_lowercase());
    }
}

fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_of_version_4_and_name_the_claim() {
        for random in [0, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let id = new_uuid(random);
            let text = uuid(id);
            assert_eq!(text.len(), 36);
            assert_eq!(&text[14..15], "4", "{text}");
            assert!("89ab".contains(&text[19..20]), "{text}");
            assert_eq!(claim_id(&text), Some(id));
            assert_eq!(claim_id(&text.to_uppercase()), Some(id));
        }
    }

    #[test]
    fn other_texts_are_no_uuids() {
        let text = uuid(new_uuid(1));
        for other in
            ["", "x", &text[1..], &text.replace('-', ""), &text.replace('0', "+"), &text.replace('0', "ä")]
        {
            assert_eq!(claim_id(other), None, "{other}");
        }
    }

    #[test]
    fn what_go_reads_is_read() {
        let asked: Acquire = read(br#"{"lockName":"x","opts":{"shared":true,"new":1}} more"#).unwrap();
        assert_eq!((asked.lock_name.as_str(), asked.opts.shared), ("x", true));
        let asked: Acquire = read(br#"{"lockName":null,"opts":null}"#).unwrap();
        assert_eq!((asked.lock_name.as_str(), asked.opts.shared), ("", false));
        assert!(read::<Acquire>(b"").is_err());
        assert!(read::<Acquire>(b"{\"lockName\":1}").is_err());
    }
}
