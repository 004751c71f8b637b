//! Windlass and its peers, side by side in one run: `make bench`.
//!
//! Without arguments this runs every measure of every library in turn, several times round, and writes
//! `docs/benchmarks.md`; with `etcd`, `redis` or `k8s` only what is measured over that, and what the
//! page says of it. With other arguments it is one of the processes that are measured; the Python and Go peers beside it take the same arguments and print the same JSON.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that measures reads clocks, sleeps and prints"
)]

mod client;
mod clock;
mod etcd;
mod files;
mod kubernetes;
mod memory;
mod redis;
mod report;
mod run;
mod server;
mod server_suite;
mod shared;
mod stats;
mod store;
mod store_suite;
mod suite;

use std::{error::Error, process::ExitCode, time::Duration};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("windlass-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[&str]) -> Result<()> {
    let result = match *arguments {
        [] => return suite::run(suite::Size::Full),
        ["--quick"] => return suite::run(suite::Size::Quick),
        [store @ ("etcd" | "redis" | "k8s")] => return suite::run_store(store, suite::Size::Full),
        ["--quick", store @ ("etcd" | "redis" | "k8s")] => {
            return suite::run_store(store, suite::Size::Quick);
        }
        ["serve", peer] => return server::serve(peer),
        ["server-pairs", "windlass", address, clients, seconds] => {
            server::pairs("windlass", address, clients.parse()?, duration(seconds)?)?
        }
        ["server-pairs", "lockgate", address, clients, seconds] => {
            server::pairs("lockgate", address, clients.parse()?, duration(seconds)?)?
        }
        ["server-pairs", "echo", address, clients, seconds] => {
            server::pairs("echo", address, clients.parse()?, duration(seconds)?)?
        }
        ["server-turns", address, clients, seconds] => {
            server::turns(address, clients.parse()?, duration(seconds)?)?
        }
        ["server-echoes", address, seconds] => server::echoes(address, duration(seconds)?)?,
        ["server-contend", address, clients, seconds] => {
            server::contend(address, clients.parse()?, duration(seconds)?)?
        }
        ["server-renewals", address, seconds] => server::renewals(address, duration(seconds)?)?,
        ["store-pairs", url, claims, seconds] => store::pairs(url, claims.parse()?, duration(seconds)?)?,
        ["store-turns", url, waiters, seconds, hold] => {
            store::turns(url, waiters.parse()?, duration(seconds)?, duration(hold)?)?
        }
        ["memory", peer, seconds] => memory::pairs(peer, duration(seconds)?)?,
        ["tasks", peer, seconds] => memory::turns(peer, duration(seconds)?)?,
        ["pairs", peer, directory, seconds] => files::pairs(peer, directory, duration(seconds)?)?,
        ["turns", peer, directory, seconds, max_hold_ms, id] => {
            files::turns(peer, directory, duration(seconds)?, max_hold_ms.parse()?, id.parse()?)?
        }
        ["contend", peer, directory, seconds, id] => {
            files::contend(peer, directory, duration(seconds)?, id.parse()?)?
        }
        _ => return Err("usage: windlass-bench [--quick] [etcd|redis|k8s]".into()),
    };
    println!("{result}");
    Ok(())
}

fn duration(seconds: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(seconds.parse()?))
}
