//! The command `windlass` over a store, as shells start it: taking turns, seeing, dying, being stopped and cut off, and what
//! cannot be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "of other processes, in real time")]

mod etcd;
mod kubernetes;
mod redis;

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use windlass_tests::{
    place::Folder,
    processes::{Program, until},
};

const TTL: Duration = Duration::from_secs(2);
/// What a take-over takes beyond the TTL: etcd's own second, and a busy machine. Less than a TTL that nobody has set.
const SLACK: Duration = Duration::from_secs(6);

macro_rules! over_each_store {
    ($($test:ident),* $(,)?) => {
        mod over_etcd {
            $(#[test]
            fn $test() {
                super::$test(&crate::etcd::here());
            })*
        }
        mod over_redis {
            $(#[test]
            fn $test() {
                super::$test(&crate::redis::here());
            })*
        }
        mod over_kubernetes {
            $(#[test]
            fn $test() {
                super::$test(&crate::kubernetes::here());
            })*
        }
    };
}

over_each_store![
    who_holds_and_waits_is_seen_and_freed,
    shells_take_turns,
    a_killed_holder_frees_the_lock_by_its_lease,
    a_stopped_holder_is_told_when_it_goes_on,
    a_waiter_that_is_interrupted_leaves_its_place,
    options_mean_what_they_mean_elsewhere,
];

fn who_holds_and_waits_is_seen_and_freed(here: &Here) {
    let mut holder = here.hold("deploy", &["--owner", "ann", "--meta", "why=test"]);
    let mut watch = here.start(&["watch", "--json"]);
    let turn = ["--", "sh", "-c", "echo my turn; read line"];
    let mut waiter = here.start(&[&["run", "deploy", "--owner", "bob"][..], &turn].concat());
    here.until_waiting("deploy", 1);

    let listed = here.json(&["ls", "dep", "--json"]);
    let holds = &listed[0]["holders"][0];
    assert_eq!((&listed[0]["name"], &holds["owner"]), (&json!("deploy"), &json!("ann")), "{listed}");
    assert_eq!((&holds["mode"], &holds["metadata"]), (&json!("exclusive"), &json!({ "why": "test" })));
    assert_eq!(holds["fencing_token"], holder.token);
    assert_eq!(listed[0]["waiters"][0]["owner"], "bob");
    let (status, table) = here.run(&["ls"]);
    assert_eq!(status, Some(0));
    assert!(table.contains("ann") && table.contains("why=test"), "{table}");
    assert_eq!(here.json(&["ls", "none", "--json"]), json!([]));

    let wrong = (holder.token - 1).to_string();
    assert_eq!(here.status(&["release", "deploy", "--token", &wrong]), Some(1));
    let token = holder.token.to_string();
    let taken = here.json(&["release", "deploy", "--token", &token, "--json"]);
    assert_eq!(taken["taken_from"][0]["owner"], "ann");
    assert_eq!(holder.program.status(), Some(79));
    assert!(here.said(&holder).contains("an operator freed it"), "{}", here.said(&holder));
    waiter.program.expect("my turn");

    let change = || serde_json::from_str::<Value>(&watch.program.rest_of("")).unwrap();
    let mut changed = change();
    assert_eq!(changed["holders"][0]["owner"], "ann");
    while changed["holders"][0]["owner"] == "ann" {
        changed = change();
    }
    assert_eq!(changed["holders"][0]["owner"], "bob");
    waiter.ends_well();
    while changed["holders"][0]["owner"] == "bob" {
        changed = change();
    }
    assert_eq!(changed, json!({ "name": "deploy", "holders": [], "waiters": [] }));
    watch.program.signal(Signal::INT);
    assert_eq!(watch.program.status(), None);
    here.is_empty();
}

/// Steps of a number in a file, each read and written under the lock: those of two holders at once would be lost. Where there
/// is somebody else who locks, one of the shells has it from them.
fn shells_take_turns(here: &Here) {
    const TURNS: usize = 15;
    let path = |name| here.folder.path(name).display().to_string();
    fs::write(path("number"), "0\n").unwrap();
    let step = format!("read n <{0}; echo $((n + 1)) >{0}", path("number"));
    let ours = format!("{step}; echo $WINDLASS_FENCING_TOKEN >>{}", path("tokens"));
    let looped = |command: &str| {
        let turns: Vec<String> = (0..TURNS).map(|n| n.to_string()).collect();
        format!("for turn in {}; do {command} || exit; done; echo done", turns.join(" "))
    };
    let windlass = looped(&format!("{} run counter -- sh -c '{ours}'", program()));
    let mut shells: Vec<Program> = (0..3)
        .map(|_| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &windlass]).env("WINDLASS_URL", &here.url).stderr(Stdio::null());
            Program::spawn(&mut shell)
        })
        .collect();
    if let Some(lock) = &here.foreign {
        let mut foreign = Command::new("sh");
        foreign.args(["-c", &looped("\"$@\""), "sh"]).arg(lock.get_program()).args(lock.get_args());
        foreign.args(["sh", "-c", &step]).stderr(Stdio::null());
        for (name, value) in lock.get_envs() {
            foreign.env(name, value.unwrap_or_default());
        }
        shells.push(Program::spawn(&mut foreign));
    }
    let all = shells.len();
    for shell in &mut shells {
        shell.expect("done");
    }
    assert_eq!(fs::read_to_string(path("number")).unwrap().trim(), (all * TURNS).to_string());
    let tokens = fs::read_to_string(path("tokens")).unwrap();
    let tokens: Vec<u64> = tokens.lines().map(|token| token.parse().unwrap()).collect();
    assert_eq!(tokens.len(), 3 * TURNS);
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
    here.is_empty();
}

fn a_killed_holder_frees_the_lock_by_its_lease(here: &Here) {
    let holder = here.hold("job", &[]);
    let (token, command) = (holder.token, holder.command);
    let killed = Instant::now();
    holder.program.kill();
    let mut next = here.hold("job", &["--timeout", "30s"]);
    let took = killed.elapsed();
    assert!(took < TTL + SLACK, "after {took:?}");
    assert!(next.token > token);
    until("the end of the command", || is_dead(command));
    next.ends_well();
    here.is_empty();
}

fn a_stopped_holder_is_told_when_it_goes_on(here: &Here) {
    let mut holder = here.hold("job", &["--json"]);
    holder.program.signal(Signal::STOP);
    let mut next = here.hold("job", &["--timeout", "30s", "--owner", "next"]);
    assert!(next.token > holder.token);
    holder.program.signal(Signal::CONT);
    assert_eq!(holder.program.status(), Some(79));
    let said = here.said(&holder);
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(told, ["acquired", "lost", "ended"], "{said}");
    assert_eq!((&events[1]["reason"], &events[2]["status"]), (&json!("expired"), &json!(79)), "{said}");
    assert!(is_dead(holder.command), "its command works on");
    let listed = here.json(&["ls", "--json"]);
    assert_eq!(listed[0]["holders"][0]["owner"], "next", "whom nobody has disturbed");
    next.ends_well();
    here.is_empty();
}

fn a_waiter_that_is_interrupted_leaves_its_place(here: &Here) {
    let mut holder = here.hold("job", &[]);
    let alone = (here.keys)();
    let mut waiter = here.start(&["run", "job", "--", "echo", "never"]);
    here.until_waiting("job", 1);
    waiter.program.signal(Signal::INT);
    assert_eq!(waiter.program.status(), None, "as other programs end");
    assert_eq!((here.keys)(), alone);
    holder.ends_well();
    here.is_empty();
}

fn options_mean_what_they_mean_elsewhere(here: &Here) {
    let mut shared = [here.hold("report", &["--shared"]), here.hold("report", &["-s"])];
    assert_eq!(here.status(&["run", "report", "--try", "true"]), Some(1));
    shared.iter_mut().for_each(Run::ends_well);

    let mut permits = [here.hold("builds", &["--limit", "2"]), here.hold("builds", &["--limit", "2"])];
    assert_eq!(here.status(&["run", "builds", "--limit", "2", "-n", "-E", "75", "true"]), Some(75));
    permits[0].ends_well();
    assert_eq!(here.status(&["run", "builds", "--limit", "2", "-n", "true"]), Some(0));
    permits[1].ends_well();

    let (status, said) = here.run(&["run", "job", "--max-hold", "100ms", "sleep", "1000"]);
    assert_eq!(status, Some(124), "{said}");
    assert!(said.contains("--max-hold"), "{said}");
    let waits = ["--random-delay", "50ms", "--hold-at-least", "100ms"];
    let start = Instant::now();
    let run = [&["run", "job", "--try"][..], &waits, &["sh", "-c", "exit 4"]].concat();
    assert_eq!(here.status(&run), Some(4));
    assert!(start.elapsed() >= Duration::from_millis(100));
    here.is_empty();
}

/// A URL, the status of the command that is given it, and what that says.
type Wrong = (String, i32, &'static str);

/// Each ends at once or within the timeout, with the status of its kind, names the endpoint and no secret.
fn is_said(here: &Here, cases: &[Wrong], secrets: &[&str]) {
    let commands: [&[&str]; 5] = [
        &["run", "job", "--try", "--", "echo", "it ran"],
        &["run", "job", "--timeout", "2s", "--", "echo", "it ran"],
        &["ls"],
        &["watch"],
        &["release", "job", "--yes"],
    ];
    for (url, status, says) in cases {
        for command in commands {
            let start = Instant::now();
            let output = here.command(command).env("WINDLASS_URL", url).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(start.elapsed() < TTL + SLACK, "{command:?} after {:?}: {said}", start.elapsed());
            assert_eq!(output.status.code(), Some(*status), "{command:?} {says}: {said}");
            assert_eq!(output.stdout, b"", "{command:?} {says}");
            assert!(said.contains(says), "{command:?}: {said}");
            assert!(*status == 64 || said.contains("127.0.0.1:"), "names no endpoint: {said}");
            for secret in secrets {
                assert!(!said.contains(secret), "{said}");
            }
        }
    }
}

/// The password of the user in the URL, beside it.
fn the_password_is_taken_from_beside_the_url(here: &Here, url: String, password: &str) {
    let mut right = here.command(&["run", "job", "--timeout", "30s", "true"]);
    right.env("WINDLASS_URL", url).env("WINDLASS_PASSWORD", password).stderr(Stdio::null());
    assert_eq!(right.status().unwrap().code(), Some(0));
}

/// A holder whose store ends is told so, and its command ends before another could hold the lock; `end` ends the store.
fn is_ended_when_the_store_is_gone(here: &Here, end: impl FnOnce()) {
    let mut holder = here.hold("job", &["--json"]);
    let killed = Instant::now();
    end();
    assert_eq!(holder.program.status(), Some(79));
    assert!(killed.elapsed() < TTL + SLACK, "after {:?}", killed.elapsed());
    let said = here.said(&holder);
    assert!(said.contains(r#""event":"runs_out""#), "{said}");
    assert!(is_dead(holder.command), "its command works on");
}

/// `windlass`, as a process.
fn program() -> &'static str {
    env!("CARGO_BIN_EXE_windlass-tests-server")
}

/// Whether a process has ended, with nobody there yet who has looked after it.
fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// Locks of a test's own, and a folder for what its commands say.
struct Here {
    url: String,
    /// What the store has for them.
    keys: Box<dyn Fn() -> Vec<String>>,
    /// What runs the command that follows under the lock `counter`, for those who know nothing of us.
    foreign: Option<Command>,
    folder: Folder,
}

/// A command that runs.
struct Run {
    program: Program,
    log: String,
    /// Of one that holds: its fencing token, and the process of what it runs.
    token: u64,
    command: u32,
}

impl Run {
    /// Lets it end what it runs.
    fn ends_well(&mut self) {
        self.program.say("");
        assert_eq!(self.program.status(), Some(0));
    }
}

impl Here {
    fn new(url: String, keys: impl Fn() -> Vec<String> + 'static) -> Self {
        Self { url, keys: Box::new(keys), foreign: None, folder: Folder::new() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env("WINDLASS_URL", &self.url).stdin(Stdio::null());
        command
    }

    /// The exit status, and all that it says.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.command(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    fn status(&self, args: &[&str]) -> Option<i32> {
        self.run(args).0
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.command(args).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"))
    }

    fn start(&self, args: &[&str]) -> Run {
        let log = format!("log-{}", next());
        let mut command = self.command(args);
        command.stderr(File::create(self.folder.path(&log)).unwrap());
        Run { program: Program::spawn(&mut command), log, token: 0, command: 0 }
    }

    /// One that holds the lock until it is told to end.
    fn hold(&self, name: &str, options: &[&str]) -> Run {
        let script = "echo holds $WINDLASS_FENCING_TOKEN $$; read line";
        let args = [&["run", name, "--ttl", "2s"][..], options, &["--", "sh", "-c", script]].concat();
        let mut run = self.start(&args);
        let told = run.program.rest_of("holds ");
        let (token, command) = told.split_once(' ').unwrap();
        (run.token, run.command) = (token.parse().unwrap(), command.parse().unwrap());
        run
    }

    fn said(&self, run: &Run) -> String {
        fs::read_to_string(self.folder.path(&run.log)).unwrap()
    }

    fn until_waiting(&self, name: &str, waiters: usize) {
        until(&format!("{waiters} waiters"), || {
            let listed = self.json(&["ls", name, "--json"]);
            listed[0]["waiters"].as_array().is_some_and(|waiting| waiting.len() == waiters)
        });
    }

    fn is_empty(&self) {
        until("nothing to be left", || (self.keys)().is_empty());
    }
}

fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
