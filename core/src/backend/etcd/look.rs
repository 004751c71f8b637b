//! What is read of a line to know where a claim stands in it: of a long one no more than it takes.

use etcd_client::{Client, GetOptions, GetResponse, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse};
use futures_util::future::try_join_all;

use super::{
    Space,
    keys::Range,
    line::{Member, Obstacle, Standing, standing},
    trouble::Trouble,
};
use crate::ask::{Mode, Waiting};

/// The operations that tell a claim, whose key was created at this revision or is the newest, where it stands.
pub(super) fn questions(line: &Range, mode: Mode, created: Option<i64>) -> Vec<TxnOp> {
    let up_to_me = |order| {
        let options = by_age(line, order);
        created.map_or(options.clone(), |created| options.with_max_create_revision(created))
    };
    let get = |options| TxnOp::get(line.from.clone(), Some(options));
    match mode {
        // Whoever is to be alone needs to know the one before, and people want to know the first.
        Mode::Exclusive | Mode::Upgradable => vec![
            get(up_to_me(SortOrder::Ascend).with_limit(1)),
            get(up_to_me(SortOrder::Descend).with_limit(2)),
        ],
        Mode::Shared | Mode::Permit(_) => vec![get(up_to_me(SortOrder::Ascend))],
    }
}

/// What the answers say of the claim of this key, `newest` in its line; `None`: it is not there.
pub(super) fn answer(answers: &[TxnOpResponse], key: &[u8], newest: bool) -> Option<Standing> {
    let mut answers = answers.iter().filter_map(|answer| match answer {
        TxnOpResponse::Get(get) => Some(get),
        _ => None,
    });
    let first = answers.next()?;
    let Some(last) = answers.next() else {
        let line = members(first);
        return line.last().filter(|me| me.key == key).map(|_| standing(&line));
    };
    let last = members(last);
    if last.first()?.key != key {
        return None;
    }
    let Some(before) = last.get(1) else { return Some(Standing::Holds) };
    let all = usize::try_from(first.count()).ok();
    let first = members(first).into_iter().next()?;
    let place = match first.mode {
        _ if before.key == first.key => Some(1),
        // Of those that share nobody here knows how many hold.
        Mode::Exclusive if newest => all.map(|all| all - 1),
        _ => None,
    };
    let waiting = Waiting { holders: vec![first.as_holder()], place };
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
            .ask(move |mut client: Client| {
                let ops = ops.clone();
                async move { client.txn(Txn::new().and_then(ops)).await }
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
}
