//! Clients of two servers, one of which is killed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use windlass::{Guard, Locker};
use windlass_tests::place::{PATIENCE, block_on};

use crate::{Servers, TTL, acquire, locker, locker_of, until, waiters};

over_each_store! { nobody_loses_a_lock_or_its_place }

/// Who is inside, and what went wrong.
#[derive(Default)]
struct Oracle {
    inside: AtomicU32,
    last_token: AtomicU64,
    turns: AtomicU64,
}

impl Oracle {
    fn turn(&self, guard: &Guard) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
        let before = self.last_token.swap(guard.fencing_token(), Ordering::SeqCst);
        assert!(before < guard.fencing_token(), "token {} after {before}", guard.fencing_token());
        thread::sleep(Duration::from_millis(1));
        guard.check().expect("a holder that lives keeps its lock");
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.turns.fetch_add(1, Ordering::SeqCst);
    }
}

/// Under load at both, with holders that hold all the time and waiters that stand in line all the time.
fn nobody_loses_a_lock_or_its_place(store: &'static str) {
    let mut servers = Servers::over(store);
    let (both, at_one) = (servers.url_of_both(), servers.url_of_one());
    let watcher = locker(&servers.url_of_other());
    // Some come back to the one that was killed, when it is there again.
    let keeping: Vec<_> = [&both, &both, &both, &at_one].map(|url| locker(url)).into();
    // It takes a while to start a server.
    let hold =
        |locker: &Locker, name: &str| block_on(locker.lock(name).ttl(5 * TTL).timeout(PATIENCE)).unwrap();
    let held: Vec<_> =
        (0_usize..).zip(&keeping).map(|(n, locker)| hold(locker, &format!("held {n}"))).collect();
    let first = hold(&keeping[0], "line");
    let (order, over, oracle) = (Mutex::new(Vec::new()), AtomicBool::new(false), Arc::<Oracle>::default());
    let expected: Vec<_> = (1..=6).map(|n| format!("waiter {n}")).collect();
    thread::scope(|scope| {
        for url in [&both, &both, &at_one, &servers.url_of_other()] {
            let (url, oracle, over) = (url.clone(), oracle.clone(), &over);
            scope.spawn(move || {
                let locker = locker(&url);
                let _end = EndWith(over);
                while !over.load(Ordering::SeqCst) {
                    let guard = acquire(&locker, "contended");
                    oracle.turn(&guard);
                    let _ = block_on(guard.release());
                }
            });
        }
        for owner in &expected {
            let (order, both) = (&order, &both);
            scope.spawn(move || {
                let guard = acquire(&locker_of(owner, both), "line");
                order.lock().unwrap().push(owner.clone());
                block_on(guard.release()).unwrap();
            });
            until("it stands in line", || waiters(&watcher, "line").last() == Some(owner));
        }
        let _end = EndWith(&over);
        let turns = || oracle.turns.load(Ordering::SeqCst);
        for kill in 0..3 {
            let before = turns();
            until("work goes on", || over.load(Ordering::SeqCst) || turns() > before + 20);
            assert!(!over.load(Ordering::SeqCst), "a client has failed before kill {kill}");
            servers.one.kill();
            thread::sleep(TTL / 4);
            servers.one.start_again();
            // All who waited at the other one would be gone by now if nobody spoke for them.
            thread::sleep(TTL * 2);
            assert_eq!(waiters(&watcher, "line"), expected, "after kill {kill}");
        }
        for guard in held.iter().chain([&first]) {
            guard.check().expect("held all the time");
        }
        block_on(first.release()).unwrap();
        until("all had their turn", || order.lock().unwrap().len() == expected.len());
        assert_eq!(*order.lock().unwrap(), expected);
    });
}

/// Ends the others, also when it ends by a panic.
pub(crate) struct EndWith<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
