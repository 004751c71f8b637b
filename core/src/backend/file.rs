//! Locks in files.

use std::{fmt, mem::ManuallyDrop, path::Path, sync::Arc};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{Backend, Capabilities, OnWaiting, in_turn};
use crate::{
    ask::{Ask, Claim, Grant, Holder, Mode, News, Renewal, Status},
    error::{Error, ErrorKind, Result},
    lockgate::FileKey,
    name::Name,
    rt::Runtime,
};

mod dir;
mod line;
mod lockfile;
mod look;
mod news;
mod record;
mod revoke;
mod slots;
mod take;
mod trouble;
mod waiter;
mod watch;

pub(crate) use dir::default_dir;
use dir::Directory;
use line::Begun;
use news::Inbox;

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
        }
    }

    fn url(&self) -> String {
        format!("file://{}", self.directory.path().display())
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        let begun = self.directory()?.begin(self.key(&ask.name), ask, &self.inbox).map_err(self.at(&ask.name))?;
        match begun {
            Begun::Granted(grant) => Ok(Some(grant)),
            Begun::Refused => Ok(None),
            Begun::Waiting(answer, state) => {
                waiting(state);
                match answer.await {
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
        in_turn(self, asks, waiting).await
    }

    async fn renew(&self, _claims: &[Claim]) -> Result<Vec<Renewal>> {
        todo!()
    }

    async fn release(&self, claims: &[Claim]) -> Result<()> {
        let directory = self.directory()?;
        for claim in claims {
            directory.end(self.key(&claim.name), claim.id);
        }
        Ok(())
    }

    async fn change(&self, _claim: &Claim, _to: Mode) -> Result<Grant> {
        todo!()
    }

    async fn hear(&self) -> Result<Vec<News>> {
        todo!()
    }

    async fn inspect(&self, _prefix: &str) -> Result<Vec<Status>> {
        todo!()
    }

    async fn force_release(&self, _name: &Name, _fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        todo!()
    }

    async fn changes(&self, _prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        todo!()
    }
}
