//! Seeing locks: a look, and a look whenever something may have changed.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};

use crate::{
    ask::{Holder, Mode, Owner, Status, Waiter},
    backend::Backend,
    error::Result,
    name::Name,
    session::Session,
};

/// The locks under a prefix, sorted by name.
pub(crate) async fn list(backend: &dyn Backend, prefix: &str) -> Result<Vec<Status>> {
    Ok(look(backend, prefix).await?.into_values().collect())
}

type Seen = BTreeMap<Name, Status>;

async fn look(backend: &dyn Backend, prefix: &str) -> Result<Seen> {
    let explain = |error: crate::Error| {
        if error.backend().is_none() { error.with_backend(backend.url()) } else { error }
    };
    let all = backend.inspect(prefix).await.map_err(explain)?;
    let mut seen = Seen::new();
    // One by one: most backends list them in this order already.
    seen.extend(all.into_iter().map(|status| (status.name.clone(), status)));
    Ok(seen)
}

/// All locks under a prefix once, then those that differ at each look. Hints are only that: what counts is the look.
pub(crate) fn statuses(
    session: Arc<Session>,
    prefix: String,
    hints: BoxStream<'static, Result<()>>,
) -> impl Stream<Item = Result<Status>> + Send + use<> {
    let looks = stream::once(async { Ok(()) }).chain(hints);
    let state = Some((looks.boxed(), Seen::new()));
    let batches = stream::unfold(state, move |state| {
        let (session, prefix) = (session.clone(), prefix.clone());
        async move {
            let (mut looks, seen) = state?;
            let seen_now = match looks.next().await? {
                Ok(()) => look(&*session.backend, &prefix).await,
                Err(error) => Err(error),
            };
            match seen_now {
                Ok(now) => {
                    let changed = differences(&seen, &now).into_iter().map(Ok).collect();
                    Some((changed, Some((looks, now))))
                }
                Err(error) => Some((vec![Err(error)], None)),
            }
        }
    });
    batches.flat_map(stream::iter)
}

/// What to tell of two looks.
fn differences(before: &Seen, now: &Seen) -> Vec<Status> {
    let freed = before.keys().filter(|name| !now.contains_key(name));
    let freed = freed.map(|name| Status { name: name.clone(), holders: Vec::new(), waiters: Vec::new() });
    let changed =
        now.values().filter(|status| !before.get(&status.name).is_some_and(|seen| same(seen, status)));
    freed.chain(changed.cloned()).collect()
}

/// Whether two looks at a lock are the same: who holds it by which grant, and who waits. Not for how long.
fn same(one: &Status, other: &Status) -> bool {
    fn grant(holder: &Holder) -> (u64, Mode, &Owner) {
        (holder.fencing_token, holder.mode, &holder.owner)
    }
    fn wish(waiter: &Waiter) -> (Mode, &Owner) {
        (waiter.mode, &waiter.owner)
    }
    one.holders.iter().map(grant).eq(other.holders.iter().map(grant))
        && one.waiters.iter().map(wish).eq(other.waiters.iter().map(wish))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str, fencing_token: u64, held_for: u64) -> Status {
        let owner = Owner { owner: "ann@host:1".into(), ..Owner::default() };
        let held_for = Some(std::time::Duration::from_secs(held_for));
        let holder = Holder { owner, mode: Mode::Exclusive, fencing_token, held_for };
        Status { name: name.parse().unwrap(), holders: vec![holder], waiters: Vec::new() }
    }

    fn names(statuses: &[Status]) -> Vec<&str> {
        statuses.iter().map(|status| status.name.as_str()).collect()
    }

    fn seen<const N: usize>(statuses: [Status; N]) -> Seen {
        statuses.into_iter().map(|status| (status.name.clone(), status)).collect()
    }

    #[test]
    fn tells_what_is_new_changed_and_free_and_nothing_else() {
        let first = seen([held("a", 1, 0), held("b", 2, 0)]);
        assert_eq!(names(&differences(&Seen::new(), &first)), ["a", "b"]);
        let older = seen([held("a", 1, 5), held("b", 2, 5)]);
        assert_eq!(names(&differences(&first, &older)), [""; 0], "time alone is no change");
        let another = seen([held("a", 3, 0)]);
        let changed = differences(&older, &another);
        assert_eq!(names(&changed), ["b", "a"]);
        assert!(changed[0].holders.is_empty());
        assert_eq!(names(&differences(&another, &Seen::new())), ["a"]);
    }
}
