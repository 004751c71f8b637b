//! The servers, side by side: the part of the suite that is about them.

use crate::{
    Result,
    report::{self, count, time},
    run::{Contest, Drivers, Server},
    stats::{least, median, most, quantile},
    suite::rounds,
};

const PAIRS: &[(&str, Server)] = &[
    ("Windlass", Server::Windlass),
    ("lockgate, raw HTTP", Server::Lockgate),
    ("lockgate, its own client", Server::LockgateClient),
    ("bare hyper that echoes twice", Server::Echo),
];
const CLIENTS: [usize; 3] = [1, 8, 64];
const LIKE_LOCKGATE: [(&str, Server); 2] =
    [("Windlass", Server::Windlass), ("lockgate, its own client", Server::LockgateClient)];
const CONTENDERS: usize = 32;

/// What was measured.
pub(crate) struct Servers {
    pairs: Vec<Vec<Vec<f64>>>,
    turns: Vec<(&'static str, Vec<Vec<f64>>)>,
    contests: Vec<Vec<Contest>>,
    renewals: Vec<f64>,
}

/// Seconds: of pairs, of hand-overs, of hand-overs by polling, of contests.
pub(crate) fn measure(drivers: &Drivers, times: usize, seconds: [f64; 4]) -> Result<Servers> {
    let [pairs, turns, polled, contest] = seconds;
    // One server a row, for all of its rounds, as it would be.
    let mut served = Vec::new();
    for (_, server) in PAIRS {
        served.push(drivers.serve(*server)?);
    }
    let rows: Vec<usize> = (0..PAIRS.len()).collect();
    let measured = CLIENTS.map(|clients| {
        rounds(&format!("server, pairs of {clients}"), times, &rows, |&row| {
            drivers.server_pairs(PAIRS[row].1, &served[row], clients, pairs)
        })
    });
    let pairs = measured.into_iter().collect::<Result<_>>()?;
    let (ours, theirs, echo) = (&served[0], &served[2], &served[3]);
    let woken = [(Server::Windlass, ours, 2), (Server::Windlass, ours, 1_000), (Server::Echo, echo, 1)];
    let woken = rounds("server, hand-over", times, &woken, |&(server, at, clients)| {
        drivers.server_turns(server, at, clients, turns)
    })?;
    let lockgate = rounds("server, hand-over by polling", 1, &[2], |&clients| {
        drivers.server_turns(Server::LockgateClient, theirs, clients, polled)
    })?;
    let labels = [
        "Windlass, 2 clients",
        "Windlass, 1,000 clients",
        "bare hyper that echoes, one client",
        "lockgate, its own client, 2 clients",
    ];
    let turns = labels.into_iter().zip(woken.into_iter().chain(lockgate)).collect();
    let contests = rounds("server, 32 contenders", 1, &LIKE_LOCKGATE, |(_, server)| {
        let at = if *server == Server::Windlass { ours } else { theirs };
        drivers.server_contest(*server, at, CONTENDERS, contest)
    })?;
    let renewals = rounds("server, renewals", times, &[()], |()| drivers.renewals(ours, 0.5))?.swap_remove(0);
    Ok(Servers { pairs, turns, contests, renewals })
}

impl Servers {
    /// Rows of the table of goals.
    pub(crate) fn goals(&self) -> Vec<Vec<String>> {
        let verdict = |met: bool| if met { "yes" } else { "**no**" }.to_owned();
        let mut rows = Vec::new();
        for (clients, measured) in CLIENTS.iter().zip(&self.pairs) {
            let [ours, theirs, echo] = [0, 1, 3].map(|row| median(&measured[row]));
            rows.push(vec![
                format!("server, pairs of {clients} clients, to lockgate's by raw HTTP"),
                "1.00 x".to_owned(),
                report::ratio(ours / theirs),
                verdict(ours > theirs),
            ]);
            rows.push(vec![
                format!("server, requests of {clients} clients, to those of a bare echo"),
                "0.70 x".to_owned(),
                report::ratio(ours / echo),
                verdict(ours / echo >= 0.7),
            ]);
        }
        for ((label, rounds), (p50, p99)) in self.turns.iter().zip([(Some(1e-4), 1e-3), (None, 5e-3)]) {
            let samples = rounds.concat();
            let quantiles = [(0.5, "p50", p50), (0.99, "p99", Some(p99))];
            rows.extend(quantiles.into_iter().filter_map(|(share, name, goal)| {
                let (goal, reached) = (goal?, quantile(&samples, share));
                let what = format!("server, hand-over, {label}, {name}");
                Some(vec![what, time(goal), time(reached), verdict(reached <= goal)])
            }));
        }
        let contest = &self.contests[0][0];
        let met = contest.pairs_per_s >= 900.0 && contest.jain >= 0.99;
        rows.push(vec![
            format!("server, {CONTENDERS} contenders that hold 1 ms each: pairs and Jain's index"),
            "900/s, 0.99".to_owned(),
            format!("{}/s, {:.3}", count(contest.pairs_per_s), contest.jain),
            verdict(met),
        ]);
        rows
    }

    /// The tables.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (clients, measured) in CLIENTS.iter().zip(&self.pairs) {
            let rows: Vec<_> = PAIRS.iter().map(|row| row.0).zip(measured.iter().cloned()).collect();
            text += &report::rates(
                &format!("In a server: acquire and release, {clients} at once"),
                "On loopback, each client with a connection and a lock of its own. All but lockgate's own client are one \
                 thread that writes the bytes of HTTP.",
                &rows,
            );
        }
        text += &report::delays(
            "In a server: hand-over",
            "All clients want one lock all the time. From just before a release until the next one knows that it is granted. \
             The limit is one request to a server \
             that echoes, after a pause as long as the locks are held. lockgate's client asks every 2 s; its lock is held \
             for a random time up to that.",
            &self.turns,
        );
        let rows: Vec<Vec<String>> = LIKE_LOCKGATE
            .iter()
            .zip(&self.contests)
            .map(|((label, _), rounds)| {
                let contest = &rounds[0];
                let never = format!("{} of {CONTENDERS}", contest.never_served);
                vec![(*label).to_owned(), count(contest.pairs_per_s), format!("{:.3}", contest.jain), never]
            })
            .collect();
        text += &report::table(
            "In a server: 32 clients that want one lock all the time",
            "Held for 1 ms each, so that there can be 1,000 pairs a second.",
            &["library", "pairs/s of all", "Jain's index", "never served"],
            &rows,
        );
        let spread = format!("{} .. {}", count(least(&self.renewals)), count(most(&self.renewals)));
        text += &report::table(
            "In a server: renewals",
            "Of the claims of one program, a thousand in a request, on one connection.",
            &["", "claims renewed a second", "min .. max"],
            &[vec!["Windlass".to_owned(), count(median(&self.renewals)), spread]],
        );
        text
    }
}
