//! Giving up in any way leaves neither a place in the queue nor a grant (guarantee 7).

use std::sync::Arc;

use windlass::{Backend, Mode, ask::Ask};

use super::can_share;
use crate::place::{Place, ask, ask_as, claim, polled};

pub async fn a_dropped_waiter_is_gone(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let waiter = place.stand_in_line(&b, &ask_as("waiter", "lock", Mode::Exclusive)).await;
    let asked = waiter.ask.clone();
    waiter.drop_future().await;
    place.give_back(&*b, &[&asked]).await;
    place.until_shows(&*a, "lock", "holder /").await;
    place.give_back(&*a, &[&held]).await;
    assert!(place.could_have(&*b, "lock", Mode::Exclusive).await);
}

pub async fn a_dropped_head_lets_the_next_in(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_share(place, &*a).await {
        return;
    }
    let reader = ask_as("reader", "lock", Mode::Shared);
    place.take(&*a, &reader).await;
    let writer = place.stand_in_line(&b, &ask_as("writer", "lock", Mode::Exclusive)).await;
    let next = place.stand_in_line(&a, &ask_as("next", "lock", Mode::Shared)).await;
    let asked = writer.ask.clone();
    writer.drop_future().await;
    place.give_back(&*b, &[&asked]).await;
    let next_asked = next.ask.clone();
    next.granted(place).await;
    place.shows(&*a, "lock", "next reader /").await;
    place.give_back(&*a, &[&next_asked, &reader]).await;
}

/// A release calls off a claim whose future still waits: it is not granted any more.
pub async fn released_while_waiting(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    let held = ask_as("holder", "lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let waiter = place.stand_in_line(&b, &ask_as("waiter", "lock", Mode::Exclusive)).await;
    let news = place.soon("a release", b.release(&[claim(&waiter.ask)])).await.unwrap();
    assert!(news.is_empty(), "who waits loses nothing: {news:?}");
    place.until_shows(&*a, "lock", "holder /").await;
    place.give_back(&*a, &[&held]).await;
    assert!(place.could_have(&*a, "lock", Mode::Exclusive).await);
    place.shows(&*a, "lock", "/").await;
    waiter.drop_future().await;
}

pub async fn dropped_at_every_poll_when_free(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    for polls in 0..1000 {
        let asked = ask("lock", Mode::Exclusive);
        let done = place.soon("polls", polled(polls, a.acquire(&asked, &|_| {}))).await;
        place.give_back(&*a, &[&asked]).await;
        nothing_is_left(place, &*b).await;
        if done.is_some() {
            return;
        }
    }
    panic!("never granted");
}

pub async fn dropped_at_every_poll_when_held(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    for polls in 0..6 {
        let held = ask("lock", Mode::Exclusive);
        place.take(&*b, &held).await;
        let asked = ask("lock", Mode::Exclusive);
        let acquire = a.acquire(&asked, &|_| {});
        let limit = place.runtime().sleep(std::time::Duration::from_millis(20));
        let mut acquire = std::pin::pin!(polled(polls, acquire));
        // It is polled when it is woken, and then not so often, for the lock is held.
        futures_util::future::select(acquire.as_mut(), limit).await;
        // The release may come before the drop, or after it.
        place.give_back(&*a, &[&asked]).await;
        place.give_back(&*b, &[&held]).await;
        nothing_is_left(place, &*b).await;
    }
}

pub async fn dropped_at_every_poll_when_released_meanwhile(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    for polls in 1..1000 {
        let held = ask("lock", Mode::Exclusive);
        place.take(&*b, &held).await;
        let asked = ask("lock", Mode::Exclusive);
        let waiting = polled(polls, a.acquire(&asked, &|_| {}));
        let releasing = async {
            crate::place::yield_now().await;
            place.give_back(&*b, &[&held]).await;
        };
        let (done, ()) = place.soon("polls", futures_util::future::join(waiting, releasing)).await;
        place.give_back(&*a, &[&asked]).await;
        nothing_is_left(place, &*b).await;
        if done.is_some() {
            return;
        }
    }
    panic!("never granted");
}

pub async fn all_dropped_at_every_poll(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    for polls in 0..1000 {
        let held = ask("2", Mode::Exclusive);
        place.take(&*b, &held).await;
        let asks: Vec<Ask> = ["1", "2", "3"].map(|name| ask(name, Mode::Exclusive)).into();
        let waiting = polled(polls, a.acquire_all(&asks, &|_| {}));
        let releasing = async {
            crate::place::yield_now().await;
            place.give_back(&*b, &[&held]).await;
        };
        let (done, ()) = place.soon("polls", futures_util::future::join(waiting, releasing)).await;
        place.give_back(&*a, &asks.iter().collect::<Vec<_>>()).await;
        for name in ["1", "2", "3"] {
            assert!(place.could_have(&*b, name, Mode::Exclusive).await, "{name} after {polls} polls");
        }
        if done.is_some() {
            return;
        }
    }
    panic!("never granted");
}

/// The grant is on its way to a waiter when that one gives up: the lock goes to the next.
pub async fn a_drop_races_with_the_grant(place: &dyn Place) {
    let clients: [Arc<dyn Backend>; 3] = std::array::from_fn(|_| place.client());
    let [a, b, c] = &clients;
    for round in 0..60 {
        let held = ask("lock", Mode::Exclusive);
        place.take(&**a, &held).await;
        let quitter = place.stand_in_line(b, &ask("lock", Mode::Exclusive)).await;
        let next = place.stand_in_line(c, &ask("lock", Mode::Exclusive)).await;
        let asked = quitter.ask.clone();
        let give_up = async {
            if round % 3 == 0 {
                crate::place::yield_now().await;
            }
            quitter.drop_future().await;
            b.release(&[claim(&asked)]).await.unwrap();
        };
        let held_claims = [claim(&held)];
        let release = async { a.release(&held_claims).await.unwrap() };
        if round % 2 == 0 {
            futures_util::future::join(give_up, release).await;
        } else {
            futures_util::future::join(release, give_up).await;
        }
        let next_asked = next.ask.clone();
        next.granted(place).await;
        place.give_back(&**c, &[&next_asked]).await;
    }
}

async fn nothing_is_left(place: &dyn Place, client: &dyn Backend) {
    place.until_shows(client, "lock", "/").await;
    assert!(place.could_have(client, "lock", Mode::Exclusive).await);
}
