//! The changes of modes, in the order in which they were asked for.
//!
//! A request that its client has given up may come long after the next one, as the rest of a connection that was cut off. A late
//! acquire or release is known by its claim's id; a late change would undo what was asked for since. So a client numbers its
//! changes of a claim, and one that comes after a later one is not obeyed. What other clients ask for that have the claim from it
//! has numbers of its own. Each server knows what it was asked itself.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use windlass::{ClaimId, Error, ErrorKind, Result, ask::Claim};

/// For how long after the last one a change may come late.
const REMEMBER: Duration = Duration::from_secs(120);
/// At how many claims to look first which of them to forget.
const LOOK_AT: usize = 64;

/// The last change of each claim.
#[derive(Default)]
pub(crate) struct Changes(Mutex<Known>);

#[derive(Default)]
struct Known {
    last: HashMap<ClaimId, Last>,
    /// At how many to look next.
    look_at: usize,
}

struct Last {
    by: Option<ClaimId>,
    number: u64,
    at: Instant,
}

impl Changes {
    /// Begins a change, unless it comes late. `begin` is not to wait: no other change begins meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`] for one that comes late.
    pub(crate) fn in_order<T>(
        &self,
        claim: &Claim,
        by: Option<ClaimId>,
        number: Option<u64>,
        now: Instant,
        begin: impl FnOnce() -> T,
    ) -> Result<T> {
        let Some(number) = number else { return Ok(begin()) };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.last.get(&claim.id).is_some_and(|last| last.by == by && last.number > number) {
            let message = "this change comes late: another one was asked for since";
            return Err(Error::new(ErrorKind::NotHeld, message).with_lock(&claim.name));
        }
        if known.last.len() >= known.look_at {
            known.last.retain(|_, last| now.duration_since(last.at) < REMEMBER);
            known.look_at = (known.last.len() * 2).max(LOOK_AT);
        }
        known.last.insert(claim.id, Last { by, number, at: now });
        Ok(begin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_late_is_not_obeyed() {
        let (changes, now) = (Changes::default(), Instant::now());
        let claim = |id| Claim { name: "a".parse().unwrap(), id: ClaimId::from_u128(id) };
        let client = |id| Some(ClaimId::from_u128(id));
        let obeyed = |id, by, number| changes.in_order(&claim(id), by, number, now, || ()).is_ok();
        assert!(obeyed(1, client(1), Some(2)));
        assert!(!obeyed(1, client(1), Some(1)), "late");
        assert!(obeyed(1, client(1), Some(2)), "once more");
        assert!(obeyed(2, client(1), Some(1)), "of another claim");
        assert!(obeyed(1, client(1), None), "of one that counts nothing");
        assert!(obeyed(1, client(2), Some(1)), "by whom the claim was handed to");
        assert!(!obeyed(1, client(2), Some(0)));
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (changes, now) = (Changes::default(), Instant::now());
        let change = |id, now| {
            let claim = Claim { name: "a".parse().unwrap(), id: ClaimId::from_u128(id) };
            changes.in_order(&claim, None, Some(1), now, || ()).unwrap();
        };
        (0..1_000).for_each(|id| change(id, now));
        assert_eq!(changes.0.lock().unwrap().last.len(), 1_000);
        (1_000..2_100).for_each(|id| change(id, now + REMEMBER));
        assert!(changes.0.lock().unwrap().last.len() <= 1_100);
    }
}
