//! News of the claims that hold, from what the watch tells of their locks. What is soon released needs no watch.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::future;

use super::{Space, names};
use crate::{
    ask::{Happening, News},
    error::{LostReason, Result},
    table::Granted,
};

/// What is held for a shorter time than this does not open the watch.
const SETTLED: Duration = Duration::from_millis(30);

impl Space {
    pub(super) async fn hear(self: &Arc<Self>) -> Result<Vec<News>> {
        loop {
            let begun = self.begun.listen();
            let changed = self.hub.known().changed.listen();
            let now = self.link.rt.now();
            let oldest = self.held().values().map(|held| now.since(held.since)).max();
            match oldest {
                Some(age) if age >= SETTLED => {
                    self.hub.watch().await?;
                    let news = self.news();
                    if !news.is_empty() {
                        return Ok(news);
                    }
                    future::select(changed, begun).await;
                }
                Some(age) => drop(future::select(begun, pin!(self.link.rt.sleep(SETTLED - age))).await),
                None => begun.await,
            }
        }
    }

    fn news(&self) -> Vec<News> {
        let known = self.hub.known();
        let mut news = Vec::new();
        let mut lost = Vec::new();
        for (claim, held) in self.held().iter_mut() {
            let (lock, all) = known.lock(&self.key(&claim.name));
            let sealed = names::seal(claim.id);
            let granted = lock.as_ref().and_then(|(seen, _)| seen.doc.record().granted_to(sealed));
            match granted {
                Some(Granted { contended, .. }) => {
                    if contended && !held.told {
                        news.push(News { claim: claim.clone(), what: Happening::Contended });
                    }
                    held.told = contended;
                }
                None if all => {
                    let why = lock.and_then(|(seen, _)| seen.doc.why_gone(sealed));
                    let why = why.unwrap_or(LostReason::ForceReleased);
                    news.push(News { claim: claim.clone(), what: Happening::Lost(why) });
                    lost.push(claim.clone());
                }
                None => {}
            }
        }
        let mut held = self.held();
        for claim in lost {
            held.remove(&claim);
        }
        news
    }
}
