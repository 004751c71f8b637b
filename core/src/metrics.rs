//! What a locker has counted. No lock names: they would make a label for each lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::Serialize;

use crate::error::LostReason;

/// What a locker has counted since it was made; all figures only grow. Fit for a Prometheus exporter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// Locks granted.
    pub acquired: u64,
    /// Of these, how many had to wait.
    pub waited: u64,
    /// All the time spent waiting for locks that were then granted, in microseconds.
    pub wait_micros: u64,
    /// All the time locks were held, in microseconds, counted when a hold ends.
    pub held_micros: u64,
    /// Waits that ended by their timeout.
    pub timeouts: u64,
    /// Requests that were tried again because the backend was unavailable.
    pub retries: u64,
    /// Renewals that came through.
    pub renewals: u64,
    /// Renewals that came through only after two thirds of the TTL.
    pub late_renewals: u64,
    /// Locks lost because they were not renewed in time.
    pub lost_expired: u64,
    /// Locks lost because the backend could not be reached.
    pub lost_unreachable: u64,
    /// Locks that an operator freed.
    pub lost_force_released: u64,
    /// Locks that another claim stole.
    pub lost_stolen: u64,
    /// Locks lost with their session.
    pub lost_session_ended: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),* }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Metrics {
                Metrics { $($name: self.$name.load(Relaxed)),* }
            }
        }
    };
}

counters!(
    acquired,
    waited,
    wait_micros,
    held_micros,
    timeouts,
    retries,
    renewals,
    late_renewals,
    lost_expired,
    lost_unreachable,
    lost_force_released,
    lost_stolen,
    lost_session_ended
);

impl Counters {
    pub(crate) fn lost(&self, reason: LostReason) {
        count(match reason {
            LostReason::Expired => &self.lost_expired,
            LostReason::Unreachable => &self.lost_unreachable,
            LostReason::ForceReleased => &self.lost_force_released,
            LostReason::Stolen => &self.lost_stolen,
            LostReason::SessionEnded => &self.lost_session_ended,
        });
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
    counter.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
}
