//! One lock in this process: who of us holds it, who of us stands in line, and what our threads do about it.
//!
//! Every function here runs under the mutex of the line's shard and makes only system calls that do not wait.

use std::{collections::VecDeque, mem, sync::Arc};

use futures_channel::oneshot;

use super::{
    alarm::Recall,
    dir::Directory,
    gate::{Gate, Turn},
    lockfile::{Identity, LockFile, Side, identity},
    news::Inbox,
    revoke::Theft,
    slots::Slot,
    take::{Obstacle, Taken, Want},
    trouble::trouble,
};
use crate::{
    ask::{Ask, Entry, Grant, Happening, Mode, Owner, Waiting},
    error::{Error, ErrorKind, LostReason, Result},
    lockgate::FileKey,
    name::{ClaimId, Name},
    time::Moment,
};

/// What this process has to do with one lock. Forgotten when it is [idle](Line::is_idle).
#[derive(Default)]
pub(super) struct Line {
    pub(super) held: Vec<Held>,
    /// First come, first served.
    pub(super) queue: VecDeque<Standing>,
    /// Our place among the processes, as long as there is a queue.
    pub(super) gate: Option<Gate>,
    /// A thread of ours waits there for our turn: which one, and for which file.
    pub(super) at_gate: Option<(u64, Identity)>,
    /// Threads of ours that the kernel has queued for the lock itself, shared and exclusive.
    pub(super) blocked: [Option<Blocked>; 2],
    /// For which of them the head of our queue waits. The other one, or both, are abandoned: whoever they waited for
    /// has given up. They are called back, and unlock at once what they get before they hear of it.
    pub(super) wants: Option<Side>,
    /// Threads of ours that wait for something else than a lock on the main file.
    pub(super) at_slots: bool,
    pub(super) at_theft: bool,
    /// Our own claims that steal.
    pub(super) theft: Option<Theft>,
}

/// A granted claim.
pub(super) struct Held {
    pub(super) name: Name,
    pub(super) id: ClaimId,
    pub(super) grant: Grant,
    pub(super) owner: Arc<Owner>,
    pub(super) since: Moment,
    pub(super) inbox: Arc<Inbox>,
    pub(super) file: LockFile,
    pub(super) slot: Option<Slot>,
    /// The holder has heard that somebody waits.
    pub(super) told: bool,
    /// A claim is held until it is released, also when the backend value that it came through is gone.
    pub(super) _directory: Arc<Directory>,
}

/// A claim in the queue.
pub(super) struct Standing {
    pub(super) name: Name,
    pub(super) id: ClaimId,
    pub(super) mode: Mode,
    pub(super) thief: bool,
    pub(super) owner: Arc<Owner>,
    pub(super) since: Moment,
    pub(super) inbox: Arc<Inbox>,
    pub(super) tell: oneshot::Sender<Result<Grant>>,
}

/// A thread in the kernel's queue.
pub(super) struct Blocked {
    pub(super) id: u64,
    pub(super) file: Arc<LockFile>,
    pub(super) recall: Arc<Recall>,
    /// Somebody unlocked the file on the thread's behalf: if it believes that it has the lock, it looks again.
    pub(super) doubtful: bool,
}

/// What a thread is needed for.
pub(super) enum Job {
    /// Wait at the gate.
    Gate(u64, Turn),
    /// Let the kernel queue it for the lock.
    Main(Side, u64, Arc<LockFile>, Arc<Recall>),
    /// Look for a free permit each time that one comes back.
    Slots,
    /// Wait until a theft in another process is over.
    Theft,
}

/// What became of an acquire in its first moment.
pub(super) enum Begun {
    Granted(Grant),
    Refused,
    Waiting(oneshot::Receiver<Result<Grant>>, Waiting),
}

impl Directory {
    /// Takes the lock if that can be done now, else stands in line for it or gives up.
    pub(super) fn begin(self: &Arc<Self>, key: FileKey, ask: &Ask, inbox: &Arc<Inbox>) -> Result<Begun> {
        self.with_line(key, |line| self.begin_in(key, line, ask, inbox))
    }

    fn begin_in(
        self: &Arc<Self>,
        key: FileKey,
        line: &mut Line,
        ask: &Ask,
        inbox: &Arc<Inbox>,
    ) -> Result<Begun> {
        if let Some(held) = line.held.iter().find(|held| held.id == ask.claim_id) {
            return Ok(Begun::Granted(held.grant.clone()));
        }
        if let Some(place) = line.queue.iter().position(|standing| standing.id == ask.claim_id) {
            // Whoever asked before has gone, or takes the answer that is given here.
            let (tell, answer) = oneshot::channel();
            line.queue[place].tell = tell;
            let holders = self.known_holders(key, line);
            return Ok(Begun::Waiting(answer, line.waiting(holders, place)));
        }
        let thief = ask.entry == Entry::Steal;
        if (thief || line.queue.is_empty()) && !line.conflicts(ask.mode) {
            let want = Want { name: &ask.name, mode: ask.mode, owner: &ask.owner, my_turn: false, thief };
            if let Taken::Held { file, slot, token } = self.attempt(key, line, &want)? {
                let grant = Grant { fencing_token: token, mode: ask.mode, lease: None };
                line.held.push(Held {
                    name: ask.name.clone(),
                    id: ask.claim_id,
                    grant: grant.clone(),
                    owner: ask.owner.clone(),
                    since: self.rt.now(),
                    inbox: inbox.clone(),
                    file,
                    slot,
                    told: false,
                    _directory: self.clone(),
                });
                self.held_one(inbox);
                return Ok(Begun::Granted(grant));
            }
        }
        if ask.entry == Entry::Try {
            return Ok(Begun::Refused);
        }
        let (tell, answer) = oneshot::channel();
        let standing = Standing {
            name: ask.name.clone(),
            id: ask.claim_id,
            mode: ask.mode,
            thief,
            owner: ask.owner.clone(),
            since: self.rt.now(),
            inbox: inbox.clone(),
            tell,
        };
        let mut robbed = None;
        if thief {
            robbed = Some(self.known_holders(key, line));
            self.steal(key, line, standing)?;
        } else {
            line.queue.push_back(standing);
        }
        line.tell_contended();
        self.go_on(key, line);
        let holders = robbed.unwrap_or_else(|| self.known_holders(key, line));
        let place = line.queue.iter().position(|standing| standing.id == ask.claim_id).unwrap_or(0);
        Ok(Begun::Waiting(answer, line.waiting(holders, place)))
    }

    /// Ends claims, held or waiting.
    pub(super) fn end(self: &Arc<Self>, key: FileKey, id: ClaimId) {
        self.with_line(key, |line| {
            if let Some(at) = line.held.iter().position(|held| held.id == id) {
                let held = line.held.swap_remove(at);
                self.let_go(held);
            } else if let Some(at) = line.queue.iter().position(|standing| standing.id == id) {
                line.queue.remove(at);
                line.end_theft();
                if at == 0 {
                    line.wants = None;
                }
            }
            if !line.queue.is_empty() || line.gate.is_some() {
                self.go_on(key, line);
            }
        });
    }

    /// Runs `code` on the line, and forgets the line if there is nothing to it any more.
    pub(super) fn with_line<T>(&self, key: FileKey, code: impl FnOnce(&mut Line) -> T) -> T {
        let mut shard = self.shard(key);
        let line = shard.entry(key).or_default();
        let result = code(line);
        line.call_back_abandoned();
        if line.is_idle() {
            shard.remove(&key);
        }
        result
    }

    /// The grant of a claim that is held; its news go to `inbox` from now on.
    pub(super) fn renew(self: &Arc<Self>, key: FileKey, id: ClaimId, inbox: &Arc<Inbox>) -> Option<Grant> {
        let mut shard = self.shard(key);
        let held = shard.get_mut(&key)?.held.iter_mut().find(|held| held.id == id)?;
        if !Arc::ptr_eq(&held.inbox, inbox) {
            held.inbox = inbox.clone();
            self.held_one(inbox);
        }
        Some(held.grant.clone())
    }

    /// Makes an exclusive claim a shared one, in place.
    ///
    /// Linux lets nobody in between: `flock_lock_inode` removes the old lock and adds the new one under one spinlock
    /// (`flc_lock`), and those that wait have to take that to look again. A million conversions beside three other
    /// processes showed no gap either.
    pub(super) fn downgrade(self: &Arc<Self>, key: FileKey, id: ClaimId) -> Result<Grant> {
        self.with_line(key, |line| {
            let held = line.held.iter_mut().find(|held| held.id == id).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotHeld,
                    "the claim is not held: it was released, lost or never granted",
                )
            })?;
            match held.grant.mode {
                Mode::Shared => return Ok(held.grant.clone()),
                Mode::Exclusive => {}
                other => {
                    let message = format!(
                        "a claim that is {other} cannot become shared: release it and acquire it anew"
                    );
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
            }
            // Shared claims get one more than what is written down, and this one is now one of them.
            let token = held.grant.fencing_token - 1;
            self.write_record(key, &held.file, token, Mode::Shared, &held.name, &held.owner)?;
            // Never waits: it is ours alone.
            held.file.lock(Side::Shared).map_err(|e| trouble("lock", &self.main_path(key), e))?;
            held.grant.mode = Mode::Shared;
            let grant = held.grant.clone();
            self.go_on(key, line);
            Ok(grant)
        })
    }

    /// Gives a lock up that was held.
    pub(super) fn let_go(&self, held: Held) {
        // Closing unlocks: first the lock, then the permit, whose file others watch.
        drop(held.file);
        held.slot.into_iter().for_each(drop);
    }

    /// Serves whoever can be served, and starts a thread where one is needed.
    pub(super) fn go_on(self: &Arc<Self>, key: FileKey, line: &mut Line) {
        if let Some(job) = self.pump(key, line) {
            self.start(key, line, job);
        }
    }

    /// Serves the head of the queue, and those behind it that can share with it, as far as that goes without waiting.
    /// What it cannot do without waiting is the job that it returns.
    pub(super) fn pump(self: &Arc<Self>, key: FileKey, line: &mut Line) -> Option<Job> {
        loop {
            let Some(head) = line.queue.front() else {
                line.leave_gate();
                return None;
            };
            let (name, owner, mode, thief) = (head.name.clone(), head.owner.clone(), head.mode, head.thief);
            if thief {
                if line.conflicts(mode) {
                    for lost in mem::take(&mut line.held) {
                        self.lose(lost, LostReason::Stolen);
                    }
                }
            } else {
                match self.stand_at_gate(key, line) {
                    Ok(None) => {}
                    Ok(Some(turn)) => return self.wait_at_gate(line, turn),
                    Err(error) => {
                        line.fail_head(error);
                        continue;
                    }
                }
            }
            if line.conflicts(mode) {
                // The end of what we hold comes by here.
                line.wants = None;
                return None;
            }
            let want = Want { name: &name, mode, owner: &owner, my_turn: true, thief };
            match self.attempt(key, line, &want) {
                Ok(Taken::Held { file, slot, token }) => self.serve(line, file, slot, token),
                Ok(Taken::Busy(obstacle)) => match self.wait_for(key, line, obstacle) {
                    Ok(job) => return job,
                    Err(error) => line.fail_head(error),
                },
                Err(error) => line.fail_head(error),
            }
        }
    }

    /// Hands what was taken to the head of the queue.
    pub(super) fn serve(self: &Arc<Self>, line: &mut Line, file: LockFile, slot: Option<Slot>, token: u64) {
        let Some(head) = line.queue.pop_front() else { return };
        line.wants = None;
        line.end_theft();
        let grant = Grant { fencing_token: token, mode: head.mode, lease: None };
        self.held_one(&head.inbox);
        line.held.push(Held {
            name: head.name,
            id: head.id,
            grant: grant.clone(),
            owner: head.owner,
            since: self.rt.now(),
            inbox: head.inbox,
            file,
            slot,
            told: false,
            _directory: self.clone(),
        });
        // Whoever asked may be gone: it owes a release.
        let _ = head.tell.send(Ok(grant));
        // Those that can share with it come in by the same turn. Before others of ours it is the next process's.
        if line.queue.front().is_some_and(|next| line.conflicts(next.mode)) {
            let passed = line.gate.as_mut().filter(|_| !head.thief).map(Gate::let_others_pass);
            if let Some(Err(error)) = passed {
                // Better to lose the place than to keep it from others.
                tracing::warn!(%error, "cannot let other processes pass");
                line.leave_gate();
            }
            line.tell_contended();
        }
    }

    /// One attempt. Where it fails and a thread that nobody wants any more is in the kernel's queue, that thread may
    /// have got the lock just now: then it is taken from it.
    fn attempt(&self, key: FileKey, line: &mut Line, want: &Want<'_>) -> Result<Taken> {
        let mut taken = self.take(key, want)?;
        // A thread can get it between the unlocking and the second attempt, but only once: then it stops at the mutex
        // that we have. So with two threads the third time tells.
        for _ in 0..=line.blocked.len() {
            if !matches!(taken, Taken::Busy(Obstacle::Lock(_))) {
                break;
            }
            let mut abandoned = false;
            for side in [Side::Shared, Side::Exclusive] {
                if line.wants != Some(side)
                    && let Some(blocked) = &mut line.blocked[side as usize]
                {
                    blocked.file.unlock();
                    blocked.doubtful = true;
                    abandoned = true;
                }
            }
            if !abandoned {
                break;
            }
            taken = self.take(key, want)?;
        }
        Ok(taken)
    }

    /// Takes a place among the processes where we have none. What to wait for, unless it is our turn.
    fn stand_at_gate(&self, key: FileKey, line: &mut Line) -> Result<Option<Turn>> {
        let gate = match &mut line.gate {
            Some(gate) => gate,
            none => none.insert(Gate::stand(self, key)?),
        };
        if let Some(head) = line.queue.front() {
            gate.announce(head, self.pid);
        }
        gate.look()
    }

    fn wait_at_gate(&self, line: &mut Line, turn: Turn) -> Option<Job> {
        line.wants = None;
        let file = turn.file();
        if line.at_gate.is_some_and(|(_, waits_for)| waits_for == file) {
            return None;
        }
        let id = self.fresh_id();
        line.at_gate = Some((id, file));
        Some(Job::Gate(id, turn))
    }

    /// What to do until the obstacle is gone: nothing where a thread is at it already.
    fn wait_for(&self, key: FileKey, line: &mut Line, obstacle: Obstacle) -> Result<Option<Job>> {
        line.wants = None;
        match obstacle {
            Obstacle::Lock(side) => {
                line.wants = Some(side);
                let path = self.main_path(key);
                let blocked = &mut line.blocked[side as usize];
                if let Some(blocked) = blocked
                    && blocked.file.stat().ok().map(|stat| stat.identity) == identity(&path).ok().flatten()
                {
                    return Ok(None);
                }
                let file = Arc::new(self.open_main(&path)?);
                let id = self.fresh_id();
                let recall = Arc::<Recall>::default();
                let fresh = Blocked { id, file: file.clone(), recall: recall.clone(), doubtful: false };
                if let Some(old) = blocked.replace(fresh) {
                    // It waits for a file that is none any more.
                    old.recall.set(true);
                }
                Ok(Some(Job::Main(side, id, file, recall)))
            }
            Obstacle::Slot => Ok((!mem::replace(&mut line.at_slots, true)).then_some(Job::Slots)),
            Obstacle::Queue => Ok((!mem::replace(&mut line.at_theft, true)).then_some(Job::Theft)),
        }
    }

    fn held_one(self: &Arc<Self>, inbox: &Inbox) {
        if inbox.is_listening() {
            self.watch_held();
        }
    }
}

impl Line {
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
            && self.queue.is_empty()
            && self.gate.is_none()
            && self.at_gate.is_none()
            && !(self.at_slots || self.at_theft)
            && self.blocked.iter().all(Option::is_none)
    }

    /// Threads that wait for nobody come back soon, unless somebody comes for what they wait for.
    fn call_back_abandoned(&self) {
        for side in [Side::Shared, Side::Exclusive] {
            if let Some(blocked) = &self.blocked[side as usize] {
                blocked.recall.set(self.wants != Some(side));
            }
        }
    }

    /// Whether what this process holds itself stands in the way. Permits are counted in the slots, not here.
    pub(super) fn conflicts(&self, mode: Mode) -> bool {
        self.held.iter().any(|held| {
            !matches!(
                (held.grant.mode, mode),
                (Mode::Shared, Mode::Shared) | (Mode::Permit(_), Mode::Permit(_))
            )
        })
    }

    /// Gives up our place among the processes.
    pub(super) fn leave_gate(&mut self) {
        self.wants = None;
        self.gate = None;
    }

    pub(super) fn fail_head(&mut self, error: Error) {
        if let Some(head) = self.queue.pop_front() {
            let _ = head.tell.send(Err(error));
        }
        self.wants = None;
        self.end_theft();
    }

    /// Once there is no thief any more.
    fn end_theft(&mut self) {
        if self.theft.is_some() && self.queue.iter().all(|standing| !standing.thief) {
            self.theft = None;
        }
    }

    pub(super) fn tell_contended(&mut self) {
        for held in &mut self.held {
            if !held.told {
                held.told = true;
                held.inbox.push(&held.name, held.id, Happening::Contended);
            }
        }
    }
}
