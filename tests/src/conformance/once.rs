//! Ask twice, get one; release what is yours, as often as you like (guarantee 6).

use futures_util::future;
use windlass::{
    Mode,
    ask::{Ask, Renewal},
};

use super::can_share;
use crate::place::{Place, ask, ask_as, claim};

pub async fn asked_again_while_held(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask("lock", Mode::Exclusive);
    let grant = place.take(&*a, &held).await;
    let waiter = place.stand_in_line(&b, &ask("lock", Mode::Exclusive)).await;
    let again = place.take(&*a, &held).await;
    assert_eq!((again.fencing_token, again.mode), (grant.fencing_token, grant.mode));
    let tried = place.attempt(&*a, &held).await.expect("a try by the same id finds its grant");
    assert_eq!(tried.fencing_token, grant.fencing_token);
    // One release is enough for what was granted once.
    place.give_back(&*a, &[&held]).await;
    let asked = waiter.ask.clone();
    waiter.granted(place).await;
    place.give_back(&*b, &[&asked]).await;
}

pub async fn asked_again_through_another_client(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = Ask { only_here: false, ..ask("lock", Mode::Exclusive) };
    let grant = place.take(&*a, &held).await;
    assert_eq!(place.take(&*b, &held).await.fencing_token, grant.fencing_token);
    place.give_back(&*b, &[&held]).await;
    assert!(place.could_have(&*a, "lock", Mode::Exclusive).await, "one release is enough");
}

pub async fn asked_again_while_waiting(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let asked = ask_as("waiter", "lock", Mode::Exclusive);
    let first = place.stand_in_line(&b, &asked).await;
    let again = place.stand_in_line(&b, &asked).await;
    place.shows(&*a, "lock", "holder / waiter").await;
    place.give_back(&*a, &[&held]).await;
    let grant = again.granted(place).await;
    assert_eq!(grant.fencing_token > 0, a.capabilities().fencing_token);
    first.drop_future().await;
    place.shows(&*a, "lock", "waiter /").await;
    assert_eq!(place.take(&*b, &asked).await.fencing_token, grant.fencing_token);
    place.give_back(&*b, &[&asked]).await;
}

pub async fn asked_again_keeps_the_place(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let first = place.stand_in_line(&b, &ask_as("first", "lock", Mode::Exclusive)).await;
    let mut second = place.stand_in_line(&a, &ask_as("second", "lock", Mode::Exclusive)).await;
    // Its connection breaks, and it asks again.
    let asked = first.ask.clone();
    let again = place.stand_in_line(&b, &asked).await;
    first.drop_future().await;
    place.shows(&*a, "lock", "holder / first second").await;
    place.give_back(&*a, &[&held]).await;
    again.granted(place).await;
    assert!(!second.is_done());
    place.give_back(&*b, &[&asked]).await;
    let second_asked = second.ask.clone();
    second.granted(place).await;
    place.give_back(&*a, &[&second_asked]).await;
}

pub async fn released_twice(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let first = ask("lock", Mode::Exclusive);
    place.take(&*a, &first).await;
    place.give_back(&*a, &[&first]).await;
    place.give_back(&*a, &[&first]).await;
    let second = ask("lock", Mode::Exclusive);
    place.take(&*b, &second).await;
    place.give_back(&*a, &[&first]).await;
    place.give_back(&*b, &[&first, &first]).await;
    assert!(!place.could_have(&*a, "lock", Mode::Exclusive).await, "the successor is unharmed");
    place.give_back(&*b, &[&second]).await;
}

pub async fn unknown_claims_are_released(place: &dyn Place) {
    let a = place.client();
    place.give_back(&*a, &[]).await;
    place.give_back(&*a, &[&ask("never", Mode::Exclusive), &ask("heard of", Mode::Exclusive)]).await;
}

pub async fn another_claim_cannot_release(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let waiter = place.stand_in_line(&a, &ask_as("waiter", "lock", Mode::Exclusive)).await;
    place.give_back(&*b, &[&ask("lock", Mode::Exclusive)]).await;
    place.give_back(&*a, &[&ask("lock", Mode::Exclusive)]).await;
    // The right id under another name is not this claim.
    let elsewhere = Ask { name: "lock/".parse().unwrap(), ..held.clone() };
    place.give_back(&*a, &[&elsewhere]).await;
    place.shows(&*b, "lock", "holder / waiter").await;
    let asked = waiter.ask.clone();
    waiter.drop_future().await;
    place.give_back(&*a, &[&asked, &held]).await;
}

pub async fn many_released_in_one(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let asks: Vec<Ask> = (0..20).map(|n| ask(&format!("lock-{n}"), Mode::Exclusive)).collect();
    for ask in &asks {
        place.take(&*a, ask).await;
    }
    let unknown = ask("unknown", Mode::Exclusive);
    let all: Vec<&Ask> = asks.iter().chain([&unknown, &asks[3]]).collect();
    place.give_back(&*a, &all).await;
    for n in 0..20 {
        assert!(place.could_have(&*b, &format!("lock-{n}"), Mode::Exclusive).await);
    }
}

pub async fn renewed_each_by_each(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let (one, two) = (ask("one", Mode::Exclusive), ask("two", Mode::Exclusive));
    let (first, second) = (place.take(&*a, &one).await, place.take(&*a, &two).await);
    let released = ask("released", Mode::Exclusive);
    place.take(&*a, &released).await;
    place.give_back(&*a, &[&released]).await;
    let waiter = place.stand_in_line(&b, &ask("one", Mode::Exclusive)).await;
    let asked = [claim(&one), claim(&ask("two", Mode::Exclusive)), claim(&released), claim(&two)];
    let outcomes = place.soon("a renewal", a.renew(&asked)).await.unwrap();
    let [Renewal::Renewed(one_again), Renewal::NotHeld, Renewal::NotHeld, Renewal::Renewed(two_again)] =
        &outcomes[..]
    else {
        panic!("{outcomes:?}")
    };
    assert_eq!(one_again.fencing_token, first.fencing_token);
    assert_eq!(two_again.fencing_token, second.fencing_token);
    // One that waits holds nothing that could be renewed.
    let outcomes = place.soon("a renewal", b.renew(&[claim(&waiter.ask)])).await.unwrap();
    assert!(matches!(outcomes[..], [Renewal::NotHeld]), "{outcomes:?}");
    assert!(place.soon("a renewal of nothing", a.renew(&[])).await.unwrap().is_empty());
    let asked = waiter.ask.clone();
    waiter.drop_future().await;
    place.give_back(&*b, &[&asked]).await;
    place.give_back(&*a, &[&one, &two]).await;
}

pub async fn renewal_keeps_the_grant(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_share(place, &*a).await {
        return;
    }
    let (one, two) = (ask("lock", Mode::Shared), ask("lock", Mode::Shared));
    place.take(&*a, &one).await;
    let grant = place.take(&*b, &two).await;
    for client in [&b, &a] {
        // Through another client of this process, too: this is how a claim is handed on.
        let outcomes = place.soon("a renewal", client.renew(&[claim(&two)])).await.unwrap();
        let [Renewal::Renewed(again)] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!((again.fencing_token, again.mode), (grant.fencing_token, Mode::Shared));
        assert_eq!(again.lease.is_some(), grant.lease.is_some());
    }
    place.give_back(&*a, &[&one]).await;
    place.give_back(&*b, &[&two]).await;
}

pub async fn renewed_twice_at_once_through_another_client(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask("lock", Mode::Exclusive);
    let grant = place.take(&*a, &held).await;
    let claims = [claim(&held)];
    // As when the answer to the first does not come in time.
    let both = future::join(b.renew(&claims), b.renew(&claims));
    let (first, second) = place.soon("two renewals", both).await;
    for outcome in [first.unwrap(), second.unwrap()] {
        let [Renewal::Renewed(again)] = &outcome[..] else { panic!("{outcome:?}") };
        assert_eq!(again.fencing_token, grant.fencing_token);
    }
    place.give_back(&*b, &[&held]).await;
    assert!(place.could_have(&*a, "lock", Mode::Exclusive).await);
}
