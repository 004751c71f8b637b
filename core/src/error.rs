//! One error type for everything. Its [`ErrorKind`] says what a caller can do about it; its text says what happened,
//! to which lock, in which backend, and what to do; its source is the cause underneath.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{ask::Waiting, name::Name, ticket::Ticket};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error. A new kind may come with any release: end a `match` with `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name is empty, too long or not UTF-8. Nothing was sent. Choose another name.
    InvalidName,
    /// A URL, an option or a ticket makes no sense, or options contradict each other. Nothing was sent. Correct it.
    InvalidInput,
    /// This backend cannot do what was asked; [`Capabilities`](crate::Capabilities) tells beforehand.
    Unsupported,
    /// The lock could not be had within the timeout; [`Error::waiting`] says who holds it. Nothing is left behind, but for a
    /// place that was to be kept: [`Error::ticket`].
    Timeout,
    /// The lock was held and is no longer: stop the guarded work.
    Lost(LostReason),
    /// The claim is not there: released, expired, or never granted.
    NotHeld,
    /// The backend refused: wrong credentials, missing rights, an untrustworthy directory.
    Denied,
    /// The backend cannot be reached or does not answer just now. Asking again may help.
    Unavailable,
    /// The backend was reached and cannot do its work: disk full, read-only, damaged data. Somebody must mend it.
    Storage,
    /// The locker was closed, or its process was left by `fork`.
    Closed,
    /// A fault of this library. Please report it.
    Internal,
}

/// Why a lock that was held ended without its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LostReason {
    /// It was not renewed in time: the process was stopped, or `max_hold` was over.
    #[error("expired")]
    Expired,
    /// The backend could not be reached until the TTL had run out.
    #[error("unreachable")]
    Unreachable,
    /// An operator freed it, or the record of it was taken away.
    #[error("force_released")]
    ForceReleased,
    /// Another claim took it over with `steal`.
    #[error("stolen")]
    Stolen,
    /// The session in the backend that all claims of this locker hang on has ended.
    #[error("session_ended")]
    SessionEnded,
}

/// What went wrong. Cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    backend: Option<String>,
    lock: Option<Name>,
    waiting: Option<Waiting>,
    ticket: Option<Ticket>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what happened and what to do, in words that hold no secret.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            backend: None,
            lock: None,
            waiting: None,
            ticket: None,
            retry_after: None,
            source: None,
        }))
    }

    /// With the error underneath.
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.with(|e| e.source = Some(Arc::new(source)))
    }

    /// With the backend it happened in, as a URL without credentials.
    #[must_use]
    pub fn with_backend(self, backend: impl Into<String>) -> Self {
        self.with(|e| e.backend = Some(backend.into()))
    }

    /// With the lock it happened to.
    #[must_use]
    pub fn with_lock(self, lock: &Name) -> Self {
        self.with(|e| e.lock = Some(lock.clone()))
    }

    /// With who holds the lock and which place in the queue one had.
    #[must_use]
    pub fn with_waiting(self, waiting: Waiting) -> Self {
        self.with(|e| e.waiting = Some(waiting))
    }

    /// With the place in the queue that is kept.
    #[must_use]
    pub fn with_ticket(self, ticket: Ticket) -> Self {
        self.with(|e| e.ticket = Some(ticket))
    }

    /// With the time after which the backend wants to be asked again.
    #[must_use]
    pub fn with_retry_after(self, after: Duration) -> Self {
        self.with(|e| e.retry_after = Some(after))
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The lock it happened to.
    pub fn lock(&self) -> Option<&Name> {
        self.0.lock.as_ref()
    }

    /// The backend it happened in, as a URL without credentials.
    pub fn backend(&self) -> Option<&str> {
        self.0.backend.as_deref()
    }

    /// What the message says, without backend, lock and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// For a [`Timeout`](ErrorKind::Timeout): who holds the lock and which place in the queue one had, as last heard.
    pub fn waiting(&self) -> Option<&Waiting> {
        self.0.waiting.as_ref()
    }

    /// For an acquire that was to [keep its place](crate::Lock::keep_place): the ticket of the place. It is a secret, and no text
    /// of the error has it.
    pub fn ticket(&self) -> Option<&Ticket> {
        self.0.ticket.as_ref()
    }

    /// When the backend wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Why the lock was lost, for a [`Lost`](ErrorKind::Lost).
    pub fn lost_reason(&self) -> Option<LostReason> {
        match self.0.kind {
            ErrorKind::Lost(reason) => Some(reason),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    /// `{}`: lock, backend and message. `{:#}`: the causes underneath, too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(lock) = &self.0.lock {
            write!(f, "lock \"{lock}\"")?;
            if let Some(backend) = &self.0.backend {
                write!(f, " in {backend}")?;
            }
            f.write_str(": ")?;
        } else if let Some(backend) = &self.0.backend {
            write!(f, "{backend}: ")?;
        }
        f.write_str(&self.0.message)?;
        let mut cause = self.source().filter(|_| f.alternate());
        while let Some(error) = cause {
            let text = error.to_string();
            // Many a message says it already.
            if !self.0.message.contains(&text) {
                write!(f, ": {text}")?;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}
