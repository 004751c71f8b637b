//! What the tests of locks in files have in common.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use tokio::task::JoinHandle;
use windlass::{
    ClaimId, Mode, Owner, Result,
    ask::{Ask, Claim, Entry, Grant},
    backend::{Backend, FileBackend, Naming},
    rt::Native,
};

/// A directory of its own, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn scratch() -> Scratch {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("windlass-test-{}-{next}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    Scratch(path)
}

pub fn ask(name: &str, id: u128, mode: Mode, entry: Entry) -> Ask {
    Ask {
        name: name.parse().unwrap(),
        claim_id: ClaimId::from_u128(id),
        mode,
        entry,
        ttl: Duration::from_secs(10),
        owner: Arc::new(Owner { owner: format!("tester-{id}"), metadata: BTreeMap::new() }),
    }
}

pub fn exclusive(name: &str, id: u128) -> Ask {
    ask(name, id, Mode::Exclusive, Entry::Queue)
}

pub fn shared(name: &str, id: u128) -> Ask {
    ask(name, id, Mode::Shared, Entry::Queue)
}

pub fn claim(id: u128, name: &str) -> Claim {
    Claim { name: name.parse().unwrap(), id: ClaimId::from_u128(id) }
}

/// A backend with the shorthands that tests want.
#[derive(Clone)]
pub struct Party(pub Arc<FileBackend>);

impl Party {
    pub fn open(dir: &Path) -> Self {
        Self(Arc::new(FileBackend::open(dir, Naming::Sha256, Arc::new(Native)).unwrap()))
    }

    pub async fn take(&self, ask: &Ask) -> Grant {
        within(self.0.acquire(ask, &|_| {})).await.unwrap().unwrap()
    }

    pub async fn try_take(&self, ask: &Ask) -> Option<Grant> {
        let ask = Ask { entry: Entry::Try, ..ask.clone() };
        within(self.0.acquire(&ask, &|_| {})).await.unwrap()
    }

    /// Stands in line when this returns.
    pub fn start(&self, ask: &Ask) -> JoinHandle<Grant> {
        let (this, ask) = (self.0.clone(), ask.clone());
        let mut waiting = Box::pin(async move { this.acquire(&ask, &|_| {}).await.unwrap().unwrap() });
        let mut context = Context::from_waker(Waker::noop());
        let first = pin!(waiting.as_mut()).poll(&mut context);
        tokio::spawn(async move {
            match first {
                std::task::Poll::Ready(grant) => grant,
                std::task::Poll::Pending => within(waiting).await,
            }
        })
    }

    pub async fn release(&self, id: u128, name: &str) {
        self.try_release(id, name).await.unwrap();
    }

    pub async fn try_release(&self, id: u128, name: &str) -> Result<()> {
        within(self.0.release(&[claim(id, name)])).await
    }
}

/// Nothing here takes long: who waits for more than this waits for ever.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("waits for ever")
}
