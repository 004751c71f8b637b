//! Runs the program's own code, such as callbacks, on threads of its own, as few as will do: each takes piece after piece from
//! one queue and ends when that is empty.
//!
//! Where the system has no thread to give, the code waits in the queue: for the threads that there are, or, if there is none,
//! until one can be had. Nothing panics over it, and nothing is forgotten.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::Builder,
};

use super::start_thread;

/// A piece of the program's code.
pub(super) type Code = Box<dyn FnOnce() + Send>;

/// The most threads at a time.
const MOST: usize = 32;

/// What is to be run.
#[derive(Default)]
pub(super) struct Calls(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Code>,
    threads: usize,
}

impl Calls {
    pub(super) fn push(&self, code: Code) {
        self.waiting().queue.push_back(code);
    }

    /// Starts a thread for what waits, unless there are enough.
    ///
    /// # Errors
    /// The operating system's, when there is no thread at all: to be tried again.
    pub(super) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let mut waiting = self.waiting();
        if waiting.queue.is_empty() || waiting.threads >= MOST {
            return Ok(());
        }
        let calls = self.clone();
        // With a stack of the usual size: nobody knows what the program's code does.
        match start_thread(Builder::new().name("windlass-call".to_owned()), move || calls.work()) {
            Ok(_) => waiting.threads += 1,
            Err(error) if waiting.threads == 0 => return Err(error),
            // One of those that run comes to it.
            Err(_) => {}
        }
        Ok(())
    }

    fn work(&self) {
        while let Some(code) = self.next() {
            // What it panics with the panic hook has said; the next piece is somebody else's.
            let _ = catch_unwind(AssertUnwindSafe(code));
        }
    }

    /// `None`: there is nothing more, and the thread that asks is not counted any longer.
    fn next(&self) -> Option<Code> {
        let mut waiting = self.waiting();
        let next = waiting.queue.pop_front();
        waiting.threads -= usize::from(next.is_none());
        next
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code of others runs under this mutex.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn every_piece_is_run_whatever_the_others_do() {
        let (calls, (tell, told)) = (Arc::new(Calls::default()), channel());
        for n in 0..100 {
            let tell = tell.clone();
            calls.push(Box::new(move || {
                tell.send(n).unwrap();
                assert!(n % 10 != 0, "as callbacks do now and then");
            }));
            calls.start().unwrap();
        }
        let mut seen: Vec<i32> = told.iter().take(100).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn there_are_no_more_threads_than_that() {
        let (calls, (tell, told), (go, gate)) = (Arc::new(Calls::default()), channel(), channel::<()>());
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..MOST + 5 {
            let (tell, gate) = (tell.clone(), gate.clone());
            calls.push(Box::new(move || {
                tell.send(()).unwrap();
                let _ = gate.lock().unwrap().recv();
            }));
            calls.start().unwrap();
        }
        assert_eq!(told.iter().take(MOST).count(), MOST);
        assert_eq!(calls.waiting().threads, MOST);
        assert_eq!(calls.waiting().queue.len(), 5);
        drop(go);
        assert_eq!(told.iter().take(5).count(), 5);
    }
}
