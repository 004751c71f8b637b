use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU32, AtomicUsize},
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::{ask::Entry, error::LostReason, name::ClaimId, rt::Still};

fn memory() -> Memory {
    Memory::new(Arc::new(Still::default()))
}

fn beside(other: &Memory) -> Memory {
    Memory::open(Arc::clone(&other.space), 0, other.url())
}

fn claim(id: u128) -> Claim {
    Claim { name: "deploy".parse().unwrap(), id: ClaimId::from_u128(id) }
}

fn ask(id: u128, mode: Mode, entry: Entry) -> Ask {
    let Claim { name, id: claim_id } = claim(id);
    let ttl = Duration::from_secs(10);
    Ask { name, claim_id, mode, entry, ttl, owner: Arc::default(), keep: Duration::ZERO, only_here: false }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    future.poll_unpin(&mut Context::from_waker(Waker::noop()))
}

/// What is ready without waiting.
fn now<F: Future>(future: F) -> F::Output {
    pin!(future).now_or_never().expect("nothing to wait for")
}

fn take_now(memory: &Memory, id: u128, mode: Mode, entry: Entry) -> Option<Grant> {
    now(memory.acquire(&ask(id, mode, entry), &|_| {})).unwrap()
}

#[test]
fn a_release_hands_the_lock_to_the_next_before_it_returns() {
    let memory = memory();
    let first = take_now(&memory, 1, Mode::Exclusive, Entry::Queue).unwrap();
    assert_eq!((first.fencing_token, first.lease), (1000, None));
    let next = ask(2, Mode::Exclusive, Entry::Queue);
    let place = Mutex::new(None);
    let on_waiting = |waiting: Waiting| *place.lock().unwrap() = waiting.place;
    let mut waiting = memory.acquire(&next, &on_waiting);
    assert!(poll(&mut waiting).is_pending());
    assert_eq!(*place.lock().unwrap(), Some(1));
    assert_eq!(take_now(&memory, 3, Mode::Exclusive, Entry::Try), None);
    now(memory.release(&[claim(1)])).unwrap();
    assert_eq!(now(waiting).unwrap().unwrap().fencing_token, 1001);
}

#[test]
fn a_dropped_acquire_leaves_nothing_once_it_is_released() {
    let memory = memory();
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    let late = ask(2, Mode::Exclusive, Entry::Queue);
    let mut waiting = memory.acquire(&late, &|_| {});
    assert!(poll(&mut waiting).is_pending());
    drop(waiting);
    // Asked again before it is given up, it has its place still.
    let mut again = memory.acquire(&late, &|_| {});
    assert!(poll(&mut again).is_pending());
    drop(again);
    now(memory.release(&[claim(1)])).unwrap();
    assert_eq!(now(memory.inspect("dep")).unwrap()[0].holders.len(), 1, "granted to the one that is gone");
    now(memory.release(&[claim(2), claim(2)])).unwrap();
    assert_eq!(now(memory.inspect("")).unwrap(), []);
    assert!(memory.space.lock().sleepers.is_empty());
}

#[test]
fn a_claim_that_is_released_while_it_waits_is_told() {
    let memory = memory();
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    let next = ask(2, Mode::Exclusive, Entry::Queue);
    let mut waiting = memory.acquire(&next, &|_| {});
    assert!(poll(&mut waiting).is_pending());
    now(memory.release(&[claim(2)])).unwrap();
    assert_eq!(now(waiting).unwrap_err().kind(), ErrorKind::NotHeld);
}

#[test]
fn each_hears_of_its_own_claims() {
    let one = memory();
    let two = beside(&one);
    take_now(&one, 1, Mode::Exclusive, Entry::Queue);
    let mut hearing = one.hear();
    assert!(poll(&mut hearing).is_pending());
    let next = ask(2, Mode::Exclusive, Entry::Queue);
    let mut waiting = two.acquire(&next, &|_| {});
    assert!(poll(&mut waiting).is_pending());
    let news = now(hearing).unwrap();
    assert!(matches!(news[..], [News { what: Happening::Contended, .. }]));
    take_now(&two, 3, Mode::Exclusive, Entry::Steal);
    let news = now(one.hear()).unwrap();
    assert!(matches!(news[..], [News { what: Happening::Lost(LostReason::Stolen), .. }]));
    // The thief knows from the start that somebody waits.
    let news = now(two.hear()).unwrap();
    assert!(matches!(&news[..], [News { claim: c, what: Happening::Contended }] if *c == claim(3)));
    assert_eq!(now(two.force_release(&claim(3).name, None)).unwrap().len(), 1);
    let news = now(two.hear()).unwrap();
    assert!(matches!(news[..], [News { what: Happening::Lost(LostReason::ForceReleased), .. }]));
    assert!(one.hear().now_or_never().is_none());
    assert!(now(waiting).unwrap().is_some());
}

#[test]
fn news_of_a_released_claim_is_not_kept() {
    let memory = memory();
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    take_now(&memory, 2, Mode::Exclusive, Entry::Steal);
    assert!(matches!(
        now(memory.renew(&[claim(1), claim(2)])).unwrap()[..],
        [Renewal::NotHeld, Renewal::Renewed(Grant { fencing_token: 1001, lease: None, .. })]
    ));
    now(memory.release(&[claim(1)])).unwrap();
    assert!(memory.hear().now_or_never().is_none());
}

#[test]
fn who_missed_the_news_is_told_why_a_claim_was_lost() {
    let rules = Rules { first_token: 1, expires: true, remember: Duration::from_secs(60) };
    let store = MemoryStore::new(Arc::new(Still::default()), rules);
    let (one, two) = (store.client("memory:"), store.client("memory:"));
    assert!(now(one.acquire(&ask(1, Mode::Exclusive, Entry::Queue), &|_| {})).unwrap().is_some());
    assert!(now(two.acquire(&ask(2, Mode::Exclusive, Entry::Steal), &|_| {})).unwrap().is_some());
    assert_eq!(now(one.hear()).unwrap().len(), 1, "told, and the answer does not arrive");
    now(two.release(&[claim(2)])).unwrap();
    let why = |view: &dyn Backend| now(view.renew(&[claim(1)])).unwrap();
    assert!(matches!(why(&*one)[..], [Renewal::Lost(LostReason::Stolen)]));
    now(one.release(&[claim(1)])).unwrap();
    assert!(matches!(why(&*one)[..], [Renewal::NotHeld]));
}

#[test]
fn an_upgrade_waits_and_can_be_called_off() {
    let memory = memory();
    take_now(&memory, 1, Mode::Upgradable, Entry::Queue);
    take_now(&memory, 2, Mode::Shared, Entry::Queue);
    let first = claim(1);
    let mut upgrade = memory.change(&first, Mode::Exclusive);
    assert!(poll(&mut upgrade).is_pending());
    assert_eq!(now(memory.change(&first, Mode::Upgradable)).unwrap().mode, Mode::Upgradable);
    assert_eq!(now(upgrade).unwrap_err().kind(), ErrorKind::NotHeld);

    let mut upgrade = memory.change(&first, Mode::Exclusive);
    assert!(poll(&mut upgrade).is_pending());
    now(memory.release(&[claim(2)])).unwrap();
    let upgraded = now(upgrade).unwrap();
    assert_eq!((upgraded.mode, upgraded.fencing_token), (Mode::Exclusive, 1002));

    assert_eq!(now(memory.change(&first, Mode::Shared)).unwrap().fencing_token, 1002);
    assert_eq!(now(memory.change(&first, Mode::Exclusive)).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(now(memory.change(&claim(9), Mode::Shared)).unwrap_err().kind(), ErrorKind::NotHeld);
}

#[test]
fn an_upgrade_that_loses_its_lock_is_told() {
    let memory = memory();
    take_now(&memory, 1, Mode::Upgradable, Entry::Queue);
    take_now(&memory, 2, Mode::Shared, Entry::Queue);
    let first = claim(1);
    let mut upgrade = memory.change(&first, Mode::Exclusive);
    assert!(poll(&mut upgrade).is_pending());
    take_now(&memory, 3, Mode::Exclusive, Entry::Steal);
    assert_eq!(now(upgrade).unwrap_err().kind(), ErrorKind::NotHeld);
    assert!(memory.space.lock().sleepers.is_empty());
}

#[test]
fn several_are_taken_all_or_none() {
    let memory = memory();
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    let other = Ask { name: "a".parse().unwrap(), ..ask(2, Mode::Exclusive, Entry::Try) };
    let taken = now(memory.acquire_all(&[other, ask(3, Mode::Exclusive, Entry::Try)], &|_| {})).unwrap();
    assert_eq!(taken, None);
    assert_eq!(now(memory.inspect("")).unwrap().len(), 1);
}

#[test]
fn many_changes_between_two_looks_make_one_hint() {
    let memory = memory();
    let mut ours = now(memory.changes("dep")).unwrap();
    let mut others = now(memory.changes("other")).unwrap();
    assert!(ours.next().now_or_never().is_none());
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    now(memory.release(&[claim(1)])).unwrap();
    assert!(now(ours.next()).unwrap().is_ok());
    assert!(ours.next().now_or_never().is_none());
    assert!(others.next().now_or_never().is_none());
    drop((ours, others));
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    assert!(memory.space.lock().watches.is_empty());
}

/// A waker that wants the mutex itself, as one that runs a task at once would.
struct Reentrant(Memory, AtomicUsize);

impl Wake for Reentrant {
    fn wake(self: Arc<Self>) {
        assert!(self.0.space.state.try_lock().is_ok(), "woken under the mutex");
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn wakers_run_without_the_mutex() {
    let memory = memory();
    take_now(&memory, 1, Mode::Exclusive, Entry::Queue);
    let reentrant = Arc::new(Reentrant(beside(&memory), AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&reentrant));
    let mut context = Context::from_waker(&waker);
    let (second, third) = (ask(2, Mode::Exclusive, Entry::Queue), ask(3, Mode::Exclusive, Entry::Queue));
    let (mut granted, mut released) = (memory.acquire(&second, &|_| {}), memory.acquire(&third, &|_| {}));
    assert!(granted.poll_unpin(&mut context).is_pending());
    assert!(released.poll_unpin(&mut context).is_pending());
    now(memory.hear()).unwrap();
    let (mut hearing, mut changes) = (memory.hear(), now(memory.changes("")).unwrap());
    assert!(hearing.poll_unpin(&mut context).is_pending());
    assert!(changes.poll_next_unpin(&mut context).is_pending());
    now(memory.release(&[claim(1), claim(3)])).unwrap();
    assert!(reentrant.1.load(Ordering::Relaxed) >= 4);
}

#[test]
fn a_name_is_shared_within_a_process_only() {
    let runtime = Arc::new(Still { process: AtomicU32::new(70_000), ..Still::default() });
    let (one, two) = (Memory::named("fork", runtime.clone()), Memory::named("fork", runtime.clone()));
    let other = Memory::named("fork too", runtime.clone());
    assert_eq!(one.url(), "memory:fork");
    take_now(&one, 1, Mode::Exclusive, Entry::Queue);
    assert_eq!(take_now(&two, 2, Mode::Exclusive, Entry::Try), None);
    assert!(take_now(&other, 2, Mode::Exclusive, Entry::Try).is_some());

    // The mutexes may be held at the moment of the fork, by threads that the child does not have.
    let held = one.space.lock();
    runtime.process.store(70_001, Ordering::Relaxed);
    assert_eq!(now(two.inspect("")).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(now(two.release(&[claim(1)])).unwrap_err().kind(), ErrorKind::Closed);
    let child = Memory::named("fork", runtime.clone());
    assert!(take_now(&child, 3, Mode::Exclusive, Entry::Try).is_some());
    drop(two);
    drop(child);
    runtime.process.store(70_000, Ordering::Relaxed);
    drop(held);
    assert_eq!(now(Memory::named("fork", runtime).inspect("")).unwrap().len(), 1);
}

#[test]
fn a_panic_under_the_mutex_does_not_spread() {
    let memory = memory();
    let poison = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _held = memory.space.state.lock();
        panic!("on purpose");
    }));
    assert!(poison.is_err());
    assert!(take_now(&memory, 1, Mode::Exclusive, Entry::Try).is_some());
}
