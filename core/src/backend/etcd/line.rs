//! Who of a line holds the lock: a pure function of its keys, in the order of their create revisions, so that all who look at
//! the same revision agree, and nobody writes down who holds.
//!
//! The holders are the longest beginning of the line whose modes fit together: one exclusive claim alone, shared ones, or permits,
//! as many as the smallest limit among them allows. Whoever stands behind one who does not hold does not hold either:
//! first come, first served.
//!
//! A grant stays: claims come at the end of the line only, so what stands before a claim, all that decides about it, can
//! only become less, and a downgrade among it lets in no fewer.

use etcd_client::{Compare, CompareOp};

use crate::{
    ask::{Holder, Mode, Owner, Waiter, Waiting},
    name::ClaimId,
};

use super::value;

/// A key in a line.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) key: Vec<u8>,
    /// Its place in all lines: the revision of etcd at which it was put there.
    pub(super) created: i64,
    /// The revision at which it was last written.
    pub(super) modified: i64,
    pub(super) lease: i64,
    pub(super) mode: Mode,
    /// Whose it is, where its name does not say so.
    pub(super) claim: Option<ClaimId>,
    pub(super) owner: Owner,
    pub(super) value: Vec<u8>,
}

impl Member {
    pub(super) fn new(kv: &etcd_client::KeyValue) -> Self {
        let (mode, claim, owner) = value::read(kv.value())
            .unwrap_or_else(|| (Mode::Exclusive, None, value::stranger(kv.key(), kv.value())));
        Self {
            key: kv.key().to_vec(),
            created: kv.create_revision(),
            modified: kv.mod_revision(),
            lease: kv.lease(),
            mode,
            claim,
            owner,
            value: kv.value().to_vec(),
        }
    }

    /// Whether it can be this claim's, whose key it has.
    pub(super) fn is_of(&self, id: ClaimId) -> bool {
        self.claim.is_none_or(|claim| claim == id)
    }

    /// That nobody has written it since.
    pub(super) fn unchanged(&self) -> Compare {
        Compare::mod_revision(self.key.clone(), CompareOp::Equal, self.modified)
    }

    pub(super) fn token(&self) -> u64 {
        token(self.created)
    }

    pub(super) fn as_holder(&self) -> Holder {
        Holder { owner: self.owner.clone(), mode: self.mode, fencing_token: self.token(), held_for: None }
    }

    pub(super) fn as_waiter(&self) -> Waiter {
        Waiter { owner: self.owner.clone(), mode: self.mode, waited_for: None }
    }
}

/// A revision as a fencing token; they begin with 1.
pub(super) fn token(created: i64) -> u64 {
    u64::try_from(created).unwrap_or_default()
}

/// How many of a line hold, the first ones.
pub(super) fn holders(line: impl IntoIterator<Item = Mode>) -> usize {
    let mut line = line.into_iter();
    let Some(first) = line.next() else { return 0 };
    1 + match first {
        Mode::Exclusive | Mode::Upgradable => 0,
        Mode::Shared => line.take_while(|mode| *mode == Mode::Shared).count(),
        Mode::Permit(limit) => {
            let (mut held, mut least) = (1, limit);
            line.take_while(|mode| {
                let Mode::Permit(limit) = mode else { return false };
                least = least.min(*limit);
                held += 1;
                held <= least.get()
            })
            .count()
        }
    }
}

/// Whether one more at the end of the line would hold.
pub(super) fn admits(line: &[Member], mode: Mode) -> bool {
    holders(modes(line).chain([mode])) > line.len()
}

pub(super) fn modes(line: &[Member]) -> impl Iterator<Item = Mode> {
    line.iter().map(|member| member.mode)
}

/// Where a claim stands.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// It holds.
    Holds,
    /// It has to wait.
    Behind {
        /// Nothing changes for it before something happens to this.
        obstacle: Obstacle,
        /// For whom; `None`: that is still to be asked.
        waiting: Option<Waiting>,
    },
}

/// Whom to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The claim of this key.
    One(Vec<u8>),
    /// Whoever of the line goes first.
    Any,
}

/// Where the last of these stands, who are all of the line up to it.
pub(super) fn standing(line: &[Member]) -> Standing {
    let held = holders(modes(line));
    let Some((me, older)) = line.split_last().filter(|_| held < line.len()) else { return Standing::Holds };
    let waiting = Some(Waiting {
        holders: line[..held].iter().map(Member::as_holder).collect(),
        place: Some(line.len() - held),
    });
    let in_the_way = match me.mode {
        Mode::Exclusive | Mode::Upgradable => older.last(),
        Mode::Shared => older.iter().rfind(|other| other.mode != Mode::Shared),
        // The next of those that hold to go, whichever that is, or another kind of claim.
        Mode::Permit(_) => None,
    };
    let obstacle = in_the_way.map_or(Obstacle::Any, |member| Obstacle::One(member.key.clone()));
    Standing::Behind { obstacle, waiting }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn permit(limit: u32) -> Mode {
        Mode::Permit(NonZeroU32::new(limit).unwrap())
    }

    fn member(n: usize, mode: Mode) -> Member {
        let owner = Owner { owner: n.to_string(), ..Owner::default() };
        let created = i64::try_from(n).unwrap() + 1;
        Member {
            key: vec![u8::try_from(n).unwrap()],
            created,
            modified: created,
            lease: 7,
            mode,
            claim: None,
            owner,
            value: vec![],
        }
    }

    fn line(modes: &[Mode]) -> Vec<Member> {
        modes.iter().enumerate().map(|(n, mode)| member(n, *mode)).collect()
    }

    fn mode() -> impl Strategy<Value = Mode> {
        prop_oneof![Just(Mode::Exclusive), Just(Mode::Shared), (1_u32..4).prop_map(permit)]
    }

    /// Word for word what the guarantee says.
    fn fit_together(modes: &[Mode]) -> bool {
        match modes {
            [] | [_] => true,
            _ if modes.iter().all(|mode| *mode == Mode::Shared) => true,
            _ => modes
                .iter()
                .all(|mode| matches!(mode, Mode::Permit(limit) if modes.len() <= limit.get() as usize)),
        }
    }

    #[test]
    fn who_holds() {
        let (x, s) = (Mode::Exclusive, Mode::Shared);
        assert_eq!(holders([]), 0);
        assert_eq!(holders([x, x, s]), 1);
        assert_eq!(holders([s, s, x, s]), 2);
        assert_eq!(holders([s, permit(9)]), 1);
        assert_eq!(holders([permit(3), permit(3), permit(3), permit(3)]), 3);
        assert_eq!(holders([permit(3), permit(1), permit(3)]), 1, "no wide one overtakes a narrow one");
        assert_eq!(holders([permit(1), permit(3)]), 1);
    }

    #[test]
    fn whom_to_watch() {
        let (x, s) = (Mode::Exclusive, Mode::Shared);
        let obstacle = |modes: &[Mode]| match standing(&line(modes)) {
            Standing::Holds => None,
            Standing::Behind { obstacle, waiting } => Some((obstacle, waiting.unwrap().place.unwrap())),
        };
        assert_eq!(obstacle(&[x]), None);
        assert_eq!(obstacle(&[s, s]), None);
        assert_eq!(obstacle(&[x, x, x]), Some((Obstacle::One(vec![1]), 2)));
        assert_eq!(obstacle(&[s, x, s, s]), Some((Obstacle::One(vec![1]), 3)));
        assert_eq!(obstacle(&[permit(1), permit(1)]), Some((Obstacle::Any, 1)));
    }

    proptest! {
        #[test]
        fn the_holders_fit_together_and_the_next_one_does_not(modes in prop::collection::vec(mode(), 0..8)) {
            let held = holders(modes.iter().copied());
            prop_assert!(fit_together(&modes[..held]));
            prop_assert!(held == modes.len() || !fit_together(&modes[..=held]));
        }

        #[test]
        fn a_grant_stays(modes in prop::collection::vec(mode(), 1..8), gone in any::<prop::sample::Index>()) {
            let mut line = line(&modes);
            let gone = gone.index(line.len());
            let held: Vec<i64> =
                line[..holders(modes.iter().copied())].iter().map(|member| member.created).collect();
            let out = line.remove(gone).created;
            let holds: Vec<i64> =
                line[..holders(super::modes(&line))].iter().map(|member| member.created).collect();
            for created in held.iter().filter(|created| **created != out) {
                prop_assert!(holds.contains(created));
            }
        }

        /// Whoever watches what is in the way hears of all that could let it in: as long as that stays, it waits.
        #[test]
        fn nothing_changes_while_the_obstacle_stays(
            modes in prop::collection::vec(mode(), 2..8), goes in prop::collection::vec(any::<bool>(), 8),
        ) {
            let line = line(&modes);
            let Standing::Behind { obstacle: Obstacle::One(key), .. } = standing(&line) else { return Ok(()) };
            let me = line.len() - 1;
            let left: Vec<Member> = line.iter().enumerate()
                .filter(|(n, member)| *n == me || member.key == key || !goes[*n])
                .map(|(_, member)| member.clone()).collect();
            let waits = matches!(standing(&left), Standing::Behind { .. });
            prop_assert!(waits);
        }
    }
}
