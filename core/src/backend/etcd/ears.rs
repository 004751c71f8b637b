//! News of the claims that hold, by a watch on the line of each. The watches are made in the background when somebody hears,
//! and not for claims that are soon released: an acquire does not wait for them.

use std::{
    collections::BTreeMap,
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
}

impl Ears {
    fn open(&self) -> MutexGuard<'_, BTreeMap<ClaimId, Watch>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Space {
    pub(super) async fn hear(self: &Arc<Self>) -> Result<Vec<News>, Trouble> {
        loop {
            let begun = self.session.begun.listen();
            let mut look_at = self.heard();
            look_at.extend(self.listen().await?);
            let mut news = Vec::new();
            for claim in look_at {
                news.extend(self.news_of(claim).await?);
            }
            if !news.is_empty() {
                return Ok(news);
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

    /// The claims of whose lines something was heard.
    fn heard(&self) -> Vec<Claim> {
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
        let named = |id: &ClaimId| claims.get(id).map(|known| Claim { name: known.name.clone(), id: *id });
        let mut all: Vec<Claim> = heard.filter_map(|(id, _)| named(id)).collect();
        let over = claims.iter().filter(|(_, known)| known.held.is_some() && known.lease.over().is_some());
        all.extend(over.filter_map(|(id, _)| named(id)));
        all
    }

    /// Opens what watches are missing; the claims that have theirs now.
    async fn listen(&self) -> Result<Vec<Claim>, Trouble> {
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
        }
        Ok(missing)
    }

    async fn news_of(self: &Arc<Self>, claim: Claim) -> Result<Option<News>, Trouble> {
        let Some(known) = self.session.known(&claim) else { return Ok(None) };
        let lost = |reason| News { claim: claim.clone(), what: Happening::Lost(reason) };
        if let Some(reason) = known.lease.over() {
            self.forget(&claim);
            return Ok(Some(lost(reason)));
        }
        let (line, _) = self.members(&self.keys.line(&claim.name)).await?;
        let key = self.keys.of(&claim);
        if !line.iter().any(|member| member.key == key) {
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
