//! A held lock as a value of the program.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::lock::OwnedMutexGuard;

use crate::{
    ask::Mode,
    error::{Error, ErrorKind, LostReason, Result},
    held::{End, Held},
    lease::BackOff,
    name::Name,
    options::unsupported,
    session::{Session, lost},
    ticket::Ticket,
    within::within,
};

/// A held lock. Dropping it releases the lock in the background; [`release`](Self::release) waits until that is done
/// and says whether the lock was held to the end.
///
/// Ownership belongs to this value and not to a thread or task: it can be sent anywhere. In a child of `fork` it holds
/// nothing, and dropping it there releases nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
/// let locker = windlass::connect("memory:guard-docs").await?;
/// let guard = locker.lock("deploy").await?;
/// guard.check()?; // before each step that must not happen without the lock
/// assert!(guard.fencing_token() > 0); // for the resource, which refuses a smaller one than it has seen
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[must_use = "dropping a guard releases its lock at once"]
pub struct Guard {
    session: Arc<Session>,
    held: Arc<Held>,
}

impl Guard {
    pub(crate) fn new(session: Arc<Session>, held: Arc<Held>) -> Self {
        Self { session, held }
    }

    /// Which lock.
    pub fn name(&self) -> &Name {
        &self.held.claim.name
    }

    /// Greater than that of every earlier grant of this lock that it conflicts with. Send it with each side effect: a
    /// resource that refuses a smaller token than the largest it has seen is never written by an old holder. It can
    /// grow by [`upgrade`](Self::upgrade).
    ///
    /// 0 in a child of `fork`, and where the backend has none to give: see [`Capabilities::fencing_token`](crate::Capabilities).
    pub fn fencing_token(&self) -> u64 {
        if self.session.is_ours() { self.held.fencing_token() } else { 0 }
    }

    /// How the lock is shared.
    pub fn mode(&self) -> Mode {
        if self.session.is_ours() { self.held.mode() } else { Mode::Exclusive }
    }

    /// For how long the lock has been held.
    pub fn held_for(&self) -> Duration {
        self.session.rt.now().since(self.held.since)
    }

    /// For how long the lock stays held if no renewal comes through any more; zero once it has ended. `None`: the backend frees it
    /// when this process ends, and only then.
    ///
    /// As long as renewals come through it is hardly ever less than half of the TTL; they stop after `max_hold`. So what falls below a
    /// quarter tells of a loss that is to come, to whoever needs time to end its work.
    pub fn remaining(&self) -> Option<Duration> {
        if self.end().is_some() {
            return Some(Duration::ZERO);
        }
        self.held.remaining(self.session.rt.now())
    }

    /// Whether the lock is certainly held: answered from the clock at every call, nobody is asked. It is `false` no later
    /// than the claim can have run out and another be granted the lock, whatever became of network, timers and runtime. Of
    /// a lock that is stolen, or freed by an operator, the holder hears a moment later; until then only its fencing token
    /// tells.
    pub fn is_held(&self) -> bool {
        self.end().is_none()
    }

    /// `Ok` while the lock is certainly held.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] from the moment on at which another may hold it, [`ErrorKind::Closed`] in a child of `fork`.
    pub fn check(&self) -> Result<()> {
        self.end().map_or(Ok(()), |ended| Err(self.ended(ended)))
    }

    /// Completes when the lock is lost, with the reason; never, if it is released before. It completes no later than
    /// the claim can have run out, also with the network gone or a request hung; after a suspend, within half a second of
    /// waking. Cancel-safe.
    pub fn lost(&self) -> impl Future<Output = LostReason> + Send + use<> {
        let held = self.session.is_ours().then(|| self.held.clone());
        async move {
            let Some(held) = held else { return std::future::pending().await };
            loop {
                let listener = held.listen();
                match held.end() {
                    // The release may find out that it was lost before.
                    None | Some(End::Released) => listener.await,
                    Some(End::Lost(reason)) => return reason,
                    Some(End::Detached) => return std::future::pending().await,
                }
            }
        }
    }

    /// Releases the lock and waits until the backend has confirmed it, or until `hold_at_least` is over and then so.
    ///
    /// Cancel-safe: the release goes on in the background when the future is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the lock was lost before: the guarded work was not protected to its end.
    /// [`ErrorKind::Unavailable`] if the backend could not be told; the lock is then free when its TTL is over.
    pub async fn release(self) -> Result<()> {
        self.release_shared().await
    }

    /// [`release`](Self::release) for a guard that several parts of a program share. It can be called more than once, and
    /// is as cancel-safe.
    ///
    /// # Errors
    /// As for [`release`](Self::release).
    pub async fn release_shared(&self) -> Result<()> {
        if let Some(Ended::InParent) = self.end() {
            return self.check();
        }
        let released = self.session.release(self.held.clone()).await;
        released.map_err(|error| self.session.explain(error, self.name()))
    }

    /// Gives up exclusiveness without a gap: the claim becomes shared, and shared claims that wait are let in.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:downgrade-docs").await?;
    /// let guard = locker.lock("report").await?;
    /// guard.downgrade().await?; // others may read from now on, and nobody could write in between
    /// assert!(locker.lock("report").shared().try_acquire().await?.is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// Cancel-safe: it goes on in the background when the future is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the backend cannot, [`ErrorKind::InvalidInput`] for a permit,
    /// [`ErrorKind::Lost`] if the lock is lost.
    pub async fn downgrade(&self) -> Result<()> {
        self.check()?;
        if let Mode::Permit(_) = self.mode() {
            return Err(self.not_in_place("a permit cannot be downgraded"));
        }
        if !self.session.backend.capabilities().downgrade {
            return Err(self.session.explain(unsupported("downgrade"), self.name()));
        }
        let (session, held) = (self.session.clone(), self.held.clone());
        self.session
            .insist(async move {
                let _turn = held.changing.clone().lock_owned().await;
                // Others may be let in before the answer is here, or although it is lost.
                held.make_shared();
                change(&session, &held, Mode::Shared).await
            })
            .await
    }

    /// Makes an upgradable claim exclusive, as soon as the other shared claims are gone; new ones are held back
    /// meanwhile. At most one claim is upgradable at a time, so two upgrades cannot wait for each other.
    ///
    /// After `timeout` (`None`: no limit), or when the future is dropped, the claim is upgradable as before. While the backend is
    /// unavailable it is asked again, for as long as the lock is held.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let locker = windlass::connect("memory:upgrade-docs").await?;
    /// let guard = locker.lock("report").upgradable().await?; // reads beside other readers
    /// guard.upgrade(None).await?; // and now writes, alone
    /// assert_eq!(guard.mode(), windlass::Mode::Exclusive);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`], or [`ErrorKind::Unavailable`] if the backend was that in the end; [`ErrorKind::InvalidInput`] when the
    /// claim is not upgradable, [`ErrorKind::Lost`].
    pub async fn upgrade(&self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        self.check()?;
        let trouble = Mutex::new(None);
        let upgrading = pin!(async {
            let turn = self.held.changing.clone().lock_owned().await;
            // Whoever had the turn before may have changed it.
            match self.mode() {
                Mode::Exclusive => return Ok(()),
                Mode::Upgradable => {}
                Mode::Shared | Mode::Permit(_) => {
                    let message = "only an upgradable claim can be upgraded: acquire it as upgradable";
                    return Err(self.not_in_place(message));
                }
            }
            let call_off = CallOff(Some((self, turn)));
            let mut back_off = BackOff::default();
            while let Err(error) = change(&self.session, &self.held, Mode::Exclusive).await {
                self.check()?;
                if error.kind() != ErrorKind::Unavailable {
                    return Err(error);
                }
                let pause = back_off.pause(self.session.rt.jitter(), error.retry_after());
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.session.rt.sleep(pause).await;
            }
            call_off.settle();
            Ok(())
        });
        let upgraded = within(&self.session.rt, timeout.into(), upgrading).await;
        upgraded.unwrap_or_else(|| {
            let (kind, why) = match trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
                None => (ErrorKind::Timeout, "other shared claims still hold the lock".to_owned()),
                Some(trouble) => (ErrorKind::Unavailable, trouble.message().to_owned()),
            };
            let error = Error::new(kind, format!("not upgraded within the timeout: {why}"));
            Err(self.session.explain(error, self.name()))
        })
    }

    /// Ends the guard without releasing: the claim lives on as a ticket, for its TTL at the most unless somebody
    /// [attaches](crate::Locker::attach) it, in another process or language, and renews it from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the lock is lost.
    pub fn detach(self) -> Result<Ticket> {
        self.detach_shared()
    }

    /// [`detach`](Self::detach) for a guard that several parts of a program share: it holds nothing afterwards.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach); [`ErrorKind::NotHeld`] when it was released or detached before.
    pub fn detach_shared(&self) -> Result<Ticket> {
        self.check()?;
        let ticket = Ticket {
            claim: self.held.claim.clone(),
            fencing_token: self.held.fencing_token(),
            mode: self.held.mode(),
            ttl: self.held.ttl(),
        };
        match self.session.detach(&self.held) {
            Ok(()) => Ok(ticket),
            // Another part of the program ended it at the same moment.
            Err(end) => Err(self.ended(Ended::Here(end))),
        }
    }

    /// Calls `on_acquired`.
    pub(crate) fn tell_acquired(&self) {
        if let Some(on_acquired) = &self.held.hold.on_acquired {
            on_acquired(&self.held.notice(self.held.since));
        }
    }

    fn ended(&self, ended: Ended) -> Error {
        let error = match ended {
            Ended::InParent => Error::new(
                ErrorKind::Closed,
                "this process was forked from the one that holds the lock: acquire it here",
            ),
            Ended::Here(End::Lost(reason)) => lost(reason, self.name()),
            Ended::Here(End::Released) => Error::new(ErrorKind::NotHeld, "the guard was released"),
            Ended::Here(End::Detached) => {
                Error::new(ErrorKind::NotHeld, "the guard was detached: its ticket holds the lock now")
            }
        };
        match ended {
            // Not even the session's memory is this process's.
            Ended::InParent => error.with_lock(self.name()),
            Ended::Here(_) => self.session.explain(error, self.name()),
        }
    }

    fn not_in_place(&self, message: &str) -> Error {
        Error::new(ErrorKind::InvalidInput, message).with_lock(self.name())
    }

    fn end(&self) -> Option<Ended> {
        if !self.session.is_ours() {
            return Some(Ended::InParent);
        }
        if self.held.end().is_none()
            && let Some(reason) = self.held.overdue(self.session.rt.now())
        {
            self.session.lose(&self.held, reason);
        }
        self.held.end().map(Ended::Here)
    }
}

/// Changes the mode in the backend and then here. The caller has the turn.
async fn change(session: &Session, held: &Held, to: Mode) -> Result<()> {
    let changed = session.backend.change(&held.claim, to).await;
    let grant = changed.map_err(|error| session.explain(error, &held.claim.name))?;
    held.changed(&grant, session.rt.now());
    Ok(())
}

#[derive(Clone, Copy)]
enum Ended {
    Here(End),
    InParent,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.session.is_ours() {
            // The parent's session: not even its memory may be given back here, because that takes its locks.
            std::mem::forget((self.session.clone(), self.held.clone()));
        } else if self.held.end().is_none() {
            self.session.release(self.held.clone()).in_background();
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("name", self.name())
            .field("fencing_token", &self.fencing_token())
            .finish_non_exhaustive()
    }
}

/// An upgrade under way, called off unless it is settled. The next change waits until the backend knows of it.
struct CallOff<'a>(Option<(&'a Guard, OwnedMutexGuard<()>)>);

impl CallOff<'_> {
    fn settle(mut self) {
        self.0 = None;
    }
}

impl Drop for CallOff<'_> {
    fn drop(&mut self) {
        let Some((guard, turn)) = self.0.take() else { return };
        if !guard.session.is_ours() || guard.held.end().is_some() {
            return;
        }
        let (backend, held) = (guard.session.backend.clone(), guard.held.clone());
        let session = guard.session.clone();
        guard.session.in_background(async move {
            let _turn = turn;
            let mut back_off = BackOff::default();
            loop {
                match backend.change(&held.claim, Mode::Upgradable).await {
                    Ok(grant) => {
                        held.changed(&grant, session.rt.now());
                        return Ok(());
                    }
                    Err(error) if error.kind() == ErrorKind::Unavailable && held.end().is_none() => {
                        session.rt.sleep(back_off.pause(session.rt.jitter(), error.retry_after())).await;
                    }
                    Err(error) => return if held.end().is_none() { Err(error) } else { Ok(()) },
                }
            }
        });
    }
}
