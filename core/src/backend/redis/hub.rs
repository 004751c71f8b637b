//! What Redis tells us without being asked: who is let in, who has lost what, what has changed. Messages may be lost with
//! their connection: whoever waits for one looks again when that happens, and now and then anyway (R18).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use event_listener::{Event, EventListener};
use futures_channel::mpsc;

use super::{LATE, reply::Granted};
use crate::{
    ask::{Claim, Happening, News},
    error::{LostReason, Result},
    name::{ClaimId, Name},
    time::Moment,
};

/// Whoever is told of this backend value.
#[derive(Debug, Default)]
pub(super) struct Hub {
    inner: Mutex<Inner>,
    unheard: Event,
    /// The greatest token that came along.
    floor: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Several where a claim is asked for again before who asked earlier is gone.
    waiting: BTreeMap<ClaimId, Vec<Waits>>,
    held: BTreeMap<ClaimId, Held>,
    /// Claims that were asked for, and may be asked for still.
    in_doubt: BTreeMap<ClaimId, Doubt>,
    /// Claims that are being ended, and how often.
    ending: BTreeMap<ClaimId, Ending>,
    news: Vec<News>,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Waits {
    rings: Arc<Event>,
    /// After which of its looks it was let in as one that lives, and what it was granted.
    let_in: Option<(u64, Granted)>,
    /// It was lost since it was asked for last: before who waits could know of the grant.
    lost: bool,
}

/// Requests for a claim that are under way, or have failed without an answer and may yet be carried out.
#[derive(Debug, Default)]
struct Doubt {
    under_way: usize,
    failed_at: Option<Moment>,
    end: Arc<Event>,
}

/// The requests that end a claim.
#[derive(Debug, Default)]
struct Ending {
    under_way: usize,
    /// When the last one failed, or one that was sent twice was answered: it may be carried out for a while.
    failed_at: Option<Moment>,
}

impl Ending {
    fn may_come(&self, now: Moment) -> bool {
        self.under_way > 0 || self.failed_at.is_some_and(|failed| now.since(failed) < LATE)
    }
}

#[derive(Debug)]
struct Held {
    name: Name,
    told: bool,
    ttl: Duration,
    token: u64,
    /// By Redis's clock, as the last answer said.
    ends: u64,
}

#[derive(Debug)]
struct Watcher {
    /// What the names begin with.
    prefix: String,
    hint: mpsc::Sender<Result<()>>,
    due: Due,
}

/// When somebody may be gone of those that were seen at the last look: nobody tells of that.
pub(super) type Due = Arc<Mutex<Option<Moment>>>;

/// One who waits to be told of a claim.
#[derive(Debug)]
pub(super) struct Bell {
    hub: Arc<Hub>,
    rope: Rope,
}

/// What rings it.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    id: ClaimId,
    rings: Arc<Event>,
}

impl Bell {
    pub(super) fn listen(&self) -> EventListener {
        self.rope.listen()
    }

    /// For what goes on in the background while there is the bell. It rings when there is none any more.
    pub(super) fn rope(&self) -> Rope {
        self.rope.clone()
    }
}

impl Rope {
    pub(super) fn listen(&self) -> EventListener {
        self.rings.listen()
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let Rope { id, rings } = &self.rope;
        if let Entry::Occupied(mut all) = self.hub.inner().waiting.entry(*id) {
            all.get_mut().retain(|other| !Arc::ptr_eq(&other.rings, rings));
            if all.get().is_empty() {
                all.remove();
            }
        }
        rings.notify(usize::MAX);
    }
}

impl Inner {
    fn rung_by(&mut self, rope: &Rope) -> Option<&mut Waits> {
        let mut all = self.waiting.get_mut(&rope.id)?.iter_mut();
        all.find(|waits| Arc::ptr_eq(&waits.rings, &rope.rings))
    }

    fn forget_watchers(&mut self) {
        self.watchers.retain(|watcher| !watcher.hint.is_closed());
    }

    fn asked(&mut self, id: ClaimId, now: Moment) {
        self.in_doubt.retain(|_, doubt| {
            doubt.under_way > 0 || doubt.failed_at.is_some_and(|failed| now.since(failed) < LATE)
        });
        self.in_doubt.entry(id).or_default().under_way += 1;
    }
}

impl Hub {
    pub(super) fn bell(self: &Arc<Self>, id: ClaimId) -> Bell {
        let rings = Arc::<Event>::default();
        let waits = Waits { rings: rings.clone(), let_in: None, lost: false };
        self.inner().waiting.entry(id).or_default().push(waits);
        Bell { hub: self.clone(), rope: Rope { id, rings } }
    }

    /// The claim is asked for: until the answer is there nobody knows whether it holds or waits.
    pub(super) fn asked(&self, id: ClaimId, now: Moment) {
        self.inner().asked(id, now);
    }

    /// ... by who waits for it, unless it does so no more: then it may have been called off already. The claim's id.
    pub(super) fn asked_by(&self, waiter: &Rope, now: Moment) -> Option<ClaimId> {
        let mut inner = self.inner();
        inner.rung_by(waiter)?.lost = false;
        inner.asked(waiter.id, now);
        Some(waiter.id)
    }

    /// What it was granted, if it was let in as one that lives after this look.
    pub(super) fn let_in(&self, waiter: &Rope, look: u64) -> Option<Granted> {
        let (after, granted) = self.inner().rung_by(waiter)?.let_in.take()?;
        (after == look).then_some(granted)
    }

    /// That request is over. `failed_at`: when it was sent in vain, if it was; though another try had its answer, that one may
    /// be carried out.
    pub(super) fn answered(&self, id: ClaimId, failed_at: Option<Moment>) {
        let mut inner = self.inner();
        let Some(doubt) = inner.in_doubt.get_mut(&id) else { return };
        doubt.under_way -= 1;
        doubt.failed_at = failed_at.or(doubt.failed_at);
        doubt.end.notify(usize::MAX);
        if doubt.under_way == 0 && doubt.failed_at.is_none() {
            inner.in_doubt.remove(&id);
        }
    }

    /// Waits for the end of the requests under way: whether the claim may be asked for once more by one that failed, late.
    pub(super) async fn may_come_late(&self, id: ClaimId) -> bool {
        loop {
            let end = match self.inner().in_doubt.get(&id) {
                None => return false,
                Some(doubt) if doubt.under_way == 0 => return true,
                Some(doubt) => doubt.end.listen(),
            };
            end.await;
        }
    }

    /// The claim is held no longer, and is to be ended: that waits for what is under way, and what is asked for it meanwhile would be
    /// ended, too.
    pub(super) fn ends(&self, id: ClaimId, now: Moment) {
        let mut inner = self.inner();
        inner.held.remove(&id);
        inner.ending.retain(|_, ending| ending.may_come(now));
        inner.ending.entry(id).or_default().under_way += 1;
    }

    /// `so`: it is ended, and what comes late is kept out from now on; otherwise it could not be. `once`: that was asked for no more than
    /// once, and answered, so that it does not end later what is granted to the same claim again.
    pub(super) fn has_ended(&self, id: ClaimId, so: bool, once: bool, now: Moment) {
        let mut inner = self.inner();
        if let Entry::Occupied(mut ending) = inner.ending.entry(id) {
            let Ending { under_way, failed_at } = ending.get_mut();
            *under_way -= 1;
            *failed_at = if once { *failed_at } else { Some(now) };
            if *under_way == 0 && failed_at.is_none() {
                ending.remove();
            }
        }
        if so && inner.in_doubt.get(&id).is_some_and(|doubt| doubt.under_way == 0) {
            inner.in_doubt.remove(&id);
        }
    }

    /// Whether what is granted to the claim now may be ended by what was asked before.
    pub(super) fn is_ending(&self, id: ClaimId, now: Moment) -> bool {
        self.inner().ending.get(&id).is_some_and(|ending| ending.may_come(now))
    }

    /// The claim holds, and somebody waits for it or nobody does; unless it was lost before its grant came to who asked with this bell.
    /// Whether it holds.
    pub(super) fn hold(&self, bell: &Bell, claim: &Claim, granted: &Granted) -> bool {
        self.hold_if(claim, granted, |inner| !inner.rung_by(&bell.rope).is_some_and(|waits| waits.lost))
    }

    /// ... still. `known`: whether it was held when that was asked. If it was, and is not now, the answer is of before its end.
    pub(super) fn hold_on(&self, claim: &Claim, granted: &Granted, known: bool) {
        self.hold_if(claim, granted, |inner| !known || inner.held.contains_key(&claim.id));
    }

    fn hold_if(&self, claim: &Claim, granted: &Granted, so: impl FnOnce(&mut Inner) -> bool) -> bool {
        let Granted { token, ttl, contended, ends, .. } = *granted;
        self.floor.fetch_max(token, Ordering::Relaxed);
        let mut inner = self.inner();
        if !so(&mut inner) {
            return false;
        }
        let told = inner.held.get(&claim.id).is_some_and(|held| held.told);
        inner.held.insert(claim.id, Held { name: claim.name.clone(), told: contended, ttl, token, ends });
        if contended && !told {
            self.push(inner, News { claim: claim.clone(), what: Happening::Contended });
        }
        true
    }

    /// It holds no longer; when it was to end, by Redis's clock.
    pub(super) fn let_go(&self, id: ClaimId) -> Option<u64> {
        self.inner().held.remove(&id).map(|held| held.ends)
    }

    pub(super) fn ttl(&self, id: ClaimId) -> Option<Duration> {
        self.inner().held.get(&id).map(|held| held.ttl)
    }

    pub(super) fn token(&self, id: ClaimId) -> Option<u64> {
        self.inner().held.get(&id).map(|held| held.token)
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    pub(super) async fn news(&self) -> Vec<News> {
        loop {
            let unheard = self.unheard.listen();
            let news = std::mem::take(&mut self.inner().news);
            if !news.is_empty() {
                return news;
            }
            unheard.await;
        }
    }

    /// Hints of what changes below the prefix, and when another look is due besides.
    pub(super) fn watch(&self, prefix: &str) -> (mpsc::Receiver<Result<()>>, Due) {
        let ((hint, hints), due) = (mpsc::channel(0), Due::default());
        let mut inner = self.inner();
        inner.forget_watchers();
        inner.watchers.push(Watcher { prefix: prefix.to_owned(), hint, due: due.clone() });
        (hints, due)
    }

    /// All locks below the prefix were looked at.
    pub(super) fn looked(&self, prefix: &str, due: Option<Moment>) {
        for watcher in self.inner().watchers.iter().filter(|watcher| watcher.prefix == prefix) {
            *watcher.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        let mut inner = self.inner();
        inner.forget_watchers();
        !inner.watchers.is_empty()
    }

    /// A message to our inbox, as `head.lua` has them.
    pub(super) fn told(&self, message: &str) {
        let mut words = message.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (what, id, more) = (word(), word(), word());
        let Ok(id) = u128::from_str_radix(id, 16) else { return };
        let id = ClaimId::from_u128(id);
        let mut inner = self.inner();
        let let_in = match what {
            "granted" => more
                .split_once(' ')
                .and_then(|(look, terms)| Some((look.parse().ok()?, Granted::read(terms)?))),
            _ => None,
        };
        for waits in inner.waiting.get_mut(&id).into_iter().flatten() {
            // What is said of a claim after it was let in is not in its grant: it looks.
            waits.let_in.clone_from(&let_in);
            match what {
                "granted" => waits.lost = false,
                "lost" => waits.lost = true,
                _ => {}
            }
            waits.rings.notify(usize::MAX);
        }
        let what = match what {
            "contended" => match inner.held.get_mut(&id) {
                Some(held) if !held.told => {
                    held.told = true;
                    Happening::Contended
                }
                _ => return,
            },
            "lost" => Happening::Lost(match more {
                "stolen" => LostReason::Stolen,
                "force_released" => LostReason::ForceReleased,
                _ => LostReason::Expired,
            }),
            _ => return,
        };
        let lost = matches!(what, Happening::Lost(_));
        let Some(name) = inner.held.get(&id).map(|held| held.name.clone()) else { return };
        if lost {
            inner.held.remove(&id);
        }
        self.push(inner, News { claim: Claim { name, id }, what });
    }

    /// The lock of this key has changed.
    pub(super) fn changed(&self, is_below: impl Fn(&str) -> bool) {
        let mut inner = self.inner();
        inner.forget_watchers();
        for watcher in &mut inner.watchers {
            if is_below(&watcher.prefix) {
                // One hint is as good as many: a full channel has one.
                let _ = watcher.hint.try_send(Ok(()));
            }
        }
    }

    /// The connection is gone, and with it what was said meanwhile.
    pub(super) fn broken(&self) {
        for waits in self.inner().waiting.values().flatten() {
            waits.rings.notify(usize::MAX);
        }
        self.changed(|_| true);
    }

    fn push(&self, mut inner: MutexGuard<'_, Inner>, news: News) {
        inner.news.push(news);
        drop(inner);
        self.unheard.notify(usize::MAX);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn id() -> ClaimId {
        ClaimId::from_u128(1)
    }

    /// Its release may be under way already, and would be overtaken.
    #[test]
    fn who_waits_no_more_asks_no_more() {
        let (hub, now) = (Arc::<Hub>::default(), Moment { boot: Duration::ZERO, wall: Duration::ZERO });
        let bell = hub.bell(id());
        let rope = bell.rope();
        assert_eq!(hub.asked_by(&rope, now), Some(id()));
        let rings = rope.listen();
        drop(bell);
        assert!(rings.now_or_never().is_some(), "what waits in the background is told");
        let again = hub.bell(id());
        assert_eq!(hub.asked_by(&rope, now), None);
        assert_eq!(hub.asked_by(&again.rope(), now), Some(id()));
    }

    #[test]
    fn who_is_let_in_as_one_that_lives_knows_all_by_its_last_look() {
        let (hub, other) = (Arc::<Hub>::default(), ClaimId::from_u128(2));
        let bell = hub.bell(id());
        let rope = bell.rope();
        let hex = format!("{:032x}", id().reveal());
        let after = |look: u64| hub.told(&format!("granted {hex} {look} 77 permit 3 30000 1 1700000000000"));
        let let_in = |look| hub.let_in(&rope, look).map(|granted| granted.token);

        after(7);
        let granted = hub.let_in(&rope, 7).unwrap();
        assert_eq!((granted.token, granted.ttl), (77, Duration::from_secs(30)));
        assert_eq!(granted.mode.to_string(), "permit(3)");
        assert_eq!((granted.contended, granted.ends), (true, 1_700_000_000_000));
        assert_eq!(let_in(7), None, "once");
        after(6);
        assert_eq!(let_in(7), None, "by a look before the last one");
        hub.told(&format!("granted {hex}"));
        assert_eq!(let_in(7), None, "as one that may be dead");
        for later in ["lost", "contended"] {
            after(7);
            hub.told(&format!("{later} {hex} stolen"));
            assert_eq!(let_in(7), None, "{later} since");
        }
        after(7);
        hub.told(&format!("lost {:032x} stolen", other.reveal()));
        assert_eq!(let_in(7), Some(77), "what is said of others is of others");
        for damaged in ["granted", "7", "7 77", "7 77 permit x 30000 1 1", "7 77 exclusive 0 30000 1 "] {
            hub.told(&format!("granted {hex} {damaged}"));
            assert_eq!(let_in(7), None, "{damaged}");
        }
        after(7);
        drop(bell);
        assert_eq!(let_in(7), None, "nobody waits any more");
    }

    /// Two rounds of a claim may each give back what they had.
    #[test]
    fn a_claim_is_being_ended_until_the_last_end() {
        let (hub, now) = (Hub::default(), Moment { boot: Duration::ZERO, wall: Duration::ZERO });
        assert!(!hub.is_ending(id(), now));
        let ends = || hub.ends(id(), now);
        let has_ended = || hub.has_ended(id(), true, true, now);
        let changes: [&dyn Fn(); 5] = [&ends, &ends, &has_ended, &has_ended, &has_ended];
        let ending = changes.map(|change| {
            change();
            hub.is_ending(id(), now)
        });
        assert_eq!(ending, [true, true, true, false, false]);
        assert!(hub.inner().ending.is_empty());
    }

    /// A release without an answer, or that was sent twice, may be carried out after the next grant.
    #[test]
    fn what_may_end_it_late_does_so_for_a_while() {
        for so in [false, true] {
            let (hub, now) = (Hub::default(), Moment { boot: Duration::ZERO, wall: Duration::ZERO });
            hub.ends(id(), now);
            hub.ends(id(), now);
            hub.has_ended(id(), so, false, now);
            hub.has_ended(id(), true, true, now);
            let later = now.plus(LATE);
            assert!(hub.is_ending(id(), now.plus(LATE / 2)) && !hub.is_ending(id(), later));
            hub.ends(ClaimId::from_u128(8), later);
            assert!(!hub.inner().ending.contains_key(&id()), "it is forgotten");
        }
    }

    /// A claim, and what it was granted.
    fn granted() -> (Claim, Granted) {
        let claim = Claim { name: "lock".parse().unwrap(), id: id() };
        (claim, Granted::read("77 exclusive 0 30000 0 1700000000000").unwrap())
    }

    /// Redis may have answered, and taken the lock away, before who asked has come to read the answer.
    #[test]
    fn what_is_lost_before_its_grant_is_known_is_not_held() {
        let (hub, now) = (Arc::<Hub>::default(), Moment { boot: Duration::ZERO, wall: Duration::ZERO });
        let (bell, (claim, granted)) = (hub.bell(id()), granted());
        let told = |what: &str| hub.told(&format!("{what} {:032x} stolen", id().reveal()));
        told("lost");
        assert!(!hub.hold(&bell, &claim, &granted));
        assert_eq!((hub.token(id()), hub.floor()), (None, 77));
        told("granted");
        assert!(hub.hold(&bell, &claim, &granted), "granted since");
        told("lost");
        assert!(!hub.hold(&bell, &claim, &granted));
        hub.asked_by(&bell.rope(), now);
        assert!(hub.hold(&bell, &claim, &granted), "asked for since");
        told("lost");
        let heard = hub.news().now_or_never().unwrap();
        assert_eq!(heard.len(), 2, "told of those that it knew to be held: {heard:?}");
        assert!(hub.hold(&hub.bell(id()), &claim, &granted), "by another who asks later");
    }

    #[test]
    fn what_has_ended_is_not_held_again_by_a_late_answer() {
        let (hub, (claim, granted)) = (Arc::<Hub>::default(), granted());
        let answered = |known| {
            hub.hold_on(&claim, &granted, known);
            hub.token(id()).is_some()
        };
        assert!(!answered(true));
        assert!(answered(false), "it is of another process");
        assert!(answered(true));
        hub.let_go(id());
        assert!(!answered(true));
    }

    #[test]
    fn who_watches_no_more_is_forgotten() {
        let hub = Hub::default();
        let (kept, _) = hub.watch("");
        for _ in 0..3 {
            drop(hub.watch("a"));
        }
        assert_eq!(hub.inner().watchers.len(), 2);
        hub.changed(|_| false);
        assert_eq!(hub.inner().watchers.len(), 1);
        drop(kept);
        assert!(!hub.is_watched());
    }

    #[test]
    fn all_who_wait_for_a_claim_are_told_and_go_on() {
        let (hub, now) = (Arc::<Hub>::default(), Moment { boot: Duration::ZERO, wall: Duration::ZERO });
        let (one, other) = (hub.bell(id()), hub.bell(id()));
        let ring = || {
            let rings = [&one, &other].map(Bell::listen);
            hub.told(&format!("granted {:032x}", id().reveal()));
            rings.map(|rings| rings.now_or_never().is_some())
        };
        assert_eq!(ring(), [true, true]);
        for bell in [&one, &other] {
            assert_eq!(hub.asked_by(&bell.rope(), now), Some(id()));
        }
        drop(other);
        assert_eq!(hub.asked_by(&one.rope(), now), Some(id()));
        drop(one);
        assert!(hub.inner().waiting.is_empty());
    }
}
