//! Taking a lock from those who hold it: by a claim that steals, and by an operator.

use windlass::{
    Backend, LostReason, Mode,
    ask::{Ask, Entry, Happening, Renewal},
};

use super::{can_force_release, can_share, can_steal};
use crate::place::{Place, ask_as, claim};

pub async fn steal_takes_it(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_steal(place, &*a).await {
        return;
    }
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let thief = thief();
    place.take(&*b, &thief).await;
    is_told(place, &*a, &held, LostReason::Stolen).await;
    holds_no_more(place, &*a, &held, LostReason::Stolen).await;
    assert_eq!(place.queue(&*a, "lock").await, "thief /");
    place.give_back(&*b, &[&thief]).await;
}

pub async fn steal_goes_before_the_queue(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_steal(place, &*a).await {
        return;
    }
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let mut waiter = place.stand_in_line(&a, &ask_as("waiter", "lock", Mode::Exclusive)).await;
    let thief = thief();
    place.take(&*b, &thief).await;
    assert_eq!(place.queue(&*a, "lock").await, "thief / waiter");
    assert!(!waiter.is_done());
    place.give_back(&*b, &[&thief]).await;
    let asked = waiter.ask.clone();
    waiter.granted(place).await;
    place.give_back(&*a, &[&asked]).await;
}

pub async fn steal_takes_it_from_all(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_steal(place, &*a).await || !can_share(place, &*a).await {
        return;
    }
    let (one, two) = (ask_as("one", "lock", Mode::Shared), ask_as("two", "lock", Mode::Shared));
    place.take(&*a, &one).await;
    place.take(&*b, &two).await;
    let thief = thief();
    place.take(&*b, &thief).await;
    is_told(place, &*a, &one, LostReason::Stolen).await;
    is_told(place, &*b, &two, LostReason::Stolen).await;
    assert_eq!(place.queue(&*a, "lock").await, "thief /");
    place.give_back(&*b, &[&thief]).await;
}

pub async fn steal_of_a_free_lock(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_steal(place, &*a).await {
        return;
    }
    let thief = thief();
    let grant = place.take(&*a, &thief).await;
    // Asked again, it does not steal from itself.
    assert_eq!(place.take(&*a, &thief).await.fencing_token, grant.fencing_token);
    assert!(!place.could_have(&*b, "lock", Mode::Exclusive).await);
    place.give_back(&*a, &[&thief]).await;
}

pub async fn force_release_takes_it_from_all(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_force_release(place, &*a).await || !can_share(place, &*a).await {
        return;
    }
    let (one, two) = (ask_as("one", "lock", Mode::Shared), ask_as("two", "lock", Mode::Shared));
    let token = place.take(&*a, &one).await.fencing_token;
    place.take(&*b, &two).await;
    let taken = place.soon("an operator", b.force_release(&one.name, None)).await.unwrap();
    let mut owners: Vec<_> = taken.iter().map(|holder| &*holder.owner.owner).collect();
    owners.sort_unstable();
    assert_eq!(owners, ["one", "two"]);
    assert!(taken.iter().any(|holder| holder.fencing_token == token));
    is_told(place, &*a, &one, LostReason::ForceReleased).await;
    is_told(place, &*b, &two, LostReason::ForceReleased).await;
    holds_no_more(place, &*a, &one, LostReason::ForceReleased).await;
    assert!(place.could_have(&*a, "lock", Mode::Exclusive).await);
}

pub async fn force_release_by_token(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_force_release(place, &*a).await || !can_share(place, &*a).await {
        return;
    }
    let (one, two) = (ask_as("one", "lock", Mode::Shared), ask_as("two", "lock", Mode::Shared));
    let first = place.take(&*a, &one).await.fencing_token;
    let token = place.take(&*b, &two).await.fencing_token;
    let none = place.soon("an operator", a.force_release(&one.name, Some(token + 1_000_000))).await.unwrap();
    assert!(none.is_empty(), "{none:?}");
    let taken = place.soon("an operator", a.force_release(&one.name, Some(token))).await.unwrap();
    // Claims that do not conflict may have the same token, and are then freed together.
    let apart = first != token;
    assert_eq!(taken.len(), if apart { 1 } else { 2 });
    assert!(taken.iter().any(|holder| holder.owner.owner == "two"), "{taken:?}");
    is_told(place, &*b, &two, LostReason::ForceReleased).await;
    assert_eq!(place.queue(&*b, "lock").await, if apart { "one /" } else { "/" });
    assert_eq!(place.could_have(&*b, "lock", Mode::Exclusive).await, !apart);
    place.give_back(&*a, &[&one]).await;
}

pub async fn force_release_lets_the_next_in(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_force_release(place, &*a).await {
        return;
    }
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let next = place.stand_in_line(&b, &ask_as("next", "lock", Mode::Exclusive)).await;
    let later = place.stand_in_line(&a, &ask_as("later", "lock", Mode::Exclusive)).await;
    place.soon("an operator", b.force_release(&held.name, None)).await.unwrap();
    let asked = next.ask.clone();
    next.granted(place).await;
    assert_eq!(place.queue(&*b, "lock").await, "next / later");
    place.give_back(&*b, &[&asked]).await;
    let asked = later.ask.clone();
    later.granted(place).await;
    place.give_back(&*a, &[&asked]).await;
}

/// Whoever did not hear of it before.
pub async fn release_tells_of_a_loss(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_force_release(place, &*a).await {
        return;
    }
    let (lost, kept) =
        (ask_as("holder", "lock", Mode::Exclusive), ask_as("holder", "other", Mode::Exclusive));
    place.take(&*a, &lost).await;
    place.take(&*a, &kept).await;
    place.soon("an operator", b.force_release(&lost.name, None)).await.unwrap();
    let news = place.soon("a release", a.release(&[claim(&lost), claim(&kept)])).await.unwrap();
    if a.url().starts_with("redis+cluster:") {
        // Its own client may send a request twice, so what is not found may have been released.
        assert!(news.is_empty(), "{news:?}");
        return;
    }
    let [told] = &news[..] else { panic!("{news:?}") };
    assert_eq!(told.claim, claim(&lost));
    assert!(matches!(told.what, Happening::Lost(LostReason::ForceReleased)), "{told:?}");
}

pub async fn force_release_of_nothing(place: &dyn Place) {
    let a = place.client();
    if !can_force_release(place, &*a).await {
        return;
    }
    let name = "never heard of".parse().unwrap();
    assert!(place.soon("an operator", a.force_release(&name, None)).await.unwrap().is_empty());
    assert!(place.soon("an operator", a.force_release(&name, Some(7))).await.unwrap().is_empty());
}

pub async fn the_robbed_cannot_release(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_steal(place, &*a).await {
        return;
    }
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let thief = thief();
    place.take(&*b, &thief).await;
    place.give_back(&*a, &[&held]).await;
    assert_eq!(place.queue(&*a, "lock").await, "thief /", "the thief is unharmed");
    assert!(!place.could_have(&*a, "lock", Mode::Exclusive).await);
    place.give_back(&*b, &[&thief]).await;
}

fn thief() -> Ask {
    Ask { entry: Entry::Steal, ..ask_as("thief", "lock", Mode::Exclusive) }
}

/// The client that holds the claim hears that it is lost.
async fn is_told(place: &dyn Place, client: &dyn Backend, ask: &Ask, why: LostReason) {
    let told = async {
        loop {
            for news in client.hear().await.unwrap() {
                match news.what {
                    Happening::Lost(reason) if news.claim == claim(ask) => return reason,
                    _ => {}
                }
            }
        }
    };
    assert_eq!(place.soon("news of the loss", told).await, why);
}

async fn holds_no_more(place: &dyn Place, client: &dyn Backend, ask: &Ask, why: LostReason) {
    let outcomes = place.soon("a renewal", client.renew(&[claim(ask)])).await.unwrap();
    match &outcomes[..] {
        [Renewal::NotHeld] => {}
        [Renewal::Lost(reason)] => assert_eq!(*reason, why),
        other => panic!("{other:?}"),
    }
}
