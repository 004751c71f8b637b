//! Permits: how many there are, and who has one.
//!
//! The lock file is locked shared by all who have a permit, which keeps exclusive claims out, also those of other
//! programs. What the kernel cannot count is counted in `.windlass/HASH.permits`: for each permit one byte of it is
//! locked, far behind the end of the file, which stays empty. A permit of a semaphore of `limit` has a byte in the
//! region `limit`, so that the locks tell the limits, too, and all of it is gone when its process is.
//!
//! These are locks of open file descriptions (`F_OFD_SETLK`), of Linux alone, because flock(2) knows no bytes. They are on
//! a file that nobody locks with flock(2) (rule R25). Byte 0 is locked by whoever counts: for a few system calls, never
//! while waiting.

use std::{fs::File, io, num::NonZeroU32, os::fd::AsRawFd, sync::Arc, time::Duration};

use super::{
    dir::Directory,
    ears::{Ears, To, wait},
    line::Job,
    lockfile::{LockFile, open_to_read},
    trouble::trouble,
};
use crate::{error::Result, lockgate::FileKey};

/// The most permits that a lock can have.
pub(super) const MOST: u32 = 1024;

/// The first byte of the region of a limit.
const fn region(limit: i64) -> i64 {
    limit << 20
}

/// Where nothing is locked any more.
const END: i64 = region(MOST as i64 + 1);

/// The one who counts.
pub(super) struct Slots(LockFile);

/// A permit. Dropping it gives it back.
pub(super) struct Slot(LockFile);

impl Slots {
    /// Begins to count; `None` when somebody else does so just now, and for longer than that can take.
    pub(super) fn enter(directory: &Directory, key: FileKey) -> Result<Option<Self>> {
        let path = directory.side_path(key, "permits");
        let failed = |e| trouble("lock", &path, e);
        loop {
            let slots = Self(directory.open_side(&path)?);
            let mut entered = slots.lock(0).map_err(failed)?;
            for _ in 0..200 {
                if entered {
                    break;
                }
                std::thread::yield_now();
                entered = slots.lock(0).map_err(failed)?;
            }
            if !entered {
                return Ok(None);
            }
            if directory.is_current(&slots.0, &path)? {
                return Ok(Some(slots));
            }
        }
    }

    /// Takes a permit if fewer are taken than the smallest limit of those involved.
    pub(super) fn take(self, limit: NonZeroU32) -> Result<Option<Self>> {
        self.take_byte(i64::from(limit.get()))
            .map_err(|e| trouble("lock", std::path::Path::new("permits"), e))
            .map(|taken| taken.then_some(self))
    }

    fn take_byte(&self, limit: i64) -> io::Result<bool> {
        let taken = taken(self.0.file())?;
        if !has_room(&taken, limit) {
            return Ok(false);
        }
        let free = (region(limit)..region(limit + 1)).find(|byte| !taken.contains(byte));
        free.map_or(Ok(false), |byte| self.lock(byte))
    }

    /// Whether there seems to be a free permit. Does not disturb those who listen for the file being closed, because it
    /// opens it for reading only.
    pub(super) fn seem_free(directory: &Directory, key: FileKey, limit: NonZeroU32) -> bool {
        open_to_read(&directory.side_path(key, "permits"))
            .and_then(|file| taken(&file))
            .map_or(true, |taken| has_room(&taken, limit.get().into()))
    }

    /// Ends counting, and keeps what was taken.
    pub(super) fn leave(self) -> Slot {
        // It can fail only on a descriptor that is none.
        let _ = set(&self.0, libc::F_UNLCK, 0, 1);
        Slot(self.0)
    }

    fn lock(&self, byte: i64) -> io::Result<bool> {
        match set(&self.0, libc::F_WRLCK, byte, 1) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The smallest limit of those involved counts.
fn has_room(taken: &[i64], limit: i64) -> bool {
    let smallest = taken.iter().map(|byte| byte >> 20).fold(limit, i64::min);
    (taken.len() as i64) < smallest
}

/// The bytes that others have locked: one question for each, and one for each gap between them.
fn taken(file: &File) -> io::Result<Vec<i64>> {
    let mut taken = Vec::new();
    let mut ranges = vec![(region(1), END)];
    while let Some((from, to)) = ranges.pop() {
        if from >= to {
            continue;
        }
        let mut lock = range(libc::F_WRLCK, from, to - from);
        // SAFETY: the descriptor is open and `lock` is a valid `flock` for the kernel to read and write.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if lock.l_type != libc::F_UNLCK as libc::c_short {
            // Somebody else's lock may begin before the range.
            let byte = lock.l_start.max(from);
            taken.push(byte);
            ranges.push((from, byte));
            ranges.push((byte + 1, to));
        }
    }
    Ok(taken)
}

impl Drop for Slot {
    fn drop(&mut self) {
        // As for the lock itself: a child between `fork` and `exec` may have a copy.
        let _ = set(&self.0, libc::F_UNLCK, 0, 0);
    }
}

fn set(file: &LockFile, kind: libc::c_int, from: i64, length: i64) -> io::Result<()> {
    let lock = range(kind, from, length);
    // SAFETY: the descriptor is open and `lock` is a valid `flock` for the kernel to read.
    if unsafe { libc::fcntl(file.file().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn range(kind: libc::c_int, from: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: from,
        l_len: length,
        // The kernel wants it so for locks of open file descriptions.
        l_pid: 0,
    }
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
