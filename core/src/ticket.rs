//! A claim as text, to hand it to another process: held, or with a place in the queue that is kept.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use crate::{
    ask::{Claim, Mode},
    error::{Error, ErrorKind, Result},
    name::{ClaimId, Name},
    protocol::millis,
};

/// A claim as text. Who has it has the lock, or the place in its queue: it is a secret, and `Debug` shows none of it.
///
/// A held claim becomes one by [`Guard::detach`](crate::Guard::detach), and is taken up by
/// [`Locker::attach`](crate::Locker::attach). One that waits becomes one by [`Lock::keep_place`](crate::Lock::keep_place), and
/// is taken up by [`Lock::ticket`](crate::Lock::ticket).
///
/// The text is `windlass1:` and the claim id, fencing token (0 for a place in the queue), TTL in milliseconds, mode and name,
/// with colons between.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) claim: Claim,
    pub(crate) fencing_token: u64,
    pub(crate) mode: Mode,
    pub(crate) ttl: Duration,
}

const PREFIX: &str = "windlass1";

impl Ticket {
    /// The secret text.
    pub fn reveal(&self) -> String {
        let mode = match self.mode {
            Mode::Exclusive => "x".to_owned(),
            Mode::Shared => "s".to_owned(),
            Mode::Upgradable => "u".to_owned(),
            Mode::Permit(limit) => format!("p{limit}"),
        };
        let Self { claim, fencing_token, ttl, .. } = self;
        format!(
            "{PREFIX}:{:032x}:{fencing_token}:{}:{mode}:{}",
            claim.id.reveal(),
            millis(*ttl),
            claim.name.as_str()
        )
    }

    /// Which lock it is a claim of.
    pub fn name(&self) -> &Name {
        &self.claim.name
    }
}

impl FromStr for Ticket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "this is not a ticket: give the whole text of one")
        })
    }
}

fn parse(text: &str) -> Option<Ticket> {
    let mut parts = text.splitn(6, ':');
    if parts.next()? != PREFIX {
        return None;
    }
    let id = parts.next().filter(|id| id.len() == 32)?;
    let id = ClaimId::from_u128(u128::from_str_radix(id, 16).ok()?);
    let fencing_token = parts.next()?.parse().ok()?;
    let ttl = Duration::from_millis(parts.next()?.parse().ok()?);
    let mode = match parts.next()? {
        "x" => Mode::Exclusive,
        "s" => Mode::Shared,
        "u" => Mode::Upgradable,
        permit => Mode::Permit(permit.strip_prefix('p')?.parse::<NonZeroU32>().ok()?),
    };
    let name = parts.next()?.parse().ok()?;
    Some(Ticket { claim: Claim { name, id }, fencing_token, mode, ttl })
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("name", &self.claim.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_ticket_survives_as_text(name in "\\PC{1,200}", id: u128, fencing_token: u64, ttl in 1000_u64..300_000, limit in 1_u32..) {
            for mode in [Mode::Exclusive, Mode::Shared, Mode::Upgradable, Mode::Permit(NonZeroU32::new(limit).unwrap())] {
                let claim = Claim { name: name.parse().unwrap(), id: ClaimId::from_u128(id) };
                let ticket = Ticket { claim, fencing_token, mode, ttl: Duration::from_millis(ttl) };
                prop_assert_eq!(&ticket.reveal().parse::<Ticket>().unwrap(), &ticket);
                let secret = format!("{id:032x}");
                let told = format!("{ticket:?}").contains(&secret);
                prop_assert!(!told);
            }
        }

        #[test]
        fn other_text_is_refused(text in "(windlass1:)?\\PC{0,80}") {
            prop_assume!(parse(&text).is_none());
            prop_assert_eq!(text.parse::<Ticket>().unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
