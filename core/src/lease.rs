//! The rules of a lease as its holder sees it: when to renew, when to try again, and when it must be taken as lost.
//! Pure: time and randomness come in as arguments.
//!
//! With a TTL of T, counted from the moment `t` at which the last request that succeeded was *sent* (rule R1):
//!
//! ```text
//! t          t + T/3               t + 2T/3                     t + 0.99 T - 2 ms     t' + T (t' > t: processed)
//! |  held    |  renew; again after |  a renewal that comes now  |  lost               |  another may be granted
//! |          |  up to T/6, jittered|  is worth a warning        |<---- nobody --------|
//! ```
//!
//! - **A lost request or answer** leaves the lease as it was; the next try comes within T/6 (full jitter).
//! - **An answer that comes late** counts from its request's sending, so it can never make the lease longer than the
//!   backend made it. Once anybody was told that the claim is lost (`Held::finish`), no answer changes that.
//! - **A hung request** is given up after T/6 (rule R3), so that at least two tries, as a rule three,
//!   fit before the lease is over.
//! - **Answers out of order**: what was asked last counts, also where its term is shorter: the backend may have made it so.
//! - **A stopped process or a suspended machine** makes time jump: the clock counts suspend (rule R5), and every question
//!   is answered from the clock, never from a flag that a timer should have set (rule R2).

use std::time::Duration;

use crate::{ask::Term, time::Moment};

/// The part of the TTL that a holder leaves unused, because two clocks may differ in rate: 1 %.
const RATE_MARGIN: u32 = 100;
/// And because a clock has a resolution.
const FIXED_MARGIN: Duration = Duration::from_millis(2);

/// From when a term counts whose request was held open for so long by the backend's clock: that may be the faster one, and knows
/// nothing of a time before the answer.
#[cfg(any(test, feature = "http"))]
pub(crate) fn counted_from(sent: Moment, held: Duration, now: Moment) -> Moment {
    sent.plus((held - held / RATE_MARGIN).min(now.since(sent)))
}

/// Of a lease, the part that may be over where one holds at once that was let in as one that lives: two thirds of it are left then
/// until a renewal that fails is worth a warning.
#[cfg(any(feature = "kubernetes", feature = "redis"))]
const JUST_BEGUN: u32 = 6;

/// Whether so little of a term is over that it can be held by without a renewal first.
#[cfg(any(feature = "kubernetes", feature = "redis"))]
pub(crate) fn has_just_begun(term: &Term, now: Moment) -> bool {
    now.since(term.counted_from) <= term.ttl / JUST_BEGUN
}

/// Of the shortest TTL of those that are renewed together, the part that each may take where each is asked for by itself: less than
/// the keeper gives all of them ([`Lease::try_timeout`]), so that one that is slow does not hold up the others.
#[cfg(any(feature = "kubernetes", feature = "redis"))]
const EACH_WITHIN: u32 = 8;

/// How long each of these renewals may take; `None`: no TTL is known.
#[cfg(any(feature = "kubernetes", feature = "redis"))]
pub(crate) fn each_within(ttls: impl Iterator<Item = Duration>) -> Option<Duration> {
    ttls.min().map(|ttl| ttl / EACH_WITHIN)
}

/// What a holder knows of its lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    term: Term,
    /// The last try to renew that failed, and how long to wait after it.
    failed: Option<(Moment, Duration)>,
}

impl Lease {
    /// A lease as it was granted.
    pub(crate) fn new(term: Term) -> Self {
        Self { term, failed: None }
    }

    /// The TTL that the backend granted.
    pub(crate) fn ttl(&self) -> Duration {
        self.term.ttl
    }

    /// For how long it is certainly held from `now` on; zero when it must be taken as lost.
    pub(crate) fn remaining(&self, now: Moment) -> Duration {
        let certain = (self.term.ttl - self.term.ttl / RATE_MARGIN).saturating_sub(FIXED_MARGIN);
        certain.saturating_sub(now.since(self.term.counted_from))
    }

    /// Whether it is certainly held.
    pub(crate) fn is_held(&self, now: Moment) -> bool {
        !self.remaining(now).is_zero()
    }

    /// How long from `now` until the next request to renew.
    pub(crate) fn renew_in(&self, now: Moment) -> Duration {
        match self.failed {
            Some((when, pause)) => pause.saturating_sub(now.since(when)),
            None => (self.term.ttl / 3).saturating_sub(now.since(self.term.counted_from)),
        }
    }

    /// How long one request to renew may take before it is given up.
    pub(crate) fn try_timeout(&self) -> Duration {
        self.term.ttl / 6
    }

    /// Whether two thirds of the term are over and no renewal has come through: worth a warning.
    pub(crate) fn is_late(&self, now: Moment) -> bool {
        now.since(self.term.counted_from) >= self.term.ttl / 3 * 2
    }

    /// Whether the last try to renew has failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failed.is_some()
    }

    /// A renewal came through. An answer to an older request than the one known changes nothing.
    pub(crate) fn renewed(&mut self, term: Term) {
        let (asked, known) = (term.counted_from, self.term.counted_from);
        // Where the clocks do not agree, because one was set back, it is taken: what is left of a term counts by both.
        let is_older = asked.boot < known.boot && asked.wall < known.wall;
        if !is_older {
            *self = Self::new(term);
        }
    }

    /// A try to renew failed or told nothing; `random` in 0..=1 spreads the next one. A backend that asks for a pause is
    /// given it as far as the lease allows: the pauses of [`BackOff`] would be too long here.
    pub(crate) fn not_renewed(&mut self, now: Moment, random: f64, retry_after: Option<Duration>) {
        let longest = self.try_timeout();
        let pause = longest.mul_f64(random.clamp(0.0, 1.0)).max(retry_after.unwrap_or_default());
        self.failed = Some((now, pause.min(longest)));
    }
}

/// The pauses between tries of a request that found the backend unavailable: full jitter (AWS Architecture Blog, 2015)
/// over a range that doubles from 50 ms to 5 s, and never less than what the backend asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BackOff {
    tries: u32,
}

impl BackOff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(5);
    /// Of a pause that is asked for: whatever a proxy says, it is worth another try.
    const LONGEST_ASKED_FOR: Duration = Duration::from_secs(60);

    /// How long to wait before the next try; `random` in 0..=1.
    pub(crate) fn pause(&mut self, random: f64, retry_after: Option<Duration>) -> Duration {
        let range = Self::FIRST.saturating_mul(1 << self.tries.min(16)).min(Self::LONGEST);
        self.tries = self.tries.saturating_add(1);
        retry_after.unwrap_or_default().min(Self::LONGEST_ASKED_FOR) + range.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: Duration = Duration::from_secs(10);
    const START: Moment =
        Moment { boot: Duration::from_secs(1_000), wall: Duration::from_secs(1_700_000_000) };

    fn lease() -> Lease {
        Lease::new(Term { counted_from: START, ttl: T })
    }

    fn after(millis: u64) -> Moment {
        START.plus(Duration::from_millis(millis))
    }

    #[test]
    fn held_for_the_ttl_less_one_percent_and_two_milliseconds() {
        assert_eq!(lease().remaining(START), Duration::from_millis(9_898));
        assert!(lease().is_held(after(9_897)));
        assert!(!lease().is_held(after(9_898)));
    }

    #[test]
    fn renewed_at_a_third_and_late_at_two_thirds() {
        assert_eq!(lease().renew_in(after(1_000)).as_millis(), 2_333);
        assert_eq!(lease().renew_in(after(3_334)), Duration::ZERO);
        assert!(!lease().is_late(after(6_666)));
        assert!(lease().is_late(after(6_667)));
    }

    #[test]
    fn a_failed_try_is_followed_by_another_within_a_sixth() {
        let mut lease = lease();
        lease.not_renewed(after(3_400), 1.0, None);
        assert!(lease.is_failing());
        assert_eq!(lease.renew_in(after(3_400)), T / 6);
        assert_eq!(lease.renew_in(after(6_000)), Duration::ZERO);
        lease.not_renewed(after(3_400), 0.0, None);
        assert_eq!(lease.renew_in(after(3_400)), Duration::ZERO);
    }

    #[test]
    fn a_pause_that_is_asked_for_is_kept_as_far_as_the_lease_allows() {
        let mut lease = lease();
        lease.not_renewed(after(3_400), 0.0, Some(Duration::from_secs(1)));
        assert_eq!(lease.renew_in(after(3_400)), Duration::from_secs(1));
        lease.not_renewed(after(3_400), 0.0, Some(Duration::from_secs(30)));
        assert_eq!(lease.renew_in(after(3_400)), T / 6);
    }

    #[test]
    fn suspend_counts_when_only_the_wall_clock_saw_it() {
        let resumed = Moment { boot: START.boot, wall: START.wall + Duration::from_secs(3_600) };
        assert!(!lease().is_held(resumed));
    }

    #[test]
    fn a_wall_clock_that_is_set_back_changes_nothing() {
        let set_back = Moment {
            boot: START.boot + Duration::from_secs(1),
            wall: START.wall - Duration::from_secs(3_600),
        };
        assert_eq!(lease().remaining(set_back), Duration::from_millis(8_898));
    }

    #[test]
    fn an_answer_to_an_older_request_does_not_shorten_the_lease() {
        let mut lease = lease();
        lease.renewed(Term { counted_from: after(4_000), ttl: T });
        lease.renewed(Term { counted_from: after(3_000), ttl: T });
        assert_eq!(lease.remaining(after(4_200)), Duration::from_millis(9_698));
        assert!(!lease.is_failing());
    }

    #[test]
    fn an_answer_to_a_newer_request_may_shorten_the_lease() {
        let mut lease = lease();
        lease.renewed(Term { counted_from: after(1_000), ttl: T / 10 });
        assert!(!lease.is_held(after(2_000)));
    }

    #[test]
    fn the_range_of_the_pauses_doubles() {
        let mut back_off = BackOff::default();
        let pauses: Vec<u128> = (0..9).map(|_| back_off.pause(1.0, None).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(back_off.pause(0.0, None), Duration::ZERO);
    }

    proptest! {
        /// The belief ends before the backend's lease does, however long the request was under way or held open, and however
        /// the two clocks differ in rate within the margin.
        #[test]
        fn belief_lies_inside_the_grant(
            ttl_ms in 1_000_u64..300_000, there_ms in 0_u64..5_000, held_ms in 0_u64..60_000, back_ms in 0_u64..5_000,
            drift in -0.0099_f64..0.0099,
        ) {
            let ttl = Duration::from_millis(ttl_ms);
            let held = Duration::from_millis(held_ms);
            // In the backend's time the request was processed `there` after it was sent, granted when it had been held open, and
            // the claim ends at `ends`.
            let granted = Duration::from_millis(there_ms) + held;
            let answered = START.plus((granted + Duration::from_millis(back_ms)).mul_f64(1.0 + drift));
            let lease = Lease::new(Term { counted_from: counted_from(START, held, answered), ttl });
            let ends = granted + ttl;
            // The client's clock at the moment at which the backend's says `ends`.
            let client = START.plus(ends.mul_f64(1.0 + drift));
            prop_assert!(!lease.is_held(client));
        }

        /// Two tries fit between the first renewal and the end even when each hangs and each pause is the longest.
        #[test]
        fn at_least_two_tries_fit(ttl_ms in 1_000_u64..300_000, random in 0.0_f64..=1.0) {
            let ttl = Duration::from_millis(ttl_ms);
            let mut lease = Lease::new(Term { counted_from: START, ttl });
            let mut now = START;
            let mut tries = 0;
            loop {
                now = now.plus(lease.renew_in(now));
                if !lease.is_held(now) { break }
                tries += 1;
                now = now.plus(lease.try_timeout());
                lease.not_renewed(now, random, None);
            }
            prop_assert!(tries >= 2, "{tries} tries");
        }

        /// What the backend asks for comes on top, so that those who were asked at once do not come back at once.
        #[test]
        fn back_off_stays_in_its_range(random in 0.0_f64..=1.0, tries in 0_usize..100) {
            let mut back_off = BackOff::default();
            for _ in 0..tries { back_off.pause(random, None); }
            prop_assert!(back_off.pause(random, None) <= BackOff::LONGEST);
            prop_assert!(back_off.pause(random, Some(T)) >= T);
            prop_assert!(back_off.pause(random, Some(Duration::MAX)) <= BackOff::LONGEST_ASKED_FOR + BackOff::LONGEST);
        }
    }
}
