//! The rules of a lease, each with the fault that would show a break of it.

use std::{
    future::IntoFuture,
    pin::pin,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::select, stream::BoxStream};
use windlass::{
    Backend, Capabilities, ErrorKind, Guard, Holder, Locker, LostReason, Mode, Name, Result, Status,
    ask::{Ask, Claim, Grant, Happening, News, Renewal},
    backend::OnWaiting,
    rt::Runtime,
};
use windlass_tests::{
    place::task,
    sim::Clock,
    sim_backend::{Faults, Link, SimBackend},
};

use crate::setting::{HOUR, SECOND, TTL, counter, ms, near, sim};

#[test]
fn r1_belief_lies_inside_the_grant_however_late_the_replies() {
    for percent in [0, 15, 50, 90, 98, 99] {
        sim(percent, async |sim| {
            let guards = sim.beliefs_lie_inside_the_grants();
            let (slow, other) = (sim.client(), sim.client());
            let late = Faults {
                exact: true,
                patience: Some(HOUR),
                reply_delay: TTL * percent as u32 / 100,
                ..ms(0)
            };
            slow.link.set(late);
            let mut held = 0;
            for _ in 0..3 {
                // At 99 % each answer comes too late to be believed.
                if let Ok(guard) = slow.locker.lock("lock").timeout(5 * TTL).await {
                    let guard = Arc::new(guard);
                    guards.lock().unwrap().push(guard.clone());
                    held += u32::from(guard.is_held());
                    select(pin!(guard.lost()), sim.here.sleep(2 * TTL)).await;
                    guards.lock().unwrap().clear();
                }
                let next = sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap();
                let next = Arc::new(next);
                guards.lock().unwrap().push(next.clone());
                sim.sleep(TTL / 2).await;
                assert!(next.is_held());
                guards.lock().unwrap().clear();
            }
            assert_eq!(held, if percent < 99 { 3 } else { 0 });
            drop((slow, other));
            sim.nothing_is_left().await;
        });
    }
}

#[test]
fn r1_belief_lies_inside_the_grant_with_clocks_of_other_rates() {
    for (client_rate, server_rate) in [(1.0095, 1.0), (0.9905, 1.0), (1.0, 1.009), (1.005, 0.996)] {
        sim(7, async |sim| {
            let guards = sim.beliefs_lie_inside_the_grants();
            let client = sim.client();
            sim.server.host.set_rate(Clock::Monotonic, server_rate);
            for clock in [Clock::Boot, Clock::Wall] {
                client.host.set_rate(clock, client_rate);
            }
            let guard = Arc::new(client.locker.lock("lock").await.unwrap());
            guards.lock().unwrap().push(guard.clone());
            sim.sleep(3 * TTL).await;
            assert!(guard.is_held(), "renewed");
            client.link.set(Faults { cut_there: true, ..ms(2) });
            assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Unreachable);
        });
    }
}

#[test]
fn r2_is_held_is_false_before_anything_runs() {
    sim(2, async |sim| {
        let client = sim.client();
        let (told, count) = counter();
        let guard = client.locker.lock("lock").on_lost(told).await.unwrap();
        assert!(guard.is_held());
        client.host.set_forward(Clock::Boot, 2 * TTL);
        assert!(!guard.is_held(), "computed at the call");
        assert_eq!(guard.check().unwrap_err().lost_reason(), Some(LostReason::Expired));
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost(LostReason::Expired));
        sim.sleep(TTL).await;
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(client.locker.metrics().unwrap().lost_expired, 1);
    });
}

#[test]
fn r2_a_runtime_that_is_blocked_keeps_no_belief() {
    sim(2, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        client.host.suspend(2 * TTL);
        sim.sleep(2 * TTL - Duration::from_millis(1)).await;
        assert!(!guard.is_held());
        assert!(guard.detach().is_err());
    });
}

#[test]
fn r3_a_server_that_never_answers() {
    for (seed, there) in [(1, true), (2, false), (3, true), (4, false)] {
        sim(seed, async |sim| {
            let client = sim.client();
            let (told, count) = counter();
            let guard = client.locker.lock("lock").on_lost(told).await.unwrap();
            sim.sleep(TTL * 7 / 10).await;
            let renewals = |link: &Link| -> Vec<Duration> {
                link.sent().into_iter().filter(|(_, kind)| *kind == "renew").map(|(when, _)| when).collect()
            };
            let before = renewals(&client.link);
            assert_eq!(before.len(), 2, "at a third of the TTL: {before:?}");
            for pair in before.windows(2) {
                near(pair[1] - pair[0], TTL / 3, 50);
            }
            // It accepts and never answers, or does not even hear.
            client.link.set(Faults { cut_there: there, cut_back: !there, ..ms(2) });
            let held_until = before[1] + TTL * 99 / 100 - Duration::from_millis(2);
            let waiter = sim.client();
            let waiter = task(&*waiter.host, waiter.locker.lock("lock").into_future());
            assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Unreachable);
            let lost_at = sim.world.now();
            assert!(
                lost_at + Duration::from_millis(50) >= held_until,
                "{lost_at:?}, not before {held_until:?}"
            );
            assert!(
                lost_at <= held_until + Duration::from_millis(10),
                "{lost_at:?}, not after {held_until:?}"
            );
            let tries = renewals(&client.link);
            assert!(tries.len() >= 2, "{tries:?}");
            near(tries[0] - before[1], TTL / 3, 50);
            for pair in tries.windows(2) {
                let gap = pair[1] - pair[0];
                assert!(gap + Duration::from_millis(5) >= TTL / 6, "a try has a sixth of the TTL: {gap:?}");
                assert!(gap <= TTL / 3 + Duration::from_millis(50), "and the next follows soon: {gap:?}");
            }
            assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost(LostReason::Unreachable));
            assert_eq!(sim.world.now(), lost_at, "nothing is waited for");
            drop(sim.soon("the next", waiter).await.unwrap());
            sim.sleep(2 * TTL).await;
            assert_eq!(count.load(Ordering::SeqCst), 1, "told exactly once");
        });
    }
}

#[test]
fn r3_a_short_outage_costs_nothing() {
    for seed in 0..20 {
        sim(seed, async |sim| {
            let client = sim.client();
            let guard = client.locker.lock("lock").await.unwrap();
            for _ in 0..10 {
                sim.sleep(sim.world.time_below(TTL)).await;
                client.link.set(Faults { cut_there: true, cut_back: true, ..ms(2) });
                sim.sleep(TTL / 4).await;
                client.link.set(ms(2));
                assert!(guard.is_held());
                sim.sleep(TTL).await;
                assert!(guard.is_held());
            }
            assert!(sim.server.status()[0].holders[0].fencing_token == guard.fencing_token());
        });
    }
}

/// What panics in a backend, or in whoever listens to traces, must not end the care for what is held.
#[test]
fn r3_a_panic_under_the_keeper_ends_no_renewal() {
    sim(5, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        client.link.set(Faults { renewal_panics: true, ..ms(2) });
        sim.sleep(TTL / 2).await;
        client.link.set(ms(2));
        let later = client.locker.lock("another").await.unwrap();
        sim.sleep(5 * TTL).await;
        assert!(guard.is_held() && later.is_held());
        client.link.set(Faults { renewal_panics: true, ..ms(2) });
        assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Expired);
    });
}

#[test]
fn r4_a_paused_holder_is_fenced() {
    sim(4, async |sim| {
        let (old, new) = (sim.client(), sim.client());
        let paused = old.locker.lock("lock").await.unwrap();
        old.host.suspend(3 * TTL);
        let next = sim.soon("the next", new.locker.lock("lock").into_future()).await.unwrap();
        assert!(sim.world.now() <= TTL + Duration::from_millis(100), "free when its TTL is over");
        let newest_token_seen = next.fencing_token();
        assert!(!paused.is_held(), "its first check");
        assert!(paused.fencing_token() < newest_token_seen, "its late write is refused");
        sim.sleep(3 * TTL).await;
        assert!(next.is_held() && !paused.is_held());
        drop(paused);
        sim.sleep(TTL).await;
        assert!(next.is_held(), "what the old one does harms nobody");
    });
}

#[test]
fn r5_suspend_counts_whichever_clock_saw_it() {
    sim(5, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        client.host.set_rate(Clock::Boot, 0.0);
        client.host.set_forward(Clock::Wall, HOUR);
        assert!(!guard.is_held());
        assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Expired);
    });
    for boot_counts in [false, true] {
        sim(5, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let guard = client.locker.lock("lock").await.unwrap();
            client.host.sleep_machine(HOUR, boot_counts);
            let next = sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap();
            sim.sleep(HOUR - sim.world.now()).await;
            let woken = sim.world.now();
            guard.lost().await;
            assert!(sim.world.now() <= woken + Duration::from_millis(510), "told soon after it wakes");
            assert!(next.is_held());
        });
    }
}

#[test]
fn r5_a_wall_clock_that_is_set_changes_nothing() {
    sim(5, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        let guard = client.locker.lock("lock").await.unwrap();
        let guards = sim.beliefs_lie_inside_the_grants();
        let guard = Arc::new(guard);
        guards.lock().unwrap().push(guard.clone());
        for _ in 0..10 {
            client.host.set_back(Clock::Wall, HOUR);
            sim.server.host.set_forward(Clock::Wall, HOUR);
            assert!(guard.is_held());
            sim.sleep(TTL).await;
            assert!(guard.is_held(), "renewed as ever");
            assert!(other.locker.lock("lock").try_acquire().await.unwrap().is_none());
        }
        // Set back and cut off, it still knows its end.
        client.host.set_back(Clock::Wall, HOUR);
        client.link.set(Faults { cut_there: true, ..ms(2) });
        guard.lost().await;
    });
}

#[test]
fn r16_a_dead_holder_is_free_after_its_ttl() {
    sim(16, async |sim| {
        let (dead, next) = (sim.client(), sim.client());
        let _guard = dead.locker.lock("lock").ttl(Duration::from_secs(3)).await.unwrap();
        dead.host.suspend(HOUR);
        drop(sim.soon("the next", next.locker.lock("lock").into_future()).await.unwrap());
        assert!(sim.world.now() < Duration::from_millis(3100));
    });
}

#[test]
fn many_claims_are_renewed_in_one_request() {
    sim(26, async |sim| {
        let client = sim.client();
        let mut guards = Vec::new();
        for n in 0..100 {
            guards.push(client.locker.lock(format!("lock-{n}")).await.unwrap());
        }
        client.link.sent();
        sim.sleep(10 * TTL).await;
        let renewals = client.link.sent().iter().filter(|(_, kind)| *kind == "renew").count();
        assert!(renewals <= 40, "{renewals} requests to renew 100 claims for ten TTLs");
        assert!(guards.iter().all(Guard::is_held));
    });
}

/// One request is lost and hangs; those that are sent after it go through.
#[test]
fn a_renewal_that_hangs_holds_up_no_other_claim() {
    sim(27, async |sim| {
        let client = sim.client();
        let long = client.locker.lock("long").ttl(HOUR).await.unwrap();
        client.link.set(Faults { cut_there: true, ..ms(2) });
        sim.sleep(HOUR / 3 + SECOND).await;
        assert_eq!(client.sent("renew").len(), 1, "due after a third of its TTL");
        client.link.set(ms(2));
        // The request about the long one may hang for a sixth of an hour.
        let short = client.locker.lock("short").ttl(SECOND).await.unwrap();
        for _ in 0..100 {
            sim.sleep(SECOND).await;
            assert!(short.is_held(), "lost, although its own renewals would have come through");
        }
        short.release().await.unwrap();
        sim.sleep(2 * HOUR).await;
        assert!(long.is_held(), "tried again once the hung request was given up");
    });
}

#[test]
fn max_hold_ends_what_the_session_renews_for_ever() {
    sim(28, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        let backend = KeptAlive { inner: SimBackend(client.link.clone()), claims: Mutex::default() };
        let locker = Locker::over(Arc::new(backend), client.host.clone());
        let ((too_long, warnings), (told, losses)) = (counter(), counter());
        let max_hold = 6 * TTL;
        let lock = locker.lock("lock").max_hold(max_hold).on_held_too_long(too_long).on_lost(told);
        let guard = lock.await.unwrap();
        let since = sim.world.now();
        let next = task(&*other.host, other.locker.lock("lock").into_future());
        sim.sleep(max_hold - SECOND).await;
        assert_eq!(warnings.load(Ordering::SeqCst), 0);
        sim.sleep(TTL).await;
        assert_eq!(warnings.load(Ordering::SeqCst), 1);
        assert!(guard.is_held(), "it has a TTL more to end its work");
        assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Expired);
        near(sim.world.now() - since, max_hold + TTL, 50);
        let next = sim.soon("the next", next).await.unwrap();
        near(sim.world.now() - since, max_hold + TTL, 100);
        sim.sleep(3 * TTL).await;
        assert!(next.is_held());
        assert_eq!((warnings.load(Ordering::SeqCst), losses.load(Ordering::SeqCst)), (1, 1));
    });
}

/// A client whose session keeps all its claims alive in the server, whether or not anybody asks for it, and tells so.
#[derive(Debug)]
struct KeptAlive {
    inner: SimBackend,
    claims: Mutex<Vec<Claim>>,
}

#[async_trait]
impl Backend for KeptAlive {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn url(&self) -> String {
        self.inner.url()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let granted = self.inner.acquire(ask, waiting).await?;
        if granted.is_some() {
            self.claims.lock().unwrap().push(Claim { name: ask.name.clone(), id: ask.claim_id });
        }
        Ok(granted)
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        self.inner.acquire_all(asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        self.inner.renew(claims).await
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        self.claims.lock().unwrap().retain(|claim| !claims.contains(claim));
        self.inner.release(claims).await
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        self.inner.change(claim, to).await
    }

    async fn hear(&self) -> Result<Vec<News>> {
        self.inner.0.rt.sleep(TTL / 3).await;
        let claims = self.claims.lock().unwrap().clone();
        let renewals = self.inner.renew(&claims).await?;
        let told = claims.into_iter().zip(renewals).filter_map(|(claim, renewal)| match renewal {
            Renewal::Renewed(grant) => Some(News { claim, what: Happening::Renewed(grant) }),
            _ => None,
        });
        Ok(told.collect())
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        self.inner.inspect(prefix).await
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        self.inner.force_release(name, fencing_token).await
    }

    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        self.inner.changes(prefix).await
    }
}
