//! What goes into a backend and what comes out: plain data, so that it can be sent, written down and compared.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, LostReason},
    name::{ClaimId, Name},
    time::Moment,
};

/// How a claim shares the lock with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Alone.
    #[default]
    Exclusive,
    /// Together with other shared claims.
    Shared,
    /// Shared, and the only one of the shared claims that may become exclusive in place.
    Upgradable,
    /// Together with other permits, as long as there are fewer than `limit` (a semaphore). Where claims name different
    /// limits, the smallest of those involved counts.
    Permit(NonZeroU32),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.write_str("exclusive"),
            Self::Shared => f.write_str("shared"),
            Self::Upgradable => f.write_str("upgradable"),
            Self::Permit(limit) => write!(f, "permit({limit})"),
        }
    }
}

/// What to do when the lock cannot be had at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Entry {
    /// Stand in line.
    #[default]
    Queue,
    /// Give up. Also when the lock is free but somebody stands in line for it.
    Try,
    /// Take it from those who hold it, ahead of those who wait. They are told `stolen`.
    Steal,
}

/// Who asks: shown to people, never compared.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Owner {
    /// `user@host:pid` unless told otherwise.
    pub owner: String,
    /// Whatever the program wants to show about the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// One request for one lock.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Which lock.
    pub name: Name,
    /// The secret that proves ownership of what is granted; asking again with it gives the same grant.
    pub claim_id: ClaimId,
    /// How to share it.
    pub mode: Mode,
    /// What to do when it is taken.
    pub entry: Entry,
    /// How long the grant lives without renewal.
    pub ttl: Duration,
    /// Who asks.
    pub owner: Arc<Owner>,
    /// For how long the claim keeps its place in the queue once nobody asks for it any more; zero: for as long as it takes
    /// to ask again.
    pub keep: Duration,
    /// Whether nobody acquires by this claim id through another value of the backend. A program with a locker of its own
    /// does not; the clients of a server that has replicas may. All else, by a ticket, may come from anywhere.
    pub only_here: bool,
}

impl Ask {
    /// The claim that it asks for.
    pub fn claim(&self) -> Claim {
        Claim { name: self.name.clone(), id: self.claim_id }
    }
}

/// A claim, named to the backend that knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Which lock.
    pub name: Name,
    /// The secret.
    pub id: ClaimId,
}

/// A lock, granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Greater than that of every earlier grant of this lock that it conflicts with; 0 where the backend has none to give.
    pub fencing_token: u64,
    /// How it is shared.
    pub mode: Mode,
    /// How long it lives; `None` where the backend frees it by itself when the process dies, and only then.
    pub lease: Option<Term>,
}

/// For how long a claim lives, as a client may believe it: rule R1, never counted from the arrival of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// When the request that started the term was sent, by the client's clock; later only where the backend can prove
    /// that the term started later.
    pub counted_from: Moment,
    /// How long the term lasts from there, as the backend granted it.
    pub ttl: Duration,
}

/// What became of one claim in a renewal.
#[derive(Clone, Debug)]
pub enum Renewal {
    /// It lives on; the grant as it is now.
    Renewed(Grant),
    /// It is gone.
    Lost(LostReason),
    /// The backend has no such claim: it has run out, was released, or never was.
    NotHeld,
    /// Nobody knows; it is held until its term is over by the client's clock.
    Unknown(Error),
}

/// What a backend has to tell of a claim without being asked.
#[derive(Clone, Debug)]
pub struct News {
    /// Of which claim.
    pub claim: Claim,
    /// What.
    pub what: Happening,
}

impl News {
    /// A claim is gone.
    pub(crate) fn lost(claim: &Claim, reason: LostReason) -> Self {
        Self { claim: claim.clone(), what: Happening::Lost(reason) }
    }

    /// Why this claim is gone, if that is what it tells.
    pub(crate) fn loss_of(&self, claim: &Claim) -> Option<LostReason> {
        match self.what {
            Happening::Lost(reason) if self.claim == *claim => Some(reason),
            _ => None,
        }
    }
}

/// What can happen to a claim that is held.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Happening {
    /// It was renewed along the way.
    Renewed(Grant),
    /// It is gone.
    Lost(LostReason),
    /// Somebody waits for it.
    Contended,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Holder {
    /// Who.
    #[serde(flatten)]
    pub owner: Owner,
    /// How it is shared.
    pub mode: Mode,
    /// The number of the grant; it names the grant to people and operators. 0 where a foreign client holds the lock
    /// that has none.
    pub fencing_token: u64,
    /// For how long it has been held, where the backend knows; in messages in milliseconds.
    #[serde(rename = "held_for_ms", with = "millis", default)]
    #[cfg_attr(feature = "schema", schemars(with = "Option<u64>"))]
    pub held_for: Option<Duration>,
}

/// Who stands in line for a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Waiter {
    /// Who.
    #[serde(flatten)]
    pub owner: Owner,
    /// How it wants to share.
    pub mode: Mode,
    /// For how long it has waited, where the backend knows; in messages in milliseconds.
    #[serde(rename = "waited_for_ms", with = "millis", default)]
    #[cfg_attr(feature = "schema", schemars(with = "Option<u64>"))]
    pub waited_for: Option<Duration>,
}

/// A lock as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// Which lock.
    pub name: Name,
    /// Who holds it; empty for a moment only, while the lock changes hands.
    pub holders: Vec<Holder>,
    /// Who stands in line, the next one first.
    pub waiters: Vec<Waiter>,
}

/// Why one waits: what `on_wait` is told, and what a timeout error carries.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Waiting {
    /// Who holds the lock.
    pub holders: Vec<Holder>,
    /// One's place in the queue, 1 for the next in line; `None` where the backend cannot tell.
    pub place: Option<usize>,
}

impl fmt::Display for Waiting {
    /// `held by ann@build-7:4711 (exclusive, for 12 s) and 2 more; place 3 in the queue`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holders.split_first() {
            None => f.write_str("held by somebody unknown")?,
            Some((first, rest)) => {
                // Whatever it says, it stays on its line.
                write!(f, "held by {} ({}", first.owner.owner.escape_debug(), first.mode)?;
                if let Some(held_for) = first.held_for {
                    write!(f, ", for {}", Rough(held_for))?;
                }
                f.write_str(")")?;
                if !rest.is_empty() {
                    write!(f, " and {} more", rest.len())?;
                }
            }
        }
        if let Some(place) = self.place {
            write!(f, "; place {place} in the queue")?;
        }
        Ok(())
    }
}

/// A duration as people say it: `350 ms`, `12 s`, `4 min`, `3 h`, `2 d`.
#[derive(Clone, Copy, Debug)]
pub struct Rough(pub Duration);

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            0 => write!(f, "{} ms", self.0.subsec_millis()),
            s @ 1..=119 => write!(f, "{s} s"),
            s @ 120..=7199 => write!(f, "{} min", s / 60),
            s @ 7200..=172_799 => write!(f, "{} h", s / 3600),
            s => write!(f, "{} d", s / 86_400),
        }
    }
}

/// Durations in JSON: whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        value.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_millis))
    }
}
