//! Changes of a held claim that are given up half way, or asked for at the same time.

use std::time::Duration;

use futures_util::future::{join, select};
use windlass::{ErrorKind, Mode, rt::Runtime};
use windlass_tests::{place::polled, sim_backend::Faults};

use crate::setting::{SECOND, ms, sim};

/// How long each request and each answer is under way.
const WAY: Duration = Duration::from_millis(200);

/// The call-off of one upgrade is under way when the next one is asked for.
#[test]
fn a_late_call_off_does_not_undo_the_next_upgrade() {
    for seed in 0..40 {
        sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            client.link.set(ms(200));
            let guard = client.locker.lock("lock").upgradable().await.unwrap();
            let reader = other.locker.lock("lock").shared().await.unwrap();
            let error = guard.upgrade(Duration::from_secs(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            drop(reader);
            sim.sleep(sim.world.time_below(Duration::from_millis(100))).await;
            sim.soon("an upgrade", guard.upgrade(None)).await.unwrap();
            sim.sleep(Duration::from_secs(2)).await;
            assert_eq!(guard.mode(), Mode::Exclusive);
            let beside = other.locker.lock("lock").shared().try_acquire().await.unwrap();
            assert!(beside.is_none(), "a reader beside one who believes to be alone");
        });
    }
}

#[test]
fn a_downgrade_that_is_dropped_half_way_is_finished_before_the_next_change() {
    let slow = Faults { exact: true, ..ms(WAY.as_millis() as u64) };
    sim(35, async |sim| {
        let client = sim.client();
        client.link.set(slow);
        let guard = client.locker.lock("lock").upgradable().await.unwrap();
        assert!(polled(1, guard.downgrade()).await.is_none(), "dropped with its request under way");
        let error = sim.soon("a refusal", guard.upgrade(None)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(sim.holders("lock")[0].mode, Mode::Shared, "refused before the downgrade was done");
    });
    sim(36, async |sim| {
        let client = sim.client();
        client.link.set(slow);
        let guard = client.locker.lock("lock").await.unwrap();
        client.link.sent();
        assert!(polled(1, guard.downgrade()).await.is_none());
        sim.soon("another downgrade", guard.downgrade()).await.unwrap();
        let sent = client.sent("change");
        assert_eq!(sent.len(), 2, "each is asked for, and the first one is not given up");
        assert!(sent[1] >= sent[0] + 2 * WAY, "two changes at once can overtake each other: {sent:?}");
        assert_eq!(guard.mode(), Mode::Shared);
    });
}

/// It had not even been sent, because another change was under way.
#[test]
fn a_downgrade_that_is_dropped_while_it_waits_for_its_turn_is_done() {
    sim(37, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        let guard = client.locker.lock("lock").upgradable().await.unwrap();
        let reader = other.locker.lock("lock").shared().await.unwrap();
        let drops_a_downgrade = async {
            sim.sleep(SECOND).await;
            assert!(polled(1, guard.downgrade()).await.is_none());
            sim.sleep(SECOND).await;
            assert_eq!(sim.holders("lock").len(), 2, "the upgrade still waits");
            reader.release().await.unwrap();
        };
        let (upgraded, ()) = sim.soon("the upgrade", join(guard.upgrade(None), drops_a_downgrade)).await;
        upgraded.unwrap();
        sim.sleep(SECOND).await;
        assert_eq!(guard.mode(), Mode::Shared);
        assert_eq!(sim.holders("lock")[0].mode, Mode::Shared);
        assert!(other.locker.lock("lock").shared().try_acquire().await.unwrap().is_some());
    });
}

/// Whenever the other one is cancelled: while it waits for its turn, while it has it, or when there is nothing left to do.
#[test]
fn two_upgrades_of_one_guard_and_one_of_them_cancelled() {
    for (step, cancelled_first) in (0..40).flat_map(|step| [(step, false), (step, true)]) {
        sim(step, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            client.link.set(Faults { exact: true, ..ms(WAY.as_millis() as u64) });
            let guard = client.locker.lock("lock").upgradable().await.unwrap();
            let reader = other.locker.lock("lock").shared().await.unwrap();
            let limit = sim.here.sleep(Duration::from_millis(50) * step as u32);
            let cancelled = async {
                select(Box::pin(guard.upgrade(None)), limit).await;
            };
            let upgrade = guard.upgrade(None);
            let leave = async {
                sim.sleep(SECOND).await;
                reader.release().await.unwrap();
            };
            let both = async {
                if cancelled_first {
                    join(cancelled, upgrade).await.1
                } else {
                    join(upgrade, cancelled).await.0
                }
            };
            let (upgraded, ()) = sim.soon("the upgrade", join(both, leave)).await;
            upgraded.unwrap();
            sim.sleep(5 * SECOND).await;
            assert_eq!(guard.mode(), Mode::Exclusive, "cancelled after {} ms", 50 * step);
            assert_eq!(sim.holders("lock")[0].mode, Mode::Exclusive, "cancelled after {} ms", 50 * step);
            let beside = other.locker.lock("lock").shared().try_acquire().await.unwrap();
            assert!(beside.is_none(), "a reader beside one who believes to be alone");
        });
    }
}
