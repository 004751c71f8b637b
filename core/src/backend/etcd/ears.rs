//! News of the claims that hold, by a watch on the line of each. The watches are made in the background when somebody hears,
//! and not for claims that are soon released: an acquire does not wait for them.
//!
//! Whoever hears may stop at any time, and etcd may fail to answer. So what was heard is kept until it was looked at, and what was
//! seen until it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future;

use super::{
    Space,
    hub::{Happened, Inbox, Watch},
    line::{holders, modes},
    trouble::Trouble,
};
use crate::{
    ask::{Claim, Happening, News},
    error::LostReason,
    name::ClaimId,
};

/// What is held for a shorter time than this has no watch.
const SETTLED: Duration = Duration::from_millis(30);

#[derive(Debug, Default)]
pub(super) struct Ears {
    inbox: Arc<Inbox>,
    open: Mutex<BTreeMap<ClaimId, Watch>>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The claims that are to be looked at.
    to_look: BTreeSet<ClaimId>,
    /// What is to be told.
    news: Vec<News>,
}

impl Ears {
    fn open(&self) -> MutexGuard<'_, BTreeMap<ClaimId, Watch>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Space {
    pub(super) async fn hear(self: &Arc<Self>) -> Result<Vec<News>, Trouble> {
        loop {
            let begun = self.session.begun.listen();
            self.heard();
            let looked = self.look().await;
            let news = std::mem::take(&mut self.ears.kept().news);
            if !news.is_empty() {
                return Ok(news);
            }
            looked?;
            if self.listen().await? {
                continue;
            }
            let waits = self.session.claims().iter().any(|(id, known)| {
                known.held.is_some() && known.lease.over().is_none() && !self.ears.open().contains_key(id)
            });
            let inbox = self.ears.inbox.clone();
            let heard = pin!(async move { inbox.bell().await });
            if waits {
                future::select(heard, self.rt.sleep(SETTLED)).await;
            } else {
                future::select(heard, begun).await;
            }
        }
    }

    /// Those are to be looked at of whose lines something was heard.
    fn heard(&self) {
        let news = self.ears.inbox.take();
        let mut open = self.ears.open();
        let claims = self.session.claims();
        open.retain(|id, watch| {
            let broken = |(of, news): &(i64, Happened)| *of == watch.id && matches!(news, Happened::Broken);
            claims.contains_key(id) && !news.iter().any(broken)
        });
        let heard = open.iter().filter(|(_, watch)| {
            // What is put again is a downgrade, or has moved to another lease.
            news.iter().any(|(of, news)| *of == watch.id && !matches!(news, Happened::Put { created: false }))
        });
        let over = claims.iter().filter(|(_, known)| known.held.is_some() && known.lease.over().is_some());
        let all = heard.map(|(id, _)| *id).chain(over.map(|(id, _)| *id));
        self.ears.kept().to_look.extend(all);
    }

    /// Looks at them.
    async fn look(self: &Arc<Self>) -> Result<(), Trouble> {
        let to_look: Vec<ClaimId> = self.ears.kept().to_look.iter().copied().collect();
        for id in to_look {
            let news = self.news_of(id).await?;
            // What is known of the claim has just been changed by it: nothing is waited for in between.
            let mut kept = self.ears.kept();
            kept.news.extend(news);
            kept.to_look.remove(&id);
        }
        Ok(())
    }

    /// Opens what watches are missing, and those whose claims have theirs now are to be looked at; whether there are any.
    async fn listen(&self) -> Result<bool, Trouble> {
        let now = self.rt.now();
        let missing: Vec<Claim> = {
            let (claims, open) = (self.session.claims(), self.ears.open());
            let settled = claims.iter().filter(|(id, known)| {
                let long = known.held.is_some_and(|since| now.since(since) >= SETTLED);
                long && known.lease.over().is_none() && !open.contains_key(*id)
            });
            settled.map(|(id, known)| Claim { name: known.name.clone(), id: *id }).collect()
        };
        for claim in &missing {
            let watch = self.hub.watch(self.keys.line(&claim.name), &self.ears.inbox).await?;
            self.ears.open().insert(claim.id, watch);
            self.ears.kept().to_look.insert(claim.id);
        }
        Ok(!missing.is_empty())
    }

    async fn news_of(self: &Arc<Self>, id: ClaimId) -> Result<Option<News>, Trouble> {
        let Some(known) = self.session.claims().get(&id).cloned() else { return Ok(None) };
        let claim = Claim { name: known.name.clone(), id };
        let lost = |reason| News { claim: claim.clone(), what: Happening::Lost(reason) };
        if let Some(reason) = known.lease.over() {
            self.forget(&claim);
            return Ok(Some(lost(reason)));
        }
        let (line, _) = self.members(&self.keys.line(&claim.name)).await?;
        if !line.iter().any(|member| member.key == known.key && member.is_of(id)) {
            let alive = self.keep_alive(&known.lease).await;
            let reason = match alive {
                Err(Trouble::LeaseGone) => known.lease.over().unwrap_or(LostReason::SessionEnded),
                _ => LostReason::ForceReleased,
            };
            // Released here meanwhile, it is no loss.
            return Ok(self.forget(&claim).map(|_| lost(reason)));
        }
        let contended = holders(modes(&line)) < line.len();
        let first = contended
            && self.session.change(claim.id, |known| !std::mem::replace(&mut known.told, true)) == Some(true);
        Ok(first.then_some(News { claim, what: Happening::Contended }))
    }
}
