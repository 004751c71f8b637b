//! The view of those who say not who they are, in a shared store: a view for each claim.

use std::{fmt, future, sync::Arc};

use async_trait::async_trait;
use futures_util::{
    future::{join, try_join_all},
    stream::BoxStream,
};
use windlass::{
    Backend, Holder, Mode, Name, Result, Status,
    ask::{Ask, Claim, Grant, News, Renewal},
    backend::{Capabilities, OnWaiting},
};

use super::Space;

/// Asks by the view of each claim, and what is about no claim, or one that has none, by the common one.
pub(super) struct EachItsOwn {
    space: Arc<Space>,
    common: Arc<dyn Backend>,
}

impl EachItsOwn {
    pub(super) fn new(space: Arc<Space>, common: Arc<dyn Backend>) -> Self {
        Self { space, common }
    }
}

#[async_trait]
impl Backend for EachItsOwn {
    fn capabilities(&self) -> Capabilities {
        self.common.capabilities()
    }

    fn url(&self) -> String {
        self.common.url()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let granted = self.space.view_of(ask.claim_id, true)?.acquire(ask, waiting).await;
        if let Ok(None) = granted {
            self.space.no_more(ask.claim_id);
        }
        granted
    }

    /// They are asked for together, so they live together, until each is renewed.
    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        match asks.first() {
            Some(first) => self.space.view_of(first.claim_id, true)?.acquire_all(asks, waiting).await,
            None => Ok(Some(Vec::new())),
        }
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let views =
            claims.iter().map(|claim| self.space.view_of(claim.id, true)).collect::<Result<Vec<_>>>()?;
        let each = views.iter().zip(claims).map(|(view, claim)| view.renew(std::slice::from_ref(claim)));
        let renewals: Vec<Renewal> = try_join_all(each).await?.into_iter().flatten().collect();
        for (claim, renewal) in claims.iter().zip(&renewals) {
            if matches!(renewal, Renewal::Lost(_) | Renewal::NotHeld) {
                self.space.no_more(claim.id);
            }
        }
        Ok(renewals)
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for claim in claims {
            match self.space.no_more(claim.id) {
                Some(view) => own.push((view, claim)),
                None => others.push(claim.clone()),
            }
        }
        let own = own.iter().map(|(view, claim)| view.release(std::slice::from_ref(claim)));
        let (own, others) = join(try_join_all(own), self.common.release(&others)).await;
        Ok(own?.into_iter().flatten().chain(others?).collect())
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        self.space.view_of(claim.id, true)?.change(claim, to).await
    }

    async fn hear(&self) -> Result<Vec<News>> {
        future::pending().await
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        self.common.inspect(prefix).await
    }

    async fn inspect_one(&self, name: &Name) -> Result<Option<Status>> {
        self.common.inspect_one(name).await
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        self.common.force_release(name, fencing_token).await
    }

    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        self.common.changes(prefix).await
    }
}

impl fmt::Debug for EachItsOwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EachItsOwn").field(&self.common).finish()
    }
}
