//! Seeing locks: a look, and a look whenever something may have changed.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};

use crate::{
    ask::{Mode, Owner, Status},
    backend::Backend,
    error::Result,
    name::Name,
    session::Session,
};

/// The locks under a prefix, sorted by name.
pub(crate) async fn list(backend: &dyn Backend, prefix: &str) -> Result<Vec<Status>> {
    let listed = backend.inspect(prefix).await;
    let explain = |error: crate::Error| {
        if error.backend().is_none() { error.with_backend(backend.url()) } else { error }
    };
    let mut all = listed.map_err(explain)?;
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// All locks under a prefix once, then those that differ at each look. Hints are only that: what counts is the look.
pub(crate) fn statuses(
    session: Arc<Session>,
    prefix: String,
    hints: BoxStream<'static, Result<()>>,
) -> impl Stream<Item = Result<Status>> + Send + use<> {
    let looks = stream::once(async { Ok(()) }).chain(hints);
    let state = Some((looks.boxed(), BTreeMap::new()));
    let batches = stream::unfold(state, move |state| {
        let (session, prefix) = (session.clone(), prefix.clone());
        async move {
            let (mut looks, seen) = state?;
            let look = match looks.next().await? {
                Ok(()) => list(&*session.backend, &prefix).await,
                Err(error) => Err(error),
            };
            match look {
                Ok(now) => {
                    let (changed, seen) = differences(&seen, now);
                    Some((changed.into_iter().map(Ok).collect(), Some((looks, seen))))
                }
                Err(error) => Some((vec![Err(error)], None)),
            }
        }
    });
    batches.flat_map(stream::iter)
}

type Seen = BTreeMap<Name, Essence>;

/// What makes two looks at a lock differ: who holds it by which grant, and who waits. Not for how long.
#[derive(PartialEq, Eq)]
struct Essence {
    holders: Vec<(u64, Mode, Owner)>,
    waiters: Vec<(Mode, Owner)>,
}

fn differences(before: &Seen, now: Vec<Status>) -> (Vec<Status>, Seen) {
    let seen: Seen = now.iter().map(|status| (status.name.clone(), essence(status))).collect();
    let freed = before.keys().filter(|name| !seen.contains_key(name));
    let mut changed: Vec<Status> =
        freed.map(|name| Status { name: name.clone(), holders: Vec::new(), waiters: Vec::new() }).collect();
    changed.extend(now.into_iter().filter(|status| before.get(&status.name) != seen.get(&status.name)));
    (changed, seen)
}

fn essence(status: &Status) -> Essence {
    let holders =
        status.holders.iter().map(|holder| (holder.fencing_token, holder.mode, holder.owner.clone()));
    let waiters = status.waiters.iter().map(|waiter| (waiter.mode, waiter.owner.clone()));
    Essence { holders: holders.collect(), waiters: waiters.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Holder;

    fn held(name: &str, fencing_token: u64, held_for: u64) -> Status {
        let owner = Owner { owner: "ann@host:1".into(), ..Owner::default() };
        let held_for = Some(std::time::Duration::from_secs(held_for));
        let holder = Holder { owner, mode: Mode::Exclusive, fencing_token, held_for };
        Status { name: name.parse().unwrap(), holders: vec![holder], waiters: Vec::new() }
    }

    fn names(statuses: &[Status]) -> Vec<&str> {
        statuses.iter().map(|status| status.name.as_str()).collect()
    }

    #[test]
    fn tells_what_is_new_changed_and_free_and_nothing_else() {
        let (changed, seen) = differences(&Seen::new(), vec![held("a", 1, 0), held("b", 2, 0)]);
        assert_eq!(names(&changed), ["a", "b"]);
        let (changed, seen) = differences(&seen, vec![held("a", 1, 5), held("b", 2, 5)]);
        assert_eq!(names(&changed), [""; 0], "time alone is no change");
        let (changed, seen) = differences(&seen, vec![held("a", 3, 0)]);
        assert_eq!(names(&changed), ["b", "a"]);
        assert!(changed[0].holders.is_empty());
        assert_eq!(names(&differences(&seen, Vec::new()).0), ["a"]);
    }
}
