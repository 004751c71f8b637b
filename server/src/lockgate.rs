//! lockgate's HTTP protocol, and werf's, over the same locks as our own protocol.
//!
//! Its client (Go, `distributed_locker`) knows one way to wait: it asks, is told `should wait`, sleeps for two seconds, and asks
//! again. It makes no claim id; the answer to `acquire` brings one, as a UUID. What it means is read from its requests:
//!
//! - **A claim is a UUID.** Each grant has one of its own, shared ones too, and ends by its own TTL of 10 s. Who asks for a
//!   lock that can be had, has it with the answer.
//! - **A waiter has a place**: a claim that waits in the table, in one line with the waiters of our own protocol. It
//!   holds the place for as long as it comes back ([`places`]). When its turn comes between two of its requests, the
//!   lock is kept for it: it is due within two seconds.
//! - **With an `acquirerId`** the place is its own from the first request on, and stays for 10 s.
//! - **Without one** nobody can tell who asks again, and nobody has to: those who wait for one lock in one mode are
//!   alike, so a request takes over the place that has been silent longest, of those that were answered at least two
//!   seconds ago; no client comes back sooner. A first request only tries, and leaves no place behind: it may be
//!   a `NonBlocking` one, which looks the same, and a lock must not be kept for somebody who has left. A
//!   waiter is one who comes back; so it stands in line two seconds late, but not for ever behind those who have names.
//! - **A request is held open** when it came as a sleeper's comes, two seconds after its last answer, and for a part of the time that
//!   it has waited only: the client looks at its `Timeout` between two requests, so a timeout comes late by half at
//!   the most. The first answer comes at once: `NonBlocking` and `OnWaitFunc` wait for it. The client's HTTP has no
//!   time-out, but a program may have set one, so four seconds are the most.
//!
//! States of a place, and who moves it (all under one mutex, so that a grant is told to one request only):
//!
//! ```text
//! spoken for  -- answered "should wait" ----------------------->  silent
//! silent      -- asked again ---------------------------------->  spoken for
//! spoken for  -- granted --------------> (no place any more: the lease is the client's)
//! spoken for  -- its connection broke -------------------------> silent, leaves after 2 s
//! silent      -- 10 s, or 5 s if it is its turn or has no name -> released: neither place nor grant
//! ```
//!
//! What lost messages do:
//! - *acquire*, before it was granted: the place is silent; whoever asks again in time has it. The lock goes to nobody else meanwhile.
//! - *The answer with the grant*: the claim is one that nobody knows of. If the connection broke before the answer was
//!   handed on to be written, the claim is given back at once ([`given`]); after that its TTL ends it. The protocol has no
//!   id to ask again by.
//! - *renew-lease* is repeated by the client. *release* is not, and the TTL ends the claim; twice does no harm.
//!
//! After a server that was ended abruptly its leases cannot be shown to the next one: a UUID does not prove that it was not lost long
//! before. Nobody is let in until they are over (`should wait`), and their holders are told at their next renewal.
//!
//! **Servers that share a store** know each other's leases: a UUID is the id of a claim. Places are each server's own, for the
//! protocol has no id by which one could be known elsewhere: a waiter that comes to another server begins there anew.
//!
//! Only POST is answered: it is all that the clients send, and what a page in a browser can do by a link or an image is not it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    response::Response,
    routing::post,
};
use tokio::sync::Notify;
use windlass::{
    Backend, ClaimId, DEFAULT_TTL, ErrorKind, Name, Result,
    ask::{Ask, Claim, Mode, Owner, Renewal},
    protocol::DEFAULT_NAMESPACE,
    rt::{Native, Runtime},
};

use crate::{answer::invalid, parked, spaces::Spaces};

mod given;
mod messages;
mod places;

use given::{Given, Speaking};
#[cfg(fuzzing)]
pub use messages::fuzz;
use messages::{Acquire, Done, Echo, Handle, OfHandle, claim_id, new_uuid, read, uuid};
use places::{Key, Places};

const SHOULD_WAIT: &str = "should wait";
const ALREADY_LEASED: &str = "lock already leased";
const NO_LEASE: &str = "no existing lock lease found";
/// The longest `acquirerId`: as that of a lock's name.
const LONGEST_ACQUIRER: usize = 1024;
/// Later than this is standstill, and those who ask again may still wait to be read (rule R7).
const STANDSTILL: Duration = Duration::from_millis(250);
/// How long they are let in then.
const DRAIN: Duration = Duration::from_secs(1);

type Here = State<Arc<Lockgate>>;
/// An answer, or that of a body that is no question.
type Answer = std::result::Result<Response, Response>;
/// werf's client id; none in lockgate's own paths.
type Of = Option<Path<String>>;

/// The waiters of these protocols, in all namespaces.
struct Lockgate {
    spaces: Arc<Spaces>,
    places: Mutex<Places>,
}

/// The routes of lockgate and werf.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(spaces: &Arc<Spaces>) -> Router<S> {
    let lockgate = Lockgate { spaces: spaces.clone(), places: Mutex::default() };
    Router::new()
        .route("/acquire", post(acquire))
        .route("/renew-lease", post(renew_lease))
        .route("/release", post(release))
        .route("/{namespace}/locker/acquire", post(acquire))
        .route("/{namespace}/locker/renew-lease", post(renew_lease))
        .route("/{namespace}/locker/release", post(release))
        .route("/health", post(health))
        .route("/new-client-id", post(new_client_id))
        .with_state(Arc::new(lockgate))
}

async fn acquire(State(lockgate): Here, of: Of, body: Bytes) -> Answer {
    let question: Acquire = read(&body)?;
    Ok(match lockgate.acquire(&of, question).await {
        Ok(Some(given)) => {
            let handle =
                Handle { uuid: uuid(given.claim().id), lock_name: given.claim().name.clone().into() };
            given.answer(&Done { lock_handle: Some(handle), ..Done::default() })
        }
        Ok(None) => refused(SHOULD_WAIT),
        Err(error) => refused(&error.to_string()),
    })
}

async fn renew_lease(State(lockgate): Here, of: Of, body: Bytes) -> Answer {
    let OfHandle { lock_handle } = read(&body)?;
    Ok(done(lockgate.renew(&of, lock_handle, "renewed").await.map(|renewed| renewed.map(drop))))
}

async fn release(State(lockgate): Here, of: Of, body: Bytes) -> Answer {
    let OfHandle { lock_handle } = read(&body)?;
    Ok(done(lockgate.release(&of, lock_handle).await))
}

async fn health(body: Bytes) -> Answer {
    let Echo { echo } = read(&body)?;
    Ok(messages::write(&serde_json::json!({ "err": "", "echo": echo, "status": "OK" })))
}

async fn new_client_id(body: Bytes) -> Answer {
    let _: serde::de::IgnoredAny = read(&body)?;
    let id = uuid(new_uuid(Native.random()));
    Ok(messages::write(&serde_json::json!({ "err": "", "clientID": id })))
}

fn refused(text: &str) -> Response {
    messages::write(&Done { lock_handle: Some(Handle::default()), err: text.to_owned() })
}

/// The answer to what is about a lease: what lockgate says, or what went wrong.
fn done(outcome: Result<std::result::Result<(), &'static str>>) -> Response {
    let err = match outcome {
        Ok(Ok(())) => String::new(),
        Ok(Err(text)) => text.to_owned(),
        Err(error) => error.to_string(),
    };
    messages::write(&Done { lock_handle: None, err })
}

impl Lockgate {
    /// What came of asking once; `None`: the client should wait.
    async fn acquire(self: &Arc<Self>, of: &Of, question: Acquire) -> Result<Option<Given>> {
        let (view, key) = (self.view(of)?, Arc::new(key(of, question)?));
        match self.spaces.may_grant(DEFAULT_TTL).await {
            Ok(()) => {}
            // Any other text, and the client gives up: it has no word for a server that is not ready yet.
            Err(error) if error.kind() == ErrorKind::Unavailable => return Ok(None),
            Err(error) => return Err(error),
        }
        let fresh = new_uuid(Native.random());
        let Some(turn) = self.places().ask(&key, Instant::now(), fresh) else {
            tracing::warn!(lock = %key.name, "too many wait by lockgate's protocol: this one has no place in line");
            return Ok(None);
        };
        let ask = Ask { entry: turn.entry, ..ask(&key, turn.claim) };
        let mut speaking = Speaking::new(self.clone(), view.clone(), key.clone(), &turn);
        let queued = Notify::new();
        let queues = |_| queued.notify_one();
        let asking = view.acquire(&ask, &queues);
        // In line it can be held open; until it is there, nobody knows the answer, unless the store has none.
        let not_yet = async {
            let _ = tokio::time::timeout(parked::ANSWERS_WITHIN, queued.notified()).await;
            if !turn.hold.is_zero() {
                tokio::time::sleep(turn.hold).await;
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = asking => outcome,
            () = not_yet => Ok(None),
            () = self.spaces.stopping() => Ok(None),
        };
        match outcome {
            // The client asks the next server, where this grant, if it was written down, ends by its TTL.
            Ok(Some(_)) if self.spaces.not_sealed().is_err() => {
                speaking.answered();
                Ok(None)
            }
            Ok(Some(_)) => {
                speaking.taken();
                Ok(Some(Given::new(view, Claim { name: key.name.clone(), id: turn.claim })))
            }
            Ok(None) => {
                speaking.answered();
                Ok(None)
            }
            // The store of the locks is away for a moment; any other answer, and the client gives up.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                speaking.answered();
                Ok(None)
            }
            // An operator took it away while it was silent: it begins anew.
            Err(error) if error.kind() == ErrorKind::NotHeld => {
                speaking.taken();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Lives on, or the text that says why it does not.
    async fn renew(
        &self,
        of: &Of,
        handle: Handle,
        what: &'static str,
    ) -> Result<std::result::Result<Claim, &'static str>> {
        let view = self.view(of)?;
        let name: Name = handle.lock_name.parse()?;
        // Another text than a UUID is the handle of nothing.
        if let Some(id) = claim_id(&handle.uuid) {
            let claim = Claim { name: name.clone(), id };
            match view.renew(std::slice::from_ref(&claim)).await?.into_iter().next() {
                Some(Renewal::Renewed(_)) => {
                    self.spaces.not_sealed()?;
                    return Ok(Ok(claim));
                }
                Some(Renewal::Unknown(error)) => return Err(error),
                _ => {}
            }
        }
        tracing::warn!(lock = %name, "a lease that is lost was to be {what}, by lockgate's protocol");
        let held = view.inspect_one(&name).await?.is_some();
        Ok(Err(if held { ALREADY_LEASED } else { NO_LEASE }))
    }

    /// A release says whether there was something to release, which the renewal before it finds out.
    async fn release(&self, of: &Of, handle: Handle) -> Result<std::result::Result<(), &'static str>> {
        match self.renew(of, handle, "released").await? {
            Ok(claim) => {
                self.view(of)?.release(&[claim]).await?;
                self.spaces.not_sealed()?;
                Ok(Ok(()))
            }
            Err(text) => Ok(Err(text)),
        }
    }

    /// Sees that a place is left when nobody comes back to it, and what was granted to it given back.
    async fn watch(
        self: Arc<Self>,
        view: Arc<dyn Backend>,
        key: Arc<Key>,
        number: u64,
        claim: ClaimId,
        waits: bool,
    ) {
        let ask = ask(&key, claim);
        let turn = async {
            match waits {
                true => view.acquire(&ask, &|_| ()).await,
                false => std::future::pending().await,
            }
        };
        tokio::pin!(turn);
        let mut asked = false;
        loop {
            let Some(leaves) = self.places().leaves(&key, number, Instant::now()) else { return };
            tokio::select! {
                biased;
                granted = &mut turn, if !asked => {
                    asked = true;
                    if granted.is_ok() {
                        self.places().its_turn(&key, number);
                    }
                }
                () = tokio::time::sleep_until(leaves.into()) => {
                    if leaves.elapsed() > STANDSTILL {
                        tokio::time::sleep(DRAIN).await;
                    }
                    if self.places().leave(&key, number, Instant::now()) {
                        let claim = Claim { name: key.name.clone(), id: claim };
                        parked::give_back(view.as_ref(), &[claim]).await;
                        return;
                    }
                }
            }
        }
    }

    fn view(&self, of: &Of) -> Result<Arc<dyn Backend>> {
        // The protocol has no way to tell news.
        self.spaces.get(namespace(of))?.client(None)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn namespace(of: &Of) -> &str {
    of.as_ref().map_or(DEFAULT_NAMESPACE, |Path(namespace)| namespace)
}

fn key(of: &Of, question: Acquire) -> Result<Key> {
    let Acquire { lock_name, opts } = question;
    if opts.acquirer_id.len() > LONGEST_ACQUIRER {
        return Err(invalid("the acquirerId is too long: it has at most 1,024 bytes"));
    }
    Ok(Key {
        namespace: namespace(of).into(),
        name: lock_name.parse()?,
        shared: opts.shared,
        acquirer: (!opts.acquirer_id.is_empty()).then(|| opts.acquirer_id.into()),
    })
}

/// The question to the table, which stands in line.
fn ask(key: &Key, claim_id: ClaimId) -> Ask {
    let owner = match &key.acquirer {
        Some(acquirer) => format!("lockgate:{acquirer}"),
        None => "lockgate".to_owned(),
    };
    Ask {
        name: key.name.clone(),
        claim_id,
        mode: if key.shared { Mode::Shared } else { Mode::Exclusive },
        entry: windlass::ask::Entry::Queue,
        ttl: DEFAULT_TTL,
        owner: Arc::new(Owner { owner, ..Owner::default() }),
        keep: Duration::ZERO,
        only_here: false,
    }
}
