//! Stealing and freeing by force.
use std::sync::Arc;

use super::{
    dir::Directory,
    line::{Job, Line, Standing},
    lockfile::LockFile,
};
use crate::{error::Result, lockgate::FileKey};

pub(super) struct Theft;

impl Directory {
    pub(super) fn steal(self: &Arc<Self>, _key: FileKey, line: &mut Line, standing: Standing) -> Result<usize> {
        line.queue.push_front(standing);
        Ok(0)
    }
    pub(super) fn is_being_stolen(&self, _key: FileKey) -> Result<bool> {
        Ok(false)
    }
    pub(super) fn work_at_theft(self: &Arc<Self>, _key: FileKey) -> Option<Job> {
        None
    }
    pub(super) fn announce(&self, _key: FileKey, _line: &Line, _gate: &LockFile) {}
}
