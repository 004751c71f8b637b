//! What the scripts answer, as values of this crate.

use std::{num::NonZeroU32, time::Duration};

use redis::{FromRedisValue, ParsingError, Value};
use serde::Deserialize;

use crate::{
    ask::{Holder, Mode, Owner, Term, Waiter, Waiting},
    error::{Error, ErrorKind, Result},
    time::Moment,
};

/// What became of one claim.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Granted(Granted),
    Busy,
    Waiting {
        why: Waiting,
        /// When to look again, if nothing is heard until then.
        look_in: Duration,
    },
    /// It was called off.
    Over,
    /// It does not hold; what Redis's clock says.
    Gone(u64),
    /// A claim of this mode cannot be changed so.
    Refused(String),
}

#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) token: u64,
    pub(super) mode: Mode,
    pub(super) ttl: Duration,
    pub(super) contended: bool,
    /// By Redis's clock, in milliseconds.
    pub(super) ends: u64,
}

impl Granted {
    /// The terms as `head.lua` has them.
    pub(super) fn read(terms: &str) -> Option<Self> {
        let mut words = terms.split(' ');
        let token = words.next()?.parse().ok()?;
        let mode = mode_of(words.next()?, words.next()?.parse().ok()?)?;
        let ttl = Duration::from_millis(words.next()?.parse().ok()?);
        let contended = words.next()? == "1";
        Some(Self { token, mode, ttl, contended, ends: words.next()?.parse().ok()? })
    }

    pub(super) fn grant(&self, sent: Moment) -> crate::ask::Grant {
        crate::ask::Grant {
            fencing_token: self.token,
            mode: self.mode,
            lease: Some(Term { counted_from: sent, ttl: self.ttl }),
        }
    }
}

impl FromRedisValue for Reply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let text: String = FromRedisValue::from_redis_value(value)?;
        Self::read(&text).ok_or(ParsingError::from("no answer of our scripts"))
    }
}

impl Reply {
    fn read(text: &str) -> Option<Self> {
        let (what, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match what {
            "granted" => Self::Granted(Granted::read(rest)?),
            "busy" => Self::Busy,
            "waiting" => {
                let mut words = rest.splitn(3, ' ');
                let place = words.next()?.parse().ok();
                let look_in = Duration::from_millis(words.next()?.parse().ok()?);
                Self::Waiting { why: Waiting { holders: holders(words.next()?).ok()?, place }, look_in }
            }
            "over" => Self::Over,
            "gone" => Self::Gone(rest.parse().ok()?),
            "refused" => Self::Refused(rest.to_owned()),
            _ => return None,
        })
    }
}

/// The name of a mode in the scripts, and the limit of permits.
pub(super) fn mode_words(mode: Mode) -> (&'static str, u32) {
    match mode {
        Mode::Exclusive => ("exclusive", 0),
        Mode::Shared => ("shared", 0),
        Mode::Upgradable => ("upgradable", 0),
        Mode::Permit(limit) => ("permit", limit.get()),
    }
}

fn mode_of(word: &str, limit: u64) -> Option<Mode> {
    Some(match word {
        "exclusive" => Mode::Exclusive,
        "shared" => Mode::Shared,
        "upgradable" => Mode::Upgradable,
        "permit" => Mode::Permit(NonZeroU32::new(u32::try_from(limit).ok()?)?),
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Party {
    owner: Owner,
    mode: String,
    limit: u64,
    #[serde(default)]
    token: String,
    #[serde(alias = "waited")]
    held: u64,
}

/// A foreign holder is `null`.
pub(super) fn holders(json: &str) -> Result<Vec<Holder>> {
    let parties: Vec<Option<Party>> = serde_json::from_str(json).map_err(damaged)?;
    let holder = |party: Option<Party>| match party {
        None => Holder {
            owner: Owner { owner: "somebody unknown".to_owned(), ..Owner::default() },
            mode: Mode::Exclusive,
            fencing_token: 0,
            held_for: None,
        },
        Some(party) => Holder {
            mode: mode_of(&party.mode, party.limit).unwrap_or_default(),
            fencing_token: party.token.parse().unwrap_or(0),
            owner: party.owner,
            held_for: Some(Duration::from_millis(party.held)),
        },
    };
    Ok(parties.into_iter().map(holder).collect())
}

pub(super) fn waiters(json: &str) -> Result<Vec<Waiter>> {
    let parties: Vec<Party> = serde_json::from_str(json).map_err(damaged)?;
    let waiter = |party: Party| Waiter {
        mode: mode_of(&party.mode, party.limit).unwrap_or_default(),
        owner: party.owner,
        waited_for: Some(Duration::from_millis(party.held)),
    };
    Ok(parties.into_iter().map(waiter).collect())
}

fn damaged(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Storage, "the record of a lock is damaged: free it with force_release")
        .with_source(error)
}
