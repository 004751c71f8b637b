//! A watch that is cut, that falls silent, that comes too late and that is refused; an API server that is slow or wants to be asked
//! less.

use std::{
    thread,
    time::{Duration, Instant},
};

use windlass_tests::{
    kubernetes::{Front, Next},
    place::{acquire, block_on, waits},
    processes::until,
};

use super::{TTL, cluster, locker, locker_with, nothing_is_left};

/// For a watch that is not taken up again at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A watch that lasted for longer is.
const LASTED: Duration = Duration::from_millis(1_200);
const WATCHES: &str = "watch=true";

/// The watch goes over this, and what the others do does not.
fn front() -> (Front, String, String) {
    let (front, namespace) = (Front::before(cluster()), cluster().namespace());
    let url = cluster().url_through(&front, &namespace);
    (front, namespace, url)
}

fn lists(front: &Front) -> usize {
    front.asked("GET", "/leases") - front.asked("GET", "/leases/") - front.asked("GET", WATCHES)
}

/// What happens while it is cut is told by the next one, which begins where it was: nothing is listed again.
#[test]
fn one_that_is_cut_goes_on_where_it_was() {
    let (front, namespace, url) = front();
    let (ours, other) = (locker(&url), locker(&cluster().url(&namespace)));
    let guard = acquire(&other, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        until("the watch", || front.asked("GET", WATCHES) == 1);
        thread::sleep(LASTED);
        front.cut();
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        let guard = waiting.join().unwrap();
        assert!(released.elapsed() < AT_ONCE, "after {:?}", released.elapsed());
        assert_eq!((front.asked("GET", WATCHES), lists(&front)), (2, 1));
        block_on(guard.release()).unwrap();
    });
    nothing_is_left(cluster(), &namespace);
}

/// 410 Gone: it begins anew with a list, and nobody loses his place by that.
#[test]
fn one_that_comes_too_late_begins_with_a_list() {
    let (front, namespace, url) = front();
    let (ours, other) = (locker(&url), locker(&cluster().url(&namespace)));
    let guard = acquire(&other, "lock");
    thread::scope(|scope| {
        let first = waits(scope, ours.lock("lock"));
        let second = waits(scope, other.lock("lock"));
        until("the watch", || front.asked("GET", WATCHES) == 1);
        thread::sleep(LASTED);
        front.set(Next { late_watches: 1, ..Next::default() });
        front.cut();
        until("a watch that is not late", || front.asked("GET", WATCHES) == 3);
        assert_eq!(lists(&front), 2);
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        let first = first.join().unwrap();
        assert!(released.elapsed() < AT_ONCE, "after {:?}", released.elapsed());
        assert!(!second.is_finished());
        block_on(first.release()).unwrap();
        block_on(second.join().unwrap().release()).unwrap();
    });
    nothing_is_left(cluster(), &namespace);
}

/// It tells nothing of a holder that renews, so whoever waits looks after a TTL, finds the holder alive, and asks for another watch.
#[test]
fn one_that_falls_silent_is_found_out() {
    let (front, namespace, url) = front();
    let (ours, other) = (locker(&url), locker(&cluster().url(&namespace)));
    front.set(Next { silent_watches: 1, ..Next::default() });
    let guard = acquire(&other, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        until("another watch", || front.asked("GET", WATCHES) == 2);
        guard.check().unwrap();
        assert_eq!(lists(&front), 2);
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(released.elapsed() < TTL / 2, "after {:?}", released.elapsed());
    });
    nothing_is_left(cluster(), &namespace);
}

/// A credential that was good until then is read again.
#[test]
fn one_that_is_asked_who_it_is() {
    let (front, namespace, url) = front();
    let (ours, other) = (locker(&url), locker(&cluster().url(&namespace)));
    front.set(Next { denied_watches: 1, ..Next::default() });
    let guard = acquire(&other, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        until("another watch", || front.asked("GET", WATCHES) == 2);
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    nothing_is_left(cluster(), &namespace);
}

/// Whoever waits asks again when its watch breaks, and does not stand in line for that behind others.
#[test]
fn one_that_breaks_costs_no_turn() {
    const MORE: usize = 10;
    let (front, namespace, url) = front();
    let (ours, other) = (locker(&(url + "&qps=1")), locker(&cluster().url(&namespace)));
    let guard = acquire(&other, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        until("the watch", || front.asked("GET", WATCHES) == 1);
        for n in 0..MORE {
            let ours = &ours;
            scope.spawn(move || block_on(acquire(ours, &format!("more {n}")).release()).unwrap());
        }
        thread::sleep(LASTED);
        front.set(Next { late_watches: 2, ..Next::default() });
        front.cut();
        until("a watch that is not late", || front.asked("GET", WATCHES) >= 4);
        block_on(guard.release()).unwrap();
        let released = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        let took = released.elapsed();
        assert!(took < Duration::from_secs(MORE as u64 / 2), "after {took:?}");
    });
    nothing_is_left(cluster(), &namespace);
}

/// One lock whose renewals come too late costs no other one of the same locker.
#[test]
fn a_slow_lock_is_slow_alone() {
    const LONG: Duration = Duration::from_secs(5);
    let (front, _, url) = front();
    let ours = locker_with(&url, LONG);
    let guards = [acquire(&ours, "lock"), acquire(&ours, "slow")];
    front.slow_down("slow", LONG);
    thread::sleep(3 * LONG);
    let [lock, slow] = guards;
    lock.check().unwrap();
    slow.check().unwrap_err();
    block_on(lock.release()).unwrap();
}

/// Whoever is told to come later does so, and not earlier.
#[test]
fn an_api_server_that_is_asked_too_much() {
    let (front, namespace, url) = front();
    let ours = locker(&url);
    front.set(Next { too_many: 1, ..Next::default() });
    let asked = Instant::now();
    let guard = acquire(&ours, "lock");
    assert!(asked.elapsed() >= Duration::from_secs(1), "after {:?}", asked.elapsed());
    assert_eq!(front.asked("POST", ""), 2);
    block_on(guard.release()).unwrap();
    nothing_is_left(cluster(), &namespace);
}

/// A crowd of acquires goes at the pace that the URL says, and no renewal waits behind them.
#[test]
fn acquires_go_at_a_pace_and_renewals_as_they_have_to() {
    const MORE: usize = 4;
    let namespace = cluster().namespace();
    let ours = locker(&(cluster().url(&namespace) + "&qps=1"));
    let begun = Instant::now();
    let guards = [acquire(&ours, "one"), acquire(&ours, "two")];
    thread::scope(|scope| {
        for n in 0..MORE {
            let ours = &ours;
            scope.spawn(move || block_on(acquire(ours, &format!("more {n}")).release()).unwrap());
        }
    });
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(MORE as u64) - Duration::from_millis(50), "after {took:?}");
    assert!(took > 2 * TTL - Duration::from_millis(50));
    for guard in guards {
        guard.check().unwrap();
        block_on(guard.release()).unwrap();
    }
    nothing_is_left(cluster(), &namespace);
}
