//! Who is alive, as seen from here (rule R6). Pure.
//!
//! Clocks of others are not asked: a claim whose beat has stood still for its whole TTL since it was *first seen here* is dead.
//! It was written before it was seen, so nobody is taken for dead too early, and whoever has just come waits a TTL at the most.
//! A grant that was handed to a claim has to be taken up within [`TAKE_UP`]; one that waits says nothing while it does.
//!
//! All who wait see the same death. The first in line acts, and each behind it only [`TAKE_UP`] after the one before, which is then
//! taken for dead as well.

use std::time::Duration;

use super::doc::{Doc, Entry};
use crate::{name::ClaimId, time::Millis};

/// How long a claim that was handed the lock may take to take it up.
pub(super) const TAKE_UP: Duration = Duration::from_secs(2);

/// The holders of one lock, and since when each has its beat.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight {
    beats: Vec<(ClaimId, u64, Millis)>,
    /// Since when nobody holds it. Ours hand it on; others leave it so.
    free: Option<Millis>,
}

impl Sight {
    /// This was seen now.
    pub(super) fn see(&mut self, now: Millis, doc: &Doc) {
        let since = |entry: &Entry| {
            let known = self.beats.iter().find(|(id, beat, _)| (*id, *beat) == (entry.id, entry.beat));
            known.map_or(now, |(_, _, since)| *since)
        };
        self.beats = doc.holders.iter().map(|entry| (entry.id, entry.beat, since(entry))).collect();
        self.free = doc.holders.is_empty().then(|| self.free.unwrap_or(now));
    }

    /// The instant at which a holder is to be taken for dead.
    fn ends(&self, entry: &Entry) -> Option<Millis> {
        let allowed = if entry.beat == 0 && !entry.foreign { TAKE_UP } else { entry.ttl };
        let since = self.beats.iter().find(|(id, ..)| *id == entry.id).map(|(_, _, since)| *since)?;
        Some(since.plus(allowed))
    }

    /// When one at this place of the queue acts upon a death, if nothing happens before. `not`: whose own life is not in question.
    pub(super) fn acts_at(&self, doc: &Doc, place: usize, not: ClaimId) -> Option<Millis> {
        let others = doc.holders.iter().filter(|entry| entry.id != not);
        let first = others.filter_map(|entry| self.ends(entry)).chain(self.free).min()?;
        let behind = TAKE_UP.saturating_mul(u32::try_from(place).unwrap_or(u32::MAX));
        Some(first.plus(behind))
    }

    /// Those who are dead by now, at their beats; for one whose turn it is to act at this place of the queue also those before
    /// it, who have let their turns pass.
    pub(super) fn dead(&self, now: Millis, doc: &Doc, place: usize, not: ClaimId) -> Vec<(ClaimId, u64)> {
        let others = doc.holders.iter().filter(|entry| entry.id != not);
        let dead = others.filter(|entry| self.ends(entry).is_some_and(|ends| ends <= now));
        dead.chain(doc.queue.iter().take(place)).map(|entry| (entry.id, entry.beat)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ask::Mode;

    fn entry(n: u128, beat: u64) -> Entry {
        Entry {
            id: ClaimId::from_u128(n),
            mode: Mode::Shared,
            ttl: Duration::from_secs(10),
            token: 1,
            beat,
            owner: Arc::default(),
            since: Millis(0),
            foreign: false,
        }
    }

    fn doc(holders: &[(u128, u64)]) -> Doc {
        Doc { holders: holders.iter().map(|(n, beat)| entry(*n, *beat)).collect(), ..Doc::default() }
    }

    fn me() -> ClaimId {
        ClaimId::from_u128(99)
    }

    #[test]
    fn a_beat_that_stands_still_for_the_ttl_is_a_death() {
        let mut sight = Sight::default();
        sight.see(Millis(1_000), &doc(&[(1, 5), (2, 7)]));
        sight.see(Millis(4_000), &doc(&[(1, 5), (2, 8)]));
        let now = doc(&[(1, 5), (2, 8)]);
        assert_eq!(sight.acts_at(&now, 0, me()), Some(Millis(11_000)));
        assert!(sight.dead(Millis(10_999), &now, 0, me()).is_empty());
        assert_eq!(sight.dead(Millis(11_000), &now, 0, me()), [(ClaimId::from_u128(1), 5)]);
        assert_eq!(sight.dead(Millis(14_000), &now, 0, ClaimId::from_u128(2)).len(), 1, "not oneself");
    }

    #[test]
    fn those_behind_act_later() {
        let mut sight = Sight::default();
        sight.see(Millis(0), &doc(&[(1, 1)]));
        let at = |place| sight.acts_at(&doc(&[(1, 1)]), place, me()).unwrap().0;
        assert_eq!([at(0), at(1), at(3)], [10_000, 12_000, 16_000]);
        let queued = Doc { queue: vec![entry(7, 0), entry(8, 0)], ..doc(&[(1, 1)]) };
        let dead: Vec<_> =
            sight.dead(Millis(12_000), &queued, 1, me()).iter().map(|(id, _)| id.reveal()).collect();
        assert_eq!(dead, [1, 7], "and those before it who should have acted");
    }

    #[test]
    fn what_was_handed_over_is_to_be_taken_up_soon() {
        let mut sight = Sight::default();
        sight.see(Millis(0), &doc(&[(1, 0)]));
        assert_eq!(sight.acts_at(&doc(&[(1, 0)]), 0, me()), Some(Millis(2_000)));
        sight.see(Millis(1_500), &doc(&[(1, 1)]));
        assert_eq!(sight.acts_at(&doc(&[(1, 1)]), 0, me()), Some(Millis(11_500)));
    }

    #[test]
    fn a_lock_that_others_left_free_is_taken_by_the_first() {
        let mut sight = Sight::default();
        sight.see(Millis(100), &doc(&[]));
        sight.see(Millis(500), &doc(&[]));
        assert_eq!(sight.acts_at(&doc(&[]), 0, me()), Some(Millis(100)));
        assert_eq!(sight.acts_at(&doc(&[]), 2, me()), Some(Millis(4_100)));
        sight.see(Millis(600), &doc(&[(1, 1)]));
        sight.see(Millis(700), &doc(&[]));
        assert_eq!(sight.acts_at(&doc(&[]), 0, me()), Some(Millis(700)));
    }
}
