//! No permits outside Linux: nothing there counts locks across processes and forgets those of the dead.

use std::{convert::Infallible, num::NonZeroU32, sync::Arc};

use super::{dir::Directory, line::Job};
use crate::{error::Result, lockgate::FileKey};

pub(super) const MOST: u32 = 0;

pub(super) struct Slots(Infallible);

pub(super) struct Slot(Infallible);

impl Slots {
    #[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
    pub(super) fn enter(_directory: &Directory, _key: FileKey) -> Result<Option<Self>> {
        Ok(None)
    }

    pub(super) fn take(self, _limit: NonZeroU32) -> Result<Option<Self>> {
        match self.0 {}
    }

    pub(super) fn seem_free(_directory: &Directory, _key: FileKey, _limit: NonZeroU32) -> bool {
        false
    }

    pub(super) fn leave(self) -> Slot {
        match self.0 {}
    }
}

impl Directory {
    pub(super) fn work_at_slots(self: &Arc<Self>, _key: FileKey) -> Option<Job> {
        None
    }
}
