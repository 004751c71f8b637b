//! Locks in files: Windlass, and the bare system calls as the floor.

use std::{os::fd::OwnedFd, thread, time::Duration};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde_json::{Value, json};
use windlass::{Guard, Locker};

use crate::{
    Result,
    clock::now,
    memory::{block_on, rate},
    shared::{COUNTER, READY, RELEASED, RELEASER, START, STOP, Shared, TURNS},
};

const MIN_HOLD: Duration = Duration::from_millis(2);
const GLANCE: Duration = Duration::from_micros(500);

enum Lock {
    Windlass(Locker),
    /// Open, flock, close.
    FlockOpen(String),
    /// The file stays open.
    Flock(OwnedFd),
}

enum Held<'a> {
    Windlass(Guard),
    Opened(OwnedFd),
    Kept(&'a OwnedFd),
}

impl Lock {
    async fn new(peer: &str, directory: &str) -> Result<Self> {
        let path = format!("{directory}/flock");
        match peer {
            "windlass" => Ok(Self::Windlass(windlass::connect(&format!("file://{directory}")).await?)),
            "flock-open" => Ok(Self::FlockOpen(path)),
            "flock" => Ok(Self::Flock(open_file(&path)?)),
            _ => Err(format!("no such peer: {peer}").into()),
        }
    }

    async fn acquire(&self) -> Result<Held<'_>> {
        match self {
            Self::Windlass(locker) => Ok(Held::Windlass(locker.lock("bench").await?)),
            Self::FlockOpen(path) => {
                let file = open_file(path)?;
                flock(&file, FlockOperation::LockExclusive)?;
                Ok(Held::Opened(file))
            }
            Self::Flock(file) => {
                flock(file, FlockOperation::LockExclusive)?;
                Ok(Held::Kept(file))
            }
        }
    }
}

impl Held<'_> {
    async fn release(self) -> Result<()> {
        match self {
            Self::Windlass(guard) => guard.release().await?,
            Self::Opened(file) => drop(file),
            Self::Kept(file) => flock(file, FlockOperation::Unlock)?,
        }
        Ok(())
    }
}

fn open_file(path: &str) -> Result<OwnedFd> {
    Ok(open(path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::from(0o600))?)
}

pub(crate) fn pairs(peer: &str, directory: &str, time: Duration) -> Result<Value> {
    block_on(async {
        let lock = Lock::new(peer, directory).await?;
        rate(time, async || lock.acquire().await?.release().await).await
    })
}

/// Two processes hand one lock to each other, each waiting whenever the other releases.
pub(crate) fn turns(
    peer: &str,
    directory: &str,
    time: Duration,
    max_hold_ms: f64,
    me: usize,
) -> Result<Value> {
    let slots = Shared::open(directory)?;
    let other = 1 - me;
    let deadline = now() + nanos(time);
    let mut samples = Vec::new();
    let mut random = now() | 1;
    block_on(async {
        let lock = Lock::new(peer, directory).await?;
        while slots.load(STOP) == 0 {
            let seen = slots.load(TURNS + other);
            let asked = now();
            let held = lock.acquire().await?;
            let got = now();
            let released = slots.load(RELEASED);
            let waited = slots.load(RELEASER) == other as u64 + 1 && asked + nanos(MIN_HOLD) / 4 < released;
            slots.store(TURNS + me, slots.load(TURNS + me) + 1);
            if slots.load(STOP) == 0 && waited {
                samples.push(got.saturating_sub(released));
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = (random >> 33) as f64 / (1_u64 << 31) as f64;
            thread::sleep(MIN_HOLD + Duration::from_secs_f64(share * max_hold_ms / 1000.0));
            if now() > deadline {
                slots.store(STOP, 1);
            }
            slots.store(RELEASER, me as u64 + 1);
            slots.store(RELEASED, now());
            held.release().await?;
            while slots.load(STOP) == 0 && slots.load(TURNS + other) == seen {
                thread::sleep(GLANCE);
                if now() > deadline {
                    slots.store(STOP, 1);
                }
            }
        }
        Ok(json!({ "samples_ns": samples }))
    })
}

/// Many processes take one lock as often as they can.
pub(crate) fn contend(peer: &str, directory: &str, time: Duration, me: usize) -> Result<Value> {
    let slots = Shared::open(directory)?;
    slots.store(READY + me, 1);
    while slots.load(START) == 0 {
        thread::sleep(GLANCE);
    }
    let deadline = slots.load(START) + nanos(time);
    block_on(async {
        let lock = Lock::new(peer, directory).await?;
        let (mut served, mut total) = (0, 0);
        while now() < deadline {
            let held = lock.acquire().await?;
            slots.store(COUNTER, slots.load(COUNTER) + 1);
            held.release().await?;
            total += 1;
            served += u64::from(now() < deadline);
        }
        Ok(json!({ "served": served, "total": total }))
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
