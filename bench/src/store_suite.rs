//! Locks in stores that others make, side by side: the part of the suite that is about them.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    Result,
    etcd::Etcd,
    kubernetes::Kubernetes,
    redis::Redis,
    report::{self, count, ratio, time},
    run::{Drivers, StorePairs, StorePeer},
    stats::{least, median, most, quantile},
    store::Server,
    suite::rounds,
};

/// A store, and who takes locks in it.
pub(crate) struct Store {
    pub(crate) scheme: &'static str,
    pub(crate) name: &'static str,
    peers: &'static [(&'static str, StorePeer)],
    /// How many of them wait until they are woken; the others poll.
    woken: usize,
    /// What is counted in it for each pair.
    counted: [&'static str; 2],
    /// Where its data may be, with words for that.
    places: fn() -> Result<Vec<(&'static str, PathBuf)>>,
    start: fn(&Path) -> Result<Rc<dyn Server>>,
    /// One that takes long to start serves all measures.
    lasts: bool,
    goals: fn(&Measured, &Place) -> Vec<Goal>,
    /// How it was measured.
    how: &'static str,
    versions: fn(&Path) -> Vec<String>,
}

static ETCD: Store = Store {
    scheme: "etcd",
    name: "etcd",
    peers: &[
        ("Windlass, Rust", StorePeer::Rust),
        ("Windlass, Python", StorePeer::Python("windlass")),
        ("`concurrency.Mutex`, Go", StorePeer::Go("mutex")),
        ("elock's calls, Go", StorePeer::Go("elock")),
        ("tooz, Python", StorePeer::Python("tooz")),
    ],
    woken: 4,
    counted: ["requests a pair", "raft writes a pair"],
    places: || {
        // Beside this program: where things are built is a disk.
        let disk = std::env::current_exe()?.parent().ok_or("no folder")?.to_owned();
        Ok(vec![("data in memory, ", PathBuf::from("/dev/shm")), ("data on disk, ", disk)])
    },
    start: |folder| Ok(Rc::new(Etcd::start(folder)?)),
    lasts: false,
    goals: |measured, place| {
        let [one, .., many] = &place.pairs[..] else { return Vec::new() };
        let time_to = |peer: usize| rate(&one[peer]) / rate(&one[0]);
        vec![
            measured.at_most(place, "time of a pair of one claim, to Go's Mutex", 1.0, time_to(2), ratio),
            measured.at_most(place, "time of a pair of one claim, to elock's calls", 0.55, time_to(3), ratio),
            measured.at_least(
                place,
                "pairs of 64 claims of one process, to Go's Mutex",
                5.0,
                rate(&many[0]) / rate(&many[2]),
            ),
        ]
    },
    how: "One member on loopback, with its defaults, begun anew for each measure; its data in memory (tmpfs), and on disk. \
          The Mutexes of a process share a session; elock has one for each lock and each time: Grant, KeepAlive, \
          Txn, Delete, Revoke, of which Go's client sends the KeepAlive with its next half second, if the lock is still held. \
          tooz asks every second. Requests are the messages of gRPC that etcd received \
          (`grpc_server_msg_received_total`), raft writes its `etcd_server_proposals_committed_total`",
    versions: report::etcd_versions,
};

static REDIS: Store = Store {
    scheme: "redis",
    name: "Redis",
    peers: &[
        ("Windlass, Rust", StorePeer::Rust),
        ("Windlass, Python", StorePeer::Python("windlass")),
        ("redsync, Go", StorePeer::Go("redsync")),
        ("redislock, Go", StorePeer::Go("redislock")),
        ("redis-py's `Lock`, Python", StorePeer::Python("redis-py")),
    ],
    woken: 2,
    counted: ["reads a pair", "commands a pair"],
    places: || Ok(vec![("", std::env::temp_dir())]),
    start: |folder| Ok(Rc::new(Redis::start(folder)?)),
    lasts: false,
    goals: |measured, place| {
        let [one, .., many] = &place.pairs[..] else { return Vec::new() };
        let to_best = |of: &[Vec<StorePairs>]| {
            let theirs: Vec<f64> = of[2..].iter().map(|rounds| rate(rounds)).collect();
            rate(&of[0]) / most(&theirs)
        };
        let handed = quantile(&place.turns[0][0].concat(), 0.5);
        vec![
            measured.at_least(place, "pairs of one claim, to the best peer", 1.0, to_best(one)),
            measured.at_least(
                place,
                "pairs of 64 claims of one process, to the best peer",
                1.0,
                to_best(many),
            ),
            measured.at_most(place, "hand-over, p50", 1e-4, handed, time),
        ]
    },
    how: "One server on loopback that saves nothing, begun anew for each measure. redsync looks again after 50 to 250 ms, redislock \
          is told to after 100 ms, as redis-py's `Lock` does. Reads are how often Redis has read from a connection \
          (`total_reads_processed`), where what came together counts once; commands are all that it carried out, also \
          within scripts (`total_commands_processed`)",
    versions: report::redis_versions,
};

static KUBERNETES: Store = Store {
    scheme: "k8s",
    name: "Kubernetes",
    peers: &[
        ("Windlass, Rust", StorePeer::Rust),
        ("Windlass, Python", StorePeer::Python("windlass")),
        ("lockgate, Go", StorePeer::Go("lockgate")),
        ("client-go's leader election", StorePeer::Go("elector")),
    ],
    woken: 2,
    counted: ["requests a pair", "raft writes a pair"],
    places: || Ok(vec![("", PathBuf::from("/dev/shm"))]),
    start: |folder| Ok(Rc::new(Kubernetes::start(folder)?)),
    lasts: true,
    goals: |measured, place| {
        let p50 = |peer: usize| quantile(&place.turns[0][peer].concat(), 0.5);
        vec![
            measured.at_most(place, "hand-over, p50", 1e-2, p50(0), time),
            measured.at_least(place, "hand-over, lockgate's p50 to ours", 100.0, p50(2) / p50(0)),
        ]
    },
    how: "One API server over one etcd, whose data are in memory, on loopback, for all measures. Ours are Lease \
          objects, as client-go's are; lockgate's locks are in the annotations of one ConfigMap. lockgate asks every \
          two seconds, and the leader election, with the times that controllers have, every two to four. Requests are \
          those for Leases and ConfigMaps that the API server has answered (`apiserver_request_total`), but for \
          watches that go on; raft writes those of its etcd",
    versions: report::kubernetes_versions,
};

/// What, the goal, what was reached, whether it is met.
type Goal = Vec<String>;

const CLAIMS: [usize; 3] = [1, 8, 64];
const WAITERS: [usize; 3] = [2, 10, 50];
/// How long one waits until its turn comes. A watch of etcd that begins in the past, as the Mutex's, is served at the next tick of
/// 100 ms, and what is measured is not that.
const WAIT: f64 = 0.12;

/// What was measured with the data in one place: of each number of claims, or of those who wait, each library in each round.
struct Place {
    name: &'static str,
    pairs: Vec<Vec<Vec<StorePairs>>>,
    turns: Vec<Vec<Vec<Vec<f64>>>>,
}

/// What was measured.
pub(crate) struct Measured {
    store: &'static Store,
    places: Vec<Place>,
    head: String,
}

impl Store {
    pub(crate) const ALL: [&Self; 3] = [&ETCD, &REDIS, &KUBERNETES];

    /// (rounds, seconds a measure) of: pairs, hand-overs, hand-overs of those that poll.
    pub(crate) fn measure(&'static self, drivers: &Drivers, sizes: [(usize, f64); 3]) -> Result<Measured> {
        let head = self.head(drivers.python());
        let places = (self.places)()?;
        let places = places.into_iter().map(|(name, folder)| self.measure_at(drivers, sizes, name, &folder));
        Ok(Measured { store: self, places: places.collect::<Result<_>>()?, head })
    }

    /// Each measure has a server of its own, which has just begun, unless that takes long.
    fn measure_at(
        &self,
        drivers: &Drivers,
        [pairs, turns, polled]: [(usize, f64); 3],
        name: &'static str,
        folder: &Path,
    ) -> Result<Place> {
        let peers = self.peers;
        let lasting = self.lasts.then(|| (self.start)(folder)).transpose()?;
        let server = || lasting.clone().map_or_else(|| (self.start)(folder), Ok);
        let measured_pairs = CLAIMS.map(|claims| {
            rounds(&format!("{}, {name}pairs of {claims}", self.name), pairs.0, peers, |(_, peer)| {
                drivers.store_pairs(*peer, &*server()?, claims, pairs.1)
            })
        });
        let (woken, polling) = peers.split_at(self.woken);
        let measured_turns = WAITERS.map(|waiters| -> Result<_> {
            let title = format!("{}, {name}hand-over among {waiters}", self.name);
            let hold = WAIT / (waiters - 1) as f64;
            let hand_over = |peer, seconds| drivers.store_turns(peer, &*server()?, waiters, [seconds, hold]);
            let mut all = rounds(&title, turns.0, woken, |row| hand_over(row.1, turns.1))?;
            // Where few poll, hand-overs are rare.
            let seconds = polled.1 * (10.0 / waiters as f64).max(1.0);
            all.extend(rounds(&format!("{title} by polling"), polled.0, polling, |row| {
                hand_over(row.1, seconds)
            })?);
            Ok(all)
        });
        Ok(Place {
            name,
            pairs: measured_pairs.into_iter().collect::<Result<_>>()?,
            turns: measured_turns.into_iter().collect::<Result<_>>()?,
        })
    }

    /// Of what and when, for this part may be measured without the others.
    fn head(&self, python: &Path) -> String {
        format!(
            "\n## In {}\n\n{}, both of all pairs of a process from its beginning to its end. All claims of a process go through one \
             locker or client; those who wait for one lock have one each, and hold it for so long that each waits for {:.0} ms, those \
             that poll for a random time up to their interval longer, and ask again only when another has had it.\n\n\
             - **Machine**: {}\n- **Versions**: {}\n- **Date**: {}\n{}",
            self.name,
            self.how,
            WAIT * 1e3,
            report::machine(),
            (self.versions)(python).join(", "),
            report::today(),
            report::load().unwrap_or_default(),
        )
    }

    fn pairs_table(&self, what: &str, measured: &[Vec<StorePairs>]) -> String {
        let first = rate(&measured[0]);
        let row = |(&(label, _), rounds): (&(&str, StorePeer), &Vec<StorePairs>)| {
            let rates: Vec<f64> = rounds.iter().map(|round| round.pairs_per_s).collect();
            let work = [0, 1].map(|each: usize| {
                count(median(&rounds.iter().map(|round| round.work[each]).collect::<Vec<_>>()))
            });
            let [asked, done] = work;
            vec![
                label.to_owned(),
                count(median(&rates)),
                format!("{} .. {}", count(least(&rates)), count(most(&rates))),
                ratio(median(&rates) / first),
                asked,
                done,
            ]
        };
        report::table(
            &format!("In {}: acquire and release, {what}", self.name),
            "Locks of their own names, in one process.",
            &["library", "pairs/s", "min .. max", "to the first row", self.counted[0], self.counted[1]],
            &self.peers.iter().zip(measured).map(row).collect::<Vec<_>>(),
        )
    }
}

impl Measured {
    /// Rows of the table of goals.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        self.places.iter().flat_map(|place| (self.store.goals)(self, place)).collect()
    }

    fn at_least(&self, place: &Place, what: &str, goal: f64, reached: f64) -> Goal {
        self.goal(place, what, [ratio(goal), ratio(reached)], reached >= goal)
    }

    fn at_most(&self, place: &Place, what: &str, goal: f64, reached: f64, shown: fn(f64) -> String) -> Goal {
        self.goal(place, what, [shown(goal), shown(reached)], reached <= goal)
    }

    fn goal(&self, place: &Place, what: &str, [goal, reached]: [String; 2], met: bool) -> Goal {
        let met = if met { "yes" } else { "**no**" };
        vec![format!("{}, {}{what}", self.store.name, place.name), goal, reached, met.to_owned()]
    }

    /// The tables.
    pub(crate) fn text(&self) -> String {
        let mut text = self.head.clone();
        for place in &self.places {
            for (claims, measured) in CLAIMS.iter().zip(&place.pairs) {
                text += &self.store.pairs_table(&format!("{}{claims} at once", place.name), measured);
            }
        }
        for place in &self.places {
            for (waiters, measured) in WAITERS.iter().zip(&place.turns) {
                let labels = self.store.peers.iter().map(|row| row.0);
                text += &report::delays(
                    &format!("In {}: hand-over, {}{waiters} that want one lock", self.store.name, place.name),
                    "From just before a release until the next one knows that it is granted.",
                    &labels.zip(measured.iter().cloned()).collect::<Vec<_>>(),
                );
            }
        }
        text
    }
}

fn rate(rounds: &[StorePairs]) -> f64 {
    median(&rounds.iter().map(|round| round.pairs_per_s).collect::<Vec<_>>())
}
