//! One granted claim in this process: what is known of it, and what is due for it next. The [`Guard`](crate::Guard), the
//! keeper and the release of it share one [`Held`].
//!
//! A claim is `Held` until one of three things happens, each once and for good: it is released, it is detached, or it
//! is lost. Whoever ends it first wins; the others see how it ended. In particular `is_held()` reads the clock, and a claim
//! whose lease is over counts as lost from that very call on, whether or not the keeper has come by (rule R2).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_listener::{Event, EventListener};
use futures_util::lock::Mutex as AsyncMutex;

use crate::{
    ask::{Claim, Grant, Mode},
    error::{LostReason, Result},
    lease::Lease,
    options::{Hold, Notice},
    time::Moment,
};

/// One change at a time.
pub(crate) type ChangeLock = AsyncMutex<()>;

pub(crate) struct Held {
    pub(crate) claim: Claim,
    pub(crate) since: Moment,
    pub(crate) hold: Hold,
    /// The TTL asked for: after `max_hold` the claim of a backend without leases lives on for as long.
    ttl: Duration,
    state: Mutex<State>,
    ended: Event,
    /// Whoever changes the claim has this until the backend has answered, so that no change overtakes another.
    pub(crate) changing: Arc<ChangeLock>,
    /// Open for as long as the lock is held, for whoever traces.
    _span: tracing::Span,
}

struct State {
    fencing_token: u64,
    mode: Mode,
    lease: Option<Lease>,
    end: Option<End>,
    /// What the backend said to the release, once it did.
    release_outcome: Option<Result<()>>,
    told_too_long: bool,
}

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Released,
    Detached,
    Lost(LostReason),
}

/// What a second release of the same claim finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// The first one has not ended.
    UnderWay,
    /// The first one failed.
    Failed,
    /// There is nothing left to do.
    Done,
}

/// What is to be done for a claim, and when to look again.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// It must be taken as lost.
    pub(crate) lose: Option<LostReason>,
    /// `max_hold` has just passed.
    pub(crate) too_long: bool,
    /// The time until it is due for renewal; `None`: never.
    pub(crate) renew_in: Option<Duration>,
    /// The time until anything else is due.
    pub(crate) look_in: Option<Duration>,
    /// How long one request to renew may take.
    pub(crate) try_timeout: Option<Duration>,
}

impl Held {
    pub(crate) fn new(claim: Claim, grant: &Grant, ttl: Duration, since: Moment, hold: Hold) -> Self {
        let span =
            tracing::debug_span!("windlass.hold", lock = %claim.name, fencing_token = grant.fencing_token);
        let state = State {
            fencing_token: grant.fencing_token,
            mode: grant.mode,
            lease: grant.lease.map(Lease::new),
            end: None,
            release_outcome: None,
            told_too_long: false,
        };
        Self {
            claim,
            since,
            hold,
            ttl,
            state: Mutex::new(state),
            ended: Event::new(),
            changing: Arc::default(),
            _span: span,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code of others runs under this mutex, and each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fencing_token(&self) -> u64 {
        self.state().fencing_token
    }

    pub(crate) fn mode(&self) -> Mode {
        self.state().mode
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.state().lease.map_or(self.ttl, |lease| lease.ttl())
    }

    pub(crate) fn end(&self) -> Option<End> {
        self.state().end
    }

    /// Ends the hold, unless it has ended: then how it did.
    pub(crate) fn finish(&self, end: End) -> std::result::Result<(), End> {
        let mut state = self.state();
        if let Some(earlier) = state.end {
            return Err(earlier);
        }
        state.end = Some(end);
        drop(state);
        self.ended.notify(usize::MAX);
        Ok(())
    }

    /// The release found that it had been lost before.
    pub(crate) fn was_lost(&self, reason: LostReason) {
        self.state().end = Some(End::Lost(reason));
    }

    /// Whether the release is to be tried once more; if so, it is under way from now on.
    pub(crate) fn begin_release_again(&self) -> Again {
        let outcome = &mut self.state().release_outcome;
        match outcome {
            None => Again::UnderWay,
            Some(Ok(())) => Again::Done,
            Some(Err(_)) => {
                *outcome = None;
                Again::Failed
            }
        }
    }

    /// What became of the release that is under way.
    pub(crate) async fn release_outcome(&self) -> Result<()> {
        loop {
            let listener = self.ended.listen();
            if let Some(outcome) = &self.state().release_outcome {
                return outcome.clone();
            }
            listener.await;
        }
    }

    pub(crate) fn set_release_outcome(&self, outcome: Result<()>) {
        self.state().release_outcome = Some(outcome);
        self.ended.notify(usize::MAX);
    }

    /// Listens for the end; look at [`end`](Self::end) after this call and before waiting.
    pub(crate) fn listen(&self) -> EventListener {
        self.ended.listen()
    }

    /// For how long the claim is certainly alive; `None`: for as long as the process is.
    pub(crate) fn remaining(&self, now: Moment) -> Option<Duration> {
        self.state().lease.map(|lease| lease.remaining(now))
    }

    /// Why the claim must be taken as lost by now, if it must.
    pub(crate) fn overdue(&self, now: Moment) -> Option<LostReason> {
        match &self.state().lease {
            Some(lease) if !lease.is_held(now) && lease.is_failing() => return Some(LostReason::Unreachable),
            Some(lease) if !lease.is_held(now) => return Some(LostReason::Expired),
            _ => {}
        }
        // Where nothing runs out, or where one request renews all claims of a session, this one included.
        let end = self.hold.max_hold?.saturating_add(self.ttl);
        (now.since(self.since) >= end).then_some(LostReason::Expired)
    }

    /// What is due. `max_hold` stops renewal, and the claim ends when its TTL is over.
    pub(crate) fn agenda(&self, now: Moment) -> Agenda {
        let lose = self.overdue(now);
        let mut state = self.state();
        if state.end.is_some() {
            return Agenda::default();
        }
        let mut agenda = Agenda { lose, ..Agenda::default() };
        let held_for = now.since(self.since);
        let over = self.hold.max_hold.is_some_and(|max_hold| held_for >= max_hold);
        if let Some(max_hold) = self.hold.max_hold {
            agenda.too_long = over && !state.told_too_long;
            state.told_too_long |= over;
            let next = if over { max_hold.saturating_add(self.ttl) } else { max_hold };
            agenda.look_in = Some(next.saturating_sub(held_for));
        }
        if let Some(lease) = &state.lease {
            let remaining = lease.remaining(now);
            agenda.look_in = Some(agenda.look_in.map_or(remaining, |look_in| look_in.min(remaining)));
            agenda.renew_in = (!over).then(|| lease.renew_in(now));
            agenda.try_timeout = Some(lease.try_timeout());
        }
        agenda
    }

    /// A change came through.
    pub(crate) fn changed(&self, grant: &Grant, now: Moment) {
        self.state().mode = grant.mode;
        self.renewed(grant, now);
    }

    /// From now on no more than shared, whether or not the backend has heard of it.
    pub(crate) fn make_shared(&self) {
        self.state().mode = Mode::Shared;
    }

    /// A renewal came through; whether it came late. Its mode is not taken over: the answer may be older than a change.
    pub(crate) fn renewed(&self, grant: &Grant, now: Moment) -> bool {
        let mut state = self.state();
        state.fencing_token = state.fencing_token.max(grant.fencing_token);
        let Some(term) = grant.lease else { return false };
        match &mut state.lease {
            Some(lease) => {
                let late = lease.is_late(now);
                lease.renewed(term);
                late
            }
            None => {
                state.lease = Some(Lease::new(term));
                false
            }
        }
    }

    /// A renewal did not come through; `retry_after` is what the backend asks for.
    pub(crate) fn not_renewed(&self, now: Moment, random: f64, retry_after: Option<Duration>) {
        if let Some(lease) = &mut self.state().lease {
            lease.not_renewed(now, random, retry_after);
        }
    }

    pub(crate) fn notice(&self, now: Moment) -> Notice {
        let lost = match self.end() {
            Some(End::Lost(reason)) => Some(reason),
            _ => None,
        };
        Notice {
            name: self.claim.name.clone(),
            fencing_token: self.fencing_token(),
            held_for: now.since(self.since),
            lost,
        }
    }
}
