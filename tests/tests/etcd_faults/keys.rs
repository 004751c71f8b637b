//! A locker's keys are used again, and what comes late or twice for the claim that had one harms none that has it later.

use std::{collections::BTreeSet, sync::Arc, thread, time::Duration};

use windlass::{Backend, ErrorKind, Locker, Mode, ask::Renewal, open_backend, rt::Native};
use windlass_tests::{
    place::{PATIENCE, ask, block_on, in_vain, polled},
    processes::until,
    proxy::Proxy,
};

use super::{acquire, etcd, locker, nothing_is_left, prefix};

/// The keys of `lock`.
fn keys(prefix: &str) -> BTreeSet<String> {
    etcd().keys(&format!("{prefix}/lock")).into_iter().collect()
}

fn beside(locker: &Locker) -> windlass::Guard {
    block_on(locker.lock("lock").shared().into_future()).unwrap()
}

#[test]
fn few_keys_are_used_again() {
    let prefix = prefix();
    let ours = locker(&etcd().url(&prefix));
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let (one, two) = (beside(&ours), beside(&ours));
        assert_eq!(keys(&prefix).len(), 2);
        seen.extend(keys(&prefix));
        block_on(one.release()).unwrap();
        block_on(two.release()).unwrap();
    }
    for _ in 0..5 {
        let alone = acquire(&ours, "lock");
        // A try that is refused has written nothing.
        assert!(block_on(ours.lock("lock").try_acquire()).unwrap().is_none());
        seen.extend(keys(&prefix));
        block_on(alone.release()).unwrap();
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    nothing_is_left(etcd(), &prefix);
}

#[test]
fn what_comes_twice_harms_no_later_claim() {
    let (proxy, prefix) = (Proxy::before(etcd().address(0)), prefix());
    let ours = locker(&etcd().url_at(&[proxy.address()], &prefix));
    proxy.record();
    block_on(acquire(&ours, "lock").release()).unwrap();
    proxy.reset();
    let later = acquire(&ours, "lock");
    let before = keys(&prefix);
    proxy.repeat();
    assert_eq!(keys(&prefix), before);
    assert!(later.is_held());
    let token = later.fencing_token();
    let status = &block_on(ours.list("lock")).unwrap()[0];
    assert_eq!(status.holders[0].fencing_token, token, "it was deleted and put anew");
    block_on(later.release()).unwrap();
    nothing_is_left(etcd(), &prefix);
}

#[test]
fn a_key_whose_deletion_has_no_answer_is_given_up() {
    let (proxy, prefix) = (Proxy::before(etcd().address(0)), prefix());
    let ours = locker(&etcd().url_at(&[proxy.address()], &prefix));
    let earlier = acquire(&ours, "lock");
    let before = keys(&prefix);
    proxy.hold_up();
    let _ = block_on(earlier.release());
    // Over another connection it is gone in the end, but the first deletion is still under way.
    let later = acquire(&ours, "lock");
    assert!(keys(&prefix).is_disjoint(&before), "{before:?}");
    proxy.let_go();
    // Until it has arrived.
    thread::sleep(Duration::from_millis(300));
    assert!(keys(&prefix).is_disjoint(&before) && keys(&prefix).len() == 1);
    later.check().unwrap();
    block_on(later.release()).unwrap();
    nothing_is_left(etcd(), &prefix);
}

#[test]
fn a_stranger_on_a_locker_s_key_is_waited_for() {
    let prefix = prefix();
    let ours = locker(&etcd().url(&prefix));
    let held = acquire(&ours, "lock");
    let key = keys(&prefix).pop_first().unwrap();
    block_on(held.release()).unwrap();
    etcd().ctl(&["put", "--", &key, "a stranger"]);
    let error = block_on(in_vain(|| ours.lock("lock")));
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("a stranger"), "{error}");
    let waiter = thread::spawn(move || block_on(ours.lock("lock").timeout(PATIENCE).into_future()));
    until("it waits", || keys(&prefix).len() == 2);
    assert_eq!(etcd().ctl(&["get", "--print-value-only", "--", &key]).trim(), "a stranger");
    etcd().ctl(&["del", "--", &key]);
    block_on(waiter.join().unwrap().unwrap().release()).unwrap();
    nothing_is_left(etcd(), &prefix);
}

fn backend(prefix: &str) -> Arc<dyn Backend> {
    open_backend(&etcd().url(prefix), Arc::new(Native)).unwrap()
}

/// ... and is released by both, of whom the second does not know that the key is another claim's by then.
#[test]
fn a_claim_that_was_handed_on() {
    let prefix = prefix();
    let (a, b) = (backend(&prefix), backend(&prefix));
    let (first, second) = (ask("lock", Mode::Exclusive), ask("lock", Mode::Exclusive));
    block_on(async {
        a.acquire(&first, &|_| {}).await.unwrap().unwrap();
        let before = keys(&prefix);
        assert!(matches!(b.renew(&[first.claim()]).await.unwrap()[..], [Renewal::Renewed(_)]));
        a.release(&[first.claim()]).await.unwrap();
        a.acquire(&second, &|_| {}).await.unwrap().unwrap();
        assert_eq!(keys(&prefix), before, "else there is nothing to be seen here");
        b.release(&[first.claim()]).await.unwrap();
        assert!(matches!(a.renew(&[second.claim()]).await.unwrap()[..], [Renewal::Renewed(_)]));
        a.release(&[second.claim()]).await.unwrap();
    });
    nothing_is_left(etcd(), &prefix);
}

/// ... while nobody knows yet that it is there.
#[test]
fn who_gives_up_does_not_delete_what_a_stranger_wrote() {
    let prefix = prefix();
    let ours = backend(&prefix);
    let before = ask_and_release(&ours, &prefix);
    etcd().ctl(&["put", "--", &before, "a stranger"]);
    block_on(async {
        for polls in 1..4 {
            let ask = ask("lock", Mode::Exclusive);
            assert!(polled(polls, ours.acquire(&ask, &|_| {})).await.is_none());
            ours.release(&[ask.claim()]).await.unwrap();
            assert_eq!(etcd().keys(&prefix), std::slice::from_ref(&before));
        }
    });
    etcd().ctl(&["del", "--", &before]);
    nothing_is_left(etcd(), &prefix);
}

/// The key that it had.
fn ask_and_release(ours: &Arc<dyn Backend>, prefix: &str) -> String {
    let ask = ask("lock", Mode::Exclusive);
    block_on(ours.acquire(&ask, &|_| {})).unwrap().unwrap();
    let key = keys(prefix).pop_first().unwrap();
    block_on(ours.release(&[ask.claim()])).unwrap();
    key
}
