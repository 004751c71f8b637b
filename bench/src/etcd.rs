//! etcd: starts it, and counts what it is asked.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    store::{PATIENCE, Server},
};

/// One member with its defaults, and data of its own; killed and removed when dropped.
pub(crate) struct Etcd {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
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

    fn ask(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Server for Etcd {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn url(&self) -> String {
        format!("etcd://{}", self.address)
    }

    /// Messages of gRPC, of which a call has one and a stream one a question; entries of the raft log.
    fn work(&self) -> Result<[f64; 2]> {
        let metrics = self.ask("/metrics")?;
        let sum = |name: &str| {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.reduce(|sum, value| sum + value).ok_or_else(|| format!("etcd does not count {name}"))
        };
        Ok([sum("grpc_server_msg_received_total{")?, sum("etcd_server_proposals_committed_total ")?])
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        fs::remove_dir_all(&self.folder).ok();
    }
}
