//! A server that is killed and started again, under load: no lock is given twice, no holder that lives loses its lock,
//! fencing tokens grow. And one that is stopped cleanly: nobody notices more than a pause.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "programs of several threads, in real time")]

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use windlass::{ConnectOptions, Locker};
use windlass_tests::{
    place::{Folder, PATIENCE, block_on},
    processes::until,
    server_process::{ServerProcess, spawn},
};

/// After a kill it is waited for. A holder that lives has half of it, at the least, to find the next server.
const TTL: Duration = Duration::from_secs(4);
/// Where nobody waits for its end.
const LONG: Duration = Duration::from_secs(10);

/// A server's process of these tests.
fn server() -> ServerProcess {
    ServerProcess::start(env!("CARGO_BIN_EXE_windlass-tests-server"))
}

fn locker(server: &ServerProcess) -> Locker {
    locker_with(server, TTL)
}

fn locker_with(server: &ServerProcess, ttl: Duration) -> Locker {
    block_on(ConnectOptions::new().ttl(ttl).connect(&server.url("team"))).unwrap()
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
    let mut server = server();
    let seen: Arc<[Seen; 2]> = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let long = locker(&server);
    let held: Vec<_> = (0..5).map(|n| block_on(long.lock(format!("long {n}"))).unwrap()).collect();
    let shared: Vec<_> = (0..2).map(|_| block_on(locker(&server).lock("shared").shared()).unwrap()).collect();
    thread::scope(|scope| {
        for client in 0..4 {
            let (locker, seen, over) = (locker(&server), seen.clone(), over.clone());
            let mut random = Random(seed * 1_000 + client);
            scope.spawn(move || {
                let on_panic = EndWith(&over);
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
        let _end = EndWith(&over);
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
struct EndWith<'a>(&'a AtomicBool);

impl Drop for EndWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Side by side, because most of the time is waiting for the grace to end.
#[test]
fn killed_200_times_under_load() {
    thread::scope(|scope| {
        for seed in 1..=20 {
            scope.spawn(move || killed_under_load(seed, 10));
        }
    });
}

#[test]
fn after_a_clean_stop_holders_waiters_and_tokens_are_there_again() {
    let mut server = server();
    let holder = locker_with(&server, LONG);
    let guard = block_on(holder.lock("lock")).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let waiters: Vec<_> = (0..5)
        .map(|n| {
            let (locker, order) = (locker_with(&server, LONG), order.clone());
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
        let other = locker(&server).lock(format!("other {stop}"));
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
    let mut server = server();
    let guard = block_on(locker(&server).lock("lock")).unwrap();
    let token = guard.fencing_token();
    // Nobody is there any more who could renew it.
    std::mem::forget(guard.detach().unwrap());
    server.kill();
    server.start_again();
    let locker = locker(&server);
    let error = block_on(locker.lock("lock").try_acquire()).unwrap_err();
    assert_eq!(error.kind(), windlass::ErrorKind::Unavailable);
    assert!(error.to_string().contains("ended abruptly") && error.retry_after().unwrap() <= TTL, "{error}");
    let again = block_on(locker.lock("lock").timeout(PATIENCE)).unwrap();
    assert!(again.fencing_token() > token);
}

/// Readers may hold beside it of whom the server has not heard since.
#[test]
fn after_a_kill_nothing_is_upgraded_until_the_longest_ttl_is_over() {
    let mut server = server();
    let guard = block_on(locker(&server).lock("lock").upgradable()).unwrap();
    let reader = block_on(locker(&server).lock("lock").shared()).unwrap();
    let reads_until = Instant::now() + TTL - TTL / 10;
    // It is cut off from now on, and does not know it yet.
    std::mem::forget(reader.detach().unwrap());
    server.kill();
    server.start_again();
    // By then this one is known again.
    let looks = locker(&server);
    until("the lock", || block_on(looks.list("lock")).is_ok_and(|all| !all.is_empty()));
    let error = block_on(guard.upgrade(Duration::from_millis(500))).unwrap_err();
    // The latter where the answer, that it cannot be now, takes longer.
    let kinds = [windlass::ErrorKind::Unavailable, windlass::ErrorKind::Timeout];
    assert!(kinds.contains(&error.kind()), "{error}");
    guard.check().unwrap();
    block_on(guard.upgrade(PATIENCE)).unwrap();
    assert!(Instant::now() > reads_until, "a writer beside a reader");
    block_on(guard.release()).unwrap();
}

/// More than fits into one question, both of claims and of what shows that they were granted.
#[test]
fn many_claims_of_one_program_live_on_and_are_shown_to_a_server_that_has_forgotten_them() {
    let mut server = server();
    let locker = locker(&server);
    let guards: Vec<_> = (0..400)
        .map(|n| {
            let lock =
                locker.lock(format!("{n:04} {}", "n".repeat(1_000))).metadata("about", "m".repeat(2_000));
            block_on(lock).unwrap()
        })
        .collect();
    let all_are_held = |for_long: Duration| {
        thread::sleep(for_long);
        guards.iter().for_each(|guard| guard.check().unwrap());
    };
    all_are_held(3 * TTL);
    server.kill();
    server.start_again();
    all_are_held(3 * TTL);
    assert_eq!(block_on(locker.list("")).unwrap().len(), guards.len(), "as the server sees it, too");
    block_on(locker.close()).unwrap();
    assert_eq!(block_on(self::locker(&server).list("")).unwrap(), []);
}

/// As systemd does it: the socket is its own, and each server in turn is given it as descriptor 3.
#[test]
fn a_new_server_on_the_same_socket_closes_the_door_to_nobody() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let folder = Folder::new();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    let start = || {
        let script = format!(
            "exec 3<&{}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve --data-dir \"$1\"",
            socket.as_raw_fd()
        );
        let program = env!("CARGO_BIN_EXE_windlass-tests-server");
        spawn(Command::new("sh").args(["-c", &script, program]).arg(folder.path("data")))
    };
    let connect = || {
        let url = format!("http://{address}/team");
        block_on(ConnectOptions::new().ttl(LONG).connect(&url)).unwrap()
    };
    let mut server = start();
    let guard = block_on(connect().lock("held")).unwrap();
    let over = AtomicBool::new(false);
    let seen: [Seen; 2] = Default::default();
    let knocked = AtomicU64::new(0);
    thread::scope(|scope| {
        let _end = EndWith(&over);
        for client in 0..4 {
            let (over, seen, locker) = (&over, &seen, connect());
            scope.spawn(move || {
                let mut random = Random(client);
                while !over.load(Ordering::SeqCst) {
                    let which = random.below(2) as usize;
                    let guard = block_on(locker.lock(format!("lock {which}"))).unwrap();
                    seen[which].turn(&guard, Duration::from_micros(random.below(1_000)));
                    block_on(guard.release()).unwrap();
                }
            });
        }
        // Whoever comes just now.
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                TcpStream::connect(address).expect("the door is open");
                knocked.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
            }
        });
        for _ in 0..5 {
            let before: u64 = seen.iter().map(|seen| seen.turns.load(Ordering::SeqCst)).sum();
            let start_waiting = Instant::now();
            while seen.iter().map(|seen| seen.turns.load(Ordering::SeqCst)).sum::<u64>() < before + 20 {
                assert!(start_waiting.elapsed() < PATIENCE, "nobody gets on");
                assert!(!over.load(Ordering::SeqCst), "a client has failed");
                thread::sleep(Duration::from_millis(5));
            }
            kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
            assert!(server.wait().unwrap().success());
            server = start();
        }
    });
    guard.check().expect("held all the time");
    assert!(knocked.load(Ordering::SeqCst) > 0);
    server.kill().unwrap();
    server.wait().unwrap();
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
