//! One lock as its object tells of it, and how requests change that. Pure: the rules are [`Record`]'s, the time is the
//! writer's and for people only.
//!
//! Besides what a record has, each claim has a *beat*, a number that grows whenever somebody speaks for it. A grant that a
//! claim did not write itself, but that was handed to it, has the beat 0 until it is taken up, unless whoever handed it over knew
//! that the claim lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    ask::{Ask, Holder, Mode, Owner},
    error::LostReason,
    name::ClaimId,
    protocol::hex,
    record::{Change, Party, Record, Turn},
    table::{Changed, Granted, Origin, Outcome, Tally, What},
    time::Millis,
};

/// The token of a grant that comes with the making of its object: the resource version that the object then has.
pub(super) const AS_MADE: u64 = u64::MAX / 2;
/// Of so many claims that were taken from their holders it is still said why.
const REMEMBERED: usize = 16;

/// The holders of a lock and its queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Doc {
    /// In the order of their grants.
    pub(super) holders: Vec<Entry>,
    /// In the order of their coming.
    pub(super) queue: Vec<Entry>,
    pub(super) upgrading: bool,
    /// Claims that were taken from their holders, the last one last.
    pub(super) gone: Vec<(ClaimId, LostReason)>,
    /// The object is not for us to remove.
    pub(super) kept: bool,
}

/// A claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// [Sealed](super::names::seal).
    pub(super) id: ClaimId,
    pub(super) mode: Mode,
    pub(super) ttl: Duration,
    /// Of one that waits, and of a foreign one: 0.
    pub(super) token: u64,
    pub(super) beat: u64,
    pub(super) owner: Arc<Owner>,
    /// By the clock of whoever wrote it.
    pub(super) since: Millis,
    /// It holds by another's rules, and is not written by us.
    pub(super) foreign: bool,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// The ask has its id sealed.
    Acquire(Ask),
    /// Take up a grant, or let it live on.
    Renew(ClaimId),
    Release(ClaimId),
    Change(ClaimId, Mode),
    /// Take the lock from its holders, or from those with this token.
    Force(Option<u64>),
    Bury(Dead),
}

impl Order {
    /// Whose grant it may bring about.
    fn speaks_for(&self) -> Option<ClaimId> {
        match self {
            Self::Acquire(ask) => Some(ask.claim_id),
            Self::Renew(id) | Self::Change(id, _) => Some(*id),
            Self::Release(_) | Self::Force(_) | Self::Bury(_) => None,
        }
    }
}

/// Claims that have died.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Dead {
    /// Those that hold, each at its beat.
    pub(super) holders: Vec<(ClaimId, u64)>,
    /// Those that wait. One that is let in meanwhile is not known to be dead.
    pub(super) waiters: Vec<ClaimId>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Granted(Granted),
    Waits,
    Busy,
    /// It neither holds nor waits; why, if that is known.
    Gone(Option<LostReason>),
    /// The mode that it has cannot be changed to the one that was asked for.
    Refused(Mode),
    Taken(Vec<Holder>),
    Done,
}

impl Doc {
    pub(super) fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.queue.is_empty()
    }

    /// Whether it has more claims than it had: what is not so has room where that had it.
    pub(super) fn has_grown(&self, before: Option<&Self>) -> bool {
        let count = |doc: &Self| doc.holders.len() + doc.queue.len();
        count(self) > before.map_or(0, count)
    }

    pub(super) fn holder(&self, id: ClaimId) -> Option<&Entry> {
        self.holders.iter().find(|entry| entry.id == id)
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.holders.iter().any(|entry| entry.foreign)
    }

    /// Its place in the queue, from 0.
    pub(super) fn place(&self, id: ClaimId) -> Option<usize> {
        self.queue.iter().position(|entry| entry.id == id)
    }

    /// Why it was taken from its holder.
    pub(super) fn why_gone(&self, id: ClaimId) -> Option<LostReason> {
        self.gone.iter().rev().find(|(gone, _)| *gone == id).map(|(_, why)| *why)
    }

    pub(super) fn record(&self) -> Record {
        let holders = self.holders.iter().map(|entry| (entry.party(), Some(entry.token)));
        let queue = self.queue.iter().map(|entry| (entry.party(), None));
        Record::written(holders.chain(queue), self.upgrading)
    }

    /// Whether people see no difference.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let looks = |entries: &[Entry]| -> Vec<(ClaimId, Mode)> {
            entries.iter().map(|entry| (entry.id, entry.mode)).collect()
        };
        looks(&self.holders) == looks(&other.holders) && looks(&self.queue) == looks(&other.queue)
    }

    /// After these requests. `token` is that of all grants that they bring about and leave: claims that hold together do not
    /// conflict. `alive`: who waits and is known to live.
    pub(super) fn after(
        &self,
        orders: &[&Order],
        now: Millis,
        token: u64,
        alive: &BTreeSet<ClaimId>,
    ) -> (Self, Vec<Answer>) {
        let mut record = self.record();
        let mut next_token = token;
        let mut changes = Vec::new();
        let count = |entries: &[Entry]| u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let mut tally =
            Tally { holding: count(&self.holders), waiting: count(&self.queue), ..Tally::default() };
        let mut turn = Turn { now, next_token: &mut next_token, changes: &mut changes, tally: &mut tally };
        // Those that speak for themselves.
        let mut spoke = BTreeSet::new();
        let mut answers = Vec::with_capacity(orders.len());
        for order in orders {
            answers.push(self.step(&mut record, &mut turn, order, token, &mut spoke));
        }
        let mut after = Self {
            upgrading: record.is_upgrading(),
            gone: self.gone.clone(),
            kept: self.kept,
            ..Self::default()
        };
        let before: BTreeMap<ClaimId, &Entry> =
            self.holders.iter().chain(&self.queue).map(|entry| (entry.id, entry)).collect();
        record.each(|party, granted| {
            let was = before.get(&party.id);
            let let_in = granted.is_some() && self.place(party.id).is_some();
            let speaks = spoke.contains(&party.id) || let_in && alive.contains(&party.id);
            let beat = was.map_or(0, |was| was.beat) + u64::from(speaks);
            let foreign = was.is_some_and(|was| was.foreign);
            let entry = Entry {
                id: party.id,
                mode: party.mode,
                ttl: party.ttl.unwrap_or_default(),
                token: granted.map_or(0, |granted| granted.min(token)),
                beat,
                owner: party.owner.clone(),
                since: party.since,
                foreign,
            };
            if granted.is_some() { after.holders.push(entry) } else { after.queue.push(entry) }
        });
        for change in changes {
            if let Change::Tell { id, what: What::Lost(why), .. } = change {
                after.gone.push((id, why));
            }
        }
        after.gone.drain(..after.gone.len().saturating_sub(REMEMBERED));
        for (order, answer) in orders.iter().zip(&mut answers) {
            // What a later one of them took away again never stands in the object: its token is that of another grant.
            if let (Answer::Granted(_), Some(id)) = (&*answer, order.speaks_for())
                && after.holder(id).is_none()
            {
                *answer = Answer::Gone(after.why_gone(id));
            }
        }
        (after, answers)
    }

    fn step(
        &self,
        record: &mut Record,
        turn: &mut Turn<'_>,
        order: &Order,
        token: u64,
        spoke: &mut BTreeSet<ClaimId>,
    ) -> Answer {
        let mut granted = |id: ClaimId, granted: Granted| {
            spoke.insert(id);
            Answer::Granted(Granted { fencing_token: granted.fencing_token.min(token), ..granted })
        };
        match order {
            Order::Acquire(ask) => match record.acquire(turn, ask, Origin::default(), Some(ask.ttl)) {
                Outcome::Granted(grant) => granted(ask.claim_id, grant),
                Outcome::Queued { .. } => Answer::Waits,
                Outcome::Busy => Answer::Busy,
                Outcome::Over => Answer::Gone(None),
            },
            Order::Renew(id) => match record.renew(turn, *id, Origin::default()) {
                Some(grant) => granted(*id, grant),
                None if record.knows(*id) => Answer::Waits,
                None => Answer::Gone(self.why_gone(*id)),
            },
            Order::Release(id) if record.knows(*id) => {
                record.release(turn, *id);
                Answer::Done
            }
            Order::Release(id) => Answer::Gone(self.why_gone(*id)),
            Order::Change(id, to) => match record.change(turn, *id, *to) {
                Changed::Done(grant) => granted(*id, grant),
                Changed::Waiting => {
                    spoke.insert(*id);
                    Answer::Waits
                }
                Changed::NotHeld => Answer::Gone(self.why_gone(*id)),
                Changed::Refused { from } => Answer::Refused(from),
            },
            Order::Force(of) => Answer::Taken(record.force_release(turn, *of)),
            Order::Bury(dead) => {
                let holds =
                    |(id, beat): &&(ClaimId, u64)| self.holder(*id).is_some_and(|it| it.beat == *beat);
                let holders = dead.holders.iter().filter(holds).map(|(id, _)| id);
                let waiters = dead.waiters.iter().filter(|id| self.place(**id).is_some());
                holders.chain(waiters).for_each(|id| record.run_out(turn, *id));
                record.settle(turn);
                Answer::Done
            }
        }
    }
}

impl Entry {
    fn party(&self) -> Party {
        Party {
            id: self.id,
            origin: Origin::default(),
            mode: self.mode,
            owner: self.owner.clone(),
            ttl: Some(self.ttl),
            since: self.since,
        }
    }
}

/// How it stands in an object, with the lock that the object is for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) prefix: String,
    pub(super) name: String,
    #[serde(default)]
    holders: Vec<Line>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    queue: Vec<Line>,
    #[serde(default, skip_serializing_if = "is_false")]
    upgrading: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<Gone>,
    #[serde(default, skip_serializing_if = "is_false")]
    kept: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(with = "hex")]
    id: ClaimId,
    mode: Mode,
    ttl_ms: u64,
    /// Absent: it waits, or its grant came with the making of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    beat: u64,
    since_ms: u64,
    #[serde(flatten)]
    owner: Owner,
}

#[derive(Debug, Serialize, Deserialize)]
struct Gone {
    #[serde(with = "hex")]
    id: ClaimId,
    why: LostReason,
}

impl Written {
    pub(super) fn new(prefix: &str, name: &str, doc: &Doc) -> Self {
        let lines =
            |entries: &[Entry]| entries.iter().filter(|entry| !entry.foreign).map(Line::new).collect();
        Self {
            prefix: prefix.to_owned(),
            name: name.to_owned(),
            holders: lines(&doc.holders),
            queue: lines(&doc.queue),
            upgrading: doc.upgrading,
            gone: doc.gone.iter().map(|(id, why)| Gone { id: *id, why: *why }).collect(),
            kept: doc.kept,
        }
    }

    /// Whether the token of a holder is the version of the object.
    pub(super) fn is_unsettled(&self) -> bool {
        self.holders.iter().any(|line| line.token.is_none())
    }

    /// What it says in an object of this resource version.
    pub(super) fn doc(self, version: u64) -> Doc {
        Doc {
            holders: self.holders.into_iter().map(|line| line.entry(version)).collect(),
            queue: self.queue.into_iter().map(|line| line.entry(0)).collect(),
            upgrading: self.upgrading,
            gone: self.gone.into_iter().map(|gone| (gone.id, gone.why)).collect(),
            kept: self.kept,
        }
    }
}

impl Line {
    fn new(entry: &Entry) -> Self {
        Self {
            id: entry.id,
            mode: entry.mode,
            ttl_ms: u64::try_from(entry.ttl.as_millis()).unwrap_or(u64::MAX),
            token: Some(entry.token).filter(|token| !matches!(*token, 0 | AS_MADE)),
            beat: entry.beat,
            since_ms: entry.since.0,
            owner: Owner::clone(&entry.owner),
        }
    }

    fn entry(self, token: u64) -> Entry {
        Entry {
            id: self.id,
            mode: self.mode,
            ttl: Duration::from_millis(self.ttl_ms),
            token: self.token.unwrap_or(token),
            beat: self.beat,
            owner: Arc::new(self.owner),
            since: Millis(self.since_ms),
            foreign: false,
        }
    }
}

fn is_false(it: &bool) -> bool {
    !it
}

fn is_zero(it: &u64) -> bool {
    *it == 0
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{ask::Entry as How, name::Name};

    fn id(n: u128) -> ClaimId {
        ClaimId::from_u128(n)
    }

    fn acquire(n: u128, mode: Mode, entry: How) -> Order {
        Order::Acquire(Ask {
            name: "lock".parse::<Name>().unwrap(),
            claim_id: id(n),
            mode,
            entry,
            ttl: Duration::from_secs(10),
            owner: Arc::new(Owner { owner: format!("owner {n}"), ..Owner::default() }),
            keep: Duration::ZERO,
            only_here: false,
        })
    }

    fn queue(n: u128) -> Order {
        acquire(n, Mode::Exclusive, How::Queue)
    }

    fn bury(holders: &[(u128, u64)], waiters: &[u128]) -> Order {
        let holders = holders.iter().map(|(n, beat)| (id(*n), *beat)).collect();
        Order::Bury(Dead { holders, waiters: waiters.iter().copied().map(id).collect() })
    }

    fn after_with(doc: &Doc, version: u64, orders: &[Order], alive: &[u128]) -> (Doc, Vec<Answer>) {
        let alive = alive.iter().copied().map(id).collect();
        doc.after(&orders.iter().collect::<Vec<_>>(), Millis(version), version + 1, &alive)
    }

    fn after(doc: &Doc, version: u64, orders: &[Order]) -> (Doc, Vec<Answer>) {
        after_with(doc, version, orders, &[])
    }

    /// Each claim with its token and beat, the holders before the slash.
    fn shown(doc: &Doc) -> String {
        let one = |entry: &Entry| format!("{}:{}:{}", entry.id.reveal(), entry.token, entry.beat);
        let all = |entries: &[Entry]| entries.iter().map(one).collect::<Vec<_>>().join(" ");
        format!("{} / {}", all(&doc.holders), all(&doc.queue)).trim().to_owned()
    }

    #[test]
    fn a_release_hands_on_and_the_next_takes_it_up() {
        let (doc, answers) = after(&Doc::default(), 10, &[queue(1), queue(2), queue(3)]);
        assert_eq!(shown(&doc), "1:11:1 / 2:0:0 3:0:0");
        assert!(matches!(answers[..], [Answer::Granted(_), Answer::Waits, Answer::Waits]));
        let (doc, _) = after(&doc, 20, &[Order::Release(id(1))]);
        assert_eq!(shown(&doc), "2:21:0 / 3:0:0");
        let (doc, answers) =
            after(&doc, 30, &[Order::Renew(id(2)), Order::Renew(id(3)), Order::Renew(id(1))]);
        assert_eq!(shown(&doc), "2:21:1 / 3:0:0", "a renewal keeps the token");
        let [Answer::Granted(granted), Answer::Waits, Answer::Gone(None)] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!((granted.fencing_token, granted.contended), (21, true));
        let (doc, _) = after(&doc, 40, &[Order::Release(id(2)), Order::Release(id(3))]);
        assert!(doc.is_idle());
    }

    #[test]
    fn who_is_known_to_live_has_nothing_to_take_up() {
        let (doc, _) = after(&Doc::default(), 10, &[queue(1), queue(2), queue(3)]);
        let (doc, _) = after_with(&doc, 20, &[Order::Release(id(1))], &[1, 2, 3, 4]);
        assert_eq!(shown(&doc), "2:21:1 / 3:0:0", "one that waits on has no beat");
        let (doc, _) = after_with(&doc, 30, &[Order::Renew(id(2))], &[2, 3]);
        assert_eq!(shown(&doc), "2:21:2 / 3:0:0");
        let (doc, _) = after_with(&doc, 40, &[Order::Release(id(2)), Order::Renew(id(3))], &[3]);
        assert_eq!(shown(&doc), "3:41:1 /", "it spoke for itself, once");
    }

    #[test]
    fn what_changes_nothing_is_equal() {
        let (doc, _) = after(&Doc::default(), 10, &[queue(1), queue(2)]);
        for order in [
            queue(2),
            acquire(3, Mode::Shared, How::Try),
            Order::Release(id(9)),
            Order::Renew(id(2)),
            Order::Force(Some(7)),
            bury(&[(1, 0), (2, 0)], &[1]),
            Order::Change(id(2), Mode::Shared),
        ] {
            assert_eq!(after(&doc, 20, std::slice::from_ref(&order)).0, doc, "{order:?}");
        }
    }

    #[test]
    fn those_let_in_by_one_step_have_one_token_and_the_next_a_greater_one() {
        let shared = |n| acquire(n, Mode::Shared, How::Queue);
        let permit = Mode::Permit(NonZeroU32::new(2).unwrap());
        let (doc, _) =
            after(&Doc::default(), 10, &[queue(1), shared(2), shared(3), acquire(4, permit, How::Queue)]);
        let (doc, _) = after(&doc, 11, &[Order::Release(id(1))]);
        assert_eq!(shown(&doc), "2:12:0 3:12:0 / 4:0:0");
        let (doc, _) = after(&doc, 12, &[Order::Release(id(2)), Order::Release(id(3))]);
        assert_eq!(shown(&doc), "4:13:0 /");
    }

    #[test]
    fn what_is_taken_away_by_the_same_write_was_never_granted() {
        let steal = |n| acquire(n, Mode::Exclusive, How::Steal);
        let stolen = Answer::Gone(Some(LostReason::Stolen));
        let forced = Answer::Gone(Some(LostReason::ForceReleased));
        let upgradable = after(&Doc::default(), 5, &[acquire(1, Mode::Upgradable, How::Queue)]).0;
        for (doc, orders, first) in [
            (&Doc::default(), &[queue(1), steal(2)][..], &stolen),
            (&Doc::default(), &[steal(1), steal(2)], &stolen),
            (&Doc::default(), &[queue(1), Order::Force(None), queue(2)], &forced),
            (&upgradable, &[Order::Change(id(1), Mode::Exclusive), steal(2)], &stolen),
        ] {
            let (doc, answers) = after(doc, 10, orders);
            assert_eq!((shown(&doc), &answers[0]), ("2:11:1 /".to_owned(), first), "{orders:?}");
            let [.., Answer::Granted(granted)] = &answers[..] else { panic!("{answers:?}") };
            assert_eq!(granted.fencing_token, 11);
        }
    }

    #[test]
    fn a_grant_that_comes_with_the_object_has_its_version() {
        let (doc, answers) = Doc::default().after(&[&queue(1)], Millis(0), AS_MADE, &BTreeSet::new());
        assert!(matches!(answers[..], [Answer::Granted(granted)] if granted.fencing_token == AS_MADE));
        let read = read_again(&doc, 17);
        assert_eq!(shown(&read), "1:17:1 /");
        let (doc, _) = after(&read, 17, &[queue(2), Order::Release(id(1))]);
        assert_eq!(shown(&doc), "2:18:0 /");
    }

    #[test]
    fn the_taken_are_remembered_a_few_at_a_time() {
        let (mut doc, _) = after(&Doc::default(), 1, &[queue(1)]);
        for n in 2..=20 {
            (doc, _) = after(&doc, u64::try_from(n).unwrap(), &[acquire(n, Mode::Exclusive, How::Steal)]);
        }
        assert_eq!(doc.gone.len(), REMEMBERED);
        assert_eq!(doc.why_gone(id(19)), Some(LostReason::Stolen));
        assert_eq!(doc.why_gone(id(1)), None);
        let (doc, answers) = after(&doc, 30, &[Order::Force(None), queue(21)]);
        assert!(matches!(&answers[0], Answer::Taken(taken) if taken[0].owner.owner == "owner 20"));
        assert_eq!(doc.why_gone(id(20)), Some(LostReason::ForceReleased));
        let (doc, answers) = after(&doc, 40, &[bury(&[(21, 1)], &[]), Order::Renew(id(21))]);
        assert_eq!((shown(&doc), doc.why_gone(id(21))), ("/".to_owned(), Some(LostReason::Expired)));
        // It is said to whoever asks the next time.
        assert_eq!(answers[1], Answer::Gone(None));
    }

    #[test]
    fn an_upgrade_waits_and_a_burial_ends_the_wait() {
        let upgradable = acquire(1, Mode::Upgradable, How::Queue);
        let (doc, _) = after(&Doc::default(), 10, &[upgradable, acquire(2, Mode::Shared, How::Queue)]);
        let (doc, answers) = after(&doc, 20, &[Order::Change(id(1), Mode::Exclusive)]);
        assert!(doc.upgrading && answers == [Answer::Waits]);
        assert_eq!(shown(&doc), "1:11:2 2:11:1 /", "it spoke for itself");
        let (doc, _) = after(&doc, 30, &[bury(&[(2, 1)], &[])]);
        assert!(!doc.upgrading);
        assert_eq!((shown(&doc), doc.holders[0].mode), ("1:31:2 /".to_owned(), Mode::Exclusive));
    }

    /// Written down as JSON and read at this version.
    fn read_again(doc: &Doc, version: u64) -> Doc {
        let text = serde_json::to_string(&Written::new("", "lock", doc)).unwrap();
        assert!(!text.contains("null"), "{text}");
        serde_json::from_str::<Written>(&text).unwrap().doc(version)
    }

    #[test]
    fn what_is_written_is_read() {
        let (doc, _) = after(&Doc::default(), 10, &[acquire(1, Mode::Upgradable, How::Queue), queue(2)]);
        let (doc, _) = after(&doc, 11, &[acquire(3, Mode::Permit(NonZeroU32::MIN), How::Steal), queue(4)]);
        assert_eq!(read_again(&doc, 99), doc);
        let text = serde_json::to_string(&Written::new("team", "a/b", &Doc::default())).unwrap();
        assert_eq!(text, r#"{"prefix":"team","name":"a/b","holders":[]}"#);
    }
}
