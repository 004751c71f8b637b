//! A record that lives in a store: read from there before each step, and written back after it.

use std::collections::VecDeque;

use super::{Holder, Party, Record, Waiter};
use crate::{name::ClaimId, table::Granted};

impl Record {
    /// The holders with their tokens in the order of their grants, then those who wait in the order of their coming. Who is
    /// dead the store's readers see for themselves, so nothing runs out by a deadline.
    pub(crate) fn written(claims: impl IntoIterator<Item = (Party, Option<u64>)>, upgrading: bool) -> Self {
        let mut record = Self { upgrading, ..Self::default() };
        let mut queue = VecDeque::new();
        for (party, token) in claims {
            match token {
                // News are found by comparing what was read with what is known: nobody is told twice.
                Some(token) => record.holders.push(Holder { party, token, ends: None, told: true }),
                None => queue.push_back(Waiter { party, leaves: None }),
            }
        }
        record.queue = queue;
        record
    }

    pub(crate) fn is_upgrading(&self) -> bool {
        self.upgrading
    }

    /// What this claim holds, if it does.
    pub(crate) fn granted_to(&self, id: ClaimId) -> Option<Granted> {
        self.holder(id).map(|at| self.granted(at))
    }
}
