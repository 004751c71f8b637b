//! Where processes stand in line outside Linux: they lock `.windlass/HASH.queue`, in the order in which the system lets
//! them, which is first come, first served as a rule and nowhere promised.

use std::sync::Arc;

use super::{
    dir::Directory,
    line::Standing,
    lockfile::{Identity, LockFile, Side},
    record::WAITING_AT,
    revoke::set_flag,
    trouble::trouble,
};
use crate::{ask::Waiter, error::Result, lockgate::FileKey, time::Moment};

pub(super) struct Gate {
    file: Arc<LockFile>,
    main: LockFile,
    first: bool,
}

impl Gate {
    pub(super) fn stand(directory: &Directory, key: FileKey) -> Result<Self> {
        let file = Arc::new(directory.open_side(&directory.side_path(key, "queue"))?);
        let main = directory.open_main(&directory.main_path(key))?;
        set_flag(&main, WAITING_AT);
        Ok(Self { file, main, first: false })
    }

    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    #[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
    pub(super) fn look(&mut self) -> Result<Option<Turn>> {
        // Locking what is ours already changes nothing.
        self.first = self.first || self.file.try_lock(Side::Exclusive).unwrap_or(false);
        Ok((!self.first).then(|| Turn { file: self.file.clone() }))
    }

    pub(super) fn count_ahead(&self) -> Option<usize> {
        self.first.then_some(0)
    }

    #[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
    pub(super) fn let_others_pass(&mut self) -> Result<()> {
        self.file.unlock();
        self.first = false;
        Ok(())
    }

    pub(super) fn announce(&mut self, _head: &Standing, _pid: u32) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.main.write_at(b"0", WAITING_AT);
        self.file.unlock();
    }
}

pub(super) struct Turn {
    file: Arc<LockFile>,
}

impl Turn {
    pub(super) fn file(&self) -> Identity {
        Identity::default()
    }

    pub(super) fn wait(&self) -> bool {
        // If that fails, whoever asked looks again.
        let _ = self.file.lock(Side::Exclusive);
        self.file.unlock();
        true
    }

    pub(super) fn is_kept_by_a_stopped_one(&self) -> bool {
        false
    }
}

impl Directory {
    pub(super) fn somebody_stands(&self, key: FileKey) -> Result<bool> {
        let path = self.side_path(key, "queue");
        match LockFile::open_existing(&path) {
            Ok(file) => Ok(!file.try_lock(Side::Exclusive).map_err(|e| trouble("lock", &path, e))?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(trouble("open", &path, e)),
        }
    }

    pub(super) fn somebody_waits(&self, key: FileKey) -> Result<bool> {
        self.somebody_stands(key)
    }

    pub(super) fn lower_stale_flag(&self, _key: FileKey, main: &LockFile) {
        let _ = main.write_at(b"0", WAITING_AT);
    }

    pub(super) fn line_up(&self, _key: FileKey, _now: Moment) -> Vec<(u32, Waiter)> {
        Vec::new()
    }
}
