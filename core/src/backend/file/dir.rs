//! The directory that locks live in: made, checked, and known once in a process.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicPtr, AtomicU64, Ordering},
    },
};

use super::{
    line::Line,
    lockfile::{Fresh, Identity, LockFile, identity, make_directory},
    trouble::trouble,
    watch::Watch,
    who::Questions,
};
use crate::{
    error::{Error, ErrorKind, Result},
    lockgate::FileKey,
    rt::Runtime,
};

/// A lock directory as this process knows it: one value for each directory, whoever opens it, so that all claims of
/// this process stand in one line.
pub(super) struct Directory {
    path: PathBuf,
    /// For what only we read: gates, permits, revocations.
    side: PathBuf,
    access: Access,
    pub(super) rt: Arc<dyn Runtime>,
    /// Asked once: it is a system call, and each acquire writes it down.
    pub(super) pid: u32,
    /// Tells this process from all others that use the directory: in two containers both may have the same pid.
    pub(super) mark: u64,
    /// Which life of the machine this is; 0 where the system does not say.
    pub(super) boot: u32,
    /// Many small tables, so that threads with different locks do not wait for each other's system calls.
    shards: Vec<Mutex<HashMap<FileKey, Line>>>,
    next_id: AtomicU64,
    pub(super) watch: Watch,
    pub(super) questions: Questions,
}

impl Directory {
    /// The one value for this directory in this process.
    pub(super) fn open(path: &Path, rt: Arc<dyn Runtime>) -> Result<Arc<Self>> {
        make(path)?;
        let path = fs::canonicalize(path).map_err(|e| trouble("find", path, e))?;
        let gone = || trouble("look at", &path, std::io::ErrorKind::NotFound.into());
        let id = identity(&path).map_err(|e| trouble("look at", &path, e))?.ok_or_else(gone)?;
        let mut known = registry(rt.process()).lock().unwrap_or_else(PoisonError::into_inner);
        // Where there are no inode numbers all directories look the same; the path tells.
        let key = (id, path.clone());
        if let Some(directory) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(directory);
        }
        known.retain(|_, directory| directory.strong_count() > 0);
        let access = Access::of(&path).map_err(|e| trouble("look at", &path, e))?;
        let directory = Arc::new(Self {
            side: path.join(SIDE),
            path,
            access,
            mark: rt.random() as u64,
            rt,
            pid: std::process::id(),
            boot: boot(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_id: AtomicU64::new(1),
            watch: Watch::default(),
            questions: Questions::default(),
        });
        known.insert(key, Arc::downgrade(&directory));
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn side(&self) -> &Path {
        &self.side
    }

    /// The file that the lock is.
    pub(super) fn main_path(&self, key: FileKey) -> PathBuf {
        self.path.join(key.to_string())
    }

    /// A file beside it, in `.windlass`.
    pub(super) fn side_path(&self, key: FileKey, suffix: &str) -> PathBuf {
        self.side.join(format!("{key}.{suffix}"))
    }

    pub(super) fn open_main(&self, path: &Path) -> Result<LockFile> {
        match LockFile::open(path, self.access.file) {
            // Somebody has cleaned up below us.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                make(&self.path)?;
                LockFile::open(path, self.access.file)
            }
            opened => opened,
        }
        .map_err(|e| trouble("open the lock file", path, e))
    }

    pub(super) fn open_side(&self, path: &Path) -> Result<LockFile> {
        match LockFile::open(path, self.access.file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.make_side()?;
                LockFile::open(path, self.access.file)
            }
            opened => opened,
        }
        .map_err(|e| trouble("open", path, e))
    }

    pub(super) fn make_side(&self) -> Result<()> {
        make(&self.path)?;
        make_directory(&self.side, self.access.side).map_err(|e| trouble("make", &self.side, e))?;
        match fs::symlink_metadata(&self.side) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::Denied,
                format!("{} is not a directory: look who put it there, then remove it", self.side.display()),
            )),
            Err(e) => Err(trouble("look at", &self.side, e)),
        }
    }

    pub(super) fn shard(&self, key: FileKey) -> MutexGuard<'_, HashMap<FileKey, Line>> {
        let at = match key {
            FileKey::Sha256(hash) => usize::from(hash[0]),
            FileKey::Murmur3(hash) => hash as usize,
        };
        self.shards[at % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines, a shard at a time.
    pub(super) fn each_shard(&self, mut look: impl FnMut(&mut HashMap<FileKey, Line>)) {
        for shard in &self.shards {
            look(&mut shard.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A number that was not given before.
    pub(super) fn fresh_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Directory").field(&self.path).finish()
    }
}

const SHARDS: usize = 64;
/// The directory in the directory.
pub(super) const SIDE: &str = ".windlass";

fn boot() -> u32 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    id.and_then(|id| u32::from_str_radix(id.get(..8)?, 16).ok()).unwrap_or(0)
}

type Registry = Mutex<HashMap<(Identity, PathBuf), Weak<Directory>>>;

/// The directories of this process. After a `fork` the child has a registry of its own, and leaves the parent's as it
/// is: another thread may have held its lock at that moment.
fn registry(process: u32) -> &'static Registry {
    struct Slot {
        process: u32,
        registry: Registry,
    }
    static SLOT: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
    let mut current = SLOT.load(Ordering::Acquire);
    loop {
        // SAFETY: a pointer in SLOT comes from Box::into_raw below and is never freed once it is there.
        if let Some(slot) = unsafe { current.as_ref() }
            && slot.process == process
        {
            return &slot.registry;
        }
        let fresh = Box::into_raw(Box::new(Slot { process, registry: Registry::default() }));
        match SLOT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: as above.
            Ok(_) => return unsafe { &(*fresh).registry },
            Err(winner) => {
                // SAFETY: `fresh` came from Box::into_raw and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                current = winner;
            }
        }
    }
}

/// Makes a directory that somebody named, with its parents, as lockgate does: mode 0755 less the umask.
fn make(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{} is not a directory: give the path of one, or of one to be made", path.display()),
            ));
        }
        Err(_) if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is a symbolic link that leads nowhere: make what it points to, or remove it",
                    path.display()
                ),
            ));
        }
        Err(_) => {}
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder.create(path).map_err(|e| trouble("make the directory", path, e))
}

/// The directory of this user on this machine: `/tmp/windlass-UID`, made with mode 0700. Whatever the environment says: a shell,
/// a cron job and a service of one user have different ones, and `$XDG_RUNTIME_DIR` goes away when the user logs out.
///
/// # Errors
/// [`ErrorKind::Denied`] when there is something else in its place, or another user could tamper with it.
#[cfg(unix)]
pub(crate) fn default_dir() -> Result<PathBuf> {
    default_dir_in(Path::new("/tmp"))
}

#[cfg(unix)]
fn default_dir_in(temporary: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    let user = rustix::process::geteuid().as_raw();
    let path = temporary.join(format!("windlass-{user}"));
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(trouble("make the directory", &path, e));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(&path).map_err(|e| trouble("look at", &path, e))?;
    let wrong = if found.is_symlink() {
        "is a symbolic link"
    } else if !found.is_dir() {
        "is not a directory"
    } else if found.uid() != user {
        "belongs to another user"
    } else if found.mode() & 0o022 != 0 {
        "can be written by other users"
    } else {
        return Ok(path);
    };
    let path = path.display();
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "{path} {wrong}, so locks in it cannot be trusted: remove it or mend it (chmod 700 {path}), or name a \
             directory, as in file:///DIR"
        ),
    ))
}

/// The directory of this user on this machine: in the directory for temporary files, which belongs to the user here.
///
/// # Errors
/// When it cannot be made.
#[cfg(not(unix))]
pub(crate) fn default_dir() -> Result<PathBuf> {
    let path = std::env::temp_dir().join("windlass");
    make(&path)?;
    Ok(path)
}

/// With which rights files are made. A directory that only its owner can write to has files of mode 0600, as
/// lockgate's. In one that others can write to, those others can also lock and write the files in it: that is what such
/// a directory is for. What root makes in another user's directory is that user's, who could never use it else.
#[derive(Clone, Copy, Debug, Default)]
struct Access {
    file: Fresh,
    side: Fresh,
}

impl Access {
    #[cfg(unix)]
    fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let found = fs::metadata(path)?;
        let mode = found.mode();
        let shared =
            (if mode & 0o020 != 0 { 0o060 } else { 0 }) | (if mode & 0o002 != 0 { 0o006 } else { 0 });
        let is_anothers = rustix::process::geteuid().is_root() && found.uid() != 0;
        let owner = is_anothers.then(|| (found.uid(), found.gid()));
        Ok(Self { file: Fresh { mode: 0o600 | shared, owner }, side: Fresh { mode: mode & 0o7777, owner } })
    }

    #[cfg(not(unix))]
    #[allow(clippy::unnecessary_wraps, reason = "as on the other systems")]
    fn of(_path: &Path) -> std::io::Result<Self> {
        Ok(Self::default())
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn scratch(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("windlass-default-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_default_is_this_users() {
        let dir = scratch("where");
        let path = dir.0.join(format!("windlass-{}", rustix::process::geteuid().as_raw()));
        assert_eq!(default_dir_in(&dir.0).unwrap(), path);
        assert_eq!(default_dir_in(&dir.0).unwrap(), path, "again");
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_default_that_others_could_tamper_with_is_refused_with_advice() {
        let dir = scratch("refused");
        let user = rustix::process::geteuid().as_raw();
        let path = dir.0.join(format!("windlass-{user}"));
        let refused = |why: &str| {
            let error = default_dir_in(&dir.0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            for part in [why, path.to_str().unwrap(), "chmod 700"] {
                assert!(error.to_string().contains(part), "{part:?} in {error}");
            }
        };
        fs::create_dir(dir.0.join("elsewhere")).unwrap();
        symlink("elsewhere", &path).unwrap();
        refused("symbolic link");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        refused("not a directory");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        for loose in [0o720, 0o702, 0o1777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(loose)).unwrap();
            refused("other users");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(default_dir_in(&dir.0).unwrap(), path, "others may look");
        if user == 0 {
            // Only root can give a directory away.
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            refused("belongs to another user");
        }
    }

    #[test]
    fn what_root_makes_in_the_directory_of_another_user_is_that_users() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = scratch("gift");
        let key = FileKey::sha256("x");
        for (user, mode, of_files) in [(12_345, 0o755, 0o600), (0, 0o755, 0o600), (12_345, 0o2770, 0o660)] {
            let path = dir.0.join(format!("{user}-{mode:o}"));
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(user), Some(user + 1)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let directory = Directory::open(&path, Arc::new(crate::rt::Native)).unwrap();
            directory.open_main(&directory.main_path(key)).unwrap();
            directory.open_side(&directory.side_path(key, "queue")).unwrap();
            let side = directory.side().to_owned();
            for made in [directory.main_path(key), directory.side_path(key, "queue"), side] {
                let found = fs::metadata(&made).unwrap();
                let owner = if user == 0 { (0, 0) } else { (user, user + 1) };
                assert_eq!((found.uid(), found.gid()), owner, "{}", made.display());
                let expected = if found.is_dir() { mode } else { of_files };
                assert_eq!(found.mode() & 0o7777, expected, "{}", made.display());
            }
        }
    }
}
