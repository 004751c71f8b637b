//! The threads that wait in the kernel for a line of this process: at most one at the gate, one for each way to lock, one
//! for permits and one for a theft to end.
//!
//! A thread that waits for nobody any more is called back (alarm.rs): the one for the lock soon, the others when they look
//! around, as they do once a second.

use std::{io::ErrorKind::Interrupted, sync::Arc, time::Duration};

use super::{
    alarm::{Alarm, Recall, interrupted_every},
    dir::Directory,
    gate::{Gate, Turn},
    line::{Job, Line},
    lockfile::{LockFile, Side},
    take::{Taken, Want},
    trouble::trouble,
};
use crate::{
    error::{Error, ErrorKind, Result},
    lockgate::FileKey,
    rt,
};

/// How often one who waits for other processes looks whether it is still needed, and whether the one before it at the gate
/// has been stopped.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Directory {
    /// Starts a thread for the job. Where the system has none to give, those who wait are told.
    pub(super) fn start(self: &Arc<Self>, key: FileKey, line: &mut Line, job: Job) {
        let directory = self.clone();
        let undo = match &job {
            Job::Main(side, ..) => Some(*side),
            _ => None,
        };
        let (gate, slots, theft) =
            (matches!(job, Job::Gate(..)), matches!(job, Job::Slots), matches!(job, Job::Theft));
        if let Err(error) = rt::thread("windlass-wait", move || directory.work(key, job)) {
            if let Some(side) = undo {
                line.blocked[side as usize] = None;
            }
            if gate {
                line.at_gate = None;
            }
            line.at_slots &= !slots;
            line.at_theft &= !theft;
            let error = Error::new(
                ErrorKind::Unavailable,
                format!("cannot start a thread to wait for the lock: {error}; raise the limit on threads (ulimit -u)"),
            )
            .with_source(error);
            while !line.queue.is_empty() {
                line.fail_head(error.clone());
            }
            line.leave_gate();
        }
    }

    /// The life of a thread: its job, and what that leads to.
    fn work(self: Arc<Self>, key: FileKey, mut job: Job) {
        // Where the system has none, the thread stays until it gets what it waits for.
        let alarm = Alarm::of_this_thread().map(Arc::new);
        loop {
            let next = match job {
                Job::Gate(id, turn) => self.work_at_gate(key, id, turn, alarm.as_deref()),
                Job::Main(side, id, file, recall) => {
                    let locked = recall.during(alarm.as_ref(), || file.lock_unless_interrupted(side));
                    self.work_at_main(key, side, id, file, recall, locked)
                }
                Job::Slots => self.work_at_slots(key),
                Job::Theft => interrupted_every(LOOK_EVERY, alarm.as_deref(), || self.work_at_theft(key)),
            };
            match next {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    fn work_at_gate(
        self: &Arc<Self>,
        key: FileKey,
        id: u64,
        turn: Turn,
        alarm: Option<&Alarm>,
    ) -> Option<Job> {
        let has_come = interrupted_every(LOOK_EVERY, alarm, || turn.wait());
        let may_move = has_come || turn.is_kept_by_a_stopped_one();
        self.with_line(key, |line| {
            // Another thread may have taken the place, because the file was replaced.
            if line.at_gate.is_none_or(|(current, _)| current != id) {
                return None;
            }
            if line.gate.is_some() && !may_move {
                return Some(Job::Gate(id, turn));
            }
            line.at_gate = None;
            self.pump(key, line)
        })
    }

    /// Goes on where the thread was let into the lock, or called back.
    fn work_at_main(
        self: &Arc<Self>,
        key: FileKey,
        side: Side,
        id: u64,
        file: Arc<LockFile>,
        recall: Arc<Recall>,
        locked: std::io::Result<()>,
    ) -> Option<Job> {
        self.with_line(key, |line| {
            let wanted = line.wants == Some(side) && !line.queue.is_empty();
            let blocked = &mut line.blocked[side as usize];
            // Another thread may have taken the place, because the file was replaced.
            let mine = blocked.as_ref().is_some_and(|blocked| blocked.id == id);
            if mine && wanted && locked.as_ref().is_err_and(|e| e.kind() == Interrupted) {
                // Somebody came for it meanwhile.
                return Some(Job::Main(side, id, file, recall));
            }
            let doubtful = mine && blocked.as_ref().is_some_and(|blocked| blocked.doubtful);
            if mine && wanted && doubtful && locked.is_ok() {
                // flock(2) on what one has locked already changes nothing.
                if let Some(blocked) = blocked {
                    blocked.doubtful = false;
                }
                if !file.try_lock(side).unwrap_or(false) {
                    return Some(Job::Main(side, id, file, recall));
                }
            }
            if mine {
                *blocked = None;
            }
            if mine && wanted {
                line.wants = None;
                if let Err(error) = locked
                    .map_err(|e| trouble("lock", &self.main_path(key), e))
                    .and_then(|()| self.hand_over(key, line, side, file))
                {
                    line.fail_head(error);
                }
            } else {
                drop(file);
            }
            self.pump(key, line)
        })
    }

    /// The kernel has given us the lock that the head of the queue waits for.
    fn hand_over(
        self: &Arc<Self>,
        key: FileKey,
        line: &mut Line,
        side: Side,
        file: Arc<LockFile>,
    ) -> Result<()> {
        let (Some(head), Some(file)) = (line.queue.front(), Arc::into_inner(file)) else { return Ok(()) };
        let want = Want {
            name: &head.name,
            mode: head.mode,
            owner: &head.owner,
            my_turn: line.gate.as_ref().is_some_and(Gate::is_first),
            thief: head.thief,
        };
        // Otherwise the file was replaced or something else stands in the way: the pump sees what.
        if let Some(Taken::Held { file, slot, token }) = self.take_locked(key, file, side, &want)? {
            self.serve(line, file, slot, token);
        }
        Ok(())
    }
}
