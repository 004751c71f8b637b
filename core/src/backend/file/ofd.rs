//! Locks on single bytes of a file, by open file description (`F_OFD_SETLK`): of Linux alone, because flock(2) knows no
//! bytes. They end with the descriptor, so with the process, as those of flock(2) do. They are used only on files that
//! nobody locks with flock(2) (rule R25), far behind the end of what those files say.

use std::{
    fs::File,
    io::{Error, Result},
    ops::Range,
    os::fd::AsRawFd,
};

/// How a byte is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read = libc::F_RDLCK as isize,
    Write = libc::F_WRLCK as isize,
}

/// Locks a byte if nobody else has locked it so that it conflicts.
pub(super) fn try_lock(file: &File, kind: Kind, byte: i64) -> Result<bool> {
    match call(file, libc::F_OFD_SETLK, &mut area(kind as libc::c_int, byte..byte + 1)) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Locks a byte; the kernel queues the calling thread, until a signal comes.
pub(super) fn lock_unless_interrupted(file: &File, kind: Kind, byte: i64) -> Result<()> {
    call(file, libc::F_OFD_SETLKW, &mut area(kind as libc::c_int, byte..byte + 1))
}

pub(super) fn unlock(file: &File, bytes: Range<i64>) {
    // It fails only for a descriptor that is none.
    let _ = call(file, libc::F_OFD_SETLK, &mut area(libc::F_UNLCK, bytes));
}

/// A byte of the range that somebody else has locked so that `kind` conflicts with it: any of them.
pub(super) fn locked_one(file: &File, kind: Kind, bytes: Range<i64>) -> Result<Option<i64>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut found = area(kind as libc::c_int, bytes.clone());
    call(file, libc::F_OFD_GETLK, &mut found)?;
    // A lock of several bytes may begin before the range.
    Ok((found.l_type != libc::F_UNLCK as libc::c_short).then_some(found.l_start.max(bytes.start)))
}

/// All of them, in order: a question for each, and one for each gap between them.
pub(super) fn locked(file: &File, kind: Kind, bytes: Range<i64>) -> Result<Vec<i64>> {
    let mut found = Vec::new();
    let mut ranges = vec![bytes];
    while let Some(range) = ranges.pop() {
        if let Some(byte) = locked_one(file, kind, range.clone())? {
            found.push(byte);
            ranges.push(range.start..byte);
            ranges.push(byte + 1..range.end);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn area(kind: libc::c_int, bytes: Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.end - bytes.start,
        // The kernel wants it so for locks of open file descriptions.
        l_pid: 0,
    }
}

fn call(file: &File, what: libc::c_int, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: the descriptor is open, and `lock` is a valid `flock` for the kernel to read and to write.
    if unsafe { libc::fcntl(file.as_raw_fd(), what, &raw mut *lock) } < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}
