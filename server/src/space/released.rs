//! What was released a short while ago. A request for a claim may come after the release that calls it off, and must not be granted
//! then (rule R12): nobody would ever release it, and in a store it lives as long as its client's session. Locks in
//! memory see to that by themselves.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use windlass::{ClaimId, Error, ErrorKind, Result, ask::Claim};

/// How late a request may come.
const LATE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Released(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    ids: HashSet<ClaimId>,
    /// In the order of their release.
    since: VecDeque<(Instant, ClaimId)>,
}

impl Released {
    /// These are being released.
    pub(crate) fn add(&self, claims: &[Claim]) {
        let now = Instant::now();
        let mut inner = self.inner();
        while inner.since.front().is_some_and(|(then, _)| now.duration_since(*then) >= LATE) {
            if let Some((_, id)) = inner.since.pop_front() {
                inner.ids.remove(&id);
            }
        }
        for claim in claims {
            if inner.ids.insert(claim.id) {
                inner.since.push_back((now, claim.id));
            }
        }
    }

    /// None of these was.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`]
    pub(crate) fn none_of(&self, claims: &[Claim]) -> Result<()> {
        let inner = self.inner();
        match claims.iter().find(|claim| inner.ids.contains(&claim.id)) {
            None => Ok(()),
            Some(claim) => {
                Err(Error::new(ErrorKind::NotHeld, "the claim was released").with_lock(&claim.name))
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
