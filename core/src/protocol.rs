//! The messages of the lock server's own protocol, version 1: JSON bodies of requests under `/v1/NAMESPACE/` and of their
//! answers. The client ([`HttpBackend`](crate::backend::HttpBackend)) and the server share them; `docs/protocol.md`
//! describes them for other programs.
//!
//! Times are durations in whole milliseconds, never instants (rule R6). Ids are 32 hexadecimal digits. Fields that are not
//! known are ignored, so that either side may be newer.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    ask::{self, Ask, Claim, Holder, Mode, Owner, Waiting},
    error::{Error, ErrorKind, LostReason},
    name::{ClaimId, Name},
    options::DEFAULT_TTL,
    table::Kept,
};

mod together;

pub use together::{Answer, Answers, Question, Together};

/// The namespace of a URL that names none, and of lockgate's clients.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The header of each answer of a server whose store can do less than a server can by itself, with the names of what is
/// missing: [`Capabilities::missing`](crate::backend::Capabilities::missing).
pub const MISSING: &str = "windlass-missing";

/// A claim, as a message names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClaimRef {
    /// Which lock.
    pub name: Name,
    /// The secret.
    #[serde(with = "hex")]
    #[cfg_attr(feature = "schema", schemars(with = "ClaimId"))]
    pub claim: ClaimId,
}

impl From<&Claim> for ClaimRef {
    fn from(claim: &Claim) -> Self {
        Self { name: claim.name.clone(), claim: claim.id }
    }
}

impl From<ClaimRef> for Claim {
    fn from(claim: ClaimRef) -> Self {
        Self { name: claim.name, id: claim.claim }
    }
}

/// What to do when the lock cannot be had at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// Stand in line.
    #[default]
    Queue,
    /// Give up.
    Try,
    /// Take it from those who hold it.
    Steal,
}

/// What an acquire of one lock and one of several have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Terms {
    /// Who speaks for the claims: news of them comes with this client's parked renewals.
    #[serde(default, with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<ClaimId>"))]
    pub client: Option<ClaimId>,
    /// How to share the lock.
    #[serde(default)]
    pub mode: Mode,
    /// What to do when it is taken.
    #[serde(default)]
    pub entry: Entry,
    /// How long the grant lives without renewal, in milliseconds.
    #[cfg_attr(feature = "schema", schemars(range(min = 1_000, max = 3_600_000)))]
    #[serde(default = "default_ttl")]
    pub ttl_ms: u64,
    /// For how many milliseconds the server may hold the request open; it may answer sooner. 60,000 unless told, and at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// For how many milliseconds the claim keeps its place in the queue after a request for it that ended without a grant: 2,000
    /// unless told, and at the least.
    #[cfg_attr(feature = "schema", schemars(range(max = 3_600_000)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_ms: Option<u64>,
    /// Who asks, for people to see.
    #[serde(default)]
    pub owner: String,
    /// Something more for people to see. It and `owner` have 3 KiB together unless the server allows for more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Terms {
    /// The question to a backend.
    pub fn ask(&self, claim: ClaimRef) -> Ask {
        Ask {
            name: claim.name,
            claim_id: claim.claim,
            mode: self.mode,
            entry: match self.entry {
                Entry::Queue => ask::Entry::Queue,
                Entry::Try => ask::Entry::Try,
                Entry::Steal => ask::Entry::Steal,
            },
            ttl: Duration::from_millis(self.ttl_ms),
            owner: Owner { owner: self.owner.clone(), metadata: self.metadata.clone() }.into(),
            keep: Duration::from_millis(self.keep_ms.unwrap_or(0)),
            only_here: false,
        }
    }

    /// What a client says in its question.
    pub fn of(ask: &Ask, client: ClaimId, wait: Duration) -> Self {
        Self {
            client: Some(client),
            mode: ask.mode,
            entry: match ask.entry {
                ask::Entry::Queue => Entry::Queue,
                ask::Entry::Try => Entry::Try,
                ask::Entry::Steal => Entry::Steal,
            },
            ttl_ms: millis(ask.ttl),
            wait_ms: Some(millis(wait)),
            keep_ms: Some(millis(ask.keep)).filter(|keep| *keep > 0),
            owner: ask.owner.owner.clone(),
            metadata: ask.owner.metadata.clone(),
        }
    }
}

/// `POST acquire`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Acquire {
    /// Which lock, and by which id.
    #[serde(flatten)]
    pub claim: ClaimRef,
    /// And how.
    #[serde(flatten)]
    pub terms: Terms,
}

/// `POST acquire-all`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AcquireAll {
    /// Which locks, each once and with an id of its own.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub claims: Vec<ClaimRef>,
    /// And how.
    #[serde(flatten)]
    pub terms: Terms,
}

/// The answer to an acquire or a change: `G` is one [`Grant`], or one for each claim in the order of the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Acquired_{G}"))]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Acquired<G> {
    /// The lock is held.
    Granted {
        /// What was granted.
        grant: G,
        /// For how many milliseconds the request was held before its grant began: a client counts the TTL from the sending of
        /// the request plus this.
        held_ms: u64,
    },
    /// It is not yet one's turn. The claim keeps its place for two seconds, or for as long as was told: ask again by its id.
    Waiting(Waiting),
    /// It could not be had at once.
    Busy,
}

/// A granted claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Grant {
    /// Greater than that of every earlier grant that it conflicts with.
    pub fencing_token: u64,
    /// How the lock is shared.
    pub mode: Mode,
    /// How many milliseconds it lives without renewal; absent where the server's store needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// What shows the server that it has granted this, should it ever have to be shown: see [`Renew::proven`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

impl From<&ask::Grant> for Grant {
    fn from(grant: &ask::Grant) -> Self {
        let ttl_ms = grant.lease.map(|term| millis(term.ttl));
        Self { fencing_token: grant.fencing_token, mode: grant.mode, ttl_ms, proof: None }
    }
}

/// A claim with the proof that came with its grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Proven {
    /// What was granted.
    #[serde(flatten)]
    pub kept: Kept,
    /// The proof.
    pub proof: String,
}

/// `POST renew`: answered at once, or parked until something happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Renew {
    /// Who speaks for the claims from now on.
    #[serde(default, with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<ClaimId>"))]
    pub client: Option<ClaimId>,
    /// Which claims.
    pub claims: Vec<ClaimRef>,
    /// For how many milliseconds the server may hold the request open, unless it has news for this client: 60,000 at the most,
    /// and not at all unless told. It renews the claims when the request comes and again when it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub park_ms: Option<u64>,
    /// Those that the server did not know and wants [`proof`](Renewed::prove) of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proven: Vec<Proven>,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Renewed {
    /// For how many milliseconds the request was held before the claims were renewed for the last time.
    pub held_ms: u64,
    /// What became of each claim, in the order of the question.
    pub claims: Vec<Renewal>,
    /// What has happened to claims of this client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub news: Vec<News>,
    /// The server was ended abruptly and does not know the claims of before: those that are not held are to be asked for again
    /// with their proofs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prove: bool,
}

/// What became of one claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Renewal {
    /// It lives on.
    Held(Grant),
    /// It is gone.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// The server has no such claim.
    NotHeld,
    /// The server could not find out.
    Unknown(Problem),
}

/// What happened to a claim by the doing of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct News {
    /// Which one.
    #[serde(flatten)]
    pub claim: ClaimRef,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "happened", rename_all = "snake_case")]
pub enum Happening {
    /// It is gone.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// Somebody waits for it.
    Contended,
}

/// `POST release`: all of these, held or waiting, in one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Release {
    /// Who speaks for them.
    #[serde(default, with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<ClaimId>"))]
    pub client: Option<ClaimId>,
    /// Which claims.
    pub claims: Vec<ClaimRef>,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Released {
    /// Those that had been lost before. A server whose store keeps only what is held names each claim that was not there: it counts
    /// for whoever held the claim and had not released it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Loss>,
}

/// A claim that is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Loss {
    /// Which one.
    #[serde(flatten)]
    pub claim: ClaimRef,
    /// Why.
    pub reason: LostReason,
}

/// `POST change`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Change {
    /// Who speaks for it.
    #[serde(default, with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<ClaimId>"))]
    pub client: Option<ClaimId>,
    /// Which claim.
    #[serde(flatten)]
    pub claim: ClaimRef,
    /// To which mode.
    pub to: Mode,
    /// Grows from change to change of this client, and is the same when one is asked for again: one that comes after a later one of the
    /// same claim is not obeyed. One without a number always is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// For how many milliseconds the server may hold the request open: 60,000 unless told, and at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// `POST force-release`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForceRelease {
    /// Which lock.
    pub name: Name,
    /// Only the claims with this token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing_token: Option<u64>,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForceReleased {
    /// Whom the lock was taken from.
    pub taken_from: Vec<Holder>,
}

/// `GET locks?prefix=`: who holds and who waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Locks {
    /// Sorted by name.
    pub locks: Vec<ask::Status>,
}

/// An error as RFC 9457 writes it, with what a client of ours wants to know besides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Problem {
    /// `about:blank`: the status says it all.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
    /// What to do about it: the [`ErrorKind`] in snake case, such as `not_held` or `unavailable`.
    pub kind: String,
    /// Which lock it happened to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Name>,
    /// After how many milliseconds to ask again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Problem {
    /// The media type of a problem.
    pub const MEDIA_TYPE: &str = "application/problem+json";

    /// How an error looks on the wire.
    pub fn of(error: &Error) -> Self {
        let (status, title) = status(error.kind());
        Self {
            problem_type: "about:blank".to_owned(),
            title: title.to_owned(),
            status,
            detail: error.message().to_owned(),
            kind: kind_text(error.kind()).to_owned(),
            lock: error.lock().cloned(),
            retry_after_ms: error.retry_after().map(millis),
        }
    }

    /// The error that it was, as far as `kind` is known here.
    pub fn into_error(self) -> Error {
        let kind = KINDS.iter().find(|(_, text, ..)| *text == self.kind).map(|(kind, ..)| *kind);
        let mut error = Error::new(kind.unwrap_or(kind_of(self.status)), self.detail);
        if let Some(lock) = &self.lock {
            error = error.with_lock(lock);
        }
        match self.retry_after_ms {
            Some(after) => error.with_retry_after(Duration::from_millis(after)),
            None => error,
        }
    }
}

type Row = (ErrorKind, &'static str, u16, &'static str);

const KINDS: &[Row] = &[
    (ErrorKind::InvalidName, "invalid_name", 400, "Bad Request"),
    (ErrorKind::InvalidInput, "invalid_input", 400, "Bad Request"),
    (ErrorKind::Unsupported, "unsupported", 422, "Unprocessable Content"),
    (ErrorKind::Timeout, "timeout", 408, "Request Timeout"),
    (ErrorKind::Lost(LostReason::Expired), "expired", 409, "Conflict"),
    (ErrorKind::Lost(LostReason::Unreachable), "unreachable", 409, "Conflict"),
    (ErrorKind::Lost(LostReason::ForceReleased), "force_released", 409, "Conflict"),
    (ErrorKind::Lost(LostReason::Stolen), "stolen", 409, "Conflict"),
    (ErrorKind::Lost(LostReason::SessionEnded), "session_ended", 409, "Conflict"),
    (ErrorKind::NotHeld, "not_held", 409, "Conflict"),
    (ErrorKind::Denied, "denied", 403, "Forbidden"),
    (ErrorKind::Unavailable, "unavailable", 503, "Service Unavailable"),
    (ErrorKind::Storage, "storage", 507, "Insufficient Storage"),
    (ErrorKind::Closed, "closed", 503, "Service Unavailable"),
    (ErrorKind::Internal, "internal", 500, "Internal Server Error"),
];

fn row(kind: ErrorKind) -> &'static Row {
    // The last row, for kinds to come.
    KINDS.iter().find(|(known, ..)| *known == kind).unwrap_or(&KINDS[KINDS.len() - 1])
}

/// An error's kind in snake case.
pub fn kind_text(kind: ErrorKind) -> &'static str {
    row(kind).1
}

fn status(kind: ErrorKind) -> (u16, &'static str) {
    let (.., status, title) = *row(kind);
    (status, title)
}

/// What a status means that comes without a problem of ours, from a proxy perhaps.
pub fn kind_of(status: u16) -> ErrorKind {
    match status {
        401 | 403 | 407 => ErrorKind::Denied,
        // From 520 on: Cloudflare's, which has no answer from the server.
        408 | 425 | 429 | 500 | 502..=504 | 520..=530 => ErrorKind::Unavailable,
        _ => ErrorKind::Storage,
    }
}

/// A duration in whole milliseconds, rounded down.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn default_ttl() -> u64 {
    millis(DEFAULT_TTL)
}

/// A claim id in JSON.
pub(crate) mod hex {
    use super::{ClaimId, Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(id: &ClaimId, s: S) -> Result<S::Ok, S::Error> {
        format!("{:032x}", id.reveal()).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<ClaimId, D::Error> {
        super::parse_id(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// ... where there is one.
pub(crate) mod maybe_hex {
    use super::{ClaimId, Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(id: &Option<ClaimId>, s: S) -> Result<S::Ok, S::Error> {
        id.map(|id| format!("{:032x}", id.reveal())).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ClaimId>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|text| super::parse_id(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

pub(crate) fn parse_id(text: &str) -> Result<ClaimId, &'static str> {
    const WRONG: &str = "an id is 32 hexadecimal digits of secure randomness";
    if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(WRONG);
    }
    u128::from_str_radix(text, 16).map(ClaimId::from_u128).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_can_be_written_by_hand() {
        let id = "0123456789abcdef0123456789abcdef";
        let text = format!(r#"{{"name": "deploy", "claim": "{id}"}}"#);
        let acquire: Acquire = serde_json::from_str(&text).unwrap();
        let ask = acquire.terms.ask(acquire.claim);
        assert_eq!(ask.name.as_str(), "deploy");
        assert_eq!((ask.mode, ask.entry, ask.ttl), (Mode::Exclusive, ask::Entry::Queue, DEFAULT_TTL));
        for wrong in ["", "0123", "+123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdeg"] {
            let text = format!(r#"{{"name": "deploy", "claim": "{wrong}"}}"#);
            let error = serde_json::from_str::<Acquire>(&text).unwrap_err().to_string();
            assert!(error.contains("32 hexadecimal digits"), "{error}");
        }
    }

    #[test]
    fn what_is_said_comes_back() {
        let claim = ClaimRef { name: "n/\u{1f512}".parse().unwrap(), claim: ClaimId::from_u128(7) };
        let granted = Acquired::Granted {
            grant: Grant {
                fencing_token: u64::MAX,
                mode: Mode::Permit(3.try_into().unwrap()),
                ttl_ms: Some(1000),
                proof: None,
            },
            held_ms: 3,
        };
        let text = serde_json::to_string(&granted).unwrap();
        assert_eq!(serde_json::from_str::<Acquired<Grant>>(&text).unwrap(), granted);
        let news = News { claim, what: Happening::Lost { reason: LostReason::Stolen } };
        let text = serde_json::to_string(&news).unwrap();
        assert_eq!(serde_json::from_str::<News>(&text).unwrap(), news);
        assert!(text.contains(r#""happened":"lost","reason":"stolen""#), "{text}");
    }

    #[test]
    fn errors_survive_the_wire() {
        for (kind, text, ..) in KINDS {
            let error = Error::new(*kind, "said so").with_retry_after(Duration::from_millis(250));
            let problem = Problem::of(&error);
            assert_eq!(problem.kind, *text);
            let back = serde_json::from_str::<Problem>(&serde_json::to_string(&problem).unwrap())
                .unwrap()
                .into_error();
            assert_eq!(
                (back.kind(), back.message(), back.retry_after()),
                (*kind, "said so", error.retry_after())
            );
        }
        let foreign: Problem = serde_json::from_str("{}").unwrap();
        for (status, kind) in [
            (407, ErrorKind::Denied),
            (404, ErrorKind::Storage),
            (502, ErrorKind::Unavailable),
            (522, ErrorKind::Unavailable),
        ] {
            assert_eq!(Problem { status, ..foreign.clone() }.into_error().kind(), kind);
        }
    }
}
