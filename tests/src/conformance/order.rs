//! First come, first served, and who is woken (guarantees 4 and 5).

use windlass::Mode;

use super::{can_permit, can_see, can_share};
use crate::place::{Place, ask, ask_as, permit};

pub async fn first_come_first_served(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let mut holder = ask_as("first", "lock", Mode::Exclusive);
    place.take(&*a, &holder).await;
    let mut waiters = Vec::new();
    for n in 0..6 {
        let client = if n % 2 == 0 { &b } else { &a };
        let ask = ask_as(&format!("waiter-{n}"), "lock", Mode::Exclusive);
        waiters.push((client, place.stand_in_line(client, &ask).await));
    }
    let mut holding = &a;
    for n in 0..waiters.len() {
        place.give_back(&**holding, &[&holder]).await;
        let (client, waiter) = waiters.remove(0);
        (holding, holder) = (client, waiter.ask.clone());
        assert_eq!(holder.owner.owner, format!("waiter-{n}"));
        waiter.granted(place).await;
        for (_, later) in &mut waiters {
            assert!(!later.is_done(), "{} overtook", later.ask.owner.owner);
        }
    }
    place.give_back(&**holding, &[&holder]).await;
}

pub async fn a_waiting_exclusive_holds_back_later_shared(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_share(place, &*a).await {
        return;
    }
    let reader = ask_as("reader", "lock", Mode::Shared);
    place.take(&*a, &reader).await;
    let writer = place.stand_in_line(&b, &ask_as("writer", "lock", Mode::Exclusive)).await;
    let mut late = place.stand_in_line(&a, &ask_as("late", "lock", Mode::Shared)).await;
    place.shows(&*a, "lock", "reader / writer late").await;
    place.give_back(&*a, &[&reader]).await;
    let writing = writer.ask.clone();
    writer.granted(place).await;
    place.shows(&*a, "lock", "writer / late").await;
    assert!(!late.is_done());
    place.give_back(&*b, &[&writing]).await;
    let reading = late.ask.clone();
    late.granted(place).await;
    place.give_back(&*a, &[&reading]).await;
}

pub async fn neighbouring_shared_enter_together(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_share(place, &*a).await {
        return;
    }
    let writer = ask_as("writer", "lock", Mode::Exclusive);
    place.take(&*a, &writer).await;
    let one = place.stand_in_line(&a, &ask_as("one", "lock", Mode::Shared)).await;
    let two = place.stand_in_line(&b, &ask_as("two", "lock", Mode::Shared)).await;
    let mut second = place.stand_in_line(&a, &ask_as("second", "lock", Mode::Exclusive)).await;
    let mut three = place.stand_in_line(&b, &ask_as("three", "lock", Mode::Shared)).await;
    place.give_back(&*a, &[&writer]).await;
    let (first_asked, two_asked) = (one.ask.clone(), two.ask.clone());
    one.granted(place).await;
    two.granted(place).await;
    place.shows(&*a, "lock", "one two / second three").await;
    assert!(!second.is_done() && !three.is_done());
    place.give_back(&*a, &[&first_asked]).await;
    place.shows(&*a, "lock", "two / second three").await;
    place.give_back(&*b, &[&two_asked]).await;
    let second_asked = second.ask.clone();
    second.granted(place).await;
    place.give_back(&*a, &[&second_asked]).await;
    let three_asked = three.ask.clone();
    three.granted(place).await;
    place.give_back(&*b, &[&three_asked]).await;
}

pub async fn a_try_takes_only_if_nobody_waits(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_share(place, &*a).await {
        return;
    }
    let reader = ask_as("reader", "lock", Mode::Shared);
    place.take(&*a, &reader).await;
    assert!(place.could_have(&*b, "lock", Mode::Shared).await);
    let writer = place.stand_in_line(&b, &ask_as("writer", "lock", Mode::Exclusive)).await;
    assert!(!place.could_have(&*b, "lock", Mode::Shared).await, "a writer waits");
    assert!(!place.could_have(&*a, "lock", Mode::Shared).await, "a writer waits");
    let called_off = writer.ask.clone();
    writer.drop_future().await;
    place.give_back(&*b, &[&called_off]).await;
    place.until_shows(&*a, "lock", "reader /").await;
    assert!(place.could_have(&*b, "lock", Mode::Shared).await);
    place.give_back(&*a, &[&reader]).await;
}

pub async fn a_failed_try_leaves_no_place(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    for _ in 0..3 {
        let tried = ask_as("trier", "lock", Mode::Exclusive);
        assert!(place.attempt(&*b, &tried).await.is_none());
        place.shows(&*a, "lock", "holder /").await;
    }
    place.give_back(&*a, &[&held]).await;
    place.shows(&*a, "lock", "/").await;
}

pub async fn permits_come_in_order(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_permit(place, &*a).await {
        return;
    }
    let (one, two) = (ask_as("one", "pool", permit(2)), ask_as("two", "pool", permit(2)));
    place.take(&*a, &one).await;
    place.take(&*b, &two).await;
    let three = place.stand_in_line(&a, &ask_as("three", "pool", permit(2))).await;
    let mut four = place.stand_in_line(&b, &ask_as("four", "pool", permit(2))).await;
    place.give_back(&*b, &[&two]).await;
    let three_asked = three.ask.clone();
    three.granted(place).await;
    assert!(!four.is_done());
    assert!(!place.could_have(&*a, "pool", permit(2)).await);
    place.give_back(&*a, &[&one]).await;
    let four_asked = four.ask.clone();
    four.granted(place).await;
    place.give_back(&*a, &[&three_asked]).await;
    place.give_back(&*b, &[&four_asked]).await;
}

pub async fn one_who_waits_is_told_for_whom(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let held = ask_as("holder", "lock", Mode::Exclusive);
    let token = place.take(&*a, &held).await.fencing_token;
    let mut waiters = Vec::new();
    for n in 0..2 {
        let mut waiter = place.ask_in_background(&b, &ask("lock", Mode::Exclusive));
        let waiting = place.soon("being told", waiter.queued()).await;
        assert_eq!(waiting.holders.len(), 1, "{waiting}");
        assert_eq!(waiting.holders[0].owner.owner, "holder");
        assert_eq!(waiting.holders[0].fencing_token, token);
        assert_eq!(waiting.holders[0].mode, Mode::Exclusive);
        assert!(waiting.place.is_none_or(|place| place == n + 1), "{waiting}");
        waiters.push(waiter);
    }
    place.give_back(&*a, &[&held]).await;
    for waiter in waiters {
        let asked = waiter.ask.clone();
        waiter.granted(place).await;
        place.give_back(&*b, &[&asked]).await;
    }
}

pub async fn a_release_wakes_one(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let mut held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let mut waiters = Vec::new();
    for n in 0..8 {
        waiters.push(place.stand_in_line(&b, &ask_as(&format!("{n}"), "lock", Mode::Exclusive)).await);
    }
    let mut holding = a;
    while !waiters.is_empty() {
        place.give_back(&*holding, &[&held]).await;
        let next = waiters.remove(0);
        (holding, held) = (b.clone(), next.ask.clone());
        next.granted(place).await;
        let status = place.look(&*b, "lock").await;
        assert_eq!((status.holders.len(), status.waiters.len()), (1, waiters.len()));
    }
    place.give_back(&*b, &[&held]).await;
}

/// With limits that differ, one who could come in must not pass one who cannot yet.
pub async fn a_wide_permit_does_not_overtake(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_permit(place, &*a).await {
        return;
    }
    let held = ask_as("holder", "pool", permit(3));
    place.take(&*a, &held).await;
    let narrow = place.stand_in_line(&b, &ask_as("narrow", "pool", permit(1))).await;
    assert!(!place.could_have(&*a, "pool", permit(3)).await, "somebody waits");
    let mut wide = place.stand_in_line(&a, &ask_as("wide", "pool", permit(3))).await;
    assert!(!wide.is_done());
    place.give_back(&*a, &[&held]).await;
    let narrow_asked = narrow.ask.clone();
    narrow.granted(place).await;
    assert!(!wide.is_done(), "the holder allows one");
    place.give_back(&*b, &[&narrow_asked]).await;
    let wide_asked = wide.ask.clone();
    wide.granted(place).await;
    place.give_back(&*a, &[&wide_asked]).await;
}
