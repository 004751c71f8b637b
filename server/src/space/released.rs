//! What was released a short while ago, and what is asked for. A request for a claim may come after the release that calls it off,
//! and must not be granted then (rule R12): nobody would ever release it, and in a store it lives as long as its client's
//! session. One that has come before is called off by the release, which waits until it is: else it could put the claim
//! into the store behind the release. Locks in memory see to that by themselves.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
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
    /// What calls off the requests for a claim that are under way.
    asked: HashMap<ClaimId, Vec<Arc<watch::Sender<bool>>>>,
}

/// Claims that are asked for, until this is dropped.
pub(crate) struct Asked<'a> {
    of: &'a Released,
    claims: &'a [Claim],
    off: Arc<watch::Sender<bool>>,
    is_off: watch::Receiver<bool>,
}

impl Released {
    /// These are being released. Completes when nobody asks for them any more, with those that others release, too, or have: who had
    /// asked for them, or an earlier request.
    pub(crate) fn add(&self, claims: &[Claim]) -> impl Future<Output = HashSet<ClaimId>> + use<> {
        let now = Instant::now();
        let mut inner = self.inner();
        while inner.since.front().is_some_and(|(then, _)| now.duration_since(*then) >= LATE) {
            if let Some((_, id)) = inner.since.pop_front() {
                inner.ids.remove(&id);
            }
        }
        let (mut asked, mut others) = (Vec::new(), HashSet::new());
        for claim in claims {
            if inner.ids.insert(claim.id) {
                inner.since.push_back((now, claim.id));
            } else {
                // The same request once more, as from a proxy that asks twice.
                others.insert(claim.id);
            }
            if let Some(off) = inner.asked.remove(&claim.id) {
                asked.extend(off);
                others.insert(claim.id);
            }
        }
        drop(inner);
        for off in &asked {
            off.send_replace(true);
        }
        async move {
            for off in asked {
                off.closed().await;
            }
            others
        }
    }

    /// These are asked for.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`]: one of them was released before.
    pub(crate) fn ask<'a>(&'a self, claims: &'a [Claim]) -> Result<Asked<'a>> {
        let (off, is_off) = watch::channel(false);
        let off = Arc::new(off);
        let mut inner = self.inner();
        inner.none_of(claims)?;
        for claim in claims {
            inner.asked.entry(claim.id).or_default().push(off.clone());
        }
        drop(inner);
        Ok(Asked { of: self, claims, off, is_off })
    }

    /// None of these was.
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`]
    pub(crate) fn none_of(&self, claims: &[Claim]) -> Result<()> {
        self.inner().none_of(claims)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn none_of(&self, claims: &[Claim]) -> Result<()> {
        match claims.iter().find(|claim| self.ids.contains(&claim.id)) {
            None => Ok(()),
            Some(claim) => Err(was_released(std::slice::from_ref(claim))),
        }
    }
}

impl Asked<'_> {
    /// Completes when one of them is released.
    pub(crate) async fn called_off(&mut self) -> Error {
        // While `off` is here, it cannot fail.
        let _ = self.is_off.wait_for(|is_off| *is_off).await;
        was_released(self.claims)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut inner = self.of.inner();
        for claim in self.claims {
            if let Entry::Occupied(mut all) = inner.asked.entry(claim.id) {
                all.get_mut().retain(|off| !Arc::ptr_eq(off, &self.off));
                if all.get().is_empty() {
                    all.remove();
                }
            }
        }
    }
}

fn was_released(claims: &[Claim]) -> Error {
    let error = Error::new(ErrorKind::NotHeld, "the claim was released");
    match claims.first() {
        Some(claim) => error.with_lock(&claim.name),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_others_release_too_is_known() {
        let released = Released::default();
        let claim = |id| Claim { name: "lock".parse().unwrap(), id: ClaimId::from_u128(id) };
        let (one, two) = (claim(1), claim(2));
        let all = [one.clone(), two.clone()];
        let asked = released.ask(std::slice::from_ref(&two)).unwrap();
        let first = released.add(&all);
        let repeated = released.add(std::slice::from_ref(&one));
        assert_eq!(repeated.now_or_never(), Some(HashSet::from([one.id])), "as from a proxy that asks twice");
        drop(asked);
        assert_eq!(
            first.now_or_never(),
            Some(HashSet::from([two.id])),
            "who asked for it gives it back, too"
        );
    }
}
