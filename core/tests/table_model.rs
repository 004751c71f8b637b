//! The lock table against a naive one, step by step: the same answers, effects, queue and deadlines for any sequence of
//! requests, at any time. And, without the naive one, what must never be.

#![allow(clippy::expect_used, reason = "a test may panic")]

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*, test_runner::Config};
use windlass::{
    ClaimId, Mode, Name, Owner,
    ask::{Ask, Claim, Entry},
    table::{Changed, Effect, Origin, Outcome, Rules, Table, What},
    time::Millis,
};

mod naive;

use naive::{Naive, pair};

const NAMES: [&str; 3] = ["a", "a/b", "\u{1f512}"];
const CLAIMS: u128 = 5;
const CASES: u32 = 100_000;

#[derive(Clone, Debug)]
enum Step {
    Ask { entry: Entry, mode: Mode, ttl: u64 },
    Renew,
    Release,
    Change(Mode),
    Gone { grace: u64 },
    Force { which: usize },
    Pass { millis: u64 },
    Expire,
}

/// A step, whose claim it is and of which name.
fn step() -> impl Strategy<Value = (Step, u128, usize)> {
    // One draw a step: trees of strategies would take most of the run.
    any::<u64>().prop_map(|dice| {
        let dice = std::cell::Cell::new(dice);
        let roll = |sides: u64| {
            let rolled = dice.get() % sides;
            dice.set(dice.get() / sides);
            rolled
        };
        let id = 1 + u128::from(roll(CLAIMS as u64));
        // Most steps are about one name, so that the others do not thin them out.
        let name = [0, 0, 0, 1, 2][roll(5) as usize];
        let mode = match roll(6) {
            0 | 1 => Mode::Exclusive,
            2 | 3 => Mode::Shared,
            4 => Mode::Upgradable,
            _ => Mode::Permit(NonZeroU32::new(1 + roll(3) as u32).expect("not zero")),
        };
        let step = match roll(20) {
            0..=6 => {
                let entry =
                    [Entry::Queue, Entry::Queue, Entry::Queue, Entry::Queue, Entry::Try, Entry::Steal];
                Step::Ask { entry: entry[roll(6) as usize], mode, ttl: 2 + roll(6) }
            }
            7 => Step::Renew,
            8..=10 => Step::Release,
            11..=13 => Step::Change(mode),
            14 => Step::Gone { grace: roll(4) },
            15 => Step::Force { which: roll(4) as usize },
            16..=17 => Step::Pass { millis: 1 + roll(4) },
            _ => Step::Expire,
        };
        (step, id, name)
    })
}

struct Run {
    table: Table,
    naive: Naive,
    /// The fencing tokens of each name, as they were given.
    tokens: [Vec<u64>; 3],
}

impl Run {
    fn new(expires: bool, remember: u64) -> Self {
        let rules = Rules { first_token: 1, expires, remember: Duration::from_millis(remember) };
        let naive = Naive { expires, remember, ..Naive::default() };
        Self { table: Table::new(rules), naive, tokens: Default::default() }
    }

    fn take(&mut self, step: &Step, id: u128, name: usize) {
        let claim = Claim { name: named(name), id: ClaimId::from_u128(id) };
        let origin = Origin(id as u64);
        let now = Millis(self.naive.now);
        let (table, naive) = (&mut self.table, &mut self.naive);
        let mut effects = Vec::new();
        match step {
            Step::Ask { entry, mode, ttl } => {
                let ask = ask(&claim, *entry, *mode, *ttl);
                let outcome = table.acquire(now, &ask, origin, &mut effects);
                assert_eq!(outcome, naive.acquire(&ask, origin));
                if let Outcome::Granted(granted) = outcome {
                    note(&mut self.tokens[name], granted.fencing_token);
                }
            }
            // From another origin, which then gets the news.
            Step::Renew => {
                let origin = Origin(origin.0 + 100);
                assert_eq!(table.renew(now, &claim, origin), naive.renew(&claim, origin));
            }
            Step::Release => assert_eq!(table.release(now, &claim, &mut effects), naive.release(&claim)),
            Step::Change(to) => {
                let changed = table.change(now, &claim, *to, &mut effects);
                assert_eq!(changed, naive.change(&claim, *to));
                if let Changed::Done(granted) = changed {
                    note(&mut self.tokens[name], granted.fencing_token);
                }
            }
            Step::Gone { grace } => {
                let gone = table.waiter_gone(now, &claim, Duration::from_millis(*grace));
                assert_eq!(gone, naive.waiter_gone(&claim, *grace));
            }
            Step::Force { which } => {
                let token =
                    which.checked_sub(1).map(|n| naive.holders(&claim).get(n).map_or(999, |h| h.token()));
                let taken = table.force_release(now, &claim.name, token, &mut effects);
                let tokens: Vec<u64> = taken.iter().map(|holder| holder.fencing_token).collect();
                assert_eq!(tokens, naive.force_release(&claim, token));
            }
            Step::Pass { millis } => naive.now += millis,
            Step::Expire => {
                table.expire(now, &mut effects);
                naive.expire();
            }
        }
        self.compare_effects(effects);
        self.compare_views(&claim);
        self.check_invariants();
    }

    /// Grants in the same order; the rest in any.
    fn compare_effects(&mut self, mut real: Vec<Effect>) {
        let mut naive = std::mem::take(&mut self.naive.effects);
        for effect in &real {
            if let What::Granted(granted) = effect.what {
                let name =
                    NAMES.iter().position(|name| *name == effect.claim.name.as_str()).expect("one of ours");
                note(&mut self.tokens[name], granted.fencing_token);
            }
        }
        let rank = |effect: &Effect| match effect.what {
            What::Granted(granted) => (0, u128::from(granted.fencing_token)),
            What::Lost(_) => (1, effect.claim.id.reveal()),
            What::Contended => (2, effect.claim.id.reveal()),
            What::Left => (3, effect.claim.id.reveal()),
        };
        let key = |effect: &Effect| (rank(effect), effect.claim.name.clone());
        let order = |effects: &[Effect]| -> Vec<(i32, u128)> {
            effects.iter().map(rank).filter(|(kind, _)| *kind == 0).collect()
        };
        assert!(order(&real).is_sorted(), "grants out of order: {real:?}");
        real.sort_by_key(key);
        naive.sort_by_key(key);
        assert_eq!(real, naive);
    }

    fn compare_views(&self, claim: &Claim) {
        let (table, naive) = (&self.table, &self.naive);
        let now = Millis(naive.now);
        assert_eq!(table.next_deadline(), naive.next_deadline().map(Millis));
        assert_eq!(table.next_token(), naive.tokens + 1);
        let mut all = table.status(now, "").into_iter();
        for name in 0..NAMES.len() {
            let any = Claim { name: named(name), id: ClaimId::from_u128(0) };
            let (holders, line) = (naive.holders(&any), naive.line(&any));
            if holders.is_empty() && line.is_empty() {
                continue;
            }
            let status = all.next().expect("one for each name in use");
            assert_eq!(status.name, any.name);
            let seen: Vec<_> = status
                .holders
                .iter()
                .map(|h| (h.owner.owner.clone(), h.mode, h.fencing_token, h.held_for))
                .collect();
            let since = |since: u64| Some(Duration::from_millis(naive.now - since));
            let meant: Vec<_> =
                holders.iter().map(|h| (owner(h.claim.id), h.mode, h.token(), since(h.since))).collect();
            assert_eq!(seen, meant);
            let seen: Vec<_> =
                status.waiters.iter().map(|w| (w.owner.owner.clone(), w.mode, w.waited_for)).collect();
            let meant: Vec<_> = line.iter().map(|w| (owner(w.claim.id), w.mode, since(w.since))).collect();
            assert_eq!(seen, meant);
        }
        assert_eq!(all.next(), None, "a name that nobody holds takes no memory");
        self.compare_waiting(claim);
    }

    fn compare_waiting(&self, claim: &Claim) {
        let waiting = self.table.waiting(Millis(self.naive.now), claim);
        assert_eq!(waiting.place, self.naive.place(claim));
        let is_upgrade = self.naive.upgrading(claim).is_some_and(|up| up.claim == *claim);
        let others = self.naive.holders(claim).into_iter().filter(|h| !(is_upgrade && h.claim == *claim));
        let tokens: Vec<u64> = waiting.holders.iter().map(|holder| holder.fencing_token).collect();
        assert_eq!(tokens, others.map(|holder| holder.token()).collect::<Vec<_>>());
    }

    /// Said again without the naive table, in case both are wrong.
    fn check_invariants(&self) {
        let all = self.table.status(Millis(self.naive.now), "");
        assert_eq!(self.table.len(), all.len());
        assert_eq!(self.table.is_empty(), all.is_empty());
        for status in all {
            let modes: Vec<Mode> = status.holders.iter().map(|holder| holder.mode).collect();
            assert!(fit_together(&modes), "conflicting holders: {status:?}");
            assert!(!modes.is_empty(), "somebody waits for a free lock: {status:?}");
            let any = Claim { name: status.name.clone(), id: ClaimId::from_u128(0) };
            if let (Some(head), None) = (status.waiters.first(), self.naive.upgrading(&any)) {
                let with_head: Vec<Mode> = modes.iter().copied().chain([head.mode]).collect();
                assert!(!fit_together(&with_head), "the head of the queue could hold: {status:?}");
            }
        }
        for tokens in &self.tokens {
            assert!(tokens.is_sorted(), "{tokens:?}");
        }
    }
}

fn fit_together(modes: &[Mode]) -> bool {
    let limits =
        modes.iter().filter_map(|mode| if let Mode::Permit(limit) = mode { Some(limit.get()) } else { None });
    let room = limits.min().is_none_or(|limit| modes.len() <= limit as usize);
    room && (0..modes.len()).all(|i| (0..i).all(|j| pair(modes[i], modes[j])))
}

/// A token that was given before may be told again, and grows otherwise.
fn note(tokens: &mut Vec<u64>, token: u64) {
    if !tokens.contains(&token) {
        tokens.push(token);
    }
}

fn named(at: usize) -> Name {
    NAMES[at].parse().expect("a name")
}

fn owner(id: ClaimId) -> String {
    format!("owner {}", id.reveal())
}

fn ask(claim: &Claim, entry: Entry, mode: Mode, ttl: u64) -> Ask {
    Ask {
        name: claim.name.clone(),
        claim_id: claim.id,
        mode,
        entry,
        ttl: Duration::from_millis(ttl),
        owner: Arc::new(Owner { owner: owner(claim.id), ..Owner::default() }),
        keep: Duration::ZERO,
        only_here: false,
    }
}

proptest! {
    #![proptest_config(Config {
        // `PROPTEST_CASES` asks for fewer or more.
        cases: std::env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().expect("a number")),
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn does_what_the_naive_table_does(
        expires in any::<bool>(),
        remember in prop_oneof![Just(0), Just(5)],
        steps in vec(step(), 1..40),
    ) {
        let mut run = Run::new(expires, remember);
        for (step, id, name) in &steps {
            run.take(step, *id, *name);
        }
    }
}
