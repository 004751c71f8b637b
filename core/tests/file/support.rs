//! What the tests of locks in files have in common: a directory, a backend with shorthands, and processes of their own.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    future::Future,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use windlass::{
    ClaimId, Error, ErrorKind, Mode, Owner, Result, Waiting,
    ask::{Ask, Claim, Entry, Grant},
    backend::{Backend, FileBackend, Naming},
    rt::Native,
};

/// Nothing here takes long: who waits for more than this waits for ever.
pub(crate) const EVER: Duration = Duration::from_secs(20);

/// A directory of its own, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The file of the lock `name`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        use sha2::Digest;
        let hash = sha2::Sha256::digest(name);
        self.0.join(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn scratch() -> Scratch {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("windlass-test-{}-{next}", std::process::id()));
    fs::create_dir(&path).unwrap();
    Scratch(path)
}

pub(crate) fn ask(name: &str, id: u128, mode: Mode, entry: Entry) -> Ask {
    Ask {
        name: name.parse().unwrap(),
        claim_id: ClaimId::from_u128(id),
        mode,
        entry,
        ttl: Duration::from_secs(10),
        owner: Arc::new(Owner { owner: format!("tester-{id}"), metadata: BTreeMap::new() }),
        keep: Duration::ZERO,
        only_here: false,
    }
}

pub(crate) fn exclusive(name: &str, id: u128) -> Ask {
    ask(name, id, Mode::Exclusive, Entry::Queue)
}

pub(crate) fn shared(name: &str, id: u128) -> Ask {
    ask(name, id, Mode::Shared, Entry::Queue)
}

pub(crate) fn permit(name: &str, id: u128, limit: u32) -> Ask {
    ask(name, id, Mode::Permit(limit.try_into().unwrap()), Entry::Queue)
}

pub(crate) fn claim(id: u128, name: &str) -> Claim {
    Claim { name: name.parse().unwrap(), id: ClaimId::from_u128(id) }
}

/// A backend with the shorthands that tests want.
#[derive(Clone)]
pub(crate) struct Party(pub(crate) Arc<FileBackend>);

impl Party {
    pub(crate) fn open(dir: &Path) -> Self {
        Self(Arc::new(FileBackend::open(dir, Naming::Sha256, Arc::new(Native)).unwrap()))
    }

    pub(crate) async fn take(&self, ask: &Ask) -> Grant {
        within(self.0.acquire(ask, &|_| {})).await.unwrap().unwrap()
    }

    pub(crate) async fn try_take(&self, ask: &Ask) -> Option<Grant> {
        let ask = Ask { entry: Entry::Try, ..ask.clone() };
        within(self.0.acquire(&ask, &|_| {})).await.unwrap()
    }

    pub(crate) async fn error(&self, ask: &Ask) -> Error {
        within(self.0.acquire(ask, &|_| {})).await.unwrap_err()
    }

    /// Stands in line when this returns.
    pub(crate) fn start(&self, ask: &Ask) -> JoinHandle<Grant> {
        let (this, ask) = (self.0.clone(), ask.clone());
        let mut waiting = Box::pin(async move { this.acquire(&ask, &|_| {}).await.unwrap().unwrap() });
        let first = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        tokio::spawn(async move {
            match first {
                Poll::Ready(grant) => grant,
                Poll::Pending => within(waiting).await,
            }
        })
    }

    /// Asks, and gives up while it waits.
    pub(crate) async fn give_up(&self, ask: &Ask) {
        let mut waiting = self.0.acquire(ask, &|_| {});
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(waiting);
        self.0.release(&[Claim { name: ask.name.clone(), id: ask.claim_id }]).await.unwrap();
    }

    /// What one is told who waits; then it gives up.
    pub(crate) async fn told(&self, ask: &Ask) -> Waiting {
        let (tell, told) = channel();
        let tell = |waiting| tell.send(waiting).unwrap();
        let mut acquire = self.0.acquire(ask, &tell);
        let heard = std::future::poll_fn(|context| {
            assert!(acquire.as_mut().poll(context).is_pending());
            told.try_recv().map_or(Poll::Pending, Poll::Ready)
        });
        let waiting = within(heard).await;
        drop(acquire);
        self.0.release(&[ask.claim()]).await.unwrap();
        waiting
    }

    pub(crate) async fn release(&self, id: u128, name: &str) {
        self.try_release(id, name).await.unwrap();
    }

    pub(crate) async fn try_release(&self, id: u128, name: &str) -> Result<()> {
        within(self.0.release(&[claim(id, name)])).await.map(drop)
    }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(EVER, future).await.expect("waits for ever")
}

/// Looks until it is so. For what nobody tells; what somebody tells is waited for.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < EVER, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// How many waits of this process the kernel has for files of the directory, and how many threads there are.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Whether a process waits in the kernel for a lock on the file.
pub(crate) fn is_waited_for(file: &Path, pid: u32) -> bool {
    waits(file).iter().any(|line| line.contains(&format!(" {pid} ")))
}

/// What the kernel says of those who wait for a lock on the file.
pub(crate) fn waits(file: &Path) -> Vec<String> {
    let Ok(found) = fs::metadata(file) else { return Vec::new() };
    let inode = format!(":{} ", found.ino());
    // In one piece: of small ones the kernel loses lines.
    let mut text = vec![0; 1 << 20];
    let read = File::open("/proc/locks").unwrap().read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..read]);
    text.lines().filter(|line| line.contains("->") && line.contains(&inode)).map(str::to_owned).collect()
}

/// The test binary once more, as a process that is told what to do.
pub(crate) struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    /// Answers that came before the one that was waited for.
    early: VecDeque<String>,
}

const ROLE: &str = "WINDLASS_TEST_PROCESS";

impl Process {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_as(dir, Command::new(std::env::current_exe().unwrap()))
    }

    /// Where `command` runs the test binary in circumstances of its own.
    pub(crate) fn start_as(dir: &Path, mut command: Command) -> Self {
        let mut child = command
            .args(["--exact", "a_process_of_its_own", "--nocapture", "--test-threads=1"])
            .env(ROLE, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, answers) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(answer) = line.split_once("> ").map(|line| line.1) {
                    let _ = tell.send(answer.to_owned());
                }
            }
        });
        let orders = child.stdin.take();
        let mut this = Self { child, orders, answers, early: VecDeque::new() };
        assert_eq!(this.next(), "ready");
        this
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
    }

    #[track_caller]
    pub(crate) fn next(&mut self) -> String {
        self.early.pop_front().unwrap_or_else(|| self.receive())
    }

    #[track_caller]
    fn receive(&self) -> String {
        self.answers
            .recv_timeout(EVER)
            .unwrap_or_else(|_| panic!("the process says nothing; its threads: {}", self.threads()))
    }

    /// Where its threads are, for those who look into a failure.
    fn threads(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten();
        let about = |task: fs::DirEntry| {
            let read =
                |file| fs::read_to_string(task.path().join(file)).unwrap_or_default().trim().to_owned();
            format!("\n  {} in system call {}", read("comm"), read("syscall"))
        };
        tasks.filter_map(|task| task.ok().map(about)).collect()
    }

    /// Tells it, and gives its answer.
    #[track_caller]
    pub(crate) fn say(&mut self, order: &str) -> String {
        self.tell(order);
        self.next()
    }

    /// Tells it to give a lock back. What it says of other matters meanwhile is kept.
    #[track_caller]
    pub(crate) fn release(&mut self, name: &str, id: u32) {
        self.tell(&format!("release {name} {id}"));
        loop {
            let answer = self.receive();
            if answer == format!("released {id}") {
                return;
            }
            self.early.push_back(answer);
        }
    }

    /// Tells it to take a lock, which it must get. The fencing token.
    #[track_caller]
    pub(crate) fn take(&mut self, order: &str) -> u64 {
        let answer = self.say(order);
        let token = answer.strip_prefix("granted ").unwrap_or_else(|| panic!("{order}: {answer}"));
        token.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    pub(crate) fn stop(&self) {
        self.signal("-STOP");
        until("all its threads have stopped", || {
            fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().all(|task| {
                let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
                status.lines().any(|line| line.starts_with("State:\tT"))
            })
        });
    }

    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the test binary does when it is a [`Process`].
pub(crate) fn obey_orders() {
    let Some(dir) = std::env::var_os(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _context = runtime.enter();
    let backend = FileBackend::open(Path::new(&dir), Naming::Sha256, Arc::new(Native)).unwrap();
    let party = Party(Arc::new(backend));
    println!("\n> ready");
    for order in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["release", name, id] => {
                runtime.block_on(party.release(id.parse().unwrap(), name));
                println!("> released {id}");
            }
            ["hear"] => {
                let party = party.clone();
                runtime.spawn(async move {
                    loop {
                        for news in party.0.hear().await.unwrap() {
                            println!("> {:?} {}", news.what, news.claim.id.reveal());
                        }
                    }
                });
            }
            ["fork"] => println!("> {}", fork_and_linger(&party)),
            ["turns", name, millis] => println!("> {}", take_turns(&runtime, &party, name, millis)),
            ["read", name, millis] => {
                let (party, name, millis) = (party.clone(), name.to_owned(), millis.parse().unwrap());
                thread::spawn(move || read_on_and_on(&party, &name, Duration::from_millis(millis)));
            }
            [entry, name, id, mode] => {
                let entry = match entry {
                    "take" => Entry::Queue,
                    "steal" => Entry::Steal,
                    _ => Entry::Try,
                };
                let mode = match mode {
                    "exclusive" => Mode::Exclusive,
                    "shared" => Mode::Shared,
                    limit => Mode::Permit(limit.parse().unwrap()),
                };
                let (party, ask) = (party.clone(), ask(name, id.parse().unwrap(), mode, entry));
                let id = id.to_owned();
                let acquire = async move {
                    let waiting = || println!("> waiting {id}");
                    match party.0.acquire(&ask, &|_| waiting()).await {
                        Ok(Some(grant)) => println!("> granted {id} {}", grant.fencing_token),
                        Ok(None) => println!("> refused {id}"),
                        Err(error) => println!("> error {:?} {error:#}", error.kind()),
                    }
                };
                runtime.spawn(acquire);
            }
            _ => println!("> what? {order}"),
        }
    }
}

/// Takes the lock and gives it back for some time; how often.
fn take_turns(runtime: &tokio::runtime::Runtime, party: &Party, name: &str, millis: &str) -> usize {
    let (start, time) = (Instant::now(), Duration::from_millis(millis.parse().unwrap()));
    let mut turns = 0;
    while start.elapsed() < time {
        runtime.block_on(async {
            party.take(&exclusive(name, 1)).await;
            turns += 1;
            party.release(1, name).await;
        });
    }
    turns
}

/// Reads for some time, holding the lock most of it.
fn read_on_and_on(party: &Party, name: &str, time: Duration) {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        while start.elapsed() < time {
            party.take(&shared(name, 1)).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            party.release(1, name).await;
        }
    });
}

/// Forks; what the child found out about the backend, while it lives on.
fn fork_and_linger(party: &Party) -> String {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: the child only asks the backend, writes to a pipe, sleeps and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let closed = |error: Option<Error>| error.is_some_and(|error| error.kind() == ErrorKind::Closed);
        let release = party.0.release(&[claim(1, "a")]).now_or_never();
        let acquire = party.0.acquire(&exclusive("b", 2), &|_| {}).now_or_never();
        let held = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
            .any(|path| path.to_string_lossy().contains("windlass-test"));
        let same_again =
            release.is_some_and(|it| closed(it.err())) && acquire.is_some_and(|it| closed(it.err()));
        let anew =
            FileBackend::open(Path::new(&std::env::var_os(ROLE).unwrap()), Naming::Sha256, Arc::new(Native))
                .unwrap();
        let own = anew.acquire(&exclusive("c", 3), &|_| {}).now_or_never();
        let own = own.is_some_and(|it| it.is_ok_and(|it| it.is_some()));
        let taken = Ask { entry: Entry::Try, ..exclusive("a", 4) };
        let parents =
            anew.acquire(&taken, &|_| {}).now_or_never().is_some_and(|it| it.is_ok_and(|it| it.is_none()));
        drop(anew);
        let _ = writeln!(writer, "closed={same_again} descriptors={held} own={own} parents={parents}");
        thread::sleep(EVER * 2);
        // SAFETY: ends the child without running the test binary's ends.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut answer = String::new();
    BufReader::new(&mut reader).read_line(&mut answer).unwrap();
    format!("{} child={child}", answer.trim())
}
