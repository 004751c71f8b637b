//! One attempt to take a lock, in system calls that do not wait.
//!
//! Uncontended, six calls take it and two give it back: open, flock, stat, stat, pread, pwrite; flock, close.

use std::{path::Path, time::Duration};

use super::{
    dir::Directory,
    lockfile::{LockFile, Side, identity},
    record::{BODY_AT, CLEAR_FLAGS, Entry, HEAD, Head, Kind, STEALING_AT, WAITING_AT},
    slots::{Slot, Slots},
    trouble::{not_a_file, trouble},
};
use crate::{
    ask::{Mode, Owner},
    error::{Error, ErrorKind, Result},
    lockgate::FileKey,
    name::Name,
};

/// Who wants a lock, and how.
pub(super) struct Want<'a> {
    pub(super) name: &'a Name,
    pub(super) mode: Mode,
    pub(super) owner: &'a Owner,
    /// The gate is ours.
    pub(super) my_turn: bool,
    pub(super) thief: bool,
}

pub(super) enum Taken {
    Held { file: LockFile, slot: Option<Slot>, token: u64 },
    Busy(Obstacle),
}

/// What stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Obstacle {
    /// The kernel would have to lock the file this way.
    Lock(Side),
    /// All permits are given out.
    Slot,
    /// The lock is free, but somebody is before us: stands at the gate, or steals.
    Queue,
}

impl Directory {
    pub(super) fn take(&self, key: FileKey, want: &Want<'_>) -> Result<Taken> {
        let path = self.main_path(key);
        let side = if want.mode == Mode::Exclusive { Side::Exclusive } else { Side::Shared };
        // Again only if somebody replaces the file in the very moment, each time.
        for _ in 0..1000 {
            let file = self.open_main(&path)?;
            if !file.try_lock(side).map_err(|e| trouble("lock", &path, e))? {
                return Ok(Taken::Busy(Obstacle::Lock(side)));
            }
            if let Some(taken) = self.take_locked(key, file, side, want)? {
                return Ok(taken);
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} is replaced again and again: find out by whom, lock files are never removed",
                path.display()
            ),
        ))
    }

    /// Goes on where the file is locked: is it still the one that the name leads to, is it our turn, what is our fencing
    /// token. `None`: the file was replaced, and the lock on it means nothing (rule R25).
    pub(super) fn take_locked(
        &self,
        key: FileKey,
        file: LockFile,
        mut side: Side,
        want: &Want<'_>,
    ) -> Result<Option<Taken>> {
        let path = self.main_path(key);
        let failed = |doing: &'static str| {
            let path = &path;
            move |e| trouble(doing, path, e)
        };
        let stat = file.stat().map_err(failed("look at"))?;
        if !stat.is_file {
            return Err(not_a_file(&path));
        }
        if identity(&path).map_err(failed("look at"))? != Some(stat.identity) {
            return Ok(None);
        }
        let mut head = read(&file).map_err(failed("read"))?;
        if head.stealing && !want.thief {
            if self.is_being_stolen(key)? {
                return Ok(Some(Taken::Busy(Obstacle::Queue)));
            }
            // The thief was killed. Another one may have raised the flag since we looked.
            file.write_at(b"0", STEALING_AT).map_err(failed("write"))?;
            if self.is_being_stolen(key)? {
                file.write_at(b"1", STEALING_AT).map_err(failed("write"))?;
                return Ok(Some(Taken::Busy(Obstacle::Queue)));
            }
        }
        if head.waiting && !want.my_turn && !want.thief {
            if self.somebody_waits(key)? {
                return Ok(Some(Taken::Busy(Obstacle::Queue)));
            }
            // Whoever raised the flag was killed, or is stopped: then it is raised again.
            self.lower_stale_flag(key, &file);
        }
        let kind = head.last.map(|last| last.1);
        let mut slots = None;
        match want.mode {
            Mode::Exclusive => {}
            // The kernel cannot tell permits from shared claims. The record can, as long as it is changed only by one
            // who is alone.
            Mode::Permit(limit) => {
                if kind != Some(Kind::Permit) && side == Side::Shared {
                    if !file.try_lock(Side::Exclusive).map_err(failed("lock"))? {
                        return Ok(Some(Taken::Busy(Obstacle::Lock(Side::Exclusive))));
                    }
                    side = Side::Exclusive;
                }
                if want.my_turn && !Slots::seem_free(self, key, limit) {
                    return Ok(Some(Taken::Busy(Obstacle::Slot)));
                }
                let Some(entered) = Slots::enter(self, key)? else {
                    return Ok(Some(Taken::Busy(Obstacle::Slot)));
                };
                let Some(taken) = entered.take(limit)? else {
                    return Ok(Some(Taken::Busy(Obstacle::Slot)));
                };
                // Another permit may have been granted since.
                head = read(&file).map_err(failed("read"))?;
                slots = Some(taken);
            }
            Mode::Shared | Mode::Upgradable => {
                if kind == Some(Kind::Permit) && side == Side::Shared {
                    if !file.try_lock(Side::Exclusive).map_err(failed("lock"))? {
                        return Ok(Some(Taken::Busy(Obstacle::Lock(Side::Exclusive))));
                    }
                    side = Side::Exclusive;
                }
            }
        }
        let token =
            self.sign(&file, &head, stat.size, want).map_err(failed("write the record of the lock into"))?;
        if !head.has_flags && self.somebody_stands(key)? {
            // It said so in a file that was empty, and our first record has covered it.
            file.write_at(b"1", WAITING_AT).map_err(failed("write"))?;
        }
        if side == Side::Exclusive && want.mode != Mode::Exclusive {
            // Linux lets nobody in between: see `Directory::downgrade`.
            file.lock(Side::Shared).map_err(failed("lock"))?;
        }
        let slot = slots.map(Slots::leave);
        Ok(Some(Taken::Held { file, slot, token }))
    }

    /// The fencing token, and the record of it where it is one that later ones must be greater than.
    ///
    /// A token is the time in microseconds, or two more than the last one if that is greater: it grows also where the
    /// file was removed, or its last record was lost with the machine's memory, and needs no fsync. Shared claims get
    /// one more than the last one and write nothing: they conflict with no shared claim, and the next exclusive one
    /// gets more. The first one after the machine was started writes, too, because what it finds may be old.
    fn sign(&self, file: &LockFile, head: &Head, size: u64, want: &Want<'_>) -> std::io::Result<u64> {
        let now = self.rt.now().wall;
        let clock = u64::try_from(now.as_micros()).unwrap_or(0).min(1 << 61);
        let shared = matches!(want.mode, Mode::Shared | Mode::Upgradable);
        let token = match head.last {
            Some((last, kind)) if shared && kind != Kind::Permit && head.boot == self.boot => {
                return Ok(last + 1);
            }
            Some((last, _)) => clock.max(last + 2),
            None => clock,
        };
        let body = self.body(now, token, want.mode, file, want.name, want.owner);
        let end = BODY_AT + body.len() as u64;
        if head.has_flags {
            file.write_at(&body, BODY_AT)?;
        } else {
            let mut record = CLEAR_FLAGS.to_vec();
            record.extend(body);
            file.write_at(&record, 0)?;
        }
        if size > end {
            file.truncate(end)?;
        }
        Ok(if shared { token + 1 } else { token })
    }

    fn body(
        &self,
        since: Duration,
        token: u64,
        mode: Mode,
        file: &LockFile,
        name: &Name,
        owner: &Owner,
    ) -> Vec<u8> {
        let (boot, pid, fd, name) = (self.boot, self.pid, file.number(), name.as_str());
        Entry { token, mode, boot, pid, fd, since, name, owner }.body()
    }

    /// Writes the record of a lock that is ours alone anew.
    pub(super) fn write_record(
        &self,
        key: FileKey,
        file: &LockFile,
        token: u64,
        mode: Mode,
        name: &Name,
        owner: &Owner,
    ) -> Result<()> {
        let body = self.body(self.rt.now().wall, token, mode, file, name, owner);
        file.write_at(&body, BODY_AT)
            .map_err(|e| trouble("write the record of the lock into", &self.main_path(key), e))
    }

    /// Whether the file that is locked is still the one that the path leads to.
    pub(super) fn is_current(&self, file: &LockFile, path: &Path) -> Result<bool> {
        let stat = file.stat().map_err(|e| trouble("look at", path, e))?;
        if !stat.is_file {
            return Err(not_a_file(path));
        }
        Ok(identity(path).map_err(|e| trouble("look at", path, e))? == Some(stat.identity))
    }
}

fn read(file: &LockFile) -> std::io::Result<Head> {
    let mut bytes = [0; HEAD];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(Head::parse(&bytes[..read]))
}
