//! What the scenarios have in common: a server, clients on machines of their own, and a network that works until told
//! otherwise.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{Either, select};
use windlass::{Guard, Holder, Locker, rt::Runtime};
use windlass_tests::{
    sim::{Host, World},
    sim_backend::{Faults, Link},
    sim_server::Server,
};

pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Nothing that goes well takes longer.
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) struct Sim {
    pub(crate) world: Arc<World>,
    pub(crate) server: Arc<Server>,
    /// The machine of the test itself.
    pub(crate) here: Arc<Host>,
}

pub(crate) struct Client {
    pub(crate) host: Arc<Host>,
    pub(crate) link: Arc<Link>,
    pub(crate) locker: Locker,
}

pub(crate) fn sim<T>(seed: u64, test: impl AsyncFnOnce(&Sim) -> T) -> T {
    let world = World::new(seed);
    let sim = Sim { server: Server::start(&world), here: world.host(), world: world.clone() };
    world.run(test(&sim))
}

impl Sim {
    pub(crate) fn client(&self) -> Client {
        let host = self.world.host();
        let link = Link::new(&self.server, host.clone());
        link.set(ms(2));
        Client { locker: link.locker(), host, link }
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.here.sleep(time).await;
    }

    pub(crate) async fn soon<T>(&self, what: &str, event: impl Future<Output = T>) -> T {
        match select(pin!(event), self.here.sleep(LONG)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => panic!("waited in vain for: {what}"),
        }
    }

    pub(crate) async fn nothing_is_left(&self) {
        self.sleep(2 * TTL).await;
        assert!(self.server.is_empty(), "left at the server: {:?}", self.server.status());
    }

    /// Who holds a lock, as the server knows it.
    pub(crate) fn holders(&self, name: &str) -> Vec<Holder> {
        let statuses = self.server.status().into_iter();
        statuses.filter(|status| status.name.as_str() == name).flat_map(|status| status.holders).collect()
    }

    /// At each instant, whoever believes to hold is known to the server as a holder by this token.
    pub(crate) fn beliefs_lie_inside_the_grants(&self) -> Arc<Mutex<Vec<Arc<Guard>>>> {
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

impl Client {
    /// When requests of this kind were sent since the last call, which forgets all others.
    pub(crate) fn sent(&self, kind: &str) -> Vec<Duration> {
        self.link.sent().into_iter().filter(|(_, sent)| *sent == kind).map(|(when, _)| when).collect()
    }
}

/// A network that works, with delays of up to so many milliseconds each way.
pub(crate) fn ms(millis: u64) -> Faults {
    let delay = Duration::from_millis(millis);
    Faults { request_delay: delay, reply_delay: delay, ..Faults::default() }
}

pub(crate) fn counter() -> (impl Fn(&windlass::Notice) + Send + Sync + 'static, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let told = move |_: &windlass::Notice| {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    (told, count)
}

pub(crate) fn near(time: Duration, wanted: Duration, millis: u64) {
    let off = time.abs_diff(wanted);
    assert!(off <= Duration::from_millis(millis), "{time:?}, not {wanted:?}");
}
