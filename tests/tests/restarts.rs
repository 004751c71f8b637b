//! A server that is killed and started again, under load: no lock is given twice, no holder that lives loses its lock,
//! fencing tokens grow. And one that is stopped cleanly: nobody notices more than a pause.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "programs of several threads, in real time")]

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use windlass::{ConnectOptions, Locker};
use windlass_tests::place::{Folder, PATIENCE, block_on};

const TTL: Duration = Duration::from_secs(2);

/// A server's process, its directory and its address, which stay when it is killed.
struct Server {
    child: Child,
    folder: Folder,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let port = port_to_keep();
        let folder = Folder::new();
        Self { child: spawn(&folder, port), folder, port }
    }

    fn locker(&self) -> Locker {
        let url = format!("http://127.0.0.1:{}/team", self.port);
        block_on(ConnectOptions::new().ttl(TTL).connect(&url)).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.folder, self.port);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody is given while the server that had it is down. A free one from `:0` would be the source port of
/// any client's next connection; so this one is from below those that the kernel gives out.
fn port_to_keep() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let given_out = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u32 = given_out.split_whitespace().next().unwrap().parse().unwrap();
    let below = 1_024..first;
    assert!(below.len() > 1_000, "ports from {first} on are given out, which leaves none to keep");
    loop {
        // Not the same ones as another run of these tests beside this one.
        let nth = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(below.start + nth % (first - below.start)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn spawn(folder: &Folder, port: u16) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_windlass-tests-server"))
        .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
        .arg(folder.path("data"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
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
    thread::spawn(move || said.for_each(drop));
    child
}

/// What the clients find out about one lock.
#[derive(Default)]
struct Seen {
    inside: AtomicU32,
    last_token: AtomicU64,
    turns: AtomicU64,
}

impl Seen {
    /// One turn of somebody who holds the lock.
    fn turn(&self, guard: &windlass::Guard, work: Duration) {
        let others = self.inside.fetch_add(1, Ordering::SeqCst);
        let before = self.last_token.swap(guard.fencing_token(), Ordering::SeqCst);
        assert_eq!(others, 0, "two hold the lock");
        assert!(before < guard.fencing_token(), "token {} after {before}", guard.fencing_token());
        thread::sleep(work);
        guard.check().expect("a holder that lives keeps its lock");
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.turns.fetch_add(1, Ordering::SeqCst);
    }
}

/// Kills the server again and again while some clients take turns and others hold for all of the time.
fn killed_under_load(seed: u64, kills: u32) {
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let mut server = Server::start();
    let seen: Arc<[Seen; 2]> = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let long = server.locker();
    let held: Vec<_> = (0..5).map(|n| block_on(long.lock(format!("long {n}"))).unwrap()).collect();
    let shared: Vec<_> = (0..2).map(|_| block_on(server.locker().lock("shared").shared()).unwrap()).collect();
    thread::scope(|scope| {
        for client in 0..4 {
            let (locker, seen, over) = (server.locker(), seen.clone(), over.clone());
            let mut random = Random(seed * 1_000 + client);
            scope.spawn(move || {
                let on_panic = EndWith(over.clone());
                while !over.load(Ordering::SeqCst) {
                    let which = random.below(2) as usize;
                    let guard = block_on(locker.lock(format!("lock {which}"))).unwrap();
                    seen[which].turn(&guard, Duration::from_micros(random.below(5_000)));
                    if random.below(4) == 0 {
                        drop(guard);
                    } else {
                        // It may be that nobody can be told until the TTL is over.
                        let _ = block_on(guard.release());
                    }
                }
                std::mem::forget(on_panic);
            });
        }
        let _end = EndWith(over.clone());
        for kill in 0..kills {
            let before: u64 = seen.iter().map(|seen| seen.turns.load(Ordering::SeqCst)).sum();
            // Now and then in the grace of the last one.
            if random.below(4) > 0 {
                let start = Instant::now();
                while seen.iter().map(|seen| seen.turns.load(Ordering::SeqCst)).sum::<u64>() < before + 5 {
                    assert!(start.elapsed() < PATIENCE, "nobody gets on after kill {kill}");
                    assert!(!over.load(Ordering::SeqCst), "a client has failed");
                    thread::sleep(Duration::from_millis(5));
                }
            }
            thread::sleep(Duration::from_micros(random.below(30_000)));
            server.kill();
            thread::sleep(Duration::from_micros(random.below(100_000)));
            server.start_again();
        }
    });
    for guard in held.iter().chain(&shared) {
        guard.check().expect("held all the time");
    }
}

/// Ends the others, also when it ends by a panic.
struct EndWith(Arc<AtomicBool>);

impl Drop for EndWith {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Side by side, because most of the time is waiting for the grace to end.
#[test]
fn killed_200_times_under_load() {
    thread::scope(|scope| {
        for seed in 1..=10 {
            scope.spawn(move || killed_under_load(seed, 20));
        }
    });
}

#[test]
fn after_a_clean_stop_holders_waiters_and_tokens_are_there_again() {
    let mut server = Server::start();
    let holder = server.locker();
    let guard = block_on(holder.lock("lock")).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let waiters: Vec<_> = (0..5)
        .map(|n| {
            let (locker, order) = (server.locker(), order.clone());
            let waiting = thread::spawn(move || {
                let guard = block_on(locker.lock("lock")).unwrap();
                order.lock().unwrap().push((n, guard.fencing_token()));
                block_on(guard.release()).unwrap();
            });
            let start = Instant::now();
            while block_on(holder.list("lock")).unwrap()[0].waiters.len() <= n {
                assert!(start.elapsed() < PATIENCE, "waiter {n} does not come");
                thread::sleep(Duration::from_millis(5));
            }
            waiting
        })
        .collect();
    for stop in 0..3 {
        server.stop();
        server.start_again();
        let status = &block_on(holder.list("lock")).unwrap()[0];
        assert_eq!((status.holders.len(), status.waiters.len()), (1, 5));
        assert_eq!(status.holders[0].fencing_token, guard.fencing_token());
        guard.check().unwrap();
        // Nobody has to wait for a grace.
        let other = server.locker().lock(format!("other {stop}"));
        assert!(block_on(other.try_acquire()).unwrap().is_some());
    }
    let token = guard.fencing_token();
    block_on(guard.release()).unwrap();
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    let order = order.lock().unwrap();
    let who: Vec<usize> = order.iter().map(|(n, _)| *n).collect();
    assert_eq!(who, [0, 1, 2, 3, 4], "first come, first served");
    assert!(order.is_sorted_by(|a, b| a.1 < b.1) && token < order[0].1, "{token} {order:?}");
}

/// A holder that comes too late, or cannot prove what it held, has lost its lock.
#[test]
fn after_a_kill_nothing_new_is_granted_until_the_longest_ttl_is_over() {
    let mut server = Server::start();
    let guard = block_on(server.locker().lock("lock")).unwrap();
    let token = guard.fencing_token();
    // Nobody is there any more who could renew it.
    std::mem::forget(guard.detach().unwrap());
    server.kill();
    server.start_again();
    let locker = server.locker();
    let error = block_on(locker.lock("lock").try_acquire()).unwrap_err();
    assert_eq!(error.kind(), windlass::ErrorKind::Unavailable);
    assert!(error.to_string().contains("ended abruptly") && error.retry_after().unwrap() <= TTL, "{error}");
    let again = block_on(locker.lock("lock").timeout(PATIENCE)).unwrap();
    assert!(again.fencing_token() > token);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
