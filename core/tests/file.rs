//! What is special about locks in files: the files themselves, other programs that lock them, and processes that die.
#![cfg(all(feature = "file", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test may"
)]

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use windlass::{
    ErrorKind, Mode,
    ask::{Ask, Happening, News, Renewal},
    backend::{Backend, FileBackend, Naming},
    rt::Native,
};

#[path = "file/between_processes.rs"]
mod between_processes;
#[path = "file/support.rs"]
mod support;

use support::{Party, claim, exclusive, obey_orders, permit, scratch, shared, until, within};

/// Not a test: what the processes of other tests run.
#[test]
fn a_process_of_its_own() {
    obey_orders();
}

#[tokio::test]
async fn a_record_tells_people_and_survives_any_garbage() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let file = dir.file("a \"name\"");
    let mut last = party.take(&exclusive("a \"name\"", 1)).await.fencing_token;
    party.release(1, "a \"name\"").await;
    let text = fs::read_to_string(&file).unwrap();
    for part in
        ["\"name\":\"a \\\"name\\\"\"", "\"owner\":\"tester-1\"", "\"mode\":\"exclusive\"", &last.to_string()]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let garbage: [&[u8]; 8] = [
        b"",
        b"{",
        b"4711\n",
        b"\0\0\0\0",
        &[0xff; 5000],
        &text.as_bytes()[..60],
        &text.as_bytes()[1..],
        &[b' '; 200_000],
    ];
    for bytes in garbage {
        fs::write(&file, bytes).unwrap();
        for mode in [Mode::Shared, Mode::Exclusive] {
            let ask = Ask { mode, ..exclusive("a \"name\"", 1) };
            let token = party.try_take(&ask).await.unwrap().fencing_token;
            assert!(token > last, "{token} after {last}");
            last = token;
            assert_eq!(party.0.inspect("a").await.unwrap()[0].holders[0].fencing_token, token);
            party.release(1, "a \"name\"").await;
        }
        assert!(fs::metadata(&file).unwrap().len() < 1000, "what is left of it does no harm");
    }
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "as lockgate's");
}

#[tokio::test]
async fn tokens_grow_when_the_file_is_removed_and_when_the_clock_was_ahead() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let first = party.take(&exclusive("a", 1)).await.fencing_token;
    party.release(1, "a").await;
    fs::remove_file(dir.file("a")).unwrap();
    let second = party.take(&shared("a", 1)).await.fencing_token;
    assert!(second > first);
    party.release(1, "a").await;
    // The power failed, and what is on the disk is old.
    let write = |text: &str, at| {
        OpenOptions::new().write(true).open(dir.file("a")).unwrap().write_at(text.as_bytes(), at).unwrap();
    };
    write(&format!("{:>20}", first - 1000), 42);
    write("00000000", 90);
    let second_life = party.take(&shared("a", 1)).await.fencing_token;
    assert!(second_life > second);
    party.release(1, "a").await;
    // Somebody's clock was a day ahead.
    let ahead = second + 86_400_000_000;
    write(&format!("{ahead:>20}"), 42);
    let third = party.take(&exclusive("a", 1)).await.fencing_token;
    assert_eq!(third, ahead + 2);
    party.release(1, "a").await;
    assert_eq!(party.take(&shared("a", 1)).await.fencing_token, third + 1);
    assert_eq!(party.take(&shared("a", 2)).await.fencing_token, third + 1);
    party.release(1, "a").await;
    party.release(2, "a").await;
    assert_eq!(party.take(&exclusive("a", 1)).await.fencing_token, third + 2);
}

#[tokio::test]
async fn the_longest_names_are_listed() {
    let dir = scratch();
    let party = Party::open(dir.path());
    for name in ["\u{1}".repeat(1024), "\u{1f512}".repeat(256), "../..//x\n".to_owned()] {
        party.take(&exclusive(&name, 1)).await;
        let found = party.0.inspect(&name).await.unwrap();
        assert_eq!(found.iter().map(|status| status.name.as_str()).collect::<Vec<_>>(), [name.as_str()]);
        party.release(1, &name).await;
        assert!(party.0.inspect(&name).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn lockgates_old_names_lead_to_its_old_files() {
    let dir = scratch();
    let backend = FileBackend::open(dir.path(), Naming::Murmur3, Arc::new(Native)).unwrap();
    backend.acquire(&exclusive("test", 1), &|_| {}).await.unwrap().unwrap();
    assert!(!flock_is_free(&dir.path().join("ba6bd213")));
}

#[tokio::test]
async fn only_plain_files_are_locks() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    symlink(&elsewhere, dir.file("symlink")).unwrap();
    symlink("nowhere", dir.file("dangling")).unwrap();
    fs::create_dir(dir.file("directory")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.file("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    fs::rename(dir.path().join("s"), dir.file("socket")).unwrap();
    for name in ["symlink", "dangling", "directory", "fifo", "socket"] {
        let error = party.error(&exclusive(name, 1)).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{name}: {error}");
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "precious");
}

#[test]
fn a_directory_is_made_or_refused() {
    let dir = scratch();
    let open = |path: &str| FileBackend::open(&dir.path().join(path), Naming::Sha256, Arc::new(Native));
    open("new/with/parents").unwrap();
    assert_eq!(fs::metadata(dir.path().join("new/with")).unwrap().permissions().mode() & 0o777, 0o755);
    fs::write(dir.path().join("file"), "").unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    symlink("new", dir.path().join("symlink")).unwrap();
    open("symlink").unwrap();
    for path in ["file", "file/below", "dangling"] {
        let error = open(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}: {error}");
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[tokio::test]
async fn a_directory_for_several_users_has_files_for_them() {
    let dir = scratch();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let party = Party::open(dir.path());
    party.take(&exclusive("a", 1)).await;
    party.give_up(&exclusive("a", 2)).await;
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(dir.file("a")), 0o666);
    assert_eq!(mode(dir.path().join(".windlass")), 0o1777);
}

#[tokio::test]
async fn a_directory_that_was_swept_away_comes_back() {
    let dir = scratch();
    let party = Party::open(dir.path());
    party.take(&exclusive("a", 1)).await;
    party.release(1, "a").await;
    fs::remove_dir_all(dir.path()).unwrap();
    party.take(&exclusive("a", 1)).await;
    assert!(!flock_is_free(&dir.file("a")));
}

/// Filelock and its kind: lock, remove, unlock. Whoever waited has then locked a file that nobody else will find.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_is_removed_under_its_lock_gives_nobody_two_holders() {
    let dir = scratch();
    let (removed, inside) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let remover = thread::spawn({
        let (removed, inside, path) = (removed.clone(), inside.clone(), dir.file("a"));
        move || {
            // The kernel lets it in now and then: whoever tries in the right moment is before it.
            while removed.load(Ordering::Relaxed) < 20 {
                let Ok(file) = File::open(&path) else { continue };
                file.lock().unwrap();
                if file.metadata().unwrap().nlink() > 0
                    && fs::metadata(&path).unwrap().ino() == file.metadata().unwrap().ino()
                {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    fs::remove_file(&path).unwrap();
                    removed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    let mut tasks = Vec::new();
    for id in 0..4 {
        let (party, removed, inside) = (Party::open(dir.path()), removed.clone(), inside.clone());
        tasks.push(tokio::spawn(async move {
            let mut last = 0;
            while removed.load(Ordering::Relaxed) < 20 {
                let token = party.take(&exclusive("a", id)).await.fencing_token;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                assert!(token > last);
                last = token;
                inside.fetch_sub(1, Ordering::SeqCst);
                party.release(id, "a").await;
            }
        }));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    remover.join().unwrap();
}

#[tokio::test]
async fn a_lock_whose_file_is_taken_away_is_lost() {
    let dir = scratch();
    let party = Party::open(dir.path());
    for (id, take_away) in [
        (1, Box::new(|| fs::remove_file(dir.file("a")).unwrap()) as Box<dyn Fn()>),
        (2, Box::new(|| fs::rename(dir.file("a"), dir.path().join("x")).unwrap())),
        (
            3,
            Box::new(|| {
                fs::write(dir.path().join("y"), "")
                    .and_then(|()| fs::rename(dir.path().join("y"), dir.file("a")))
                    .unwrap();
            }),
        ),
        // The one who waits looks for its place there meanwhile.
        (4, Box::new(|| while fs::remove_dir_all(dir.path()).is_err() {})),
    ] {
        // The first time before anybody hears, then while somebody does.
        party.take(&exclusive("a", id)).await;
        let waiter = party.start(&exclusive("a", 10 + id));
        take_away();
        let mut news = party.next_news().await;
        news.retain(|news| !matches!(news.what, Happening::Contended));
        while news.is_empty() {
            news = party.next_news().await;
            news.retain(|news| !matches!(news.what, Happening::Contended));
        }
        assert_eq!(format!("{:?}", news[0].what), "Lost(ForceReleased)");
        assert!(news[0].claim == claim(id, "a"));
        assert!(matches!(party.0.renew(&[claim(id, "a")]).await.unwrap()[0], Renewal::NotHeld));
        waiter.await.unwrap();
        party.release(10 + id, "a").await;
    }
}

#[tokio::test]
async fn flock_of_other_programs_excludes_and_is_excluded() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let file = dir.file("a");
    party.take(&exclusive("a", 1)).await;
    assert!(!flock_is_free(&file));
    party.release(1, "a").await;
    assert!(flock_is_free(&file));
    party.take(&shared("a", 1)).await;
    assert!(!flock_is_free(&file));
    assert!(Command::new("flock").args(["-s", "-n"]).arg(&file).arg("true").status().unwrap().success());
    party.release(1, "a").await;

    let mut theirs = hold_by_flock(&file, "-x");
    assert!(party.try_take(&exclusive("a", 1)).await.is_none());
    assert!(party.try_take(&shared("a", 1)).await.is_none());
    let status = party.0.inspect("a").await.unwrap();
    let holder = &status[0].holders[0];
    assert!(holder.owner.owner.ends_with(&format!(":{}", theirs.id())), "{holder:?}");
    assert_eq!((holder.mode, holder.fencing_token), (Mode::Exclusive, 0));
    let ours = party.start(&exclusive("a", 1));
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    ours.await.unwrap();
    party.release(1, "a").await;

    // A shell's `exec 9>FILE` empties the file, also while somebody holds it.
    let before = party.take(&exclusive("a", 1)).await.fencing_token;
    File::create(&file).unwrap();
    party.release(1, "a").await;
    let mut theirs = hold_by_flock(&file, "-s");
    assert!(party.try_take(&exclusive("a", 1)).await.is_none());
    let ours = party.try_take(&shared("a", 1)).await.unwrap();
    assert!(ours.fencing_token > before);
    theirs.kill().unwrap();
    theirs.wait().unwrap();
}

#[tokio::test]
async fn a_writer_that_gave_up_keeps_nobody_out_and_its_thread_is_used_again() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let mut theirs = hold_by_flock(&dir.file("a"), "-s");
    party.give_up(&exclusive("a", 1)).await;
    // The thread of the one who gave up waits in the kernel; the flag and the gate are gone.
    assert!(party.try_take(&shared("a", 2)).await.is_some());
    let other = support::Process::start(dir.path()).take("try a 1 shared");
    assert!(other > 0);
    party.release(2, "a").await;
    for id in 10..1010 {
        party.give_up(&exclusive("a", id)).await;
    }
    assert!(support::waits(&dir.file("a")).len() <= 1, "one thread waits for a thousand claims");
    // What it has waited for comes, and it wants it no more.
    let ours = party.start(&exclusive("a", 3));
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    ours.await.unwrap();
    party.release(3, "a").await;
    assert!(party.try_take(&exclusive("a", 4)).await.is_some());
}

#[tokio::test]
async fn one_who_gave_up_never_takes_the_lock_from_a_try() {
    let dir = scratch();
    let party = Party::open(dir.path());
    for round in 0..200 {
        let theirs = File::create(dir.file("a")).unwrap();
        theirs.lock().unwrap();
        party.give_up(&exclusive("a", 1)).await;
        // Closing it would not do where another test forks a child just now: that has a copy until it begins.
        theirs.unlock().unwrap();
        // The kernel hands the lock to the thread that nobody needs any more, now or any moment.
        assert!(party.try_take(&exclusive("a", 2)).await.is_some(), "round {round}");
        party.release(2, "a").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cancelling_at_any_moment_leaves_nothing_behind() {
    let dir = scratch();
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for task in 0..6u128 {
        let (party, inside) = (Party::open(dir.path()), inside.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0..400u128 {
                let id = task * 1000 + round;
                let mode = [Mode::Exclusive, Mode::Shared, Mode::Permit(2.try_into().unwrap())]
                    [(id * 7 % 3) as usize];
                let ask = Ask { mode, ..exclusive("a", id) };
                let patience = Duration::from_micros((id * 37 % 400) as u64);
                if let Ok(granted) = tokio::time::timeout(patience, party.0.acquire(&ask, &|_| {})).await {
                    granted.unwrap().unwrap();
                    let weight = if mode == Mode::Exclusive { 1000 } else { 1 };
                    let others = inside.fetch_add(weight, Ordering::SeqCst);
                    assert!(others == 0 || (weight == 1 && others < 1000), "{mode} beside {others}");
                    tokio::task::yield_now().await;
                    inside.fetch_sub(weight, Ordering::SeqCst);
                }
                party.release(id, "a").await;
            }
        }));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    let party = Party::open(dir.path());
    assert!(party.try_take(&exclusive("a", 1)).await.is_some());
    party.release(1, "a").await;
    assert!(party.0.inspect("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_between_while_a_lock_becomes_shared() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let (inside, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    File::create(dir.file("a")).unwrap();
    let foreign: Vec<_> = [true, false]
        .into_iter()
        .map(|waits| {
            let (inside, stop) = (inside.clone(), stop.clone());
            let file = File::open(dir.file("a")).unwrap();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if waits {
                        file.lock().unwrap();
                    } else if file.try_lock().is_err() {
                        continue;
                    }
                    assert!(!inside.load(Ordering::SeqCst), "a gap");
                    file.unlock().unwrap();
                }
            })
        })
        .collect();
    for id in 0..2000 {
        let exclusive = party.take(&exclusive("a", id)).await;
        inside.store(true, Ordering::SeqCst);
        let grant = party.0.change(&claim(id, "a"), Mode::Shared).await.unwrap();
        assert_eq!((grant.mode, grant.fencing_token), (Mode::Shared, exclusive.fencing_token));
        if id % 100 == 0 {
            let other = party.take(&shared("a", id + 10_000)).await;
            assert_eq!(other.fencing_token, grant.fencing_token, "equal among those that share");
            party.release(id + 10_000, "a").await;
        }
        inside.store(false, Ordering::SeqCst);
        party.release(id, "a").await;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in foreign {
        thread.join().unwrap();
    }
    assert_eq!(party.0.change(&claim(1, "a"), Mode::Shared).await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert_eq!(
        party.0.change(&claim(1, "a"), Mode::Exclusive).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn permits_are_counted_by_the_smallest_limit_and_apart_from_readers() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let mut last = 0;
    for id in 1..=3 {
        let token = party.try_take(&permit("a", id, 5)).await.unwrap().fencing_token;
        assert!(token > last);
        last = token;
    }
    for other in [permit("a", 9, 3), permit("a", 9, 2), shared("a", 9), exclusive("a", 9)] {
        assert!(party.try_take(&other).await.is_none(), "{}", other.mode);
    }
    party.try_take(&permit("a", 4, 4)).await.unwrap();
    assert!(party.try_take(&permit("a", 9, 5)).await.is_none(), "one of them is content with four");
    let waiting = party.start(&permit("a", 5, 5));
    party.release(4, "a").await;
    waiting.await.unwrap();
    let reader = party.start(&shared("a", 6));
    for id in [1, 2, 3, 5] {
        party.release(id, "a").await;
    }
    reader.await.unwrap();
    assert!(party.try_take(&permit("a", 9, 5)).await.is_none());
    party.release(6, "a").await;
    party.try_take(&permit("a", 7, 1)).await.unwrap();
    assert_eq!(party.error(&permit("a", 9, 1025)).await.kind(), ErrorKind::InvalidInput);
    party.release(7, "a").await;
    for id in 0..1024 {
        party.try_take(&permit("a", id, 1024)).await.unwrap();
    }
    assert!(party.try_take(&permit("a", 2000, 1024)).await.is_none());
}

#[tokio::test]
async fn what_changes_is_hinted_and_looking_is_no_change() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let mut changes = party.0.changes("a").await.unwrap();
    within(changes.next()).await.unwrap().unwrap();
    let mut other = support::Process::start(dir.path());
    for order in ["take a 1 exclusive", "release a 1"] {
        while changes.next().now_or_never().is_some() {}
        other.say(order);
        within(changes.next()).await.unwrap().unwrap();
    }
    // Late hints of the last change.
    while let Ok(hint) = tokio::time::timeout(Duration::from_millis(100), changes.next()).await {
        hint.unwrap().unwrap();
    }
    for _ in 0..10 {
        party.0.inspect("").await.unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), changes.next()).await.is_err());
}

#[tokio::test]
async fn listeners_end_with_their_backend() {
    let before = watchers();
    for _ in 0..20 {
        let dir = scratch();
        let party = Party::open(dir.path());
        party.take(&exclusive("a", 1)).await;
        assert!(party.0.hear().now_or_never().is_none());
        party.release(1, "a").await;
    }
    until("the threads end", || watchers() < before + 10);
}

fn watchers() -> usize {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == "windlass-watch")
        .count()
}

impl Party {
    async fn next_news(&self) -> Vec<News> {
        within(self.0.hear()).await.unwrap()
    }
}

fn flock_is_free(file: &std::path::Path) -> bool {
    Command::new("flock").arg("-n").arg(file).arg("true").status().unwrap().success()
}

/// Ends with its input, so that nothing is left behind.
fn hold_by_flock(file: &std::path::Path, how: &str) -> Child {
    let mut child = Command::new("flock")
        .args([how, "-o"])
        .arg(file)
        .args(["sh", "-c", "echo; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    child
}
