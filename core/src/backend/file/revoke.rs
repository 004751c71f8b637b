//! Taking a lock from those who hold it.
//!
//! Nobody can unlock another process's file, and nobody should: a foreign client would never learn of it. So a holder of
//! ours is told, and its process unlocks at once, whatever the program itself is doing. Whoever takes writes
//! `.windlass/HASH.revoke` and keeps it locked while that is in force: one that was killed revokes nothing any more. The
//! holder's process hears of it (watch.rs), unlocks, and says so in the file.
//!
//! A thief also sets the flag `stealing` in the lock file: whoever gets the lock and sees it gives it back as long as
//! the thief lives. That is how a thief comes ahead of those who wait.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    dir::Directory,
    ears::{Ears, To, wait},
    line::{Held, Job, Line, Standing},
    lockfile::{LockFile, Side, open_to_append, open_to_read, read_head, remove},
    record::{CLEAR_FLAGS, HEAD, Head, STEALING_AT},
    trouble::trouble,
};
use crate::{
    ask::{Happening, Holder, Mode},
    error::{Error, ErrorKind, LostReason, Result},
    lockgate::FileKey,
};

/// How long `force_release` waits for holders in other processes to let go: it takes them a millisecond, unless they
/// are stopped.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for the answer of one that has let go already.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);

/// Which claims, and why. The first line of the file. A line of each process that has obeyed follows: its pid, its mark,
/// and the fencing tokens that it gave up.
#[derive(Serialize, Deserialize)]
struct Order {
    reason: LostReason,
    /// Those with this fencing token alone.
    fencing_token: Option<u64>,
    /// Those with a smaller one alone: not those that were granted since.
    below: Option<u64>,
    /// Who gives the order, for people.
    pid: u32,
    /// The same, as we know it ([`Directory::mark`]). That process has seen to its own claims.
    #[serde(default)]
    mark: u64,
}

/// An order in force, once it is written.
struct Revocation {
    /// Locked.
    file: LockFile,
    path: PathBuf,
}

impl Revocation {
    fn begin(directory: &Directory, key: FileKey) -> Result<Self> {
        let path = directory.side_path(key, "revoke");
        loop {
            let file = directory.open_side(&path)?;
            if !file.try_lock(Side::Exclusive).map_err(|e| trouble("lock", &path, e))? {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "somebody else takes this lock by force just now: ask again",
                )
                .with_retry_after(Duration::from_millis(50)));
            }
            if directory.is_current(&file, &path)? {
                return Ok(Self { file, path });
            }
        }
    }

    fn order(&self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order).map_err(|e| trouble("write", &self.path, e.into()))?;
        line.push(b'\n');
        let written = self.file.truncate(0).and_then(|()| self.file.write_at(&line, 0));
        written.map_err(|e| trouble("write", &self.path, e))
    }
}

impl Drop for Revocation {
    fn drop(&mut self) {
        // Everybody who opens this file looks again whether it is still there, so it may go. If it cannot be removed,
        // it is an order of nobody as soon as it is unlocked.
        let _ = remove(&self.path);
    }
}

/// A theft under way in this process: until the thief has the lock or gives up.
pub(super) struct Theft {
    revocation: Revocation,
    main: LockFile,
}

impl Theft {
    fn begin(directory: &Directory, key: FileKey) -> Result<Self> {
        let main = directory.open_main(&directory.main_path(key))?;
        let revocation = Revocation::begin(directory, key)?;
        // The flag comes first: when the holder obeys, whoever waits in the kernel gets the lock, and must see it.
        set_flag(&main, STEALING_AT);
        let theft = Self { revocation, main };
        // All of them, and those that get it in the very moment.
        theft.revocation.order(&Order {
            reason: LostReason::Stolen,
            fencing_token: None,
            below: None,
            pid: directory.pid,
            mark: directory.mark,
        })?;
        Ok(theft)
    }
}

impl Drop for Theft {
    fn drop(&mut self) {
        // If that fails, the next one finds a flag without a thief.
        let _ = self.main.write_at(b"0", STEALING_AT);
    }
}

/// Sets one of the flags of a lock file. If that cannot be done it costs order, no more; what is wrong with the disk is
/// said when the lock is taken.
pub(super) fn set_flag(main: &LockFile, at: u64) {
    let mut start = [0; HEAD];
    let read = main.read_at(&mut start, 0).unwrap_or(0);
    let _ = if Head::parse(&start[..read]).has_flags {
        main.write_at(b"1", at)
    } else {
        let mut flags = *CLEAR_FLAGS;
        flags[at as usize] = b'1';
        main.write_at(&flags, 0)
    };
}

impl Directory {
    /// Takes the lock from those who hold it, and puts a thief at the head of our queue, behind thieves that were there
    /// before.
    pub(super) fn steal(self: &Arc<Self>, key: FileKey, line: &mut Line, standing: Standing) -> Result<()> {
        if line.theft.is_none() {
            line.theft = Some(Theft::begin(self, key)?);
        }
        let place = line.queue.iter().take_while(|standing| standing.thief).count();
        line.queue.insert(place, standing);
        line.wants = None;
        if matches!(line.queue[place].mode, Mode::Permit(_)) {
            // Others that conflict are seen to by the pump. Permits are in the way only when there are too many of them,
            // and then all of them are.
            for lost in std::mem::take(&mut line.held) {
                self.lose(lost, LostReason::Stolen);
            }
        }
        Ok(())
    }

    /// Gives a lock up, and tells its holder.
    pub(super) fn lose(&self, held: Held, reason: LostReason) {
        held.inbox.push(&held.name, held.id, Happening::Lost(reason));
        self.let_go(held);
    }

    /// Whether the thief that the flag tells of still lives, here or in another process.
    pub(super) fn is_being_stolen(&self, key: FileKey) -> Result<bool> {
        let path = self.side_path(key, "revoke");
        let file = match LockFile::open_existing(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(trouble("open", &path, e)),
        };
        if !file.try_lock(Side::Exclusive).map_err(|e| trouble("lock", &path, e))? {
            return Ok(true);
        }
        if self.is_current(&file, &path)? {
            // Left by one that was killed.
            let _ = remove(&path);
        }
        Ok(false)
    }

    /// Waits until the theft in another process is over.
    pub(super) fn work_at_theft(self: &Arc<Self>, key: FileKey) -> Option<Job> {
        if let Ok(file) = LockFile::open_existing(&self.side_path(key, "revoke")) {
            // If it cannot be locked, or the alarm goes off, the pump sees why.
            let _ = file.lock_unless_interrupted(Side::Shared);
        }
        self.with_line(key, |line| {
            line.at_theft = false;
            self.pump(key, line)
        })
    }

    /// Does what an order says that has come for a lock of ours.
    pub(super) fn obey(self: &Arc<Self>, key: FileKey) {
        let path = self.side_path(key, "revoke");
        let Some(order) = read_order(&path).filter(|order| order.mark != self.mark) else { return };
        if !self.is_in_force(&path) {
            return;
        }
        if answers(&path).iter().any(|answer| answer.mark == self.mark) {
            return;
        }
        self.with_line(key, |line| {
            if line.held.is_empty() {
                return;
            }
            let lost: Vec<Held> = line
                .held
                .extract_if(.., |held| {
                    let token = held.grant.fencing_token;
                    order.fencing_token.is_none_or(|wanted| wanted == token)
                        && order.below.is_none_or(|below| token < below)
                })
                .collect();
            let mut answer = format!("{} {}", self.pid, self.mark);
            for held in &lost {
                let _ = write!(answer, " {}", held.grant.fencing_token);
            }
            answer.push('\n');
            // Before the lock is free: whoever gave the order and finds it free must find the answer, too.
            if let Ok(mut file) = open_to_append(&path) {
                let _ = file.write_all(answer.as_bytes());
            }
            for held in lost {
                self.lose(held, order.reason);
            }
            self.go_on(key, line);
        });
    }

    /// Whether somebody holds the lock of whom the system does not tell us.
    fn is_held_unseen(&self, key: FileKey) -> Result<bool> {
        let path = self.main_path(key);
        match LockFile::open_existing(&path) {
            Ok(file) => Ok(!file.try_lock(Side::Exclusive).map_err(|e| trouble("lock", &path, e))?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(trouble("open", &path, e)),
        }
    }

    fn is_in_force(&self, path: &Path) -> bool {
        LockFile::open_existing(path).is_ok_and(|file| matches!(file.try_lock(Side::Shared), Ok(false)))
    }

    /// Frees a lock as an operator. Waits, so it wants a thread of its own.
    pub(super) fn free_by_force(self: &Arc<Self>, key: FileKey, token: Option<u64>) -> Result<Vec<Holder>> {
        let mut taken = Vec::new();
        let now = self.rt.now();
        self.with_line(key, |line| {
            let matches = |held: &Held| token.is_none_or(|token| held.grant.fencing_token == token);
            for held in line.held.extract_if(.., |held| matches(held)) {
                taken.push(held.holder(now));
                self.lose(held, LostReason::ForceReleased);
            }
            self.go_on(key, line);
        });
        let others: Vec<(u32, Holder)> = self
            .others_that_hold(key)
            .into_iter()
            // Of shared claims and permits of others it is not known which fencing token they have: they know it.
            .filter(|(_, holder)| {
                holder.mode != Mode::Exclusive || token.is_none_or(|token| holder.fencing_token == token)
            })
            .collect();
        if others.is_empty() {
            if taken.is_empty() && token.is_none() && self.is_held_unseen(key)? {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the lock is held by a process that cannot be seen from here, in another container perhaps: stop it there",
                ));
            }
            return Ok(taken);
        }
        let below = self.read_record(key).map(|record| record.token + 2);
        let order = Order {
            reason: LostReason::ForceReleased,
            fencing_token: token,
            below,
            pid: self.pid,
            mark: self.mark,
        };
        let ears = Ears::new().ok();
        let main = self.main_path(key);
        if let Some(ears) = &ears {
            // Its being closed is heard before its lock is gone, so the pauses below start short.
            let _ = ears.listen(&main, To::Closes);
        }
        let revocation = Revocation::begin(self, key)?;
        revocation.order(&order)?;
        if let Some(ears) = &ears {
            let _ = ears.listen(&revocation.path, To::Writes);
        }
        let begun = self.rt.now();
        let mut pause = Duration::from_millis(1);
        loop {
            // In this order: who does not hold it any more has answered before.
            let holding = self.others_that_hold(key);
            let answers = answers(&revocation.path);
            let mut left: Vec<u32> = others.iter().map(|(pid, _)| *pid).collect();
            let waited = self.rt.now().since(begun);
            left.retain(|pid| {
                // A holder answers first and unlocks then; one that has died does not answer.
                let holds = holding.iter().any(|(holding, _)| holding == pid);
                let may_answer = waited < ANSWER_WITHIN && Path::new(&format!("/proc/{pid}")).exists();
                answers.iter().all(|answer| answer.pid != *pid) && (holds || may_answer)
            });
            if left.is_empty() {
                for answer in answers {
                    let Some((_, holder)) = others.iter().find(|(pid, _)| *pid == answer.pid) else {
                        continue;
                    };
                    taken.extend(
                        answer
                            .tokens
                            .into_iter()
                            .map(|fencing_token| Holder { fencing_token, ..holder.clone() }),
                    );
                }
                return Ok(taken);
            }
            if waited >= PATIENCE {
                left.dedup();
                let pids: Vec<String> = left.iter().map(u32::to_string).collect();
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "process {} holds the lock and does not answer: it is stopped, or it is a program that cannot \
                         be told, such as flock(1); the lock is free when it ends",
                        pids.join(", ")
                    ),
                ));
            }
            pause = if wait(ears.as_ref(), pause) { Duration::from_millis(1) } else { pause * 2 };
            pause = pause.min(Duration::from_millis(100));
            if let Some(ears) = &ears {
                ears.hear(|_| ());
            }
        }
    }
}

fn read_order(path: &Path) -> Option<Order> {
    let bytes = read_head(&open_to_read(path).ok()?, 4096).ok()?;
    serde_json::from_slice(bytes.split(|byte| *byte == b'\n').next()?).ok()
}

/// What a process that holds the lock has done about an order: the fencing tokens of the claims that it gave up.
struct Answer {
    pid: u32,
    mark: u64,
    tokens: Vec<u64>,
}

fn answers(path: &Path) -> Vec<Answer> {
    let bytes = open_to_read(path).and_then(|file| read_head(&file, 64 * 1024)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    // An answer without its end is still being written.
    let complete = text.split_inclusive('\n').skip(1).filter(|line| line.ends_with('\n'));
    let answer = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let pid = words.next()?.parse().ok()?;
        let mark = words.next()?.parse().ok()?;
        Some(Answer { pid, mark, tokens: words.filter_map(|token| token.parse().ok()).collect() })
    };
    complete.filter_map(answer).collect()
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, num::NonZeroU32};

    use super::{super::slots::Slots, *};
    use crate::{
        ask::{Ask, Entry, Owner},
        backend::file::{gate::Gate, line::Begun, news::Inbox},
        name::ClaimId,
        rt::Native,
    };

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn scratch(name: &str) -> (Scratch, Arc<Directory>, FileKey) {
        let path = std::env::temp_dir().join(format!("windlass-revoke-{name}-{}", std::process::id()));
        let directory = Directory::open(&path, Arc::new(Native)).unwrap();
        (Scratch(path), directory, FileKey::sha256("x"))
    }

    #[test]
    fn an_order_of_another_container_is_obeyed_where_both_have_the_same_pid() {
        let (_scratch, directory, key) = scratch("same-pid");
        directory.make_side().unwrap();
        let ask = Ask {
            name: "x".parse().unwrap(),
            claim_id: ClaimId::from_u128(1),
            mode: Mode::Exclusive,
            entry: Entry::Queue,
            ttl: Duration::from_secs(10),
            owner: Arc::new(Owner::default()),
            keep: Duration::ZERO,
            only_here: false,
        };
        let revocation = Revocation::begin(&directory, key).unwrap();
        let order = |mark| Order {
            reason: LostReason::Stolen,
            fencing_token: None,
            below: None,
            pid: directory.pid,
            mark,
        };
        let is_obeyed = |write: &dyn Fn()| {
            assert!(matches!(directory.begin(key, &ask, &Arc::<Inbox>::default()), Ok(Begun::Granted(_))));
            write();
            directory.obey(key);
            let is_held = directory.is_held_unseen(key).unwrap();
            directory.end(key, ask.claim_id);
            !is_held
        };
        assert!(!is_obeyed(&|| revocation.order(&order(directory.mark)).unwrap()), "it is our own");
        assert!(is_obeyed(&|| revocation.order(&order(directory.mark ^ 1)).unwrap()));
        let answers = answers(&revocation.path);
        assert_eq!((answers.len(), answers[0].pid, answers[0].mark), (1, directory.pid, directory.mark));
        assert_eq!(answers[0].tokens.len(), 1);
        let without =
            format!(r#"{{"reason":"stolen","fencing_token":null,"below":null,"pid":{}}}"#, directory.pid);
        assert!(is_obeyed(&|| {
            revocation.file.truncate(0).unwrap();
            revocation.file.write_at(without.as_bytes(), 0).unwrap();
        }));
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_side_directory_is_refused_with_advice() {
        let (scratch, directory, key) = scratch("symlink");
        let elsewhere = scratch.0.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.side()).unwrap();
        let there = elsewhere.join(format!("{key}.revoke"));
        fs::write(&there, "precious").unwrap();
        let limit = NonZeroU32::MIN;
        let refused = [
            ("queue", Gate::stand(&directory, key).err()),
            ("permits", Slots::enter(&directory, key).err()),
            ("revoke", Revocation::begin(&directory, key).err()),
            ("revoke", directory.is_being_stolen(key).err()),
            ("queue", directory.somebody_stands(key).err()),
            (".windlass", directory.make_side().err()),
        ];
        for (what, error) in refused {
            let error = error.expect(what);
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            for part in [what, scratch.0.to_str().unwrap(), "remove it"] {
                assert!(error.to_string().contains(part), "{part:?} in {error}");
            }
        }
        assert!(Slots::seem_free(&directory, key, limit), "what is there is not looked at");
        remove(&directory.side_path(key, "revoke")).unwrap_err();
        open_to_append(&directory.side_path(key, "revoke")).unwrap_err();
        assert_eq!(fs::read_to_string(there).unwrap(), "precious");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "nothing was made there");
    }
}
