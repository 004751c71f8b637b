//! Whoever was told that a claim lives for a term has its key for so long, whatever else befalls it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use windlass::{
    Backend, Mode,
    ask::{Ask, Claim, Grant, Renewal},
    open_backend,
    rt::{Native, Runtime},
};
use windlass_tests::{
    place::{PATIENCE, ask, block_on},
    proxy::{Faults, Proxy},
};

use super::{TTL, acquire, etcd, locker, nothing_is_left, port_of_nobody, prefix};

/// A claim on `lock` that nobody renews yet, while another claim of the same session waits and keeps that alive.
struct Unrenewed {
    proxy: Proxy,
    prefix: String,
    backend: Arc<dyn Backend>,
    claim: Claim,
    held: Instant,
}

fn brief(name: &str) -> Ask {
    Ask { ttl: TTL, ..ask(name, Mode::Exclusive) }
}

/// Has it, and afterwards sees to it that nothing is left.
fn unrenewed(test: impl FnOnce(&Unrenewed)) {
    let (proxy, prefix) = (Proxy::before(etcd().address(0)), prefix());
    let backend = open_backend(&etcd().url_at(&[proxy.address()], &prefix), Arc::new(Native)).unwrap();
    let in_the_way = acquire(&locker(&etcd().url(&prefix)), "another");
    let (waiting, it_waits) = (backend.clone(), brief("another"));
    let waits = it_waits.claim();
    let waiter = thread::spawn(move || drop(block_on(waiting.acquire(&it_waits, &|_| {}))));
    let ask = brief("lock");
    block_on(backend.acquire(&ask, &|_| {})).unwrap().unwrap();
    let one = Unrenewed { proxy, prefix, backend, claim: ask.claim(), held: Instant::now() };
    test(&one);
    block_on(in_the_way.release()).unwrap();
    waiter.join().unwrap();
    block_on(one.backend.release(&[waits, one.claim])).unwrap();
    nothing_is_left(etcd(), &one.prefix);
}

impl Unrenewed {
    fn until(&self, after: Duration) {
        thread::sleep(after.saturating_sub(self.held.elapsed()));
    }

    /// Its key is there for as long as it can be believed to hold.
    fn lives_for(&self, grant: &Grant) {
        let term = grant.lease.unwrap();
        loop {
            let keys = etcd().keys(&format!("{}/lock", self.prefix));
            let over = Native.now().since(term.counted_from);
            if over >= term.ttl.mul_f64(0.99) {
                return;
            }
            assert_eq!(keys.len(), 1, "its key is gone after {over:?} of {:?}", term.ttl);
        }
    }
}

#[test]
fn a_downgrade_is_a_renewal() {
    unrenewed(|one| {
        one.until(TTL / 2);
        let grant = block_on(one.backend.change(&one.claim, Mode::Shared)).unwrap();
        one.lives_for(&grant);
    });
}

#[test]
fn so_is_one_that_was_done_already() {
    unrenewed(|one| {
        block_on(one.backend.change(&one.claim, Mode::Shared)).unwrap();
        one.until(TTL / 2);
        let grant = block_on(one.backend.change(&one.claim, Mode::Shared)).unwrap();
        one.lives_for(&grant);
    });
}

/// ... which ends here just then, because nobody has renewed it.
#[test]
fn a_renewal_that_is_answered_too_late() {
    thread::scope(|scope| {
        for before in [60, 90, 120, 150, 180] {
            scope.spawn(move || {
                unrenewed(|one| {
                    one.until(TTL - Duration::from_millis(before));
                    let delay_answers = Duration::from_millis(100);
                    one.proxy.set(Faults { delay_answers, ..Faults::NONE });
                    let renewed = block_on(one.backend.renew(std::slice::from_ref(&one.claim)));
                    one.proxy.set(Faults::NONE);
                    if let Ok([Renewal::Renewed(grant)]) = renewed.as_deref() {
                        one.lives_for(grant);
                    }
                });
            });
        }
    });
}

/// ... of a claim that has ended here while etcd was out of reach, and is taken up again before its key is deleted.
#[test]
fn a_renewal_after_the_claim_has_ended_here() {
    thread::scope(|scope| {
        for after in [100, 200, 300, 400, 500, 600] {
            scope.spawn(move || {
                unrenewed(|one| {
                    one.until(TTL * 3 / 4);
                    one.proxy.lead_to(port_of_nobody());
                    one.proxy.reset();
                    one.until(TTL + Duration::from_millis(after));
                    one.proxy.lead_to(etcd().address(0));
                    let start = Instant::now();
                    let renewed = loop {
                        match block_on(one.backend.renew(std::slice::from_ref(&one.claim))) {
                            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
                            Ok(mut each) => match each.pop().unwrap() {
                                Renewal::Unknown(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
                                renewed => break renewed,
                            },
                        }
                    };
                    if let Renewal::Renewed(grant) = renewed {
                        one.lives_for(&grant);
                    }
                });
            });
        }
    });
}
