//! Shared by threads and tasks (guarantee 11).

use std::{
    future::IntoFuture,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{Either, join_all, select};
use windlass::rt::thread;

use crate::place::{Place, block_on, task, yield_now};

/// Counts without atomicity: a step is lost when two are inside.
#[derive(Clone, Default)]
struct Counter(Arc<(AtomicI64, AtomicU64)>);

impl Counter {
    async fn step(&self) {
        assert_eq!(self.0.0.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
        let seen = self.0.1.load(Ordering::SeqCst);
        yield_now().await;
        self.0.1.store(seen + 1, Ordering::SeqCst);
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn value(&self) -> u64 {
        self.0.1.load(Ordering::SeqCst)
    }
}

pub async fn tasks_share_a_counter(place: &dyn Place) {
    let (locker, counter) = (place.locker(), Counter::default());
    let worker = |_| {
        let (locker, counter) = (locker.clone(), counter.clone());
        async move {
            for turn in 0..25 {
                let guard = locker.lock("counter").await.unwrap();
                counter.step().await;
                if turn % 2 == 0 { guard.release().await.unwrap() } else { drop(guard) }
            }
        }
    };
    if place.has_threads() {
        // On a runtime of the program's own, with threads.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
        let workers: Vec<_> = (0..32).map(|n| runtime.spawn(worker(n))).collect();
        for outcome in place.soon("all turns", join_all(workers)).await {
            outcome.unwrap();
        }
        runtime.shutdown_background();
    } else {
        let workers = (0..32).map(|n| task(&*place.runtime(), worker(n)));
        place.soon("all turns", join_all(workers)).await;
    }
    assert_eq!(counter.value(), 32 * 25);
}

pub async fn threads_share_a_counter(place: &dyn Place) {
    if !place.has_threads() {
        return;
    }
    let counter = Counter::default();
    let threads: Vec<_> = (0..8)
        .map(|n| {
            // Half of them share a locker.
            let (locker, counter) = (place.locker(), counter.clone());
            let body = move || {
                for _ in 0..50 {
                    block_on(async {
                        let guard = locker.lock("counter").await.unwrap();
                        counter.step().await;
                        drop(guard);
                    });
                }
            };
            thread(&format!("worker-{n}"), body).unwrap()
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(counter.value(), 8 * 50);
}

pub async fn a_semaphore_lets_in_its_limit(place: &dyn Place) {
    let locker = place.locker();
    if !locker.capabilities().unwrap().permit {
        return;
    }
    let (inside, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let workers = (0..12).map(|_| {
        let (locker, inside, most, rt) = (place.locker(), inside.clone(), most.clone(), place.runtime());
        task(&*place.runtime(), async move {
            for _ in 0..10 {
                let guard = locker.lock("pool").permit(3).await.unwrap();
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now <= 3, "{now} are inside");
                most.fetch_max(now, Ordering::SeqCst);
                // Longer than one step takes in a slow store, so that another one can come in meanwhile.
                rt.sleep(Duration::from_millis(20)).await;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(guard);
            }
        })
    });
    place.soon("all turns", join_all(workers)).await;
    assert!(most.load(Ordering::SeqCst) > 1, "more than one at a time is the point of it");
}

pub async fn a_guard_goes_to_another_thread(place: &dyn Place) {
    let (one, two) = (place.locker(), place.locker());
    let guard = one.lock("lock").await.unwrap();
    if place.has_threads() {
        let thread = thread("other", move || {
            assert!(guard.is_held());
            drop(guard);
        });
        thread.unwrap().join().unwrap();
    } else {
        drop(guard);
    }
    place.until("it is free", async || two.lock("lock").try_acquire().await.unwrap().is_some()).await;
}

/// However many readers come and go, a writer gets its turn.
pub async fn readers_do_not_starve_a_writer(place: &dyn Place) {
    if !place.locker().capabilities().unwrap().shared {
        return;
    }
    let stop = Arc::new(Mutex::new(false));
    let readers: Vec<_> = (0..6)
        .map(|_| {
            let (locker, stop, rt) = (place.locker(), stop.clone(), place.runtime());
            task(&*place.runtime(), async move {
                while !*stop.lock().unwrap() {
                    let guard = locker.lock("document").shared().await.unwrap();
                    rt.sleep(Duration::from_millis(3)).await;
                    drop(guard);
                }
            })
        })
        .collect();
    let writer = place.locker();
    for _ in 0..10 {
        drop(place.soon("the writer's turn", writer.lock("document").into_future()).await.unwrap());
    }
    *stop.lock().unwrap() = true;
    place.soon("the readers' end", join_all(readers)).await;
}

pub async fn many_names_at_once(place: &dyn Place) {
    let locker = place.locker();
    let workers = (0..200).map(|n| {
        let locker = locker.clone();
        task(&*place.runtime(), async move {
            let guard = locker.lock(format!("name-{n}")).await.unwrap();
            yield_now().await;
            guard.release().await.unwrap();
        })
    });
    place.soon("all of them", join_all(workers)).await;
}

/// Some give up at some time, and everybody else gets the lock.
pub async fn cancelled_at_random(place: &dyn Place) {
    let (locker, counter) = (place.locker(), Counter::default());
    let workers = (0..16_u64).map(|n| {
        let (locker, counter, rt) = (locker.clone(), counter.clone(), place.runtime());
        task(&*place.runtime(), async move {
            let mut got = 0;
            for round in 0..15_u64 {
                let patience = Duration::from_micros((n * 331 + round * 173) % 4000);
                let acquire = locker.lock("counter").into_future();
                let guard = if n % 2 == 0 {
                    acquire.await.unwrap()
                } else {
                    match select(acquire, rt.sleep(patience)).await {
                        Either::Left((guard, _)) => guard.unwrap(),
                        Either::Right(_) => continue,
                    }
                };
                counter.step().await;
                got += 1;
                drop(guard);
            }
            got
        })
    });
    let got: u64 = place.soon("all turns", join_all(workers)).await.iter().sum();
    assert_eq!(counter.value(), got);
    assert!(got >= 8 * 15);
}
