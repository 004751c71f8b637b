//! Several processes, and what becomes of their locks when they die or stop.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Mode, backend::Backend};

use crate::{
    hold_by_flock,
    support::{
        Party, Process, claim, exclusive, is_waited_for, permit, scratch, shared, until, waits, within,
    },
};

#[test]
fn a_lock_passes_from_process_to_process() {
    let dir = scratch();
    let (mut a, mut b) = (Process::start(dir.path()), Process::start(dir.path()));
    let first = a.take("take x 1 exclusive");
    assert_eq!(b.say("try x 1 exclusive"), "refused 1");
    assert_eq!(b.say("try x 1 shared"), "refused 1");
    assert_eq!(b.say("take x 1 exclusive"), "waiting 1");
    a.release("x", 1);
    let second: u64 = b.next().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(second > first);
}

#[test]
fn a_waiting_writer_stops_readers_of_all_processes() {
    let dir = scratch();
    let (mut a, mut b, mut c) =
        (Process::start(dir.path()), Process::start(dir.path()), Process::start(dir.path()));
    a.take("take x 1 shared");
    b.take("take x 1 shared");
    assert_eq!(b.say("take x 2 exclusive"), "waiting 2");
    assert_eq!(c.say("try x 1 shared"), "refused 1");
    assert_eq!(a.say("try x 2 shared"), "refused 2");
    assert_eq!(c.say("take x 2 shared"), "waiting 2");
    a.release("x", 1);
    b.release("x", 1);
    assert!(b.next().starts_with("granted 2"));
    b.release("x", 2);
    assert!(c.next().starts_with("granted 2"));
}

#[test]
fn a_killed_holder_frees_the_lock_at_once() {
    let dir = scratch();
    let (mut a, mut b) = (Process::start(dir.path()), Process::start(dir.path()));
    a.take("take x 1 exclusive");
    assert_eq!(b.say("take x 1 exclusive"), "waiting 1");
    until("b waits in the kernel", || is_waited_for(&dir.file("x"), b.pid()));
    let start = Instant::now();
    a.kill();
    assert!(b.next().starts_with("granted 1"));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_killed_waiter_at_the_gate_blocks_nobody() {
    let dir = scratch();
    let mut holder = Process::start(dir.path());
    let (mut dies, mut next, mut tries) =
        (Process::start(dir.path()), Process::start(dir.path()), Process::start(dir.path()));
    holder.take("take x 1 shared");
    dies.say("take x 1 exclusive");
    until("it waits in the kernel", || is_waited_for(&dir.file("x"), dies.pid()));
    assert_eq!(next.say("take x 1 shared"), "waiting 1");
    assert_eq!(tries.say("try x 1 shared"), "refused 1");
    dies.kill();
    assert!(next.next().starts_with("granted 1"));
    // And where nobody stands behind it, who comes finds its flag, and nobody who raised it.
    let mut dies = Process::start(dir.path());
    dies.say("take x 1 exclusive");
    until("it waits in the kernel", || is_waited_for(&dir.file("x"), dies.pid()));
    dies.kill();
    assert!(fs::read_to_string(dir.file("x")).unwrap().starts_with("{\"waiting\":1"));
    tries.take("try x 1 shared");
    assert!(fs::read_to_string(dir.file("x")).unwrap().starts_with("{\"waiting\":0"));
}

#[tokio::test]
async fn a_stopped_waiter_keeps_its_place_and_nobody_out() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let mut all: Vec<Process> = (0..4).map(|_| Process::start(dir.path())).collect();
    let [holder, stops, behind, last] = &mut all[..] else { unreachable!() };
    holder.take("take x 1 exclusive");
    stops.say("take x 2 exclusive");
    until("it waits in the kernel", || is_waited_for(&dir.file("x"), stops.pid()));
    behind.say("take x 3 exclusive");
    stops.stop();
    last.say("take x 4 exclusive");
    holder.release("x", 1);
    // In order, the one that waits for the stopped one already and the one that came later.
    assert!(behind.next().starts_with("granted 3"));
    behind.release("x", 3);
    assert!(last.next().starts_with("granted 4"));
    last.release("x", 4);
    // Now the lock is free. It is seen all the same, and anybody may have it.
    let found = party.0.inspect("").await.unwrap();
    let waiters: Vec<&str> = found[0].waiters.iter().map(|waiter| waiter.owner.owner.as_str()).collect();
    assert_eq!((found.len(), found[0].holders.len(), waiters), (1, 0, vec!["tester-2"]));
    assert_eq!(found[0].waiters[0].owner.metadata["state"], "stopped");
    holder.take("try x 5 exclusive");
    // Once it goes on it is the first again.
    stops.go_on();
    until("it waits in the kernel", || is_waited_for(&dir.file("x"), stops.pid()));
    behind.say("take x 6 exclusive");
    holder.release("x", 5);
    assert!(stops.next().starts_with("granted 2"));
    stops.release("x", 2);
    assert!(behind.next().starts_with("granted 6"));
}

#[tokio::test]
async fn a_thread_at_the_gate_ends_with_the_claim_that_it_waits_for() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let (mut holder, mut first) = (Process::start(dir.path()), Process::start(dir.path()));
    holder.take("take x 1 exclusive");
    first.say("take x 2 exclusive");
    let queue = dir.path().join(".windlass").join(dir.file("x").file_name().unwrap()).with_extension("queue");
    let behind = party.start(&exclusive("x", 3));
    until("it waits at the gate", || waits(&queue).len() == 1);
    behind.abort();
    party.release(3, "x").await;
    until("nobody does", || waits(&queue).is_empty());
    holder.release("x", 1);
    assert!(first.next().starts_with("granted 2"));
}

#[tokio::test]
async fn who_waits_is_told_who_holds_the_lock_now() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let (mut a, mut b) = (Process::start(dir.path()), Process::start(dir.path()));
    let told = async |ask| {
        let told = party.told(&ask).await;
        let holders = told.holders.into_iter().map(|holder| (holder.owner.owner, holder.mode));
        holders.collect::<Vec<(String, Mode)>>()
    };
    a.take("take x 1 exclusive");
    assert_eq!(told(exclusive("x", 9)).await, [("tester-1".to_owned(), Mode::Exclusive)]);
    // It lives on, and is written down as the last exclusive one.
    a.release("x", 1);
    b.take("take x 2 shared");
    let holders = told(exclusive("x", 9)).await;
    assert_eq!((holders.len(), holders[0].1), (1, Mode::Shared));
    assert!(holders[0].0.ends_with(&format!(":{}", b.pid())), "{holders:?}");
    b.release("x", 2);
    let theirs = hold_by_flock(&dir.file("x"), "-x");
    let holders = told(exclusive("x", 9)).await;
    assert!(holders[0].0.ends_with(&format!(":{}", theirs.id())), "{holders:?}");
    end(theirs);
    a.take("take x 3 2");
    b.take("take x 4 2");
    let holders = told(permit("x", 9, 2)).await;
    assert_eq!(holders.iter().map(|holder| holder.1).collect::<Vec<_>>(), [permit_mode(2), permit_mode(2)]);
    assert!(holders.iter().any(|holder| holder.0 == "tester-4"), "the last one that was written down");
}

fn permit_mode(limit: u32) -> Mode {
    Mode::Permit(limit.try_into().unwrap())
}

fn end(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_lock_that_was_never_ours_is_seen_by_its_name() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let theirs = hold_by_flock(&dir.file("foreign"), "-x");
    let found = party.0.inspect("foreign").await.unwrap();
    assert_eq!((found.len(), found[0].name.as_str()), (1, "foreign"));
    assert!(found[0].holders[0].owner.owner.ends_with(&format!(":{}", theirs.id())), "{found:?}");
    for prefix in ["", "for"] {
        assert!(party.0.inspect(prefix).await.unwrap().is_empty(), "nobody knows its name");
    }
    end(theirs);
    assert!(party.0.inspect("foreign").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lock_whose_file_is_closed_to_us_is_not_passed_over_in_silence() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let mut holder = Process::start(dir.path());
    holder.take("take x 1 exclusive");
    fs::set_permissions(dir.file("x"), fs::Permissions::from_mode(0o000)).unwrap();
    let _user = NotRoot::become_one();
    let error = party.0.inspect("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains(dir.file("x").to_str().unwrap()), "{error}");
    // By its name it is seen, and others are no matter of it.
    let found = party.0.inspect("x").await.unwrap();
    assert!(found[0].holders[0].owner.owner.ends_with(&format!(":{}", holder.pid())), "{found:?}");
    assert!(party.0.inspect("y").await.unwrap().is_empty());
}

/// This thread, as a user to whom files can be closed.
struct NotRoot;

impl NotRoot {
    fn become_one() -> Self {
        Self::switch(65_534);
        Self
    }

    fn switch(user: libc::uid_t) {
        // SAFETY: the system call itself is of this thread alone, and touches no memory. Other users may not, and need not.
        unsafe { libc::syscall(libc::SYS_setresuid, libc::uid_t::MAX, user, libc::uid_t::MAX) };
    }
}

impl Drop for NotRoot {
    fn drop(&mut self) {
        // SAFETY: tells a number.
        Self::switch(unsafe { libc::getuid() });
    }
}

#[test]
fn a_child_of_fork_holds_nothing_and_frees_nothing() {
    let dir = scratch();
    let (mut parent, mut other) = (Process::start(dir.path()), Process::start(dir.path()));
    parent.take("take a 1 exclusive");
    let answer = parent.say("fork");
    let (found, child) = answer.split_once(" child=").unwrap();
    assert_eq!(found, "closed=true descriptors=false own=true parents=true");
    assert_eq!(other.say("try a 1 exclusive"), "refused 1", "the child let go of its copy only");
    parent.kill();
    other.take("try a 1 exclusive");
    assert!(Command::new("kill").args(["-9", child]).status().unwrap().success());
}

#[test]
fn eight_processes_take_turns() {
    let dir = scratch();
    let mut all: Vec<Process> = (0..8).map(|_| Process::start(dir.path())).collect();
    for process in &mut all {
        process.tell("turns x 2000");
    }
    let turns: Vec<f64> = all.iter_mut().map(|process| process.next().parse().unwrap()).collect();
    let (sum, squares): (f64, f64) = (turns.iter().sum(), turns.iter().map(|n| n * n).sum());
    let jain = sum * sum / (8.0 * squares);
    println!("{turns:?} Jain {jain:.3}");
    assert!(turns.iter().all(|n| *n > 10.0), "{turns:?}");
    assert!(jain > 0.8, "{turns:?}: {jain}");
}

#[tokio::test]
async fn a_flood_of_readers_does_not_starve_a_writer() {
    let dir = scratch();
    let mut readers: Vec<Process> = (0..4).map(|_| Process::start(dir.path())).collect();
    for reader in &mut readers {
        reader.tell("read x 10000");
    }
    let party = Party::open(dir.path());
    until("they read", || party.0.inspect("x").now().is_some_and(|found| !found.is_empty()));
    let start = Instant::now();
    for id in 0..20 {
        party.take(&exclusive("x", id)).await;
        party.release(id, "x").await;
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn permits_are_counted_between_processes() {
    let dir = scratch();
    let (mut a, mut b, mut c) =
        (Process::start(dir.path()), Process::start(dir.path()), Process::start(dir.path()));
    let first = a.take("take x 1 2");
    let second = b.take("take x 1 2");
    assert!(second > first);
    for refused in ["try x 1 2", "try x 1 1", "try x 1 shared", "try x 1 exclusive"] {
        assert_eq!(c.say(refused), "refused 1", "{refused}");
    }
    assert_eq!(c.say("take x 1 2"), "waiting 1");
    assert_eq!(a.say("try x 2 2"), "refused 2");
    let start = Instant::now();
    a.kill();
    assert!(c.next().starts_with("granted 1"));
    assert!(start.elapsed() < Duration::from_secs(2));
    let mut d = Process::start(dir.path());
    assert_eq!(d.say("take x 1 2"), "waiting 1");
    b.release("x", 1);
    assert!(d.next().starts_with("granted 1"));
    // An exclusive claim waits for all of them, and later permits for it.
    assert_eq!(b.say("take x 2 exclusive"), "waiting 2");
    c.release("x", 1);
    assert_eq!(c.say("try x 2 2"), "refused 2");
    d.release("x", 1);
    assert!(b.next().starts_with("granted 2"));
    assert_eq!(c.say("take x 3 2"), "waiting 3");
    b.release("x", 2);
    assert!(c.next().starts_with("granted 3"));
    // So does a reader.
    assert_eq!(d.say("take x 2 shared"), "waiting 2");
    c.release("x", 3);
    assert!(d.next().starts_with("granted 2"));
    assert_eq!(a_new(&dir).say("try x 1 2"), "refused 1");
}

fn a_new(dir: &crate::support::Scratch) -> Process {
    Process::start(dir.path())
}

#[test]
fn a_holder_hears_that_somebody_waits() {
    let dir = scratch();
    let (mut a, mut b) = (Process::start(dir.path()), Process::start(dir.path()));
    a.take("take x 1 exclusive");
    a.tell("hear");
    b.say("take x 1 exclusive");
    assert_eq!(a.next(), "Contended 1");
    // Also when it begins to hear later than the other to wait, and when the other one waits behind a third.
    a.release("x", 1);
    assert!(b.next().starts_with("granted"));
    assert_eq!(a.say("take x 2 exclusive"), "waiting 2");
    assert_eq!(b.say("hear"), "Contended 1");
}

#[test]
fn a_thief_takes_the_lock_ahead_of_those_who_wait() {
    let dir = scratch();
    let (mut holder, mut waiter, mut thief) =
        (Process::start(dir.path()), Process::start(dir.path()), Process::start(dir.path()));
    let first = holder.take("take x 1 exclusive");
    holder.tell("hear");
    waiter.say("take x 1 exclusive");
    assert_eq!(holder.next(), "Contended 1");
    until("the waiter waits", || is_waited_for(&dir.file("x"), waiter.pid()));
    thief.tell("steal x 9 exclusive");
    assert_eq!(thief.next(), "waiting 9");
    assert_eq!(holder.next(), "Lost(Stolen) 1");
    let stolen = thief.next();
    assert!(stolen.starts_with("granted 9"), "{stolen}");
    assert!(stolen.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > first);
    assert_eq!(holder.say("try x 2 exclusive"), "refused 2");
    thief.release("x", 9);
    assert!(waiter.next().starts_with("granted 1"));
    assert_eq!(files_for(&dir, "revoke"), 0, "nothing is left of it");
}

#[test]
fn a_killed_thief_leaves_no_trace() {
    let dir = scratch();
    let mut theirs = hold_by_flock(&dir.file("x"), "-x");
    let (mut thief, mut waiter) = (Process::start(dir.path()), Process::start(dir.path()));
    thief.say("steal x 9 exclusive");
    waiter.say("take x 1 exclusive");
    until("both wait", || {
        is_waited_for(&dir.file("x"), waiter.pid()) && is_waited_for(&dir.file("x"), thief.pid())
    });
    thief.kill();
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    assert!(waiter.next().starts_with("granted 1"));
    assert_eq!(files_for(&dir, "revoke"), 0);
}

#[tokio::test]
async fn a_lock_is_freed_by_force_and_its_holder_is_told() {
    let dir = scratch();
    let (mut a, mut b, mut waiter) =
        (Process::start(dir.path()), Process::start(dir.path()), Process::start(dir.path()));
    let party = Party::open(dir.path());
    let name = "x".parse().unwrap();
    a.take("take x 1 shared");
    b.take("take x 2 shared");
    party.take(&shared("x", 3)).await;
    a.tell("hear");
    b.tell("hear");
    waiter.say("take x 4 exclusive");
    assert_eq!(a.next(), "Contended 1");
    assert_eq!(b.next(), "Contended 2");
    let found = party.0.inspect("x").await.unwrap();
    assert_eq!(found[0].holders.len(), 3);
    assert_eq!(found[0].waiters.len(), 1);
    assert_eq!(found[0].waiters[0].owner.owner, "tester-4");
    let taken = within(party.0.force_release(&name, None)).await.unwrap();
    assert_eq!(taken.len(), 3, "{taken:?}");
    assert_eq!(a.next(), "Lost(ForceReleased) 1");
    assert_eq!(b.next(), "Lost(ForceReleased) 2");
    let token: u64 = waiter.next().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(party.0.inspect("x").await.unwrap()[0].holders[0].owner.owner, "tester-4");
    waiter.tell("hear");
    assert!(within(party.0.force_release(&name, Some(token + 7))).await.unwrap().is_empty());
    let taken = within(party.0.force_release(&name, Some(token))).await.unwrap();
    assert_eq!((taken.len(), taken[0].mode), (1, Mode::Exclusive));
    assert_eq!(waiter.next(), "Lost(ForceReleased) 4");
    assert!(within(party.0.force_release(&name, None)).await.unwrap().is_empty());
    party.release(3, "x").await;
    assert_eq!(files_for(&dir, "revoke"), 0);
}

#[tokio::test]
async fn who_cannot_be_told_is_named() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let name = "x".parse().unwrap();
    let mut theirs = hold_by_flock(&dir.file("x"), "-x");
    let error = within(party.0.force_release(&name, None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&theirs.id().to_string()), "{error}");
    theirs.kill().unwrap();
    theirs.wait().unwrap();

    let mut stopped = Process::start(dir.path());
    stopped.take("take x 1 exclusive");
    stopped.tell("hear");
    stopped.stop();
    let error = within(party.0.force_release(&name, None)).await.unwrap_err();
    assert!(error.to_string().contains(&stopped.pid().to_string()), "{error}");
    // The order is over: it loses nothing when it goes on.
    stopped.go_on();
    stopped.release("x", 1);
}

/// What `inspect` in one process tells of others.
#[tokio::test]
async fn holders_and_waiters_of_other_processes_are_seen() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let (mut a, mut b, mut c) =
        (Process::start(dir.path()), Process::start(dir.path()), Process::start(dir.path()));
    let token = a.take("take x 1 exclusive");
    b.say("take x 2 exclusive");
    until("b is at the gate", || is_waited_for(&dir.file("x"), b.pid()));
    c.say("take x 3 shared");
    let ours = party.start(&exclusive("x", 4));
    let found = party.0.inspect("").await.unwrap();
    assert_eq!(found.len(), 1);
    let holder = &found[0].holders[0];
    assert_eq!(
        (holder.owner.owner.as_str(), holder.mode, holder.fencing_token),
        ("tester-1", Mode::Exclusive, token)
    );
    assert!(holder.held_for.unwrap() < Duration::from_secs(20));
    let waiters: Vec<&str> = found[0].waiters.iter().map(|waiter| waiter.owner.owner.as_str()).collect();
    assert_eq!(waiters, ["tester-2", "tester-3", "tester-4"]);
    assert_eq!(found[0].waiters[1].mode, Mode::Shared);
    a.kill();
    b.next();
    b.release("x", 2);
    c.next();
    c.release("x", 3);
    ours.await.unwrap();
    party.release(4, "x").await;
    assert!(party.0.renew(&[claim(4, "x")]).await.unwrap().len() == 1);
    assert!(party.0.inspect("").await.unwrap().is_empty());
}

#[test]
fn a_full_or_read_only_disk_is_said_and_the_lock_is_given_back() {
    let dir = scratch();
    // The first lock makes its file, the others do not get that far.
    let script = "ulimit -f 0; trap '' XFSZ; exec \"$0\" \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script]).arg(std::env::current_exe().unwrap());
    let mut limited = Process::start_as(dir.path(), limited);
    let mut other = Process::start(dir.path());
    for entry in ["try", "take"] {
        let answer = limited.say(&format!("{entry} x 1 exclusive"));
        assert!(answer.starts_with("error Storage"), "{answer}");
        assert!(answer.contains("ulimit -f"), "{answer}");
    }
    other.take("try x 1 exclusive");
    // Waiting for it, and then not being able to write it down.
    assert_eq!(limited.say("take x 2 exclusive"), "waiting 2");
    other.release("x", 1);
    let answer = limited.next();
    assert!(answer.starts_with("error Storage") || answer.starts_with("granted"), "{answer}");

    for (how, error) in [("size=4k", "No space left"), ("size=16k", "Read-only")] {
        let dir = scratch();
        let read_only = error == "Read-only";
        let script = format!(
            "mount -t tmpfs -o {how} none {0} && {1} && exec \"$0\" \"$@\"",
            dir.path().display(),
            if read_only {
                format!("mount -o remount,ro {}", dir.path().display())
            } else {
                "true".to_owned()
            },
        );
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
        let mut process = Process::start_as(dir.path(), command);
        let mut answers = vec![process.say("try x 1 exclusive")];
        if !read_only {
            // One page there is.
            assert!(answers[0].starts_with("granted"), "{answers:?}");
            answers = vec![process.say("try y 1 exclusive"), process.say("try y 2 exclusive")];
        }
        for answer in answers {
            assert!(answer.starts_with("error Storage") && answer.contains(error), "{answer}");
        }
    }
}

fn files_for(dir: &crate::support::Scratch, suffix: &str) -> usize {
    fs::read_dir(dir.path().join(".windlass"))
        .map(|files| {
            files
                .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|it| it == suffix))
                .count()
        })
        .unwrap_or(0)
}

/// What is ready at the first poll.
trait Now<T> {
    fn now(self) -> Option<T>;
}

impl<T, F: Future<Output = windlass::Result<T>>> Now<T> for F {
    fn now(self) -> Option<T> {
        futures_util::FutureExt::now_or_never(self)?.ok()
    }
}
