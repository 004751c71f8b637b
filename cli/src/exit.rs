//! How the program ends: the exit statuses of sysexits(3), as flock(1) uses them.

use std::{error::Error as _, io};

use windlass::{Error, ErrorKind};

use crate::text;

pub(crate) const USAGE: u8 = 64;
pub(crate) const NO_INPUT: u8 = 66;
pub(crate) const UNAVAILABLE: u8 = 69;
pub(crate) const INTERNAL: u8 = 70;
pub(crate) const OS_ERROR: u8 = 71;
pub(crate) const CANNOT_CREATE: u8 = 73;
pub(crate) const IO_ERROR: u8 = 74;
pub(crate) const DENIED: u8 = 77;
/// The lock was lost while the command ran. Not of sysexits, whose numbers end before it.
pub(crate) const LOST: u8 = 79;
/// `--max-hold` was over: what timeout(1) says.
#[cfg(unix)]
pub(crate) const HELD_TOO_LONG: u8 = 124;
#[cfg(unix)]
pub(crate) const NOT_EXECUTABLE: u8 = 126;
#[cfg(unix)]
pub(crate) const NOT_FOUND: u8 = 127;

/// How the program ends when all has been said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Status(u8),
    /// By this signal, so that a shell or script sees that it was one and ends too.
    #[cfg(unix)]
    Signal(nix::sys::signal::Signal),
    /// By this signal, and with it the rest of our process group: a script in it had the terminal's Ctrl-C coming,
    /// which went to the command instead.
    #[cfg(unix)]
    SignalToGroup(nix::sys::signal::Signal),
}

impl Exit {
    pub(crate) const DONE: Self = Self::Status(0);

    /// The exit status; does not return where a signal ends the process.
    pub(crate) fn status(self) -> i32 {
        match self {
            Self::Status(status) => status.into(),
            #[cfg(unix)]
            Self::Signal(signal) => crate::signals::die_of(signal, false),
            #[cfg(unix)]
            Self::SignalToGroup(signal) => crate::signals::die_of(signal, true),
        }
    }
}

/// Why the program ends early, and with which exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: u8,
    /// `None` when there is nothing to say, or all has been said.
    pub(crate) message: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: u8, message: impl Into<String>) -> Self {
        Self { status, message: Some(message.into()) }
    }

    pub(crate) fn silent(status: u8) -> Self {
        Self { status, message: None }
    }

    /// Says it on stderr; the exit status.
    pub(crate) fn tell(self) -> i32 {
        if let Some(message) = &self.message {
            text::complain(message);
        }
        self.status.into()
    }

    /// What became of writing to stdout. A reader who has gone has read what it wanted.
    pub(crate) fn of_stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(0),
            _ => Self::new(IO_ERROR, format!("cannot write to stdout: {error}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(status(&error), format!("{error:#}"))
    }
}

fn status(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::InvalidName | ErrorKind::InvalidInput | ErrorKind::Unsupported => USAGE,
        ErrorKind::Timeout => 1,
        ErrorKind::Lost(_) | ErrorKind::NotHeld => LOST,
        ErrorKind::Denied => DENIED,
        ErrorKind::Unavailable => UNAVAILABLE,
        ErrorKind::Storage => match cause(error) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => NO_INPUT,
            Some(
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded,
            ) => CANNOT_CREATE,
            _ => IO_ERROR,
        },
        _ => INTERNAL,
    }
}

/// What the operating system said underneath, if it did.
fn cause(error: &Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}
