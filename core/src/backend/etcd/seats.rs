//! Keys that this backend value has to itself, for claims that nobody else acquires: few for each name, used again and again.
//!
//! **Why.** Whoever reads a line has etcd go over every key that was ever in it, deleted ones too, until its history is
//! compacted. With a key of a new name for each claim an acquire takes longer each time: after some thousand on one name half as
//! long again. Go's `concurrency.Mutex` has one key for each session and name, and so does not.
//!
//! **When a key is used again**: when its claim was put there with an answer and its deletion had one, or when it was never
//! put. After anything else it is given up, and a new one takes its place. Should something come late nevertheless, from
//! a proxy that asks twice, or from one who took the claim over: all that is written to such a key is conditional on a
//! revision of etcd's, which never comes again, a claim's deletion on its create revision. A put that comes late on a key
//! that is free takes it until its lease has ended; who finds another claim on its key takes one that is named after itself.
//!
//! **Who knows only the id** of such a claim, from a ticket, finds it in what is written in the keys of the line.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::name::Name;

/// How many free ones are remembered; with more, it begins anew. No name that was ever locked stays for good.
const MOST_FREE: usize = 1_024;

#[derive(Debug)]
pub(super) struct Seats {
    /// No other backend value has this number.
    whose: u128,
    next: AtomicU64,
    free: Mutex<BTreeSet<(Name, u64)>>,
}

/// One key of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat(u64);

impl Seats {
    pub(super) fn new(whose: u128) -> Self {
        Self { whose, next: AtomicU64::new(0), free: Mutex::default() }
    }

    /// One that nobody has.
    pub(super) fn take(&self, name: &Name) -> Seat {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let first = free.range((name.clone(), 0)..).next().filter(|(of, _)| of == name).cloned();
        match first {
            Some(first) => {
                free.remove(&first);
                Seat(first.1)
            }
            None => Seat(self.next.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// It is free again.
    pub(super) fn give_back(&self, name: &Name, Seat(number): Seat) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() == MOST_FREE {
            free.clear();
        }
        free.insert((name.clone(), number));
    }

    /// How its key ends.
    pub(super) fn suffix(&self, Seat(number): &Seat) -> String {
        format!("{:032x}-{number}", self.whose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_one_claims_and_then_the_next_ones() {
        let seats = Seats::new(7);
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = seats.take(&a);
        let second = seats.take(&a);
        assert_ne!(first, second);
        seats.give_back(&a, first.clone());
        assert_ne!(seats.take(&b), first, "each name has its own");
        assert_eq!(seats.take(&a), first);
        assert_ne!(seats.take(&a), second, "it is not free");
        assert_ne!(Seats::new(8).suffix(&first), seats.suffix(&first));
    }

    #[test]
    fn no_name_is_remembered_for_good() {
        let seats = Seats::new(7);
        for n in 0..3 * MOST_FREE {
            let name = n.to_string().parse().unwrap();
            let seat = seats.take(&name);
            seats.give_back(&name, seat);
        }
        assert!(seats.free.lock().unwrap().len() <= MOST_FREE);
    }
}
