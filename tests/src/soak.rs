//! Random programs on machines with random faults, and an oracle that looks at every instant:
//!
//! - whoever believes to hold a lock holds it by the server's table, so beliefs that conflict never overlap;
//! - a resource that checks the fencing token never has to refuse one who believes to hold;
//! - once the faults are over, everybody gets a turn;
//! - in the end nothing is left at the server, and no task.

use std::{
    collections::HashMap,
    future::IntoFuture,
    pin::pin,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Either, join_all, select},
};
use windlass::{Error, ErrorKind, Guard, Holder, Lock, Locker, Mode, Name, rt::Runtime};

use crate::{
    place::task,
    sim::{Clock, Host, Tally, World},
    sim_backend::{Faults, Link},
    sim_server::Server,
};

const SECOND: Duration = Duration::from_secs(1);
/// How long there are faults.
const TROUBLE: Duration = Duration::from_secs(90);
/// How long everybody may take from then on.
const PEACE: Duration = Duration::from_secs(3600);
const NAMES: [&str; 3] = ["a", "a/b", "b"];

/// Runs one seed; what happened, and a fingerprint of how.
pub fn soak(seed: u64) -> (Tally, u64) {
    let world = World::new(seed);
    let server = Server::start(&world);
    let oracle = Arc::new(Oracle::default());
    // Asking a guard whether it is held is what ends it when it is late, so half of the runs do not ask all the time.
    if world.chance(0.5) {
        let (oracle, server) = (oracle.clone(), server.clone());
        world.observe(move || oracle.look(&server));
    }
    let here = world.host();
    world.run(async {
        let machines: Vec<Machine> = (0..2 + world.below(3)).map(|_| Machine::new(&world, &server)).collect();
        let mut workers = Vec::new();
        for machine in &machines {
            for _ in 0..1 + world.below(3) {
                let worker = Worker {
                    host: machine.host.clone(),
                    locker: machine.locker.clone(),
                    server: server.clone(),
                    oracle: oracle.clone(),
                };
                workers.push(task(&*machine.host, worker.work()));
            }
        }
        let nemesis = task(
            &*here,
            nemesis(machines.iter().map(Machine::parts).collect(), server.clone(), here.clone()),
        );
        nemesis.await;
        match select(pin!(join_all(workers)), here.sleep(PEACE)).await {
            Either::Left(_) => {}
            Either::Right(_) => panic!("somebody never gets a turn: {:?}", server.status()),
        }
        for machine in machines {
            let metrics = machine.locker.metrics().unwrap();
            oracle.count("acquired", metrics.acquired);
            oracle.count("waited", metrics.waited);
            oracle.count("lost", metrics.lost_expired + metrics.lost_unreachable);
            oracle.count("timeouts", metrics.timeouts);
            oracle.count("retries", metrics.retries);
            oracle.count("renewals", metrics.renewals);
        }
        here.sleep(45 * SECOND).await;
        assert!(server.is_empty(), "left at the server: {:?}", server.status());
        // The server's own task stays.
        assert_eq!(world.tasks(), 1, "tasks are left");
    });
    let tally = oracle.tally.lock().unwrap().clone();
    (tally, world.trace())
}

struct Machine {
    host: Arc<Host>,
    link: Arc<Link>,
    locker: Locker,
    /// Its uptime counts the time asleep. Where only the wall clock does, nobody may set that back meanwhile.
    counts_sleep: bool,
}

impl Machine {
    fn new(world: &Arc<World>, server: &Arc<Server>) -> Self {
        let host = world.host();
        let link = Link::new(server, host.clone());
        // No two clocks have the same rate.
        let rate = 0.995 + world.below(1000) as f64 / 100_000.0;
        host.set_rate(Clock::Boot, rate);
        host.set_rate(Clock::Wall, rate);
        Self { locker: link.locker(), host, link, counts_sleep: world.chance(0.5) }
    }

    fn parts(&self) -> Parts {
        (self.host.clone(), self.link.clone(), self.counts_sleep)
    }
}

type Parts = (Arc<Host>, Arc<Link>, bool);

/// Does harm until its time is over, then mends everything.
async fn nemesis(machines: Vec<Parts>, server: Arc<Server>, here: Arc<Host>) {
    let world = here.world().clone();
    while world.now() < TROUBLE {
        here.sleep(world.time_below(4 * SECOND)).await;
        let (host, link, counts_sleep) = &machines[world.below(machines.len() as u64) as usize];
        let harm = world.below(12);
        world.note(format_args!("harm {harm} to {host:?}"));
        match harm {
            0 => host.suspend(world.time_below(15 * SECOND)),
            1 => host.sleep_machine(world.time_below(15 * SECOND), *counts_sleep),
            2 => host.set_forward(Clock::Wall, Duration::from_secs(3600)),
            3 if *counts_sleep => host.set_back(Clock::Wall, Duration::from_secs(3600)),
            4 => server.host.suspend(world.time_below(6 * SECOND)),
            5 => server.host.set_forward(Clock::Wall, Duration::from_secs(3600)),
            6 | 7 => link.set(Faults::default()),
            _ => link.set(random_faults(&world)),
        }
    }
    for (_, link, _) in machines {
        link.set(Faults {
            request_delay: Duration::from_millis(5),
            reply_delay: Duration::from_millis(5),
            ..Faults::default()
        });
    }
}

fn random_faults(world: &World) -> Faults {
    let some = |most: f64| if world.chance(0.5) { 0.0 } else { most * world.below(100) as f64 / 100.0 };
    let delays = [Duration::from_millis(10), Duration::from_millis(500), 3 * SECOND, 10 * SECOND];
    Faults {
        request_delay: delays[world.below(4) as usize],
        reply_delay: delays[world.below(4) as usize],
        exact: world.chance(0.2),
        lose_request: some(0.5),
        lose_reply: some(0.5),
        repeat: some(0.5),
        repeat_within: 30 * SECOND,
        cut_there: world.chance(0.15),
        cut_back: world.chance(0.15),
        resets: world.chance(0.5),
        ..Faults::default()
    }
}

/// A program that uses locks in every way there is.
struct Worker {
    host: Arc<Host>,
    locker: Locker,
    server: Arc<Server>,
    oracle: Arc<Oracle>,
}

impl Worker {
    async fn work(self) {
        let world = self.host.world().clone();
        let mut round = 0;
        while round < 5 || world.now() < TROUBLE {
            round += 1;
            self.host.sleep(world.time_below(3 * SECOND)).await;
            self.round(&world).await;
        }
    }

    async fn round(&self, world: &Arc<World>) {
        let name = NAMES[world.below(NAMES.len() as u64) as usize];
        let ttl = SECOND + world.time_below(9 * SECOND);
        let owner = format!("{:x}", world.below(u64::MAX));
        let dress = |lock: Lock| {
            let lock = match world.below(10) {
                0..=3 => lock,
                4..=6 => lock.shared(),
                7 => lock.upgradable(),
                _ => lock.permit(2),
            };
            let lock = lock.ttl(ttl).owner(&owner);
            if world.chance(0.5) { lock.timeout(world.time_below(20 * SECOND)) } else { lock }
        };
        let acquired = match world.below(6) {
            0 => self
                .locker
                .lock(name)
                .ttl(ttl)
                .owner(&owner)
                .try_acquire()
                .await
                .map(|guard| guard.into_iter().collect()),
            1 => {
                self.locker
                    .lock_all([NAMES[2], name, NAMES[0]].into_iter().filter(|n| *n != name).chain([name]))
                    .with(dress)
                    .await
            }
            2 => {
                let acquire = dress(self.locker.lock(name)).into_future();
                match select(acquire, self.host.sleep(world.time_below(5 * SECOND))).await {
                    Either::Left((guard, _)) => guard.map(|guard| vec![guard]),
                    Either::Right(_) => {
                        self.oracle.count("given up", 1);
                        return;
                    }
                }
            }
            _ => dress(self.locker.lock(name)).await.map(|guard| vec![guard]),
        };
        match acquired {
            Ok(guards) => {
                for guard in guards {
                    self.hold(world, guard, &owner).await;
                }
            }
            Err(error) => expected(&error),
        }
    }

    async fn hold(&self, world: &Arc<World>, mut guard: Guard, owner: &str) {
        world.note(format_args!("{} {} {}", guard.name(), guard.mode(), guard.fencing_token()));
        if world.chance(0.1) {
            let Ok(ticket) = guard.detach() else { return };
            self.host.sleep(world.time_below(SECOND)).await;
            match self.locker.attach(&ticket).await {
                Ok(attached) => {
                    self.oracle.count("handed on", 1);
                    guard = attached;
                }
                Err(error) => return expected(&error),
            }
        }
        let guard = self.oracle.watch(guard, owner);
        for _ in 0..world.below(5) {
            self.oracle.write(&guard, owner, &self.server);
            self.host.sleep(world.time_below(4 * SECOND)).await;
            self.oracle.write(&guard, owner, &self.server);
            let changed = match world.below(6) {
                0 if guard.mode() == Mode::Upgradable => {
                    guard.upgrade(world.time_below(8 * SECOND)).await.map(|()| {
                        self.oracle.count("upgraded", 1);
                    })
                }
                1 if !matches!(guard.mode(), Mode::Permit(_)) => guard.downgrade().await,
                2 => {
                    select(pin!(guard.lost()), self.host.sleep(world.time_below(2 * SECOND)))
                        .map(|_| Ok(()))
                        .await
                }
                _ => Ok(()),
            };
            if let Err(error) = changed {
                expected(&error);
            }
        }
        self.oracle.write(&guard, owner, &self.server);
        self.oracle.forget(&guard);
        let Some(guard) = Arc::into_inner(guard) else { unreachable!("nobody else keeps it") };
        if world.chance(0.7) {
            let released = guard.release();
            if let Either::Left((Err(error), _)) = select(pin!(released), self.host.sleep(5 * SECOND)).await {
                expected(&error);
            }
        }
    }
}

fn expected(error: &Error) {
    let expected = matches!(
        error.kind(),
        ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Lost(_) | ErrorKind::NotHeld
    );
    assert!(expected, "{error:?}");
}

#[derive(Default)]
struct Oracle {
    /// By whom and what is held.
    guards: Mutex<Vec<(String, Weak<Guard>)>>,
    /// What a resource that checks fencing tokens has seen: of writers, and of all.
    seen: Mutex<HashMap<Name, (u64, u64)>>,
    tally: Mutex<Tally>,
}

impl Oracle {
    fn count(&self, what: &'static str, times: u64) {
        *self.tally.lock().unwrap().entry(what).or_default() += times;
    }

    fn watch(&self, guard: Guard, owner: &str) -> Arc<Guard> {
        let guard = Arc::new(guard);
        self.guards.lock().unwrap().push((owner.to_owned(), Arc::downgrade(&guard)));
        guard
    }

    fn forget(&self, guard: &Arc<Guard>) {
        self.guards.lock().unwrap().retain(|(_, other)| other.as_ptr() != Arc::as_ptr(guard));
    }

    /// Every belief lies inside a grant, and no two beliefs conflict.
    fn look(&self, server: &Server) {
        let guards = self.guards.lock().unwrap().clone();
        let guards = guards.into_iter().filter_map(|(owner, guard)| Some((owner, guard.upgrade()?)));
        let held: Vec<(String, Arc<Guard>)> = guards.filter(|(_, guard)| guard.is_held()).collect();
        for (n, (owner, guard)) in held.iter().enumerate() {
            believes_what_is_so(guard, owner, server);
            for (_, other) in &held[..n] {
                let conflict = guard.name() == other.name() && !fit(guard.mode(), other.mode());
                assert!(!conflict, "{guard:?} {} and {other:?} {}", guard.mode(), other.mode());
            }
        }
    }

    /// A write to a resource that refuses old tokens.
    fn write(&self, guard: &Guard, owner: &str, server: &Server) {
        if !guard.is_held() {
            return;
        }
        believes_what_is_so(guard, owner, server);
        let token = guard.fencing_token();
        let mut seen = self.seen.lock().unwrap();
        let (by_writers, by_all) = seen.entry(guard.name().clone()).or_default();
        let alone = guard.mode() == Mode::Exclusive;
        let newest = if alone { *by_all } else { *by_writers };
        assert!(token >= newest, "{guard:?} believes to hold, and is refused: {token} after {newest}");
        *by_all = token.max(*by_all);
        if alone {
            *by_writers = token.max(*by_writers);
        }
        self.tally.lock().unwrap().entry("writes").and_modify(|writes| *writes += 1).or_insert(1);
    }
}

/// Its claim holds the lock by the server's table, in a mode that allows as much. Of the token of an upgrade it may not
/// know yet.
fn believes_what_is_so(guard: &Guard, owner: &str, server: &Server) {
    let statuses = server.status();
    let status = statuses.iter().find(|status| status.name == *guard.name());
    // One who was cut off may have an older claim there that is being released.
    let its_own =
        |holder: &&Holder| holder.owner.owner == owner && holder.fencing_token >= guard.fencing_token();
    let holder = status.and_then(|status| status.holders.iter().find(its_own));
    let Some(holder) = holder else { panic!("{guard:?} of {owner} believes, but the server has {status:?}") };
    let covers = match guard.mode() {
        Mode::Shared => matches!(holder.mode, Mode::Shared | Mode::Upgradable | Mode::Exclusive),
        Mode::Upgradable => matches!(holder.mode, Mode::Upgradable | Mode::Exclusive),
        mode => holder.mode == mode,
    };
    assert!(covers, "{guard:?} believes {}, but holds {}", guard.mode(), holder.mode);
}

fn fit(one: Mode, other: Mode) -> bool {
    use Mode::{Permit, Shared, Upgradable};
    matches!((one, other), (Shared, Shared | Upgradable) | (Upgradable, Shared) | (Permit(_), Permit(_)))
}
