//! News of one's own claims, and a look at all.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use windlass::{
    Backend, LostReason, Mode, Owner,
    ask::{Ask, Happening},
};

use super::{can_force_release, can_see};
use crate::place::{Place, ask, ask_as, claim, polled};

pub async fn contended_is_heard_once_by_the_holder(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    let elsewhere = ask("elsewhere", Mode::Exclusive);
    place.take(&*b, &elsewhere).await;
    let waiter = place.stand_in_line(&b, &ask("lock", Mode::Exclusive)).await;
    contended(place, &*a, &held).await;
    let second = place.stand_in_line(&b, &ask("lock", Mode::Exclusive)).await;
    for client in [&a, &b] {
        place.pause(20).await;
        let news = polled(1, client.hear()).now_or_never().flatten();
        assert!(news.is_none(), "said once, and to the holder only: {news:?}");
    }
    let (one, two) = (waiter.ask.clone(), second.ask.clone());
    waiter.drop_future().await;
    second.drop_future().await;
    place.give_back(&*b, &[&one, &two, &elsewhere]).await;
    place.give_back(&*a, &[&held]).await;
}

pub async fn lost_is_heard_by_its_own_client_only(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_force_release(place, &*a).await {
        return;
    }
    let (one, two) = (ask("lock", Mode::Exclusive), ask("another", Mode::Exclusive));
    let token = place.take(&*a, &one).await.fencing_token;
    place.take(&*b, &two).await;
    place.soon("an operator", b.force_release(&one.name, Some(token))).await.unwrap();
    let news = place.soon("news", a.hear()).await.unwrap();
    assert_eq!(news.len(), 1, "{news:?}");
    assert_eq!(news[0].claim, claim(&one));
    assert!(matches!(news[0].what, Happening::Lost(LostReason::ForceReleased)), "{news:?}");
    place.pause(20).await;
    let others = polled(1, b.hear()).now_or_never().flatten();
    assert!(others.is_none(), "{others:?}");
    place.give_back(&*b, &[&two]).await;
}

/// The one who hears may come and go; what happened meanwhile is told when it comes again.
pub async fn news_wait_for_the_ear(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let held = ask("lock", Mode::Exclusive);
    place.take(&*a, &held).await;
    assert!(polled(1, a.hear()).await.is_none(), "nothing has happened");
    // Until it is known everywhere that nobody hears: an answer to who has just stopped may be lost with what it tells.
    place.pause(100).await;
    let waiter = place.stand_in_line(&b, &ask("lock", Mode::Exclusive)).await;
    contended(place, &*a, &held).await;
    let asked = waiter.ask.clone();
    waiter.drop_future().await;
    place.give_back(&*b, &[&asked]).await;
    place.give_back(&*a, &[&held]).await;
}

pub async fn holders_and_waiters_are_seen(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    assert!(a.inspect("").await.unwrap().is_empty());
    let metadata = BTreeMap::from([("job".to_owned(), "nightly \u{1f319}\n\"x\"".to_owned())]);
    let owner = Owner { owner: "ann@host:1".into(), metadata };
    let held = Ask { owner: Arc::new(owner.clone()), ..ask("lock", Mode::Exclusive) };
    let token = place.take(&*a, &held).await.fencing_token;
    let mut waiters = Vec::new();
    for name in ["one", "two", "three"] {
        waiters.push(place.stand_in_line(&b, &ask_as(name, "lock", Mode::Exclusive)).await);
    }
    for client in [&a, &b, &place.client()] {
        let all = place.soon("a look", client.inspect("")).await.unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].name.as_str(), "lock");
        let [holder] = &all[0].holders[..] else { panic!("{all:?}") };
        assert_eq!((&holder.owner, holder.mode, holder.fencing_token), (&owner, Mode::Exclusive, token));
        assert!(holder.held_for.is_none_or(|time| time < crate::place::PATIENCE));
        let waiting: Vec<_> = all[0].waiters.iter().map(|waiter| &*waiter.owner.owner).collect();
        assert_eq!(waiting, ["one", "two", "three"]);
        assert!(all[0].waiters.iter().all(|waiter| waiter.mode == Mode::Exclusive));
    }
    let asks: Vec<Ask> = waiters.iter().map(|waiter| waiter.ask.clone()).collect();
    for waiter in waiters {
        waiter.drop_future().await;
    }
    place.give_back(&*b, &asks.iter().collect::<Vec<_>>()).await;
    place.give_back(&*a, &[&held]).await;
}

/// Nobody says so: it is no longer renewed.
pub async fn who_is_gone_is_seen_to_be(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let mut hints = place.soon("a watch", b.changes("")).await.unwrap();
    let gone = Ask { ttl: Duration::from_secs(1), ..ask("lock", Mode::Exclusive) };
    if place.take(&*a, &gone).await.lease.is_some() {
        seen(place, &mut hints, async || b.inspect("").await.unwrap().len() == 1).await;
        seen(place, &mut hints, async || b.inspect("").await.unwrap().is_empty()).await;
        assert!(b.inspect_one(&gone.name).await.unwrap().is_none());
    }
    place.give_back(&*a, &[&gone]).await;
}

pub async fn a_prefix_is_a_prefix_of_the_text(place: &dyn Place) {
    let a = place.client();
    if !can_see(place, &*a).await {
        return;
    }
    let names = ["a", "a/b", "ab", "b", "a%", "A"];
    let asks: Vec<Ask> = names.iter().map(|name| ask(name, Mode::Exclusive)).collect();
    for ask in &asks {
        place.take(&*a, ask).await;
    }
    for prefix in ["", "a", "a/", "a/b", "a/b/", "b", "x", "a%", "A", "*", "%"] {
        let all = place.soon("a look", a.inspect(prefix)).await.unwrap();
        let mut seen: Vec<_> = all.iter().map(|status| status.name.as_str()).collect();
        seen.sort_unstable();
        let mut wanted: Vec<_> = names.iter().copied().filter(|name| name.starts_with(prefix)).collect();
        wanted.sort_unstable();
        assert_eq!(seen, wanted, "under {prefix:?}");
    }
    place.give_back(&*a, &asks.iter().collect::<Vec<_>>()).await;
}

pub async fn a_watch_before_a_look_misses_nothing(place: &dyn Place) {
    let (a, b) = (place.client(), place.client());
    if !can_see(place, &*a).await {
        return;
    }
    let mut hints = place.soon("a watch", b.changes("lo")).await.unwrap();
    for _ in 0..3 {
        let held = ask("lock", Mode::Exclusive);
        place.take(&*a, &held).await;
        seen(place, &mut hints, async || place.look(&*b, "lock").await.holders.len() == 1).await;
        let waiter = place.stand_in_line(&a, &ask("lock", Mode::Exclusive)).await;
        seen(place, &mut hints, async || place.look(&*b, "lock").await.waiters.len() == 1).await;
        let asked = waiter.ask.clone();
        waiter.drop_future().await;
        place.give_back(&*a, &[&asked]).await;
        seen(place, &mut hints, async || place.look(&*b, "lock").await.waiters.is_empty()).await;
        place.give_back(&*a, &[&held]).await;
        seen(place, &mut hints, async || place.look(&*b, "lock").await.holders.is_empty()).await;
    }
}

pub async fn url_has_no_secret(place: &dyn Place) {
    let client = place.client();
    assert!(client.url().contains(':'), "{}", client.url());
    assert!(!format!("{client:?}").contains("secret"));
}

/// Looks once, and then whenever there is a hint, until it is so: this ends only if no hint is missing.
async fn seen(
    place: &dyn Place,
    hints: &mut (impl StreamExt<Item = windlass::Result<()>> + Unpin),
    so: impl AsyncFn() -> bool,
) {
    while !so().await {
        place.soon("a hint of a change", hints.next()).await.expect("the hints go on").unwrap();
    }
}

async fn contended(place: &dyn Place, client: &dyn Backend, ask: &Ask) {
    // Claims may be renewed along the way, again and again.
    let heard = async {
        loop {
            let mut news = client.hear().await.unwrap();
            news.retain(|news| !matches!(news.what, Happening::Renewed(_)));
            if !news.is_empty() {
                return news;
            }
        }
    };
    let news = place.soon("news of somebody waiting", heard).await;
    assert_eq!(news.len(), 1, "{news:?}");
    assert_eq!(news[0].claim, claim(ask));
    assert!(matches!(news[0].what, Happening::Contended), "{news:?}");
}
