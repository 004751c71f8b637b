//! Starting processes and waiting for what they do. No test waits for time to pass: each waits for an event, and
//! [`LIMIT`] is there only so that a test that would wait for ever fails.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A directory of locks of one's own.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.path("locks").display())
    }

    /// The file that is the lock `name`.
    pub(crate) fn lock_file(&self, name: &str) -> PathBuf {
        let hash: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::create_dir_all(self.path("locks")).unwrap();
        self.path("locks").join(hash)
    }

    /// `windlass ARGS`, with the locks here.
    pub(crate) fn windlass<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = windlass(args);
        command.env("WINDLASS_URL", self.url());
        command
    }

    /// `windlass run NAME ARGS`, once it has the lock and its command has said `ready`.
    pub(crate) fn hold(&self, name: &str, options: &[&str], script: &str) -> Running {
        let mut running = self.start_run(name, options, &format!("echo ready; {script}"));
        running.stdout.until("ready");
        running
    }

    pub(crate) fn start_run(&self, name: &str, options: &[&str], script: &str) -> Running {
        let mut command = self.windlass(["run", name]);
        command.args(options).args(["--", "sh", "-c", script]);
        Running::start(command)
    }

    /// A holder that holds until it is told to stop by the end of its stdin.
    pub(crate) fn hold_until_told(&self, name: &str, options: &[&str]) -> Running {
        self.hold(name, options, "cat >/dev/null")
    }

    /// The exit status of `windlass run NAME ARGS`.
    pub(crate) fn run(&self, name: &str, args: &[&str]) -> i32 {
        status(self.windlass(["run", name]).args(args))
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = output(&mut self.windlass(args));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {output:?}"))
    }

    /// The only lock with this name.
    pub(crate) fn status(&self, name: &str) -> Option<serde_json::Value> {
        let all = self.json(&["ls", name, "--json"]);
        all.as_array().unwrap().iter().find(|status| status["name"] == name).cloned()
    }

    /// Waits until somebody waits for the lock.
    pub(crate) fn until_waiting(&self, name: &str, waiters: usize) {
        until(&format!("{waiters} waiters for {name}"), || {
            let status = self.status(name);
            status.is_some_and(|status| status["waiters"].as_array().unwrap().len() == waiters)
        });
    }
}

pub(crate) fn windlass<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(args).env_remove("WINDLASS_URL").env_remove("SHELL").env("RUST_BACKTRACE", "0");
    as_from_a_terminal(&mut command);
    command
}

/// Lets the command hear Ctrl-C also when the tests run in the background, where shells have it ignored.
pub(crate) fn as_from_a_terminal(command: &mut Command) {
    let heed = || {
        for heeded in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
            // SAFETY: no handler is installed that could run in the wrong place.
            unsafe { signal(heeded, SigHandler::SigDfl) }?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(heed) };
}

/// A process, killed when this is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        let stderr: ChildStderr = child.stderr.take().unwrap();
        Self { child, stdout: Lines::of(stdout), stderr: Lines::of(stderr) }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Closes its stdin.
    pub(crate) fn tell(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The exit status as a shell tells it.
    pub(crate) fn wait(&mut self) -> i32 {
        as_shell(self.wait_raw())
    }

    pub(crate) fn wait_raw(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process writes, a line at a time.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (tell, told) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                let _ = tell.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self(told)
    }

    /// The next line; `None` when all who could write have ended.
    pub(crate) fn next(&mut self) -> Option<String> {
        match self.0.recv_timeout(LIMIT) {
            Ok(line) => Some(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("no line within {LIMIT:?}"),
        }
    }

    /// The next line with this text in it.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while let Some(line) = self.next() {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("it ended without saying {text:?}, having said {seen:#?}")
    }

    /// All that is still to come.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// Looks again and again until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn output(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = read(child.stdout.take().unwrap());
    let stderr = read(child.stderr.take().unwrap());
    let status = ended(&mut child);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn read(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

pub(crate) fn status(command: &mut Command) -> i32 {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    as_shell(ended(&mut command.spawn().unwrap()))
}

/// How the process ended; it is killed if it does not.
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{child:?} did not end");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn as_shell(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}
