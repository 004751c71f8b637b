//! The end of claims whose TTL is over: one task, which is there while there is something that can run out.
//!
//! It may be late, never early (rule R8). When it finds that it was late by much, the whole program stood still, and
//! renewals that came meanwhile may still wait to be read: it lets them in before it ends anything (rule R7).

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future};

use super::{Space, State};
use crate::time::Millis;

/// It sleeps for this at least, so that many deadlines close together wake it once.
const PAUSE: Duration = Duration::from_millis(5);
/// Later than this is standstill and not a busy machine.
const STANDSTILL: Duration = Duration::from_millis(250);
/// How long renewals are let in then.
const DRAIN: Duration = Duration::from_secs(1);

/// What is to be done about a deadline that is earlier than all before.
#[derive(Clone, Copy)]
pub(super) enum Sooner {
    /// The task sleeps too long.
    Ring,
    /// There is no task.
    Start,
}

impl State {
    /// Whether something is due before the task looks next.
    pub(super) fn due_sooner(&mut self) -> Option<Sooner> {
        let due = self.table.next_deadline()?;
        let sooner = match self.looks_at {
            Some(looks_at) if looks_at <= due => return None,
            Some(_) => Sooner::Ring,
            None => Sooner::Start,
        };
        self.looks_at = Some(due);
        Some(sooner)
    }
}

impl Space {
    pub(super) fn look_sooner(self: &Arc<Self>, sooner: Sooner) {
        match sooner {
            Sooner::Ring => {
                self.sooner.notify(usize::MAX);
            }
            Sooner::Start => self.runtime.spawn(end_claims(Arc::downgrade(self)).boxed()),
        }
    }

    /// When to look next, if there is anything to look for.
    fn looks_next(&self) -> Option<Millis> {
        let mut state = self.lock();
        state.looks_at = state.table.next_deadline();
        state.looks_at
    }

    fn end_what_is_over(self: &Arc<Self>) {
        let now = self.runtime.monotonic();
        self.step(|state, effects| {
            state.table.expire(now, effects);
            for effect in effects.iter() {
                state.watch_out(&effect.claim.name);
            }
        });
    }
}

async fn end_claims(space: std::sync::Weak<Space>) {
    loop {
        let (sleep, bell, due) = {
            let Some(space) = space.upgrade() else { return };
            // In this order: what is due sooner from now on rings.
            let bell = space.sooner.listen();
            let Some(due) = space.looks_next() else { return };
            let left = due.since(space.runtime.monotonic()).max(PAUSE);
            (space.runtime.sleep(left), bell, due)
        };
        future::select(sleep, bell).await;
        let drain = {
            let Some(space) = space.upgrade() else { return };
            let late = space.runtime.monotonic().since(due);
            (late > STANDSTILL).then(|| space.runtime.sleep(late.min(DRAIN)))
        };
        if let Some(drain) = drain {
            tracing::warn!("the program stood still: renewals come before anything expires");
            drain.await;
        }
        let Some(space) = space.upgrade() else { return };
        space.end_what_is_over();
    }
}
