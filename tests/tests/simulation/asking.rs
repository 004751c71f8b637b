//! Asking for locks over a network that loses, delays and repeats, and the turns that everybody gets.

use std::{
    future::IntoFuture,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{Either, join_all, select};
use windlass::{ErrorKind, Guard, rt::Runtime};
use windlass_tests::{
    place::{polled, task},
    sim_backend::Faults,
};

use crate::setting::{Client, HOUR, LONG, SECOND, TTL, ms, near, sim};

#[test]
fn r11_an_answer_that_is_lost_is_found_again() {
    for seed in 0..20 {
        sim(seed, async |sim| {
            let client = sim.client();
            client.link.set(Faults { cut_back: true, resets: seed % 2 == 0, ..ms(2) });
            let acquire = task(&*client.host, client.locker.lock("lock").into_future());
            while sim.server.status().is_empty() {
                sim.sleep(Duration::from_millis(1)).await;
            }
            let token = sim.server.status()[0].holders[0].fencing_token;
            sim.sleep(Duration::from_secs(4)).await;
            client.link.set(ms(2));
            let guard = sim.soon("the lock", acquire).await.unwrap();
            assert_eq!(guard.fencing_token(), token, "the same grant");
            assert_eq!(sim.server.status()[0].holders.len(), 1);
            assert!(guard.is_held());
            assert!(client.locker.metrics().unwrap().retries > 0);
            guard.release().await.unwrap();
            assert!(sim.server.is_empty(), "and one release");
        });
    }
}

#[test]
fn r12_a_dropped_acquire_leaves_nothing_whatever_comes_late() {
    let mut dropped = 0;
    for seed in 0..150 {
        dropped += u32::from(sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let blocker = if seed % 3 == 0 { None } else { Some(other.locker.lock("b").await.unwrap()) };
            let slow = Duration::from_millis(400);
            let loss = if seed % 2 == 0 { 0.0 } else { 0.3 };
            client.link.set(Faults {
                request_delay: slow,
                reply_delay: slow,
                lose_request: loss,
                lose_reply: loss,
                repeat: 1.0,
                repeat_within: 3 * TTL,
                resets: seed % 5 == 0,
                ..Faults::default()
            });
            let release = async {
                sim.sleep(sim.world.time_below(Duration::from_secs(2))).await;
                drop(blocker);
            };
            let polls = seed as usize % 11 + 1;
            let acquire = async {
                if seed % 4 == 0 {
                    let all = polled(polls, client.locker.lock_all(["a", "b"]).into_future()).await;
                    all.map(|guards| guards.map(drop)).is_none()
                } else {
                    let one = polled(polls, client.locker.lock("b").into_future()).await;
                    one.map(|guard| guard.map(drop)).is_none()
                }
            };
            let limited = async {
                match select(pin!(acquire), sim.here.sleep(LONG)).await {
                    Either::Left((dropped, _)) => dropped,
                    Either::Right(_) => true,
                }
            };
            let (gave_up, ()) = futures_util::future::join(limited, release).await;
            // The release is tried for ten seconds; what is lost for good ends with its TTL.
            sim.sleep(3 * TTL).await;
            sim.nothing_is_left().await;
            gave_up
        }));
    }
    assert!(dropped > 20, "only {dropped} were dropped half way");
}

#[test]
fn r16_the_dead_do_not_block_the_living() {
    sim(16, async |sim| {
        let clients: Vec<Client> = (0..12).map(|_| sim.client()).collect();
        let holder = clients[0].locker.lock("lock").await.unwrap();
        let mut waiters = Vec::new();
        for client in &clients[1..] {
            waiters.push(task(&*client.host, client.locker.lock("lock").into_future()));
            sim.sleep(Duration::from_millis(10)).await;
        }
        // The first ten of the queue die, some by a cut, some in their machines.
        for (n, client) in clients[1..11].iter().enumerate() {
            if n % 2 == 0 {
                client.link.set(Faults { cut_there: true, cut_back: true, ..ms(2) });
            } else {
                client.host.suspend(HOUR);
            }
        }
        sim.sleep(Duration::from_secs(8)).await;
        assert_eq!(sim.server.status()[0].waiters.len(), 1, "the dead have left the queue");
        let released_at = sim.world.now();
        holder.release().await.unwrap();
        drop(sim.soon("the living", waiters.pop().unwrap()).await.unwrap());
        assert!(sim.world.now() - released_at < Duration::from_millis(50));
    });
}

#[test]
fn r17_a_release_wakes_one() {
    sim(17, async |sim| {
        let holder = sim.client();
        let guard = holder.locker.lock("lock").await.unwrap();
        let clients: Vec<Client> = (0..100).map(|_| sim.client()).collect();
        let waiters: Vec<_> = clients
            .iter()
            .map(|client| task(&*client.host, client.locker.lock("lock").into_future()))
            .collect();
        // Between two rounds of open requests.
        sim.sleep(Duration::from_millis(3500)).await;
        clients.iter().for_each(|client| drop(client.link.sent()));
        guard.release().await.unwrap();
        sim.sleep(Duration::from_secs(1)).await;
        let sent = |client: &Client| client.link.sent().iter().filter(|(_, kind)| *kind == "acquire").count();
        assert_eq!(clients.iter().map(sent).sum::<usize>(), 0, "nobody asks again");
        let status = &sim.server.status()[0];
        assert_eq!((status.holders.len(), status.waiters.len()), (1, 99));
        drop(
            sim.soon("all turns", join_all(waiters.into_iter().map(|waiter| async { drop(waiter.await) })))
                .await,
        );
    });
}

/// Cut off while waiting for so long that its claim came, and ran out, and was forgotten: it waits on.
#[test]
fn r18_a_waiter_that_was_cut_off_gets_its_turn() {
    for seed in 0..10 {
        sim(seed, async |sim| {
            let (first, second) = (sim.client(), sim.client());
            let guard = first.locker.lock("lock").await.unwrap();
            let waiter = task(&*second.host, second.locker.lock("lock").into_future());
            sim.sleep(Duration::from_secs(1)).await;
            second.link.set(Faults {
                cut_back: true,
                cut_there: seed % 2 == 0,
                resets: seed % 3 == 0,
                ..ms(2)
            });
            guard.release().await.unwrap();
            sim.sleep(TTL * 3 + sim.world.time_below(TTL)).await;
            second.link.set(ms(2));
            let guard = sim.soon("its turn", waiter).await.expect("still waiting");
            assert!(guard.is_held());
            drop(guard);
            sim.nothing_is_left().await;
        });
    }
}

/// As by a proxy that ends each request that takes long.
#[test]
fn who_is_cut_off_again_and_again_keeps_the_place() {
    for seed in 0..10 {
        sim(seed, async |sim| {
            let [holder, cut, other] = [sim.client(), sim.client(), sim.client()];
            let guard = holder.locker.lock("lock").await.unwrap();
            cut.link.set(Faults { patience: Some(Duration::from_millis(500)), ..ms(2) });
            let first = task(&*cut.host, cut.locker.lock("lock").into_future());
            sim.sleep(SECOND).await;
            let _second = task(&*other.host, other.locker.lock("lock").into_future());
            sim.sleep(60 * SECOND).await;
            assert!(cut.locker.metrics().unwrap().retries > 20);
            guard.release().await.unwrap();
            drop(sim.soon("the first's turn", first).await.unwrap());
        });
    }
}

#[test]
fn r19_everybody_gets_as_many_turns() {
    sim(19, async |sim| {
        let turns: Vec<Arc<AtomicU32>> = (0..8).map(|_| Arc::default()).collect();
        let workers = turns.iter().map(|turns| {
            let (client, turns) = (sim.client(), turns.clone());
            let host = client.host.clone();
            task(&*host.clone(), async move {
                while host.world().now() < Duration::from_secs(60) {
                    let guard = client.locker.lock("lock").await.unwrap();
                    turns.fetch_add(1, Ordering::SeqCst);
                    host.sleep(Duration::from_millis(5)).await;
                    guard.release().await.unwrap();
                }
            })
        });
        join_all(workers.collect::<Vec<_>>()).await;
        let turns: Vec<f64> = turns.iter().map(|turns| f64::from(turns.load(Ordering::SeqCst))).collect();
        let (sum, squares) =
            (turns.iter().sum::<f64>(), turns.iter().map(|turns| turns * turns).sum::<f64>());
        let jain = sum * sum / (8.0 * squares);
        assert!(jain > 0.99, "{jain} of {turns:?}");
        assert!(sum > 4000.0, "{turns:?}");
    });
}

#[test]
fn trouble_is_tried_again_until_the_timeout() {
    for resets in [true, false] {
        sim(24, async |sim| {
            let client = sim.client();
            client.link.set(Faults { cut_there: true, resets, ..ms(2) });
            let troubles = Arc::new(AtomicUsize::new(0));
            let count = troubles.clone();
            let acquire = client.locker.lock("lock").timeout(2 * TTL).on_trouble(move |error| {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                count.fetch_add(1, Ordering::SeqCst);
            });
            let error = sim.soon("the timeout", acquire.into_future()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "nobody has said that it is taken: {error}");
            near(sim.world.now(), 2 * TTL, 10);
            let tries: Vec<Duration> = client
                .link
                .sent()
                .into_iter()
                .filter(|(_, kind)| *kind == "acquire")
                .map(|(at, _)| at)
                .collect();
            assert!(tries.len() >= 4 && tries.len() <= 60, "{} tries", tries.len());
            assert!(tries.len() - troubles.load(Ordering::SeqCst) <= 1, "each but the last was told");
            let gaps: Vec<Duration> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().max().unwrap() <= &Duration::from_secs(10), "{gaps:?}");
            // One who only tries does not wait.
            let start = sim.world.now();
            let error = sim.soon("an error", client.locker.lock("lock").try_acquire()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(sim.world.now() - start <= Duration::from_secs(5));
        });
    }
}

/// Several are taken in turn, and what it has lives on while it waits for the next.
#[test]
fn the_first_of_several_is_kept_while_the_second_is_waited_for() {
    for seed in 0..5 {
        sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let blocker = other.locker.lock("b").await.unwrap();
            let all = task(&*client.host, client.locker.lock_all(["a", "b"]).into_future());
            sim.sleep(SECOND).await;
            let first = sim.holders("a")[0].fencing_token;
            for _ in 0..100 {
                sim.sleep(sim.world.time_below(TTL)).await;
                let holders = sim.holders("a");
                assert!(holders.iter().any(|holder| holder.fencing_token == first), "{holders:?}");
            }
            blocker.release().await.unwrap();
            let guards = sim.soon("both", all).await.unwrap();
            assert_eq!(guards[0].fencing_token(), first, "the same grant all along");
            assert!(guards.iter().all(Guard::is_held));
            sim.sleep(3 * TTL).await;
            assert!(guards.iter().all(Guard::is_held));
            drop(guards);
            sim.nothing_is_left().await;
        });
    }
}
