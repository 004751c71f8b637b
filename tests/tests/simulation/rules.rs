//! The rules of a lease, each with the fault that would show a break of it.

use std::{
    future::{Future, IntoFuture},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{Either, join_all, select};
use windlass::{ErrorKind, Guard, Locker, LostReason, Mode, rt::Runtime};
use windlass_tests::{
    place::{polled, task},
    sim::{Clock, Host, World},
    sim_backend::{Faults, Link},
    sim_server::Server,
};

const TTL: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);
/// Nothing that goes well takes longer.
const LONG: Duration = Duration::from_secs(600);

struct Sim {
    world: Arc<World>,
    server: Arc<Server>,
    /// The machine of the test itself.
    here: Arc<Host>,
}

struct Client {
    host: Arc<Host>,
    link: Arc<Link>,
    locker: Locker,
}

fn sim<T>(seed: u64, test: impl AsyncFnOnce(&Sim) -> T) -> T {
    let world = World::new(seed);
    let sim = Sim { server: Server::start(&world), here: world.host(), world: world.clone() };
    world.run(test(&sim))
}

impl Sim {
    fn client(&self) -> Client {
        let host = self.world.host();
        let link = Link::new(&self.server, host.clone());
        link.set(ms(2));
        Client { locker: link.locker(), host, link }
    }

    async fn sleep(&self, time: Duration) {
        self.here.sleep(time).await;
    }

    async fn soon<T>(&self, what: &str, event: impl Future<Output = T>) -> T {
        match select(pin!(event), self.here.sleep(LONG)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => panic!("waited in vain for: {what}"),
        }
    }

    async fn nothing_is_left(&self) {
        self.sleep(2 * TTL).await;
        assert!(self.server.is_empty(), "left at the server: {:?}", self.server.status());
    }

    /// At each instant, whoever believes to hold is known to the server as a holder by this token.
    fn beliefs_lie_inside_the_grants(&self) -> Arc<Mutex<Vec<Arc<Guard>>>> {
        let guards: Arc<Mutex<Vec<Arc<Guard>>>> = Arc::default();
        let (watched, server) = (guards.clone(), self.server.clone());
        self.world.observe(move || {
            for guard in watched.lock().unwrap().iter() {
                let known = || {
                    let statuses = server.status();
                    let holders = statuses.iter().filter(|status| status.name == *guard.name());
                    holders
                        .flat_map(|status| &status.holders)
                        .any(|h| h.fencing_token == guard.fencing_token())
                };
                assert!(!guard.is_held() || known(), "{guard:?} believes to hold what it was not granted");
            }
        });
        guards
    }
}

/// A network that works, with delays of up to so many milliseconds each way.
fn ms(millis: u64) -> Faults {
    let delay = Duration::from_millis(millis);
    Faults { request_delay: delay, reply_delay: delay, ..Faults::default() }
}

fn counter() -> (impl Fn(&windlass::Notice) + Send + Sync + 'static, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let told = move |_: &windlass::Notice| {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    (told, count)
}

#[test]
fn r1_belief_lies_inside_the_grant_however_late_the_replies() {
    for percent in [0, 15, 50, 90, 98, 99] {
        sim(percent, async |sim| {
            let guards = sim.beliefs_lie_inside_the_grants();
            let (slow, other) = (sim.client(), sim.client());
            let late = Faults {
                exact: true,
                patience: Some(HOUR),
                reply_delay: TTL * percent as u32 / 100,
                ..ms(0)
            };
            slow.link.set(late);
            let mut held = 0;
            for _ in 0..3 {
                // At 99 % each answer comes too late to be believed.
                if let Ok(guard) = slow.locker.lock("lock").timeout(5 * TTL).await {
                    let guard = Arc::new(guard);
                    guards.lock().unwrap().push(guard.clone());
                    held += u32::from(guard.is_held());
                    select(pin!(guard.lost()), sim.here.sleep(2 * TTL)).await;
                    guards.lock().unwrap().clear();
                }
                let next = sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap();
                let next = Arc::new(next);
                guards.lock().unwrap().push(next.clone());
                sim.sleep(TTL / 2).await;
                assert!(next.is_held());
                guards.lock().unwrap().clear();
            }
            assert_eq!(held, if percent < 99 { 3 } else { 0 });
            drop((slow, other));
            sim.nothing_is_left().await;
        });
    }
}

#[test]
fn r1_belief_lies_inside_the_grant_with_clocks_of_other_rates() {
    for (client_rate, server_rate) in [(1.0095, 1.0), (0.9905, 1.0), (1.0, 1.009), (1.005, 0.996)] {
        sim(7, async |sim| {
            let guards = sim.beliefs_lie_inside_the_grants();
            let client = sim.client();
            sim.server.host.set_rate(Clock::Monotonic, server_rate);
            for clock in [Clock::Boot, Clock::Wall] {
                client.host.set_rate(clock, client_rate);
            }
            let guard = Arc::new(client.locker.lock("lock").await.unwrap());
            guards.lock().unwrap().push(guard.clone());
            sim.sleep(3 * TTL).await;
            assert!(guard.is_held(), "renewed");
            client.link.set(Faults { cut_there: true, ..ms(2) });
            assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Unreachable);
        });
    }
}

#[test]
fn r2_is_held_is_false_before_anything_runs() {
    sim(2, async |sim| {
        let client = sim.client();
        let (told, count) = counter();
        let guard = client.locker.lock("lock").on_lost(told).await.unwrap();
        assert!(guard.is_held());
        client.host.set_forward(Clock::Boot, 2 * TTL);
        assert!(!guard.is_held(), "computed at the call");
        assert_eq!(guard.check().unwrap_err().lost_reason(), Some(LostReason::Expired));
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost(LostReason::Expired));
        sim.sleep(TTL).await;
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(client.locker.metrics().unwrap().lost_expired, 1);
    });
}

#[test]
fn r2_a_runtime_that_is_blocked_keeps_no_belief() {
    sim(2, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        client.host.suspend(2 * TTL);
        sim.sleep(2 * TTL - Duration::from_millis(1)).await;
        assert!(!guard.is_held());
        assert!(guard.detach().is_err());
    });
}

#[test]
fn r3_a_server_that_never_answers() {
    for (seed, there) in [(1, true), (2, false), (3, true), (4, false)] {
        sim(seed, async |sim| {
            let client = sim.client();
            let (told, count) = counter();
            let guard = client.locker.lock("lock").on_lost(told).await.unwrap();
            sim.sleep(TTL * 7 / 10).await;
            let renewals = |link: &Link| -> Vec<Duration> {
                link.sent().into_iter().filter(|(_, kind)| *kind == "renew").map(|(when, _)| when).collect()
            };
            let before = renewals(&client.link);
            assert_eq!(before.len(), 2, "at a third of the TTL: {before:?}");
            for pair in before.windows(2) {
                near(pair[1] - pair[0], TTL / 3, 50);
            }
            // It accepts and never answers, or does not even hear.
            client.link.set(Faults { cut_there: there, cut_back: !there, ..ms(2) });
            let held_until = before[1] + TTL * 99 / 100 - Duration::from_millis(2);
            let waiter = sim.client();
            let waiter = task(&*waiter.host, waiter.locker.lock("lock").into_future());
            assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Unreachable);
            let lost_at = sim.world.now();
            assert!(
                lost_at + Duration::from_millis(50) >= held_until,
                "{lost_at:?}, not before {held_until:?}"
            );
            assert!(
                lost_at <= held_until + Duration::from_millis(10),
                "{lost_at:?}, not after {held_until:?}"
            );
            let tries = renewals(&client.link);
            assert!(tries.len() >= 2, "{tries:?}");
            near(tries[0] - before[1], TTL / 3, 50);
            for pair in tries.windows(2) {
                let gap = pair[1] - pair[0];
                assert!(gap + Duration::from_millis(5) >= TTL / 6, "a try has a sixth of the TTL: {gap:?}");
                assert!(gap <= TTL / 3 + Duration::from_millis(50), "and the next follows soon: {gap:?}");
            }
            assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost(LostReason::Unreachable));
            assert_eq!(sim.world.now(), lost_at, "nothing is waited for");
            drop(sim.soon("the next", waiter).await.unwrap());
            sim.sleep(2 * TTL).await;
            assert_eq!(count.load(Ordering::SeqCst), 1, "told exactly once");
        });
    }
}

#[test]
fn r3_a_short_outage_costs_nothing() {
    for seed in 0..20 {
        sim(seed, async |sim| {
            let client = sim.client();
            let guard = client.locker.lock("lock").await.unwrap();
            for _ in 0..10 {
                sim.sleep(sim.world.time_below(TTL)).await;
                client.link.set(Faults { cut_there: true, cut_back: true, ..ms(2) });
                sim.sleep(TTL / 4).await;
                client.link.set(ms(2));
                assert!(guard.is_held());
                sim.sleep(TTL).await;
                assert!(guard.is_held());
            }
            assert!(sim.server.status()[0].holders[0].fencing_token == guard.fencing_token());
        });
    }
}

#[test]
fn r4_a_paused_holder_is_fenced() {
    sim(4, async |sim| {
        let (old, new) = (sim.client(), sim.client());
        let paused = old.locker.lock("lock").await.unwrap();
        old.host.suspend(3 * TTL);
        let next = sim.soon("the next", new.locker.lock("lock").into_future()).await.unwrap();
        assert!(sim.world.now() <= TTL + Duration::from_millis(100), "free when its TTL is over");
        let newest_token_seen = next.fencing_token();
        assert!(!paused.is_held(), "its first check");
        assert!(paused.fencing_token() < newest_token_seen, "its late write is refused");
        sim.sleep(3 * TTL).await;
        assert!(next.is_held() && !paused.is_held());
        drop(paused);
        sim.sleep(TTL).await;
        assert!(next.is_held(), "what the old one does harms nobody");
    });
}

#[test]
fn r5_suspend_counts_whichever_clock_saw_it() {
    sim(5, async |sim| {
        let client = sim.client();
        let guard = client.locker.lock("lock").await.unwrap();
        client.host.set_rate(Clock::Boot, 0.0);
        client.host.set_forward(Clock::Wall, HOUR);
        assert!(!guard.is_held());
        assert_eq!(sim.soon("the loss", guard.lost()).await, LostReason::Expired);
    });
    for boot_counts in [false, true] {
        sim(5, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let guard = client.locker.lock("lock").await.unwrap();
            client.host.sleep_machine(HOUR, boot_counts);
            let next = sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap();
            sim.sleep(HOUR - sim.world.now()).await;
            let woken = sim.world.now();
            guard.lost().await;
            assert!(sim.world.now() <= woken + Duration::from_millis(510), "told soon after it wakes");
            assert!(next.is_held());
        });
    }
}

#[test]
fn r5_a_wall_clock_that_is_set_changes_nothing() {
    sim(5, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        let guard = client.locker.lock("lock").await.unwrap();
        let guards = sim.beliefs_lie_inside_the_grants();
        let guard = Arc::new(guard);
        guards.lock().unwrap().push(guard.clone());
        for _ in 0..10 {
            client.host.set_back(Clock::Wall, HOUR);
            sim.server.host.set_forward(Clock::Wall, HOUR);
            assert!(guard.is_held());
            sim.sleep(TTL).await;
            assert!(guard.is_held(), "renewed as ever");
            assert!(other.locker.lock("lock").try_acquire().await.unwrap().is_none());
        }
        // Set back and cut off, it still knows its end.
        client.host.set_back(Clock::Wall, HOUR);
        client.link.set(Faults { cut_there: true, ..ms(2) });
        guard.lost().await;
    });
}

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
fn r13_a_release_is_sent_again_and_frees_nobody_elses_lock() {
    for seed in 0..40 {
        sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            let third = sim.client();
            for _ in 0..5 {
                client.link.set(ms(2));
                let guard = client.locker.lock("lock").await.unwrap();
                let next = task(&*other.host, other.locker.lock("lock").into_future());
                sim.sleep(Duration::from_millis(100)).await;
                let faults = Faults { resets: true, repeat: 0.8, repeat_within: 2 * TTL, ..ms(2) };
                client.link.set(match seed % 2 {
                    0 => Faults { cut_back: true, ..faults },
                    _ => Faults { lose_request: 0.5, lose_reply: 0.5, ..faults },
                });
                let released_at = sim.world.now();
                let release = task(&*client.host, guard.release());
                let next = sim.soon("the next", next).await.unwrap();
                let took = sim.world.now() - released_at;
                assert!(took < Duration::from_secs(5), "a few tries: {took:?}");
                sim.sleep(2 * TTL).await;
                assert!(next.is_held(), "late and repeated releases free nobody else's lock");
                assert!(third.locker.lock("lock").try_acquire().await.unwrap().is_none());
                next.release().await.unwrap();
                drop(sim.soon("the end of the release", release).await);
            }
        });
    }
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
fn r16_a_dead_holder_is_free_after_its_ttl() {
    sim(16, async |sim| {
        let (dead, next) = (sim.client(), sim.client());
        let _guard = dead.locker.lock("lock").ttl(Duration::from_secs(3)).await.unwrap();
        dead.host.suspend(HOUR);
        drop(sim.soon("the next", next.locker.lock("lock").into_future()).await.unwrap());
        assert!(sim.world.now() < Duration::from_millis(3100));
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
            let acquire = client.locker.lock("lock").timeout(2 * TTL);
            let error = sim.soon("the timeout", acquire.into_future()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            near(sim.world.now(), 2 * TTL, 10);
            let tries: Vec<Duration> = client
                .link
                .sent()
                .into_iter()
                .filter(|(_, kind)| *kind == "acquire")
                .map(|(at, _)| at)
                .collect();
            assert!(tries.len() >= 4 && tries.len() <= 60, "{} tries", tries.len());
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

#[test]
fn a_drop_releases_and_one_that_fails_is_left_to_the_ttl() {
    sim(25, async |sim| {
        let (client, other) = (sim.client(), sim.client());
        drop(client.locker.lock("lock").await.unwrap());
        sim.sleep(Duration::from_millis(50)).await;
        assert!(sim.server.is_empty(), "a drop releases");
        let guard = client.locker.lock("lock").await.unwrap();
        client.link.set(Faults { cut_there: true, ..ms(2) });
        drop(guard);
        drop(sim.soon("the next", other.locker.lock("lock").into_future()).await.unwrap());
    });
}

/// The call-off of one upgrade is under way when the next one is asked for.
#[test]
fn a_late_call_off_does_not_undo_the_next_upgrade() {
    for seed in 0..40 {
        sim(seed, async |sim| {
            let (client, other) = (sim.client(), sim.client());
            client.link.set(ms(200));
            let guard = client.locker.lock("lock").upgradable().await.unwrap();
            let reader = other.locker.lock("lock").shared().await.unwrap();
            let error = guard.upgrade(Duration::from_secs(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            drop(reader);
            sim.sleep(sim.world.time_below(Duration::from_millis(100))).await;
            sim.soon("an upgrade", guard.upgrade(None)).await.unwrap();
            sim.sleep(Duration::from_secs(2)).await;
            assert_eq!(guard.mode(), Mode::Exclusive);
            let beside = other.locker.lock("lock").shared().try_acquire().await.unwrap();
            assert!(beside.is_none(), "a reader beside one who believes to be alone");
        });
    }
}

#[test]
fn many_claims_are_renewed_in_one_request() {
    sim(26, async |sim| {
        let client = sim.client();
        let mut guards = Vec::new();
        for n in 0..100 {
            guards.push(client.locker.lock(format!("lock-{n}")).await.unwrap());
        }
        client.link.sent();
        sim.sleep(10 * TTL).await;
        let renewals = client.link.sent().iter().filter(|(_, kind)| *kind == "renew").count();
        assert!(renewals <= 40, "{renewals} requests to renew 100 claims for ten TTLs");
        assert!(guards.iter().all(Guard::is_held));
    });
}

fn near(time: Duration, wanted: Duration, millis: u64) {
    let off = time.abs_diff(wanted);
    assert!(off <= Duration::from_millis(millis), "{time:?}, not {wanted:?}");
}
