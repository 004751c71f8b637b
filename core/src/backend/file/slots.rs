//! Permits: how many there are, and who has one.
//!
//! The lock file is locked shared by all who have a permit, which keeps exclusive claims out, also those of other
//! programs. What the kernel cannot count is counted in `.windlass/HASH.permits`: for each permit one byte of it is
//! locked, far behind the end of the file, which stays empty. A permit of a semaphore of `limit` has a byte in the
//! region `limit`, so that the locks tell the limits, too, and all of it is gone when its process is.
//!
//! Byte 0 is locked by whoever counts: for a few system calls, never while waiting.

use std::{num::NonZeroU32, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use super::{
    dir::Directory,
    ears::{Ears, To, wait},
    line::Job,
    lockfile::{LockFile, open_to_read},
    ofd::{self, Kind},
    trouble::trouble,
};
use crate::{error::Result, lockgate::FileKey};

/// The most permits that a lock can have.
pub(super) const MOST: u32 = 1024;

/// The bytes of the permits of a limit.
const fn region(limit: i64) -> Range<i64> {
    limit << 20..(limit + 1) << 20
}

/// Those of all.
const ALL: Range<i64> = region(1).start..region(MOST as i64).end;

/// The one who counts.
pub(super) struct Slots {
    file: LockFile,
    path: PathBuf,
}

/// A permit. Dropping it gives it back.
pub(super) struct Slot(LockFile);

impl Slots {
    /// Begins to count; `None` when somebody else does so just now, and for longer than that can take.
    pub(super) fn enter(directory: &Directory, key: FileKey) -> Result<Option<Self>> {
        let path = directory.side_path(key, "permits");
        loop {
            let file = directory.open_side(&path)?;
            let mut entered = false;
            for _ in 0..200 {
                entered =
                    ofd::try_lock(file.file(), Kind::Write, 0).map_err(|e| trouble("lock", &path, e))?;
                if entered {
                    break;
                }
                std::thread::yield_now();
            }
            if !entered {
                return Ok(None);
            }
            if directory.is_current(&file, &path)? {
                return Ok(Some(Self { file, path }));
            }
        }
    }

    /// Takes a permit if fewer are taken than the smallest limit of those involved.
    pub(super) fn take(self, limit: NonZeroU32) -> Result<Option<Self>> {
        let limit = i64::from(limit.get());
        let take = || {
            let taken = ofd::locked(self.file.file(), Kind::Write, ALL)?;
            let free = region(limit).find(|byte| !taken.contains(byte)).filter(|_| has_room(&taken, limit));
            free.map_or(Ok(false), |byte| ofd::try_lock(self.file.file(), Kind::Write, byte))
        };
        let taken = take().map_err(|e| trouble("lock", &self.path, e))?;
        Ok(taken.then_some(self))
    }

    /// Whether there seems to be a free permit. Does not disturb those who listen for the file being closed, because it
    /// opens it for reading only.
    pub(super) fn seem_free(directory: &Directory, key: FileKey, limit: NonZeroU32) -> bool {
        open_to_read(&directory.side_path(key, "permits"))
            .and_then(|file| ofd::locked(&file, Kind::Write, ALL))
            .map_or(true, |taken| has_room(&taken, limit.get().into()))
    }

    /// Ends counting, and keeps what was taken.
    pub(super) fn leave(self) -> Slot {
        ofd::unlock(self.file.file(), 0..1);
        Slot(self.file)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // As for the lock itself: a child between `fork` and `exec` may have a copy.
        ofd::unlock(self.0.file(), ALL);
    }
}

fn has_room(taken: &[i64], limit: i64) -> bool {
    let smallest = taken.iter().map(|byte| byte >> 20).fold(limit, i64::min);
    (taken.len() as i64) < smallest
}

impl Directory {
    /// Looks for a free permit each time that somebody closes the file of permits.
    ///
    /// When a process dies the kernel tells of the closing before it drops the lock, so the thread looks again shortly
    /// after, in growing intervals, and once a second for a notice that was lost (rule R18).
    pub(super) fn work_at_slots(self: &Arc<Self>, key: FileKey) -> Option<Job> {
        let ears =
            Ears::new().ok().filter(|ears| ears.listen(&self.side_path(key, "permits"), To::Closes).is_ok());
        let mut pause = FIRST_PAUSE;
        loop {
            let next = self.with_line(key, |line| {
                line.at_slots = false;
                self.pump(key, line)
            });
            match next {
                Some(Job::Slots) => {}
                next => return next,
            }
            pause = if wait(ears.as_ref(), pause) {
                FIRST_PAUSE
            } else {
                (pause * 2).min(Duration::from_secs(1))
            };
            if let Some(ears) = &ears {
                ears.hear(|_| ());
            }
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(1);
