//! Who holds and who waits.
use super::{dir::Directory, line::Line};
use crate::{ask::{Holder, Waiting}, lockgate::FileKey};

impl Directory {
    pub(super) fn waiting(&self, _key: FileKey, line: &Line, place: usize) -> Waiting {
        let now = self.rt.now();
        Waiting {
            holders: line.held.iter().map(|held| held.holder(now)).collect(),
            place: line.gate.is_some().then_some(place + 1),
        }
    }
}

impl super::line::Held {
    pub(super) fn holder(&self, now: crate::time::Moment) -> Holder {
        Holder {
            owner: (*self.owner).clone(),
            mode: self.grant.mode,
            fencing_token: self.grant.fencing_token,
            held_for: Some(now.since(self.since)),
        }
    }
}
