//! Who waits by lockgate's protocol, as far as its requests tell. Pure: the time comes in as an argument.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use windlass::{ClaimId, Name, ask::Entry};

/// No client comes back sooner after an answer: it sleeps for two seconds, by a clock that may run a little fast.
const SLEEPS: Duration = Duration::from_millis(1900);
/// Who comes back later than this after an answer has done something else meanwhile, and may be in a hurry.
const PUNCTUAL: Duration = Duration::from_millis(2600);
/// The longest that a request is held open. Nobody sets a shorter time-out for a request.
const LONGEST_HOLD: Duration = Duration::from_secs(4);
/// When a place is left of which nothing is heard, if it has a name; lockgate's queue does the same.
const LEAVES: Duration = Duration::from_secs(10);
/// ... if it has none, or if the lock is kept for it: two sleeps and a bit.
const LEAVES_SOON: Duration = Duration::from_secs(5);
/// ... if its connection broke: the client has given up, but the program may ask again.
const LEAVES_BROKEN: Duration = Duration::from_secs(2);
/// The most places in all.
const MOST: usize = 100_000;

/// What one waits for, and as whom.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: Box<str>,
    pub(super) name: Name,
    pub(super) shared: bool,
    pub(super) acquirer: Option<Box<str>>,
}

/// What one request does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) number: u64,
    pub(super) claim: ClaimId,
    /// [`Queue`](Entry::Queue), or [`Try`](Entry::Try).
    pub(super) entry: Entry,
    /// How long the request may be held open while it waits.
    pub(super) hold: Duration,
}

/// All who wait.
#[derive(Default)]
pub(super) struct Places {
    by_key: HashMap<Arc<Key>, Vec<Place>>,
    count: usize,
    next: u64,
}

struct Place {
    number: u64,
    claim: ClaimId,
    /// Whether the claim waits in the table. Otherwise the first request has been refused, and who comes back stands in line.
    waits: bool,
    /// When the first request came.
    since: Instant,
    heard: Heard,
    /// The lock is kept for it.
    its_turn: bool,
    /// There is a task that sees to its leaving.
    watched: bool,
}

#[derive(Clone, Copy)]
enum Heard {
    /// A request is under way.
    Now,
    /// The last one was answered then.
    Answered(Instant),
    /// The connection of the last one broke then.
    Broke(Instant),
}

impl Places {
    /// A request has come: it speaks for a place from now on until [`silent`](Self::silent) or
    /// [`remove`](Self::remove). `fresh` is the id of its claim if it has no place yet; `None` if there is no room.
    pub(super) fn ask(&mut self, key: &Arc<Key>, now: Instant, fresh: ClaimId) -> Option<Turn> {
        let named = key.acquirer.is_some();
        let places = self.by_key.entry(key.clone()).or_default();
        let back = places.iter_mut().filter(|place| place.can_be_of_who_asks(named, now));
        // It is due longest that has been silent longest; but the lock is not kept longer than need be.
        if let Some(place) = back.min_by_key(|place| (!place.its_turn, place.silent_since())) {
            let hold = place.hold(now);
            place.heard = Heard::Now;
            if !place.waits {
                // The id of a try is used up; a new number parts it from its past.
                (place.claim, place.waits, place.watched, place.number) = (fresh, true, false, self.next);
                self.next += 1;
            }
            return Some(Turn { number: place.number, claim: place.claim, entry: Entry::Queue, hold });
        }
        if self.count >= MOST {
            self.forget_if_empty(key);
            return None;
        }
        let number = self.next;
        let place = Place {
            number,
            claim: fresh,
            waits: named,
            since: now,
            heard: Heard::Now,
            its_turn: false,
            watched: false,
        };
        places.push(place);
        (self.next, self.count) = (number + 1, self.count + 1);
        let entry = if named { Entry::Queue } else { Entry::Try };
        Some(Turn { number, claim: fresh, entry, hold: Duration::ZERO })
    }

    /// The request is over, with an answer or without. `true` if a task has to be started that watches the place.
    pub(super) fn silent(&mut self, key: &Key, number: u64, now: Instant, answered: bool) -> bool {
        let Some(place) = self.place(key, number) else { return false };
        place.heard = if answered { Heard::Answered(now) } else { Heard::Broke(now) };
        !std::mem::replace(&mut place.watched, true)
    }

    /// The lock is kept for this place from now on.
    pub(super) fn its_turn(&mut self, key: &Key, number: u64) {
        if let Some(place) = self.place(key, number) {
            place.its_turn = true;
        }
    }

    /// When to look whether the place is left; `None` if there is no such place.
    pub(super) fn leaves(&mut self, key: &Key, number: u64, now: Instant) -> Option<Instant> {
        let named = key.acquirer.is_some();
        self.place(key, number).map(|place| place.leaves(named).unwrap_or(now + LEAVES_SOON))
    }

    /// Leaves the place if it is time to. `true` if it did: what was granted has to be given back.
    pub(super) fn leave(&mut self, key: &Key, number: u64, now: Instant) -> bool {
        let named = key.acquirer.is_some();
        let over =
            self.place(key, number).and_then(|place| place.leaves(named)).is_some_and(|leaves| leaves <= now);
        over && self.remove(key, number)
    }

    /// There is no such place any more. `true` if there was.
    pub(super) fn remove(&mut self, key: &Key, number: u64) -> bool {
        let Some(places) = self.by_key.get_mut(key) else { return false };
        let Some(at) = places.iter().position(|place| place.number == number) else { return false };
        places.remove(at);
        self.count -= 1;
        self.forget_if_empty(key);
        true
    }

    fn forget_if_empty(&mut self, key: &Key) {
        if self.by_key.get(key).is_some_and(Vec::is_empty) {
            self.by_key.remove(key);
            // Room for a crowd that has gone.
            if self.by_key.capacity() > 1024 && self.by_key.len() < self.by_key.capacity() / 8 {
                self.by_key.shrink_to_fit();
            }
        }
    }

    fn place(&mut self, key: &Key, number: u64) -> Option<&mut Place> {
        self.by_key.get_mut(key)?.iter_mut().find(|place| place.number == number)
    }
}

impl Place {
    fn can_be_of_who_asks(&self, named: bool, now: Instant) -> bool {
        match self.heard {
            Heard::Now => false,
            Heard::Answered(at) => named || now.saturating_duration_since(at) >= SLEEPS,
            // Who has no name and asks again after that begins anew: others could be meant.
            Heard::Broke(_) => named,
        }
    }

    fn silent_since(&self) -> Option<Instant> {
        match self.heard {
            Heard::Now => None,
            Heard::Answered(at) | Heard::Broke(at) => Some(at),
        }
    }

    fn hold(&self, now: Instant) -> Duration {
        match self.heard {
            Heard::Answered(at) if (SLEEPS..=PUNCTUAL).contains(&now.saturating_duration_since(at)) => {
                (now.saturating_duration_since(self.since) / 2).min(LONGEST_HOLD)
            }
            _ => Duration::ZERO,
        }
    }

    fn leaves(&self, named: bool) -> Option<Instant> {
        match self.heard {
            Heard::Now => None,
            Heard::Answered(at) if named && !self.its_turn => Some(at + LEAVES),
            Heard::Answered(at) => Some(at + LEAVES_SOON),
            Heard::Broke(at) => Some(at + LEAVES_BROKEN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn after(&mut self, millis: u64) -> Instant {
            self.0 += Duration::from_millis(millis);
            self.0
        }
    }

    fn start(acquirer: Option<&str>) -> (Places, Clock, Arc<Key>) {
        #[allow(clippy::disallowed_methods, reason = "an instant to count from")]
        (Places::default(), Clock(Instant::now()), key(acquirer))
    }

    fn key(acquirer: Option<&str>) -> Arc<Key> {
        let name = "lock".parse().unwrap();
        Arc::new(Key { namespace: "n".into(), name, shared: false, acquirer: acquirer.map(Into::into) })
    }

    fn id(number: u128) -> ClaimId {
        ClaimId::from_u128(number)
    }

    const ANSWERED: bool = true;

    #[test]
    fn a_name_is_a_place_from_the_first_request_on() {
        let (mut places, mut clock, key) = start(Some("a"));
        let first = places.ask(&key, clock.0, id(1)).unwrap();
        assert_eq!((first.entry, first.claim, first.hold), (Entry::Queue, id(1), Duration::ZERO));
        assert!(places.silent(&key, first.number, clock.0, ANSWERED), "has to be watched");
        let again = places.ask(&key, clock.after(100), id(2)).unwrap();
        assert_eq!((again.claim, again.number, again.hold), (id(1), first.number, Duration::ZERO));
        assert!(!places.silent(&key, first.number, clock.0, ANSWERED), "is watched already");
    }

    #[test]
    fn nobody_else_has_a_place_that_is_spoken_for() {
        for acquirer in [None, Some("a")] {
            let (mut places, mut clock, key) = start(acquirer);
            let one = places.ask(&key, clock.0, id(1)).unwrap();
            let other = places.ask(&key, clock.after(3000), id(2)).unwrap();
            assert_ne!((one.number, one.claim), (other.number, other.claim));
        }
    }

    #[test]
    fn without_a_name_the_first_request_only_tries() {
        let (mut places, mut clock, key) = start(None);
        let first = places.ask(&key, clock.0, id(1)).unwrap();
        assert_eq!(first.entry, Entry::Try);
        places.silent(&key, first.number, clock.0, ANSWERED);
        let another = places.ask(&key, clock.after(1800), id(2)).unwrap();
        assert_eq!(another.entry, Entry::Try, "nobody comes back so soon");
        places.silent(&key, another.number, clock.0, ANSWERED);
        let back = places.ask(&key, clock.after(300), id(3)).unwrap();
        assert_eq!((back.entry, back.claim), (Entry::Queue, id(3)));
        assert!(places.silent(&key, back.number, clock.0, ANSWERED), "another claim has to be watched");
        assert_eq!(places.leaves(&key, first.number, clock.0), None, "it has become that of who came back");
    }

    #[test]
    fn the_nameless_take_over_the_place_that_is_silent_longest_unless_it_is_ones_turn() {
        let (mut places, mut clock, key) = start(None);
        let mut numbers = Vec::new();
        for n in 0..6 {
            let turn = places.ask(&key, clock.after(if n == 3 { 2000 } else { 100 }), id(n)).unwrap();
            places.silent(&key, turn.number, clock.0, ANSWERED);
            numbers.push((turn.number, turn.claim));
        }
        // The first three have come back.
        let standing = &numbers[3..];
        let back = places.ask(&key, clock.after(2000), id(10)).unwrap();
        assert_eq!((back.number, back.claim), standing[0]);
        places.its_turn(&key, standing[2].0);
        let back = places.ask(&key, clock.after(100), id(11)).unwrap();
        assert_eq!((back.number, back.claim), standing[2]);
    }

    #[test]
    fn a_sleeper_is_held_open_for_half_of_its_wait_and_nobody_else() {
        let (mut places, mut clock, key) = start(Some("a"));
        let mut ask = |after| {
            let turn = places.ask(&key, clock.after(after), id(1)).unwrap();
            places.silent(&key, turn.number, clock.0, ANSWERED);
            u64::try_from(turn.hold.as_millis()).unwrap()
        };
        assert_eq!(
            [ask(0), ask(2000), ask(500), ask(2000), ask(3000), ask(2050)],
            [0, 1000, 0, 2250, 0, 4000]
        );
    }

    #[test]
    fn a_place_is_left_when_nobody_comes_back() {
        // With a name or without, whether it is its turn, and how long it stays.
        for (acquirer, its_turn, answered, stays) in [
            (Some("a"), false, ANSWERED, 10_000),
            (Some("a"), true, ANSWERED, 5000),
            (Some("a"), false, !ANSWERED, 2000),
            (None, false, ANSWERED, 5000),
        ] {
            let (mut places, mut clock, key) = start(acquirer);
            let turn = places.ask(&key, clock.0, id(1)).unwrap();
            assert!(!places.leave(&key, turn.number, clock.0 + LEAVES * 9), "it is spoken for");
            places.silent(&key, turn.number, clock.0, answered);
            if its_turn {
                places.its_turn(&key, turn.number);
            }
            let at = clock.0 + Duration::from_millis(stays);
            assert_eq!(places.leaves(&key, turn.number, clock.0), Some(at));
            assert!(!places.leave(&key, turn.number, clock.after(stays - 1)));
            assert!(places.leave(&key, turn.number, clock.after(1)));
            assert!(!places.remove(&key, turn.number));
            assert!(places.by_key.is_empty() && places.count == 0, "nothing is left of it");
        }
    }

    #[test]
    fn there_is_room_for_so_many() {
        let (mut places, clock, key) = start(None);
        let first = places.ask(&key, clock.0, id(0)).unwrap().number;
        for n in 1..MOST {
            assert!(places.ask(&self::key(Some(&n.to_string())), clock.0, id(n as u128)).is_some());
        }
        let other = self::key(Some("a"));
        assert_eq!(places.ask(&other, clock.0, id(0)), None);
        assert_eq!(places.by_key.len(), MOST, "one that was refused leaves nothing");
        assert!(places.remove(&key, first) && places.ask(&other, clock.0, id(0)).is_some());
    }
}
