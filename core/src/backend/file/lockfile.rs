//! A file that is locked: opened so that nothing surprising is behind its name, locked with flock(2), and closed in a
//! child of `fork`.

use std::{
    fs::{File, TryLockError},
    io::{Error, ErrorKind, Result},
    path::Path,
};

/// How a file is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

/// Which file a path leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// What a file is like at the moment.
pub(super) struct Stat {
    pub(super) identity: Identity,
    pub(super) is_file: bool,
    pub(super) size: u64,
}

/// What becomes of a file that is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(not(unix), allow(dead_code))]
pub(super) struct Fresh {
    pub(super) mode: u32,
    /// To whom root gives it: user and group.
    pub(super) owner: Option<(u32, u32)>,
}

/// An open file description of our own; closing it gives up the lock on it.
#[derive(Debug)]
pub(super) struct LockFile(File);

impl LockFile {
    /// Opens the file, and makes it where it is missing. Says nothing yet about whether it is a plain file: that is in
    /// its [`stat`](Self::stat), which everybody looks at anyway.
    pub(super) fn open(path: &Path, fresh: Fresh) -> Result<Self> {
        let file = sys::open(path, fresh)?;
        fork::opened(&file);
        Ok(Self(file))
    }

    /// Opens the file where it is there.
    pub(super) fn open_existing(path: &Path) -> Result<Self> {
        let file = sys::open_existing(path)?;
        fork::opened(&file);
        Ok(Self(file))
    }

    /// Locks the file if that can be done without waiting.
    pub(super) fn try_lock(&self, side: Side) -> Result<bool> {
        loop {
            let locked = match side {
                Side::Shared => self.0.try_lock_shared(),
                Side::Exclusive => self.0.try_lock(),
            };
            match locked {
                Ok(()) => return Ok(true),
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Interrupted => {}
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// Locks the file; the kernel queues the calling thread.
    pub(super) fn lock(&self, side: Side) -> Result<()> {
        loop {
            match self.lock_unless_interrupted(side) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                locked => return locked,
            }
        }
    }

    /// The same, for a thread that may be called back.
    pub(super) fn lock_unless_interrupted(&self, side: Side) -> Result<()> {
        match side {
            Side::Shared => self.0.lock_shared(),
            Side::Exclusive => self.0.lock(),
        }
    }

    /// Gives the lock up.
    pub(super) fn unlock(&self) {
        // It fails only for a descriptor that is none.
        let _ = self.0.unlock();
    }

    pub(super) fn stat(&self) -> Result<Stat> {
        sys::stat(&self.0)
    }

    /// Reads from `offset` on until the buffer is full or the file ends.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match sys::read_at(&self.0, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    pub(super) fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            match sys::write_at(&self.0, bytes, offset) {
                Ok(0) => return Err(Error::from(ErrorKind::WriteZero)),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub(super) fn truncate(&self, size: u64) -> Result<()> {
        self.0.set_len(size)
    }

    /// The number of the descriptor, for those who look at this process from outside; 0 where there are none.
    pub(super) fn number(&self) -> u32 {
        sys::number(&self.0)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for LockFile {
    /// Unlocks first: a child between `fork` and `exec` may have a copy, and closing ours alone would then not free the
    /// lock.
    fn drop(&mut self) {
        self.unlock();
        fork::closing(&self.0);
    }
}

/// Removes a file.
pub(super) fn remove(path: &Path) -> Result<()> {
    sys::remove(path)
}

/// Makes a directory where there is nothing.
pub(super) fn make_directory(path: &Path, fresh: Fresh) -> Result<()> {
    sys::make_directory(path, fresh)
}

/// The file behind a path, without following a symbolic link; `None` where there is none.
pub(super) fn identity(path: &Path) -> Result<Option<Identity>> {
    match sys::identity(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// The number of the file behind a path.
#[cfg(target_os = "linux")]
pub(super) fn inode_of(path: &Path) -> Option<u64> {
    identity(path).ok().flatten().map(|identity| identity.inode)
}

/// Opens a file to look at it: no lock, nothing made, nothing written.
pub(super) fn open_to_read(path: &Path) -> Result<File> {
    sys::open_to_read(path)
}

/// Opens a file that is there, to write at its end.
pub(super) fn open_to_append(path: &Path) -> Result<File> {
    sys::open_to_append(path)
}

/// Reads a file that may be of any length and content, up to `limit` bytes.
pub(super) fn read_head(file: &File, limit: usize) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    Read::take(file, limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(unix)]
mod sys {
    use std::{
        ffi::OsStr,
        fs::File,
        io::{Error, ErrorKind, Result},
        os::{
            fd::{AsFd, OwnedFd},
            unix::fs::FileExt,
        },
        path::Path,
    };

    #[cfg(target_os = "linux")]
    use rustix::fs::{CWD, Statx, StatxFlags, statx};
    #[cfg(not(target_os = "linux"))]
    use rustix::fs::{fstat, lstat};
    use rustix::{
        fs::{
            AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdir, open as open_path, openat,
            unlink, unlinkat,
        },
        io::Errno,
    };

    use super::{super::dir::SIDE, Fresh, Identity, Stat};

    /// `O_NONBLOCK`, so that a fifo or a device that somebody put there cannot hang us.
    const SAFE: OFlags =
        OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

    /// To open what is in a directory: where the system can, also one that may not be read.
    #[cfg(target_os = "linux")]
    const TO_ENTER: OFlags = OFlags::PATH;
    #[cfg(not(target_os = "linux"))]
    const TO_ENTER: OFlags = OFlags::RDONLY;
    const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

    /// `.windlass` and a name, where the path leads there. Whoever may write to a shared directory can put a symbolic
    /// link in place of `.windlass`, at any moment where that is their own, so it is not followed.
    fn in_side(path: &Path) -> Result<Option<(OwnedFd, &OsStr)>> {
        let place = path.parent().zip(path.file_name()).filter(|(side, _)| side.ends_with(SIDE));
        let Some((side, file)) = place else { return Ok(None) };
        match open_path(side, TO_ENTER | DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => {
                Err(Error::new(ErrorKind::NotADirectory, "what it is in is a symbolic link, or no directory"))
            }
            side => Ok(Some((side?, file))),
        }
    }

    fn open_at(path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        Ok(match in_side(path)? {
            Some((side, file)) => openat(side, file, flags | SAFE, mode)?,
            None => open_path(path, flags | SAFE, mode)?,
        })
    }

    pub(super) fn remove(path: &Path) -> Result<()> {
        let removed = match in_side(path)? {
            Some((side, file)) => unlinkat(side, file, AtFlags::empty()),
            None => unlink(path),
        };
        Ok(removed?)
    }

    pub(super) fn open_existing(path: &Path) -> Result<File> {
        Ok(open_at(path, OFlags::RDWR, Mode::empty())?.into())
    }

    pub(super) fn open(path: &Path, fresh: Fresh) -> Result<File> {
        // Twice only if somebody makes and removes the file in between, again and again.
        for _ in 0..100 {
            // First without O_CREAT: one call as a rule, and `fs.protected_regular` does not stand in the way of a
            // file that another user made in a shared directory.
            match open_existing(path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                opened => return opened,
            }
            let mode = Mode::from_bits_truncate(fresh.mode as _);
            match open_at(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                opened => {
                    let file: File = opened?.into();
                    finish(&file, fresh)?;
                    return Ok(file);
                }
            }
        }
        Err(ErrorKind::NotFound.into())
    }

    fn finish(file: impl AsFd, fresh: Fresh) -> Result<()> {
        let mode = Mode::from_bits_truncate(fresh.mode as _);
        if mode.intersects(Mode::WGRP | Mode::WOTH) {
            // Shared with others, whatever the umask says.
            fchmod(&file, mode)?;
        }
        if let Some((user, group)) = fresh.owner {
            // A root that may not do that, as in some containers, can still use what it has made.
            let _ = fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        }
        Ok(())
    }

    pub(super) fn make_directory(path: &Path, fresh: Fresh) -> Result<()> {
        match mkdir(path, Mode::from_bits_truncate(fresh.mode as _) & (Mode::RWXU | Mode::RWXG | Mode::RWXO))
        {
            Err(Errno::EXIST) => return Ok(()),
            made => made?,
        }
        let made = open_path(path, OFlags::RDONLY | DIRECTORY, Mode::empty())?;
        // Whoever owns the directory around it may have put another one there meanwhile, which is not to be given away.
        let is_empty = Dir::read_from(&made)?
            .all(|entry| entry.is_ok_and(|entry| [c".", c".."].contains(&entry.file_name())));
        if is_empty { finish(&made, fresh) } else { Ok(()) }
    }

    pub(super) fn open_to_read(path: &Path) -> Result<File> {
        Ok(open_at(path, OFlags::RDONLY, Mode::empty())?.into())
    }

    pub(super) fn open_to_append(path: &Path) -> Result<File> {
        Ok(open_at(path, OFlags::WRONLY | OFlags::APPEND, Mode::empty())?.into())
    }

    /// As `stat`, but does not ask for times: a file whose times were asked for gets a fresh one with its next write,
    /// which on ext4 costs as much as the write.
    #[cfg(target_os = "linux")]
    pub(super) fn stat(file: &File) -> Result<Stat> {
        let stat = statx(file, c"", AtFlags::EMPTY_PATH, TIMELESS)?;
        Ok(Stat {
            identity: identity_of(&stat),
            is_file: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile,
            size: stat.stx_size,
        })
    }

    #[cfg(target_os = "linux")]
    pub(super) fn identity(path: &Path) -> Result<Identity> {
        Ok(identity_of(&statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, TIMELESS)?))
    }

    #[cfg(target_os = "linux")]
    const TIMELESS: StatxFlags = StatxFlags::INO.union(StatxFlags::TYPE).union(StatxFlags::SIZE);

    #[cfg(target_os = "linux")]
    fn identity_of(stat: &Statx) -> Identity {
        let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        Identity { device, inode: stat.stx_ino }
    }

    // The fields have other widths on other systems.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless, trivial_numeric_casts)]
    pub(super) fn stat(file: &File) -> Result<Stat> {
        let stat = fstat(file)?;
        Ok(Stat {
            identity: Identity { device: stat.st_dev as u64, inode: stat.st_ino as u64 },
            is_file: FileType::from_raw_mode(stat.st_mode as _) == FileType::RegularFile,
            size: u64::try_from(stat.st_size).unwrap_or(0),
        })
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless, trivial_numeric_casts)]
    pub(super) fn identity(path: &Path) -> Result<Identity> {
        let stat = lstat(path)?;
        Ok(Identity { device: stat.st_dev as u64, inode: stat.st_ino as u64 })
    }

    pub(super) fn number(file: &File) -> u32 {
        std::os::fd::AsRawFd::as_raw_fd(file).unsigned_abs()
    }

    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
        file.read_at(buffer, offset)
    }

    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<usize> {
        file.write_at(bytes, offset)
    }
}

/// Best effort: no inode numbers to compare (Windows does not let an open file be replaced), and while a file is locked
/// exclusively no other process can read its record.
#[cfg(not(unix))]
mod sys {
    use std::{
        fs::{File, OpenOptions, create_dir, remove_file, symlink_metadata},
        io::{ErrorKind, Result},
        path::Path,
    };

    use super::{Fresh, Identity, Stat};

    const SAME: Identity = Identity { device: 0, inode: 0 };

    pub(super) fn open_existing(path: &Path) -> Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    pub(super) fn open(path: &Path, _fresh: Fresh) -> Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
    }

    pub(super) fn remove(path: &Path) -> Result<()> {
        remove_file(path)
    }

    pub(super) fn make_directory(path: &Path, _fresh: Fresh) -> Result<()> {
        match create_dir(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    pub(super) fn open_to_read(path: &Path) -> Result<File> {
        File::open(path)
    }

    pub(super) fn open_to_append(path: &Path) -> Result<File> {
        OpenOptions::new().append(true).open(path)
    }

    pub(super) fn stat(file: &File) -> Result<Stat> {
        let metadata = file.metadata()?;
        Ok(Stat { identity: SAME, is_file: metadata.is_file(), size: metadata.len() })
    }

    pub(super) fn identity(path: &Path) -> Result<Identity> {
        symlink_metadata(path).map(|_| SAME)
    }

    pub(super) fn number(_file: &File) -> u32 {
        0
    }

    #[cfg(windows)]
    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
        std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
    }

    #[cfg(windows)]
    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<usize> {
        std::os::windows::fs::FileExt::seek_write(file, bytes, offset)
    }
}

/// A child of `fork` closes its copies of our descriptors at once, before it runs anything else: a lock belongs to the
/// open file description, so a copy in a child that lives on would keep the lock of a parent that was killed. It never
/// unlocks: that would take the lock from the parent (rule R21).
#[cfg(unix)]
pub(super) mod fork {
    use std::{
        os::fd::{AsRawFd, RawFd},
        ptr,
        sync::{
            OnceLock,
            atomic::{AtomicPtr, AtomicU64, Ordering},
        },
    };

    /// A bit for each descriptor number, in pages made when they are first needed. The handler runs in a child of a
    /// process with threads, where no lock may be taken and nothing allocated: atomics only. Descriptors beyond the
    /// last page are not closed in children; a process that has a million of them open is on its own.
    type Page = [AtomicU64; WORDS];
    const WORDS: usize = 64;
    const BITS: usize = WORDS * 64;
    static PAGES: [AtomicPtr<Page>; 256] = [const { AtomicPtr::new(ptr::null_mut()) }; 256];

    pub(in super::super) fn opened(file: &impl AsRawFd) {
        static REGISTERED: OnceLock<()> = OnceLock::new();
        REGISTERED.get_or_init(|| {
            // SAFETY: the handler touches atomics and calls close(2), all of which is allowed there.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
        if let Some((word, bit)) = word_of(file.as_raw_fd(), true) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// To be called before the descriptor is closed: afterwards its number may be another file's.
    pub(in super::super) fn closing(file: &impl AsRawFd) {
        if let Some((word, bit)) = word_of(file.as_raw_fd(), false) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    fn word_of(fd: RawFd, make: bool) -> Option<(&'static AtomicU64, u64)> {
        let fd = usize::try_from(fd).ok()?;
        let slot = PAGES.get(fd / BITS)?;
        let mut page = slot.load(Ordering::Acquire);
        if page.is_null() {
            if !make {
                return None;
            }
            let fresh = Box::into_raw(Box::new([const { AtomicU64::new(0) }; WORDS]));
            match slot.compare_exchange(page, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => page = fresh,
                Err(winner) => {
                    // SAFETY: `fresh` came from Box::into_raw above and nobody else has seen it.
                    drop(unsafe { Box::from_raw(fresh) });
                    page = winner;
                }
            }
        }
        // SAFETY: a pointer in PAGES comes from Box::into_raw and is never freed.
        let page: &'static Page = unsafe { &*page };
        Some((&page[fd % BITS / 64], 1 << (fd % 64)))
    }

    extern "C" fn in_child() {
        for (high, slot) in PAGES.iter().enumerate() {
            // SAFETY: as above.
            let Some(page) = (unsafe { slot.load(Ordering::Acquire).as_ref() }) else { continue };
            for (middle, word) in page.iter().enumerate() {
                let mut bits = word.swap(0, Ordering::Relaxed);
                while bits != 0 {
                    let fd = high * BITS + middle * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    // SAFETY: the descriptor is ours. What owns it in this process belongs to the parent's directory
                    // tables, which a child never touches or drops, so nobody closes the number again.
                    unsafe { libc::close(fd as libc::c_int) };
                }
            }
        }
    }
}

#[cfg(not(unix))]
pub(super) mod fork {
    pub(in super::super) fn opened<T>(_file: &T) {}
    pub(in super::super) fn closing<T>(_file: &T) {}
}
