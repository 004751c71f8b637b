//! Programs that take turns at two locks all the time, and what they believed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Locker};
use windlass_tests::{
    beliefs::{Belief, no_overlap},
    processes::until,
};

use super::acquire;

const LOCKS: [&str; 2] = ["a", "b"];
const EACH: usize = 3;

/// They run until asked for the sum.
pub(super) struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    turns: Vec<Arc<AtomicUsize>>,
    beliefs: Arc<[Mutex<Vec<Belief>>; LOCKS.len()]>,
}

impl Crowd {
    /// Each with a locker of its own.
    pub(super) fn start(locker: impl Fn() -> Locker) -> Self {
        let mut crowd =
            Self { stop: Arc::default(), threads: Vec::new(), turns: Vec::new(), beliefs: Arc::default() };
        for n in 0..LOCKS.len() * EACH {
            let turns = Arc::new(AtomicUsize::new(0));
            crowd.turns.push(turns.clone());
            let (stop, beliefs, locker, which) =
                (crowd.stop.clone(), crowd.beliefs.clone(), locker(), n % LOCKS.len());
            crowd.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let guard = acquire(&locker, LOCKS[which]);
                    let belief = Belief::hold(&guard, Duration::from_millis(10));
                    turns.fetch_add(usize::from(belief.is_some()), Ordering::SeqCst);
                    beliefs[which].lock().unwrap().extend(belief);
                    if let Err(error) = block_on_release(guard) {
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
    pub(super) fn everybody_has_turns(&self) -> Duration {
        let start = Instant::now();
        let turns = || self.turns.iter().map(|turns| turns.load(Ordering::SeqCst));
        let before: Vec<usize> = turns().collect();
        until("turns for everybody", || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "one of the crowd has failed");
            turns().zip(&before).all(|(now, before)| now > before + 2)
        });
        start.elapsed()
    }

    /// Ends them, and looks whether two believed to hold at once.
    pub(super) fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        for beliefs in self.beliefs.iter() {
            no_overlap(std::mem::take(&mut beliefs.lock().unwrap()), |_, _| false);
        }
    }
}

fn block_on_release(guard: windlass::Guard) -> Result<(), ErrorKind> {
    windlass_tests::place::block_on(guard.release()).map_err(|error| error.kind())
}
