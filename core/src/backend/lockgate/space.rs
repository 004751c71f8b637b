//! What the lockers of a process share of one server, and their requests, each of which runs to its end in a task of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    LEASE, Refused,
    book::{Book, Ended},
    wire::{Client, Uuid},
};
use crate::{
    ask::{Ask, Claim, Entry, Mode},
    background::to_its_end,
    error::{Error, ErrorKind, LostReason, Result},
    name::Name,
    rt::Runtime,
    time::Moment,
    transport::was_not_sent,
};

/// What the lockers of a process share, whatever way leads each of them to the server.
pub(super) struct Shared {
    /// What the process is called in lockgate's queues. Whoever knew it could take the process's place.
    acquirer: String,
    book: Mutex<Book>,
}

impl Shared {
    pub(super) fn new(random: u128) -> Self {
        Self { acquirer: format!("windlass-{random:032x}"), book: Mutex::default() }
    }
}

/// One locker's way to the server.
pub(super) struct Space {
    client: Client,
    rt: Arc<dyn Runtime>,
    shared: Arc<Shared>,
}

impl Space {
    pub(super) fn new(client: Client, rt: Arc<dyn Runtime>, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { client, rt, shared })
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a lock once; when the request was sent that it was granted to.
    pub(super) async fn ask(self: &Arc<Self>, ask: &Ask) -> Result<Option<Moment>> {
        let (space, claim, mode) = (self.clone(), ask.claim(), ask.mode);
        // A place in the queue cannot be given back, so one who only tries takes none, but uses the one there is.
        let queue = ask.entry == Entry::Queue || self.book().is_queued(&ask.name, self.rt.now());
        to_its_end(&*self.rt, async move {
            let got = space.take(&claim.name, mode, queue).await;
            let uuid = got.as_ref().ok().and_then(|got| got.as_ref().map(|(uuid, _)| uuid.clone()));
            let wanted = {
                let (mut book, now) = (space.book(), space.rt.now());
                if queue {
                    book.queued(&claim.name, uuid.is_none().then_some(now));
                }
                book.asked(&claim, uuid.as_ref(), now)
            };
            if !wanted {
                if let Some(uuid) = uuid
                    && let Err(error) = space.client.release(&claim.name, &uuid).await
                {
                    tracing::warn!(lock = %claim.name, %error, "nobody wants the lock, which is free when its lease is over");
                }
                space.book().over(&claim, space.rt.now());
            }
            Ok(got?.filter(|_| wanted).map(|(_, sent)| sent))
        })
        .await
    }

    /// Takes a lease, and makes sure that one that is to be exclusive is.
    async fn take(&self, name: &Name, mode: Mode, queue: bool) -> Result<Option<(Uuid, Moment)>> {
        let acquirer = if queue { &*self.shared.acquirer } else { "" };
        // The record that the second try makes is a new one, unless others queue for the lock.
        for _ in 0..2 {
            let sent = self.rt.now();
            let Some(uuid) = self.client.acquire(name, mode == Mode::Shared, acquirer).await? else {
                return Ok(None);
            };
            if mode == Mode::Shared {
                return Ok(Some((uuid, sent)));
            }
            let beside = self.client.acquire(name, true, "").await;
            if matches!(beside, Ok(None)) {
                return Ok(Some((uuid, sent)));
            }
            if let Ok(Some(beside)) = &beside {
                self.client.release(name, beside).await?.ok();
            }
            self.client.release(name, &uuid).await?.ok();
            beside?;
        }
        Ok(None)
    }

    pub(super) async fn renew(
        &self,
        name: &Name,
        uuid: Uuid,
    ) -> (Uuid, (Moment, Result<Result<(), LostReason>>)) {
        let sent = self.rt.now();
        let said = match self.client.renew(name, &uuid).await {
            Ok(Err(Refused::Gone(reason))) => Ok(Err(reason)),
            // lockgate says this only to an acquire.
            Ok(Err(Refused::ShouldWait)) => Ok(Err(LostReason::Expired)),
            Ok(Ok(())) => Ok(Ok(())),
            Err(error) => Err(error),
        };
        (uuid, (sent, said))
    }

    /// Releases the lease of a claim that is [ending](super::book::Book::end); why it was gone, if it was.
    pub(super) async fn release(
        self: &Arc<Self>,
        claim: &Claim,
        uuid: Uuid,
        mode: Mode,
    ) -> Result<Option<LostReason>> {
        let (space, claim) = (self.clone(), claim.clone());
        to_its_end(&*self.rt, async move {
            let answer = space.client.release(&claim.name, &uuid).await;
            let ended = match &answer {
                // That it is gone is what was wanted.
                Ok(_) => Ended::Answered,
                Err(error) if mode == Mode::Shared && !was_not_sent(error) => Ended::InDoubt,
                Err(_) => Ended::Again,
            };
            space.book().ended(&claim, ended, space.rt.now(), LEASE * 2);
            match (answer, ended) {
                (Err(error), Ended::InDoubt) => Err(in_doubt().with_source(error)),
                (Ok(Err(Refused::Gone(reason))), _) => Ok(Some(reason)),
                (answer, _) => answer.map(|_| None),
            }
        })
        .await
    }
}

/// The error of a release that must not be sent again.
pub(super) fn in_doubt() -> Error {
    let message = "no answer to the release of a shared claim. It is not sent again, because lockgate would take the \
                   second one for another holder's; the lock is free of it when its lease is over";
    Error::new(ErrorKind::Unavailable, message)
}
