//! Where requests for one object come together: those that are under way are done by one write, and a lock that is released goes to
//! the next one who waits in the same locker by the same write.
//!
//! This is the one loop that compares and swaps. A write is for the version of the object that it was made of; when the object is
//! another by then, it is read and the requests are done again. An answer that is lost leaves it open whether the write was done:
//! whoever asks again finds out, by the claim's id.
//!
//! What is known beforehand may be old, so an answer that changes nothing, such as that the lock is taken, is given only by what
//! was read from the API server for it.

use std::{
    collections::BTreeMap,
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::FutureExt;

use super::{
    Space,
    doc::{AS_MADE, Answer, Doc, Order},
    link::Written,
    shelf::{Next, Seen, Shelf, Write},
};
use crate::{
    background,
    error::{Error, ErrorKind, Result},
    name::{ClaimId, Name},
    time::{Millis, Moment},
};

/// How often a write is tried again that others came before.
const TRIES: u32 = 100;
/// The pause before that is up to so long the first time, and longer when it is not the first time.
const PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What is asked of each object, and of which somebody works at just now.
#[derive(Debug, Default)]
pub(super) struct Desk(Mutex<BTreeMap<String, Pile>>);

#[derive(Debug, Default)]
struct Pile {
    /// To be done.
    slips: Vec<Slip>,
    /// Those who wait for a grant: they are served with others, and stay when they are not granted anything.
    waiting: Vec<Slip>,
    busy: bool,
}

#[derive(Debug)]
struct Slip {
    key: String,
    name: Name,
    order: Order,
    /// It stays until it is granted.
    waits: bool,
    /// It is done, and this is its answer, whatever comes of doing it again.
    done: Option<Answer>,
    tell: oneshot::Sender<Result<Done>>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) answer: Answer,
    /// When the request was sent that did it.
    pub(super) sent: Moment,
}

/// The locks of a batch, as a write begins with them.
struct Before {
    /// By their keys.
    seen: BTreeMap<String, Option<Seen>>,
    /// They were read just now.
    fresh: bool,
}

/// What comes of a batch.
struct After {
    docs: BTreeMap<String, Doc>,
    answers: Vec<Answer>,
}

impl Desk {
    fn piles(&self) -> MutexGuard<'_, BTreeMap<String, Pile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Space {
    /// Does it, also for one who does not wait for the answer.
    pub(super) async fn order(self: &Arc<Self>, name: &Name, order: Order) -> Result<Done> {
        self.order_unless(name, order, || None).await
    }

    /// ... unless that is so. Nothing is [told](Self::let_in) in the moment in which it looks.
    pub(super) async fn order_unless(
        self: &Arc<Self>,
        name: &Name,
        order: Order,
        is_told: impl FnOnce() -> Option<Result<Done>>,
    ) -> Result<Done> {
        let (tell, told) = oneshot::channel();
        let slip = Slip { key: self.key(name), name: name.clone(), order, waits: false, done: None, tell };
        let object = self.link.address.shelf.object(&slip.key).to_owned();
        let begins = {
            let mut piles = self.desk.piles();
            if let Some(done) = is_told() {
                return done;
            }
            let pile = piles.entry(object.clone()).or_default();
            pile.slips.push(slip);
            !std::mem::replace(&mut pile.busy, true)
        };
        if begins {
            self.link.rt.spawn(work(self.clone(), object).boxed());
        }
        told.await.unwrap_or_else(|_| Err(background::gone()))
    }

    /// What becomes of one who stands in line, should somebody of this locker let it in. Dropped, it is forgotten.
    pub(super) fn let_in(&self, name: &Name, id: ClaimId) -> oneshot::Receiver<Result<Done>> {
        let (tell, told) = oneshot::channel();
        let slip = Slip {
            key: self.key(name),
            name: name.clone(),
            order: Order::Renew(id),
            waits: true,
            done: None,
            tell,
        };
        let object = self.link.address.shelf.object(&slip.key).to_owned();
        let mut piles = self.desk.piles();
        let waiting = &mut piles.entry(object).or_default().waiting;
        waiting.retain(|slip| !slip.tell.is_canceled());
        waiting.push(slip);
        told
    }

    /// Adds what has come to a batch, and those who wait for one of its locks.
    fn gather(&self, object: &str, batch: &mut Vec<Slip>) {
        let mut piles = self.desk.piles();
        let Some(pile) = piles.get_mut(object) else { return };
        batch.append(&mut pile.slips);
        let concerns = |slip: &mut Slip| batch.iter().any(|other| other.key == slip.key && !other.waits);
        let waiting: Vec<Slip> = pile.waiting.extract_if(.., concerns).collect();
        batch.extend(waiting.into_iter().filter(|slip| !slip.tell.is_canceled()));
    }
}

async fn work(space: Arc<Space>, object: String) {
    loop {
        let mut batch = Vec::new();
        space.gather(&object, &mut batch);
        if batch.is_empty() {
            let mut piles = space.desk.piles();
            let Some(pile) = piles.get_mut(&object) else { return };
            if pile.slips.is_empty() {
                pile.busy = false;
                pile.waiting.retain(|slip| !slip.tell.is_canceled());
                if pile.waiting.is_empty() {
                    piles.remove(&object);
                }
                return;
            }
            continue;
        }
        let outcome = space.serve(&object, &mut batch).await;
        space.answer(&object, batch, outcome);
    }
}

impl Space {
    fn answer(&self, object: &str, batch: Vec<Slip>, outcome: Result<(Vec<Answer>, Moment)>) {
        let (answers, sent) = match outcome {
            Ok((answers, sent)) => (answers, Ok(sent)),
            Err(error) => (vec![Answer::Waits; batch.len()], Err(error)),
        };
        let mut piles = self.desk.piles();
        let Some(pile) = piles.get_mut(object) else { return };
        for (mut slip, answer) in batch.into_iter().zip(answers) {
            let answer = slip.done.take().unwrap_or(answer);
            if slip.waits && answer == Answer::Waits {
                pile.waiting.push(slip);
                continue;
            }
            let done = sent.clone().map(|sent| Done { answer, sent });
            if let (true, Order::Renew(id)) = (slip.waits, &slip.order) {
                // It may have seen the grant before this tells of it, and ask for what it is told here.
                let asks = |ask: &mut Slip| {
                    ask.key == slip.key && matches!(&ask.order, Order::Renew(other) if other == id)
                };
                for ask in pile.slips.extract_if(.., asks) {
                    let _ = ask.tell.send(done.clone());
                }
            }
            // Whoever asked may be gone.
            let _ = slip.tell.send(done);
        }
    }

    async fn serve(&self, object: &str, batch: &mut Vec<Slip>) -> Result<(Vec<Answer>, Moment)> {
        let mut before = self.known(object, batch).await?;
        for tries in 0..TRIES {
            // For those who have come since a look it was too early: they are the next batch, or it would never be enough.
            if !before.fresh {
                self.gather(object, batch);
            }
            if batch.iter().any(|slip| !before.seen.contains_key(&slip.key)) {
                before = self.known(object, batch).await?;
            }
            let sent = self.link.rt.now();
            let mut after = self.after(batch, &before, sent);
            let free = Doc::default();
            let was = |key: &str| before.seen.get(key).and_then(Option::as_ref);
            let (changed, same): (Vec<&String>, Vec<&String>) = after
                .docs
                .keys()
                .partition(|key| after.docs[*key] != *was(key).map_or(&free, |seen| &seen.doc));
            if !same.is_empty() && !before.fresh {
                before = self.look(object, batch).await?;
                continue;
            }
            if changed.is_empty() {
                return Ok((after.answers, sent));
            }
            let next: Vec<Next<'_>> =
                changed.iter().map(|key| self.next(key, batch, &before, &after, sent)).collect();
            let write = match self.link.address.shelf.write(&next) {
                Ok(write) => write,
                // No room for more: those who hold must not suffer for it.
                Err(error) => {
                    refuse_acquires(batch, &error)?;
                    continue;
                }
            };
            let answer = match self.link.write(object, &write).await? {
                Written::Done(answer) => answer,
                Written::Conflict => {
                    if tries > 0 {
                        let most = PAUSE.saturating_mul(1 << tries.min(8)).min(LONGEST_PAUSE);
                        self.link.rt.sleep(most.mul_f64(self.link.rt.jitter())).await;
                    }
                    before = self.look(object, batch).await?;
                    continue;
                }
            };
            if matches!(write, Write::Delete(_)) {
                let version = before.seen.values().flatten().map(|seen| seen.version).max();
                self.hub.known().forget(object, version.unwrap_or_default());
                return Ok((after.answers, sent));
            }
            let seen = self.read(batch, Some(&answer), &BTreeMap::new())?;
            as_made(batch, &mut after.answers, &seen);
            if !seen.values().flatten().any(Seen::is_unsettled) {
                return Ok((after.answers, sent));
            }
            // Done again, the requests change nothing but that the tokens are written down. What cannot be done again is answered.
            let mut answers = take(&mut after.answers).into_iter();
            for mut slip in take(batch) {
                let answer = answers.next();
                match (&slip.order, answer) {
                    (Order::Force(_), Some(answer)) => drop(slip.tell.send(Ok(Done { answer, sent }))),
                    (Order::Release(_), answer) => {
                        slip.done = slip.done.or(answer);
                        batch.push(slip);
                    }
                    _ => batch.push(slip),
                }
            }
            before = Before { seen, fresh: true };
        }
        Err(Error::new(ErrorKind::Unavailable, "others came in between again and again"))
    }

    /// What is known of these locks, or what a look tells.
    async fn known(&self, object: &str, batch: &[Slip]) -> Result<Before> {
        let mut seen = BTreeMap::new();
        for slip in batch {
            let acquires = matches!(slip.order, Order::Acquire(_));
            match self.hub.known().lock(&slip.key) {
                (Some((lock, _)), _) => drop(seen.insert(slip.key.clone(), Some(lock))),
                // Most locks are free when they are asked for.
                (None, all) if self.link.address.shelf == Shelf::Leases && (all || acquires) => {
                    seen.insert(slip.key.clone(), None);
                }
                _ => {}
            }
        }
        match batch.iter().all(|slip| seen.contains_key(&slip.key)) {
            true => Ok(Before { seen, fresh: false }),
            false => self.look(object, batch).await,
        }
    }

    async fn look(&self, object: &str, batch: &[Slip]) -> Result<Before> {
        let known = |slip: &Slip| Some((slip.key.clone(), self.hub.known().lock(&slip.key).0?.0.version));
        let known = batch.iter().filter_map(known).collect();
        let found = self.link.get(object).await?;
        Ok(Before { seen: self.read(batch, found.as_ref(), &known)?, fresh: true })
    }

    /// The locks of a batch in an object, which are known from now on. One that is not there has gone after the version that was
    /// `known` of it before this was asked: what has come to be known since is newer.
    fn read(
        &self,
        batch: &[Slip],
        object: Option<&serde_json::Value>,
        known: &BTreeMap<String, u64>,
    ) -> Result<BTreeMap<String, Option<Seen>>> {
        let mut all = BTreeMap::new();
        for slip in batch {
            if all.contains_key(&slip.key) {
                continue;
            }
            let seen = self.link.address.shelf.read_one(&slip.key, object)?;
            match &seen {
                Some(seen) => self.hub.known().see(&self.link, &slip.key, seen.clone()),
                None => self.hub.known().forget(&slip.key, known.get(&slip.key).copied().unwrap_or_default()),
            }
            all.insert(slip.key.clone(), seen);
        }
        Ok(all)
    }

    /// What these requests make of the locks.
    fn after(&self, batch: &[Slip], before: &Before, sent: Moment) -> After {
        let now = Millis(u64::try_from(sent.wall.as_millis()).unwrap_or(u64::MAX));
        let mut of_each: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
        for (at, slip) in batch.iter().enumerate() {
            of_each.entry(&slip.key).or_default().push(at);
        }
        let mut after = After { docs: BTreeMap::new(), answers: vec![Answer::Gone(None); batch.len()] };
        for (key, mut slips) in of_each {
            let seen = before.seen.get(key).and_then(Option::as_ref);
            let free = Doc::default();
            let doc = seen.map_or(&free, |seen| &seen.doc);
            // One that was released is not taken up again.
            slips.retain(|at| !self.is_over(&batch[*at].order));
            // Who waits is let in by what the others do.
            slips.sort_by_key(|at| batch[*at].waits);
            let orders: Vec<&Order> = slips.iter().map(|at| &batch[*at].order).collect();
            let alive = self.hub.known().came_lately(key, self.link.rt.monotonic());
            let (next, answers) = doc.after(&orders, now, seen.map_or(AS_MADE, Seen::next_token), &alive);
            after.docs.insert(key.clone(), next);
            for (at, answer) in slips.into_iter().zip(answers) {
                after.answers[at] = answer;
            }
        }
        after
    }

    fn next<'a>(
        &'a self,
        key: &'a str,
        batch: &'a [Slip],
        before: &'a Before,
        after: &'a After,
        sent: Moment,
    ) -> Next<'a> {
        // Each is there because of one of them.
        let name = batch.iter().find(|slip| slip.key == key).map_or(&batch[0].name, |slip| &slip.name);
        Next {
            key,
            prefix: &self.address.prefix,
            name,
            seen: before.seen.get(key).and_then(Option::as_ref),
            doc: &after.docs[key],
            now: sent.wall,
            random: self.link.rt.random(),
        }
    }
}

/// A grant that came with the object has the object's version for a token.
fn as_made(batch: &[Slip], answers: &mut [Answer], seen: &BTreeMap<String, Option<Seen>>) {
    for (slip, answer) in batch.iter().zip(answers) {
        if let (Answer::Granted(granted), Some(Some(seen))) = (answer, seen.get(&slip.key))
            && granted.fencing_token == AS_MADE
        {
            granted.fencing_token = seen.version;
        }
    }
}

/// # Errors
/// There are none.
fn refuse_acquires(batch: &mut Vec<Slip>, error: &Error) -> Result<()> {
    let before = batch.len();
    for slip in batch.extract_if(.., |slip| matches!(slip.order, Order::Acquire(_))) {
        let _ = slip.tell.send(Err(error.clone()));
    }
    if batch.len() == before { Err(error.clone()) } else { Ok(()) }
}
