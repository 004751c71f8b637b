//! Who holds a lock and who stands in line, for people to see.
//!
//! Claims of this process are known exactly. Of other processes the kernel knows which of them hold a lock
//! (`/proc/locks`), and the record says what the last exclusive holder or permit calls itself. Others are named by what
//! the system knows of their process, and so are foreign programs. A holder in another pid namespace is not seen. Of the
//! processes that stand in line, each says at the gate which of its claims is its next; foreign ones are not seen. What a
//! lock is called only its file says, so a lock that Windlass never held is seen by those alone who ask for it by name.

// Only Linux tells which processes hold a lock.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{ErrorKind::PermissionDenied, Read},
    path::Path,
};

use super::{
    dir::Directory,
    line::Held,
    lockfile::{open_to_read, read_head},
    procfs::{KernelLock, Kind, parse_locks, parse_user},
    record::{LONGEST, Record},
    trouble::trouble,
};
use crate::{
    ask::{Holder, Mode, Owner, Status, Waiter},
    error::{Error, Result},
    lockgate::FileKey,
    name::Name,
    time::Moment,
};

impl Held {
    pub(super) fn holder(&self, now: Moment) -> Holder {
        Holder {
            owner: (*self.owner).clone(),
            mode: self.grant.mode,
            fencing_token: self.grant.fencing_token,
            held_for: Some(now.since(self.since)),
        }
    }
}

impl Directory {
    pub(super) fn read_record(&self, key: FileKey) -> Option<Record> {
        let file = open_to_read(&self.main_path(key)).ok()?;
        Record::parse(&read_head(&file, LONGEST).ok()?)
    }

    /// The other processes that hold a lock.
    pub(super) fn others_that_hold(&self, key: FileKey) -> Vec<(u32, Holder)> {
        let locks = self.kernel_locks();
        let record = self.read_record(key);
        self.holders(key, &locks, record.as_ref())
    }

    /// Every lock that is held or waited for, and has a name that begins with `prefix`. Where that is a name itself, it is
    /// `named`, whatever its file says.
    pub(super) fn look(&self, prefix: &str, named: Option<&(FileKey, Name)>) -> Result<Vec<Status>> {
        let locks = self.kernel_locks();
        let mut keys: HashSet<FileKey> = named.map(|(key, _)| *key).into_iter().collect();
        self.each_shard(|lines| keys.extend(lines.keys()));
        // Almost all files of a directory are of locks that nobody holds: they are not opened.
        let path = self.path();
        let held = locked_in(path, &locks, FileKey::parse);
        keys.extend(held.map_err(|e| trouble("read the directory", path, e))?);
        let line_of = |file: &str| FileKey::parse(file.strip_suffix(".queue")?);
        // It may not be there.
        keys.extend(locked_in(self.side(), &locks, line_of).unwrap_or_default());
        let (mut found, mut closed) = (Vec::new(), None);
        for key in keys {
            let name = named.filter(|named| named.0 == key).map(|named| &named.1);
            match self.status(key, name, &locks) {
                Some(status) if status.name.as_str().starts_with(prefix) => found.push(status),
                Some(_) => {}
                None => closed = closed.or_else(|| self.why_closed(key)),
            }
        }
        match closed {
            // An empty list would say that nothing is locked.
            Some(error) if prefix.is_empty() && found.is_empty() => return Err(error),
            Some(error) if prefix.is_empty() => tracing::warn!(%error, "a lock is not listed"),
            _ => {}
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Why this user may not read the file of a lock, if that is so.
    fn why_closed(&self, key: FileKey) -> Option<Error> {
        let path = self.main_path(key);
        let error = open_to_read(&path).err().filter(|e| e.kind() == PermissionDenied)?;
        Some(trouble("read whose lock it is from", &path, error))
    }

    /// One lock; `None` where nobody holds it or waits for it, or where nobody has said what its name is.
    fn status(&self, key: FileKey, name: Option<&Name>, locks: &[KernelLock]) -> Option<Status> {
        let now = self.rt.now();
        let record = self.read_record(key);
        let mut holders = Vec::new();
        let mut ours = Vec::new();
        let mut name = name.cloned();
        if let Some(line) = self.shard(key).get(&key) {
            let held = line.held.first().map(|held| &held.name);
            name = name.or_else(|| held.or(line.queue.front().map(|head| &head.name)).cloned());
            holders.extend(line.held.iter().map(|held| held.holder(now)));
            ours.extend(line.queue.iter().map(|standing| Waiter {
                owner: (*standing.owner).clone(),
                mode: standing.mode,
                waited_for: Some(now.since(standing.since)),
            }));
        }
        holders.extend(self.holders(key, locks, record.as_ref()).into_iter().map(|(_, holder)| holder));
        let name = name.or_else(|| {
            let name: Name = record.as_ref()?.name.parse().ok()?;
            // Somebody may have copied the file.
            [FileKey::sha256(name.as_str()), FileKey::murmur3(name.as_str())].contains(&key).then_some(name)
        })?;
        let mut waiters = Vec::new();
        for (pid, waiter) in self.line_up(key, now) {
            // A process has one place for all of its queue.
            if pid == self.pid { waiters.append(&mut ours) } else { waiters.push(waiter) }
        }
        waiters.append(&mut ours);
        if holders.is_empty() && waiters.is_empty() {
            return None;
        }
        Some(Status { name, holders, waiters })
    }

    /// The one in another process that has written down that it holds the lock, if somebody does: nothing tells more.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn holders(
        &self,
        key: FileKey,
        _locks: &[KernelLock],
        record: Option<&Record>,
    ) -> Vec<(u32, Holder)> {
        let now = self.rt.now();
        let file = super::lockfile::LockFile::open_existing(&self.main_path(key));
        let held =
            file.is_ok_and(|file| matches!(file.try_lock(super::lockfile::Side::Exclusive), Ok(false)));
        let other = record.filter(|record| held && record.pid != self.pid);
        other.map(|record| (record.pid, holder_of(record, now))).into_iter().collect()
    }

    /// Holders in other processes.
    #[cfg(target_os = "linux")]
    pub(super) fn holders(
        &self,
        key: FileKey,
        locks: &[KernelLock],
        record: Option<&Record>,
    ) -> Vec<(u32, Holder)> {
        let Some(inode) = super::lockfile::inode_of(&self.main_path(key)) else { return Vec::new() };
        let now = self.rt.now();
        let mut holders = Vec::new();
        let others = |lock: &&KernelLock| {
            lock.kind == Kind::Flock && lock.inode == inode && !lock.waits && lock.pid != self.pid
        };
        for lock in locks.iter().filter(others) {
            let told = record.filter(|record| {
                record.pid == lock.pid && lock.exclusive == (record.mode == Mode::Exclusive)
            });
            holders.push((
                lock.pid,
                match (told, record) {
                    (Some(record), _) if record.mode != Mode::Shared => holder_of(record, now),
                    (_, Some(record)) if !lock.exclusive => Holder {
                        owner: process(lock.pid),
                        mode: if matches!(record.mode, Mode::Permit(_)) { record.mode } else { Mode::Shared },
                        fencing_token: if matches!(record.mode, Mode::Permit(_)) {
                            0
                        } else {
                            record.token + 1
                        },
                        held_for: None,
                    },
                    _ => Holder {
                        owner: process(lock.pid),
                        mode: if lock.exclusive { Mode::Exclusive } else { Mode::Shared },
                        fencing_token: 0,
                        held_for: None,
                    },
                },
            ));
        }
        holders
    }

    /// The locks on the file system of this directory.
    ///
    /// The kernel gives the list out a page at a time, and passes over locks between two pages, or gives them twice, when
    /// others come and go meanwhile. So a list of more than a page is read until it stands still, and what was seen
    /// once was there.
    pub(super) fn kernel_locks(&self) -> Vec<KernelLock> {
        let device = device(self.path());
        let mut locks: Vec<KernelLock> = Vec::new();
        let mut known: HashMap<KernelLock, usize> = HashMap::new();
        let mut before = String::new();
        for _ in 0..20 {
            let text = read_locks().unwrap_or_default();
            let mut here: HashMap<KernelLock, usize> = HashMap::new();
            for lock in parse_locks(&text).filter(|lock| device.is_none_or(|device| lock.device == device)) {
                let (here, known) = (here.entry(lock).or_default(), known.entry(lock).or_default());
                *here += 1;
                // A process can have several shared locks on a file, by as many claims.
                if *here > *known && (*known == 0 || !lock.exclusive) {
                    *known += 1;
                    locks.push(lock);
                }
            }
            if text.len() < 4000 || text == before {
                break;
            }
            before = text;
        }
        locks
    }
}

/// The locks whose files in a directory somebody has locked.
fn locked_in(
    path: &Path,
    locks: &[KernelLock],
    parse: impl Fn(&str) -> Option<FileKey>,
) -> std::io::Result<Vec<FileKey>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if may_be_locked(&entry, locks) {
            found.extend(entry.file_name().to_str().and_then(&parse));
        }
    }
    Ok(found)
}

#[cfg(target_os = "linux")]
fn may_be_locked(entry: &fs::DirEntry, locks: &[KernelLock]) -> bool {
    let inode = std::os::unix::fs::DirEntryExt::ino(entry);
    locks.iter().any(|lock| lock.inode == inode)
}

#[cfg(not(target_os = "linux"))]
fn may_be_locked(_entry: &fs::DirEntry, _locks: &[KernelLock]) -> bool {
    true
}

/// In large pieces: the kernel fills a small one with a lock or two, and then has lost its place in the list.
fn read_locks() -> std::io::Result<String> {
    let mut file = fs::File::open("/proc/locks")?;
    let (mut piece, mut bytes) = (vec![0; 256 * 1024], Vec::new());
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}

/// The number that the kernel has for the file system of a directory. On btrfs and overlayfs stat(2) gives another one.
#[cfg(target_os = "linux")]
fn device(path: &Path) -> Option<(u32, u32)> {
    use std::os::fd::AsRawFd;

    use super::procfs::{parse_mount_id, parse_mountinfo};

    let directory = fs::File::open(path).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", directory.as_raw_fd())).ok()?;
    parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo").ok()?, parse_mount_id(&info)?)
}

#[cfg(not(target_os = "linux"))]
fn device(_path: &Path) -> Option<(u32, u32)> {
    None
}

pub(super) fn holder_of(record: &Record, now: Moment) -> Holder {
    Holder {
        owner: record.owner.clone(),
        mode: record.mode,
        fencing_token: record.token,
        held_for: record.since.and_then(|since| now.wall.checked_sub(since)),
    }
}

/// A process, by what the system knows of it: `user@host:pid`.
fn process(pid: u32) -> Owner {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = text(&format!("/proc/{pid}/status"));
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|uids| uids.split_ascii_whitespace().next()?.parse().ok());
    let user = uid.map_or_else(
        || "somebody".to_owned(),
        |uid| parse_user(&text("/etc/passwd"), uid).map_or_else(|| format!("uid{uid}"), str::to_owned),
    );
    let host = text("/proc/sys/kernel/hostname");
    let host = if host.is_empty() { "localhost" } else { host.trim() };
    let mut owner = Owner { owner: format!("{user}@{host}:{pid}"), ..Owner::default() };
    let command = text(&format!("/proc/{pid}/comm"));
    if !command.is_empty() {
        owner.metadata.insert("command".to_owned(), command.trim().to_owned());
    }
    owner
}
