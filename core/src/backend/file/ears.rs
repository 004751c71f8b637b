//! Hearing what other processes do to files. Where the system has no inotify, or none left, the listener looks at
//! intervals instead.

use std::{io::Result, path::Path, time::Duration};

/// Something happened in a directory, or to a file, that is listened to.
pub(super) struct Noise {
    /// Where: the number that `listen` gave.
    pub(super) place: i32,
    /// To which file of a directory.
    pub(super) file: Option<String>,
    /// Not all that happened could be told.
    pub(super) overflow: bool,
}

/// What to listen to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum To {
    /// Files of this directory that appear, vanish or are replaced.
    Names,
    /// That, and files that are written to.
    Writes,
    /// That, and files that were open for writing and are closed.
    Changes,
    /// This file being closed by anybody who had it open for writing.
    Closes,
}

pub(super) use sys::Ears;

#[cfg(target_os = "linux")]
mod sys {
    use std::{mem::MaybeUninit, os::fd::OwnedFd, time::Duration};

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch},
    };

    use super::{super::lockfile::fork, Noise, Path, Result, To};

    /// An inotify instance.
    pub(in super::super) struct Ears(OwnedFd);

    impl Ears {
        pub(in super::super) fn new() -> Result<Self> {
            let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            fork::opened(&fd);
            Ok(Self(fd))
        }

        /// Listens to a place, or to something else of a place that is listened to already.
        pub(in super::super) fn listen(&self, path: &Path, to: To) -> Result<i32> {
            let names =
                WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR;
            let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            let flags = match to {
                To::Names => names | itself,
                To::Writes => names | itself | WatchFlags::MODIFY,
                To::Changes => names | itself | WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE,
                To::Closes => WatchFlags::CLOSE_WRITE | itself,
            };
            Ok(add_watch(&self.0, path, flags)?)
        }

        /// Ends one place; whoever waits hears that, too.
        pub(in super::super) fn stop(&self, place: i32) {
            // It may have ended with its directory.
            let _ = remove_watch(&self.0, place);
        }

        /// Waits until there is something to hear, or the time is over; whether there is.
        pub(in super::super) fn wait(&self, time: Duration) -> bool {
            let time = Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            };
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
        }

        /// What there is to hear.
        pub(in super::super) fn hear(&self, mut tell: impl FnMut(Noise)) {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(&self.0, &mut buffer);
            while let Ok(event) = reader.next() {
                tell(Noise {
                    place: event.wd(),
                    file: event.file_name().map(|name| name.to_string_lossy().into_owned()),
                    overflow: event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                });
            }
        }
    }

    impl Drop for Ears {
        fn drop(&mut self) {
            fork::closing(&self.0);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::convert::Infallible;

    use super::{Duration, Noise, Path, Result, To};

    /// There are none here.
    pub(in super::super) struct Ears(Infallible);

    impl Ears {
        pub(in super::super) fn new() -> Result<Self> {
            Err(std::io::ErrorKind::Unsupported.into())
        }

        pub(in super::super) fn listen(&self, _path: &Path, _to: To) -> Result<i32> {
            match self.0 {}
        }

        pub(in super::super) fn stop(&self, _place: i32) {
            match self.0 {}
        }

        pub(in super::super) fn wait(&self, _time: Duration) -> bool {
            match self.0 {}
        }

        pub(in super::super) fn hear(&self, _tell: impl FnMut(Noise)) {
            match self.0 {}
        }
    }
}

/// Waits for something to hear, or lets the time pass where there is nothing to listen with.
pub(super) fn wait(ears: Option<&Ears>, time: Duration) -> bool {
    match ears {
        Some(ears) => ears.wait(time),
        None => {
            std::thread::park_timeout(time);
            false
        }
    }
}
