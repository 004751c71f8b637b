//! Many locks: which name is held by whom and who waits for it, and when something runs out. This is the whole of the
//! memory backend and of the server's state, and it is pure: it reads no clock, draws no random number and does no
//! input or output. Whoever owns it tells the time and carries out the [`Effect`]s.
//!
//! A name that nobody holds or waits for takes no memory. Nothing runs out but by [`Table::expire`]: the caller who was
//! stopped for a while lets the renewals in first that have come meanwhile, and then expires the rest (rule R7).

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry as Slot},
    time::Duration,
};

use crate::{
    ask::{Ask, Claim, Holder, Mode, Status, Waiting},
    error::LostReason,
    name::{ClaimId, Name},
    record::{Change, Record, Turn},
    time::Millis,
};

mod ended;
#[cfg(test)]
mod exhaustive;
mod kept;
mod tally;
#[cfg(test)]
mod tests;

use ended::{Ended, EndedClaims};
pub use kept::Kept;
pub use tally::{RANGES_MS, REASONS, Tally, Times};

/// A map with less room than this keeps it.
const ROOM_TO_KEEP: usize = 1024;

/// What a [`Table`] does about time and repetition.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The first fencing token. It has to be greater than any that was given for these locks before.
    pub first_token: u64,
    /// Whether claims live for their TTL only. In a process's own memory they live as long as the process.
    pub expires: bool,
    /// For how long the ids of claims that are over are remembered, so that a request that comes late and twice makes
    /// no claim that nobody knows of (rule R12). Zero where requests cannot come late.
    pub remember: Duration,
}

/// Who speaks for a claim: a number that the caller chooses, such as that of a connection, and that comes back with
/// every [`Effect`]. It is whoever asked or renewed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Origin(pub u64);

/// A claim that holds its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Granted {
    /// Greater than that of every earlier grant of this lock.
    pub fencing_token: u64,
    /// How the lock is shared.
    pub mode: Mode,
    /// How long the claim lives from now on without renewal; `None`: for ever.
    pub ttl: Option<Duration>,
    /// Somebody waits for what this claim holds.
    pub contended: bool,
}

/// The answer to [`Table::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Outcome {
    /// It holds the lock.
    Granted(Granted),
    /// It stands in line; an [`Effect`] will tell when it is granted.
    Queued {
        /// 1 for the next in line.
        place: usize,
    },
    /// The lock cannot be had at once, and the claim wanted to [`Try`](crate::ask::Entry::Try) only.
    Busy,
    /// This claim has been released, lost or called off. Whoever still wants the lock asks with a new id.
    Over,
}

/// The answer to [`Table::change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Changed {
    /// It holds the lock in the new mode.
    Done(Granted),
    /// It holds the lock in its old mode and waits for the others to leave; an [`Effect`] will tell when they have.
    Waiting,
    /// There is no such claim.
    NotHeld,
    /// A claim of this mode cannot be changed to what was asked for.
    Refused {
        /// The mode it has.
        from: Mode,
    },
}

/// Something that somebody has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Which claim it is about.
    pub claim: Claim,
    /// Who speaks for the claim.
    pub origin: Origin,
    /// What happened to it.
    pub what: What,
}

/// What happens to a claim by the doing of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It waited, for the lock or for its upgrade, and has got it.
    Granted(Granted),
    /// It held the lock and does no longer.
    Lost(LostReason),
    /// It holds the lock, and somebody has begun to wait for it. Said once, until nobody waits any more; not said of a
    /// claim that was [contended](Granted::contended) when it was granted.
    Contended,
    /// It waited, nobody spoke for it any more, and it has left the queue.
    Left,
}

/// Locks by name.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use windlass::{ClaimId, Mode, ask::{Ask, Claim, Entry}, time::Millis};
/// use windlass::table::{Origin, Outcome, Rules, Table, What};
///
/// let mut table = Table::new(Rules { first_token: 1, expires: true, remember: Duration::from_secs(10) });
/// let ask = |id| Ask {
///     name: "deploy".parse().unwrap(),
///     claim_id: ClaimId::from_u128(id),
///     mode: Mode::Exclusive,
///     entry: Entry::Queue,
///     ttl: Duration::from_secs(10),
///     only_here: false,
///     owner: Arc::default(),
///     keep: Duration::ZERO,
/// };
/// let mut effects = Vec::new();
/// assert!(matches!(table.acquire(Millis(0), &ask(1), Origin(1), &mut effects), Outcome::Granted(_)));
/// assert_eq!(table.acquire(Millis(0), &ask(2), Origin(2), &mut effects), Outcome::Queued { place: 1 });
/// assert_eq!(effects.pop().unwrap().what, What::Contended);
///
/// table.release(Millis(5), &Claim { name: "deploy".parse().unwrap(), id: ClaimId::from_u128(1) }, &mut effects);
/// assert!(matches!(effects.pop().unwrap().what, What::Granted(grant) if grant.fencing_token == 2));
/// assert_eq!(table.next_deadline(), Some(Millis(10_005)));
/// ```
#[derive(Clone, Debug)]
pub struct Table {
    rules: Rules,
    next_token: u64,
    records: HashMap<Name, Record>,
    deadlines: BTreeSet<(Millis, ClaimId, Name)>,
    ended: EndedClaims,
    tally: Tally,
    /// Between two steps it is empty; kept for its room.
    changes: Vec<Change>,
}

impl Table {
    /// A table without claims.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            next_token: rules.first_token,
            records: HashMap::new(),
            deadlines: BTreeSet::new(),
            ended: EndedClaims::new(rules.remember),
            tally: Tally::default(),
            changes: Vec::new(),
        }
    }

    /// Takes a lock or a place in its queue.
    ///
    /// Asked again with the same id, a claim that holds is granted the same token and lives for its TTL more, and one
    /// that waits keeps its place, whatever mode the repetition names. The repetition may change its mind about
    /// waiting: a waiter that asks to `Try` leaves the queue, one that asks to `Steal` does so.
    pub fn acquire(&mut self, now: Millis, ask: &Ask, origin: Origin, effects: &mut Vec<Effect>) -> Outcome {
        if let Some(ended) = self.ended.recall(ask.claim_id)
            && !self.records.get(&ask.name).is_some_and(|record| record.knows(ask.claim_id))
        {
            return match ended {
                Ended::Busy => Outcome::Busy,
                Ended::Over | Ended::Lost(_) => Outcome::Over,
            };
        }
        let ttl = self.rules.expires.then_some(ask.ttl);
        let record = self.records.entry(ask.name.clone()).or_default();
        let (next_token, changes, tally) = (&mut self.next_token, &mut self.changes, &mut self.tally);
        let mut turn = Turn { now, next_token, changes, tally };
        let outcome = record.acquire(&mut turn, ask, origin, ttl);
        if outcome == Outcome::Busy {
            self.ended.remember(now, ask.claim_id, Ended::Busy);
        }
        self.follow_up(now, &ask.name, effects);
        outcome
    }

    /// Lets a claim live for its TTL more, and sends news of it to `origin` from now on; `None` if it does not hold.
    pub fn renew(&mut self, now: Millis, claim: &Claim, origin: Origin) -> Option<Granted> {
        // A renewal moves a deadline and tells nobody anything.
        self.step(now, &claim.name, &mut Vec::new(), |record, turn| record.renew(turn, claim.id, origin))
            .flatten()
    }

    /// Why a claim that does not hold was lost, for as long as that is [remembered](Rules::remember): also for one whose holder
    /// missed the [news](What::Lost).
    pub fn why_lost(&self, claim: &Claim) -> Option<LostReason> {
        match self.ended.recall(claim.id) {
            Some(Ended::Lost(reason)) => Some(reason),
            _ => None,
        }
    }

    /// After this the claim neither holds nor waits, nor will it by a request that comes late. `true` if it held.
    pub fn release(&mut self, now: Millis, claim: &Claim, effects: &mut Vec<Effect>) -> bool {
        self.ended.remember(now, claim.id, Ended::Over);
        self.step(now, &claim.name, effects, |record, turn| record.release(turn, claim.id)).unwrap_or(false)
    }

    /// Changes the mode of a claim that holds, and lets it live for its TTL more:
    /// - to [`Mode::Shared`] or [`Mode::Upgradable`] from a mode that excludes more: at once, with the same token;
    /// - from [`Mode::Upgradable`] to [`Mode::Exclusive`]: once the other holders have left, before all that wait, with
    ///   a new token. Until then it holds on, no new claim is let in, and changing to [`Mode::Upgradable`] calls it off;
    /// - to the mode it has: nothing but the renewal.
    pub fn change(&mut self, now: Millis, claim: &Claim, to: Mode, effects: &mut Vec<Effect>) -> Changed {
        self.step(now, &claim.name, effects, |record, turn| record.change(turn, claim.id, to))
            .unwrap_or(Changed::NotHeld)
    }

    /// Nobody speaks for this waiting claim any more: it leaves the queue after `grace` (rule R16), unless it is asked
    /// for again. `false` if it does not wait.
    pub fn waiter_gone(&mut self, now: Millis, claim: &Claim, grace: Duration) -> bool {
        let leaves = Some(now.plus(grace));
        self.step(now, &claim.name, &mut Vec::new(), |record, turn| {
            record.set_leaving(turn, claim.id, leaves)
        })
        .unwrap_or(false)
    }

    /// Takes a lock from all its holders, or from the one with this fencing token. Returns whom it was taken from.
    pub fn force_release(
        &mut self,
        now: Millis,
        name: &Name,
        fencing_token: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Vec<Holder> {
        self.step(now, name, effects, |record, turn| record.force_release(turn, fencing_token))
            .unwrap_or_default()
    }

    /// Ends all claims whose time is over, then lets in whoever that makes room for.
    pub fn expire(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut touched = BTreeSet::new();
        while let Some((_, id, name)) = self.deadlines.first().filter(|(at, ..)| *at <= now).cloned() {
            self.step(now, &name, effects, |record, turn| record.run_out(turn, id));
            touched.insert(name);
        }
        for name in touched {
            self.step(now, &name, effects, Record::settle);
        }
        self.ended.forget(now);
    }

    /// When [`expire`](Self::expire) has something to do next.
    pub fn next_deadline(&self) -> Option<Millis> {
        let claims = self.deadlines.first().map(|(at, ..)| *at);
        claims.into_iter().chain(self.ended.next_deadline()).min()
    }

    /// Who holds and who waits, for all names that begin with `prefix`, in the order of the names.
    pub fn status(&self, now: Millis, prefix: &str) -> Vec<Status> {
        let mut all: Vec<Status> = self
            .records
            .iter()
            .filter(|(name, _)| name.as_str().starts_with(prefix))
            .map(|(name, record)| Status {
                name: name.clone(),
                holders: record.view_holders(now),
                waiters: record.view_queue(now),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Whom a claim waits for, and at which place.
    pub fn waiting(&self, now: Millis, claim: &Claim) -> Waiting {
        self.records.get(&claim.name).map(|record| record.waiting(now, claim.id)).unwrap_or_default()
    }

    /// The fencing token of the next grant, for whoever writes down how far the tokens have got.
    pub fn next_token(&self) -> u64 {
        self.next_token
    }

    /// What has happened in it.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many names are held.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// One step of one lock, if anybody holds it.
    fn step<R>(
        &mut self,
        now: Millis,
        name: &Name,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut Record, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        let Slot::Occupied(mut slot) = self.records.entry(name.clone()) else { return None };
        let (next_token, changes, tally) = (&mut self.next_token, &mut self.changes, &mut self.tally);
        let mut turn = Turn { now, next_token, changes, tally };
        let result = act(slot.get_mut(), &mut turn);
        if slot.get().is_idle() {
            slot.remove();
            self.give_back_room();
        }
        self.follow_up(now, name, effects);
        Some(result)
    }

    fn follow_up(&mut self, now: Millis, name: &Name, effects: &mut Vec<Effect>) {
        for change in self.changes.drain(..) {
            match change {
                Change::Tell { id, origin, what } => {
                    if let What::Lost(reason) = what {
                        self.ended.remember(now, id, Ended::Lost(reason));
                    }
                    effects.push(Effect { claim: Claim { name: name.clone(), id }, origin, what });
                }
                Change::Deadline { id, was, is } => {
                    if let Some(was) = was {
                        self.deadlines.remove(&(was, id, name.clone()));
                    }
                    if let Some(is) = is {
                        self.deadlines.insert((is, id, name.clone()));
                    }
                }
            }
        }
    }

    fn give_back_room(&mut self) {
        let room = self.records.capacity();
        if room > ROOM_TO_KEEP && self.records.len() < room / 8 {
            self.records.shrink_to(room / 4);
        }
    }
}
