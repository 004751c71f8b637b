//! Asking for a lock: the builder, and the acquire that it starts.
//!
//! An acquire makes its claim id first, then asks until it has an answer. Whatever ends it early (timeout, error, a
//! dropped future) leaves an [`Owed`] behind that gives the claim back, whether it was queued, granted, or its answer
//! lost on the way (rules R11 and R12).

use std::{
    any::Any,
    fmt,
    future::IntoFuture,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};
use smallvec::smallvec;

use crate::{
    ask::{Ask, Claim, Entry, Grant, Mode, Owner, Term, Waiting},
    error::{Error, ErrorKind, Result},
    guard::Guard,
    held::Held,
    lease::{BackOff, Lease},
    locker::Locker,
    metrics::{add_time, count},
    name::{ClaimId, Name},
    options::{AcquireOptions, Notice, OnWait, check_metadata, check_owner, permit},
    session::{Few, Owed, Session, lost},
    time::Moment,
    within::{Seconds, within},
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

    async fn acquire(self) -> Result<Option<Vec<Guard>>> {
        let session = self.template.locker.session()?;
        let guards = acquire_all(&session, &self.names?, &self.template.options?).await?;
        Ok(guards.map(Few::into_vec))
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
        async move {
            let guards = self.acquire().await?;
            guards.ok_or_else(nothing)
        }
        .boxed()
    }
}

/// Only a try comes back without a guard and without an error.
fn nothing() -> Error {
    Error::new(ErrorKind::Internal, "a queued acquire came back with nothing")
}

/// What is known of a wait.
#[derive(Default)]
struct Wait {
    since: Option<Moment>,
    heard: Option<Waiting>,
    /// Why there was no answer, the last time there was none.
    trouble: Option<Error>,
    /// What `on_wait` returned, dropped with the wait.
    _wraps: Option<Box<dyn Any + Send>>,
    _span: Option<tracing::Span>,
}

/// Acquires all of these locks or none; `None` for a try that failed. One name is just the shortest list.
async fn acquire_all(
    session: &Arc<Session>,
    names: &[Name],
    options: &AcquireOptions,
) -> Result<Option<Few<Guard>>> {
    session.check_open()?;
    let Some(first) = names.first() else { return Ok(Some(Few::new())) };
    let explain = |error| match names {
        [name] => session.explain(error, name),
        _ => session.explain_backend(error),
    };
    let owner = options.owner(&session.owner);
    options.check(&session.backend.capabilities()).map_err(explain)?;
    check_owner(&owner.owner).and_then(|()| check_metadata(&owner.metadata)).map_err(explain)?;
    let wait = Mutex::new(Wait::default());
    let granted = {
        let on_waiting = |waiting: Waiting| heard_waiting(&wait, session, &options.on_wait, first, &waiting);
        let on_trouble = |error: &Error| {
            wait.lock().unwrap_or_else(PoisonError::into_inner).trouble = Some(error.clone());
            if let Some(on_trouble) = &options.on_trouble {
                on_trouble(error);
            }
        };
        let asking = pin!(async {
            let mut back_off = BackOff::default();
            loop {
                let asks = asks(session, names, options, &owner)?;
                let claims = asks.iter().map(Ask::claim).collect();
                let owed = Owed::new(session, claims);
                match ask_until_answered(session, &asks, &on_waiting, &on_trouble).await {
                    // While we were cut off, the claim left the queue, or was granted and ran out: it waits on as another.
                    Err(error) if error.kind() == ErrorKind::NotHeld && options.entry != Entry::Try => {
                        count(&session.counters.retries);
                        drop(owed);
                        session.rt.sleep(back_off.pause(session.jitter(), error.retry_after())).await;
                    }
                    answer => return answer.map(|grants| (asks, owed, grants)),
                }
            }
        });
        let asking = pin!(session.unless_closed(asking));
        within(&session.rt, options.timeout, asking).await
    };
    let wait = wait.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (asks, owed, grants) = match granted {
        Some(Ok((asks, owed, Some(grants)))) => (asks, owed, grants),
        Some(Ok((_, owed, None))) => {
            owed.settle();
            return Ok(None);
        }
        Some(Err(error)) => return Err(explain(error)),
        None => {
            count(&session.counters.timeouts);
            return Err(explain(timed_out(names, options, wait)));
        }
    };
    if let Some(since) = wait.since {
        count(&session.counters.waited);
        add_time(&session.counters.wait_micros, session.rt.now().since(since));
    }
    drop(wait);
    let guard = |(ask, grant): (&Ask, &Grant)| take_over(session, ask.claim(), grant, options);
    let mut guards: Few<Guard> =
        asks.iter().zip(&grants).map(guard).collect::<Result<_>>().map_err(explain)?;
    owed.settle();
    // Asked for in the order of names, given in that of the program.
    for (at, name) in names.iter().enumerate() {
        if let Some(found) = guards.iter().position(|guard| guard.name() == name) {
            guards.swap(at, found);
        }
    }
    // The program's own code comes last: by now the guards give the locks back, whatever it does.
    guards.iter().for_each(Guard::tell_acquired);
    if !options.hold.random_delay.is_zero() {
        session.rt.sleep(options.hold.random_delay.mul_f64(session.jitter())).await;
        guards.iter().try_for_each(Guard::check)?;
    }
    Ok(Some(guards))
}

fn asks(session: &Session, names: &[Name], options: &AcquireOptions, owner: &Arc<Owner>) -> Result<Few<Ask>> {
    let mut sorted: Few<&Name> = names.iter().collect();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = "asked for twice in one acquire_all: name each lock once";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_lock(twice[0]));
    }
    let ask = |name: &Name| Ask {
        name: name.clone(),
        claim_id: ClaimId::from_u128(session.rt.random()),
        mode: options.mode,
        entry: options.entry,
        ttl: options.ttl,
        owner: owner.clone(),
    };
    Ok(sorted.into_iter().map(ask).collect())
}

fn heard_waiting(
    wait: &Mutex<Wait>,
    session: &Session,
    on_wait: &Option<OnWait>,
    name: &Name,
    waiting: &Waiting,
) {
    let first = {
        let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
        wait.since.get_or_insert_with(|| session.rt.now());
        wait.trouble = None;
        wait.heard.replace(waiting.clone()).is_none()
    };
    if first {
        let span = tracing::debug_span!("windlass.wait", lock = %name, waiting = %waiting);
        let wraps = on_wait.as_ref().map(|on_wait| on_wait(waiting));
        let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
        (wait._wraps, wait._span) = (wraps, Some(span));
    }
}

/// Asks, and asks again with the same claim ids while the backend is unavailable: what an earlier try got is found again.
async fn ask_until_answered(
    session: &Session,
    asks: &[Ask],
    on_waiting: &(dyn Fn(Waiting) + Send + Sync),
    on_trouble: &(dyn Fn(&Error) + Send + Sync),
) -> Result<Option<Few<Grant>>> {
    let mut back_off = BackOff::default();
    loop {
        let answer = match asks {
            [ask] => session
                .backend
                .acquire(ask, on_waiting)
                .await
                .map(|grant| grant.map(|grant| smallvec![grant])),
            _ => session.backend.acquire_all(asks, on_waiting).await.map(|grants| grants.map(Few::from_vec)),
        };
        let too_late = |term: Term| !Lease::new(term).is_held(session.rt.now());
        match answer {
            // The answer took longer than the lease: asking again by the same id renews it.
            Ok(Some(grants)) if grants.iter().any(|grant| grant.lease.is_some_and(too_late)) => {}
            Err(error) if error.kind() == ErrorKind::Unavailable && asks[0].entry != Entry::Try => {
                count(&session.counters.retries);
                tracing::warn!(%error, "backend unavailable, trying again");
                on_trouble(&error);
                session.rt.sleep(back_off.pause(session.jitter(), error.retry_after())).await;
            }
            answer => return answer,
        }
    }
}

fn timed_out(names: &[Name], options: &AcquireOptions, wait: Wait) -> Error {
    let what = match names {
        [_] => "not acquired".to_owned(),
        _ => {
            let names: Vec<String> = names.iter().map(Name::to_string).collect();
            format!("not all of the locks {} acquired", names.join(", "))
        }
    };
    let limit = Seconds(options.timeout.unwrap_or_default());
    // What was heard before the trouble may no longer be so, but is all that is known.
    let why = match (&wait.trouble, &wait.heard) {
        (Some(trouble), None) => trouble.message().to_owned(),
        (Some(trouble), Some(waiting)) => format!("{waiting}; then {}", trouble.message()),
        (None, Some(waiting)) => waiting.to_string(),
        (None, None) => "that was too short to hear who holds it".to_owned(),
    };
    // Who never heard of the lock did not wait for it: that the backend is gone must not look like a lock that is taken.
    let kind = match (&wait.trouble, &wait.heard) {
        (Some(_), None) => ErrorKind::Unavailable,
        _ => ErrorKind::Timeout,
    };
    let error = Error::new(kind, format!("{what} within {limit}: {why}"));
    wait.heard.into_iter().fold(error, Error::with_waiting)
}

/// Makes a guard of a claim that the backend has granted.
///
/// # Errors
/// Where the locker was closed meanwhile, or has this claim already.
pub(crate) fn take_over(
    session: &Arc<Session>,
    claim: Claim,
    grant: &Grant,
    options: &AcquireOptions,
) -> Result<Guard> {
    let now = session.rt.now();
    let held = Arc::new(Held::new(claim, grant, options.ttl, now, options.hold.clone()));
    session.keep(&held, now)?;
    Ok(Guard::new(session.clone(), held))
}
