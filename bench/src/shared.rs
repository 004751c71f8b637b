//! A few words of memory that the processes of one measure share.

use std::{
    fs::File,
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::Result;

pub(crate) const STOP: usize = 0;
/// When the lock was last released.
pub(crate) const RELEASED: usize = 1;
/// Who released it: 1 or 2.
pub(crate) const RELEASER: usize = 2;
/// How many turns each of the two has had.
pub(crate) const TURNS: usize = 3;
/// Counted up under the lock, without atomicity: a step is lost when two are inside at once.
pub(crate) const COUNTER: usize = 8;

/// When a contest starts; 0 until all are ready.
pub(crate) const START: usize = 9;
/// Who is ready, a word each.
pub(crate) const READY: usize = 16;

const BYTES: usize = 512;

pub(crate) struct Shared(NonNull<AtomicU64>);

impl Shared {
    /// Makes the file, all zero.
    pub(crate) fn create(directory: &Path) -> Result<()> {
        Ok(std::fs::write(directory.join("shared"), [0; BYTES])?)
    }

    pub(crate) fn open(directory: &str) -> Result<Self> {
        let file = File::options().read(true).write(true).open(Path::new(directory).join("shared"))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that has BYTES bytes and is not cut.
        let address = unsafe { mmap(ptr::null_mut(), BYTES, protection, MapFlags::SHARED, &file, 0)? };
        Ok(Self(NonNull::new(address.cast()).ok_or("mmap gave address 0")?))
    }

    pub(crate) fn load(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    pub(crate) fn store(&self, word: usize, value: u64) {
        self.word(word).store(value, Ordering::Release);
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < BYTES / size_of::<u64>());
        // SAFETY: within the mapping, aligned as a page is, and never unmapped.
        unsafe { self.0.add(word).as_ref() }
    }
}
