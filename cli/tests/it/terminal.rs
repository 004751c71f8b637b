//! `windlass run` on a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
};

use nix::{libc, pty::openpty};

use crate::support::{Place, as_from_a_terminal, as_shell, ended, until};

/// A terminal with a program on it.
struct Screen {
    keyboard: File,
    shown: Arc<Mutex<String>>,
    seen: usize,
    child: Child,
}

impl Screen {
    fn start(mut command: Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        as_from_a_terminal(&mut command);
        // SAFETY: both calls are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = command.env("TERM", "xterm").spawn().unwrap();
        drop(command);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut screen, show) = (master.try_clone().unwrap(), shown.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal that nobody is on any more reads as an error.
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                show.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { keyboard: master, shown, seen: 0, child }
    }

    fn shell(place: &Place) -> Self {
        let mut shell = Command::new("bash");
        shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "PROMPT> ").env("WINDLASS_URL", place.url());
        let bin = std::path::Path::new(env!("CARGO_BIN_EXE_windlass")).parent().unwrap();
        shell.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        let mut screen = Self::start(shell);
        screen.until("PROMPT> ");
        screen
    }

    fn enter(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for this text behind what was waited for before; all that is shown up to its end.
    fn until(&mut self, text: &str) -> String {
        let seen = self.seen;
        let mut found = String::new();
        until(&format!("{text:?} on {}", self.keyboard.as_raw_fd()), || {
            let shown = self.shown.lock().unwrap();
            if let Some(at) = shown[seen..].find(text) {
                self.seen = seen + at + text.len();
                found = shown[seen..self.seen].to_owned();
                return true;
            }
            false
        });
        found
    }

    fn wait(&mut self) -> i32 {
        as_shell(ended(&mut self.child))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

#[test]
fn the_line_of_a_wait_keeps_up_and_goes() {
    let place = Place::new();
    let mut first = place.hold_until_told("a", &["--owner", "ann"]);
    let mut second = place.start_run("a", &["--owner", "bob"], "echo ready; cat >/dev/null");
    second.stderr.until("waiting");
    place.until_waiting("a", 1);
    let mut screen = Screen::start(place.windlass(["run", "a", "--", "echo", "done"]));
    screen.until("waiting for \"a\"");
    screen.until("held by ann (exclusive");
    screen.until("place 2");
    first.tell();
    screen.until("place 1");
    screen.until("held by bob (exclusive");
    second.tell();
    screen.until("\r\x1b[Kdone");
    assert_eq!(screen.wait(), 0);
    let shown = screen.shown.lock().unwrap();
    assert_eq!(shown.matches('\n').count(), 1, "it took more than its line: {shown:?}");
}

#[test]
fn ctrl_c_ends_a_wait_at_once() {
    let place = Place::new();
    let _holder = place.hold_until_told("a", &[]);
    let mut screen = Screen::start(place.windlass(["run", "a", "--", "echo", "never"]));
    screen.until("waiting");
    screen.enter(CTRL_C);
    assert_eq!(screen.wait(), 130);
    assert!(!screen.shown.lock().unwrap().contains("never"));
}

#[test]
fn the_command_has_the_terminal() {
    let place = Place::new();
    let mut screen =
        Screen::start(place.windlass(["run", "a", "--", "sh", "-c", "read line; echo got $line"]));
    screen.enter("text\n");
    screen.until("got text");
    assert_eq!(screen.wait(), 0);
}

#[test]
fn ctrl_z_stops_both_and_fg_lets_them_go_on() {
    let place = Place::new();
    let mut screen = Screen::shell(&place);
    screen.enter("windlass run a -- sh -c 'echo started; read line; echo got $line; exit 6'\n");
    screen.until("started\r\n");
    screen.enter(CTRL_Z);
    screen.until("Stopped");
    screen.until("PROMPT> ");
    assert_eq!(place.run("a", &["-n", "true"]), 1, "a stopped command keeps its lock");
    screen.enter("fg\n");
    screen.until("windlass run");
    screen.enter("text\n");
    screen.until("got text");
    screen.until("PROMPT> ");
    screen.enter("echo status $?\n");
    screen.until("status 6");
}

#[test]
fn ctrl_c_ends_a_script_whose_command_it_ends() {
    let place = Place::new();
    let mut screen = Screen::shell(&place);
    screen.enter(
        "sh -c 'while :; do windlass run a -- sh -c \"echo started; exec sleep 1000\"; done'; echo over\n",
    );
    screen.until("started\r\n");
    screen.enter(CTRL_C);
    screen.until("PROMPT> ");
}

#[test]
fn a_command_in_a_pipeline_gets_the_terminal_when_it_asks() {
    let place = Place::new();
    let mut screen = Screen::shell(&place);
    screen.enter(
        "echo x | windlass run a -- sh -c 'echo started; read line </dev/tty; echo got $line' | cat\n",
    );
    screen.until("started\r\n");
    screen.enter("text\n");
    screen.until("got text");
    screen.until("PROMPT> ");
    let pipeline = "windlass run a -- sh -c 'echo started >&2; sleep 1000' | sh -c 'read line </dev/tty; echo then $line'";
    screen.enter(&format!("{pipeline}\n"));
    screen.until("started\r\n");
    screen.enter("more\n");
    screen.until("then more");
    screen.enter(CTRL_C);
    screen.until("PROMPT> ");
}

#[test]
fn the_terminal_is_given_back() {
    let place = Place::new();
    let mut screen = Screen::shell(&place);
    screen.enter("sh -c 'windlass run a -- true; echo started; read line; echo got $line'\n");
    screen.until("started\r\n");
    screen.enter("text\n");
    screen.until("got text");
}

#[test]
fn a_background_job_that_reads_is_stopped_until_fg() {
    let place = Place::new();
    let mut screen = Screen::shell(&place);
    screen.enter("windlass run a -- sh -c 'echo started; read line; echo got $line' &\n");
    screen.until("started\r\n");
    screen.enter("wait -n; jobs; echo looked\n");
    screen.until("looked\r\n");
    screen.enter("fg\n");
    screen.enter("text\n");
    screen.until("got text");
}

#[test]
fn release_asks_and_takes_only_a_yes() {
    let place = Place::new();
    let mut holder = place.hold_until_told("a", &["--owner", "ann"]);
    let mut screen = Screen::start(place.windlass(["release", "a"]));
    screen.until("Take \"a\" from ann (exclusive, token ");
    screen.until("[y/N] ");
    screen.enter("\n");
    assert_eq!(screen.wait(), 1);
    assert!(place.status("a").is_some());
    let mut screen = Screen::start(place.windlass(["release", "a"]));
    screen.until("[y/N] ");
    screen.enter("y\n");
    screen.until("taken from ann");
    assert_eq!(screen.wait(), 0);
    assert_eq!(holder.wait(), 79);
}
