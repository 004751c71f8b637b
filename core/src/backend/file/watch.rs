//! Hearing what happens to the files.
use std::sync::Arc;

use super::dir::Directory;

#[derive(Default)]
pub(super) struct Watch;

impl Directory {
    pub(super) fn watch_held(self: &Arc<Self>) {}
}
