//! Other programs that the tests start: each answers lines with lines, and ends with the test.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use windlass::rt::thread;

use crate::place::{Folder, PATIENCE};

/// Builds one of the Go programs in `peers`; what was built before is in Go's own cache. Go is needed: without it this
/// fails, for an untested peer is none.
pub fn go_peer(name: &str, into: impl AsRef<Path>) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name);
    let binary = into.as_ref().join(format!("{name}-peer"));
    eprintln!("building {} with Go; the first time it fetches what that needs", binary.display());
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&binary)
        .arg(".")
        .current_dir(&folder)
        .stdin(Stdio::null())
        .status();
    let built = built.unwrap_or_else(|error| panic!("these tests need Go (apt-get install golang): {error}"));
    assert!(built.success(), "go build failed");
    binary
}

/// Looks again and again until it is so; for what nobody tells.
#[allow(clippy::disallowed_methods, reason = "of other processes, in real time")]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal. After `SIGSTOP` nothing of the process runs any more when this returns: each of its threads stops only when it
/// is scheduled next, on a busy machine tens of milliseconds later, and a server answers meanwhile.
pub fn signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
    if signal == Signal::STOP {
        let threads = PathBuf::from(format!("/proc/{}/task", pid.as_raw_nonzero()));
        until("the threads to have stopped", || {
            fs::read_dir(&threads).unwrap().all(|thread| is_stopped(&thread.unwrap().path().join("stat")))
        });
    }
}

/// `pid (name) state ...`, as proc(5) has it; there is nothing to read of a thread that has ended meanwhile.
fn is_stopped(stat: &Path) -> bool {
    fs::read_to_string(stat).is_ok_and(|stat| stat.contains(") T "))
}

/// A program that is driven by lines; killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Lines that came while another one was waited for.
    early: Mutex<VecDeque<String>>,
}

impl Program {
    /// Starts it, and waits until it says `ready`.
    pub fn start(command: &mut Command) -> Self {
        let this = Self::spawn(command);
        this.expect("ready");
        this
    }

    /// Starts one that has something else to say.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (tell, lines) = channel();
        let read = move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if tell.send(line).is_err() {
                    return;
                }
            }
        };
        thread("reader", read).unwrap();
        Self { child, input, lines, early: Mutex::default() }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a line.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Waits for this line; others may come before or after it.
    pub fn expect(&self, wanted: &str) {
        assert!(self.wait_for(PATIENCE, |line| line == wanted).is_some(), "waited in vain for {wanted:?}");
    }

    /// The rest of the next line that begins so.
    pub fn rest_of(&self, beginning: &str) -> String {
        let line = self.wait_for(PATIENCE, |line| line.starts_with(beginning));
        line.unwrap_or_else(|| panic!("waited in vain for {beginning:?}"))[beginning.len()..].to_owned()
    }

    /// Whether the line does not come for a while. It may only be early, never late: this shows a fault, not its absence.
    pub fn is_silent(&self, unwanted: &str, millis: u64) -> bool {
        self.wait_for(Duration::from_millis(millis), |line| line == unwanted).is_none()
    }

    /// ... no line that begins so.
    pub fn is_silent_of(&self, beginning: &str, millis: u64) -> bool {
        self.wait_for(Duration::from_millis(millis), |line| line.starts_with(beginning)).is_none()
    }

    /// Sends a line and waits for the answer.
    pub fn ask(&mut self, line: &str, answer: &str) {
        self.say(line);
        self.expect(answer);
    }

    fn wait_for(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let mut early = self.early.lock().unwrap();
        if let Some(at) = early.iter().position(|line| wanted(line)) {
            return early.remove(at);
        }
        loop {
            match self.lines.recv_timeout(patience) {
                Ok(line) if wanted(&line) => return Some(line),
                Ok(line) => {
                    assert!(!line.starts_with("error"), "{line}");
                    early.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the program has ended; it had said {early:?}"),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        self::signal(self.pid(), signal);
    }

    /// Waits until it has ended by itself; its exit status, `None` if it was a signal that ended it.
    pub fn status(&mut self) -> Option<i32> {
        let mut ended = None;
        until("the end of a program", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.and_then(|status| status.code())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// A server's process, below a shell that waits for the end of this process to end it, too.
#[derive(Debug)]
pub struct Service {
    shell: Child,
    pid: Pid,
    stopped: bool,
}

/// A line on the standard input is the end of the server only; the end of that input is the end of everything.
const SHELL: &str = r#"folder=$1 log=$2; shift 2
"$@" </dev/null >>"$log" 2>&1 & pid=$!; echo $pid
read -r word; kill -9 $pid; wait; [ "$word" ] || rm -rf "$folder""#;

impl Service {
    /// Starts it; what it says goes to a log, and the folder ends with it.
    pub fn start(command: &Command, log: &Path, folder: &Folder) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", SHELL, "sh"]).arg(folder.path("")).arg(log);
        shell.arg(command.get_program()).args(command.get_args());
        let mut shell =
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        Self { shell, pid, stopped: false }
    }

    pub fn signal(&mut self, signal: Signal) {
        self::signal(self.pid, signal);
        self.stopped = signal == Signal::STOP;
    }

    /// Whether it was sent `SIGSTOP`, and does not go on yet.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// `kill -9`.
    pub fn end_and_keep_its_data(mut self) {
        writeln!(self.shell.stdin.as_ref().unwrap(), "keep").unwrap();
        self.shell.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
