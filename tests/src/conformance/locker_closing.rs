//! Closing a locker: what is held through it ends, and so does every wait.

use std::{future::IntoFuture, pin::pin};

use futures_util::future::{Either, select};
use windlass::{ErrorKind, Locker, LostReason};

use crate::place::{Place, task};

pub async fn closed_is_closed(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("lock").await.unwrap();
    let clone = one.clone();
    place.soon("closing", one.close()).await.unwrap();
    assert!(!guard.is_held());
    assert_eq!(guard.check().unwrap_err().lost_reason(), Some(LostReason::SessionEnded));
    assert!(two.lock("lock").try_acquire().await.unwrap().is_some());
    let error = clone.lock("lock").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    place.soon("closing twice", one.close()).await.unwrap();
}

pub async fn those_who_wait_are_refused(place: &dyn Place) {
    if !place.locker().capabilities().unwrap().see {
        return;
    }
    let (one, two) = (place.locker(), place.locker());
    let rt = place.runtime();
    let guard = two.lock("b").await.unwrap();
    let waiter = task(&*rt, one.lock("b").into_future());
    let several = task(&*rt, one.lock_all(["a", "b"]).into_future());
    place.until("both wait", async || waiting(&two, "b").await == 2).await;
    place.soon("closing", one.close()).await.unwrap();
    let error = place.soon("a refusal", waiter).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    let error = place.soon("a refusal", several).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    place.until("nobody waits", async || waiting(&two, "b").await == 0).await;
    place.soon("the other one", two.lock("a").into_future()).await.unwrap().release().await.unwrap();
    guard.check().unwrap();
    guard.release().await.unwrap();
}

/// It was granted, and the locker was closed before the program came to know.
pub async fn a_grant_that_nobody_has_seen_is_given_back(place: &dyn Place) {
    if !place.locker().capabilities().unwrap().see {
        return;
    }
    let (one, two) = (place.locker(), place.locker());
    let guard = two.lock("lock").await.unwrap();
    let mut acquire = one.lock("lock").owner("late").into_future();
    let queued = place.until("it waits", async || waiting(&two, "lock").await == 1);
    match select(&mut acquire, pin!(queued)).await {
        Either::Left((outcome, _)) => panic!("did not have to wait: {outcome:?}"),
        Either::Right(_) => {}
    }
    guard.release().await.unwrap();
    place
        .until("it is granted", async || {
            let all = two.list("lock").await.unwrap();
            all.iter().flat_map(|status| &status.holders).any(|holder| holder.owner.owner == "late")
        })
        .await;
    place.soon("closing", one.close()).await.unwrap();
    let error = place.soon("a refusal", acquire).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    place.soon("the next", two.lock("lock").into_future()).await.unwrap().release().await.unwrap();
}

/// A waiting acquire and a guard that were dropped are gone when the program may end.
pub async fn what_was_given_up_before_is_gone(place: &dyn Place) {
    if !place.locker().capabilities().unwrap().see {
        return;
    }
    let two = place.locker();
    let guard = two.lock("a").await.unwrap();
    for _ in 0..5 {
        let one = place.locker();
        let dropped = one.lock("b").await.unwrap();
        let mut acquire = one.lock("a").into_future();
        let queued = place.until("it waits", async || waiting(&two, "a").await == 1);
        match select(&mut acquire, pin!(queued)).await {
            Either::Left((outcome, _)) => panic!("did not have to wait: {outcome:?}"),
            Either::Right(_) => {}
        }
        drop(acquire);
        drop(dropped);
        place.soon("closing", one.close()).await.unwrap();
        assert_eq!(waiting(&two, "a").await, 0);
        assert!(two.lock("b").try_acquire().await.unwrap().is_some());
    }
    guard.release().await.unwrap();
}

pub async fn a_grant_races_with_the_close(place: &dyn Place) {
    if !place.locker().capabilities().unwrap().see {
        return;
    }
    let rt = place.runtime();
    let two = place.locker();
    for round in 0..30 {
        let one = place.locker();
        let guard = two.lock("lock").await.unwrap();
        let waiter = task(&*rt, one.lock("lock").into_future());
        place.until("it waits", async || waiting(&two, "lock").await == 1).await;
        // One of the two happens on this thread, the other one in the background, and which is first is open.
        let (closed, released) = if round % 2 == 0 {
            let released = task(&*rt, guard.release());
            (place.soon("closing", one.close()).await, place.soon("the release", released).await)
        } else {
            let closing = one.clone();
            let closed = task(&*rt, async move { closing.close().await });
            let released = place.soon("the release", guard.release()).await;
            (place.soon("closing", closed).await, released)
        };
        closed.unwrap();
        released.unwrap();
        match place.soon("an answer", waiter).await {
            Ok(late) => assert_eq!(
                late.check().unwrap_err().lost_reason(),
                Some(LostReason::SessionEnded),
                "a guard of a closed locker"
            ),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{error}"),
        }
        place.soon("the next", two.lock("lock").into_future()).await.unwrap().release().await.unwrap();
    }
}

async fn waiting(locker: &Locker, name: &str) -> usize {
    locker.list(name).await.unwrap().iter().map(|status| status.waiters.len()).sum()
}
