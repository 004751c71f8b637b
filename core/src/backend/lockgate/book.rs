//! What one process knows of its claims: who stands in its line for a lock, and what was granted. Pure: requests are made
//! by whoever keeps the book.
//!
//! ```text
//!            turn          asked: granted      end          ended: answered
//! Waiting ----------> Asking ----------> Held -----> Ending ---------------> (forgotten)
//!    ^                  | |                          ^    |
//!    +------------------+ | end                  end |    | ended: not answered
//!      asked: not         v                          |    v
//!                     CalledOff                    Unconfirmed: if it may be sent again
//!            what it gets is given back
//! ```
//!
//! - **One request at a time for a lock**: the head of the line alone asks. It has the process's one place in the server's
//!   queue; those behind it are told when it is their turn.
//! - **A place in the server's queue** cannot be given back. It stays for ten seconds after the last request, and whoever of
//!   the process asks next, if only by a try, has it.
//! - **A claim leaves the line** when it is granted or ended, and not when its future is dropped or fails: whoever drops
//!   one owes a release, and whoever was told of trouble asks again and finds its place.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use event_listener::{Event, EventListener};

use super::wire::Uuid;
use crate::{
    ask::{Ask, Claim, Mode},
    name::{ClaimId, Name},
    time::Moment,
};

#[cfg(test)]
mod tests;

/// For how long the server keeps a place.
const PLACE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Book {
    claims: BTreeMap<ClaimId, Entry>,
    lines: BTreeMap<Name, Line>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<ClaimId>,
    /// When the process last asked to be kept in the server's queue.
    queued: Option<Moment>,
}

impl Line {
    fn is_queued(&self, now: Moment) -> bool {
        self.queued.is_some_and(|since| now.since(since) <= PLACE)
    }
}

struct Entry {
    name: Name,
    mode: Mode,
    state: State,
    /// Rings when there is something to do for those who wait for this claim.
    bell: Arc<Event>,
    /// Whether it rang since the claim last asked.
    rang: bool,
}

enum State {
    Waiting,
    Asking,
    CalledOff,
    Held(Uuid),
    Ending(Uuid),
    /// The release was not answered. With a uuid, it may be sent again.
    Unconfirmed(Option<Uuid>, Moment),
}

/// What a claim that wants a lock is to do.
pub(super) enum Turn {
    /// Ask the server, and say by [`Book::asked`] what came of it.
    Ask,
    /// Listen until it is told.
    Listen,
    /// It has the lock.
    Held,
    /// It was called off.
    Over,
}

/// What a claim that is to end is to do.
pub(super) enum End {
    /// Nothing: nobody knows it, or no longer.
    Done,
    /// Wait until a request about it has ended, and look again.
    UnderWay(EventListener),
    /// Release this at the server, and say by [`Book::ended`] what came of it.
    Release(Uuid, Mode),
    /// A release of it was sent and not answered.
    InDoubt,
}

/// What became of a release.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Answered,
    /// It can be sent again.
    Again,
    /// Nobody knows whether it arrived, and it must not arrive twice.
    InDoubt,
}

impl Book {
    /// Puts a claim in line, unless it is known. Returns its bell.
    pub(super) fn enroll(&mut self, ask: &Ask) -> Arc<Event> {
        if let Some(entry) = self.claims.get(&ask.claim_id) {
            return entry.bell.clone();
        }
        let bell = Arc::new(Event::new());
        let (name, mode) = (ask.name.clone(), ask.mode);
        let entry = Entry { name, mode, state: State::Waiting, bell: bell.clone(), rang: false };
        self.claims.insert(ask.claim_id, entry);
        self.lines.entry(ask.name.clone()).or_default().waiting.push_back(ask.claim_id);
        bell
    }

    /// Whether a new claim would stand behind others of this process.
    pub(super) fn is_behind_others(&self, ask: &Ask) -> bool {
        self.head(&ask.name).is_some() && !self.claims.contains_key(&ask.claim_id)
    }

    pub(super) fn turn(&mut self, claim: &Claim) -> Turn {
        let head = self.head(&claim.name) == Some(claim.id);
        let Some(entry) = self.entry(claim) else { return Turn::Over };
        entry.rang = false;
        match &entry.state {
            State::Waiting if head => {
                entry.state = State::Asking;
                Turn::Ask
            }
            State::Waiting | State::Asking => Turn::Listen,
            State::Held(_) => Turn::Held,
            State::CalledOff | State::Ending(_) | State::Unconfirmed(..) => Turn::Over,
        }
    }

    /// Listens for the bell of a claim, unless it has rung since the claim asked.
    pub(super) fn listen(&mut self, claim: &Claim) -> Option<EventListener> {
        self.entry(claim).filter(|entry| !entry.rang).map(|entry| entry.bell.listen())
    }

    /// Whether the process has a place in the server's queue.
    pub(super) fn is_queued(&self, name: &Name, now: Moment) -> bool {
        self.lines.get(name).is_some_and(|line| line.is_queued(now))
    }

    /// The process is in the server's queue from `since` on; `None`: it no longer is.
    pub(super) fn queued(&mut self, name: &Name, since: Option<Moment>) {
        self.lines.entry(name.clone()).or_default().queued = since;
    }

    /// What came of asking. Whether the claim wants what it got: otherwise that is to be given back, and then
    /// [`over`](Self::over).
    pub(super) fn asked(&mut self, claim: &Claim, got: Option<&Uuid>, now: Moment) -> bool {
        let Some(entry) = self.entry(claim) else { return false };
        if !matches!(entry.state, State::Asking) {
            return false;
        }
        entry.state = match got {
            Some(uuid) => State::Held(uuid.clone()),
            None => State::Waiting,
        };
        entry.bell.notify(usize::MAX);
        if got.is_some() {
            self.leave_line(claim, now);
        }
        true
    }

    /// Forgets a claim, and lets those who wait for its lock or its end know.
    pub(super) fn over(&mut self, claim: &Claim, now: Moment) {
        if self.entry(claim).is_none() {
            return;
        }
        if let Some(entry) = self.claims.remove(&claim.id) {
            entry.bell.notify(usize::MAX);
        }
        self.leave_line(claim, now);
        self.ring_head(&claim.name);
    }

    /// The lease of a claim that is held.
    pub(super) fn lease(&self, claim: &Claim) -> Option<(Uuid, Mode)> {
        let entry = self.claims.get(&claim.id).filter(|entry| entry.name == claim.name)?;
        match &entry.state {
            State::Held(uuid) => Some((uuid.clone(), entry.mode)),
            _ => None,
        }
    }

    pub(super) fn end(&mut self, claim: &Claim, now: Moment) -> End {
        let Some(entry) = self.entry(claim) else { return End::Done };
        match &entry.state {
            State::Waiting => {
                self.over(claim, now);
                End::Done
            }
            State::Asking | State::CalledOff => {
                entry.state = State::CalledOff;
                // Others may wait for what the request brings.
                entry.bell.notify(usize::MAX);
                End::UnderWay(entry.bell.listen())
            }
            State::Held(uuid) | State::Unconfirmed(Some(uuid), _) => {
                let uuid = uuid.clone();
                entry.state = State::Ending(uuid.clone());
                End::Release(uuid, entry.mode)
            }
            State::Ending(_) => End::UnderWay(entry.bell.listen()),
            State::Unconfirmed(None, _) => End::InDoubt,
        }
    }

    pub(super) fn ended(&mut self, claim: &Claim, ended: Ended, now: Moment, forget_after: Duration) {
        let Some(entry) = self.entry(claim) else { return };
        let State::Ending(uuid) = &entry.state else { return };
        let again = match ended {
            Ended::Answered => return self.over(claim, now),
            Ended::Again => Some(uuid.clone()),
            Ended::InDoubt => None,
        };
        entry.state = State::Unconfirmed(again, now);
        entry.bell.notify(usize::MAX);
        // Whose lease is over, about those nobody asks any more.
        let fresh = |since| now.since(since) <= forget_after;
        self.claims.retain(|_, entry| !matches!(entry.state, State::Unconfirmed(_, since) if !fresh(since)));
    }

    /// The right id under another name is not the claim.
    fn entry(&mut self, claim: &Claim) -> Option<&mut Entry> {
        self.claims.get_mut(&claim.id).filter(|entry| entry.name == claim.name)
    }

    fn head(&self, name: &Name) -> Option<ClaimId> {
        self.lines.get(name)?.waiting.front().copied()
    }

    fn leave_line(&mut self, claim: &Claim, now: Moment) {
        let Some(line) = self.lines.get_mut(&claim.name) else { return };
        line.waiting.retain(|id| *id != claim.id);
        if !line.waiting.is_empty() {
            self.ring_head(&claim.name);
        } else if line.is_queued(now) {
            // Somebody gave up, which is a good time to look for places that are over.
            self.lines.retain(|_, line| !line.waiting.is_empty() || line.is_queued(now));
        } else {
            self.lines.remove(&claim.name);
        }
    }

    fn ring_head(&mut self, name: &Name) {
        if let Some(entry) = self.head(name).and_then(|head| self.claims.get_mut(&head)) {
            entry.rang = true;
            entry.bell.notify(usize::MAX);
        }
    }
}
