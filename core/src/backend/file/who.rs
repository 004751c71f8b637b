//! Who holds a lock that one waits for: told to everybody who waits, so it must be cheap.
//!
//! It is for our own claims, and for a holder that has written itself down and has the lock alone still. All others are in
//! the kernel's list of locks alone, and to give that out takes it milliseconds, in which all who lock files are slowed
//! down. So one thread of the process reads it, once for all who have asked meanwhile and wait still.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_channel::oneshot;

use super::{dir::Directory, gate::Gate, line::Line, look::holder_of, record::Record};
use crate::{
    ask::{Holder, Waiting},
    lockgate::FileKey,
    rt::thread,
};

/// Who waits for less than this does not make the kernel list its locks.
const SHORT: Duration = Duration::from_millis(20);

/// Those who have asked.
#[derive(Default)]
pub(super) struct Questions(Mutex<State>);

#[derive(Default)]
struct State {
    running: bool,
    asked: Vec<(FileKey, oneshot::Sender<Vec<Holder>>)>,
}

impl Directory {
    /// Who holds the lock; nobody where only the kernel's list tells.
    pub(super) fn known_holders(&self, key: FileKey, line: &Line) -> Vec<Holder> {
        let now = self.rt.now();
        let ours: Vec<Holder> = line.held.iter().map(|held| held.holder(now)).collect();
        if !ours.is_empty() {
            return ours;
        }
        let record = self.read_record(key).filter(|record| self.still_has_it_alone(key, record));
        record.map(|record| holder_of(&record, now)).into_iter().collect()
    }

    #[cfg(target_os = "linux")]
    fn still_has_it_alone(&self, key: FileKey, record: &Record) -> bool {
        use super::{
            lockfile::inode_of,
            procfs::{Kind, parse_locks_of},
        };

        let fdinfo = std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", record.pid, record.fd));
        let inode = inode_of(&self.main_path(key));
        parse_locks_of(&fdinfo.unwrap_or_default())
            .any(|lock| lock.kind == Kind::Flock && lock.exclusive && Some(lock.inode) == inode)
    }

    /// Nothing tells more than the record.
    #[cfg(not(target_os = "linux"))]
    fn still_has_it_alone(&self, _key: FileKey, _record: &Record) -> bool {
        true
    }

    /// Who holds the lock by the kernel's list. No answer where there is no thread to be had to read it.
    pub(super) fn ask_who_holds(self: &Arc<Self>, key: FileKey) -> oneshot::Receiver<Vec<Holder>> {
        let (tell, answer) = oneshot::channel();
        let mut state = self.questions.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push((key, tell));
        if !state.running {
            let directory = self.clone();
            state.running = thread("windlass-look", move || directory.answer_all()).is_ok();
            if !state.running {
                state.asked.clear();
            }
        }
        answer
    }

    fn answer_all(&self) {
        loop {
            std::thread::park_timeout(SHORT);
            let asked = {
                let mut state = self.questions.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.asked.retain(|(_, tell)| !tell.is_canceled());
                state.running = !state.asked.is_empty();
                mem::take(&mut state.asked)
            };
            if asked.is_empty() {
                return;
            }
            let mut locks = None;
            for (key, tell) in asked {
                // Whoever has it by now may be known.
                let mut holders =
                    self.shard(key).get(&key).map_or_else(Vec::new, |line| self.known_holders(key, line));
                if holders.is_empty() {
                    let (locks, record) =
                        (locks.get_or_insert_with(|| self.kernel_locks()), self.read_record(key));
                    let others = self.holders(key, locks, record.as_ref());
                    holders.extend(others.into_iter().map(|(_, holder)| holder));
                }
                // Whoever asked may be gone.
                let _ = tell.send(holders);
            }
        }
    }
}

impl Line {
    /// Why a claim in the queue waits.
    pub(super) fn waiting(&self, holders: Vec<Holder>, place: usize) -> Waiting {
        // Of other processes before us there may be more than one claim each: those come later.
        let ahead = self.gate.as_ref().map_or(Some(0), Gate::count_ahead);
        Waiting { holders, place: ahead.map(|ahead| ahead + place + 1) }
    }
}
