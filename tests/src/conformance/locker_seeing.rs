//! Seeing locks, being told, and counting.

use std::{
    future::IntoFuture,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use windlass::{Mode, Result, Status};

use crate::place::{Place, task};

pub async fn list_shows_holders_and_waiters(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().see {
        return;
    }
    assert!(two.list("").await.unwrap().is_empty());
    let (b, a) = (one.lock("b").owner("bob").await.unwrap(), one.lock("a").owner("ann").await.unwrap());
    let waiter = task(&*place.runtime(), two.lock("b").owner("eve").into_future());
    place.until("it waits", async || two.list("b").await.unwrap()[0].waiters.len() == 1).await;
    let all = two.list("").await.unwrap();
    let names: Vec<_> = all.iter().map(|status| status.name.as_str()).collect();
    assert_eq!(names, ["a", "b"], "sorted by name");
    assert_eq!(all[0].holders[0].owner.owner, "ann");
    assert_eq!(all[1].holders[0].fencing_token, b.fencing_token());
    assert_eq!(all[1].waiters[0].owner.owner, "eve");
    assert!(two.list("c").await.unwrap().is_empty());
    drop((a, b));
    place.soon("the lock", waiter).await.unwrap().release().await.unwrap();
}

pub async fn watch_shows_each_change(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().see {
        return;
    }
    let before = one.lock("a/before").owner("ann").await.unwrap();
    let mut watch = pin!(two.watch("a/").await.unwrap());
    sees(place, &mut watch, "what is there", |status| {
        status.name.as_str() == "a/before" && held_by(status, "ann")
    })
    .await;
    let guard = one.lock("a/new").owner("bob").await.unwrap();
    let elsewhere = one.lock("b").await.unwrap();
    sees(place, &mut watch, "a new holder", |status| {
        status.name.as_str() == "a/new" && held_by(status, "bob")
    })
    .await;
    let waiter = task(&*place.runtime(), one.lock("a/new").owner("eve").into_future());
    sees(place, &mut watch, "a waiter", |status| !status.waiters.is_empty()).await;
    guard.release().await.unwrap();
    let guard = place.soon("the lock", waiter).await.unwrap();
    sees(place, &mut watch, "the next holder", |status| held_by(status, "eve")).await;
    drop((guard, before, elsewhere));
    let mut free = std::collections::BTreeSet::new();
    while free.len() < 2 {
        let status = place.soon("free locks", watch.next()).await.unwrap().unwrap();
        assert!(status.name.as_str().starts_with("a/"), "{status:?}");
        if status.holders.is_empty() && status.waiters.is_empty() {
            free.insert(status.name);
        }
    }
}

pub async fn contended_is_told(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().see {
        return;
    }
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let told = move |_: &windlass::Notice| {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    let guard = one.lock("lock").on_contended(told).await.unwrap();
    place.pause(20).await;
    assert_eq!(count.load(Ordering::SeqCst), 0, "nobody waits");
    let waiter = task(&*place.runtime(), two.lock("lock").into_future());
    place.until("being told", async || count.load(Ordering::SeqCst) == 1).await;
    guard.release().await.unwrap();
    place.soon("the lock", waiter).await.unwrap().release().await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

pub async fn metrics_count(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().see {
        return;
    }
    assert_eq!(one.metrics().unwrap(), windlass::Metrics::default());
    let guard = one.lock("lock").await.unwrap();
    let waiter = task(&*place.runtime(), two.lock("lock").into_future());
    place.until("it waits", async || one.list("").await.unwrap()[0].waiters.len() == 1).await;
    place.pause(20).await;
    guard.release().await.unwrap();
    place.soon("the lock", waiter).await.unwrap().release().await.unwrap();
    let (first, second) = (one.metrics().unwrap(), two.metrics().unwrap());
    assert_eq!((first.acquired, first.waited, second.acquired, second.waited), (1, 0, 1, 1));
    assert!(second.wait_micros >= 15_000 && first.held_micros >= 15_000, "{first:?} {second:?}");
    assert_eq!((first.timeouts, first.lost_expired, first.lost_unreachable), (0, 0, 0));
    let guard = one.lock("lock").await.unwrap();
    let timeout = two.lock("lock").timeout(Duration::from_millis(10));
    place.soon("a timeout", timeout.into_future()).await.unwrap_err();
    assert_eq!(two.metrics().unwrap().timeouts, 1);
    guard.release().await.unwrap();
}

pub async fn metadata_is_shown(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    if !one.capabilities().unwrap().see {
        return;
    }
    let guard = one.lock("lock").metadata("job", "42").metadata("why", "\u{1f319}").await.unwrap();
    let status = &two.list("lock").await.unwrap()[0];
    assert_eq!(status.holders[0].owner.metadata["job"], "42");
    assert_eq!(status.holders[0].owner.metadata["why"], "\u{1f319}");
    assert_eq!(status.holders[0].mode, Mode::Exclusive);
    guard.release().await.unwrap();
}

pub async fn owners_are_told(place: &dyn Place) {
    let one = place.locker();
    if !one.capabilities().unwrap().see {
        return;
    }
    let guard = one.lock("lock").await.unwrap();
    let owner = one.list("lock").await.unwrap()[0].holders[0].owner.owner.clone();
    assert!(owner.contains(&std::process::id().to_string()), "user@host:pid, and not {owner:?}");
    guard.release().await.unwrap();
}

/// No text that people see holds what proves ownership.
pub async fn no_secret_in_text(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("lock").await.unwrap();
    let error = place
        .soon("a timeout", two.lock("lock").timeout(Duration::from_millis(10)).into_future())
        .await
        .unwrap_err();
    let mut texts = format!("{one:?} {guard:?} {error:?} {error:#} {:?}", one.list("").await);
    let ticket = guard.detach().unwrap();
    texts += &format!("{ticket:?}");
    let secret = ticket.reveal().split(':').nth(1).unwrap().to_owned();
    assert_eq!(secret.len(), 32);
    let decimal = u128::from_str_radix(&secret, 16).unwrap().to_string();
    assert!(!texts.contains(&secret) && !texts.contains(&decimal), "{texts}");
    one.attach(&ticket).await.unwrap().release().await.unwrap();
}

fn held_by(status: &Status, owner: &str) -> bool {
    status.holders.iter().any(|holder| holder.owner.owner == owner)
}

async fn sees(
    place: &dyn Place,
    watch: &mut (impl Stream<Item = Result<Status>> + Unpin),
    what: &str,
    so: impl Fn(&Status) -> bool,
) {
    while !so(&place.soon(what, watch.next()).await.expect("the watch goes on").unwrap()) {}
}
