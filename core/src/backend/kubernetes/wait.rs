//! From an ask to a grant, and from an upgrade to its end.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::future::{self, Either};

use super::{
    Space,
    desk::Done,
    doc::{Answer, Dead, Doc, Order},
    hub::Known,
    names::seal,
};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Mode, Term, Waiting},
    backend::OnWaiting,
    background,
    error::{Error, ErrorKind, LostReason, Result},
    lease::has_just_begun,
    name::ClaimId,
    time::{Millis, Moment},
};

/// What is waited for.
#[derive(Clone, Copy)]
enum Until {
    /// That a claim holds which had to wait when it asked, and began to ask then.
    LetIn { asked: Moment },
    /// That one that holds has this mode.
    Is(Mode),
}

/// Where a claim stands, as far as is known here.
enum Standing {
    Holds,
    Waits {
        why: Waiting,
        /// When it is its turn to bury somebody, if nothing happens before.
        acts_in: Option<Duration>,
        dead: Dead,
    },
    Gone,
}

impl Space {
    pub(super) async fn acquire(
        self: &Arc<Self>,
        ask: &Ask,
        waiting: OnWaiting<'_>,
    ) -> Result<Option<Grant>> {
        let claim = ask.claim();
        let mut sealed = Ask { claim_id: seal(ask.claim_id), ..ask.clone() };
        if ask.mode == Mode::Shared {
            sealed.ttl = ask.ttl.min(self.link.address.shelf.longest_shared());
        }
        // Who asks again has had its turn, and may be let in at any moment.
        if !self.knows(&claim) {
            self.link.turn().await;
        }
        let asked = self.link.rt.now();
        let mut done = self.order(&ask.name, Order::Acquire(sealed.clone())).await?;
        if done.answer == Answer::Busy && self.bury_by_the_way(&claim).await? {
            done = self.order(&ask.name, Order::Acquire(sealed)).await?;
        }
        let Done { answer, sent } = done;
        match answer {
            Answer::Granted(granted) => self.hold(&claim, granted, sent).map(Some),
            Answer::Busy => Ok(None),
            Answer::Waits if ask.entry == Entry::Try => Ok(None),
            Answer::Waits => self.wait(&claim, Until::LetIn { asked }, waiting).await.map(Some),
            _ => Err(gone()),
        }
    }

    fn knows(&self, claim: &Claim) -> bool {
        let (lock, id) = (self.hub.known().lock(&self.key(&claim.name)).0, seal(claim.id));
        lock.is_some_and(|(seen, _)| seen.doc.holder(id).is_some() || seen.doc.place(id).is_some())
    }

    /// One who only tries finds the lock taken, by somebody who looks dead. Where all only try nobody would ever see a death: so
    /// this one stays for as long as it takes to see it.
    async fn bury_by_the_way(self: &Arc<Self>, claim: &Claim) -> Result<bool> {
        let object = self.key(&claim.name);
        let (Some((seen, sight)), _) = self.hub.known().lock(&object) else { return Ok(false) };
        if !seen.looks_dead(self.link.rt.now().wall) {
            return Ok(false);
        }
        let nobody = seal(claim.id);
        let Some(at) = sight.acts_at(&seen.doc, 0, nobody) else { return Ok(false) };
        self.link.rt.sleep(at.since(self.link.rt.monotonic())).await;
        // As they were: who has lived on meanwhile is not among them.
        let dead = sight.dead(at, &seen.doc, 0, nobody);
        self.order(&claim.name, Order::Bury(dead)).await?;
        Ok(true)
    }

    pub(super) async fn change(self: &Arc<Self>, claim: &Claim, to: Mode) -> Result<Grant> {
        let Done { answer, sent } = self.order(&claim.name, Order::Change(seal(claim.id), to)).await?;
        match answer {
            Answer::Granted(granted) => self.hold(claim, granted, sent),
            Answer::Refused(from) => {
                let message =
                    format!("a claim that is {from} cannot become {to}: only an upgradable one can");
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
            Answer::Waits => self.wait(claim, Until::Is(to), &|_| {}).await,
            _ => Err(Error::new(ErrorKind::NotHeld, "the claim is not held")),
        }
    }

    async fn wait(self: &Arc<Self>, claim: &Claim, until: Until, waiting: OnWaiting<'_>) -> Result<Grant> {
        let (mut let_in, mode) = match until {
            Until::LetIn { .. } => (Some(self.let_in(&claim.name, seal(claim.id))), None),
            Until::Is(mode) => (None, Some(mode)),
        };
        let mut told = None;
        loop {
            let by_watch = pin!(self.watch_for(claim, mode, waiting, &mut told));
            let by_us = async {
                match &mut let_in {
                    Some(let_in) => let_in.await.unwrap_or_else(|_| Err(background::gone())),
                    None => future::pending().await,
                }
            };
            let done = match future::select(pin!(by_us), by_watch).await {
                Either::Left((done, _)) => done?,
                Either::Right((seems_to_hold, _)) => {
                    seems_to_hold?;
                    if let Until::LetIn { asked } = until
                        && let Some(grant) = self.let_in_alive(claim, asked)
                    {
                        return grant;
                    }
                    let is_told = || let_in.as_mut()?.try_recv().ok()?;
                    self.order_unless(&claim.name, Order::Renew(seal(claim.id)), is_told).await?
                }
            };
            match done {
                Done { answer: Answer::Granted(granted), sent }
                    if mode.is_none_or(|mode| granted.mode == mode) =>
                {
                    return self.hold(claim, granted, sent);
                }
                Done { answer: Answer::Granted(_) | Answer::Waits, .. } => {}
                _ => return Err(gone()),
            }
        }
    }

    /// The grant of one that was let in as one that lives. It was so after it had asked, for the answer then was to wait; and so its
    /// lease lasts for its TTL from then at the least.
    fn let_in_alive(&self, claim: &Claim, asked: Moment) -> Option<Result<Grant>> {
        let (seen, _) = self.hub.known().lock(&self.key(&claim.name)).0?;
        let holder = seen.doc.holder(seal(claim.id))?;
        let term = Term { counted_from: asked, ttl: holder.ttl };
        if holder.beat == 0 || seen.is_unsettled() || !has_just_begun(&term, self.link.rt.now()) {
            return None;
        }
        let granted = seen.doc.record().granted_to(holder.id)?;
        Some(self.hold(claim, granted, asked))
    }

    /// Until it holds as far as is known here. What it waits for is `told`, if that is something else than the last time.
    async fn watch_for(
        self: &Arc<Self>,
        claim: &Claim,
        mode: Option<Mode>,
        waiting: OnWaiting<'_>,
        told: &mut Option<Waiting>,
    ) -> Result<()> {
        let object = self.key(&claim.name);
        let known = self.hub.known();
        loop {
            self.hub.watch().await?;
            let changed = known.changed.listen();
            match self.where_is(known, &object, seal(claim.id), mode) {
                Standing::Gone => return Err(gone()),
                Standing::Holds => return Ok(()),
                Standing::Waits { why, acts_in, dead } => {
                    if told.as_ref().is_none_or(|told| !is_same(told, &why)) {
                        waiting(why.clone());
                        *told = Some(why);
                    }
                    match acts_in {
                        Some(Duration::ZERO) => {
                            self.order(&claim.name, Order::Bury(dead.clone())).await?;
                            let (lock, _) = known.lock(&object);
                            // Whoever lives on, or has gone by itself.
                            let was_not_dead = |(id, beat): &(ClaimId, u64)| {
                                lock.as_ref().is_some_and(|(seen, _)| match seen.doc.holder(*id) {
                                    Some(holder) => holder.beat != *beat,
                                    None => seen.doc.why_gone(*id) != Some(LostReason::Expired),
                                })
                            };
                            if dead.holders.iter().any(was_not_dead) {
                                self.hub.distrust();
                            }
                        }
                        Some(time) => drop(future::select(changed, pin!(self.link.rt.sleep(time))).await),
                        None => changed.await,
                    }
                }
            }
        }
    }

    fn where_is(&self, known: &Known, object: &str, id: ClaimId, mode: Option<Mode>) -> Standing {
        let Some((seen, sight)) = known.lock(object).0 else { return Standing::Gone };
        let now = self.link.rt.monotonic();
        let place = match (seen.doc.holder(id), mode) {
            // An upgrade stands before the queue.
            (Some(holder), Some(to)) if holder.mode != to => {
                if !seen.doc.upgrading {
                    return Standing::Gone;
                }
                0
            }
            (Some(_), _) => return Standing::Holds,
            (None, _) => match seen.doc.place(id) {
                Some(place) => place,
                None => return Standing::Gone,
            },
        };
        Standing::Waits {
            why: self.why(&seen.doc, id),
            acts_in: sight.acts_at(&seen.doc, place, id).map(|at| at.since(now)),
            dead: sight.dead(now, &seen.doc, place, id),
        }
    }

    fn why(&self, doc: &Doc, id: ClaimId) -> Waiting {
        let wall = self.link.rt.now().wall;
        doc.record().waiting(Millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)), id)
    }
}

/// Whether there is nothing new in it.
fn is_same(one: &Waiting, other: &Waiting) -> bool {
    let holders = |waiting: &Waiting| -> Vec<_> {
        waiting
            .holders
            .iter()
            .map(|holder| (holder.fencing_token, holder.mode, holder.owner.clone()))
            .collect()
    };
    one.place == other.place && holders(one) == holders(other)
}

pub(super) fn gone() -> Error {
    Error::new(ErrorKind::NotHeld, "the claim is not there: it has run out, was released, or was called off")
}
