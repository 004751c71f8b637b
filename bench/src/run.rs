//! Starts the processes that are measured, and reads their one line of JSON.

use std::{
    fs,
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
}

/// What many contenders of one lock got.
pub(crate) struct Contest {
    pub(crate) pairs_per_s: f64,
    pub(crate) jain: f64,
    pub(crate) never_served: usize,
}

impl Drivers {
    /// The interpreter and the Go program come from the environment: `make bench` builds both.
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
