//! Clients of two servers, one of which is stopped, with its connections open, and goes on.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Guard, LostReason};
use windlass_tests::{
    adversity::SLACK,
    beliefs::{Belief, no_overlap},
    place::block_on,
};

use crate::{Servers, TTL, acquire, killed::EndWith, locker, until};

over_each_store! { who_is_cut_off_knows_first, nobody_loses_a_lock_without_a_word }

/// Whoever knows no other server is told before anybody else is let in.
fn who_is_cut_off_knows_first(store: &'static str) {
    let servers = Servers::over(store);
    let (one, other) = (locker(&servers.url_of_one()), locker(&servers.url_of_other()));
    let guard = acquire(&one, "lock");
    servers.one.suspend();
    thread::scope(|scope| {
        let lost = scope.spawn(|| (block_on(guard.lost()), Instant::now()));
        let next = acquire(&other, "lock");
        let granted = Instant::now();
        assert!(!guard.is_held());
        let (reason, told) = lost.join().unwrap();
        assert_eq!(reason, LostReason::Unreachable);
        assert!(told <= granted + SLACK, "told late");
        assert!(next.fencing_token() > guard.fencing_token());
        // The server that goes on has nothing more to say about it.
        servers.one.go_on();
        thread::sleep(TTL * 2);
        next.check().unwrap();
        block_on(next.release()).unwrap();
    });
    block_on(acquire(&one, "lock").release()).unwrap();
}

/// The locks of those who can go to the other server, and of those who cannot: held on, or lost with a word.
fn nobody_loses_a_lock_without_a_word(store: &'static str) {
    let servers = Servers::over(store);
    let (both, one, other) = (servers.url_of_both(), servers.url_of_one(), servers.url_of_other());
    let elsewhere = locker(&other);
    let safe = acquire(&elsewhere, "at the other server");
    let lockers: Vec<_> = [&both, &both, &both, &one].into_iter().map(|url| locker(url)).collect();
    let name = |n: usize| format!("held {n}");
    let held: Vec<Guard> = (0..).zip(&lockers).map(|(n, locker)| acquire(locker, &name(n))).collect();
    let (over, beliefs, turns) = (AtomicBool::new(false), Mutex::new(Vec::new()), AtomicUsize::new(0));
    thread::scope(|scope| {
        // Somebody wants each of them, and must not have it as long as it is believed to be held.
        for (n, guard) in held.iter().enumerate() {
            let elsewhere = &elsewhere;
            scope.spawn(move || {
                let next = acquire(elsewhere, &name(n));
                assert!(!guard.is_held(), "{} is held twice", name(n));
                block_on(next.release()).unwrap();
            });
        }
        for url in [&both, &one, &other] {
            let (over, beliefs, turns, url) = (&over, &beliefs, &turns, url.clone());
            scope.spawn(move || {
                let ours = locker(&url);
                let _end = EndWith(over);
                while !over.load(Ordering::SeqCst) {
                    let guard = acquire(&ours, "contended");
                    beliefs.lock().unwrap().extend(Belief::hold(&guard, Duration::from_millis(5)));
                    turns.fetch_add(1, Ordering::SeqCst);
                    match block_on(guard.release()).map_err(|error| error.kind()) {
                        Ok(()) | Err(ErrorKind::Lost(_) | ErrorKind::Unavailable) => {}
                        Err(kind) => panic!("{kind:?}"),
                    }
                }
            });
        }
        let _end = EndWith(&over);
        for _ in 0..2 {
            let before = turns.load(Ordering::SeqCst);
            until("turns before", || turns.load(Ordering::SeqCst) > before + 20);
            servers.one.suspend();
            // Whatever the stopped server has granted is over by then.
            thread::sleep(TTL * 2);
            let stopped = turns.load(Ordering::SeqCst);
            until("turns at the other server", || turns.load(Ordering::SeqCst) > stopped + 20);
            servers.one.go_on();
        }
        over.store(true, Ordering::SeqCst);
        let kept = held.iter().filter(|guard| guard.is_held()).count();
        eprintln!("{kept} of {} locks were kept", held.len());
        for guard in &held {
            if let Err(error) = block_on(guard.release_shared()) {
                assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
            }
        }
        safe.check().expect("its server was never away");
    });
    no_overlap(beliefs.into_inner().unwrap(), |_, _| false);
}
