//! Several questions in one request.

use serde::{Deserialize, Serialize};

use super::{Acquire, AcquireAll, Acquired, Change, Grant, Problem, Renew, Renewed, maybe_hex};
use crate::name::ClaimId;

/// `POST together`: questions that may have to wait, in one request, for programs that have few connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Together {
    /// Who asks: a request that may be held open ends the one before it of the same client, which is answered with what it has.
    #[serde(default, with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<ClaimId>"))]
    pub client: Option<ClaimId>,
    /// For how many milliseconds the server may hold the request open, whatever the questions say: 60,000 unless told, and at the
    /// most. It answers as soon as one of them has its answer; with 0, once all have theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// What is asked: as much as fits into the longest body that the server takes. If one of them makes no sense, none is asked.
    pub questions: Vec<Question>,
}

/// What can be asked together with others, by the name of its route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// `POST acquire`
    Acquire(Acquire),
    /// `POST acquire-all`
    AcquireAll(AcquireAll),
    /// `POST change`
    Change(Change),
    /// `POST renew`, parked
    Renew(Renew),
}

/// The answer to questions that were asked together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Answers {
    /// One for each, in the order of the questions: `null` where there is none yet. Such a claim keeps its place as after any request
    /// that ended: ask again by its id.
    pub answers: Vec<Option<Answer>>,
}

/// The answer to one of them, by the name of its route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To `acquire`.
    Acquire(Acquired<Grant>),
    /// To `acquire-all`.
    AcquireAll(Acquired<Vec<Grant>>),
    /// To `change`.
    Change(Acquired<Grant>),
    /// To `renew`.
    Renew(Renewed),
    /// To any of them: it is refused.
    Problem(Problem),
}
