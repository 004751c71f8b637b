//! Losing a lock: told once, in time, and nobody else is harmed (guarantees 2 and 12).

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use windlass::{ErrorKind, Guard, Locker, LostReason};

use crate::place::Place;

pub async fn stolen_is_told_once(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().steal {
        return;
    }
    let (told, count) = counter();
    let guard = one.lock("lock").on_lost(told).await.unwrap();
    let thief = place.soon("a theft", two.lock("lock").steal().into_future()).await.unwrap();
    assert_eq!(place.soon("the loss", guard.lost()).await, LostReason::Stolen);
    lost(&guard, LostReason::Stolen);
    assert!(thief.is_held() && thief.fencing_token() > guard.fencing_token());
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost(LostReason::Stolen));
    once(place, &count).await;
    assert!(thief.is_held(), "the release of what was lost harms nobody");
    assert_eq!(one.metrics().unwrap().lost_stolen, 1);
    thief.release().await.unwrap();
}

pub async fn forced_is_told_once(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().force_release {
        return;
    }
    let (told, count) = counter();
    let guard = one.lock("lock").owner("holder").on_lost(told).await.unwrap();
    let taken = place.soon("an operator", two.force_release("lock", None)).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].owner.owner, "holder");
    assert_eq!(place.soon("the loss", guard.lost()).await, LostReason::ForceReleased);
    lost(&guard, LostReason::ForceReleased);
    drop(guard);
    once(place, &count).await;
    assert_eq!(one.metrics().unwrap().lost_force_released, 1);
    assert!(two.lock("lock").try_acquire().await.unwrap().is_some());
}

pub async fn release_of_a_lost_lock_says_so(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let Some(guard) = robbed(place, &one, &two).await else { return };
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost(LostReason::ForceReleased));
    assert_eq!(error.lock().map(windlass::Name::as_str), Some("lock"));
}

pub async fn run_is_dropped_on_loss(place: &dyn Place) {
    struct Dropped(Arc<AtomicU32>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().force_release {
        return;
    }
    let dropped = Arc::new(AtomicU32::new(0));
    let work = one.lock("lock").run(async |_guard| {
        let _work = Dropped(dropped.clone());
        two.force_release("lock", None).await.unwrap();
        std::future::pending::<()>().await;
    });
    let error = place.soon("the end of the work", work).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost(LostReason::ForceReleased), "{error}");
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(two.lock("lock").try_acquire().await.unwrap().is_some());
}

/// First the signal, then a TTL in which the work can end, and only then the loss.
pub async fn max_hold_signals_then_ends(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let (max_hold, ttl) = (Duration::from_millis(50), Duration::from_secs(1));
    let (too_long, too_long_count) = counter();
    let (told, lost_count) = counter();
    let rt = place.runtime();
    let start = rt.now();
    let lock = one.lock("lock").ttl(ttl).max_hold(max_hold);
    let guard = lock.on_held_too_long(too_long).on_lost(told).await.unwrap();
    once(place, &too_long_count).await;
    if rt.now().since(start) < ttl / 2 {
        assert!(guard.is_held(), "told, and not yet lost");
        assert_eq!(lost_count.load(Ordering::SeqCst), 0);
        assert!(two.lock("lock").try_acquire().await.unwrap().is_none());
    }
    assert_eq!(place.soon("the loss", guard.lost()).await, LostReason::Expired);
    assert!(rt.now().since(start) >= ttl / 2, "the work has time to end");
    lost(&guard, LostReason::Expired);
    place.soon("the next", two.lock("lock").into_future()).await.unwrap().release().await.unwrap();
    once(place, &lost_count).await;
    once(place, &too_long_count).await;
    // What ends in time is told nothing.
    let (too_long, count) = counter();
    let guard = one.lock("other").max_hold(Duration::from_secs(60)).on_held_too_long(too_long).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

pub async fn a_panic_in_a_callback_harms_nobody(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().force_release {
        return;
    }
    let other = one.lock("other").await.unwrap();
    for _ in 0..3 {
        let (tell, told) = mpsc::channel();
        let on_lost = move |_: &windlass::Notice| {
            tell.send(()).unwrap();
            std::panic::resume_unwind(Box::new(()));
        };
        let guard = one.lock("lock").on_lost(on_lost).await.unwrap();
        two.force_release("lock", None).await.unwrap();
        place.soon("the loss", guard.lost()).await;
        place.until("the callback", async || told.try_recv().is_ok()).await;
    }
    assert!(other.is_held());
    other.release().await.unwrap();
}

pub async fn a_loss_harms_one_guard_only(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().force_release {
        return;
    }
    let (a, b) = (one.lock("a").await.unwrap(), one.lock("b").await.unwrap());
    two.force_release("a", None).await.unwrap();
    place.soon("the loss", a.lost()).await;
    assert!(b.is_held());
    assert!(two.lock("b").try_acquire().await.unwrap().is_none());
    b.release().await.unwrap();
}

fn counter() -> (impl Fn(&windlass::Notice) + Send + Sync + 'static, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let told = move |_: &windlass::Notice| {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    (told, count)
}

async fn once(place: &dyn Place, count: &AtomicU32) {
    place.until("the callback", async || count.load(Ordering::SeqCst) > 0).await;
    place.pause(20).await;
    assert_eq!(count.load(Ordering::SeqCst), 1, "told exactly once");
}

fn lost(guard: &Guard, reason: LostReason) {
    assert!(!guard.is_held());
    assert_eq!(guard.check().unwrap_err().kind(), ErrorKind::Lost(reason));
}

async fn robbed(place: &dyn Place, one: &Locker, two: &Locker) -> Option<Guard> {
    if !one.capabilities().unwrap().force_release {
        return None;
    }
    let guard = one.lock("lock").await.unwrap();
    two.force_release("lock", None).await.unwrap();
    place.soon("the loss", guard.lost()).await;
    Some(guard)
}
