//! Asking for a lock: the builder.

use std::{fmt, future::IntoFuture, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};

use crate::{
    acquire::acquire_all,
    ask::{Entry, Mode, Waiting},
    error::{Error, ErrorKind, Result},
    guard::Guard,
    locker::Locker,
    name::Name,
    options::{AcquireOptions, Notice, OnWait, permit},
    session::{Few, lost},
    ticket::Ticket,
};

/// A lock to be asked for: set what differs from the default, then `await` it.
///
/// The default: exclusive, waiting for as long as it takes, with the locker's TTL, renewed automatically.
///
/// ```
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
/// let locker = windlass::connect("memory:lock-docs").await?;
/// let guard = locker.lock("deploy").timeout(Duration::from_secs(30)).await?;
/// assert!(locker.lock("deploy").try_acquire().await?.is_none());
/// drop(guard);
/// let ran = locker.lock("deploy").run(async |guard| guard.fencing_token()).await?;
/// println!("{} after {:?}", ran.output, ran.held_for);
/// # Ok(()) }
/// ```
#[must_use = "a lock is asked for when this is awaited"]
#[derive(Clone)]
pub struct Lock {
    locker: Locker,
    name: Result<Name>,
    options: Result<AcquireOptions>,
}

impl Lock {
    pub(crate) fn new(locker: Locker, name: Result<Name>) -> Self {
        let options = Ok(locker.acquire_options());
        Self { locker, name, options }
    }

    fn set(mut self, change: impl FnOnce(&mut AcquireOptions)) -> Self {
        if let Ok(options) = &mut self.options {
            change(options);
        }
        self
    }

    /// How to share the lock; [`shared`](Self::shared) and its kin are shorter.
    pub fn mode(self, mode: Mode) -> Self {
        self.set(|options| options.mode = mode)
    }

    /// Together with other shared claims.
    pub fn shared(self) -> Self {
        self.mode(Mode::Shared)
    }

    /// Shared, and able to become exclusive by [`Guard::upgrade`].
    pub fn upgradable(self) -> Self {
        self.mode(Mode::Upgradable)
    }

    /// Together with other permits, `limit` of them at the most (a semaphore).
    pub fn permit(mut self, limit: u32) -> Self {
        match permit(limit) {
            Ok(mode) => self.mode(mode),
            Err(error) => {
                self.options = Err(error);
                self
            }
        }
    }

    /// How long to wait for the lock at the most. Unless told otherwise: for as long as it takes.
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.set(|options| options.timeout = timeout.into())
    }

    /// Keeps the place in the queue for so long, an hour at the most, when the timeout is over: [`Error::ticket`] is then the
    /// ticket of the place, and another acquire, here or in another process or language, takes it up by
    /// [`ticket`](Self::ticket). For functions that live for one request only, and come back for their turn in the next.
    ///
    /// A turn that comes meanwhile waits for whoever has the ticket, until the place is kept no longer or the TTL is over; only then
    /// is it the next one's. That is the price of keeping a place: come back soon.
    ///
    /// An acquire that is given up otherwise, as by dropping its future, keeps no place. Needs
    /// [`Capabilities::keep_place`](crate::Capabilities).
    pub fn keep_place(self, keep_place: impl Into<Option<Duration>>) -> Self {
        self.set(|options| options.keep_place = keep_place.into())
    }

    /// Takes up the place of an earlier acquire, which [kept](Self::keep_place) it. The time for which it is kept begins anew with
    /// this acquire. Its mode has to be the same; its TTL and owner stay what they were.
    ///
    /// A place that is gone, because its time was over, is no error: the acquire waits at the end of the queue, as one without
    /// a ticket. `on_wait` and [`Error::waiting`] say at which place, and the next ticket is the one of that place.
    ///
    /// A ticket is for one acquire at a time, as the one of a held claim is for one guard.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn request(stored: Option<String>) -> windlass::Result<()> {
    /// let locker = windlass::connect("https://locks.example.com/team-a").await?;
    /// let ticket = stored.map(|text| text.parse()).transpose()?; // of the request before
    /// let lock = locker.lock("deploy").timeout(Duration::from_secs(5)).keep_place(Duration::from_secs(60));
    /// match lock.ticket(ticket).await {
    ///     Ok(guard) => guard.release().await,
    ///     Err(error) => match error.ticket() {
    ///         Some(ticket) => Ok(store(ticket.reveal())), // for the next request
    ///         None => Err(error),
    ///     },
    /// }
    /// # }
    /// # fn store(_: String) {}
    /// ```
    pub fn ticket(self, ticket: impl Into<Option<Ticket>>) -> Self {
        self.set(|options| options.ticket = ticket.into())
    }

    /// How long the granted claim lives without renewal: 1 s to 1 h, 10 s unless told otherwise.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|options| options.ttl = ttl)
    }

    /// Takes the lock from those who hold it, ahead of those who wait. They are told; what they do until they hear of
    /// it only a fencing token can stop.
    pub fn steal(self) -> Self {
        self.set(|options| options.entry = Entry::Steal)
    }

    /// Who asks, for people to see: `user@host:pid` unless told otherwise.
    pub fn owner(self, owner: impl Into<String>) -> Self {
        self.set(|options| options.owner = Some(owner.into()))
    }

    /// Something more about the claim for people to see; 2 KiB in all at the most.
    pub fn metadata(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.set(|options| {
            options.metadata.insert(key.into(), value.into());
        })
    }

    /// Called when the wait begins, with who holds the lock and one's place in the queue. What it returns is dropped when
    /// the wait is over, so a guard of a spinner or timer wraps the wait.
    pub fn on_wait<R: Send + 'static>(
        self,
        callback: impl Fn(&Waiting) -> R + Send + Sync + 'static,
    ) -> Self {
        let boxed: OnWait = Arc::new(move |waiting| Box::new(callback(waiting)));
        self.set(|options| options.on_wait = Some(boxed))
    }

    /// Called each time that the backend cannot be asked while the lock is waited for, with the reason. It is asked again,
    /// until the timeout; without one, this is how a program learns that it waits for nobody.
    pub fn on_trouble(self, callback: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        self.set(|options| options.on_trouble = Some(Arc::new(callback)))
    }

    /// Called when the lock has been granted, before anything else is done with it.
    pub fn on_acquired(self, callback: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.set(|options| options.hold.on_acquired = Some(Arc::new(callback)))
    }

    /// Called when the lock is lost, once, on a thread of its own.
    pub fn on_lost(self, callback: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.set(|options| options.hold.on_lost = Some(Arc::new(callback)))
    }

    /// Called when somebody begins to wait for the lock while it is held, on a thread of its own.
    pub fn on_contended(self, callback: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.set(|options| options.hold.on_contended = Some(Arc::new(callback)))
    }

    /// The longest hold. When it is over, [`on_held_too_long`](Self::on_held_too_long) is called and renewal stops; the
    /// lock is lost when its TTL is over after that, never under guarded work that was not told.
    pub fn max_hold(self, max_hold: impl Into<Option<Duration>>) -> Self {
        self.set(|options| options.hold.max_hold = max_hold.into())
    }

    /// Called when `max_hold` is over, on a thread of its own.
    pub fn on_held_too_long(self, callback: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.set(|options| options.hold.on_held_too_long = Some(Arc::new(callback)))
    }

    /// The shortest hold: a release before that waits. A short job that is started by several machines at once, with
    /// clocks that differ by less, runs once.
    pub fn hold_at_least(self, hold_at_least: Duration) -> Self {
        self.set(|options| options.hold.hold_at_least = hold_at_least)
    }

    /// Waits a random time of up to this long after the lock was granted, holding it.
    pub fn random_delay(self, random_delay: Duration) -> Self {
        self.set(|options| options.hold.random_delay = random_delay)
    }

    /// Takes the lock if it can be had at once: `None` when it is held in a way that conflicts, or somebody waits for it.
    /// Cancel-safe: a dropped future leaves no grant.
    ///
    /// # Errors
    /// As for the awaited lock, but for the timeout. An unavailable backend is an error at once.
    pub async fn try_acquire(self) -> Result<Option<Guard>> {
        self.set(|options| options.entry = Entry::Try).acquire().await
    }

    /// Acquires the lock, runs the work, releases the lock. The work is given the guard; its future is dropped when the
    /// lock is lost.
    ///
    /// Cancel-safe: a dropped future drops the work, and leaves neither a grant nor a place in the queue.
    ///
    /// Work that has ended is not taken back because the release could not be confirmed: its output comes, a warning is
    /// logged, and the lock is free when its TTL is over.
    ///
    /// # Errors
    /// As for the awaited lock; [`ErrorKind::Lost`] when the lock was lost before the work had ended.
    pub async fn run<T>(self, work: impl AsyncFnOnce(&Guard) -> T) -> Result<Ran<T>> {
        let guard = self.await?;
        let ended = {
            let work = std::pin::pin!(work(&guard));
            let watch = std::pin::pin!(guard.lost());
            match future::select(work, watch).await {
                Either::Left((output, _)) => Ok(output),
                Either::Right((reason, _)) => Err(reason),
            }
        };
        let held_for = guard.held_for();
        let output = ended.map_err(|reason| lost(reason, guard.name()))?;
        match guard.release().await {
            Err(error) if matches!(error.kind(), ErrorKind::Lost(_)) => return Err(error),
            Err(error) => tracing::warn!(%error, "release failed after the work had ended"),
            Ok(()) => {}
        }
        Ok(Ran { output, held_for })
    }

    async fn acquire(&self) -> Result<Option<Guard>> {
        let (name, options) = (self.name.as_ref(), self.options.as_ref());
        let (name, options) = (name.map_err(Error::clone)?, options.map_err(Error::clone)?);
        let session = self.locker.session()?;
        let mut guards = acquire_all(&session, std::slice::from_ref(name), options).await?;
        Ok(guards.as_mut().and_then(Few::pop))
    }
}

impl IntoFuture for Lock {
    type Output = Result<Guard>;
    type IntoFuture = BoxFuture<'static, Result<Guard>>;

    /// Acquires the lock. Cancel-safe: a dropped future leaves neither a grant nor a place in the queue.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] with who holds the lock, [`ErrorKind::Unavailable`] when the backend could not be asked even
    /// once until then, [`ErrorKind::InvalidName`], [`ErrorKind::InvalidInput`] for
    /// options that contradict each other, [`ErrorKind::Unsupported`], [`ErrorKind::Denied`], [`ErrorKind::Storage`],
    /// [`ErrorKind::Closed`]. An unavailable backend is asked again until the timeout, for ever where there is none.
    fn into_future(self) -> Self::IntoFuture {
        async move {
            let guard = self.acquire().await?;
            guard.ok_or_else(nothing)
        }
        .boxed()
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What work that ran in a lock gave, and how long the lock was held for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran<T> {
    /// What the work gave.
    pub output: T,
    /// How long the lock was held.
    pub held_for: Duration,
}

/// Several locks to be asked for together, all or none: made by [`Locker::lock_all`], then `await`ed.
#[must_use = "locks are asked for when this is awaited"]
#[derive(Clone, Debug)]
pub struct LockAll {
    names: Result<Vec<Name>>,
    template: Lock,
}

impl LockAll {
    pub(crate) fn new(names: Result<Vec<Name>>, template: Lock) -> Self {
        Self { names, template }
    }

    /// What applies to each of the locks: mode, timeout for all together, TTL, callbacks.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// # let locker = windlass::connect("memory:lock-all-docs").await?;
    /// let guards = locker.lock_all(["b", "a"]).with(|lock| lock.timeout(Duration::from_secs(5))).await?;
    /// assert_eq!(guards[0].name().as_str(), "b");
    /// # Ok(()) }
    /// ```
    pub fn with(mut self, change: impl FnOnce(Lock) -> Lock) -> Self {
        self.template = change(self.template);
        self
    }

    /// Takes the locks if all of them can be had at once. Cancel-safe: a dropped future leaves no grant.
    ///
    /// # Errors
    /// As for [`Lock::try_acquire`].
    pub async fn try_acquire(mut self) -> Result<Option<Vec<Guard>>> {
        self.template = self.template.set(|options| options.entry = Entry::Try);
        self.acquire().await
    }

    /// Boxed, so that it is compiled once and not into each of the ways to await it.
    fn acquire(self) -> BoxFuture<'static, Result<Option<Vec<Guard>>>> {
        async move {
            let session = self.template.locker.session()?;
            let guards = acquire_all(&session, &self.names?, &self.template.options?).await?;
            Ok(guards.map(Few::into_vec))
        }
        .boxed()
    }
}

impl IntoFuture for LockAll {
    type Output = Result<Vec<Guard>>;
    type IntoFuture = BoxFuture<'static, Result<Vec<Guard>>>;

    /// Acquires the locks: the guards come in the order of the names. No order of names can deadlock.
    ///
    /// # Errors
    /// As for a single [`Lock`]; [`ErrorKind::InvalidInput`] when a name comes twice.
    fn into_future(self) -> Self::IntoFuture {
        self.acquire().map(|guards| guards?.ok_or_else(nothing)).boxed()
    }
}

/// Only a try comes back without a guard and without an error.
fn nothing() -> Error {
    Error::new(ErrorKind::Internal, "a queued acquire came back with nothing")
}
