//! How fast acquires are begun, so that a crowd of them does the API server no harm. Pure.
//!
//! Only acquires ask for a turn. Renewals and releases have none to wait for: whatever is asked meanwhile, who holds goes on to hold.

use std::time::Duration;

use crate::time::Millis;

/// So many a second, and twice as many at once after a rest.
#[derive(Debug)]
pub(super) struct Pace {
    each: Duration,
    /// What may be used ahead of time.
    ahead: Duration,
    /// When the next one would be due if all came evenly.
    next: Duration,
}

impl Pace {
    pub(super) fn new(a_second: u32) -> Self {
        let each = Duration::from_secs(1) / a_second.max(1);
        Self { each, ahead: Duration::from_secs(2).saturating_sub(each), next: Duration::ZERO }
    }

    /// How long the next one has to wait.
    pub(super) fn wait(&self, now: Millis) -> Duration {
        self.next.saturating_sub(self.ahead).saturating_sub(Duration::from_millis(now.0))
    }

    /// One is begun.
    pub(super) fn begin(&mut self, now: Millis) {
        self.next = self.next.max(Duration::from_millis(now.0)) + self.each;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_rest_many_and_then_evenly() {
        let mut pace = Pace::new(50);
        let mut now = Millis(7_000);
        let mut begun = Vec::new();
        for _ in 0..150 {
            now = now.plus(pace.wait(now));
            pace.begin(now);
            begun.push(now.0);
        }
        assert_eq!((begun[99], begun[100], begun[149]), (7_000, 7_020, 8_000));
        let later = now.plus(Duration::from_secs(10));
        let at_once = (0..).take_while(|_| {
            let goes = pace.wait(later).is_zero();
            pace.begin(later);
            goes
        });
        assert_eq!(at_once.count(), 100, "no more is saved up than that");
    }
}
