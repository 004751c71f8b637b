//! What a table has counted: plain numbers that are added up where it has the mutex anyway.

use std::time::Duration;

use crate::error::LostReason;

/// The upper ends of the ranges in which times are counted, in milliseconds; what is longer is in a last one.
pub const RANGES_MS: [u64; 14] =
    [1, 5, 25, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000];

/// The reasons for which a table takes a lock from its holder.
pub const REASONS: [LostReason; 3] = [LostReason::Expired, LostReason::ForceReleased, LostReason::Stolen];

/// Times, by how long they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// How many were in each range of [`RANGES_MS`], and how many were longer.
    pub counts: [u64; RANGES_MS.len() + 1],
    /// All of them together, in milliseconds.
    pub sum_ms: u64,
}

/// What happened in a table since it was made; all but `holding` and `waiting` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Claims that hold.
    pub holding: u64,
    /// Claims that wait.
    pub waiting: u64,
    /// How long the claims waited that were granted; one that was granted at once waited for no time.
    pub waited: Times,
    /// How long the claims held that hold no longer.
    pub held: Times,
    /// Claims that were released by their holders.
    pub released: u64,
    /// Claims that were lost, for each of [`REASONS`].
    pub lost: [u64; REASONS.len()],
    /// Claims that waited and have left the queue without a grant.
    pub gave_up: u64,
}

impl Times {
    fn add(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.counts[RANGES_MS.partition_point(|&end| end < ms)] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum_ms = self.sum_ms.saturating_add(other.sum_ms);
    }
}

impl Tally {
    /// Both together.
    pub fn merge(&mut self, other: &Self) {
        self.holding += other.holding;
        self.waiting += other.waiting;
        self.waited.merge(&other.waited);
        self.held.merge(&other.held);
        self.released += other.released;
        self.lost.iter_mut().zip(other.lost).for_each(|(count, more)| *count += more);
        self.gave_up += other.gave_up;
    }

    pub(crate) fn grant(&mut self, waited: Duration) {
        self.waited.add(waited);
    }

    pub(crate) fn lose(&mut self, reason: LostReason) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.lost[at] += 1;
        }
    }

    pub(crate) fn end(&mut self, held: Duration) {
        self.held.add(held);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        ask::{Ask, Claim, Entry, Mode},
        name::ClaimId,
        table::{Origin, Rules, Table},
        time::Millis,
    };

    #[test]
    fn what_happens_is_counted_once() {
        let rules = Rules { first_token: 1, expires: true, remember: Duration::from_secs(60) };
        let (mut table, mut effects) = (Table::new(rules), Vec::new());
        let claim = |id| Claim { name: "a".parse().unwrap(), id: ClaimId::from_u128(id) };
        let mut ask = |table: &mut Table, at, id, entry| {
            let Claim { name, id: claim_id } = claim(id);
            let ttl = Duration::from_secs(10);
            let (owner, keep) = (Arc::default(), Duration::ZERO);
            let ask =
                Ask { name, claim_id, mode: Mode::Exclusive, entry, ttl, owner, keep, only_here: false };
            let _ = table.acquire(Millis(at), &ask, Origin(0), &mut effects);
        };
        ask(&mut table, 0, 1, Entry::Queue);
        ask(&mut table, 0, 1, Entry::Queue);
        ask(&mut table, 0, 2, Entry::Queue);
        ask(&mut table, 0, 3, Entry::Queue);
        ask(&mut table, 0, 4, Entry::Try);
        assert_eq!((table.tally().holding, table.tally().waiting), (1, 2));
        table.release(Millis(400), &claim(1), &mut Vec::new());
        table.release(Millis(400), &claim(1), &mut Vec::new());
        table.release(Millis(400), &claim(3), &mut Vec::new());
        ask(&mut table, 500, 5, Entry::Steal);
        table.force_release(Millis(600), &claim(5).name, None, &mut Vec::new());
        ask(&mut table, 700, 6, Entry::Queue);
        table.expire(Millis(20_000), &mut Vec::new());
        let tally = *table.tally();
        assert_eq!((tally.holding, tally.waiting, tally.released, tally.gave_up), (0, 0, 1, 1));
        assert_eq!(tally.lost, [1, 1, 1]);
        // 1, 5 and 6 at once, 2 after 400 ms.
        assert_eq!((tally.waited.counts[0], tally.waited.counts[5], tally.waited.sum_ms), (3, 1, 400));
        assert_eq!((tally.held.counts.iter().sum::<u64>(), tally.held.sum_ms), (4, 400 + 100 + 100 + 19_300));
    }

    #[test]
    fn a_range_ends_with_its_end() {
        let mut times = Times::default();
        for ms in [0, 1, 2, 5, 6, 3_600_000, 3_600_001] {
            times.add(Duration::from_millis(ms));
        }
        let mut counts = [0; 15];
        (counts[0], counts[1], counts[2], counts[13], counts[14]) = (2, 2, 1, 1, 1);
        assert_eq!(times, Times { counts, sum_ms: 7_200_015 });
    }

    #[test]
    fn of_two_tables_each_number_is_added() {
        let times = |n: u64| Times { counts: std::array::from_fn(|range| n + range as u64), sum_ms: n };
        let tally = |n: u64| Tally {
            holding: n,
            waiting: n + 1,
            waited: times(n + 2),
            held: times(n + 3),
            released: n + 4,
            lost: [n + 5, n + 6, n + 7],
            gave_up: n + 8,
        };
        let mut sum = tally(3);
        sum.merge(&tally(100));
        let both = |n: u64, of: u64| Times {
            counts: std::array::from_fn(|range| n + 2 * (of + range as u64)),
            sum_ms: n + 2 * of,
        };
        let expected = Tally {
            holding: 103,
            waiting: 105,
            waited: both(103, 2),
            held: both(103, 3),
            released: 111,
            lost: [113, 115, 117],
            gave_up: 119,
        };
        assert_eq!(sum, expected);
    }
}
