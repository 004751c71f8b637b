//! Who is alive, as seen from here (rule R6). Pure.
//!
//! Clocks of others are not asked: a claim whose beat has stood still for its whole TTL since it was *first seen here* is dead.
//! It was written before it was seen, so nobody is taken for dead too early, and whoever has just come waits a TTL at the most.
//! A grant that was handed to a claim has to be taken up within [`TAKE_UP`]; one that waits says nothing while it does. But one that
//! has come [`LATELY`] has said enough: it is let in as one that lives, and its lease counts from when it asked.
//!
//! All who wait see a death, though who has just come sees it late. The first in line acts, and each behind it only [`TAKE_UP`]
//! after the one before. One that was seen in line for so long that it must have seen the death, and has not acted in its turn, is
//! taken for dead as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::doc::{Dead, Doc, Entry};
use crate::{name::ClaimId, time::Millis};

/// How long a claim that was handed the lock may take to take it up.
pub(super) const TAKE_UP: Duration = Duration::from_secs(2);
/// For how long a claim that has come is known to live.
const LATELY: Duration = Duration::from_millis(500);

/// One lock: since when each holder has its beat, and each that waits is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Sight {
    /// When it was first seen: who waited then may have come long before.
    begun: Option<Millis>,
    beats: Vec<(ClaimId, u64, Millis)>,
    waiters: BTreeMap<ClaimId, Millis>,
    /// Since when nobody holds it. Ours hand it on; others leave it so.
    free: Option<Millis>,
}

impl Sight {
    /// This was seen now.
    pub(super) fn see(&mut self, now: Millis, doc: &Doc) {
        self.begun.get_or_insert(now);
        let since = |entry: &Entry| {
            let known = self.beats.iter().find(|(id, beat, _)| (*id, *beat) == (entry.id, entry.beat));
            known.map_or(now, |(_, _, since)| *since)
        };
        self.beats = doc.holders.iter().map(|entry| (entry.id, entry.beat, since(entry))).collect();
        let came = |entry: &Entry| (entry.id, *self.waiters.get(&entry.id).unwrap_or(&now));
        self.waiters = doc.queue.iter().map(came).collect();
        self.free = doc.holders.is_empty().then(|| self.free.unwrap_or(now));
    }

    /// The instant at which a holder is to be taken for dead.
    fn ends(&self, entry: &Entry) -> Option<Millis> {
        let since = self.beats.iter().find(|(id, ..)| *id == entry.id).map(|(_, _, since)| *since)?;
        Some(since.plus(allowed(entry)))
    }

    /// The first instant after this one at which a holder is to be taken for dead, if nothing is heard of it.
    pub(super) fn next_end(&self, doc: &Doc, after: Millis) -> Option<Millis> {
        doc.holders.iter().filter_map(|entry| self.ends(entry)).filter(|ends| *ends > after).min()
    }

    /// When the first one sees a death, and for how long it has looked by then.
    fn first(&self, doc: &Doc, not: ClaimId) -> Option<(Millis, Duration)> {
        let others = doc.holders.iter().filter(|entry| entry.id != not);
        let ends = others.filter_map(|entry| Some((self.ends(entry)?, allowed(entry))));
        ends.chain(self.free.map(|free| (free, Duration::ZERO))).min()
    }

    /// Those who wait and have come so short a time ago that they live.
    pub(super) fn came_lately(&self, now: Millis) -> BTreeSet<ClaimId> {
        let lately = |came: Millis| Some(came) > self.begun && now.since(came) < LATELY;
        self.waiters.iter().filter(|(_, came)| lately(**came)).map(|(id, _)| *id).collect()
    }

    /// When one at this place of the queue acts upon a death, if nothing happens before. `not`: whose own life is not in question.
    pub(super) fn acts_at(&self, doc: &Doc, place: usize, not: ClaimId) -> Option<Millis> {
        Some(self.first(doc, not)?.0.plus(behind(place)))
    }

    /// Those who are dead by now; for one whose turn it is to act at this place of the queue also those before it, who have let
    /// their turns pass.
    pub(super) fn dead(&self, now: Millis, doc: &Doc, place: usize, not: ClaimId) -> Dead {
        let others = doc.holders.iter().filter(|entry| entry.id != not);
        let dead = others.filter(|entry| self.ends(entry).is_some_and(|ends| ends <= now));
        let holders = dead.map(|entry| (entry.id, entry.beat)).collect();
        let first = self.first(doc, not);
        let has_seen_it = |(place, entry): &(usize, &Entry)| {
            first.zip(self.waiters.get(&entry.id)).is_some_and(|((first, looked), came)| {
                first.max(came.plus(looked)).plus(behind(place + 1)) <= now
            })
        };
        let before = doc.queue.iter().take(place).enumerate();
        Dead { holders, waiters: before.filter(has_seen_it).map(|(_, entry)| entry.id).collect() }
    }
}

/// How long a holder may be silent.
fn allowed(entry: &Entry) -> Duration {
    if entry.beat == 0 && !entry.foreign { TAKE_UP } else { entry.ttl }
}

/// How much later than the first one acts who stands at this place.
fn behind(place: usize) -> Duration {
    TAKE_UP.saturating_mul(u32::try_from(place).unwrap_or(u32::MAX))
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
        let dead = |at, not| sight.dead(Millis(at), &now, 0, not).holders;
        assert!(dead(10_999, me()).is_empty());
        assert_eq!(dead(11_000, me()), [(ClaimId::from_u128(1), 5)]);
        assert_eq!(dead(14_000, ClaimId::from_u128(2)).len(), 1, "not oneself");
    }

    #[test]
    fn those_behind_act_later() {
        let mut sight = Sight::default();
        sight.see(Millis(0), &doc(&[(1, 1)]));
        let at = |place| sight.acts_at(&doc(&[(1, 1)]), place, me()).unwrap().0;
        assert_eq!([at(0), at(1), at(3)], [10_000, 12_000, 16_000]);
    }

    #[test]
    fn those_before_are_dead_who_should_have_acted() {
        let mut sight = Sight::default();
        let queued =
            |ids: &[u128]| Doc { queue: ids.iter().map(|id| entry(*id, 0)).collect(), ..doc(&[(1, 1)]) };
        sight.see(Millis(0), &doc(&[(1, 1)]));
        sight.see(Millis(1_000), &queued(&[7]));
        sight.see(Millis(9_000), &queued(&[7, 8]));
        let dead = |at, place| -> Vec<u128> {
            let dead = sight.dead(Millis(at), &queued(&[7, 8, 9]), place, me());
            assert_eq!(dead.holders, [(ClaimId::from_u128(1), 1)]);
            dead.waiters.iter().map(|id| id.reveal()).collect()
        };
        assert_eq!(dead(12_999, 2), [0; 0], "it may have seen the death at 11 s, and have two more to act");
        assert_eq!(dead(13_000, 2), [7]);
        assert_eq!(dead(22_999, 2), [7], "who came later sees it later");
        assert_eq!(dead(23_000, 2), [7, 8]);
        assert_eq!(dead(23_000, 0), [0; 0]);
    }

    #[test]
    fn who_has_come_lately_lives() {
        let mut sight = Sight::default();
        let queued =
            |ids: &[u128]| Doc { queue: ids.iter().map(|id| entry(*id, 0)).collect(), ..doc(&[(1, 1)]) };
        sight.see(Millis(0), &queued(&[7]));
        sight.see(Millis(100), &queued(&[7, 8]));
        sight.see(Millis(300), &queued(&[7, 8, 9]));
        let lately =
            |at| -> Vec<u128> { sight.came_lately(Millis(at)).iter().map(|id| id.reveal()).collect() };
        assert_eq!(lately(300), [8, 9], "the first may have been there for long");
        assert_eq!(lately(600), [9]);
        assert_eq!(lately(800), [0; 0]);
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
