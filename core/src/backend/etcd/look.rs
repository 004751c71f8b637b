//! What is read of a line to know where a claim stands in it: of a long one no more than it takes.

use etcd_client::{Client, GetOptions, GetResponse, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse};
use futures_util::future::try_join_all;

use super::{
    Space,
    keys::Range,
    line::{Member, Obstacle, Standing, standing},
    link::transact,
    session::Known,
    trouble::Trouble,
};
use crate::ask::{Claim, Mode, Waiting};

/// The operations that tell a claim, whose key was created at this revision or is just being put, where it stands. The latter is
/// mostly alone, or the second, and asks no more than it takes to know that.
pub(super) fn questions(line: &Range, mode: Mode, created: Option<i64>) -> Vec<TxnOp> {
    let up_to_me = |order| {
        let options = by_age(line, order);
        created.map_or(options.clone(), |created| options.with_max_create_revision(created))
    };
    let get = |options| TxnOp::get(line.from.clone(), Some(options));
    match mode {
        // Whoever is to be alone needs to know the one before, and people want to know the first.
        Mode::Exclusive | Mode::Upgradable => {
            let last = get(up_to_me(SortOrder::Descend).with_limit(2));
            let first = created.map(|_| get(up_to_me(SortOrder::Ascend).with_limit(1)));
            [last].into_iter().chain(first).collect()
        }
        Mode::Shared | Mode::Permit(_) => vec![get(up_to_me(SortOrder::Ascend))],
    }
}

/// What the answers say of the claim of this key and mode; `None`: it is not there.
pub(super) fn answer(answers: &[TxnOpResponse], mode: Mode, key: &[u8]) -> Option<Standing> {
    let mut looks = answers.iter().filter_map(|answer| match answer {
        TxnOpResponse::Get(got) => Some((members(got), got.count())),
        _ => None,
    });
    let (line, all) = looks.next()?;
    if !matches!(mode, Mode::Exclusive | Mode::Upgradable) {
        return line.last().filter(|me| me.key == key).map(|_| standing(&line));
    }
    line.first().filter(|me| me.key == key)?;
    let Some(before) = line.get(1) else { return Some(Standing::Holds) };
    let first = match looks.next() {
        Some((first, _)) => first.into_iter().next(),
        None => (all == 2).then(|| before.clone()),
    };
    let waiting = first.map(|first| {
        // Of those that share nobody here knows how many hold.
        let place = (before.key == first.key).then_some(1);
        Waiting { holders: vec![first.as_holder()], place }
    });
    Some(Standing::Behind { obstacle: Obstacle::One(before.key.clone()), waiting })
}

pub(super) fn members(got: &GetResponse) -> Vec<Member> {
    got.kvs().iter().map(Member::new).collect()
}

fn by_age(range: &Range, order: SortOrder) -> GetOptions {
    GetOptions::new().with_range(range.to.clone()).with_sort(SortTarget::Create, order)
}

impl Space {
    /// Reads, all at one revision.
    pub(super) async fn read(&self, ops: Vec<TxnOp>) -> Result<(Vec<TxnOpResponse>, i64), Trouble> {
        let response = self
            .link
            .ask(move |client: Client| {
                let ops = ops.clone();
                async move { transact(&client, Txn::new().and_then(ops)).await }
            })
            .await?;
        Ok((response.op_responses(), super::post::revision(&response)))
    }

    /// All keys of a range, the oldest first, and the revision of the look.
    pub(super) async fn members(&self, range: &Range) -> Result<(Vec<Member>, i64), Trouble> {
        let (answers, revision) =
            self.read(vec![TxnOp::get(range.from.clone(), Some(by_age(range, SortOrder::Ascend)))]).await?;
        let members = answers.iter().flat_map(|answer| match answer {
            TxnOpResponse::Get(got) => members(got),
            _ => Vec::new(),
        });
        Ok((members.collect(), revision))
    }

    /// Some keys, each where it is there.
    pub(super) async fn some(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Member>>, Trouble> {
        const AT_ONCE: usize = 100;
        // Side by side: a renewal of many claims has as long as one of few.
        let gets = |keys: &[Vec<u8>]| keys.iter().map(|key| TxnOp::get(key.clone(), None)).collect();
        let reads = keys.chunks(AT_ONCE).map(|keys| self.read(gets(keys)));
        let answers = try_join_all(reads).await?.into_iter().flat_map(|(answers, _)| answers);
        let found = answers.map(|answer| match answer {
            TxnOpResponse::Get(got) => members(&got).pop(),
            _ => None,
        });
        Ok(found.collect())
    }

    /// Where these claims are, of which this much is known: their keys, where they are there.
    pub(super) async fn find(
        &self,
        claims: &[Claim],
        known: &[Option<Known>],
    ) -> Result<Vec<Option<Member>>, Trouble> {
        let key = |(claim, known): (&Claim, &Option<Known>)| match known {
            Some(known) => known.key.clone(),
            None => self.keys.of(claim),
        };
        let keys: Vec<Vec<u8>> = claims.iter().zip(known).map(key).collect();
        let found = claims.iter().zip(known).zip(self.some(&keys).await?);
        let each = found.map(|((claim, known), found)| async move {
            match found.filter(|member| member.is_of(claim.id)) {
                None if known.is_none() => self.look_for(claim).await,
                found => Ok(found),
            }
        });
        try_join_all(each).await
    }

    /// A claim that is known by its id alone, and whose key is not named after it.
    pub(super) async fn look_for(&self, claim: &Claim) -> Result<Option<Member>, Trouble> {
        let (members, _) = self.members(&self.keys.line(&claim.name)).await?;
        Ok(members.into_iter().find(|member| member.claim == Some(claim.id)))
    }
}
