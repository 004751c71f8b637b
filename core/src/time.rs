//! Instants as plain numbers, so that rules can be tested without a clock and run in a browser.
//!
//! Two clocks, because the two sides of a lease must err in opposite directions (rules R5 and R7): a client's clock may
//! only run fast, so a [`Moment`] is read off a clock that counts suspend *and* off the wall, and the larger
//! difference counts; the clock of whoever grants may only run slow, so [`Millis`] is monotonic time that stops in suspend.

use std::time::Duration;

/// An instant on the client's clocks: only the difference of two of them means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since some point in the past, counting suspend (`CLOCK_BOOTTIME` and its kin).
    pub boot: Duration,
    /// Time since the Unix epoch by the wall clock.
    pub wall: Duration,
}

impl Moment {
    /// How much time has passed since `earlier`: at least what either clock says. A wall clock that was set back adds
    /// nothing and takes nothing away.
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot).max(self.wall.saturating_sub(earlier.wall))
    }

    /// The instant `later` on both clocks.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self { boot: self.boot.saturating_add(later), wall: self.wall.saturating_add(later) }
    }
}

/// An instant on the clock of whoever grants locks: milliseconds since some point in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The instant `later`, rounded up to a whole millisecond: a TTL is a minimum (rule R8).
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this instant, zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
