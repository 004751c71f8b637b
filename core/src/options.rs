//! What a program can say when it asks for a lock, and the check that it fits together.

use std::{any::Any, collections::BTreeMap, fmt, num::NonZeroU32, sync::Arc, time::Duration};

use crate::{
    ask::{Entry, Mode, Owner, Waiting},
    backend::Capabilities,
    error::{Error, ErrorKind, LostReason, Result},
    name::Name,
    ticket::Ticket,
};

/// The TTL unless told otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);
/// The shortest TTL.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// The longest TTL: a dead holder's lock should not stay taken for longer.
pub const MAX_TTL: Duration = Duration::from_secs(3600);

/// What callbacks about a held lock are told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Notice {
    /// Which lock.
    pub name: Name,
    /// The number of the grant.
    pub fencing_token: u64,
    /// For how long it has been held.
    pub held_for: Duration,
    /// Why it was lost, for `on_lost`.
    pub lost: Option<LostReason>,
}

/// Called with a notice, apart from the program's own tasks; neither its slowness nor its panic harms the lock.
pub(crate) type Callback = Arc<dyn Fn(&Notice) + Send + Sync>;
/// Called when the wait begins; what it returns is dropped when the wait is over.
pub(crate) type OnWait = Arc<dyn Fn(&Waiting) -> Box<dyn Any + Send> + Send + Sync>;

/// Called with what went wrong while waiting.
pub(crate) type OnTrouble = Arc<dyn Fn(&Error) + Send + Sync>;

/// How long to hold, and whom to tell.
#[derive(Clone, Default)]
pub(crate) struct Hold {
    pub(crate) max_hold: Option<Duration>,
    pub(crate) hold_at_least: Duration,
    pub(crate) random_delay: Duration,
    pub(crate) on_acquired: Option<Callback>,
    pub(crate) on_lost: Option<Callback>,
    pub(crate) on_contended: Option<Callback>,
    pub(crate) on_held_too_long: Option<Callback>,
}

/// All that one acquire was asked with.
#[derive(Clone)]
pub(crate) struct AcquireOptions {
    pub(crate) mode: Mode,
    pub(crate) entry: Entry,
    pub(crate) timeout: Option<Duration>,
    pub(crate) keep_place: Option<Duration>,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) ttl: Duration,
    /// What differs from the locker's own, which is that of the process that asks: it may be a child of the one that
    /// made this.
    pub(crate) owner: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) hold: Hold,
    pub(crate) on_wait: Option<OnWait>,
    pub(crate) on_trouble: Option<OnTrouble>,
}

impl AcquireOptions {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self {
            mode: Mode::Exclusive,
            entry: Entry::Queue,
            timeout: None,
            keep_place: None,
            ticket: None,
            ttl,
            owner: None,
            metadata: BTreeMap::new(),
            hold: Hold::default(),
            on_wait: None,
            on_trouble: None,
        }
    }

    /// Who asks, where `own` is what the locker says.
    pub(crate) fn owner(&self, own: &Arc<Owner>) -> Arc<Owner> {
        if self.owner.is_none() && self.metadata.is_empty() {
            return own.clone();
        }
        let mut metadata = own.metadata.clone();
        metadata.extend(self.metadata.clone());
        Arc::new(Owner { owner: self.owner.clone().unwrap_or_else(|| own.owner.clone()), metadata })
    }

    /// Refuses what contradicts itself or what the backend cannot do, in words, before anything is sent.
    pub(crate) fn check(&self, names: &[Name], can: &Capabilities) -> Result<()> {
        check_ttl(self.ttl)?;
        self.check_place(names)?;
        let hold = &self.hold;
        if let Some(max_hold) = hold.max_hold {
            if max_hold.is_zero() {
                return Err(contradiction("max_hold is zero: leave it out to hold without a limit"));
            }
            if hold.hold_at_least > max_hold {
                return Err(contradiction(
                    "hold_at_least is longer than max_hold: make it shorter, or max_hold longer",
                ));
            }
            if hold.random_delay >= max_hold {
                return Err(contradiction(
                    "random_delay may use up all of max_hold: make it shorter, or max_hold longer",
                ));
            }
        }
        if self.entry == Entry::Steal && self.mode != Mode::Exclusive {
            return Err(contradiction(
                "only an exclusive claim can steal: leave out steal, or ask for exclusive",
            ));
        }
        if self.entry == Entry::Try && self.timeout.is_some() {
            return Err(contradiction("try_acquire never waits: leave out the timeout, or acquire with it"));
        }
        let missing = match self.mode {
            Mode::Shared if !can.shared => Some("shared claims"),
            Mode::Upgradable if !can.upgrade => Some("upgradable claims"),
            Mode::Permit(_) if !can.permit => Some("permits"),
            _ if self.entry == Entry::Steal && !can.steal => Some("steal"),
            _ if (self.keep_place.is_some() || self.ticket.is_some()) && !can.keep_place => {
                Some("a place in the queue that is kept")
            }
            _ => None,
        };
        missing.map_or(Ok(()), |what| Err(unsupported(what)))
    }
}

impl AcquireOptions {
    /// What is said of a place in the queue.
    fn check_place(&self, names: &[Name]) -> Result<()> {
        if self.keep_place.is_none() && self.ticket.is_none() {
            return Ok(());
        }
        let [name] = names else {
            return Err(contradiction("a place is kept in one queue only: ask for the locks one by one"));
        };
        if self.entry != Entry::Queue {
            return Err(contradiction(
                "a try or a steal has no place in the queue: leave out keep_place and ticket",
            ));
        }
        if let Some(keep) = self.keep_place {
            if self.timeout.is_none() {
                return Err(contradiction("keep_place is for when the timeout is over: give one"));
            }
            if keep.is_zero() || keep > MAX_TTL {
                return Err(contradiction("keep_place is more than nothing and at most an hour"));
            }
        }
        match &self.ticket {
            Some(ticket) if ticket.name() != name => {
                Err(contradiction("the ticket is of another lock: ask for that one"))
            }
            Some(ticket) if ticket.mode != self.mode => {
                let message = format!("the ticket's claim is {}: ask for the lock in this mode", ticket.mode);
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for AcquireOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcquireOptions")
            .field("mode", &self.mode)
            .field("entry", &self.entry)
            .field("timeout", &self.timeout)
            .field("keep_place", &self.keep_place)
            .field("ticket", &self.ticket)
            .field("ttl", &self.ttl)
            .field("owner", &self.owner)
            .field("metadata", &self.metadata)
            .field("max_hold", &self.hold.max_hold)
            .field("hold_at_least", &self.hold.hold_at_least)
            .field("random_delay", &self.hold.random_delay)
            .finish_non_exhaustive()
    }
}

/// A permit mode, if the limit makes sense.
pub(crate) fn permit(limit: u32) -> Result<Mode> {
    NonZeroU32::new(limit)
        .map(Mode::Permit)
        .ok_or_else(|| contradiction("a semaphore with limit 0 lets nobody in: give a limit of 1 or more"))
}

pub(crate) fn check_ttl(ttl: Duration) -> Result<()> {
    if ttl < MIN_TTL {
        return Err(contradiction(
            "the TTL is shorter than 1 s: a lease that short is lost to the first slow request",
        ));
    }
    if ttl > MAX_TTL {
        return Err(contradiction(
            "the TTL is longer than an hour: a dead holder's lock would stay taken for as long; claims are renewed \
             automatically, so a short TTL does not end a long hold",
        ));
    }
    Ok(())
}

/// Refuses what is too long to be shown.
pub(crate) fn check_owner(owner: &str) -> Result<()> {
    const MAX_BYTES: usize = 1024;
    if owner.len() > MAX_BYTES {
        return Err(contradiction("the owner is longer than 1 KiB: people are to read it"));
    }
    Ok(())
}

pub(crate) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    const MAX_BYTES: usize = 2048;
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_BYTES {
        return Err(contradiction(
            "the metadata is larger than 2 KiB: keep it elsewhere and put a reference here",
        ));
    }
    Ok(())
}

pub(crate) fn contradiction(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

pub(crate) fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("this backend cannot do {what}; see its page in the documentation"),
    )
}
