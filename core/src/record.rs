//! One lock: who holds it, who stands in line for it, and how one becomes the other. Pure: `now` and the source of
//! fencing tokens are arguments, and what follows from a step is handed back as a list of [`Change`]s.
//!
//! A claim is *waiting*, *holding* or unknown here, and never two of these. An upgradable holder may besides be
//! *upgrading*: it holds on, and waits to be alone. The lock is idle when nobody holds; then nobody waits either, since
//! every step that could let somebody in ends in [`Record::settle`].
//!
//! What the network and the clock may do to it:
//! - A request comes twice, or its answer is lost: the claim id says that it is the same one, and it gets the same
//!   place or the same grant (rule R11). Releasing twice is no error; a release names the id, so that one that comes
//!   late cannot free the lock of a successor (rules R13 and R23).
//! - An acquire comes after the release that cancels it: the table, which remembers ids, keeps it out (rule R12).
//! - A holder dies: its lease runs out, never before its TTL is over (rule R8), and only when the caller says so: a
//!   renewal that the caller sees first wins, however late it is (rule R7). A waiter dies: it leaves after the grace that
//!   the caller gives it, and is not granted anything on the way out (rule R16).
//! - A release wakes the leading claims of the queue that fit together, and nobody else (rule R17). First come, first
//!   served: whoever waits stops all who come later (rule R19).
//! - Every grant gets a greater fencing token than all before it (rule R14). A downgrade keeps its token, for it
//!   conflicts with nobody new; an upgrade gets a new one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{
    ask::{Ask, Entry, Holder as HolderView, Mode, Owner, Waiter as WaiterView, Waiting},
    error::LostReason,
    name::ClaimId,
    table::{Changed, Granted, Origin, Outcome, Tally, What},
    time::Millis,
};

#[cfg(all(feature = "kubernetes", not(target_family = "wasm")))]
mod written;

/// More room than this is given back once nobody is in it.
const ROOM_TO_KEEP: usize = 32;

/// The holders of one lock and its queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// In the order of their grants.
    holders: SmallVec<[Holder; 1]>,
    /// In the order of their coming.
    queue: VecDeque<Waiter>,
    /// The upgradable holder waits to be alone.
    upgrading: bool,
}

/// What a step is given, and what follows from it.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) now: Millis,
    /// The fencing token of the next grant.
    pub(crate) next_token: &'a mut u64,
    pub(crate) changes: &'a mut Vec<Change>,
    pub(crate) tally: &'a mut Tally,
}

/// What follows from a step.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Whoever speaks for this claim has to hear this.
    Tell { id: ClaimId, origin: Origin, what: What },
    /// The instant at which the claim has to be looked at has moved.
    Deadline { id: ClaimId, was: Option<Millis>, is: Option<Millis> },
}

/// A claim, as it asked.
#[derive(Clone, Debug)]
pub(crate) struct Party {
    pub(crate) id: ClaimId,
    pub(crate) origin: Origin,
    pub(crate) mode: Mode,
    pub(crate) owner: Arc<Owner>,
    /// `None`: it never runs out.
    pub(crate) ttl: Option<Duration>,
    /// Since when it waits, or holds.
    pub(crate) since: Millis,
}

#[derive(Clone, Debug)]
struct Holder {
    party: Party,
    token: u64,
    ends: Option<Millis>,
    /// It knows that somebody waits for it.
    told: bool,
}

#[derive(Clone, Debug)]
struct Waiter {
    party: Party,
    /// When it leaves, if nobody speaks for it any more.
    leaves: Option<Millis>,
}

#[cfg(test)]
pub(crate) type Image =
    (Vec<(u128, Mode, u64, Option<Millis>, bool)>, Vec<(u128, Mode, Option<Millis>)>, bool);

impl Record {
    /// Nobody holds and nobody waits: there is nothing to keep.
    pub(crate) fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.queue.is_empty()
    }

    /// Whether the claim holds or waits.
    pub(crate) fn knows(&self, id: ClaimId) -> bool {
        self.holder(id).is_some() || self.waiter(id).is_some()
    }

    /// Takes the lock or a place in the queue. A claim that holds or waits already is known by its id, and stays what
    /// it is: its mode, TTL and owner are those it first asked with.
    pub(crate) fn acquire(
        &mut self,
        turn: &mut Turn<'_>,
        ask: &Ask,
        origin: Origin,
        ttl: Option<Duration>,
    ) -> Outcome {
        if let Some(granted) = self.renew(turn, ask.claim_id, origin) {
            return Outcome::Granted(granted);
        }
        if let Some(at) = self.waiter(ask.claim_id) {
            return self.ask_again(turn, at, ask.entry, origin);
        }
        let party = Party {
            id: ask.claim_id,
            origin,
            mode: ask.mode,
            owner: Arc::clone(&ask.owner),
            ttl,
            since: turn.now,
        };
        match ask.entry {
            Entry::Steal => Outcome::Granted(self.steal(turn, party)),
            _ if self.queue.is_empty() && self.admits(party.mode) => {
                Outcome::Granted(self.grant(turn, party))
            }
            Entry::Try => Outcome::Busy,
            Entry::Queue => Outcome::Queued { place: self.enqueue(turn, party) },
        }
    }

    /// Lets a holder live for its TTL more; news of it goes to `origin` from now on.
    pub(crate) fn renew(&mut self, turn: &mut Turn<'_>, id: ClaimId, origin: Origin) -> Option<Granted> {
        let at = self.holder(id)?;
        self.holders[at].party.origin = origin;
        self.rearm(turn, at);
        Some(self.granted(at))
    }

    /// The claim neither holds nor waits any more. `true` if it held.
    pub(crate) fn release(&mut self, turn: &mut Turn<'_>, id: ClaimId) -> bool {
        if let Some(at) = self.holder(id) {
            self.take_holder(turn, at);
            turn.tally.released += 1;
            self.settle(turn);
            return true;
        }
        if let Some(at) = self.waiter(id) {
            self.give_up(turn, at);
            self.settle(turn);
        }
        false
    }

    /// Ends what has come to its deadline. The caller has to [`settle`](Self::settle) once all is ended, so that a
    /// waiter whose time is over is not let in by a holder whose time is over.
    pub(crate) fn run_out(&mut self, turn: &mut Turn<'_>, id: ClaimId) {
        if let Some(at) = self.holder(id) {
            self.lose(turn, at, LostReason::Expired);
        } else if let Some(at) = self.waiter(id) {
            let waiter = self.give_up(turn, at);
            turn.tell(&waiter.party, What::Left);
        }
    }

    /// Takes the lock from all holders, or from the one with this token.
    pub(crate) fn force_release(&mut self, turn: &mut Turn<'_>, token: Option<u64>) -> Vec<HolderView> {
        let mut taken = Vec::new();
        while let Some(at) = self.holders.iter().position(|holder| token.is_none_or(|t| holder.token == t)) {
            taken.push(self.lose(turn, at, LostReason::ForceReleased).view(turn.now));
        }
        self.settle(turn);
        taken
    }

    /// Changes the mode of a holder in place.
    pub(crate) fn change(&mut self, turn: &mut Turn<'_>, id: ClaimId, to: Mode) -> Changed {
        let Some(at) = self.holder(id) else { return Changed::NotHeld };
        match (self.holders[at].party.mode, to) {
            (Mode::Upgradable, Mode::Exclusive) => return self.upgrade(turn, at),
            (Mode::Upgradable, Mode::Upgradable | Mode::Shared) => self.upgrading = false,
            (Mode::Exclusive, Mode::Upgradable | Mode::Shared) => {}
            (from, to) if from == to => {}
            (from, _) => return Changed::Refused { from },
        }
        self.holders[at].party.mode = to;
        self.rearm(turn, at);
        self.settle(turn);
        Changed::Done(self.answer(at))
    }

    /// Nobody speaks for this waiter any more: it leaves at `leaves` unless it asks again.
    pub(crate) fn set_leaving(&mut self, turn: &mut Turn<'_>, id: ClaimId, leaves: Option<Millis>) -> bool {
        let Some(at) = self.waiter(id) else { return false };
        let was = std::mem::replace(&mut self.queue[at].leaves, leaves);
        turn.deadline(id, was, leaves);
        true
    }

    /// Lets in whoever can be let in: the upgrade, once it is alone; else the leading claims of the queue that fit.
    pub(crate) fn settle(&mut self, turn: &mut Turn<'_>) {
        if self.upgrading {
            if self.holders.len() == 1 {
                let granted = self.promote(turn, 0);
                turn.tell(&self.holders[0].party, What::Granted(granted));
            }
            return;
        }
        let first_new = self.holders.len();
        while self.queue.front().is_some_and(|head| self.admits(head.party.mode)) {
            let mut head = self.take_waiter(turn, 0).party;
            turn.tally.grant(turn.now.since(head.since));
            head.since = turn.now;
            self.hold(turn, head);
        }
        for at in first_new..self.holders.len() {
            let granted = self.answer(at);
            turn.tell(&self.holders[at].party, What::Granted(granted));
        }
        self.give_back_room();
    }

    /// Shows each claim, with its token if it holds: the holders first, then the queue.
    pub(crate) fn each(&self, mut see: impl FnMut(&Party, Option<u64>)) {
        self.holders.iter().for_each(|holder| see(&holder.party, Some(holder.token)));
        self.queue.iter().for_each(|waiter| see(&waiter.party, None));
    }

    /// Takes up a claim that an earlier record had; `None` if it waits, or is refused.
    pub(crate) fn reinstate(
        &mut self,
        turn: &mut Turn<'_>,
        party: Party,
        token: Option<u64>,
    ) -> Option<Granted> {
        if let Some(granted) = self.renew(turn, party.id, party.origin) {
            return Some(granted);
        }
        if self.waiter(party.id).is_some() {
            return None;
        }
        let Some(token) = token else {
            if self.queue.is_empty() && self.admits(party.mode) {
                // The holder that it waited for was not taken up.
                return Some(self.grant(turn, party));
            }
            self.enqueue(turn, party);
            return None;
        };
        if self.holders.iter().any(|other| !fit(other.party.mode, party.mode) && other.token > token) {
            return None;
        }
        while let Some(at) = self.holders.iter().position(|other| !fit(other.party.mode, party.mode)) {
            self.lose(turn, at, LostReason::Expired);
        }
        if !self.admits(party.mode) {
            return None;
        }
        let at = self.hold_by(turn, party, token);
        Some(self.answer(at))
    }

    /// Who holds, for people.
    pub(crate) fn view_holders(&self, now: Millis) -> Vec<HolderView> {
        self.holders.iter().map(|holder| holder.view(now)).collect()
    }

    /// Who waits, for people.
    pub(crate) fn view_queue(&self, now: Millis) -> Vec<WaiterView> {
        self.queue.iter().map(|waiter| waiter.view(now)).collect()
    }

    /// Why the claim waits. An upgrade waits for the others, ahead of the queue.
    pub(crate) fn waiting(&self, now: Millis, id: ClaimId) -> Waiting {
        let mut holders = self.view_holders(now);
        let upgrade = self.holder(id).filter(|&at| self.upgrading && holders[at].mode == Mode::Upgradable);
        upgrade.map(|at| holders.remove(at));
        let place =
            upgrade.map(|_| 1).or_else(|| self.waiter(id).map(|at| at + 1 + usize::from(self.upgrading)));
        Waiting { holders, place }
    }

    /// All that decides what happens next, in a form that can be compared.
    #[cfg(test)]
    pub(crate) fn image(&self) -> Image {
        let holders =
            self.holders.iter().map(|h| (h.party.id.reveal(), h.party.mode, h.token, h.ends, h.told));
        let queue = self.queue.iter().map(|w| (w.party.id.reveal(), w.party.mode, w.leaves));
        (holders.collect(), queue.collect(), self.upgrading)
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> (usize, usize) {
        (self.holders.capacity(), self.queue.capacity())
    }

    fn holder(&self, id: ClaimId) -> Option<usize> {
        self.holders.iter().position(|holder| holder.party.id == id)
    }

    fn waiter(&self, id: ClaimId) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter.party.id == id)
    }

    /// Whether a claim of this mode could hold beside all that hold now. Holders fit together, so for most modes the
    /// first one speaks for all.
    fn admits(&self, mode: Mode) -> bool {
        let Some(first) = self.holders.first() else { return true };
        match (first.party.mode, mode) {
            (Mode::Shared | Mode::Upgradable, Mode::Shared) => !self.upgrading,
            (Mode::Shared | Mode::Upgradable, Mode::Upgradable) => {
                self.holders.iter().all(|holder| holder.party.mode == Mode::Shared)
            }
            (Mode::Permit(_), Mode::Permit(limit)) => {
                let limits = self.holders.iter().filter_map(|holder| match holder.party.mode {
                    Mode::Permit(limit) => Some(limit),
                    _ => None,
                });
                let least = limits.fold(limit, Ord::min);
                u32::try_from(self.holders.len()).is_ok_and(|held| held < least.get())
            }
            _ => false,
        }
    }

    fn grant(&mut self, turn: &mut Turn<'_>, party: Party) -> Granted {
        turn.tally.grant(turn.now.since(party.since));
        let at = self.hold(turn, party);
        self.answer(at)
    }

    fn hold(&mut self, turn: &mut Turn<'_>, party: Party) -> usize {
        let token = turn.token();
        self.hold_by(turn, party, token)
    }

    fn hold_by(&mut self, turn: &mut Turn<'_>, party: Party, token: u64) -> usize {
        let ends = party.ttl.map(|ttl| turn.now.plus(ttl));
        turn.deadline(party.id, None, ends);
        turn.tally.holding += 1;
        self.holders.push(Holder { party, token, ends, told: false });
        self.holders.len() - 1
    }

    /// Takes the lock from all that stand in its way, ahead of the queue. Of permits that fill the lock, as many as
    /// need be lose it, those that have held longest first.
    fn steal(&mut self, turn: &mut Turn<'_>, party: Party) -> Granted {
        while let Some(at) = self.holders.iter().position(|holder| !fit(holder.party.mode, party.mode)) {
            self.lose(turn, at, LostReason::Stolen);
        }
        while matches!(party.mode, Mode::Permit(_)) && !self.admits(party.mode) {
            self.lose(turn, 0, LostReason::Stolen);
        }
        turn.tally.grant(turn.now.since(party.since));
        let at = self.hold(turn, Party { since: turn.now, ..party });
        self.settle(turn);
        self.answer(at)
    }

    fn ask_again(&mut self, turn: &mut Turn<'_>, at: usize, entry: Entry, origin: Origin) -> Outcome {
        match entry {
            Entry::Queue => {
                let waiter = &mut self.queue[at];
                waiter.party.origin = origin;
                turn.deadline(waiter.party.id, waiter.leaves.take(), None);
                Outcome::Queued { place: self.place(at) }
            }
            // Had it been possible, it would hold the lock by now.
            Entry::Try => {
                self.give_up(turn, at);
                self.settle(turn);
                Outcome::Busy
            }
            Entry::Steal => {
                let mut party = self.take_waiter(turn, at).party;
                party.origin = origin;
                Outcome::Granted(self.steal(turn, party))
            }
        }
    }

    fn enqueue(&mut self, turn: &mut Turn<'_>, party: Party) -> usize {
        let first = self.queue.is_empty() && !self.upgrading;
        self.announce(turn, first, |mode| compete(mode, party.mode));
        turn.tally.waiting += 1;
        self.queue.push_back(Waiter { party, leaves: None });
        self.place(self.queue.len() - 1)
    }

    /// 1 for the next in line. An upgrade stands before the queue.
    fn place(&self, at: usize) -> usize {
        at + 1 + usize::from(self.upgrading)
    }

    /// Tells the holders in somebody's way that somebody waits: each once, until nobody waits any more.
    fn announce(&mut self, turn: &mut Turn<'_>, first: bool, in_the_way: impl Fn(Mode) -> bool) {
        for holder in &mut self.holders {
            holder.told &= !first;
            if !holder.told && in_the_way(holder.party.mode) {
                holder.told = true;
                turn.tell(&holder.party, What::Contended);
            }
        }
    }

    fn upgrade(&mut self, turn: &mut Turn<'_>, at: usize) -> Changed {
        self.rearm(turn, at);
        if self.holders.len() == 1 {
            return Changed::Done(self.promote(turn, at));
        }
        if !self.upgrading {
            self.upgrading = true;
            self.announce(turn, self.queue.is_empty(), |mode| mode != Mode::Upgradable);
        }
        Changed::Waiting
    }

    fn promote(&mut self, turn: &mut Turn<'_>, at: usize) -> Granted {
        self.upgrading = false;
        self.holders[at].party.mode = Mode::Exclusive;
        self.holders[at].token = turn.token();
        self.rearm(turn, at);
        self.answer(at)
    }

    /// A lease only ever grows.
    fn rearm(&mut self, turn: &mut Turn<'_>, at: usize) {
        let holder = &mut self.holders[at];
        let ends = holder.party.ttl.map(|ttl| turn.now.plus(ttl)).max(holder.ends);
        turn.deadline(holder.party.id, holder.ends, ends);
        holder.ends = ends;
    }

    /// What a new or changed holder is told, by an answer or an effect.
    fn answer(&mut self, at: usize) -> Granted {
        let granted = self.granted(at);
        self.holders[at].told = granted.contended;
        granted
    }

    fn granted(&self, at: usize) -> Granted {
        let Holder { party, token, .. } = &self.holders[at];
        let in_the_way_of_the_upgrade = self.upgrading && party.mode != Mode::Upgradable;
        Granted {
            fencing_token: *token,
            mode: party.mode,
            ttl: party.ttl,
            contended: in_the_way_of_the_upgrade
                || self.queue.iter().any(|waiter| compete(party.mode, waiter.party.mode)),
        }
    }

    fn lose(&mut self, turn: &mut Turn<'_>, at: usize, reason: LostReason) -> Holder {
        let holder = self.take_holder(turn, at);
        turn.tell(&holder.party, What::Lost(reason));
        turn.tally.lose(reason);
        holder
    }

    fn take_holder(&mut self, turn: &mut Turn<'_>, at: usize) -> Holder {
        let holder = self.holders.remove(at);
        self.upgrading &= holder.party.mode != Mode::Upgradable;
        turn.deadline(holder.party.id, holder.ends, None);
        turn.tally.holding -= 1;
        turn.tally.end(turn.now.since(holder.party.since));
        holder
    }

    /// It leaves without a grant.
    fn give_up(&mut self, turn: &mut Turn<'_>, at: usize) -> Waiter {
        turn.tally.gave_up += 1;
        self.take_waiter(turn, at)
    }

    fn take_waiter(&mut self, turn: &mut Turn<'_>, at: usize) -> Waiter {
        // Every caller has just found it there.
        #[allow(clippy::expect_used)]
        let waiter = self.queue.remove(at).expect("a waiter at its place");
        turn.deadline(waiter.party.id, waiter.leaves, None);
        turn.tally.waiting -= 1;
        waiter
    }

    fn give_back_room(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > ROOM_TO_KEEP {
            self.queue = VecDeque::new();
        }
        if self.holders.capacity() > ROOM_TO_KEEP && self.holders.len() <= self.holders.inline_size() {
            self.holders.shrink_to_fit();
        }
    }
}

impl Turn<'_> {
    fn token(&mut self) -> u64 {
        let token = *self.next_token;
        *self.next_token += 1;
        token
    }

    fn tell(&mut self, party: &Party, what: What) {
        self.changes.push(Change::Tell { id: party.id, origin: party.origin, what });
    }

    fn deadline(&mut self, id: ClaimId, was: Option<Millis>, is: Option<Millis>) {
        if was != is {
            self.changes.push(Change::Deadline { id, was, is });
        }
    }
}

impl Holder {
    fn view(&self, now: Millis) -> HolderView {
        let Party { owner, mode, since, .. } = &self.party;
        let held_for = Some(now.since(*since));
        HolderView { owner: Owner::clone(owner), mode: *mode, fencing_token: self.token, held_for }
    }
}

impl Waiter {
    fn view(&self, now: Millis) -> WaiterView {
        let Party { owner, mode, since, .. } = &self.party;
        WaiterView { owner: Owner::clone(owner), mode: *mode, waited_for: Some(now.since(*since)) }
    }
}

/// Whether claims of these modes can hold together, room for permits aside.
fn fit(one: Mode, other: Mode) -> bool {
    use Mode::{Permit, Shared, Upgradable};
    matches!((one, other), (Shared, Shared | Upgradable) | (Upgradable, Shared) | (Permit(_), Permit(_)))
}

/// Whether the release of a holder of one mode could help a waiter of the other. Permits compete for room.
fn compete(holder: Mode, waiter: Mode) -> bool {
    matches!(waiter, Mode::Permit(_)) || !fit(holder, waiter)
}
