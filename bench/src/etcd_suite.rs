//! Locks in etcd, side by side: the part of the suite that is about them.

use std::path::{Path, PathBuf};

use crate::{
    Result,
    etcd::Etcd,
    report::{self, count, ratio},
    run::{Drivers, EtcdPairs, EtcdPeer},
    stats::{least, median, most},
    suite::rounds,
};

const PEERS: &[(&str, EtcdPeer)] = &[
    ("Windlass, Rust", EtcdPeer::Rust),
    ("Windlass, Python", EtcdPeer::Python("windlass")),
    ("`concurrency.Mutex`, Go", EtcdPeer::Go("mutex")),
    ("elock's calls, Go", EtcdPeer::Go("elock")),
    ("tooz, Python", EtcdPeer::Python("tooz")),
];
/// How many of them wait until they are woken; the last one polls.
const WOKEN: usize = 4;
const CLAIMS: [usize; 3] = [1, 8, 64];
const WAITERS: [usize; 3] = [2, 10, 50];
/// How long one waits until its turn comes. A watch that begins in the past, as the Mutex's, is served at the next tick of
/// 100 ms, and what is measured is not that.
const WAIT: f64 = 0.12;

/// What was measured with the data in one place.
struct Place {
    name: &'static str,
    pairs: Vec<Vec<Vec<EtcdPairs>>>,
    turns: Vec<Vec<Vec<Vec<f64>>>>,
}

/// What was measured.
pub(crate) struct Measured {
    places: Vec<Place>,
    head: String,
}

/// (rounds, seconds a measure) of: pairs, hand-overs, hand-overs of those that poll.
pub(crate) fn measure(drivers: &Drivers, sizes: [(usize, f64); 3]) -> Result<Measured> {
    let head = head(drivers.python());
    // Beside this program: where things are built is a disk.
    let disk = std::env::current_exe()?.parent().ok_or("no folder")?.to_owned();
    let places = [("in memory", PathBuf::from("/dev/shm")), ("on disk", disk)];
    let places = places.map(|(name, folder)| measure_at(drivers, sizes, name, &folder));
    Ok(Measured { places: places.into_iter().collect::<Result<_>>()?, head })
}

/// Each measure has an etcd of its own, which has just begun.
fn measure_at(
    drivers: &Drivers,
    [pairs, turns, polled]: [(usize, f64); 3],
    name: &'static str,
    folder: &Path,
) -> Result<Place> {
    let measured_pairs = CLAIMS.map(|claims| {
        rounds(&format!("etcd {name}, pairs of {claims}"), pairs.0, PEERS, |(_, peer)| {
            drivers.etcd_pairs(*peer, &Etcd::start(folder)?, claims, pairs.1)
        })
    });
    let (woken, polling) = PEERS.split_at(WOKEN);
    let measured_turns = WAITERS.map(|waiters| -> Result<_> {
        let title = format!("etcd {name}, hand-over among {waiters}");
        let hold = WAIT / (waiters - 1) as f64;
        let hand_over =
            |peer, seconds| drivers.etcd_turns(peer, &Etcd::start(folder)?, waiters, seconds, hold);
        let mut all = rounds(&title, turns.0, woken, |row| hand_over(row.1, turns.1))?;
        all.extend(rounds(&format!("{title} by polling"), polled.0, polling, |row| {
            hand_over(row.1, polled.1)
        })?);
        Ok(all)
    });
    Ok(Place {
        name,
        pairs: measured_pairs.into_iter().collect::<Result<_>>()?,
        turns: measured_turns.into_iter().collect::<Result<_>>()?,
    })
}

impl Measured {
    /// Rows of the table of goals.
    pub(crate) fn goals(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for Place { name, pairs, .. } in &self.places {
            let rate = |claims: usize, peer: usize| rate(&pairs[claims][peer]);
            let mut row = |what: &str, goal: f64, reached: f64, met: bool| {
                let met = if met { "yes" } else { "**no**" };
                rows.push(vec![
                    format!("etcd, data {name}, {what}"),
                    ratio(goal),
                    ratio(reached),
                    met.to_owned(),
                ]);
            };
            for (peer, whose, goal) in [(2, "Go's Mutex", 1.0), (3, "elock's calls", 0.55)] {
                let time = rate(0, peer) / rate(0, 0);
                row(&format!("time of a pair of one claim, to {whose}"), goal, time, time <= goal);
            }
            let share = rate(2, 0) / rate(2, 2);
            row("pairs of 64 claims of one process, to Go's Mutex", 5.0, share, share >= 5.0);
        }
        rows
    }

    /// The tables.
    pub(crate) fn text(&self) -> String {
        let mut text = self.head.clone();
        for place in &self.places {
            for (claims, measured) in CLAIMS.iter().zip(&place.pairs) {
                text += &pairs_table(&format!("data {}, {claims} at once", place.name), measured);
            }
        }
        for place in &self.places {
            for (waiters, measured) in WAITERS.iter().zip(&place.turns) {
                text += &report::delays(
                    &format!("In etcd: hand-over, data {}, {waiters} that want one lock", place.name),
                    "From just before a release until the next one knows that it is granted.",
                    &PEERS.iter().map(|row| row.0).zip(measured.iter().cloned()).collect::<Vec<_>>(),
                );
            }
        }
        text
    }
}

fn rate(rounds: &[EtcdPairs]) -> f64 {
    median(&rounds.iter().map(|round| round.pairs_per_s).collect::<Vec<_>>())
}

fn pairs_table(what: &str, measured: &[Vec<EtcdPairs>]) -> String {
    let first = rate(&measured[0]);
    let row = |(&(label, _), rounds): (&(&str, EtcdPeer), &Vec<EtcdPairs>)| {
        let each = |of: fn(&EtcdPairs) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
        let rates = each(|round| round.pairs_per_s);
        vec![
            label.to_owned(),
            count(median(&rates)),
            format!("{} .. {}", count(least(&rates)), count(most(&rates))),
            ratio(median(&rates) / first),
            count(median(&each(|round| round.requests))),
            count(median(&each(|round| round.writes))),
        ]
    };
    report::table(
        &format!("In etcd: acquire and release, {what}"),
        "Locks of their own names, in one process.",
        &["library", "pairs/s", "min .. max", "to the first row", "requests a pair", "raft writes a pair"],
        &PEERS.iter().zip(measured).map(row).collect::<Vec<_>>(),
    )
}

/// Of what and when, for this part may be measured without the others.
fn head(python: &Path) -> String {
    format!(
        "\n## In etcd\n\n\
         One member on loopback, with its defaults, begun anew for each measure; its data in memory (tmpfs), and on disk. \
         The Mutexes of a process share a session; elock has one for each lock and each time: Grant, KeepAlive, \
         Txn, Delete, Revoke, of which Go's client sends the KeepAlive with its next half second, if the lock is still held. \
         All claims of a process go through one locker, client or coordinator; those who wait for one lock have one each, \
         and hold it for so long that each waits for {:.0} ms. tooz asks every second; its lock is held for a random time up to that \
         longer. Requests are the messages of gRPC that etcd received (`grpc_server_msg_received_total`), raft writes its \
         `etcd_server_proposals_committed_total`, both of all pairs of a process from its beginning to its end.\n\n\
         - **Machine**: {}\n- **Versions**: {}\n- **Date**: {}\n{}",
        WAIT * 1e3,
        report::machine(),
        report::etcd_versions(python).join(", "),
        report::today(),
        report::load().unwrap_or_default(),
    )
}
