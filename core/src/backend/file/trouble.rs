//! What the operating system says, said so that one knows what to do.

use std::{io, path::Path};

use crate::error::{Error, ErrorKind};

/// An error of `doing` something with `path`.
pub(super) fn trouble(doing: &str, path: &Path, error: io::Error) -> Error {
    let (kind, advice) = advice(&error);
    let path = path.display();
    Error::new(kind, format!("cannot {doing} {path}: {error}{advice}")).with_source(error)
}

/// What stands at `path` is not what a lock can live in.
pub(super) fn not_a_file(path: &Path) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!(
            "{} is not a plain file, so somebody has put it there: look who did, then remove it, or use another directory",
            path.display()
        ),
    )
}

#[cfg(unix)]
fn advice(error: &io::Error) -> (ErrorKind, &'static str) {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS | Errno::PERM) => (
            ErrorKind::Denied,
            "; it belongs to another user or is closed to this one: open it to both, or use a directory of your own",
        ),
        Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::MLINK) => (
            ErrorKind::Denied,
            "; it is a symbolic link or another thing that is no file, so somebody has put it there: look who did, then \
             remove it, or use another directory",
        ),
        Some(Errno::NOTDIR | Errno::NAMETOOLONG) => {
            (ErrorKind::InvalidInput, "; give the path of a directory")
        }
        Some(Errno::ROFS) => (ErrorKind::Storage, "; the file system is read-only: use another directory"),
        Some(Errno::NOSPC | Errno::DQUOT) => {
            (ErrorKind::Storage, "; the disk is full: make room, or use another directory")
        }
        Some(Errno::FBIG) => (ErrorKind::Storage, "; raise the limit on file sizes (ulimit -f)"),
        Some(Errno::MFILE) => (ErrorKind::Unavailable, "; raise the limit on open files (ulimit -n)"),
        Some(Errno::NFILE | Errno::NOMEM | Errno::NOLCK | Errno::AGAIN) => {
            (ErrorKind::Unavailable, "; the system is short of it now, asking again may help")
        }
        Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            (ErrorKind::Storage, "; this file system has no locks: use a directory on another one")
        }
        // `.windlass` is not what it should be (lockfile.rs).
        None if error.kind() == io::ErrorKind::NotADirectory => (
            ErrorKind::Denied,
            ": somebody has put it there: look who did, then remove it, or use another directory",
        ),
        _ => (ErrorKind::Storage, ""),
    }
}

#[cfg(not(unix))]
fn advice(error: &io::Error) -> (ErrorKind, &'static str) {
    match error.kind() {
        io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "; use a directory of your own"),
        io::ErrorKind::NotADirectory => (ErrorKind::InvalidInput, "; give the path of a directory"),
        _ => (ErrorKind::Storage, ""),
    }
}
