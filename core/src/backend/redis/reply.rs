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
    pub(super) fn grant(&self, sent: Moment) -> crate::ask::Grant {
        crate::ask::Grant {
            fencing_token: self.token,
            mode: self.mode,
            lease: Some(Term { counted_from: sent, ttl: self.ttl }),
        }
    }
}

/// What comes after the word `granted`.
pub(super) fn granted<T: AsRef<str>>(
    mut word: impl FnMut() -> Result<T, ParsingError>,
) -> Result<Granted, ParsingError> {
    let token = number(word()?)?;
    let (mode, limit) = (word()?, number(word()?)?);
    let mode = mode_of(mode.as_ref(), limit).ok_or(ParsingError::from("no mode"))?;
    let ttl = Duration::from_millis(number(word()?)?);
    let contended = word()?.as_ref() == "1";
    Ok(Granted { token, mode, ttl, contended, ends: number(word()?)? })
}

fn number(word: impl AsRef<str>) -> Result<u64, ParsingError> {
    word.as_ref().parse().map_err(|_| ParsingError::from("no number"))
}

impl FromRedisValue for Reply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let words: Vec<Value> = FromRedisValue::from_redis_value(value)?;
        let mut words = words.into_iter();
        let mut text = || -> Result<String, ParsingError> {
            FromRedisValue::from_redis_value(words.next().unwrap_or(Value::Nil))
        };
        Ok(match text()?.as_str() {
            "granted" => Self::Granted(granted(text)?),
            "busy" => Self::Busy,
            "waiting" => {
                let place = usize::try_from(number(text()?)?).ok();
                let look_in = Duration::from_millis(number(text()?)?);
                let holders = holders(&text()?).map_err(|_| ParsingError::from("no holders"))?;
                Self::Waiting { why: Waiting { holders, place }, look_in }
            }
            "over" => Self::Over,
            "gone" => Self::Gone(number(text()?)?),
            "refused" => Self::Refused(text()?),
            _ => return Err(ParsingError::from("no answer of our scripts")),
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
