//! Claims that conflict are never granted at once (guarantee 1).

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use futures_util::future::join_all;
use windlass::{Backend, Mode};

use super::{can_permit, can_share, can_steal, can_upgrade};
use crate::place::{Place, ask, permit, task, yield_now};

pub async fn exclusive_excludes(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask("lock", Mode::Exclusive);
    let grant = place.take(&*a, &held).await;
    assert_eq!(grant.mode, Mode::Exclusive);
    assert!(!place.could_have(&*b, "lock", Mode::Exclusive).await, "held by another client");
    assert!(
        !place.could_have(&*a, "lock", Mode::Exclusive).await,
        "held by the same client: a claim is not re-entrant"
    );
    assert!(place.could_have(&*b, "another", Mode::Exclusive).await);
    place.give_back(&*a, &[&held]).await;
    assert!(place.could_have(&*b, "lock", Mode::Exclusive).await, "released");
}

pub async fn modes_fit_as_the_matrix_says(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let can = a.capabilities();
    let modes = [
        (Mode::Exclusive, true),
        (Mode::Shared, can.shared),
        (Mode::Upgradable, can.upgrade),
        (permit(2), can.permit),
    ];
    let modes: Vec<Mode> = modes.into_iter().filter(|(_, can)| *can).map(|(mode, _)| mode).collect();
    for &held in &modes {
        for &asked in &modes {
            let fit = matches!(
                (held, asked),
                (Mode::Shared, Mode::Shared | Mode::Upgradable)
                    | (Mode::Upgradable, Mode::Shared)
                    | (Mode::Permit(_), Mode::Permit(_))
            );
            let first = ask("lock", held);
            assert_eq!(place.take(&*a, &first).await.mode, held);
            for client in [&a, &b] {
                let had = place.could_have(&**client, "lock", asked).await;
                assert_eq!(had, fit, "{asked} beside {held}");
            }
            place.give_back(&*a, &[&first]).await;
        }
    }
}

pub async fn permits_up_to_the_limit(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_permit(place, &*a).await {
        return;
    }
    let held: Vec<_> = (0..3).map(|_| ask("pool", permit(3))).collect();
    for (n, ask) in held.iter().enumerate() {
        place.take(if n % 2 == 0 { &*a } else { &*b }, ask).await;
    }
    assert!(!place.could_have(&*b, "pool", permit(3)).await, "three of three are taken");
    place.give_back(&*b, &[&held[1]]).await;
    assert!(place.could_have(&*a, "pool", permit(3)).await, "one was given back");
    place.give_back(&*a, &[&held[0], &held[2]]).await;
}

pub async fn the_smallest_limit_counts(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_permit(place, &*a).await {
        return;
    }
    let (one, two) = (ask("pool", permit(3)), ask("pool", permit(3)));
    place.take(&*a, &one).await;
    assert!(!place.could_have(&*b, "pool", permit(1)).await, "the one who asks allows one");
    place.take(&*b, &two).await;
    assert!(!place.could_have(&*b, "pool", permit(2)).await, "the one who asks allows two");
    assert!(place.could_have(&*b, "pool", permit(5)).await, "a third of three");
    place.give_back(&*a, &[&one]).await;
    place.give_back(&*b, &[&two]).await;

    let narrow = ask("pool", permit(1));
    place.take(&*a, &narrow).await;
    assert!(!place.could_have(&*b, "pool", permit(3)).await, "the one who holds allows one");
    place.give_back(&*a, &[&narrow]).await;
}

pub async fn permits_and_others_exclude_each_other(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_permit(place, &*a).await || !can_share(place, &*a).await {
        return;
    }
    for other in [Mode::Exclusive, Mode::Shared] {
        let (one, two) = (ask("pool", permit(3)), ask("pool", permit(3)));
        place.take(&*a, &one).await;
        place.take(&*b, &two).await;
        place.give_back(&*a, &[&one]).await;
        assert!(!place.could_have(&*a, "pool", other).await, "{other} beside the permit that is left");
        place.give_back(&*b, &[&two]).await;
        assert!(place.could_have(&*a, "pool", other).await);
    }
}

pub async fn one_counter_many_clients(place: &dyn Place) {
    let (inside, counter) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicU64::new(0)));
    let workers = (0..6).map(|_| {
        let (client, inside, counter) = (place.client(), inside.clone(), counter.clone());
        task(&*place.runtime(), async move {
            for _ in 0..40 {
                let ask = ask("counter", Mode::Exclusive);
                client.acquire(&ask, &|_| {}).await.unwrap().unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
                let seen = counter.load(Ordering::SeqCst);
                yield_now().await;
                counter.store(seen + 1, Ordering::SeqCst);
                inside.fetch_sub(1, Ordering::SeqCst);
                client.release(&[crate::place::claim(&ask)]).await.unwrap();
            }
        })
    });
    place.soon("all turns", join_all(workers)).await;
    assert_eq!(counter.load(Ordering::SeqCst), 240);
}

pub async fn readers_and_writers_never_overlap(place: &dyn Place) {
    if !can_share(place, &*place.client()).await {
        return;
    }
    // Readers count one each, a writer a thousand.
    let inside = Arc::new(AtomicI64::new(0));
    let workers = (0..8).map(|n| {
        let (client, inside) = (place.client(), inside.clone());
        task(&*place.runtime(), async move {
            for _ in 0..25 {
                let (mode, weight) = if n < 2 { (Mode::Exclusive, 1000) } else { (Mode::Shared, 1) };
                let ask = ask("document", mode);
                client.acquire(&ask, &|_| {}).await.unwrap().unwrap();
                let before = inside.fetch_add(weight, Ordering::SeqCst);
                assert!(before == 0 || (weight == 1 && before < 1000), "{mode} beside {before}");
                yield_now().await;
                inside.fetch_sub(weight, Ordering::SeqCst);
                client.release(&[crate::place::claim(&ask)]).await.unwrap();
            }
        })
    });
    place.soon("all turns", join_all(workers)).await;
}

pub async fn unsupported_modes_are_refused(place: &dyn Place) {
    let client: Arc<dyn Backend> = place.client();
    can_share(place, &*client).await;
    can_permit(place, &*client).await;
    can_upgrade(place, &*client).await;
    can_steal(place, &*client).await;
}
