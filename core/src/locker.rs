//! A connection to where locks live.

use std::{
    collections::BTreeMap,
    fmt, ptr,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use smallvec::smallvec;

use crate::{
    acquire::take_over,
    ask::{Holder, Owner, Renewal, Status},
    backend::{Backend, Capabilities},
    error::{Error, ErrorKind, Result},
    guard::Guard,
    lock::{Lock, LockAll},
    metrics::Metrics,
    name::Name,
    options::{AcquireOptions, DEFAULT_TTL, contradiction, unsupported},
    rt::Runtime,
    session::{RELEASE_PATIENCE, Session},
    ticket::Ticket,
    watch::{self, list},
    within::within,
};

/// A connection to where locks live, made by [`connect`](crate::connect). Cheap to clone; clones share everything.
/// Shared by threads and tasks. In a child of `fork` it connects anew by itself, and holds nothing there.
#[derive(Clone)]
pub struct Locker(Arc<Inner>);

struct Inner {
    rt: Arc<dyn Runtime>,
    open: Box<dyn Fn() -> Result<Arc<dyn Backend>> + Send + Sync>,
    ttl: Duration,
    owner: Option<String>,
    metadata: BTreeMap<String, String>,
    /// The session of this process: a leaked `Arc<Session>`. An atomic pointer and no lock, because a lock could be held by
    /// another thread at the moment of a `fork` and would then never be free in the child.
    session: AtomicPtr<Session>,
}

/// What a locker is made of; [`connect`](crate::connect) fills it in.
pub(crate) struct Parts {
    pub(crate) rt: Arc<dyn Runtime>,
    pub(crate) open: Box<dyn Fn() -> Result<Arc<dyn Backend>> + Send + Sync>,
    pub(crate) ttl: Duration,
    pub(crate) owner: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Locker {
    /// A locker over a backend of one's own. It is of no use in a child of `fork`, where nobody can make that backend
    /// anew.
    pub fn over(backend: Arc<dyn Backend>, rt: Arc<dyn Runtime>) -> Self {
        let process = rt.process();
        let clock = rt.clone();
        let open = Box::new(move || {
            if clock.process() == process {
                Ok(backend.clone())
            } else {
                Err(Error::new(
                    ErrorKind::Closed,
                    "this locker belongs to the process that was forked: connect anew",
                ))
            }
        });
        Self::new(Parts { rt, open, ttl: DEFAULT_TTL, owner: None, metadata: BTreeMap::new() })
    }

    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { rt, open, ttl, owner, metadata } = parts;
        let session = AtomicPtr::new(ptr::null_mut());
        Self(Arc::new(Inner { rt, open, ttl, owner, metadata, session }))
    }

    /// The lock of this name, to be asked for: see [`Lock`]. Nothing is sent before it is awaited, and a name that is
    /// none is said then.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock::new(self.clone(), name.as_ref().parse())
    }

    /// The locks of these names, to be asked for together, all or none: see [`LockAll`].
    pub fn lock_all<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> LockAll {
        let names: Result<Vec<Name>> = names.into_iter().map(|name| name.as_ref().parse()).collect();
        let first = names.as_ref().ok().and_then(|names| names.first().cloned());
        LockAll::new(names, Lock::new(self.clone(), first.map_or_else(|| "-".parse(), Ok)))
    }

    /// Takes up a held lock from a ticket: from now on this locker renews and releases it. Cancel-safe: if the future is
    /// dropped, the ticket can be attached again for as long as its claim lives.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:attach-docs").await?;
    /// let ticket = locker.lock("deploy").await?.detach()?;
    /// let text = ticket.reveal(); // to another process, on a way that nobody else reads
    /// let guard = locker.attach(&text.parse()?).await?;
    /// assert!(guard.is_held());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotHeld`] when the claim has run out or was released, or belongs to a process that cannot hand it
    /// on (see [`Capabilities::hand_on_between_processes`]); [`ErrorKind::InvalidInput`] when a guard of this locker
    /// has it already; [`ErrorKind::Lost`]; what the backend says.
    pub async fn attach(&self, ticket: &Ticket) -> Result<Guard> {
        let session = self.session()?;
        session.check_open()?;
        let explain = |error| session.explain(error, ticket.name());
        let renewal = session.backend.renew(std::slice::from_ref(&ticket.claim));
        let renewals = within(&session.rt, Some(ticket.ttl / 3), renewal).await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Unavailable, "no answer within a third of the TTL: attach again"))
        });
        let renewals = renewals.map_err(explain)?;
        match renewals.into_iter().next() {
            Some(Renewal::Renewed(grant)) => {
                let options = AcquireOptions::new(ticket.ttl);
                take_over(&session, ticket.claim.clone(), &grant, &options).map_err(explain)
            }
            Some(Renewal::Unknown(error)) => Err(explain(error)),
            // Here it was not held, so it is not lost here, whatever ended it.
            Some(Renewal::Lost(_) | Renewal::NotHeld) | None => Err(explain(Error::new(
                ErrorKind::NotHeld,
                "the ticket's claim is not there: it has run out, was released, or belongs to a process that cannot \
                 hand it on",
            ))),
        }
    }

    /// Gives back what a ticket is for: the place in the queue, or the lock. One that is not there any more is no error.
    /// Cancel-safe: it goes on in the background when the future is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:release-docs").await?;
    /// let ticket = locker.lock("deploy").await?.detach()?;
    /// locker.release(&ticket).await?;
    /// assert!(locker.lock("deploy").try_acquire().await?.is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when a guard of this locker has the claim: release that. [`ErrorKind::Unavailable`] if the
    /// backend could not be told; the claim is then over when its time is.
    pub async fn release(&self, ticket: &Ticket) -> Result<()> {
        let session = self.session()?;
        session.check_open()?;
        let released = if session.held().contains_key(&ticket.claim.id) {
            Err(contradiction("a guard of this locker has the ticket's claim: release that"))
        } else {
            let give_back = session.give_back(smallvec![ticket.claim.clone()], RELEASE_PATIENCE);
            session.insist(give_back).await
        };
        released.map_err(|error| session.explain(error, ticket.name()))
    }

    /// Who holds and who waits, for the names that begin with `prefix` (`""`: all), sorted by name. Cancel-safe.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:list-docs").await?;
    /// let guard = locker.lock("deploy").owner("ann").await?;
    /// assert_eq!(locker.list("dep").await?[0].holders[0].owner.owner, "ann");
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the backend says.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Status>> {
        list(&*self.session()?.backend, prefix).await
    }

    /// The locks whose names begin with `prefix`, and then each one again whenever it has changed. A lock that is
    /// free comes once more without holders and waiters. What changes and changes back between two looks may be left out.
    /// Cancel-safe, as is each item of the stream.
    ///
    /// ```
    /// # use std::pin::pin;
    /// # use futures_util::StreamExt;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:watch-docs").await?;
    /// let guard = locker.lock("deploy").await?;
    /// let mut changes = pin!(locker.watch("").await?);
    /// assert_eq!(changes.next().await.unwrap()?.holders.len(), 1);
    /// guard.release().await?;
    /// assert_eq!(changes.next().await.unwrap()?.holders.len(), 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the backend says; the stream ends after an error.
    pub async fn watch(&self, prefix: &str) -> Result<impl Stream<Item = Result<Status>> + Send + use<>> {
        let session = self.session()?;
        let hints = session.backend.changes(prefix).await?;
        Ok(watch::statuses(session, prefix.to_owned(), hints))
    }

    /// Frees a lock as an operator: all its claims, or only those with this fencing token, which shared claims may have
    /// in common. Whoever held it is told `force_released`; waiters are let in. Returns whom it was taken from; empty if nobody held it.
    ///
    /// A dropped future may or may not have freed it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:force-docs").await?;
    /// let guard = locker.lock("deploy").await?;
    /// assert_eq!(locker.force_release("deploy", None).await?.len(), 1);
    /// assert_eq!(guard.lost().await, windlass::LostReason::ForceReleased);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], [`ErrorKind::Denied`], what the backend says.
    pub async fn force_release(
        &self,
        name: impl AsRef<str>,
        fencing_token: Option<u64>,
    ) -> Result<Vec<Holder>> {
        let name: Name = name.as_ref().parse()?;
        let session = self.session()?;
        if !session.backend.capabilities().force_release {
            return Err(session.explain(unsupported("force-release"), &name));
        }
        let taken = session.backend.force_release(&name, fencing_token).await;
        let taken = taken.map_err(|error| session.explain(error, &name))?;
        tracing::warn!(lock = %name, holders = taken.len(), "freed by force");
        Ok(taken)
    }

    /// What the backend can promise.
    ///
    /// # Errors
    /// In a child of `fork`, what connecting anew says.
    pub fn capabilities(&self) -> Result<Capabilities> {
        Ok(self.session()?.backend.capabilities())
    }

    /// Where the locks live, as a URL without credentials.
    ///
    /// # Errors
    /// In a child of `fork`, what connecting anew says.
    pub fn url(&self) -> Result<String> {
        Ok(self.session()?.backend.url())
    }

    /// What this locker has counted in this process.
    ///
    /// # Errors
    /// In a child of `fork`, what connecting anew says.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(self.session()?.counters.snapshot())
    }

    /// Releases everything that is held through this locker and its clones, and lets nobody acquire through them any more.
    /// Guards that are still there are told `session_ended`, and those who wait are refused. What was given up before, by
    /// dropping a guard or an acquire, is waited for as well, so a program may end after this. Cancel-safe: it goes on in the
    /// background when the future is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if the backend could not be told; what was held is then free when its TTL is over.
    pub async fn close(&self) -> Result<()> {
        self.session()?.close().await
    }

    /// Releases everything that is held through this locker and its clones, in the background; guards are told
    /// `session_ended`. For a page that is being hidden for good, or put away with its timers stopped: it may not get to do
    /// more. What is asked for later is asked for as ever.
    #[cfg(target_family = "wasm")]
    pub fn leave(&self) {
        if let Ok(session) = self.session() {
            session.leave().in_background();
        }
    }

    /// Looks at the clock at once: tells what is lost, and renews what is due. For a page whose timers were slowed down
    /// or stopped.
    #[cfg(target_family = "wasm")]
    pub fn look(&self) {
        if let Ok(session) = self.session() {
            session.look();
        }
    }

    pub(crate) fn acquire_options(&self) -> AcquireOptions {
        AcquireOptions::new(self.0.ttl)
    }

    /// The session of this process: made at first use, and again in a child of `fork`.
    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        let inner = &*self.0;
        let current = inner.session.load(Ordering::Acquire);
        // SAFETY: a pointer in `session` comes from Arc::into_raw below, and its count is given back only by the drop of
        // `Inner`, which nobody runs while `self` is there.
        if let Some(session) = unsafe { current.as_ref() }
            && session.is_ours()
        {
            // SAFETY: as above; this adds a count for the Arc that is returned.
            return Ok(unsafe {
                Arc::increment_strong_count(current);
                Arc::from_raw(current)
            });
        }
        inner.rt.start()?;
        let owner = Owner {
            owner: inner.owner.clone().unwrap_or_else(crate::owner::this_process),
            metadata: inner.metadata.clone(),
        };
        let fresh = Session::new(inner.rt.clone(), (inner.open)()?, Arc::new(owner));
        let raw = Arc::into_raw(fresh.clone()).cast_mut();
        match inner.session.compare_exchange(current, raw, Ordering::AcqRel, Ordering::Acquire) {
            // What was there before was the parent's, whose state must not be touched here, not even to be dropped.
            Ok(_) => Ok(fresh),
            Err(_) => {
                // Another thread was faster: let theirs be the one.
                // SAFETY: gives back the count that into_raw took; nobody else has seen this pointer.
                drop(unsafe { Arc::from_raw(raw) });
                self.session()
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let current = *self.session.get_mut();
        // SAFETY: as in `session`.
        if unsafe { current.as_ref() }.is_some_and(Session::is_ours) {
            // SAFETY: gives back the count that `session` left in the pointer.
            drop(unsafe { Arc::from_raw(current) });
        }
    }
}

impl fmt::Debug for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locker").field("url", &self.url()).field("ttl", &self.0.ttl).finish_non_exhaustive()
    }
}
