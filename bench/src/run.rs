//! Starts the processes that are measured, and reads their one line of JSON.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Result,
    clock::now,
    shared::{COUNTER, READY, START, Shared},
    stats::jain,
    store,
};

/// How long processes may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// A library in the language whose driver measures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Rust(&'static str),
    Python(&'static str),
    /// lockgate.
    Go,
}

/// The drivers.
pub(crate) struct Drivers {
    rust: PathBuf,
    python: PathBuf,
    peer_py: PathBuf,
    lockgate: PathBuf,
    lockgate_http: PathBuf,
    stores: PathBuf,
}

/// A library that takes locks in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StorePeer {
    /// Windlass.
    Rust,
    Python(&'static str),
    Go(&'static str),
}

/// Pairs in a store, and what it had to do for each.
#[derive(Clone, Copy)]
pub(crate) struct StorePairs {
    pub(crate) pairs_per_s: f64,
    pub(crate) work: [f64; 2],
}

/// A server that is measured; killed when dropped.
pub(crate) struct Served {
    child: Child,
    address: String,
}

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Windlass,
    /// lockgate's, asked by raw HTTP.
    Lockgate,
    /// lockgate's, asked by its own client.
    LockgateClient,
    Echo,
}

/// What many contenders of one lock got.
pub(crate) struct Contest {
    pub(crate) pairs_per_s: f64,
    pub(crate) jain: f64,
    pub(crate) never_served: usize,
}

impl Drivers {
    /// The interpreter and the Go programs come from the environment: `make bench` builds them.
    pub(crate) fn find() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .ok_or_else(|| format!("{name} is not set: use `make bench`"))
        };
        Ok(Self {
            rust: std::env::current_exe()?,
            python: variable("WINDLASS_BENCH_PYTHON")?,
            peer_py: Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/python/peer.py"),
            lockgate: variable("WINDLASS_BENCH_LOCKGATE")?,
            lockgate_http: variable("WINDLASS_BENCH_LOCKGATE_HTTP")?,
            stores: variable("WINDLASS_BENCH_STORES")?,
        })
    }

    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    fn command(&self, peer: Peer, measure: &str) -> Command {
        let mut command = match peer {
            Peer::Rust(_) => Command::new(&self.rust),
            Peer::Python(_) => Command::new(&self.python),
            Peer::Go => Command::new(&self.lockgate),
        };
        match peer {
            Peer::Rust(name) => command.args([measure, name]),
            Peer::Python(name) => command.arg(&self.peer_py).args([measure, name]),
            Peer::Go => command.arg(measure),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// In this process's memory: pairs a second.
    pub(crate) fn memory_pairs(&self, peer: &'static str, seconds: f64) -> Result<f64> {
        let mut command = self.command(Peer::Rust(peer), "memory");
        command.arg(seconds.to_string());
        rate(&together(vec![command])?[0])
    }

    /// In this process's memory: hand-overs in seconds.
    pub(crate) fn memory_turns(&self, peer: &'static str, seconds: f64) -> Result<Vec<f64>> {
        let mut command = self.command(Peer::Rust(peer), "tasks");
        command.arg(seconds.to_string());
        samples(&together(vec![command])?)
    }

    /// In files, without contention: pairs a second.
    pub(crate) fn file_pairs(&self, peer: Peer, seconds: f64) -> Result<f64> {
        let directory = Directory::new()?;
        let mut command = self.command(peer, "pairs");
        command.arg(&directory.0).arg(seconds.to_string());
        rate(&together(vec![command])?[0])
    }

    /// In files, between two processes: hand-overs in seconds.
    pub(crate) fn file_turns(&self, peer: Peer, seconds: f64, max_hold_ms: f64) -> Result<Vec<f64>> {
        let directory = Directory::new()?;
        let command = |id: usize| {
            let mut command = self.command(peer, "turns");
            command.arg(&directory.0).args([seconds.to_string(), max_hold_ms.to_string(), id.to_string()]);
            command
        };
        samples(&together(vec![command(0), command(1)])?)
    }

    /// In files, `contenders` processes that want one lock as often as they can get it.
    pub(crate) fn contest(&self, peer: Peer, contenders: usize, seconds: f64) -> Result<Contest> {
        let directory = Directory::new()?;
        let shared = Shared::open(&directory.0.to_string_lossy())?;
        let command = |id: usize| {
            let mut command = self.command(peer, "contend");
            command.arg(&directory.0).args([seconds.to_string(), id.to_string()]);
            command
        };
        let children = start((0..contenders).map(command).collect())?;
        let patience = Instant::now();
        while (0..contenders).any(|id| shared.load(READY + id) == 0) {
            if patience.elapsed() > PATIENCE {
                return Err(format!("{peer:?}: not all of {contenders} processes have started").into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        shared.store(START, now());
        let results = finish(children)?;
        let served: Vec<f64> =
            results.iter().map(|result| number(result, "served")).collect::<Result<_>>()?;
        let total: f64 = results.iter().map(|result| number(result, "total")).sum::<Result<f64>>()?;
        let counted = shared.load(COUNTER);
        if counted as f64 != total {
            return Err(format!("{peer:?} lost {} of {total} steps", total - counted as f64).into());
        }
        Ok(Contest {
            pairs_per_s: served.iter().sum::<f64>() / seconds,
            jain: jain(&served),
            never_served: served.iter().filter(|served| **served == 0.0).count(),
        })
    }
}

impl Drivers {
    pub(crate) fn serve(&self, server: Server) -> Result<Served> {
        let mut command = match server {
            Server::Windlass | Server::Echo => Command::new(&self.rust),
            Server::Lockgate | Server::LockgateClient => Command::new(&self.lockgate_http),
        };
        command.arg("serve");
        match server {
            Server::Windlass => _ = command.arg("windlass"),
            Server::Echo => _ = command.arg("echo"),
            Server::Lockgate | Server::LockgateClient => {}
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        Ok(Served { child, address: address.trim().to_owned() })
    }

    /// Clients that each take a lock of their own: pairs a second of all.
    pub(crate) fn server_pairs(
        &self,
        server: Server,
        at: &Served,
        clients: usize,
        seconds: f64,
    ) -> Result<f64> {
        let peer = match server {
            Server::Windlass => "windlass",
            Server::Lockgate => "lockgate",
            Server::Echo => "echo",
            Server::LockgateClient => return rate(&self.by_lockgate("pairs", at, clients, seconds)?),
        };
        rate(&self.by_us(&["server-pairs", peer, &at.address, &clients.to_string(), &seconds.to_string()])?)
    }

    /// Clients that want one lock: hand-overs in seconds.
    pub(crate) fn server_turns(
        &self,
        server: Server,
        at: &Served,
        clients: usize,
        seconds: f64,
    ) -> Result<Vec<f64>> {
        let result = match server {
            Server::LockgateClient => self.by_lockgate("turns", at, clients, seconds)?,
            Server::Echo => self.by_us(&["server-echoes", &at.address, &seconds.to_string()])?,
            _ => self.by_us(&["server-turns", &at.address, &clients.to_string(), &seconds.to_string()])?,
        };
        samples(&[result])
    }

    /// Clients that want one lock for a millisecond each.
    pub(crate) fn server_contest(
        &self,
        server: Server,
        at: &Served,
        clients: usize,
        seconds: f64,
    ) -> Result<Contest> {
        let result = match server {
            Server::LockgateClient => self.by_lockgate("contend", at, clients, seconds)?,
            _ => self.by_us(&["server-contend", &at.address, &clients.to_string(), &seconds.to_string()])?,
        };
        let served = result["served"].as_array().ok_or("no served")?;
        let served: Vec<f64> = served.iter().filter_map(Value::as_f64).collect();
        Ok(Contest {
            pairs_per_s: served.iter().sum::<f64>() / seconds,
            jain: jain(&served),
            never_served: served.iter().filter(|served| **served == 0.0).count(),
        })
    }

    pub(crate) fn renewals(&self, at: &Served, seconds: f64) -> Result<f64> {
        rate(&self.by_us(&["server-renewals", &at.address, &seconds.to_string()])?)
    }

    fn by_us(&self, arguments: &[&str]) -> Result<Value> {
        one(Command::new(&self.rust).args(arguments))
    }

    fn by_lockgate(&self, measure: &str, at: &Served, clients: usize, seconds: f64) -> Result<Value> {
        let url = format!("http://{}", at.address);
        one(Command::new(&self.lockgate_http).args([
            measure,
            &url,
            &clients.to_string(),
            &seconds.to_string(),
        ]))
    }
}

impl Drivers {
    /// Claims of one process that each take a lock of their own in a store.
    pub(crate) fn store_pairs(
        &self,
        peer: StorePeer,
        at: &dyn store::Server,
        claims: usize,
        seconds: f64,
    ) -> Result<StorePairs> {
        let before = at.work()?;
        let result = self.in_store(peer, "pairs", at, &[claims as f64, seconds])?;
        let (after, pairs) = (at.work()?, number(&result, "pairs")?);
        let work = [0, 1].map(|each: usize| (after[each] - before[each]) / pairs);
        Ok(StorePairs { pairs_per_s: rate(&result)?, work })
    }

    /// Claims of one process that want one lock in a store: hand-overs in seconds.
    pub(crate) fn store_turns(
        &self,
        peer: StorePeer,
        at: &dyn store::Server,
        waiters: usize,
        [seconds, hold]: [f64; 2],
    ) -> Result<Vec<f64>> {
        samples(&[self.in_store(peer, "turns", at, &[waiters as f64, seconds, hold])?])
    }

    fn in_store(
        &self,
        peer: StorePeer,
        measure: &str,
        at: &dyn store::Server,
        arguments: &[f64],
    ) -> Result<Value> {
        let mut command = match peer {
            StorePeer::Rust => Command::new(&self.rust),
            StorePeer::Python(_) => Command::new(&self.python),
            StorePeer::Go(_) => Command::new(&self.stores),
        };
        match peer {
            StorePeer::Rust => command.args([format!("store-{measure}"), at.url()]),
            StorePeer::Python(name) => {
                command.arg(self.peer_py.with_file_name("stores.py")).args([measure, name, &at.url()])
            }
            StorePeer::Go(name) => command.args([measure, name, &at.address()]),
        };
        one(command.args(arguments.iter().map(f64::to_string)))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one(command: &mut Command) -> Result<Value> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(finish(vec![command.spawn()?])?.swap_remove(0))
}

fn together(commands: Vec<Command>) -> Result<Vec<Value>> {
    finish(start(commands)?)
}

fn start(commands: Vec<Command>) -> Result<Vec<Child>> {
    Ok(commands.into_iter().map(|mut command| command.spawn()).collect::<std::io::Result<_>>()?)
}

fn finish(children: Vec<Child>) -> Result<Vec<Value>> {
    let outputs = children.into_iter().map(Child::wait_with_output);
    outputs
        .map(|output| {
            let output = output?;
            if !output.status.success() {
                return Err(format!("a measured process ended with {}", output.status).into());
            }
            Ok(serde_json::from_slice(&output.stdout)?)
        })
        .collect()
}

fn number(result: &Value, key: &str) -> Result<f64> {
    result[key].as_f64().ok_or_else(|| format!("no {key} in {result}").into())
}

fn rate(result: &Value) -> Result<f64> {
    number(result, "pairs_per_s")
}

fn samples(results: &[Value]) -> Result<Vec<f64>> {
    let arrays = results.iter().map(|result| result["samples_ns"].as_array().ok_or("no samples_ns"));
    let arrays: Vec<_> = arrays.collect::<std::result::Result<_, _>>()?;
    Ok(arrays.into_iter().flatten().filter_map(Value::as_f64).map(|nanos| nanos / 1e9).collect())
}

/// A directory for one measure, removed after it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique =
            format!("windlass-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        fs::create_dir_all(&path)?;
        Shared::create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}
