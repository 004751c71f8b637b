//! What is measured, against whom, and what should be reached.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    Result,
    report::{self, count, ratio, time},
    run::{Drivers, Peer},
    server_suite,
    stats::{least, median, most, quantile},
    store_suite::{Measured, Store},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Every measure as often as it takes to trust its median.
    Full,
    /// Every measure once and short, to see that it works; writes no page.
    Quick,
}

const MEMORY: &[(&str, &str)] = &[
    ("Windlass, lock table alone", "table"),
    ("Windlass, lock table alone, 10,000 other names held", "table-held"),
    ("Windlass, `memory:`", "windlass"),
    ("tokio `Mutex`", "tokio"),
    ("parking_lot `Mutex`", "parking_lot"),
];

const TASKS: &[(&str, &str)] = &[
    ("Windlass `memory:`, two tasks of a thread", "windlass-tasks"),
    ("tokio `Mutex`, two tasks of a thread", "tokio-tasks"),
    ("Windlass `memory:`, two threads", "windlass-threads"),
    ("tokio `Mutex`, two threads", "tokio-threads"),
    ("parking_lot `Mutex`, two threads, fair unlock", "parking_lot-threads"),
];

const FILES: &[(&str, Peer)] = &[
    ("Windlass, Rust: opened, locked, record written", Peer::Rust("windlass")),
    ("bare open + flock + close, Rust", Peer::Rust("flock-open")),
    ("bare flock, file kept open, Rust", Peer::Rust("flock")),
    ("lockgate, Go", Peer::Go),
];

const PYTHON: &[(&str, Peer)] = &[
    ("Windlass", Peer::Python("windlass")),
    ("filelock", Peer::Python("filelock")),
    ("portalocker", Peer::Python("portalocker")),
    ("fasteners", Peer::Python("fasteners")),
    ("bare `fcntl.flock` with open and close", Peer::Python("flock-open")),
    ("bare `fcntl.flock`, file kept open", Peer::Python("flock")),
    ("`threading.Lock`", Peer::Python("threading")),
];

/// With the longest hold in milliseconds: those that poll are released at a random point of their interval.
const HAND_OVER: &[(&str, Peer, f64)] = &[
    ("Windlass, Rust", Peer::Rust("windlass"), 1.0),
    ("bare flock, Rust", Peer::Rust("flock-open"), 1.0),
    ("Windlass, Python", Peer::Python("windlass"), 1.0),
    ("bare `fcntl.flock`, Python", Peer::Python("flock-open"), 1.0),
    ("filelock, Python", Peer::Python("filelock"), 50.0),
    ("fasteners, Python", Peer::Python("fasteners"), 100.0),
    ("portalocker, Python", Peer::Python("portalocker"), 250.0),
    ("lockgate, Go", Peer::Go, 500.0),
];

const CONTENDERS: usize = 8;

pub(crate) fn run(size: Size) -> Result<()> {
    let start = Instant::now();
    let drivers = Drivers::find()?;
    // (rounds, seconds a measure) of: pairs, hand-overs, hand-overs of those that poll, contests.
    let (pairs, turns, polled, contest) = match size {
        Size::Full => ((7, 0.3), (5, 1.5), (2, 7.0), (3, 2.0)),
        Size::Quick => ((1, 0.05), (1, 0.2), (1, 1.5), (1, 0.5)),
    };
    let memory = rounds("memory, pairs", pairs.0, MEMORY, |(_, peer)| drivers.memory_pairs(peer, pairs.1))?;
    let tasks =
        rounds("memory, hand-over", turns.0, TASKS, |(_, peer)| drivers.memory_turns(peer, turns.1 / 4.0))?;
    let files = rounds("files, pairs", pairs.0, FILES, |(_, peer)| drivers.file_pairs(*peer, pairs.1))?;
    let python =
        rounds("files, pairs in Python", pairs.0, PYTHON, |(_, peer)| drivers.file_pairs(*peer, pairs.1))?;
    let (woken, polling) = HAND_OVER.split_at(4);
    let hand_over = |&(_, peer, hold): &(&str, Peer, f64), seconds| drivers.file_turns(peer, seconds, hold);
    let mut handed = rounds("files, hand-over", turns.0, woken, |row| hand_over(row, turns.1))?;
    handed.extend(rounds("files, hand-over by polling", polled.0, polling, |row| hand_over(row, polled.1))?);
    let contests = rounds("files, 8 contenders", contest.0, HAND_OVER, |row| {
        drivers.contest(row.1, CONTENDERS, contest.1)
    })?;

    let (times, seconds) = match size {
        Size::Full => (5, [1.0, 3.0, 30.0, 10.0]),
        Size::Quick => (1, [0.2, 0.3, 5.0, 1.0]),
    };
    let servers = server_suite::measure(&drivers, times, seconds)?;
    let stores = Store::ALL.map(|store| store.measure(&drivers, store_sizes(size)));
    let stores = stores.into_iter().collect::<Result<Vec<_>>>()?;

    let pairs_rows = |labels: &[&'static str], values: &[Vec<f64>]| -> Vec<(&'static str, Vec<f64>)> {
        labels.iter().copied().zip(values.iter().cloned()).collect()
    };
    let mut text = head(&drivers, start);
    let of_stores = stores.iter().flat_map(Measured::goals);
    let others = servers.goals().into_iter().chain(of_stores).collect();
    text += &goals(&memory, &tasks, &files, &python, &handed, others);
    text += &report::rates(
        "In memory: acquire and release, nobody else",
        "One thread. The mutexes are the floor: they have no names, modes, queue, fencing tokens or deadlines.",
        &pairs_rows(&labels(MEMORY), &memory),
    );
    text += &report::delays(
        "In memory: hand-over",
        "From just before a release until the next one in line, who had been waiting, holds the lock.",
        &TASKS.iter().map(|row| row.0).zip(tasks.iter().cloned()).collect::<Vec<_>>(),
    );
    text += &report::rates(
        "In files: acquire and release, nobody else",
        "One process, one file.",
        &pairs_rows(&labels(FILES), &files),
    );
    text += &report::rates(
        "In files, Python: acquire and release, nobody else",
        "`with lock: pass`, one process, one file.",
        &pairs_rows(&labels(PYTHON), &python),
    );
    text += &report::delays(
        "In files: hand-over between processes",
        "From just before a release until the other process, which had been waiting, holds the lock. Locks are held for \
         2 ms and a random time up to the library's interval of polling more.",
        &HAND_OVER.iter().map(|row| row.0).zip(handed.iter().cloned()).collect::<Vec<_>>(),
    );
    let rows: Vec<Vec<String>> = HAND_OVER
        .iter()
        .zip(&contests)
        .map(|((label, ..), rounds)| {
            let rates: Vec<f64> = rounds.iter().map(|round| round.pairs_per_s).collect();
            let jains: Vec<f64> = rounds.iter().map(|round| round.jain).collect();
            let never: Vec<f64> = rounds.iter().map(|round| round.never_served as f64).collect();
            let spread = format!("{} .. {}", count(least(&rates)), count(most(&rates)));
            vec![
                (*label).to_owned(),
                count(median(&rates)),
                spread,
                format!("{:.3}", median(&jains)),
                format!("{:.0} of {CONTENDERS}", most(&never)),
            ]
        })
        .collect();
    text += &report::table(
        "In files: 8 processes that want one lock all the time",
        &format!(
            "For {} s a round, nothing done under the lock but to count. Jain's index is 1 when all get the same. What \
             is not fair can be faster: the lock stays with whoever runs.",
            contest.1
        ),
        &["library", "pairs/s of all", "min .. max", "Jain's index", "never served (worst round)"],
        &rows,
    );
    text += &servers.text();
    stores.iter().for_each(|store| text += &store.text());
    println!("\n{text}");
    if size == Size::Full { write(&text) } else { Ok(()) }
}

/// What is in the store of this scheme alone, and what the page says of it.
pub(crate) fn run_store(scheme: &str, size: Size) -> Result<()> {
    let store = Store::ALL.into_iter().find(|store| store.scheme == scheme).ok_or("no such store")?;
    let measured = store.measure(&Drivers::find()?, store_sizes(size))?;
    let text = report::renewed(&fs::read_to_string(page())?, store.name, &measured.goals(), &measured.text());
    println!("\n{text}");
    if size == Size::Full { write(&text) } else { Ok(()) }
}

fn store_sizes(size: Size) -> [(usize, f64); 3] {
    match size {
        Size::Full => [(5, 1.0), (3, 4.0), (1, 20.0)],
        Size::Quick => [(1, 0.2), (1, 1.0), (1, 3.0)],
    }
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md")
}

fn write(text: &str) -> Result<()> {
    fs::write(page(), text)?;
    eprintln!("written to docs/benchmarks.md");
    Ok(())
}

fn labels(rows: &[(&'static str, impl Copy)]) -> Vec<&'static str> {
    rows.iter().map(|row| row.0).collect()
}

/// All rows once, then all rows again: what else the machine does falls on all of them alike.
pub(crate) fn rounds<R, T>(
    title: &str,
    rounds: usize,
    rows: &[R],
    mut measure: impl FnMut(&R) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut results: Vec<Vec<T>> = rows.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        eprintln!("{title}: round {round} of {rounds}");
        for (row, results) in rows.iter().zip(&mut results) {
            results.push(measure(row)?);
        }
    }
    Ok(results)
}

fn head(drivers: &Drivers, start: Instant) -> String {
    format!(
        "# Windlass and its peers, side by side\n\n\
         Written by `make bench`, which measures all of them in turn, several times round, in one run. What counts are \
         the ratios: the figures themselves are of one machine on one day. Medians; the spread is over the rounds.\n\n\
         - **Machine**: {}\n- **Versions**: {}\n- **Date**: {}; the whole run took {:.0} s\n{}",
        report::machine(),
        report::versions(drivers.python()).join(", "),
        report::today(),
        start.elapsed().as_secs_f64(),
        report::load().unwrap_or_default()
    )
}

/// What the project wants to reach, as ratios to the floor of the same run.
fn goals(
    memory: &[Vec<f64>],
    tasks: &[Vec<Vec<f64>>],
    files: &[Vec<f64>],
    python: &[Vec<f64>],
    handed: &[Vec<Vec<f64>>],
    others: Vec<Vec<String>>,
) -> String {
    let p99 = |rounds: &[Vec<f64>]| quantile(&rounds.concat(), 0.99);
    let p50 = |rounds: &[Vec<f64>]| median(&rounds.concat());
    let verdict = |met: bool| if met { "yes" } else { "**no**" }.to_owned();
    let at_least = |what: &str, goal: f64, value: f64| {
        vec![what.to_owned(), count(goal) + "/s", count(value) + "/s", verdict(value >= goal)]
    };
    let share = |what: &str, goal: f64, value: f64, floor: f64| {
        let share = value / floor;
        vec![what.to_owned(), ratio(goal), ratio(share), verdict(share >= goal)]
    };
    let at_most = |what: &str, goal: f64, value: f64| {
        vec![what.to_owned(), time(goal), time(value), verdict(value <= goal)]
    };
    let (bare, bare_python) = (median(&files[1]), median(&python[4]));
    let mut rows = vec![
        at_least("lock table, pairs a core", 3e6, median(&memory[0])),
        at_most("`memory:`, hand-over between tasks, p50", 5e-6, p50(&tasks[0])),
        at_least("files, Rust, pairs with open and the record written", 3e5, median(&files[0])),
        share("the same, to bare open + flock + close", 0.47, median(&files[0]), bare),
        at_least("files, Python, pairs", 1e5, median(&python[0])),
        share("the same, to bare `fcntl.flock` with open", 0.29, median(&python[0]), bare_python),
        at_most("files, hand-over between processes, Rust, p99", 5e-5, p99(&handed[0])),
        at_most("files, hand-over between processes, Python, p99", 1e-3, p99(&handed[2])),
    ];
    rows.extend(others);
    report::table(
        "Goals",
        "Times and rates were set for a machine on which bare open + flock + close does 645 k pairs/s in C, bare \
         `fcntl.flock` with open 345 k in Python, and bare flock hands over in 42 µs; hence the shares.",
        &["what", "goal", "reached", "met"],
        &rows,
    )
}
