//! Redis: starts it, and counts what it is asked.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    store::{PATIENCE, Server},
};

/// One server that writes nothing to its disk; killed and removed when dropped.
pub(crate) struct Redis {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Redis {
    /// Starts it with its folder below this one, and waits until it serves.
    pub(crate) fn start(place: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder = place.join(format!("windlass-bench-{}-{}", std::process::id(), address.port()));
        fs::create_dir_all(&folder)?;
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--dir"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let redis = Self { child, address, folder };
        let begun = Instant::now();
        while redis.work().is_err() {
            if begun.elapsed() > PATIENCE {
                return Err("Redis does not serve".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(redis)
    }
}

impl Server for Redis {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// How often it has read from a connection, where what came together counts once; commands, also those within scripts.
    fn work(&self) -> Result<[f64; 2]> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(b"INFO stats\r\n")?;
        // It answers what was asked before, and hangs up.
        stream.shutdown(Shutdown::Write)?;
        let mut stats = String::new();
        stream.read_to_string(&mut stats)?;
        let of = |name: &str| {
            let value = stats.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            value.ok_or_else(|| format!("Redis does not count {name}"))
        };
        Ok([of("total_reads_processed:")?, of("total_commands_processed:")?])
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        fs::remove_dir_all(&self.folder).ok();
    }
}
