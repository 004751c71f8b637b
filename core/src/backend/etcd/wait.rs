//! From an ask to a grant.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, PutOptions, TxnOp, TxnOpResponse};
use futures_util::future::{self, Either};

use super::{
    Space,
    hub::{Happened, Inbox, Watch},
    keys::Range,
    line::{Member, Obstacle, Standing, admits},
    link::no_thread,
    look,
    post::Order,
    session::{Known, Lease, Spot},
    trouble::Trouble,
    value,
};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Mode},
    backend::OnWaiting,
    error::{Error, ErrorKind, Result},
    name::Name,
    time::Moment,
};

/// How often a write is tried again that others came before, or whose lease has just ended.
pub(super) const TRIES: usize = 50;

/// What became of a put.
pub(super) enum Put {
    /// The key was put there just now, at this revision.
    Fresh(i64, Vec<TxnOpResponse>),
    /// What it was conditional on is not so; this was read instead.
    Not(Vec<TxnOpResponse>),
}

/// Why a sleep ended.
enum Woken {
    ToLook,
    /// The watches broke.
    Deaf,
    /// The lease is over, and with it the claim.
    Over,
}

/// The watches of one who waits.
struct Register {
    obstacle: Obstacle,
    inbox: Arc<Inbox>,
    _watches: [Watch; 2],
}

impl Space {
    pub(super) async fn acquire(
        self: &Arc<Self>,
        ask: &Ask,
        waiting: OnWaiting<'_>,
    ) -> Result<Option<Grant>, Error> {
        let (claim, line) = (ask.claim(), self.keys.line(&ask.name));
        for _ in 0..TRIES {
            let lease = self.lease(ask.ttl).await.map_err(Trouble::into_error)?;
            let spot = self.place(ask, &lease);
            let key = &spot.key;
            let (when, bound) = match ask.entry {
                Entry::Try if ask.mode != Mode::Exclusive => {
                    let (members, revision) = self.members(&line).await.map_err(Trouble::into_error)?;
                    let mine = members.iter().any(|member| member.key == *key);
                    if !mine && !admits(&members, ask.mode) {
                        // Known since an earlier try, whose session had ended.
                        self.forget(&claim);
                        return Ok(None);
                    }
                    (Compare::mod_revision(line.from.clone(), CompareOp::Less, revision + 1), true)
                }
                Entry::Try => (Compare::create_revision(line.from.clone(), CompareOp::Equal, 0), true),
                _ => (Compare::create_revision(key.clone(), CompareOp::Equal, 0), false),
            };
            let mut when = vec![if bound { when.with_range(line.to.clone()) } else { when }];
            if bound && ask.mode != Mode::Exclusive {
                when.push(Compare::create_revision(key.clone(), CompareOp::Equal, 0));
            }
            let value = value::write(ask.mode, ask.only_here.then_some(claim.id), &ask.owner);
            let mut then =
                vec![TxnOp::put(key.clone(), value.clone(), Some(PutOptions::new().with_lease(lease.id)))];
            then.extend(look::questions(&line, ask.mode, None));
            let order = Order {
                line: line.from.clone(),
                when,
                then,
                otherwise: vec![TxnOp::get(key.clone(), None)],
                deletes: false,
                bytes: value.len() + 5 * key.len(),
            };
            let put = match self.put(&spot, order, &lease).await {
                Err(Trouble::LeaseGone) => continue,
                put => put.map_err(Trouble::into_error)?,
            };
            match put {
                Put::Fresh(created, answers) => {
                    self.session.change(claim.id, |known| {
                        (known.created, known.is_being_put) = (created, false);
                    });
                    let standing = look::answer(&answers, ask.mode, key);
                    return self.wait(&spot, ask.mode, created, standing, waiting).await.map(Some);
                }
                Put::Not(answers) => {
                    let there = answers.iter().find_map(|answer| match answer {
                        TxnOpResponse::Get(got) => look::members(got).pop(),
                        _ => None,
                    });
                    match there {
                        // Somebody's who writes where nobody else should: it gets a key that is named after it.
                        Some(mine) if !mine.is_of(claim.id) || ask.only_here && mine.claim.is_none() => {
                            self.session.change(claim.id, |known| {
                                (known.key, known.seat) = (self.keys.of(&claim), None);
                            });
                        }
                        Some(mine) => {
                            let moved = self.move_here(&claim, &mine, &lease, None).await;
                            if !moved.map_err(Trouble::into_error)? {
                                continue;
                            }
                            let standing = self.standing(&spot, mine.mode, mine.created).await;
                            let standing = standing.map_err(Trouble::into_error)?;
                            return self
                                .wait(&spot, mine.mode, mine.created, standing, waiting)
                                .await
                                .map(Some);
                        }
                        None if ask.entry != Entry::Try => continue,
                        None => {
                            self.forget(&claim);
                            if ask.mode == Mode::Exclusive {
                                return Ok(None);
                            }
                        }
                    }
                }
            }
        }
        Err(came_between())
    }

    /// Where the claim is to be written, or is.
    fn place(&self, ask: &Ask, lease: &Arc<Lease>) -> Spot {
        let claim = ask.claim();
        let key = || match ask.only_here {
            true => {
                let seat = self.session.seats.take(&ask.name);
                let suffix = self.session.seats.suffix(&seat);
                (self.keys.ending_in(&ask.name, &suffix), Some(seat))
            }
            false => (self.keys.of(&claim), None),
        };
        let known = self.enroll(&claim, key, ask.mode, lease, None);
        self.session.change(claim.id, |known| known.is_being_put = true);
        Spot { claim, key: known.key }
    }

    /// Puts a key on a lease. What follows from the answer is seen to also for one who does not wait for it. The lease that has
    /// the claim so far has it until then, because it may be revoked when it has no more.
    pub(super) async fn put(
        self: &Arc<Self>,
        spot: &Spot,
        order: Order,
        lease: &Arc<Lease>,
    ) -> Result<Put, Trouble> {
        lease.begin();
        let answer = self.post.put_in(order);
        let (space, spot, lease) = (self.clone(), spot.clone(), lease.clone());
        let put = self.link.awake.to_its_end(async move {
            let answer = answer.await.unwrap_or_else(|_| Err(no_thread()));
            match &answer {
                Ok(done) if done.so => space.has_put(&spot, &lease),
                Ok(_) => space.leave(&lease),
                Err(trouble) => space.not_put(&spot, &lease, trouble),
            }
            // Given up just before, it takes the key with it.
            answer.and_then(|done| match done.so && lease.over().is_some() {
                true => Err(Trouble::LeaseGone),
                false => Ok(done),
            })
        });
        let done = put.await?;
        Ok(if done.so { Put::Fresh(done.revision, done.answers) } else { Put::Not(done.answers) })
    }

    /// A claim that is known by its key alone, or hangs on another lease, hangs on this one from now on: its place and its
    /// token stay. Its key is written also if it is on this lease, unless that is known: who has ended the claim here may be about to
    /// delete what was written before ([`Space::swept`]). `false`: it has changed meanwhile, or the lease has
    /// ended.
    pub(super) async fn move_here(
        self: &Arc<Self>,
        claim: &Claim,
        mine: &Member,
        lease: &Arc<Lease>,
        held: Option<Moment>,
    ) -> Result<bool, Trouble> {
        let known = self.enroll(claim, || (mine.key.clone(), None), mine.mode, lease, held);
        if mine.lease != lease.id || !known.hangs_with(mine) {
            let order = self.to_lease(claim, mine, lease);
            match self.put(&known.spot(claim), order, lease).await {
                Ok(Put::Fresh(..)) => {}
                Ok(Put::Not(_)) | Err(Trouble::LeaseGone) => return Ok(false),
                Err(trouble) => return Err(trouble),
            }
        }
        self.session.change(claim.id, |known| {
            (known.created, known.mode, known.is_being_put) = (mine.created, mine.mode, false);
        });
        Ok(true)
    }

    /// Puts a key on another lease, unless it has changed meanwhile.
    pub(super) fn to_lease(&self, claim: &Claim, mine: &Member, lease: &Lease) -> Order {
        let put = PutOptions::new().with_lease(lease.id);
        Order {
            line: self.keys.line(&claim.name).from,
            when: vec![mine.unchanged()],
            then: vec![TxnOp::put(mine.key.clone(), mine.value.clone(), Some(put))],
            otherwise: Vec::new(),
            deletes: false,
            bytes: mine.value.len() + 2 * mine.key.len(),
        }
    }

    /// Deletes a key, if this is so.
    pub(super) fn deletion(&self, name: &Name, key: Vec<u8>, when: Option<Compare>) -> Order {
        Order {
            line: self.keys.line(name).from,
            when: when.into_iter().collect(),
            bytes: 2 * key.len(),
            then: vec![TxnOp::delete(key, None)],
            otherwise: Vec::new(),
            deletes: true,
        }
    }

    /// Where it stands; `None`: nowhere.
    pub(super) async fn standing(
        &self,
        spot: &Spot,
        mode: Mode,
        created: i64,
    ) -> Result<Option<Standing>, Trouble> {
        let questions = look::questions(&self.keys.line(&spot.claim.name), mode, Some(created));
        let (answers, _) = self.read(questions).await?;
        Ok(look::answer(&answers, mode, &spot.key))
    }

    async fn wait(
        self: &Arc<Self>,
        spot: &Spot,
        mode: Mode,
        created: i64,
        mut standing: Option<Standing>,
        waiting: OnWaiting<'_>,
    ) -> Result<Grant> {
        let mut register: Option<Register> = None;
        let mut told = None;
        loop {
            let (obstacle, why) = match standing {
                None => return Err(gone()),
                Some(Standing::Holds) => return self.holds(&spot.claim).ok_or_else(gone),
                Some(Standing::Behind { obstacle, waiting: Some(why) }) => (obstacle, why),
                Some(Standing::Behind { waiting: None, .. }) => {
                    standing = self.standing(spot, mode, created).await.map_err(Trouble::into_error)?;
                    continue;
                }
            };
            if told.as_ref() != Some(&why) {
                waiting(why.clone());
                told = Some(why);
            }
            let known = self.session.known(&spot.claim).ok_or_else(gone)?;
            match &register {
                Some(at) if at.obstacle == obstacle => match self.sleep(at, &known).await {
                    Woken::Over => return Err(gone()),
                    Woken::Deaf => register = None,
                    Woken::ToLook => {}
                },
                _ => register = Some(self.register(spot, obstacle).await.map_err(Trouble::into_error)?),
            }
            standing = self.standing(spot, mode, created).await.map_err(Trouble::into_error)?;
        }
    }

    async fn register(&self, spot: &Spot, obstacle: Obstacle) -> Result<Register, Trouble> {
        let inbox = Arc::new(Inbox::default());
        let range = match &obstacle {
            Obstacle::One(key) => Range::of(key.clone()),
            Obstacle::Any => self.keys.line(&spot.claim.name),
        };
        let mine = self.hub.watch(Range::of(spot.key.clone()), &inbox);
        let (theirs, mine) = future::join(self.hub.watch(range, &inbox), mine).await;
        Ok(Register { obstacle, inbox, _watches: [theirs?, mine?] })
    }

    /// Until something has happened, or until the fall-back look.
    async fn sleep(&self, register: &Register, known: &Known) -> Woken {
        let end = known.lease.end.listen();
        if known.lease.over().is_some() {
            return Woken::Over;
        }
        let pause = known.lease.ttl.div_f64(2.0 + 2.0 * self.rt.jitter()).max(Duration::from_millis(100));
        let happened = std::pin::pin!(register.inbox.next());
        let news = match future::select(happened, future::select(end, self.rt.sleep(pause))).await {
            Either::Left((news, _)) => news,
            Either::Right(_) => Vec::new(),
        };
        if news.iter().any(|(_, happened)| matches!(happened, Happened::Broken)) {
            return Woken::Deaf;
        }
        if known.lease.over().is_some() { Woken::Over } else { Woken::ToLook }
    }
}

pub(super) fn came_between() -> Error {
    Error::new(ErrorKind::Unavailable, "others came in between again and again")
}

pub(super) fn gone() -> Error {
    Error::new(ErrorKind::NotHeld, "the claim is not there: it has run out, was released, or was called off")
}
