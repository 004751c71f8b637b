//! How many claims there are, whose they are, and whether there may be more.
//!
//! The locks know their claims but not whose they are; this ledger does. It is never behind the locks, and may be ahead of them
//! for a moment: a claim is written down before it is asked for, and struck out after it has ended.
//!
//! ```text
//!  begin ----> Asked --- waits ---> Waiting --- granted ---> Held --- released, lost, not renewed ---> gone
//!                |                     |
//!                +-- busy, refused ----+--- nobody speaks for it any more, and its place is kept no longer ----> gone
//! ```
//!
//! - **The same claim asked twice** at once, after a broken connection: the later request speaks for it, so what the earlier one
//!   leaves behind changes nothing (the number of the entry says who speaks).
//! - **A release overtakes an acquire**: the entry is gone, and the acquire that ends later finds none to change.
//! - **A claim ends elsewhere** (its TTL, or force for one of several grants): its entry goes when its holder asks to renew it or when its
//!   TTL is over, whichever is first. Until then it counts.
//! - **Over a limit** nothing is looked for or cleaned up: a refusal costs the server less than it costs who asks. What has run out
//!   is struck out by [`Ledger::sweep`], about once a second.

use std::{
    collections::{HashMap, hash_map},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use windlass::{
    Error, ErrorKind, LostReason, Name,
    ask::{Claim, Grant, Renewal},
};

use crate::{
    audit::{Audit, Event, What},
    options::Limits,
};

mod accounts;
mod connections;

pub(crate) use accounts::{Account, Accounts};
pub(crate) use connections::{Connections, Place, whose};

const SHARDS: usize = 16;
/// Granters round up, and may have stood still.
const SLACK: Duration = Duration::from_secs(1);
/// When to ask again: by then the ledger has been swept.
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: Arc<str>,
    claim: Claim,
}

struct Entry {
    account: Arc<Account>,
    state: State,
    /// Who speaks for it.
    number: u64,
    /// When it is gone if nobody says otherwise; `None` while somebody speaks for it.
    until: Option<Instant>,
    /// For the audit log only.
    owner: Option<Arc<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    Waiting,
    Held { fencing_token: u64 },
}

/// A claim of which nothing was heard for its TTL.
pub(crate) struct Expired {
    key: Key,
    entry: Entry,
}

impl Expired {
    /// The namespace, the lock and the fencing token, if it was held.
    pub(crate) fn grant(&self) -> Option<(&str, &Name, u64)> {
        match self.entry.state {
            State::Held { fencing_token } => Some((&self.key.namespace, &self.key.claim.name, fencing_token)),
            State::Asked | State::Waiting => None,
        }
    }
}

/// All claims of a server.
pub(crate) struct Ledger {
    limits: Limits,
    audit: Option<Audit>,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    claims: AtomicUsize,
    waiters: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<Key, Entry>,
    next: u64,
}

/// Who asks, for the ledger.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) account: &'a Arc<Account>,
    pub(crate) most_claims: Option<usize>,
    pub(crate) owner: &'a str,
    /// For how long his claims keep their places once he speaks for them no more.
    pub(crate) keep: Duration,
}

impl Ledger {
    pub(crate) fn new(limits: Limits, audit: Option<Audit>) -> Self {
        Self {
            limits,
            audit,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            claims: AtomicUsize::new(0),
            waiters: AtomicUsize::new(0),
        }
    }

    pub(crate) fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        // The remainder is below the number of shards.
        #[allow(clippy::cast_possible_truncation)]
        let place = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is about to be asked for.
    ///
    /// # Errors
    /// Over a limit, and then nothing is written down.
    pub(crate) fn begin(
        self: &Arc<Self>,
        asker: Asker<'_>,
        namespace: &Arc<str>,
        claims: &[Claim],
    ) -> Result<Booking, TooMany> {
        let keys = claims.iter().map(|claim| Key { namespace: namespace.clone(), claim: claim.clone() });
        let mut booking =
            Booking { ledger: self.clone(), spoken: Vec::with_capacity(claims.len()), keep: asker.keep };
        for key in keys {
            match self.write_down(asker, &key) {
                Ok((number, before)) => booking.spoken.push(Spoken { key, number, before }),
                Err(error) => {
                    booking.undo();
                    return Err(error);
                }
            }
        }
        Ok(booking)
    }

    /// The number of who speaks for it now, and who did before.
    fn write_down(&self, asker: Asker<'_>, key: &Key) -> Result<(u64, Option<Before>), TooMany> {
        let mut shard = self.shard(key);
        shard.next += 1;
        let number = shard.next;
        match shard.entries.entry(key.clone()) {
            hash_map::Entry::Occupied(mut known) => {
                let known = known.get_mut();
                let before = Before { number: known.number, until: known.until };
                known.number = number;
                if !matches!(known.state, State::Held { .. }) {
                    known.until = None;
                }
                Ok((number, Some(before)))
            }
            hash_map::Entry::Vacant(new) => {
                let most = asker.most_claims.unwrap_or(self.limits.claims_each).min(self.limits.claims_each);
                one_more(&asker.account.claims, most, TooMany::OfOne("claims", most))?;
                if let Err(error) = one_more(&self.claims, self.limits.claims, TooMany::OfAll("claims")) {
                    asker.account.claims.fetch_sub(1, Ordering::Relaxed);
                    return Err(error);
                }
                new.insert(Entry {
                    account: asker.account.clone(),
                    state: State::Asked,
                    number,
                    until: None,
                    owner: self.audit.is_some().then(|| asker.owner.into()),
                });
                Ok((number, None))
            }
        }
    }

    /// Nobody waits for it any more.
    fn no_waiter(&self, entry: &Entry) {
        if entry.state == State::Waiting {
            entry.account.waiters.fetch_sub(1, Ordering::Relaxed);
            self.waiters.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It is no longer in the ledger.
    fn gone(&self, entry: &Entry) {
        self.no_waiter(entry);
        entry.account.claims.fetch_sub(1, Ordering::Relaxed);
        self.claims.fetch_sub(1, Ordering::Relaxed);
    }

    fn tell(&self, what: What, who: &str, key: &Key, entry: &Entry) {
        let (Some(audit), State::Held { fencing_token }) = (&self.audit, entry.state) else { return };
        audit.write(&Event {
            namespace: Some(&key.namespace),
            lock: Some(&key.claim.name),
            owner: entry.owner.as_deref(),
            fencing_token: Some(fencing_token),
            ..Event::new(what, who)
        });
    }

    /// These were released by `who`.
    pub(crate) fn released(&self, who: &str, namespace: &Arc<str>, claims: &[Claim]) {
        for claim in claims {
            let key = Key { namespace: namespace.clone(), claim: claim.clone() };
            let entry = self.shard(&key).entries.remove(&key);
            if let Some(entry) = entry {
                self.gone(&entry);
                self.tell(What::Released, who, &key, &entry);
            }
        }
    }

    /// What became of these in a renewal.
    pub(crate) fn renewed(
        &self,
        account: &Arc<Account>,
        namespace: &Arc<str>,
        claims: &[Claim],
        renewals: &[Renewal],
    ) {
        let now = Instant::now();
        for (claim, renewal) in claims.iter().zip(renewals) {
            let key = Key { namespace: namespace.clone(), claim: claim.clone() };
            let mut shard = self.shard(&key);
            let lost = match renewal {
                Renewal::Renewed(grant) => {
                    match shard.entries.get_mut(&key) {
                        Some(entry) => drop(self.hold(entry, grant, now)),
                        // Of before this server started: it counts, and is not refused.
                        None => {
                            account.claims.fetch_add(1, Ordering::Relaxed);
                            self.claims.fetch_add(1, Ordering::Relaxed);
                            let state = State::Held { fencing_token: grant.fencing_token };
                            let entry = Entry {
                                account: account.clone(),
                                state,
                                number: 0,
                                until: until(grant, now),
                                owner: None,
                            };
                            shard.entries.insert(key, entry);
                        }
                    }
                    continue;
                }
                Renewal::Lost(reason) => *reason,
                Renewal::NotHeld => LostReason::Expired,
                Renewal::Unknown(_) => continue,
            };
            let entry = shard.entries.remove(&key);
            drop(shard);
            if let Some(entry) = entry {
                self.gone(&entry);
                self.tell(What::Lost(lost), &entry.account.name, &key, &entry);
            }
        }
    }

    /// These grants of a lock were ended by force; `except` is that of the thief.
    ///
    /// Looks at everything: whoever has this right does it rarely.
    pub(crate) fn forced(&self, namespace: &str, name: &Name, except: Option<&Claim>, reason: LostReason) {
        for shard in &self.shards {
            let over = |key: &Key, entry: &mut Entry| {
                key.claim.name == *name
                    && *key.namespace == *namespace
                    && matches!(entry.state, State::Held { .. })
                    && except != Some(&key.claim)
            };
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let over: Vec<(Key, Entry)> = shard.entries.extract_if(over).collect();
            drop(shard);
            for (key, entry) in over {
                self.gone(&entry);
                self.tell(What::Lost(reason), &entry.account.name, &key, &entry);
            }
        }
    }

    fn hold(&self, entry: &mut Entry, grant: &Grant, now: Instant) -> bool {
        self.no_waiter(entry);
        let was_held = matches!(entry.state, State::Held { .. });
        entry.state = State::Held { fencing_token: grant.fencing_token };
        entry.until = until(grant, now);
        !was_held
    }

    /// Strikes out what has run out; in parts, so that nobody waits for long.
    pub(crate) fn sweep(&self, now: Instant) -> Vec<Expired> {
        let mut expired = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let over = |_: &Key, entry: &mut Entry| entry.until.is_some_and(|until| until <= now);
            expired.extend(shard.entries.extract_if(over).map(|(key, entry)| Expired { key, entry }));
            if shard.entries.capacity() > 1024 && shard.entries.len() < shard.entries.capacity() / 8 {
                shard.entries.shrink_to_fit();
            }
        }
        for Expired { entry, .. } in &expired {
            self.gone(entry);
        }
        expired
    }

    /// Writes that this one was lost, which nobody else has told.
    pub(crate) fn expired(&self, Expired { key, entry }: &Expired) {
        self.tell(What::Lost(LostReason::Expired), &entry.account.name, key, entry);
    }

    /// How many claims there are, and how many of them wait.
    #[cfg(test)]
    fn count(&self) -> (usize, usize) {
        (self.claims.load(Ordering::Relaxed), self.waiters.load(Ordering::Relaxed))
    }
}

fn until(grant: &Grant, now: Instant) -> Option<Instant> {
    grant.lease.map(|term| now + term.ttl + SLACK)
}

/// Counts one more, unless there are as many as may be.
fn one_more(count: &AtomicUsize, most: usize, refusal: TooMany) -> Result<(), TooMany> {
    let more = |count| (count < most).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map(drop).map_err(|_| refusal)
}

/// Why there may be no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooMany {
    /// Who asks has so many of these: 429.
    OfOne(&'static str, usize),
    /// All together have too many: 503.
    OfAll(&'static str),
}

impl From<TooMany> for Error {
    fn from(too_many: TooMany) -> Self {
        let message = match too_many {
            TooMany::OfOne(what, most) => format!(
                "you have {most} {what}, as many as you may: release some, or have the operator of the server raise \
                 the limit"
            ),
            TooMany::OfAll(what) => format!("the server has as many {what} as it may: ask again later"),
        };
        Self::new(ErrorKind::Unavailable, message).with_retry_after(ASK_AGAIN)
    }
}

/// Claims that a request speaks for. Dropped before it has an answer, they go when their places are kept no longer.
pub(crate) struct Booking {
    ledger: Arc<Ledger>,
    spoken: Vec<Spoken>,
    keep: Duration,
}

struct Spoken {
    key: Key,
    number: u64,
    /// `None`: it is new.
    before: Option<Before>,
}

#[derive(Clone, Copy)]
struct Before {
    number: u64,
    until: Option<Instant>,
}

impl Booking {
    /// They cannot be had at once.
    ///
    /// # Errors
    /// Over a limit of waiters.
    pub(crate) fn waits(&self) -> Result<(), TooMany> {
        let limits = &self.ledger.limits;
        for spoken in &self.spoken {
            let mut shard = self.ledger.shard(&spoken.key);
            let Some(entry) = shard.entries.get_mut(&spoken.key) else { continue };
            if entry.state != State::Asked {
                continue;
            }
            let most = limits.waiters_each;
            one_more(&entry.account.waiters, most, TooMany::OfOne("waiting claims", most))?;
            let waiters = &self.ledger.waiters;
            if let Err(error) = one_more(waiters, limits.waiters, TooMany::OfAll("waiting claims")) {
                entry.account.waiters.fetch_sub(1, Ordering::Relaxed);
                return Err(error);
            }
            entry.state = State::Waiting;
        }
        Ok(())
    }

    /// They are granted because others lost the locks.
    pub(crate) fn robs(&self) {
        for Spoken { key, .. } in &self.spoken {
            self.ledger.forced(&key.namespace, &key.claim.name, Some(&key.claim), LostReason::Stolen);
        }
    }

    /// They were granted, in the order in which they were begun.
    pub(crate) fn granted<'a>(mut self, who: &str, grants: impl IntoIterator<Item = &'a Grant>) {
        let now = Instant::now();
        for (spoken, grant) in std::mem::take(&mut self.spoken).into_iter().zip(grants) {
            let mut shard = self.ledger.shard(&spoken.key);
            let Some(entry) = shard.entries.get_mut(&spoken.key) else { continue };
            // One that is asked for again was granted before.
            if self.ledger.hold(entry, grant, now) {
                self.ledger.tell(What::Granted, who, &spoken.key, entry);
            }
        }
    }

    /// As if they had not been begun.
    fn undo(&mut self) {
        for spoken in std::mem::take(&mut self.spoken) {
            let mut shard = self.ledger.shard(&spoken.key);
            let Some(entry) = shard.entries.get_mut(&spoken.key) else { continue };
            match spoken.before {
                _ if entry.number != spoken.number => {}
                Some(before) => (entry.number, entry.until) = (before.number, before.until),
                None => {
                    self.ledger.gone(entry);
                    shard.entries.remove(&spoken.key);
                }
            }
        }
    }

    /// They were not granted, and will not be.
    pub(crate) fn take_back(&mut self) {
        for spoken in std::mem::take(&mut self.spoken) {
            let mut shard = self.ledger.shard(&spoken.key);
            let is_ours =
                |entry: &Entry| entry.number == spoken.number && !matches!(entry.state, State::Held { .. });
            if shard.entries.get(&spoken.key).is_some_and(is_ours)
                && let Some(entry) = shard.entries.remove(&spoken.key)
            {
                self.ledger.gone(&entry);
            }
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let gone_at = Instant::now() + self.keep + SLACK;
        for spoken in &self.spoken {
            let mut shard = self.ledger.shard(&spoken.key);
            if let Some(entry) = shard.entries.get_mut(&spoken.key)
                && entry.number == spoken.number
                && !matches!(entry.state, State::Held { .. })
            {
                entry.until = Some(gone_at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
