//! What a backend value has to tell of its claims, kept until somebody hears it.

use std::{
    mem,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use event_listener::Event;

use crate::{
    ask::{Claim, Happening, News},
    name::{ClaimId, Name},
};

#[derive(Debug, Default)]
pub(super) struct Inbox {
    news: Mutex<Vec<News>>,
    arrived: Event,
    /// Somebody hears, so it is worth to watch.
    listening: AtomicBool,
}

impl Inbox {
    pub(super) fn push(&self, name: &Name, id: ClaimId, what: Happening) {
        // Kept also while nobody listens yet, as between a grant and the keeper's first look: each claim has one loss
        // and one contention to tell, and nobody tells of them again.
        let news = News { claim: Claim { name: name.clone(), id }, what };
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(news);
        self.arrived.notify(1);
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// Whether this is the first call.
    pub(super) fn listen(&self) -> bool {
        !self.listening.swap(true, Ordering::Relaxed)
    }

    /// That this claim was lost, if that was not heard yet.
    pub(super) fn lost(&self, claim: &Claim) -> Option<News> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let at = news.iter().position(|news| news.loss_of(claim).is_some())?;
        Some(news.swap_remove(at))
    }

    pub(super) async fn next(&self) -> Vec<News> {
        loop {
            let arrival = self.arrived.listen();
            let news = mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
            if !news.is_empty() {
                return news;
            }
            arrival.await;
        }
    }
}
