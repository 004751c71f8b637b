//! Changing a held claim in place.

use windlass::{ErrorKind, Mode};

use super::{can_downgrade, can_upgrade};
use crate::place::{Place, ask, ask_as, claim, polled};

pub async fn downgrade_lets_shared_in(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_downgrade(place, &*a).await {
        return;
    }
    let writer = ask_as("writer", "lock", Mode::Exclusive);
    let before = place.take(&*a, &writer).await;
    let one = place.stand_in_line(&b, &ask_as("one", "lock", Mode::Shared)).await;
    let two = place.stand_in_line(&a, &ask_as("two", "lock", Mode::Shared)).await;
    let after = place.soon("a downgrade", a.change(&claim(&writer), Mode::Shared)).await.unwrap();
    assert_eq!(after.mode, Mode::Shared);
    assert!(after.fencing_token >= before.fencing_token);
    let (one_asked, two_asked) = (one.ask.clone(), two.ask.clone());
    one.granted(place).await;
    two.granted(place).await;
    assert_eq!(place.queue(&*b, "lock").await, "one two writer /");
    assert!(!place.could_have(&*b, "lock", Mode::Exclusive).await, "without a gap");
    // What is shared already may be said again.
    place.soon("a downgrade", a.change(&claim(&writer), Mode::Shared)).await.unwrap();
    place.give_back(&*a, &[&writer, &two_asked]).await;
    assert!(!place.could_have(&*a, "lock", Mode::Exclusive).await);
    place.give_back(&*b, &[&one_asked]).await;
}

pub async fn downgrade_keeps_the_order(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_downgrade(place, &*a).await {
        return;
    }
    let writer = ask_as("writer", "lock", Mode::Exclusive);
    place.take(&*a, &writer).await;
    let mut second = place.stand_in_line(&b, &ask_as("second", "lock", Mode::Exclusive)).await;
    let mut reader = place.stand_in_line(&b, &ask_as("reader", "lock", Mode::Shared)).await;
    place.soon("a downgrade", a.change(&claim(&writer), Mode::Shared)).await.unwrap();
    assert_eq!(place.queue(&*b, "lock").await, "writer / second reader");
    assert!(!second.is_done() && !reader.is_done(), "a waiting exclusive claim holds back later shared ones");
    place.give_back(&*a, &[&writer]).await;
    let asked = second.ask.clone();
    second.granted(place).await;
    place.give_back(&*b, &[&asked]).await;
    let asked = reader.ask.clone();
    reader.granted(place).await;
    place.give_back(&*b, &[&asked]).await;
}

pub async fn upgrade_waits_for_the_others(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await {
        return;
    }
    let upgradable = ask_as("upgradable", "lock", Mode::Upgradable);
    let before = place.take(&*a, &upgradable).await;
    let reader = ask_as("reader", "lock", Mode::Shared);
    let reading = place.take(&*b, &reader).await;
    let mut upgrade = place.change_in_background(&a, &upgradable, Mode::Exclusive);
    place
        .until("new shared claims are held back", async || !place.could_have(&*b, "lock", Mode::Shared).await)
        .await;
    assert!(!upgrade.is_done(), "somebody still reads");
    place.give_back(&*b, &[&reader]).await;
    let after = upgrade.granted(place).await;
    assert_eq!(after.mode, Mode::Exclusive);
    assert!(after.fencing_token > before.fencing_token.max(reading.fencing_token));
    assert!(!place.could_have(&*b, "lock", Mode::Shared).await, "exclusive now");
    place.give_back(&*a, &[&upgradable]).await;
}

pub async fn upgrade_alone_is_immediate(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Upgradable);
    let before = place.take(&*a, &held).await;
    let after = place.soon("an upgrade", a.change(&claim(&held), Mode::Exclusive)).await.unwrap();
    assert_eq!(after.mode, Mode::Exclusive);
    assert!(after.fencing_token >= before.fencing_token);
    assert!(!place.could_have(&*b, "lock", Mode::Shared).await);
    place.give_back(&*a, &[&held]).await;
    assert!(place.could_have(&*b, "lock", Mode::Exclusive).await);
}

pub async fn upgrade_called_off(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await {
        return;
    }
    let (held, reader) = (ask("lock", Mode::Upgradable), ask("lock", Mode::Shared));
    place.take(&*a, &held).await;
    place.take(&*b, &reader).await;
    let upgrade = place.change_in_background(&a, &held, Mode::Exclusive);
    place
        .until("new shared claims are held back", async || !place.could_have(&*b, "lock", Mode::Shared).await)
        .await;
    upgrade.drop_future().await;
    let grant = place.soon("calling off", a.change(&claim(&held), Mode::Upgradable)).await.unwrap();
    assert_eq!(grant.mode, Mode::Upgradable);
    assert!(place.could_have(&*b, "lock", Mode::Shared).await, "as before");
    assert!(!place.could_have(&*b, "lock", Mode::Upgradable).await);
    place.give_back(&*b, &[&reader]).await;
    assert!(place.could_have(&*b, "lock", Mode::Shared).await, "still upgradable, and not exclusive");
    place.give_back(&*a, &[&held]).await;
}

pub async fn upgrade_dropped_at_every_poll(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await {
        return;
    }
    for polls in 0..1000 {
        let (held, reader) = (ask("lock", Mode::Upgradable), ask("lock", Mode::Shared));
        place.take(&*a, &held).await;
        place.take(&*b, &reader).await;
        let claimed = claim(&held);
        let upgrading = polled(polls, a.change(&claimed, Mode::Exclusive));
        let releasing = async {
            crate::place::yield_now().await;
            place.give_back(&*b, &[&reader]).await;
        };
        let (done, ()) = place.soon("polls", futures_util::future::join(upgrading, releasing)).await;
        if done.is_none() {
            let grant = place.soon("calling off", a.change(&claimed, Mode::Upgradable)).await.unwrap();
            assert_eq!(grant.mode, Mode::Upgradable);
            assert!(place.could_have(&*b, "lock", Mode::Shared).await, "after {polls} polls");
        }
        place.give_back(&*a, &[&held]).await;
        assert!(place.could_have(&*b, "lock", Mode::Exclusive).await, "after {polls} polls");
        if done.is_some() {
            return;
        }
    }
    panic!("never upgraded");
}

pub async fn upgrade_goes_before_the_queue(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await {
        return;
    }
    let (held, reader) =
        (ask_as("upgrader", "lock", Mode::Upgradable), ask_as("reader", "lock", Mode::Shared));
    place.take(&*a, &held).await;
    place.take(&*b, &reader).await;
    let mut writer = place.stand_in_line(&b, &ask_as("writer", "lock", Mode::Exclusive)).await;
    let upgrade = place.change_in_background(&a, &held, Mode::Exclusive);
    place.give_back(&*b, &[&reader]).await;
    assert_eq!(upgrade.granted(place).await.mode, Mode::Exclusive);
    assert_eq!(place.queue(&*b, "lock").await, "upgrader / writer");
    assert!(!writer.is_done());
    place.give_back(&*a, &[&held]).await;
    let asked = writer.ask.clone();
    writer.granted(place).await;
    place.give_back(&*b, &[&asked]).await;
}

pub async fn a_second_upgradable_waits(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await {
        return;
    }
    let held = ask_as("first", "lock", Mode::Upgradable);
    place.take(&*a, &held).await;
    let mut second = place.stand_in_line(&b, &ask_as("second", "lock", Mode::Upgradable)).await;
    assert!(!second.is_done());
    let upgraded = place.soon("an upgrade", a.change(&claim(&held), Mode::Exclusive)).await.unwrap();
    assert_eq!(upgraded.mode, Mode::Exclusive);
    assert_eq!(place.queue(&*b, "lock").await, "first / second");
    place.give_back(&*a, &[&held]).await;
    let asked = second.ask.clone();
    assert_eq!(second.granted(place).await.mode, Mode::Upgradable);
    place.give_back(&*b, &[&asked]).await;
}

pub async fn upgradable_becomes_shared(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_upgrade(place, &*a).await || !can_downgrade(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Upgradable);
    place.take(&*a, &held).await;
    let second = place.stand_in_line(&b, &ask("lock", Mode::Upgradable)).await;
    let grant = place.soon("a downgrade", a.change(&claim(&held), Mode::Shared)).await.unwrap();
    assert_eq!(grant.mode, Mode::Shared);
    let asked = second.ask.clone();
    second.granted(place).await;
    place.give_back(&*a, &[&held]).await;
    place.give_back(&*b, &[&asked]).await;
}

pub async fn what_is_not_held_cannot_change(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_downgrade(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let waiter = place.stand_in_line(&b, &ask("lock", Mode::Exclusive)).await;
    for unknown in [ask("lock", Mode::Exclusive), ask("free", Mode::Exclusive), waiter.ask.clone()] {
        let error = place.soon("a refusal", b.change(&claim(&unknown), Mode::Shared)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotHeld, "{error}");
    }
    let asked = waiter.ask.clone();
    waiter.drop_future().await;
    place.give_back(&*b, &[&asked]).await;
    place.give_back(&*a, &[&held]).await;
}

pub async fn what_does_not_fit_is_refused(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_downgrade(place, &*a).await || !can_upgrade(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Shared);
    place.take(&*a, &held).await;
    for to in [Mode::Exclusive, Mode::Upgradable, crate::place::permit(2)] {
        let error = place.soon("a refusal", a.change(&claim(&held), to)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "shared to {to}: {error}");
    }
    assert!(place.could_have(&*b, "lock", Mode::Shared).await);
    assert!(!place.could_have(&*b, "lock", Mode::Exclusive).await, "held as before");
    place.give_back(&*a, &[&held]).await;
}
