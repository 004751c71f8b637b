//! What the clients of every store go through in the tests of its faults: networks that are bad, holders that die or stop, and
//! errors. Each store has its own list of tests beside these.

#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

use std::{
    error::Error as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use windlass::{Error, ErrorKind, Guard, Locker, LostReason};

use crate::{
    place::{PATIENCE, acquire, block_on, waits},
    processes::{Program, until},
    proxy::{Faults, Proxy},
};

/// As short as all stores can have it.
pub const TTL: Duration = Duration::from_secs(2);
/// What a take-over takes beyond the TTL: an election, the time to take up a grant, and a busy machine.
pub const SLACK: Duration = Duration::from_secs(3);
/// How long callers of what cannot be wait at the most.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Locks of a test's own behind a bad network.
#[allow(missing_debug_implementations, reason = "nobody prints it")]
pub struct Net {
    pub proxy: Proxy,
    /// Over the bad network.
    pub url: String,
    pub locker: Locker,
    /// Not over it.
    pub other: Locker,
    /// The keys or objects that the store has for them.
    pub left: Box<dyn Fn() -> Vec<String>>,
}

impl Net {
    pub fn nothing_is_left(&self) {
        nothing_is_left(&self.left);
    }
}

/// Nothing is left of whatever was under way, after two TTLs at the latest.
pub fn nothing_is_left(left: impl Fn() -> Vec<String>) {
    let start = Instant::now();
    until("nothing to be left", || left().is_empty());
    let took = start.elapsed();
    assert!(took < 2 * TTL + SLACK, "that took {took:?}");
}

/// Wherever the connection breaks, asking again finds the one grant, and nothing is left behind. For requests and for answers:
/// how many bytes lie between two breaks, and after how many there is none. In so many parts side by side, because most of the
/// time is the pause before asking again.
pub fn broken_at_every_few_bytes<N: Fn() -> Net + Copy + Send>(
    net: N,
    parts: usize,
    requests: [usize; 2],
    answers: [usize; 2],
) {
    let breaks = |part, [step, end]: [usize; 2]| (1 + step * part..end).step_by(step * parts);
    let request = |after| Faults { break_after_requests: Some(after), ..Faults::NONE };
    let answer = |after| Faults { break_after_answers: Some(after), ..Faults::NONE };
    thread::scope(|scope| {
        for part in 0..parts {
            scope.spawn(move || broken(&net(), breaks(part, requests).map(request)));
            scope.spawn(move || broken(&net(), breaks(part, answers).map(answer)));
        }
    });
}

fn broken(net: &Net, breaks: impl Iterator<Item = Faults>) {
    let mut last_token = 0;
    for faults in breaks {
        net.proxy.set(faults);
        let guard = acquire(&net.locker, "lock");
        assert!(guard.fencing_token() > last_token, "{faults:?}");
        last_token = guard.fencing_token();
        let status = &block_on(net.other.list("lock")).unwrap()[0];
        assert_eq!((status.holders.len(), status.waiters.len()), (1, 0), "{faults:?}");
        assert_eq!(status.holders[0].fencing_token, last_token, "one grant, and this one: {faults:?}");
        net.proxy.set(faults);
        block_on(guard.release()).unwrap();
        assert!(block_on(net.other.list("lock")).unwrap().is_empty(), "{faults:?}");
    }
    net.nothing_is_left();
}

/// A waiter whose connections break again and again keeps its place.
pub fn a_waiter_keeps_its_place_over_broken_connections(net: &Net) {
    let guard = acquire(&net.other, "lock");
    thread::scope(|scope| {
        let first = waits(scope, net.locker.lock("lock"));
        let second = waits(scope, net.other.lock("lock"));
        for _ in 0..20 {
            net.proxy.reset();
            thread::sleep(Duration::from_millis(20));
        }
        block_on(guard.release()).unwrap();
        let first = first.join().unwrap();
        assert!(!second.is_finished());
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    net.nothing_is_left();
}

/// A holder that is cut off knows before anybody else is let in, whichever direction is dead; and that one is let in so long after
/// the cut at the most.
pub fn cut_off_holders_know_first<N: Fn() -> Net + Copy + Send>(net: N, at_most: Duration) {
    thread::scope(|scope| {
        for faults in [Faults::REQUESTS, Faults::ANSWERS, Faults::BOTH] {
            scope.spawn(move || cut_off(&net(), faults, at_most));
        }
    });
}

fn cut_off(net: &Net, faults: Faults, at_most: Duration) {
    let guard = Arc::new(acquire(&net.locker, "lock"));
    net.proxy.set(faults);
    let cut = Instant::now();
    let held = guard.clone();
    let lost = thread::spawn(move || (block_on(held.lost()), Instant::now()));
    let next = acquire(&net.other, "lock");
    let granted = Instant::now();
    assert!(!guard.is_held(), "{faults:?}");
    let (reason, told) = lost.join().unwrap();
    assert_eq!(reason, LostReason::Unreachable, "{faults:?}");
    assert!(told <= granted + SLACK, "told late: {faults:?}");
    let took = granted - cut;
    assert!(took < at_most, "taken over after {took:?}: {faults:?}");
    assert!(next.fencing_token() > guard.fencing_token());
    // Back on the network it can ask again.
    net.proxy.set(Faults::NONE);
    net.proxy.reset();
    next.check().unwrap();
    block_on(next.release()).unwrap();
    block_on(acquire(&net.locker, "lock").release()).unwrap();
    net.nothing_is_left();
}

/// A network that is dead for less than the TTL costs nobody a lock.
pub fn short_outages_are_survived(net: &Net) {
    // A machine that is busy makes them longer.
    let lock = net.locker.lock("lock").ttl(3 * TTL).timeout(PATIENCE);
    let guard = block_on(lock).unwrap();
    for _ in 0..4 {
        net.proxy.set(Faults::BOTH);
        thread::sleep(TTL / 2);
        net.proxy.set(Faults::NONE);
        net.proxy.reset();
        thread::sleep(TTL);
        guard.check().unwrap();
    }
    block_on(guard.release()).unwrap();
    net.nothing_is_left();
}

/// A worker that holds the lock is killed while another waits.
pub fn a_killed_holder_frees_the_lock(mut holder: Program, ours: &Locker) {
    holder.say("acquire 1 lock exclusive");
    let token: u64 = holder.rest_of("acquired 1 ").parse().unwrap();
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        holder.kill();
        let killed = Instant::now();
        let guard = waiting.join().unwrap();
        let took = killed.elapsed();
        eprintln!("taken over {took:?} after the kill, with a TTL of {TTL:?}");
        assert!(took < TTL + SLACK, "after {took:?}");
        assert!(guard.fencing_token() > token);
        block_on(guard.release()).unwrap();
    });
}

/// A worker that holds the lock is stopped until another has it: when it goes on it believes nothing.
pub fn a_stopped_holder_knows_that_it_is_over(mut holder: Program, ours: &Locker) {
    holder.say("acquire 1 lock exclusive");
    holder.rest_of("acquired 1 ");
    holder.signal(Signal::STOP);
    let guard = acquire(ours, "lock");
    holder.signal(Signal::CONT);
    holder.ask("check 1", "lost 1 expired");
    // Nor does it take the lock from who has it now.
    holder.ask("release 1", "lost 1 expired");
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
}

/// The error of an acquire, which comes within the timeout, and all that is said with it, which is no secret.
pub fn failure(url: &str, secrets: &[&str]) -> (Error, String) {
    let start = Instant::now();
    let error = match block_on(windlass::connect(url)) {
        Ok(locker) => block_on(locker.lock("lock").timeout(TIMEOUT)).unwrap_err(),
        Err(error) => error,
    };
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}: {error}", start.elapsed());
    let mut said = format!("{error} {error:?} ");
    let mut source = error.source();
    while let Some(error) = source {
        said += &format!("{error} {error:?} ");
        source = error.source();
    }
    for secret in secrets {
        assert!(!said.contains(secret), "{said}");
    }
    (error, said)
}

/// It is of this kind and says this.
pub fn is(error: &Error, kind: ErrorKind, says: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

/// Who has waited for a moment only is let in as one that lives, and asks for nothing more than its place: of a hand-over, whoever
/// releases asks the second time. It holds for as long as others do; its guard.
pub fn who_waits_for_a_moment_asks_once(ours: &Locker, other: &Locker, asked: impl Fn() -> u64) -> Guard {
    let hand_over = || {
        let guard = acquire(ours, "lock");
        let before = asked();
        thread::scope(|scope| {
            let waiting = waits(scope, other.lock("lock"));
            // Until the one that holds has heard of it.
            thread::sleep(Duration::from_millis(100));
            block_on(guard.release()).unwrap();
            let next = waiting.join().unwrap();
            (asked() - before, next)
        })
    };
    let mut more = Vec::new();
    // The first ones open watches or load scripts; on a busy machine others take more than a moment.
    let guard = loop {
        let (requests, guard) = hand_over();
        if requests == 2 {
            break guard;
        }
        more.push(requests);
        assert!(more.len() < 30, "more than to stand in line and to hand on, each time: {more:?}");
        block_on(guard.release()).unwrap();
    };
    thread::sleep(TTL * 2);
    guard.check().unwrap();
    assert!(block_on(ours.lock("lock").try_acquire()).unwrap().is_none(), "nobody else has it");
    guard
}
