//! `windlass serve` as a process that tests kill, stop and start again.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::{Pid, Signal};
use windlass::rt::thread;

use crate::{place::Folder, processes::signal};

/// A server's process, its directory or store and its address, which stay when it is killed.
#[derive(Debug)]
pub struct ServerProcess {
    program: PathBuf,
    child: Child,
    keeps: Keeps,
    port: u16,
}

/// Where its locks are when it is not there.
#[derive(Debug)]
enum Keeps {
    Directory(Folder),
    Store(String),
}

impl ServerProcess {
    /// Starts `program serve`, and waits until it serves.
    pub fn start(program: impl AsRef<Path>) -> Self {
        Self::with(program.as_ref(), Keeps::Directory(Folder::new()))
    }

    /// Starts `program serve --store`, and waits until it serves.
    pub fn over(program: impl AsRef<Path>, store: &str) -> Self {
        Self::with(program.as_ref(), Keeps::Store(store.to_owned()))
    }

    fn with(program: &Path, keeps: Keeps) -> Self {
        let (program, port) = (program.to_owned(), port_to_keep());
        let child = spawn(&mut command(&program, &keeps, port));
        Self { program, child, keeps, port }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Of a namespace.
    pub fn url(&self, namespace: &str) -> String {
        format!("http://{}/{namespace}", self.address())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) {
        signal(Pid::from_child(&self.child), Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }

    /// `SIGSTOP`: its connections stay open, and nobody answers.
    pub fn suspend(&self) {
        signal(Pid::from_child(&self.child), Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn go_on(&self) {
        signal(Pid::from_child(&self.child), Signal::CONT);
    }

    /// With the same directory at the same address.
    pub fn start_again(&mut self) {
        self.child = spawn(&mut command(&self.program, &self.keeps, self.port));
    }

    /// The memory that is its own now, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kilobytes * 1024
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(program: &Path, keeps: &Keeps, port: u16) -> Command {
    let mut command = Command::new(program);
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]);
    match keeps {
        Keeps::Directory(folder) => command.arg("--data-dir").arg(folder.path("data")),
        Keeps::Store(url) => command.args(["--store", url]),
    };
    command
}

/// Starts a server, and waits until it serves.
pub fn spawn(command: &mut Command) -> Child {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut before = Vec::new();
    loop {
        let line = said.next().unwrap_or_else(|| panic!("the server does not start, and says {before:#?}"));
        if line.contains("serving locks") {
            break;
        }
        before.push(line);
    }
    // Whatever else it says is read, so that it need not wait for a reader.
    thread("reader", move || said.for_each(drop)).unwrap();
    child
}

/// A port that nobody is given while the server that had it is down. A free one from `:0` would be the source port of
/// any client's next connection; so this one is from below those that the kernel gives out.
pub fn port_to_keep() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let given_out = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u32 = given_out.split_whitespace().next().unwrap().parse().unwrap();
    let below = 1_024..first;
    assert!(below.len() > 1_000, "ports from {first} on are given out, which leaves none to keep");
    loop {
        // Not the same ones as another process of tests beside this one, also if it was started right before.
        let first_one = std::process::id().wrapping_mul(331);
        let nth = first_one.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(below.start + nth % (first - below.start)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
