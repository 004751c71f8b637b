//! Locks in files. The kernel's flock(2) says who holds a lock; all else is order, numbers and news around it.
//!
//! ```text
//! DIR/HASH                    the lock: locked with flock(2), also by lockgate and flock(1); says who holds it (record.rs)
//! DIR/.windlass/HASH.queue    who stands in line: a byte a process, locked (gate.rs)
//! DIR/.windlass/HASH.permits  who has a permit: a byte each, locked (slots.rs)
//! DIR/.windlass/HASH.revoke   who takes the lock by force, and from whom: there only while that goes on (revoke.rs)
//! ```
//!
//! A claim of this process is in one of three states, in the [`line`] of its lock and under that line's mutex:
//!
//! ```text
//!            begin: free, and nobody before us
//!   (asked) ------------------------------------> held --- end, lost ---> (gone: the file is closed)
//!      |                                            ^
//!      +-----> standing, in the process's queue ----+  serve
//! ```
//!
//! Only the head of that queue has anything to do with other processes. [`Directory::pump`] moves it on as far as that
//! goes without waiting: a ticket at the gate, then the lock, then a permit. What it has to wait for becomes a `Job` of a
//! thread (waiter.rs), whatever the number of claims: at most one that the kernel queues at the gate, one for each way to
//! lock, one that waits for permits, one that waits for a theft to end. Nobody polls for a lock; those that wait for other
//! processes look around once a second (waiter.rs).
//!
//! What can go wrong, and why it does no harm:
//!
//! - *The file is replaced or removed* between opening and locking it, or under a holder. Whoever has locked a file looks
//!   whether the name still leads to it, and starts again if not (R25); holders hear of it and are told (watch.rs).
//! - *The claim is given up while a thread waits for it in the kernel*. The thread stays there as an abandoned one until a
//!   signal ends its wait (alarm.rs); what it gets before that it gives back at once, and whoever tries meanwhile and finds
//!   the lock taken takes it from that thread (`attempt`).
//! - *A holder or a waiter is killed*: all that says that it was there are locks, and they go with its descriptors. Flags in
//!   the lock file that it left up are lowered by the next one who finds nothing behind them.
//! - *A waiter is stopped* when its turn comes: others go by (gate.rs).
//! - *A child is forked*: it closes its copies at once and unlocks nothing (`lockfile::fork`, R21).
//! - *A notice is lost*: inotify only makes things quick; a slow look finds what was not heard (R18).
//! - *The machine's power fails* before a record is on the disk: fencing tokens are at least the time of day, and no
//!   record of an earlier boot is trusted for more than that (take.rs).
//! - *The disk is full*: the record cannot be written, so the lock is not granted, and the error says so.

use std::{fmt, mem::ManuallyDrop, path::Path, sync::Arc};

use async_trait::async_trait;
use futures_channel::oneshot;
use futures_util::{
    future::{Either, select},
    stream::BoxStream,
};

use super::{Backend, Capabilities, OnWaiting, in_turn};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Holder, Mode, News, Renewal, Status},
    error::{Error, ErrorKind, Result},
    lockgate::FileKey,
    name::Name,
    rt::{Runtime, thread},
};

mod alarm;
mod dir;
mod ears;
#[cfg_attr(not(target_os = "linux"), path = "file/no_gate.rs")]
mod gate;
mod line;
mod lockfile;
mod look;
mod news;
#[cfg(target_os = "linux")]
mod ofd;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod procfs;
mod record;
mod revoke;
#[cfg_attr(not(target_os = "linux"), path = "file/no_slots.rs")]
mod slots;
mod take;
mod trouble;
mod waiter;
mod watch;
mod who;

use dir::Directory;
pub(crate) use dir::default_dir;
use line::Begun;
use news::Inbox;
#[cfg(fuzzing)]
pub use record::fuzz;
use slots::MOST;

/// How the files of locks are named: as lockgate names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Naming {
    /// By the SHA-256 of the lock's name.
    #[default]
    Sha256,
    /// By its `MurmurHash3`, as old releases of lockgate did.
    Murmur3,
}

/// Locks in the files of a directory.
pub struct FileBackend {
    directory: ManuallyDrop<Arc<Directory>>,
    naming: Naming,
    inbox: Arc<Inbox>,
    process: u32,
    rt: Arc<dyn Runtime>,
}

impl FileBackend {
    /// Opens a directory, and makes it where it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where there is something else in its place, else what the system says.
    pub fn open(path: &Path, naming: Naming, rt: Arc<dyn Runtime>) -> Result<Self> {
        let directory = Directory::open(path, rt.clone())?;
        Ok(Self {
            directory: ManuallyDrop::new(directory),
            naming,
            inbox: Arc::default(),
            process: rt.process(),
            rt,
        })
    }

    /// The directory, unless it is another process's.
    fn directory(&self) -> Result<&Arc<Directory>> {
        if self.rt.process() == self.process {
            Ok(&self.directory)
        } else {
            Err(Error::new(
                ErrorKind::Closed,
                "these locks are of the process that this one was forked from: connect again in this process",
            ))
        }
    }

    fn key(&self, name: &Name) -> FileKey {
        match self.naming {
            Naming::Sha256 => FileKey::sha256(name.as_str()),
            Naming::Murmur3 => FileKey::murmur3(name.as_str()),
        }
    }

    fn check(&self, ask: &Ask) -> Result<()> {
        let can = self.capabilities();
        let unsupported = |what| Err(Error::new(ErrorKind::Unsupported, what));
        match ask.mode {
            Mode::Upgradable => {
                return unsupported("locks in files cannot be upgraded: the kernel lets others in between");
            }
            Mode::Permit(_) if !can.permit => {
                return unsupported("permits in files need Linux, whose locks can be counted");
            }
            Mode::Permit(limit) if limit.get() > MOST => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("a limit of {limit} is too great: a lock in a file has at most {MOST} permits"),
                ));
            }
            _ => {}
        }
        if ask.entry == Entry::Steal && !can.steal {
            return unsupported(
                "locks in files can be stolen on Linux only, where their holders can be told",
            );
        }
        Ok(())
    }

    fn at(&self, name: &Name) -> impl Fn(Error) -> Error {
        move |error| error.with_lock(name).with_backend(self.url())
    }
}

impl Drop for FileBackend {
    fn drop(&mut self) {
        if self.rt.process() == self.process {
            // SAFETY: dropped once, here, and not used afterwards. In a child of `fork` it stays: its tables may be in
            // the middle of a change, and its descriptors are closed.
            unsafe { ManuallyDrop::drop(&mut self.directory) };
        }
    }
}

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").field("directory", &self.directory.path()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for FileBackend {
    fn capabilities(&self) -> Capabilities {
        let linux = cfg!(target_os = "linux");
        Capabilities {
            shared: true,
            permit: linux,
            downgrade: linux,
            upgrade: false,
            steal: linux,
            force_release: linux,
            fair_between_processes: linux,
            hand_on_between_processes: false,
            forgets_names: false,
            fencing_token: true,
            see: true,
            keep_place: false,
        }
    }

    fn url(&self) -> String {
        format!("file://{}", self.directory.path().display())
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        self.check(ask).map_err(self.at(&ask.name))?;
        let key = self.key(&ask.name);
        let begun = self.directory()?.begin(key, ask, &self.inbox).map_err(self.at(&ask.name))?;
        match begun {
            Begun::Granted(grant) => Ok(Some(grant)),
            Begun::Refused => Ok(None),
            Begun::Waiting(mut answer, mut state) => {
                let mut early = None;
                if state.holders.is_empty() {
                    match select(&mut answer, self.directory()?.ask_who_holds(key)).await {
                        Either::Left((answered, _)) => early = Some(answered),
                        Either::Right((holders, _)) => state.holders = holders.unwrap_or_default(),
                    }
                }
                let answered = match early {
                    Some(answered) => answered,
                    None => {
                        waiting(state);
                        answer.await
                    }
                };
                match answered {
                    Ok(answer) => answer.map(Some).map_err(self.at(&ask.name)),
                    Err(_) => Err(self.at(&ask.name)(Error::new(
                        ErrorKind::NotHeld,
                        "the claim was given up, or asked for again, while it waited",
                    ))),
                }
            }
        }
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        let directory = self.directory()?;
        let renew = |claim: &Claim| {
            // Whoever renews a claim hears of it from now on: it may have been handed on by its ticket.
            let grant = directory.renew(self.key(&claim.name), claim.id, &self.inbox);
            grant.map_or(Renewal::NotHeld, Renewal::Renewed)
        };
        Ok(claims.iter().map(renew).collect())
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        let directory = self.directory()?;
        let mut lost = Vec::new();
        for claim in claims {
            directory.end(self.key(&claim.name), claim.id);
            lost.extend(self.inbox.lost(claim));
        }
        Ok(lost)
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        let directory = self.directory()?;
        if to != Mode::Shared || !self.capabilities().downgrade {
            return Err(self.at(&claim.name)(Error::new(
                ErrorKind::Unsupported,
                "a lock in a file can be changed from exclusive to shared only, and on Linux only: the kernel would let \
                 others in between; release it and acquire it anew",
            )));
        }
        directory.downgrade(self.key(&claim.name), claim.id).map_err(self.at(&claim.name))
    }

    async fn hear(&self) -> Result<Vec<News>> {
        let directory = self.directory()?;
        if self.inbox.listen() {
            directory.watch_what_is_held();
        }
        Ok(self.inbox.next().await)
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        let named = prefix.parse().ok().map(|name| (self.key(&name), name));
        self.directory()?.look(prefix, named.as_ref()).map_err(|error| error.with_backend(self.url()))
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        let (directory, key) = (self.directory()?.clone(), self.key(name));
        if !self.capabilities().force_release {
            return Err(self.at(name)(Error::new(
                ErrorKind::Unsupported,
                "only on Linux can holders be found and told",
            )));
        }
        let (tell, answer) = oneshot::channel();
        thread("windlass-force", move || {
            // Whoever asked may be gone.
            let _ = tell.send(directory.free_by_force(key, fencing_token));
        })
        .map_err(|e| Error::new(ErrorKind::Unavailable, format!("cannot start a thread: {e}")).with_source(e))
        .map_err(self.at(name))?;
        let gone = || Error::new(ErrorKind::Internal, "the thread that was to free the lock has ended");
        let freed = answer.await.unwrap_or_else(|_| Err(gone())).map_err(self.at(name))?;
        for holder in &freed {
            let (owner, token) = (&holder.owner.owner, holder.fencing_token);
            tracing::warn!(lock = %name, holder = owner, fencing_token = token, "taken away by force");
        }
        Ok(freed)
    }

    async fn changes(&self, _prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        // Files are named by hashes, so a hint tells not of which lock it is.
        self.directory()?.hints().map_err(|error| error.with_backend(self.url()))
    }
}
