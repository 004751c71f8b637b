//! Programs that take turns at the same locks all the time, and what they believed.
#![allow(clippy::disallowed_methods, reason = "in real time, on threads that are waited for")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Guard, Locker};

use crate::{
    beliefs::{Belief, no_overlap, overlaps_by_tokens},
    place::{acquire, block_on},
    processes::until,
};

/// At each lock.
const EACH: usize = 3;

/// They run until asked for the sum.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    turns: Vec<Arc<AtomicUsize>>,
    /// A lock each.
    beliefs: Vec<Arc<Mutex<Vec<Belief>>>>,
}

impl Crowd {
    /// At two locks, each with a locker of its own.
    pub fn start(locker: impl Fn() -> Locker) -> Self {
        Self::on(&["a", "b"], locker)
    }

    /// ... at these.
    pub fn on(locks: &[&str], locker: impl Fn() -> Locker) -> Self {
        let beliefs = locks.iter().map(|_| Arc::default()).collect();
        let mut crowd = Self { stop: Arc::default(), threads: Vec::new(), turns: Vec::new(), beliefs };
        for n in 0..locks.len() * EACH {
            let turns = Arc::new(AtomicUsize::new(0));
            crowd.turns.push(turns.clone());
            let (lock, beliefs) = (locks[n % locks.len()].to_owned(), crowd.beliefs[n % locks.len()].clone());
            let (stop, locker) = (crowd.stop.clone(), locker());
            crowd.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let guard = acquire(&locker, &lock);
                    let belief = Belief::hold(&guard, Duration::from_millis(10));
                    turns.fetch_add(usize::from(belief.is_some()), Ordering::SeqCst);
                    beliefs.lock().unwrap().extend(belief);
                    if let Err(error) = release(guard) {
                        let harmless = matches!(error, ErrorKind::Lost(_) | ErrorKind::Unavailable);
                        assert!(harmless, "{error:?}");
                    }
                }
            }));
        }
        crowd.everybody_has_turns();
        crowd
    }

    /// Waits until each has had some more turns; how long that took.
    pub fn everybody_has_turns(&self) -> Duration {
        let start = Instant::now();
        let turns = || self.turns.iter().map(|turns| turns.load(Ordering::SeqCst));
        let before: Vec<usize> = turns().collect();
        until("turns for everybody", || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "one of the crowd has failed");
            turns().zip(&before).all(|(now, before)| now > before + 2)
        });
        start.elapsed()
    }

    /// Looks whether two believed to hold at once until now.
    pub fn no_overlap_so_far(&self) {
        for beliefs in &self.beliefs {
            no_overlap(beliefs.lock().unwrap().clone(), |_, _| false);
        }
    }

    /// At how many locks they are.
    pub fn locks(&self) -> usize {
        self.beliefs.len()
    }

    /// Ends them, and looks whether two believed to hold at once.
    pub fn end(self) {
        for beliefs in self.beliefs() {
            no_overlap(beliefs, |_, _| false);
        }
    }

    /// Ends them where a lock may have been given twice: how often two believed to hold at once. But whoever was later had
    /// the greater token, so that what it guards can tell.
    pub fn end_by_tokens(self) -> usize {
        self.beliefs().into_iter().map(overlaps_by_tokens).sum()
    }

    fn beliefs(self) -> Vec<Vec<Belief>> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.beliefs.iter().map(|beliefs| std::mem::take(&mut *beliefs.lock().unwrap())).collect()
    }
}

fn release(guard: Guard) -> Result<(), ErrorKind> {
    block_on(guard.release()).map_err(|error| error.kind())
}
