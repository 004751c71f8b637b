//! Claims written down and read back: for a server that stops and starts again.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Effect, Granted, Origin, Table};
use crate::{
    ask::{Mode, Owner},
    name::{ClaimId, Name},
    protocol::{hex, millis},
    record::{Record, Turn},
    time::Millis,
};

/// A claim as it is written down. It holds the claim id, so it is a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Kept {
    /// Which lock.
    pub name: Name,
    /// By which id.
    #[serde(with = "hex")]
    #[cfg_attr(feature = "schema", schemars(with = "ClaimId"))]
    pub claim: ClaimId,
    /// How it shares the lock.
    pub mode: Mode,
    /// How many milliseconds it lives without renewal.
    pub ttl_ms: u64,
    /// The number of its grant; `None`: it waits.
    pub fencing_token: Option<u64>,
    /// Who asked.
    #[serde(flatten)]
    pub owner: Owner,
    /// For how many milliseconds it has held or waited.
    #[serde(default)]
    pub for_ms: u64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .field("fencing_token", &self.fencing_token)
            .finish_non_exhaustive()
    }
}

impl Table {
    /// All claims, those of one lock in the order in which [`reinstate`](Self::reinstate) wants them.
    pub fn kept(&self, now: Millis) -> Vec<Kept> {
        let mut all = Vec::new();
        for (name, record) in &self.records {
            record.each(|party, fencing_token| {
                all.push(Kept {
                    name: name.clone(),
                    claim: party.id,
                    mode: party.mode,
                    ttl_ms: party.ttl.map_or(u64::MAX, millis),
                    fencing_token,
                    owner: Owner::clone(&party.owner),
                    for_ms: millis(now.since(party.since)),
                });
            });
        }
        all
    }

    /// The longest TTL of them all.
    pub fn longest_ttl(&self) -> Duration {
        let mut longest = Duration::ZERO;
        for record in self.records.values() {
            record.each(|party, _| longest = longest.max(party.ttl.unwrap_or(Duration::MAX)));
        }
        longest
    }

    /// Takes up a claim that an earlier table had: a holder with its fencing token and all of its TTL, a waiter behind those
    /// that wait already.
    ///
    /// Of holders that conflict the one with the greater token was granted later, so the other had lost the lock
    /// before: it is refused, or loses it now. `None`: refused, or it was released here meanwhile. Later grants get greater
    /// tokens than this one.
    pub fn reinstate(
        &mut self,
        now: Millis,
        kept: &Kept,
        origin: Origin,
        effects: &mut Vec<Effect>,
    ) -> Option<Granted> {
        if self.ended.recall(kept.claim).is_some() {
            return None;
        }
        if let Some(token) = kept.fencing_token {
            self.next_token = self.next_token.max(token.saturating_add(1));
        }
        let ttl = self.rules.expires.then(|| Duration::from_millis(kept.ttl_ms));
        let party = crate::record::Party {
            id: kept.claim,
            origin,
            mode: kept.mode,
            owner: Arc::new(kept.owner.clone()),
            ttl,
            since: Millis(now.0.saturating_sub(kept.for_ms)),
        };
        self.records.entry(kept.name.clone()).or_default();
        self.step(now, &kept.name, effects, |record: &mut Record, turn: &mut Turn<'_>| {
            record.reinstate(turn, party, kept.fencing_token)
        })
        .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ask::{Ask, Claim, Entry},
        error::LostReason,
        table::{Outcome, Rules, What},
    };

    const RULES: Rules = Rules { first_token: 1, expires: true, remember: Duration::from_secs(60) };

    fn ask(id: u128, name: &str, mode: Mode) -> Ask {
        let owner = Owner { owner: format!("client {id}"), ..Owner::default() };
        Ask {
            name: name.parse().unwrap(),
            claim_id: ClaimId::from_u128(id),
            mode,
            entry: Entry::Queue,
            ttl: Duration::from_secs(10),
            owner: Arc::new(owner),
            keep: Duration::ZERO,
            only_here: false,
        }
    }

    fn table() -> Table {
        let mut table = Table::new(RULES);
        let permit = Mode::Permit(2.try_into().unwrap());
        let asks = [
            ask(1, "a", Mode::Exclusive),
            ask(2, "a", Mode::Shared),
            ask(3, "a", Mode::Exclusive),
            ask(4, "b", Mode::Shared),
            ask(5, "b", Mode::Upgradable),
            ask(6, "c", permit),
            ask(7, "c", permit),
            ask(8, "c", permit),
        ];
        for ask in &asks {
            let _ = table.acquire(Millis(1_000), ask, Origin(1), &mut Vec::new());
        }
        table
    }

    fn again(kept: &[Kept], now: Millis) -> Table {
        let mut table = Table::new(RULES);
        for kept in kept {
            table.reinstate(now, kept, Origin(2), &mut Vec::new());
        }
        table
    }

    #[test]
    fn what_is_written_down_comes_back_with_places_and_tokens() {
        let before = table();
        let text = serde_json::to_string(&before.kept(Millis(3_000))).unwrap();
        let kept: Vec<Kept> = serde_json::from_str(&text).unwrap();
        let mut after = again(&kept, Millis(500_000));
        assert_eq!(after.status(Millis(500_000), ""), before.status(Millis(3_000), ""));
        assert_eq!(after.next_token(), before.next_token());
        assert_eq!(after.next_deadline(), Some(Millis(510_000)), "all of the TTL begins anew");
        let mut effects = Vec::new();
        after.release(
            Millis(500_000),
            &Claim { name: "a".parse().unwrap(), id: ClaimId::from_u128(1) },
            &mut effects,
        );
        assert!(
            matches!(effects[0].what, What::Granted(granted) if granted.fencing_token == before.next_token())
        );
    }

    #[test]
    fn the_longest_ttl_is_that_of_a_claim_that_is_there() {
        let mut table = table();
        assert_eq!(table.longest_ttl(), Duration::from_secs(10));
        let long = Ask { ttl: Duration::from_secs(60), ..ask(9, "a", Mode::Exclusive) };
        let _ = table.acquire(Millis(1_000), &long, Origin(1), &mut Vec::new());
        assert_eq!(table.longest_ttl(), Duration::from_secs(60), "it waits, and may be granted at any time");
        table.release(Millis(1_000), &long.claim(), &mut Vec::new());
        assert_eq!(table.longest_ttl(), Duration::from_secs(10));
    }

    #[test]
    fn of_two_that_conflict_the_later_grant_counts() {
        let kept = table().kept(Millis(1_000));
        let mut old = kept.iter().find(|kept| kept.claim == ClaimId::from_u128(1)).unwrap().clone();
        old.fencing_token = Some(7);
        let new = Kept { claim: ClaimId::from_u128(9), fencing_token: Some(8), ..old.clone() };
        let mut first_new = again(std::slice::from_ref(&new), Millis(0));
        assert_eq!(first_new.reinstate(Millis(0), &old, Origin(0), &mut Vec::new()), None);
        let (mut first_old, mut effects) = (again(std::slice::from_ref(&old), Millis(0)), Vec::new());
        let granted = first_old.reinstate(Millis(0), &new, Origin(0), &mut effects).unwrap();
        assert_eq!(granted.fencing_token, 8);
        assert!(matches!(effects[0].what, What::Lost(LostReason::Expired)));
        assert_eq!(first_old.next_token(), 9);
    }

    #[test]
    fn taking_up_twice_is_taking_up_once_and_what_was_released_stays_so() {
        let kept = table().kept(Millis(1_000));
        let mut after = again(&kept, Millis(0));
        let status = after.status(Millis(0), "");
        for kept in &kept {
            after.reinstate(Millis(0), kept, Origin(2), &mut Vec::new());
        }
        assert_eq!(after.status(Millis(0), ""), status);
        let claim = Claim { name: "b".parse().unwrap(), id: ClaimId::from_u128(4) };
        after.release(Millis(0), &claim, &mut Vec::new());
        let four = kept.iter().find(|kept| kept.claim == claim.id).unwrap();
        assert_eq!(after.reinstate(Millis(0), four, Origin(2), &mut Vec::new()), None);
        let late = ask(4, "b", Mode::Shared);
        assert_eq!(after.acquire(Millis(0), &late, Origin(2), &mut Vec::new()), Outcome::Over);
    }
}
