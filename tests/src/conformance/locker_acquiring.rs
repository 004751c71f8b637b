//! Asking for a lock through the public API.

use std::{
    future::IntoFuture,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use windlass::{ErrorKind, Locker, Mode};

use crate::place::{Place, in_vain, polled, task, yield_now};

const SHORT: Duration = Duration::from_millis(80);

pub async fn a_guard_holds(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = place.soon("a lock", one.lock("lock").into_future()).await.unwrap();
    assert!(guard.is_held());
    guard.check().unwrap();
    assert_eq!((guard.name().as_str(), guard.mode()), ("lock", Mode::Exclusive));
    assert_eq!(guard.fencing_token() > 0, one.capabilities().unwrap().fencing_token);
    assert!(two.lock("lock").try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    let next = two.lock("lock").try_acquire().await.unwrap().expect("free");
    next.release().await.unwrap();
}

pub async fn timeout_says_who_holds_it(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().see {
        return;
    }
    let guard = one.lock("lock").owner("ann@host:1").await.unwrap();
    let mut waits = 0;
    let lock = || {
        waits += 1;
        two.lock("lock")
    };
    let error = place.soon("a timeout", in_vain(lock)).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let waiting = error.waiting().expect("who holds it");
    assert_eq!(waiting.holders.len(), 1);
    assert_eq!(waiting.holders[0].owner.owner, "ann@host:1");
    assert_eq!(waiting.holders[0].fencing_token, guard.fencing_token());
    assert!(waiting.place.is_none_or(|place| place == 1), "{waiting}");
    assert!(error.to_string().contains("ann@host:1"), "{error}");
    free_of_waiters(place, &one).await;
    assert_eq!(two.metrics().unwrap().timeouts, waits);
    guard.release().await.unwrap();
}

pub async fn timeout_of_zero(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = place
        .soon("a free lock", one.lock("lock").timeout(Duration::from_secs(30)).into_future())
        .await
        .unwrap();
    let error =
        place.soon("a timeout", two.lock("lock").timeout(Duration::ZERO).into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    free_of_waiters(place, &one).await;
    guard.release().await.unwrap();
}

pub async fn try_acquire_does_not_wait(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("lock").await.unwrap();
    assert!(place.soon("a try", two.lock("lock").try_acquire()).await.unwrap().is_none());
    free_of_waiters(place, &one).await;
    guard.release().await.unwrap();
    let guard = place.soon("a try", two.lock("lock").try_acquire()).await.unwrap().expect("free");
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

pub async fn invalid_names_are_refused(place: &dyn Place) {
    let locker = place.locker();
    for name in [String::new(), "x".repeat(1025), "\u{1f512}".repeat(257)] {
        let error = locker.lock(&name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
        let error = locker.lock(&name).try_acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
        let error = locker.lock_all(["fine", &name]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
        let error = locker.force_release(&name, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
    }
}

pub async fn contradictions_are_refused(place: &dyn Place) {
    let locker = place.locker();
    let lock = || locker.lock("lock");
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(2));
    for contradiction in [
        lock().ttl(Duration::from_millis(999)),
        lock().ttl(Duration::from_secs(3601)),
        lock().max_hold(Duration::ZERO),
        lock().max_hold(short).hold_at_least(long),
        lock().max_hold(short).random_delay(long),
        lock().permit(0),
        lock().shared().steal(),
        lock().metadata("key", "x".repeat(3000)),
    ] {
        let error = contradiction.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let error = lock().timeout(short).try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = locker.lock_all(["a", "b", "a"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    if locker.capabilities().unwrap().see {
        assert!(locker.list("").await.unwrap().is_empty(), "nothing was asked for");
    }
}

pub async fn what_cannot_be_done_is_refused(place: &dyn Place) {
    let locker = place.locker();
    let can = locker.capabilities().unwrap();
    let lock = || locker.lock("lock");
    for (can, asked) in [
        (can.shared, lock().shared()),
        (can.upgrade, lock().upgradable()),
        (can.permit, lock().permit(2)),
        (can.steal, lock().steal()),
    ] {
        match place.soon("an answer", asked.into_future()).await {
            Ok(guard) => {
                assert!(can, "{guard:?}");
                guard.release().await.unwrap();
            }
            Err(error) => {
                assert!(!can, "{error}");
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            }
        }
    }
    match locker.force_release("lock", None).await {
        Ok(taken) => assert!(can.force_release && taken.is_empty()),
        Err(error) => assert!(!can.force_release && error.kind() == ErrorKind::Unsupported, "{error}"),
    }
}

/// Told once, and what the callback returned is dropped when the wait is over, however it ends.
pub async fn on_wait_wraps_the_wait(place: &dyn Place) {
    if !place.locker().capabilities().unwrap().see {
        return;
    }
    struct Wrap(Arc<Mutex<Vec<String>>>);
    impl Drop for Wrap {
        fn drop(&mut self) {
            self.0.lock().unwrap().push("over".into());
        }
    }
    let (one, two) = (place.locker(), place.locker());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let waits = || {
        let seen = seen.clone();
        two.lock("lock").on_wait(move |waiting| {
            seen.lock().unwrap().push(waiting.holders[0].owner.owner.clone());
            Wrap(seen.clone())
        })
    };
    let guard = one.lock("lock").owner("holder").await.unwrap();
    let error = place.soon("a timeout", in_vain(waits)).await;
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(*seen.lock().unwrap(), ["holder", "over"], "by a timeout");

    seen.lock().unwrap().clear();
    let waiter = task(&*place.runtime(), waits().into_future());
    place.until("it waits", async || !seen.lock().unwrap().is_empty()).await;
    guard.release().await.unwrap();
    let guard = place.soon("the lock", waiter).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["holder", "over"], "by the grant");
    guard.release().await.unwrap();

    seen.lock().unwrap().clear();
    place.soon("a free lock", waits().into_future()).await.unwrap().release().await.unwrap();
    assert!(seen.lock().unwrap().is_empty(), "there was no wait");
}

pub async fn random_delay_is_spent_holding(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let acquired = Arc::new(Mutex::new(false));
    let tell = acquired.clone();
    let delayed = one
        .lock("lock")
        .random_delay(Duration::from_millis(60))
        .on_acquired(move |_| *tell.lock().unwrap() = true);
    let delayed = task(&*place.runtime(), delayed.into_future());
    place.until("it is acquired", async || *acquired.lock().unwrap()).await;
    assert!(two.lock("lock").try_acquire().await.unwrap().is_none());
    place.soon("the delay", delayed).await.unwrap().release().await.unwrap();
    // Dropped in the middle of the delay, it is given back.
    let dropped = polled(1, one.lock("lock").random_delay(Duration::from_secs(3600)).into_future()).await;
    assert!(dropped.is_none());
    place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
}

pub async fn lock_all_in_any_order(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let rt = place.runtime();
    let workers = [(one, ["a", "b", "c"]), (two, ["c", "b", "a"])].map(|(locker, names)| {
        task(&*rt, async move {
            for _ in 0..30 {
                let guards = locker.lock_all(names).await.unwrap();
                yield_now().await;
                drop(guards);
            }
        })
    });
    for worker in workers {
        place.soon("all turns", worker).await;
    }
}

pub async fn lock_all_gives_guards_in_order(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guards = one.lock_all(["c", "a", "b"]).with(|lock| lock.owner("all")).await.unwrap();
    let names: Vec<_> = guards.iter().map(|guard| guard.name().as_str()).collect();
    assert_eq!(names, ["c", "a", "b"]);
    for guard in &guards {
        assert!(two.lock(guard.name().as_str()).try_acquire().await.unwrap().is_none());
    }
    if one.capabilities().unwrap().see {
        assert!(two.list("").await.unwrap().iter().all(|status| status.holders[0].owner.owner == "all"));
    }
    drop(guards);
    assert!(one.lock_all(Vec::<String>::new()).await.unwrap().is_empty(), "nothing is quickly had");
}

pub async fn lock_all_none(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("b").await.unwrap();
    assert!(two.lock_all(["a", "b", "c"]).try_acquire().await.unwrap().is_none());
    let all = two.lock_all(["a", "b", "c"]).with(|lock| lock.timeout(SHORT));
    let error = place.soon("a timeout", all.into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    place
        .until("the others are free", async || {
            let Some(free) = one.lock_all(["a", "c"]).try_acquire().await.unwrap() else { return false };
            for guard in free {
                // Dropped, it would be released in the background, and not yet be free below.
                guard.release().await.unwrap();
            }
            true
        })
        .await;
    guard.release().await.unwrap();
    let guards = two.lock_all(["a", "b", "c"]).try_acquire().await.unwrap().expect("all are free");
    assert_eq!(guards.len(), 3);
}

pub async fn a_dropped_acquire_leaves_nothing(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    for polls in 0..8 {
        let guard = one.lock("lock").await.unwrap();
        let acquire = two.lock("lock").into_future();
        let limit = place.runtime().sleep(Duration::from_millis(10));
        futures_util::future::select(std::pin::pin!(polled(polls, acquire)), limit).await;
        free_of_waiters(place, &one).await;
        guard.release().await.unwrap();
        place.until("it is free", async || one.lock("lock").try_acquire().await.unwrap().is_some()).await;
    }
    for polls in 0..1000 {
        let done = polled(polls, one.lock("lock").into_future()).await;
        let done = done.map(|outcome| drop(outcome.unwrap())).is_some();
        place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
        if done {
            return;
        }
    }
}

pub async fn errors_say_where(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("a\nlock").await.unwrap();
    let error = place.soon("a timeout", two.lock("a\nlock").timeout(SHORT).into_future()).await.unwrap_err();
    assert_eq!(error.lock().map(windlass::Name::as_str), Some("a\nlock"));
    assert_eq!(error.backend(), Some(&*one.url().unwrap()));
    let text = error.to_string();
    assert!(text.contains("a\\nlock") && !text.contains('\n'), "{text}");
    guard.release().await.unwrap();
}

pub async fn a_timeout_names_what_was_asked_for(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("second").await.unwrap();
    let error = place.soon("a timeout", two.lock("second").timeout(SHORT).into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(error.lock().map(windlass::Name::as_str), Some("second"));
    let names = ["third", "first", "second"];
    let all = two.lock_all(names).with(|lock| lock.timeout(SHORT));
    let error = place.soon("a timeout", all.into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(error.lock(), None, "it is not about one of them");
    assert_eq!(error.backend(), Some(&*one.url().unwrap()));
    let text = error.to_string();
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
    guard.release().await.unwrap();
}

/// It runs where the program waits, so its panic is the program's.
pub async fn a_panic_in_on_acquired_leaves_nothing(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let panics = |_: &windlass::Notice| std::panic::resume_unwind(Box::new("the program's own"));
    let acquire = async { drop(one.lock("a").on_acquired(panics).await) };
    let unwound = place.soon("the panic", AssertUnwindSafe(acquire).catch_unwind()).await;
    assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"the program's own"));
    let acquire = async { drop(one.lock_all(["a", "b"]).with(|lock| lock.on_acquired(panics)).await) };
    let unwound = place.soon("the panic", AssertUnwindSafe(acquire).catch_unwind()).await;
    assert!(unwound.is_err());
    place
        .until("they are free", async || two.lock_all(["a", "b"]).try_acquire().await.unwrap().is_some())
        .await;
    one.close().await.unwrap();
    assert_eq!(one.metrics().unwrap().lost_session_ended, 0, "still held as far as the locker knows");
}

async fn free_of_waiters(place: &dyn Place, locker: &Locker) {
    if !locker.capabilities().unwrap().see {
        return;
    }
    place
        .until("nobody waits", async || {
            locker.list("").await.unwrap().iter().all(|status| status.waiters.is_empty())
        })
        .await;
}
