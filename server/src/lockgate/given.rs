//! What is owed while a request is under way: a place is silent again, and a grant that did not reach its connection is
//! given back.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use windlass::{
    Backend, ClaimId,
    ask::{Claim, Entry},
};

use crate::parked::{give_back, spawn};

use super::{
    Lockgate,
    messages::with_type,
    places::{Key, Turn},
};

/// A request that speaks for a place. Dropped before it was answered, its connection broke.
pub(super) struct Speaking {
    lockgate: Arc<Lockgate>,
    view: Arc<dyn Backend>,
    key: Arc<Key>,
    number: u64,
    claim: ClaimId,
    waits: bool,
    answered: bool,
}

impl Speaking {
    pub(super) fn new(lockgate: Arc<Lockgate>, view: Arc<dyn Backend>, key: Arc<Key>, turn: &Turn) -> Self {
        let waits = turn.entry == Entry::Queue;
        Self { lockgate, view, key, number: turn.number, claim: turn.claim, waits, answered: false }
    }

    /// The client knows that it should wait.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    /// There is nothing to wait for any more.
    pub(super) fn taken(&mut self) {
        self.lockgate.places().remove(&self.key, self.number);
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        let now = Instant::now();
        if self.lockgate.places().silent(&self.key, self.number, now, self.answered) {
            let watch = self.lockgate.clone().watch(
                self.view.clone(),
                self.key.clone(),
                self.number,
                self.claim,
                self.waits,
            );
            spawn(watch);
        }
    }
}

/// A grant on its way to the client. Dropped before it was handed on to be written, it is given back.
pub(super) struct Given {
    view: Arc<dyn Backend>,
    claim: Claim,
    written: bool,
}

impl Given {
    pub(super) fn new(view: Arc<dyn Backend>, claim: Claim) -> Self {
        Self { view, claim, written: false }
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The answer that tells of it.
    pub(super) fn answer(self, answer: &impl Serialize) -> Response {
        let text = serde_json::to_vec(answer).unwrap_or_default().into();
        with_type(Body::new(Telling { text: Some(text), given: self }))
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if !self.written {
            let (view, claim) = (self.view.clone(), self.claim.clone());
            spawn(async move { give_back(view.as_ref(), &[claim]).await });
        }
    }
}

/// The text of an answer that brings a grant.
struct Telling {
    text: Option<Bytes>,
    given: Given,
}

impl hyper::body::Body for Telling {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.given.written = true;
        Poll::Ready(self.text.take().map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.as_ref().map_or(0, |text| text.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use windlass::{DEFAULT_TTL, Mode, Owner, ask::Ask, backend::MemoryStore, rt::Native, table::Rules};

    use super::*;

    #[tokio::test]
    async fn a_grant_is_given_back_unless_its_answer_was_handed_on() {
        let rules = Rules { first_token: 1, expires: true, remember: Duration::from_secs(9) };
        let view = MemoryStore::new(Arc::new(Native), rules).client("test");
        let ask = |id| Ask {
            name: "lock".parse().unwrap(),
            claim_id: ClaimId::from_u128(id),
            mode: Mode::Exclusive,
            entry: Entry::Queue,
            ttl: DEFAULT_TTL,
            owner: Arc::new(Owner::default()),
            keep: Duration::ZERO,
            only_here: false,
        };
        let given = async |id| {
            view.acquire(&ask(id), &|_| ()).await.unwrap().expect("granted");
            Given::new(view.clone(), ask(id).claim()).answer(&"text")
        };
        drop(given(1).await);
        // It waits until the first was given back, sooner than any TTL.
        let answer = tokio::time::timeout(DEFAULT_TTL / 2, given(2)).await.expect("given back");
        let text = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
        assert_eq!(text, "\"text\"");
        tokio::task::yield_now().await;
        assert_eq!(view.inspect("").await.unwrap().len(), 1, "the client has it");
    }
}
