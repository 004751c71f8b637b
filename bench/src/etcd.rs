//! Locks in etcd: starts it, counts what it is asked, and measures Windlass over it.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use windlass::Locker;

use crate::{
    Result,
    clock::now,
    memory::block_on,
    server::{each, nanos, rate_of_each},
};

/// How long etcd may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// One member with its defaults, and data of its own; killed and removed when dropped.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: PathBuf,
}

/// What etcd has done since it began.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// Messages of gRPC, `grpc_server_msg_received_total`: a call has one, a stream one a question.
    pub(crate) requests: f64,
    /// Entries of the raft log, `etcd_server_proposals_committed_total`.
    pub(crate) writes: f64,
}

impl Etcd {
    /// Starts it with its data below this folder, and waits until it serves.
    pub(crate) fn start(place: &Path) -> Result<Self> {
        // Both are taken before either is given back: they must differ.
        let ports = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [address, peers] = [ports[0].local_addr()?, ports[1].local_addr()?];
        drop(ports);
        let folder = place.join(format!("windlass-bench-{}-{}", std::process::id(), address.port()));
        let (client, peer) = (format!("http://{address}"), format!("http://{peers}"));
        let child = Command::new("etcd")
            .args(["--logger", "zap", "--log-level", "error", "--name", "bench", "--data-dir"])
            .arg(&folder)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let etcd = Self { child, address, folder };
        let begun = Instant::now();
        while !etcd.ask("/health").is_ok_and(|health| health.contains("true")) {
            if begun.elapsed() > PATIENCE {
                return Err("etcd does not serve".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(etcd)
    }

    pub(crate) fn work(&self) -> Result<Work> {
        let metrics = self.ask("/metrics")?;
        let sum = |name: &str| {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.reduce(|sum, value| sum + value).ok_or_else(|| format!("etcd does not count {name}"))
        };
        Ok(Work {
            requests: sum("grpc_server_msg_received_total{")?,
            writes: sum("etcd_server_proposals_committed_total ")?,
        })
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// So many claims at once, each of a name of its own, all through one locker.
pub(crate) fn pairs(address: &str, claims: usize, time: Duration) -> Result<Value> {
    let locker = connect(address)?;
    rate_of_each(claims, time, |number| {
        let lock = locker.lock(format!("bench-{number}"));
        async move || Ok(lock.clone().await?.release().await?)
    })
}

/// All want one lock, each through a locker of its own, as of a program of its own: from just before a release until the
/// next one, who had been waiting, knows that it is granted; after a quarter of the time to warm up.
pub(crate) fn turns(address: &str, waiters: usize, time: Duration, hold: Duration) -> Result<Value> {
    let (released, samples) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    let warm = now() + nanos(time / 4);
    let lockers = (0..waiters).map(|_| connect(address)).collect::<Result<Vec<_>>>()?;
    each(waiters, time, |number| {
        let (released, samples) = (released.clone(), samples.clone());
        let lock = lockers[number].lock("turns");
        async move || {
            let asked = now();
            let held = lock.clone().await?;
            if asked.max(warm) < released.get() {
                samples.borrow_mut().push(now() - released.get());
            }
            tokio::time::sleep(hold).await;
            released.set(now());
            Ok(held.release().await?)
        }
    })?;
    Ok(json!({ "samples_ns": samples.take() }))
}

fn connect(address: &str) -> Result<Locker> {
    block_on(async { Ok(windlass::connect(&format!("etcd://{address}/bench")).await?) })
}
