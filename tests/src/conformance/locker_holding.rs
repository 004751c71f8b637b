//! Holding a lock through the public API, changing it, handing it on and releasing it.

use std::{future::IntoFuture, time::Duration};

use windlass::{ErrorKind, Mode, Ticket};

use crate::place::{Place, task};

const SHORT: Duration = Duration::from_millis(80);

pub async fn dropping_releases(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    drop(one.lock("lock").await.unwrap());
    place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
    // Unwinding drops, too.
    let guard = one.lock("lock").await.unwrap();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _guard = guard;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(unwound.is_err());
    place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
}

pub async fn release_is_final(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    for _ in 0..20 {
        one.lock("lock").await.unwrap().release().await.unwrap();
        let next = two.lock("lock").try_acquire().await.unwrap().expect("free once release() is back");
        next.release().await.unwrap();
    }
    // A release that nobody waits for goes on.
    let guard = one.lock("lock").await.unwrap();
    drop(guard.release());
    place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
}

pub async fn hold_at_least_outlives_the_release(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let rt = place.runtime();
    let start = rt.now();
    drop(one.lock("lock").hold_at_least(SHORT).await.unwrap());
    let guard = place.soon("the next", two.lock("lock").into_future()).await.unwrap();
    assert!(rt.now().since(start) >= SHORT);
    guard.release().await.unwrap();
    let start = rt.now();
    one.lock("lock").hold_at_least(SHORT).await.unwrap().release().await.unwrap();
    assert!(rt.now().since(start) >= SHORT, "release() waits for it");
}

pub async fn downgrade_and_upgrade(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let can = one.capabilities().unwrap();
    if can.downgrade {
        let guard = one.lock("lock").await.unwrap();
        guard.downgrade().await.unwrap();
        assert_eq!(guard.mode(), Mode::Shared);
        let beside = two.lock("lock").shared().try_acquire().await.unwrap().expect("shared now");
        guard.downgrade().await.unwrap();
        let error = guard.upgrade(None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(guard.is_held() && beside.is_held());
    } else {
        let guard = one.lock("lock").await.unwrap();
        assert_eq!(guard.downgrade().await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    if can.upgrade {
        place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
        let guard = one.lock("lock").upgradable().await.unwrap();
        let before = guard.fencing_token();
        let reader = two.lock("lock").shared().await.unwrap();
        let (upgraded, ()) = place
            .soon("an upgrade", futures_util::future::join(guard.upgrade(None), async { drop(reader) }))
            .await;
        upgraded.unwrap();
        assert_eq!(guard.mode(), Mode::Exclusive);
        assert!(guard.fencing_token() > before);
        guard.upgrade(None).await.unwrap();
        assert!(two.lock("lock").shared().try_acquire().await.unwrap().is_none());
    }
}

pub async fn upgrade_times_out(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().upgrade {
        return;
    }
    let guard = one.lock("lock").upgradable().await.unwrap();
    let reader = two.lock("lock").shared().await.unwrap();
    let error = place.soon("a timeout", guard.upgrade(SHORT)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(guard.mode(), Mode::Upgradable);
    guard.check().unwrap();
    place
        .until("shared claims come in again", async || {
            two.lock("lock").shared().try_acquire().await.unwrap().is_some()
        })
        .await;
    drop(reader);
    place.soon("an upgrade", guard.upgrade(Duration::from_secs(10))).await.unwrap();
    guard.release().await.unwrap();
}

pub async fn run_gives_the_output(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let ran = one
        .lock("lock")
        .run(async |guard| {
            assert!(two.lock("lock").try_acquire().await.unwrap().is_none());
            place.pause(10).await;
            guard.is_held()
        })
        .await
        .unwrap();
    assert!(ran.output);
    assert!(ran.held_for >= Duration::from_millis(10));
    assert!(two.lock("lock").try_acquire().await.unwrap().is_some(), "released when run() is back");
}

pub async fn detached_and_attached(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("a:lock").await.unwrap();
    let token = guard.fencing_token();
    let ticket = guard.detach().unwrap().reveal();
    assert!(two.lock("a:lock").try_acquire().await.unwrap().is_none(), "it lives on");
    let ticket: Ticket = ticket.parse().unwrap();
    assert_eq!(ticket.name().as_str(), "a:lock");
    let guard = place.soon("attaching", one.attach(&ticket)).await.unwrap();
    assert_eq!((guard.fencing_token(), guard.mode()), (token, Mode::Exclusive));
    assert!(guard.is_held());
    assert!(two.lock("a:lock").try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    assert!(two.lock("a:lock").try_acquire().await.unwrap().is_some());
    let error = place.soon("attaching", one.attach(&ticket)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotHeld, "{error}");
}

pub async fn attached_in_another_locker(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let ticket = one.lock("lock").await.unwrap().detach().unwrap();
    let guard = place.soon("attaching", two.attach(&ticket)).await.unwrap();
    assert!(guard.is_held());
    // The first one has no more to do with it.
    one.close().await.unwrap();
    guard.check().unwrap();
    let third = place.locker();
    assert!(third.lock("lock").try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    assert!(third.lock("lock").try_acquire().await.unwrap().is_some());
}

pub async fn a_ticket_is_for_one_guard(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let ticket = one.lock("lock").await.unwrap().detach().unwrap();
    let guard = place.soon("attaching", one.attach(&ticket)).await.unwrap();
    for _ in 0..2 {
        let error = place.soon("a refusal", one.attach(&ticket)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.lock().map(windlass::Name::as_str), Some("lock"));
    }
    guard.check().unwrap();
    assert!(two.lock("lock").try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    assert!(two.lock("lock").try_acquire().await.unwrap().is_some());
}

pub async fn detached_is_not_released(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let ticket = one.lock("lock").await.unwrap().detach().unwrap();
    place.pause(30).await;
    assert!(two.lock("lock").try_acquire().await.unwrap().is_none());
    one.attach(&ticket).await.unwrap().release().await.unwrap();
}

pub async fn a_wrong_ticket_is_refused(place: &dyn Place) {
    let locker = place.locker();
    let guard = locker.lock("lock").await.unwrap();
    let forged = format!("windlass1:{:032x}:{}:10000:x:lock", 12345, guard.fencing_token());
    let error = place.soon("a refusal", locker.attach(&forged.parse().unwrap())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotHeld, "{error}");
    assert!(guard.is_held());
    for text in ["", "windlass1", "windlass1:zz:1:1:x:lock", "some other text"] {
        assert_eq!(text.parse::<Ticket>().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    guard.release().await.unwrap();
}

pub async fn a_claim_lives_longer_than_its_ttl(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("lock").ttl(Duration::from_secs(3)).await.unwrap();
    let waiter = task(&*place.runtime(), two.lock("lock").into_future());
    place.pause(4500).await;
    assert!(guard.is_held());
    guard.check().unwrap();
    guard.release().await.unwrap();
    place.soon("the next", waiter).await.unwrap().release().await.unwrap();
}
