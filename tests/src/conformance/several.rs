//! Several locks in one request: all or none, in an order that cannot deadlock.

use std::sync::Arc;

use futures_util::future::join_all;
use windlass::{
    Backend, Mode,
    ask::{Ask, Entry},
};

use super::can_see;
use crate::place::{Place, ask, ask_as, claim, task};

pub async fn all_are_granted(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let asks = asks(&["a", "b", "c"], Entry::Queue);
    let grants = all(place, &*a, &asks).await.expect("all are free");
    assert_eq!(grants.len(), 3);
    for (ask, grant) in asks.iter().zip(&grants) {
        assert!(!place.could_have(&*b, ask.name.as_str(), Mode::Exclusive).await);
        let status = place.look(&*b, ask.name.as_str()).await;
        assert_eq!(status.holders[0].fencing_token, *grant, "the grants come in the order of the asks");
    }
    place.give_back(&*a, &asks.iter().collect::<Vec<_>>()).await;
}

pub async fn none_when_one_is_taken(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    for taken in ["a", "b", "c"] {
        let held = ask(taken, Mode::Exclusive);
        place.take(&*b, &held).await;
        let asks = asks(&["a", "b", "c"], Entry::Try);
        assert!(all(place, &*a, &asks).await.is_none());
        for name in ["a", "b", "c"] {
            assert_eq!(place.could_have(&*b, name, Mode::Exclusive).await, name != taken, "{name}");
            if b.capabilities().see {
                assert!(place.look(&*b, name).await.waiters.is_empty());
            }
        }
        place.give_back(&*b, &[&held]).await;
    }
}

pub async fn waits_for_all(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let (first, last) = (ask("a", Mode::Exclusive), ask("c", Mode::Exclusive));
    place.take(&*b, &first).await;
    place.take(&*b, &last).await;
    let asks = asks(&["a", "b", "c"], Entry::Queue);
    let (client, mine) = (a.clone(), asks.clone());
    let all = task(&*place.runtime(), async move { client.acquire_all(&mine, &|_| {}).await.unwrap() });
    place.until("it stands in line", async || !place.look(&*b, "a").await.waiters.is_empty()).await;
    place.give_back(&*b, &[&first]).await;
    place.until_shows(&*b, "a", "several /").await;
    place.give_back(&*b, &[&last]).await;
    assert_eq!(place.soon("all", all).await.expect("all").len(), 3);
    place.give_back(&*a, &asks.iter().collect::<Vec<_>>()).await;
}

pub async fn asked_again(place: &dyn Place) {
    let a = place.client();
    let asks = asks(&["a", "b", "c"], Entry::Queue);
    let grants = all(place, &*a, &asks).await;
    assert_eq!(all(place, &*a, &asks).await, grants);
    place.give_back(&*a, &asks.iter().collect::<Vec<_>>()).await;
}

/// Each client takes a few of the locks again and again; nobody waits for ever.
pub async fn opposite_orders(place: &dyn Place) {
    let names = ["a", "b", "c", "d"];
    let workers = (0..4_usize).map(|n| {
        let client: Arc<dyn Backend> = place.client();
        task(&*place.runtime(), async move {
            for round in 0..20 {
                let mut mine: Vec<&str> = vec![names[(n + round) % 4], names[(n + 3 * round + 1) % 4]];
                mine.sort_unstable();
                mine.dedup();
                let asks = asks(&mine, Entry::Queue);
                client.acquire_all(&asks, &|_| {}).await.unwrap().unwrap();
                let claims: Vec<_> = asks.iter().map(claim).collect();
                client.release(&claims).await.unwrap();
            }
        })
    });
    place.soon("all turns", join_all(workers)).await;
}

/// Claims for several stand in the same lines as claims for one.
pub async fn a_queue_of_several(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let held = ask("a", Mode::Exclusive);
    place.take(&*a, &held).await;
    let several = asks(&["a", "b"], Entry::Queue);
    let (client, mine) = (b.clone(), several.clone());
    let all = task(&*place.runtime(), async move { client.acquire_all(&mine, &|_| {}).await.unwrap() });
    place.until("it stands in line", async || !place.look(&*b, "a").await.waiters.is_empty()).await;
    let later = place.stand_in_line(&a, &ask_as("later", "a", Mode::Exclusive)).await;
    place.give_back(&*a, &[&held]).await;
    place.soon("all", all).await.expect("all");
    place.shows(&*a, "a", "several / later").await;
    place.give_back(&*b, &several.iter().collect::<Vec<_>>()).await;
    let asked = later.ask.clone();
    later.granted(place).await;
    place.give_back(&*a, &[&asked]).await;
}

fn asks(names: &[&str], entry: Entry) -> Vec<Ask> {
    names.iter().map(|name| Ask { entry, ..ask_as("several", name, Mode::Exclusive) }).collect()
}

/// The fencing tokens of the grants.
async fn all(place: &dyn Place, client: &dyn Backend, asks: &[Ask]) -> Option<Vec<u64>> {
    let grants = place.soon("all", client.acquire_all(asks, &|_| {})).await.unwrap();
    grants.map(|grants| grants.iter().map(|grant| grant.fencing_token).collect())
}
