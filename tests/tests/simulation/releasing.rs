//! Releases over a network that loses, repeats and cuts off.

use std::{future::IntoFuture, sync::atomic::Ordering, time::Duration};

use futures_util::future::join;
use windlass::{ErrorKind, LostReason};
use windlass_tests::{place::task, sim::Clock, sim_backend::Faults};

use crate::setting::{HOUR, SECOND, TTL, counter, ms, near, sim};

#[test]
fn r13_a_release_is_sent_again_and_frees_nobody_elses_lock() {
    for seed in 0..40 {
        sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let third = sim.client();
            for _ in 0..5 {
                client.link.set(ms(2));
                let guard = client.locker.lock("lock").await.unwrap();
                let next = task(&*other.host, other.locker.lock("lock").into_future());
                sim.sleep(Duration::from_millis(100)).await;
                let faults = Faults { resets: true, repeat: 0.8, repeat_within: 2 * TTL, ..ms(2) };
                client.link.set(match seed % 2 {
                    0 => Faults { cut_back: true, ..faults },
                    _ => Faults { lose_request: 0.5, lose_reply: 0.5, ..faults },
                });
                let released_at = sim.world.now();
                let release = task(&*client.host, guard.release());
                let next = sim.soon("the next", next).await.unwrap();
                let took = sim.world.now() - released_at;
                assert!(took < Duration::from_secs(5), "a few tries: {took:?}");
                sim.sleep(2 * TTL).await;
                assert!(next.is_held(), "late and repeated releases free nobody else's lock");
                assert!(third.locker.lock("lock").try_acquire().await.unwrap().is_none());
                next.release().await.unwrap();
                drop(sim.soon("the end of the release", release).await);
            }
        });
    }
}

#[test]
fn a_drop_releases_and_one_that_fails_is_left_to_the_ttl() {
    sim(25, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        drop(client.locker.lock("lock").await.unwrap());
        sim.sleep(Duration::from_millis(50)).await;
        assert!(sim.server.is_empty(), "a drop releases");
        let guard = client.locker.lock("lock").await.unwrap();
        client.link.set(Faults { cut_there: true, ..ms(2) });
        drop(guard);
        drop(sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap());
    });
}

#[test]
fn a_second_release_waits_for_the_first() {
    sim(30, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        client.link.set(Faults { exact: true, ..ms(300) });
        client.link.sent();
        let second = async {
            let outcome = guard.release_shared().await;
            (outcome, sim.server.is_empty())
        };
        let (first, (second, was_free)) = join(guard.release_shared(), second).await;
        first.unwrap();
        second.unwrap();
        assert!(was_free, "it said so before it was so");
        assert_eq!(client.sent("release").len(), 1);
    });
}

#[test]
fn a_release_that_failed_can_be_tried_again() {
    sim(31, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        // The TTL must not free it in our place.
        sim.server.host.set_rate(Clock::Monotonic, 0.0);
        client.link.set(Faults { cut_there: true, ..ms(2) });
        let both = join(guard.release_shared(), guard.release_shared());
        let (first, second) = sim.soon("two outcomes", both).await;
        for outcome in [first, second] {
            assert_eq!(outcome.expect_err("nobody was told").kind(), ErrorKind::Unavailable);
        }
        assert!(!guard.is_held(), "whatever came of it");
        client.link.set(ms(2));
        assert_eq!(sim.holders("lock").len(), 1, "it still holds as far as the server knows");
        guard.release_shared().await.unwrap();
        assert!(sim.server.is_empty());
        client.link.sent();
        guard.release_shared().await.unwrap();
        assert_eq!(client.sent("release").len(), 0, "done is done");
    });
}

/// Nobody could hear of it before.
#[test]
fn r3_a_release_finds_out_that_the_lock_was_lost() {
    for (seed, keeps_only_what_is_held) in [(35, false), (36, true)] {
        sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let (told, losses) = counter();
            let guard = client.locker.lock("lock").on_lost(told).await.unwrap();
            client.link.set(Faults { cut_back: true, ..ms(2) });
            other.locker.force_release("lock", None).await.unwrap();
            sim.sleep(SECOND).await;
            assert!(guard.is_held(), "the news did not come through");
            let hears = task(&*client.host, guard.lost());
            client.link.set(Faults { keeps_only_what_is_held, ..ms(2) });
            let error = sim.soon("the release", guard.release_shared()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost(LostReason::ForceReleased), "{error}");
            let again = sim.soon("another release", guard.release_shared()).await.unwrap_err();
            assert_eq!(again.kind(), error.kind());
            assert_eq!(sim.soon("who waits for the loss", hears).await, LostReason::ForceReleased);
            sim.sleep(2 * TTL).await;
            assert_eq!(losses.load(Ordering::SeqCst), 1);
            assert_eq!(client.locker.metrics().unwrap().lost_force_released, 1);
        });
    }
}

/// ... also where there was no connection for its first try.
#[test]
fn a_release_that_was_not_sent_at_first_finds_it_out() {
    sim(39, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        let guard = client.locker.lock("lock").await.unwrap();
        client.link.set(Faults { cut_there: true, cut_back: true, resets: true, ..ms(2) });
        other.locker.force_release("lock", None).await.unwrap();
        let release = task(&*client.host, guard.release());
        sim.sleep(Duration::from_millis(10)).await;
        assert!(!client.sent("release").is_empty());
        client.link.set(Faults { keeps_only_what_is_held: true, ..ms(2) });
        let error = sim.soon("the release", release).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost(LostReason::ForceReleased), "{error}");
    });
}

#[test]
fn what_an_earlier_try_may_have_released_was_not_lost() {
    sim(37, async |sim| {
        let client = sim.client();
        let (told, losses) = counter();
        let guard = client.locker.lock("lock").on_lost(told).await.unwrap();
        let store = Faults { keeps_only_what_is_held: true, ..ms(2) };
        client.link.set(Faults { cut_back: true, ..store });
        let release = task(&*client.host, guard.release());
        let released = async {
            while !sim.server.is_empty() {
                sim.sleep(Duration::from_millis(10)).await;
            }
        };
        sim.soon("it to be released", released).await;
        client.link.set(store);
        sim.soon("the second try", release).await.unwrap();
        assert_eq!(losses.load(Ordering::SeqCst), 0);
    });
}

/// It ran out on the way: while anybody believed in it, it was held.
#[test]
fn a_release_that_came_after_the_end_of_the_term_lost_nothing() {
    sim(38, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        let slow = Duration::from_secs(4);
        client.link.set(Faults { cut_there: true, ..ms(2) });
        sim.sleep(TTL - Duration::from_secs(3)).await;
        client.link.set(Faults {
            exact: true,
            request_delay: slow,
            keeps_only_what_is_held: true,
            patience: Some(HOUR),
            ..ms(2)
        });
        assert!(guard.is_held());
        sim.soon("the release", guard.release()).await.unwrap();
    });
}

/// The backend itself waits for ever.
#[test]
fn a_release_that_hangs_is_sent_again() {
    sim(32, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").ttl(HOUR).await.unwrap();
        client.link.set(Faults { cut_there: true, patience: Some(HOUR), ..ms(2) });
        let release = task(&*client.host, guard.release());
        sim.sleep(SECOND).await;
        client.link.set(ms(2));
        sim.soon("the release", release).await.unwrap();
        assert!(sim.world.now() < TTL, "{:?}", sim.world.now());
        assert!(sim.server.is_empty());
    });
}

#[test]
fn the_output_of_work_outlives_a_release_that_fails() {
    sim(33, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        let work = client.locker.lock("lock").run(async |_| {
            sim.sleep(SECOND).await;
            client.link.set(Faults { cut_there: true, ..ms(2) });
            "done"
        });
        let ran = sim.soon("the output", work).await.unwrap();
        assert_eq!(ran.output, "done");
        near(ran.held_for, SECOND, 10);
        drop(sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap());
    });
}

/// Nobody has noticed before the work is over.
#[test]
fn work_that_outlived_its_lock_has_no_output() {
    sim(34, async |sim| {
        let client = sim.client();
        let work = client.locker.lock("lock").run(async |_| client.host.set_forward(Clock::Boot, 2 * TTL));
        let error = sim.soon("the end of the work", work).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost(LostReason::Expired), "{error}");
    });
}
