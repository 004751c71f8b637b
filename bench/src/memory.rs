//! Locks in the memory of one process.

use std::{
    cell::{Cell, RefCell},
    hint::black_box,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;
use serde_json::{Value, json};
use tokio::{runtime::Builder, task::LocalSet};
use windlass::{
    ClaimId, Locker, Mode,
    ask::{Ask, Claim, Entry},
    table::{Origin, Outcome, Rules, Table},
    time::Millis,
};

use crate::{Result, clock::now};

/// For how long a lock is held where the next one in line sits on another thread and needs time to fall asleep.
const HOLD: Duration = Duration::from_micros(50);

pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Acquires and releases a second, after a quarter of the time to warm up.
pub(crate) async fn rate(time: Duration, mut pair: impl AsyncFnMut() -> Result<()>) -> Result<Value> {
    let mut run = async |limit: Duration| -> Result<f64> {
        let (mut count, start) = (0, Instant::now());
        loop {
            for _ in 0..100 {
                pair().await?;
            }
            count += 100;
            let elapsed = start.elapsed();
            if elapsed >= limit {
                return Ok(f64::from(count) / elapsed.as_secs_f64());
            }
        }
    };
    run(time / 4).await?;
    Ok(json!({ "pairs_per_s": run(time).await? }))
}

pub(crate) fn pairs(peer: &str, time: Duration) -> Result<Value> {
    block_on(async {
        match peer {
            "table" => table(time, 0).await,
            "table-held" => table(time, 10_000).await,
            "windlass" => {
                let locker = windlass::connect("memory:bench").await?;
                rate(time, async || Ok(locker.lock("bench").await?.release().await?)).await
            }
            "tokio" => {
                let lock = tokio::sync::Mutex::new(0_u64);
                rate(time, async || {
                    *lock.lock().await += 1;
                    Ok(())
                })
                .await
            }
            "parking_lot" => {
                let lock = parking_lot::Mutex::new(0_u64);
                rate(time, async || {
                    *black_box(&lock).lock() += 1;
                    Ok(())
                })
                .await
            }
            _ => Err(format!("no such peer: {peer}").into()),
        }
    })
}

/// The lock table itself, with its rules as in a server: claims expire. `held` other names are held meanwhile.
async fn table(time: Duration, held: u128) -> Result<Value> {
    let mut table = Table::new(Rules { first_token: 1, expires: true, remember: Duration::ZERO });
    let mut effects = Vec::new();
    let mut ask = Ask {
        name: "bench".parse()?,
        claim_id: ClaimId::from_u128(0),
        mode: Mode::Exclusive,
        entry: Entry::Queue,
        ttl: Duration::from_secs(10),
        owner: Arc::default(),
        keep: Duration::ZERO,
        only_here: true,
    };
    for other in 0..held {
        let ask = Ask {
            name: format!("other-{other}").parse()?,
            claim_id: ClaimId::from_u128(other),
            ..ask.clone()
        };
        let outcome = table.acquire(Millis(0), &ask, Origin(0), &mut effects);
        assert!(matches!(outcome, Outcome::Granted(_)));
    }
    let mut claim = Claim { name: ask.name.clone(), id: ask.claim_id };
    let mut next = held;
    rate(time, async || {
        next += 1;
        ask.claim_id = ClaimId::from_u128(next);
        claim.id = ask.claim_id;
        let outcome = table.acquire(Millis(0), &ask, Origin(1), &mut effects);
        let held = table.release(Millis(0), &claim, &mut effects);
        if held && matches!(outcome, Outcome::Granted(_)) { Ok(()) } else { Err("not granted".into()) }
    })
    .await
}

/// From a release to the next acquire, where the next one waits: between two tasks of a thread, or two threads.
pub(crate) fn turns(peer: &str, time: Duration) -> Result<Value> {
    let samples = match peer {
        "windlass-tasks" => {
            let locker = block_on(async { Ok(windlass::connect("memory:bench").await?) })?;
            between_tasks(time, || {
                let locker = locker.clone();
                async move || locker.lock("bench").await.ok()
            })
        }
        "tokio-tasks" => {
            let lock = Arc::new(tokio::sync::Mutex::new(()));
            between_tasks(time, || {
                let lock = lock.clone();
                async move || lock.clone().lock_owned().await
            })
        }
        "windlass-threads" => {
            let locker: Locker = block_on(async { Ok(windlass::connect("memory:bench").await?) })?;
            between_threads(time, |hold| {
                block_on(async {
                    let guard = locker.lock("bench").await?;
                    hold();
                    Ok(guard.release().await?)
                })
            })
        }
        "tokio-threads" => {
            let lock = tokio::sync::Mutex::new(());
            between_threads(time, |hold| {
                block_on(async {
                    let guard = lock.lock().await;
                    hold();
                    drop(guard);
                    Ok(())
                })
            })
        }
        "parking_lot-threads" => {
            let lock = parking_lot::Mutex::new(());
            between_threads(time, |hold| {
                let guard = lock.lock();
                hold();
                MutexGuard::unlock_fair(guard);
                Ok(())
            })
        }
        _ => return Err(format!("no such peer: {peer}").into()),
    }?;
    Ok(json!({ "samples_ns": samples }))
}

/// Two tasks of one thread; each lets the other stand in line before it releases.
fn between_tasks<T: 'static, A: AsyncFnMut() -> T + 'static>(
    time: Duration,
    acquire: impl Fn() -> A,
) -> Result<Vec<u64>> {
    let released = Rc::new(Cell::new(0));
    let samples = Rc::new(RefCell::new(Vec::new()));
    let deadline = now() + u64::try_from(time.as_nanos())?;
    let tasks = LocalSet::new();
    for mut acquire in [acquire(), acquire()] {
        let (released, samples) = (released.clone(), samples.clone());
        tasks.spawn_local(async move {
            while now() < deadline {
                let guard = acquire().await;
                if released.get() > 0 {
                    samples.borrow_mut().push(now() - released.get());
                }
                tokio::task::yield_now().await;
                released.set(now());
                drop(guard);
            }
        });
    }
    block_on(async {
        tasks.await;
        Ok(())
    })?;
    Ok(samples.take())
}

/// Two threads; `turn` acquires, calls what it is given, and releases.
fn between_threads(time: Duration, turn: impl Fn(&dyn Fn()) -> Result<()> + Sync) -> Result<Vec<u64>> {
    let released = AtomicU64::new(0);
    let deadline = now() + u64::try_from(time.as_nanos())?;
    let work = || -> std::result::Result<Vec<u64>, String> {
        let samples = RefCell::new(Vec::new());
        while now() < deadline {
            let asked = now();
            turn(&|| {
                let got = now();
                let last = released.load(Ordering::Acquire);
                // Only where this one slept when the other released.
                if asked + 20_000 < last {
                    samples.borrow_mut().push(got - last);
                }
                let hold = Instant::now();
                while hold.elapsed() < HOLD {
                    std::hint::spin_loop();
                }
                released.store(now(), Ordering::Release);
            })
            .map_err(|error| error.to_string())?;
        }
        Ok(samples.into_inner())
    };
    let both = thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
    });
    let mut samples = Vec::new();
    for one in both {
        samples.extend(one?);
    }
    Ok(samples)
}
