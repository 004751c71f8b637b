//! Where processes stand in line: `.windlass/HASH.queue`.
//!
//! Each process whose claims wait for a lock has a ticket: a byte of that file that it has locked for writing, with a
//! number greater than those of all others. Whoever has the smallest is next. To wait, one asks the kernel for a read lock
//! on the byte of the one before: that is granted when that one has been served, gives up, or dies. So the kernel keeps
//! a queue of which nobody can get ahead, and a hand-over wakes one.
//!
//! A process that is stopped (`Ctrl-Z`) keeps its place, but nobody waits for it: whoever finds the lock free or is let
//! through behind it goes by, and who waits for it looks once a second. That costs order alone: the lock itself is the kernel's
//! to give. Once it goes on it is the first again, and may meet one that went by.
//!
//! The flag `waiting` in the lock file is up while there are tickets: that is what an acquire looks at that finds the
//! lock free. Whoever takes a ticket raises it afterwards; whoever lowers it looks for tickets afterwards and raises it
//! again. One that was left up by a process that was killed is lowered by the next who finds no ticket.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    dir::Directory,
    line::Standing,
    lockfile::{Identity, LockFile, open_to_read},
    ofd::{self, Kind},
    procfs::says_stopped,
    record::WAITING_AT,
    revoke::set_flag,
    trouble::trouble,
};
use crate::{
    ask::{Mode, Owner, Waiter},
    error::Result,
    lockgate::FileKey,
    name::ClaimId,
    time::Moment,
};

/// The bytes that tickets are.
const TICKETS: Range<i64> = 1 << 32..1 << 62;
/// How many places there are to say who one is, and how long they are. Where more processes stand in line, some of them
/// are not named.
const PLACES: i64 = 64;
const PLACE: usize = 512;

/// A ticket. Dropping it gives it back.
pub(super) struct Gate {
    file: Arc<LockFile>,
    identity: Identity,
    path: PathBuf,
    /// The lock file, for the flag in it.
    main: LockFile,
    ticket: i64,
    /// Nobody has a smaller one, or none but stopped ones when we looked.
    first: bool,
    /// We have just come, and believe that the one before us moves: most do, and to look costs as much as to stand here.
    fresh: bool,
    /// Who stands at our place, as was said last.
    said: Option<ClaimId>,
}

/// What one says of oneself.
#[derive(Serialize, Deserialize)]
struct Announcement {
    ticket: i64,
    pid: u32,
    mode: Mode,
    #[serde(flatten)]
    owner: Owner,
    /// Wall-clock milliseconds, for people.
    since_ms: u64,
}

impl Gate {
    /// Takes a ticket, at the end of the line.
    pub(super) fn stand(directory: &Directory, key: FileKey) -> Result<Self> {
        let path = directory.side_path(key, "queue");
        let main = directory.open_main(&directory.main_path(key))?;
        loop {
            let file = directory.open_side(&path)?;
            let ticket = take_ticket(file.file()).map_err(|e| trouble("lock", &path, e))?;
            if !directory.is_current(&file, &path)? {
                continue;
            }
            let identity = file.stat().map_err(|e| trouble("look at", &path, e))?.identity;
            set_flag(&main, WAITING_AT);
            return Ok(Self {
                file: Arc::new(file),
                identity,
                path,
                main,
                ticket,
                first: false,
                fresh: true,
                said: None,
            });
        }
    }

    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    /// Whether it is our turn; else, what to wait for.
    pub(super) fn look(&mut self) -> Result<Option<Turn>> {
        if self.first {
            return Ok(None);
        }
        let ahead = self.ahead().map_err(|e| trouble("look at the locks of", &self.path, e))?;
        let fresh = std::mem::take(&mut self.fresh);
        let before = ahead.into_iter().rfind(|ticket| fresh || !is_stopped(self.file.file(), *ticket));
        self.first = before.is_none();
        Ok(before.map(|before| Turn { file: self.file.clone(), identity: self.identity, before }))
    }

    /// How many stand before us.
    pub(super) fn count_ahead(&self) -> Option<usize> {
        if self.first { Some(0) } else { self.ahead().ok().map(|ahead| ahead.len()) }
    }

    /// After one of ours was served: those behind us come before our next one.
    pub(super) fn let_others_pass(&mut self) -> Result<()> {
        let failed = |e| trouble("lock", &self.path, e);
        if others(self.file.file()).map_err(failed)? {
            let ticket = take_ticket(self.file.file()).map_err(failed)?;
            ofd::unlock(self.file.file(), self.ticket..self.ticket + 1);
            self.ticket = ticket;
            self.first = false;
            self.said = None;
        }
        Ok(())
    }

    /// Says who stands here: for people, and for the holder, whose process hears the file being written to.
    pub(super) fn announce(&mut self, head: &Standing, pid: u32) {
        if self.said == Some(head.id) {
            return;
        }
        self.said = Some(head.id);
        let mut announcement = Announcement {
            ticket: self.ticket,
            pid,
            mode: head.mode,
            owner: (*head.owner).clone(),
            since_ms: u64::try_from(head.since.wall.as_millis()).unwrap_or(0),
        };
        let mut text = serde_json::to_vec(&announcement).unwrap_or_default();
        if text.len() >= PLACE {
            announcement.owner.metadata.clear();
            // A letter takes six bytes at the most.
            announcement.owner.owner = announcement.owner.owner.chars().take(PLACE / 6 - 30).collect();
            text = serde_json::to_vec(&announcement).unwrap_or_default();
        }
        text.resize(PLACE - 1, b' ');
        text.push(b'\n');
        // Nobody depends on it.
        let _ = self.file.write_at(&text, place(self.ticket));
    }

    fn ahead(&self) -> io::Result<Vec<i64>> {
        ofd::locked(self.file.file(), Kind::Read, TICKETS.start..self.ticket)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let file = self.file.file();
        if !others(file).unwrap_or(false) {
            lower_flag(&self.main, file);
        }
        // A thread of ours may still wait by this descriptor, so that closing it would not be enough.
        ofd::unlock(file, TICKETS);
    }
}

/// What a thread of ours waits for at the gate.
pub(super) struct Turn {
    file: Arc<LockFile>,
    identity: Identity,
    before: i64,
}

impl Turn {
    pub(super) fn file(&self) -> Identity {
        self.identity
    }

    /// Waits until the one before us has gone; false where the alarm has gone off before.
    pub(super) fn wait(&self) -> bool {
        match ofd::lock_unless_interrupted(self.file.file(), Kind::Read, self.before) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => false,
            // If that fails, whoever asked looks again.
            _ => {
                ofd::unlock(self.file.file(), self.before..self.before + 1);
                true
            }
        }
    }

    /// Whether the one before us cannot move on.
    pub(super) fn is_kept_by_a_stopped_one(&self) -> bool {
        is_stopped(self.file.file(), self.before)
    }
}

impl Directory {
    /// Whether a process stands in line. Disturbs nobody.
    pub(super) fn somebody_stands(&self, key: FileKey) -> Result<bool> {
        self.look_at_queue(key, others)
    }

    /// The same, but not counting those that are stopped.
    pub(super) fn somebody_waits(&self, key: FileKey) -> Result<bool> {
        self.look_at_queue(key, |file| {
            let any = ofd::locked_one(file, Kind::Read, TICKETS)?;
            if any.is_none_or(|ticket| !is_stopped(file, ticket)) {
                return Ok(any.is_some());
            }
            Ok(ofd::locked(file, Kind::Read, TICKETS)?.iter().any(|ticket| !is_stopped(file, *ticket)))
        })
    }

    fn look_at_queue(&self, key: FileKey, look: impl Fn(&File) -> io::Result<bool>) -> Result<bool> {
        let path = self.side_path(key, "queue");
        match open_to_read(&path) {
            Ok(file) => look(&file).map_err(|e| trouble("look at the locks of", &path, e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(trouble("open", &path, e)),
        }
    }

    /// Lowers a flag that was found up though nobody stands in line.
    pub(super) fn lower_stale_flag(&self, key: FileKey, main: &LockFile) {
        if let Ok(queue) = open_to_read(&self.side_path(key, "queue")) {
            lower_flag(main, &queue);
        }
    }

    /// The processes that stand in line, the first one first, and for each of them the claim that is its next.
    pub(super) fn line_up(&self, key: FileKey, now: Moment) -> Vec<(u32, Waiter)> {
        let Ok(file) = open_to_read(&self.side_path(key, "queue")) else { return Vec::new() };
        let tickets = ofd::locked(&file, Kind::Read, TICKETS).unwrap_or_default();
        let said = tickets.into_iter().filter_map(|ticket| read_announcement(&file, ticket));
        said.map(|said| {
            let waited_for = now.wall.checked_sub(Duration::from_millis(said.since_ms));
            let mut owner = said.owner;
            if process_is_stopped(said.pid) {
                owner.metadata.insert("state".to_owned(), "stopped".to_owned());
            }
            (said.pid, Waiter { owner, mode: said.mode, waited_for })
        })
        .collect()
    }
}

fn read_announcement(file: &File, ticket: i64) -> Option<Announcement> {
    let mut text = [0; PLACE];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut text, place(ticket)).ok()?;
    serde_json::from_slice(&text).ok().filter(|said: &Announcement| said.ticket == ticket)
}

/// Whether the process that has a ticket is known to be stopped.
fn is_stopped(file: &File, ticket: i64) -> bool {
    read_announcement(file, ticket).is_some_and(|said| process_is_stopped(said.pid))
}

fn process_is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| says_stopped(&stat))
}

fn place(ticket: i64) -> u64 {
    (ticket % PLACES).unsigned_abs() * PLACE as u64
}

fn take_ticket(file: &File) -> io::Result<i64> {
    let mut ticket = TICKETS.start;
    loop {
        while let Some(other) = ofd::locked_one(file, Kind::Read, ticket..TICKETS.end)? {
            ticket = other + 1;
        }
        if !ofd::try_lock(file, Kind::Write, ticket)? {
            ticket += 1;
            continue;
        }
        // Somebody who looked earlier, when there were more, may have a greater one already: then ours came too late.
        if ofd::locked_one(file, Kind::Read, ticket + 1..TICKETS.end)?.is_none() {
            return Ok(ticket);
        }
        ofd::unlock(file, ticket..ticket + 1);
    }
}

fn others(file: &File) -> io::Result<bool> {
    Ok(ofd::locked_one(file, Kind::Read, TICKETS)?.is_some())
}

fn lower_flag(main: &LockFile, queue: &File) {
    // If it stays up, the next one who finds no ticket lowers it.
    let _ = main.write_at(b"0", WAITING_AT);
    if others(queue).unwrap_or(true) {
        let _ = main.write_at(b"1", WAITING_AT);
    }
}
