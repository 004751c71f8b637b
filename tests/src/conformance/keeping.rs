//! A place in the queue that outlives its acquire, and is taken up again by its ticket.
//!
//! A backend that cannot keep one refuses, and a backend that can refuses what makes no sense.

use std::{future::IntoFuture, sync::Arc, time::Duration};

use futures_util::future::{join, select};
use windlass::{Backend, Error, ErrorKind, Guard, Lock, Locker, MAX_TTL, Mode, Ticket};

use crate::place::{InLine, PATIENCE, Place, ask_as};

/// Long enough to be placed in the queue, unless the machine is very busy.
const A_WHILE: Duration = Duration::from_millis(1500);
/// Longer than a place stays that is not to be kept, in milliseconds: in Redis they stay the longest.
const AWAY: u64 = 8500;
/// ... than a turn does, with what a simulated server takes to see that nobody asks; less than its TTL.
const AWAY_AT_ITS_TURN: u64 = 5500;
const KEEP: Duration = Duration::from_secs(60);

pub async fn a_kept_place_waits_for_its_ticket(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let ticket = lock.keep(KEEP).await;
    let next = lock.stand_behind().await;
    place.pause(AWAY).await;
    // Another program comes back for it, in vain, and then a third one.
    let error = lock.times_out(lock.ask_by(&ticket).keep_place(KEEP)).await;
    let (ticket, at) = kept(&error);
    assert_eq!(at, Some(1), "{error}");
    place.pause(AWAY).await;
    let held = lock.held.release_shared();
    let turn = lock.other.lock("lock").timeout(PATIENCE).ticket(read(&ticket)).into_future();
    let (turn, released) = place.soon("the turn of the ticket", join(turn, held)).await;
    released.unwrap();
    place.until_shows(&*lock.looks, "lock", "keeper / next").await;
    lock.next_after(&turn.unwrap(), next).await;
}

pub async fn a_turn_waits_for_its_ticket(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let ticket = lock.keep(KEEP).await;
    let mut next = lock.stand_behind().await;
    lock.held.release_shared().await.unwrap();
    place.until_shows(&*lock.looks, "lock", "keeper / next").await;
    place.pause(AWAY_AT_ITS_TURN).await;
    assert!(!next.is_done(), "let in ahead of the ticket");
    let turn = place.soon("the turn", lock.ask_by(&ticket).into_future()).await.unwrap();
    lock.next_after(&turn, next).await;
}

/// It is the next one's when its TTL is over, and whoever comes then has no place any more.
pub async fn a_turn_that_nobody_takes_is_the_next_ones(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let keeps = lock.other.lock("lock").ttl(Duration::from_secs(1)).keep_place(KEEP);
    let (ticket, _) = kept(&lock.times_out(keeps).await);
    let next = lock.stand_behind().await;
    lock.held.release_shared().await.unwrap();
    let asked = next.ask.clone();
    next.granted(place).await;
    let error = lock.times_out(lock.ask_by(&ticket)).await;
    assert_eq!(error.waiting().unwrap().holders[0].owner.owner, "next", "{error}");
    place.give_back(&*lock.looks, &[&asked]).await;
}

/// What is kept for no time at all is kept for as long as it takes to ask again.
pub async fn a_place_that_is_gone_is_another(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let ticket = lock.keep(Duration::from_millis(1)).await;
    let next = lock.stand_behind().await;
    place.until_shows(&*lock.looks, "lock", "holder / next").await;
    let error = lock.times_out(lock.ask_by(&ticket).keep_place(KEEP)).await;
    let (another, at) = kept(&error);
    assert_eq!(at, Some(2), "{error}");
    lock.other.release(&read(&another)).await.unwrap();
    lock.next_after(&lock.held, next).await;
}

pub async fn a_kept_place_is_released(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let ticket = lock.keep(KEEP).await;
    let next = lock.stand_behind().await;
    for _twice in 0..2 {
        place.soon("a release", lock.other.release(&read(&ticket))).await.unwrap();
    }
    place.until_shows(&*lock.looks, "lock", "holder / next").await;
    lock.next_after(&lock.held, next).await;
}

/// The ticket of a held claim is as good, unless a guard has it.
pub async fn a_detached_claim_is_released(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let ticket = one.lock("lock").await.unwrap().detach().unwrap();
    let guard = one.attach(&ticket).await.unwrap();
    let refused = one.release(&ticket).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    let ticket = guard.detach().unwrap();
    place.soon("a release", one.release(&ticket)).await.unwrap();
    let next = place.soon("a lock that is free", two.lock("lock").into_future()).await.unwrap();
    next.release().await.unwrap();
}

/// Whoever acquires by it a second time is refused, and takes nothing from the guard that has it.
pub async fn a_ticket_that_a_guard_has(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let ticket = lock.keep(KEEP).await;
    lock.held.release_shared().await.unwrap();
    let acquire = || lock.other.lock("lock").ticket(read(&ticket)).into_future();
    let guard = place.soon("the turn", acquire()).await.unwrap();
    let refused = place.soon("a refusal", acquire()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    place.pause(200).await;
    place.shows(&*lock.looks, "lock", "keeper /").await;
    guard.release().await.unwrap();
}

pub async fn what_keeps_no_place_is_refused(place: &dyn Place) {
    let Some(lock) = Contended::at(place).await else { return };
    let ticket = lock.keep(KEEP).await;
    let other = || lock.other.lock("lock").timeout(A_WHILE);
    for refused in [
        lock.other.lock("lock").keep_place(KEEP),
        other().keep_place(Duration::ZERO),
        other().keep_place(MAX_TTL + Duration::from_millis(1)),
        other().steal().ticket(read(&ticket)),
        other().shared().ticket(read(&ticket)),
        lock.other.lock("other").ticket(read(&ticket)),
    ] {
        let error = place.soon("a refusal", refused.into_future()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let error = lock.other.lock("lock").ticket(read(&ticket)).try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let two = lock.other.lock_all(["lock", "other"]).with(|lock| lock.timeout(A_WHILE).keep_place(KEEP));
    let error = place.soon("a refusal", two.into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    lock.other.release(&read(&ticket)).await.unwrap();
    // Who gives up in another way than by the timeout leaves nothing behind.
    let given_up = lock.other.lock("lock").timeout(PATIENCE).keep_place(KEEP).into_future();
    drop(select(given_up, place.runtime().sleep(A_WHILE)).await);
    place.until_shows(&*lock.looks, "lock", "holder /").await;
    lock.held.release_shared().await.unwrap();
}

/// A lock that is held, and programs that want it.
struct Contended<'a> {
    place: &'a dyn Place,
    held: Guard,
    other: Locker,
    looks: Arc<dyn Backend>,
}

impl<'a> Contended<'a> {
    /// `None` where no place can be kept; that is refused then.
    async fn at(place: &'a dyn Place) -> Option<Self> {
        let (holder, other, looks) = (place.locker(), place.locker(), place.client());
        if !looks.capabilities().keep_place {
            let error = holder.lock("lock").timeout(A_WHILE).keep_place(KEEP).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            return None;
        }
        let held = holder.lock("lock").owner("holder").await.unwrap();
        Some(Self { place, held, other, looks })
    }

    /// The ticket of a place in the queue that is kept from now on.
    async fn keep(&self, keep: Duration) -> String {
        let locker = self.place.locker();
        kept(&self.times_out(locker.lock("lock").owner("keeper").keep_place(keep)).await).0
    }

    /// Waits in vain, until it has heard of it; once more at the place that it keeps, if any.
    async fn times_out(&self, lock: Lock) -> Error {
        let mut lock = lock.timeout(A_WHILE);
        loop {
            let error = self.place.soon("a timeout", lock.clone().into_future()).await.unwrap_err();
            if error.kind() != ErrorKind::Timeout || error.waiting().is_some() {
                return error;
            }
            lock = lock.ticket(error.ticket().cloned());
        }
    }

    fn ask_by(&self, ticket: &str) -> Lock {
        self.place.locker().lock("lock").ticket(read(ticket))
    }

    /// Somebody who waits behind that place.
    async fn stand_behind(&self) -> InLine {
        self.place.stand_in_line(&self.looks, &ask_as("next", "lock", Mode::Exclusive)).await
    }

    /// The lock goes to the next once it is released.
    async fn next_after(&self, held: &Guard, next: InLine) {
        held.release_shared().await.unwrap();
        let asked = next.ask.clone();
        next.granted(self.place).await;
        self.place.give_back(&*self.looks, &[&asked]).await;
    }
}

/// The ticket in a timeout's error, as text, and the place in the queue. No other text has it.
fn kept(error: &Error) -> (String, Option<usize>) {
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let ticket = error.ticket().expect("a ticket").reveal();
    let secret = ticket.split(':').nth(1).expect("an id");
    assert!(!format!("{error:#} {error:?} {:?}", error.ticket()).contains(secret), "{error}");
    (ticket, error.waiting().and_then(|waiting| waiting.place))
}

fn read(ticket: &str) -> Ticket {
    ticket.parse().unwrap()
}
