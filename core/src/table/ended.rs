//! The ids of claims that are over. A request that comes late asks for such a claim again; without this memory it
//! would make a claim that nobody knows of, which blocks the lock for its TTL (rule R12).

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{error::LostReason, name::ClaimId, time::Millis};

/// A map with less room than this keeps it.
const ROOM_TO_KEEP: usize = 1024;

/// How a claim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ended {
    /// It tried, and the lock was taken.
    Busy,
    /// Released, or called off.
    Over,
    Lost(LostReason),
}

/// Each id is kept for the same time, so they are forgotten in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct EndedClaims {
    remember: Duration,
    ended: HashMap<ClaimId, Ended>,
    order: VecDeque<(Millis, ClaimId)>,
}

impl EndedClaims {
    pub(super) fn new(remember: Duration) -> Self {
        Self { remember, ended: HashMap::new(), order: VecDeque::new() }
    }

    pub(super) fn recall(&self, id: ClaimId) -> Option<Ended> {
        self.ended.get(&id).copied()
    }

    pub(super) fn remember(&mut self, now: Millis, id: ClaimId, ended: Ended) {
        if !self.remember.is_zero() && self.ended.insert(id, ended).is_none() {
            self.order.push_back((now.plus(self.remember), id));
        }
    }

    pub(super) fn forget(&mut self, now: Millis) {
        while let Some((_, id)) = self.order.front().filter(|(at, _)| *at <= now) {
            self.ended.remove(id);
            self.order.pop_front();
        }
        let room = self.ended.capacity();
        if room > ROOM_TO_KEEP && self.ended.len() < room / 8 {
            self.ended.shrink_to(room / 4);
            self.order.shrink_to(room / 4);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.order.front().map(|(at, _)| *at)
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.ended.capacity().max(self.order.capacity())
    }

    /// What is remembered, apart from when it will be forgotten.
    #[cfg(test)]
    pub(super) fn image(&self) -> Vec<(u128, Ended)> {
        let mut image: Vec<_> = self.ended.iter().map(|(id, ended)| (id.reveal(), *ended)).collect();
        image.sort_unstable_by_key(|(id, _)| *id);
        image
    }
}
