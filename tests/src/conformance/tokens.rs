//! Every grant carries a fencing token greater than those of earlier grants that it conflicts with (guarantee 3).

use windlass::{
    Mode,
    ask::{Ask, Entry},
};

use super::{can_fence, can_force_release, can_permit, can_share, can_steal};
use crate::place::{Place, ask, permit};

pub async fn grow_over_grants(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_fence(place, &*a).await {
        return;
    }
    let mut last = 0;
    for n in 0..200 {
        let client = if n % 3 == 0 { &*a } else { &*b };
        let held = ask("lock", Mode::Exclusive);
        let token = place.take(client, &held).await.fencing_token;
        assert!(token > last, "{token} after {last}");
        last = token;
        place.give_back(client, &[&held]).await;
    }
}

pub async fn grow_across_modes(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_fence(place, &*a).await {
        return;
    }
    let can = a.capabilities();
    let mut modes = vec![Mode::Exclusive];
    modes.extend(can.shared.then_some(Mode::Shared));
    modes.extend(can.upgrade.then_some(Mode::Upgradable));
    modes.extend(can.permit.then(|| permit(2)));
    let mut last = 0;
    for round in 0..40 {
        // Two at once where they fit; whatever follows conflicts with the mode before or with none.
        let mode = modes[(round * 7 + round / 4) % modes.len()];
        let writer = ask("lock", Mode::Exclusive);
        let token = place.take(&*a, &writer).await.fencing_token;
        assert!(token > last, "exclusive: {token} after {last}");
        last = token;
        place.give_back(&*a, &[&writer]).await;
        let (one, two) = (ask("lock", mode), ask("lock", mode));
        let token = place.take(&*b, &one).await.fencing_token;
        assert!(token > last, "{mode}: {token} after {last}");
        let mut most = token;
        if let Some(grant) = place.attempt(&*a, &two).await {
            assert!(grant.fencing_token > last, "{mode}: {} after {last}", grant.fencing_token);
            most = most.max(grant.fencing_token);
        }
        place.give_back(&*a, &[&two]).await;
        place.give_back(&*b, &[&one]).await;
        last = most;
    }
}

/// All clients end, and another comes: nothing of the lock is left but its past.
pub async fn grow_over_clients(place: &dyn Place) {
    if !can_fence(place, &*place.client()).await {
        return;
    }
    let mut last = 0;
    for _ in 0..5 {
        let client = place.client();
        let held = ask("lock", Mode::Exclusive);
        let token = place.take(&*client, &held).await.fencing_token;
        assert!(token > last, "{token} after {last}");
        last = token;
        place.give_back(&*client, &[&held]).await;
    }
}

pub async fn grow_when_taken(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_fence(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Exclusive);
    let mut last = place.take(&*a, &held).await.fencing_token;
    let thief = Ask { entry: Entry::Steal, ..ask("lock", Mode::Exclusive) };
    if can_steal(place, &*a).await {
        let token = place.take(&*b, &thief).await.fencing_token;
        assert!(token > last, "stolen: {token} after {last}");
        last = token;
    }
    if can_force_release(place, &*a).await {
        b.force_release(&held.name, None).await.unwrap();
        let next = ask("lock", Mode::Exclusive);
        let token = place.take(&*a, &next).await.fencing_token;
        assert!(token > last, "forced: {token} after {last}");
        place.give_back(&*a, &[&next]).await;
    }
    place.give_back(&*a, &[&held]).await;
    place.give_back(&*b, &[&thief]).await;
}

pub async fn grow_in_the_order_of_the_grants(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_fence(place, &*a).await {
        return;
    }
    let shares = can_share(place, &*a).await && can_permit(place, &*a).await;
    let mut held = ask("lock", Mode::Exclusive);
    let mut last = place.take(&*a, &held).await.fencing_token;
    let modes = [Mode::Exclusive, if shares { Mode::Shared } else { Mode::Exclusive }];
    let mut waiters = Vec::new();
    for n in 0..6 {
        waiters.push(place.stand_in_line(&b, &ask("lock", modes[n % 2])).await);
    }
    let mut holding = a;
    for waiter in waiters {
        place.give_back(&*holding, &[&held]).await;
        (holding, held) = (b.clone(), waiter.ask.clone());
        let token = waiter.granted(place).await.fencing_token;
        assert!(token > last, "{token} after {last}");
        last = token;
    }
    place.give_back(&*holding, &[&held]).await;
}
