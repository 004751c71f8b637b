//! lockgate's record: what of it is others', and what becomes of it with ours.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Rest;
use crate::{
    ask::{Mode, Owner},
    backend::kubernetes::{
        doc::{Doc, Entry},
        lease::fnv,
        names,
    },
    name::Name,
    time::Millis,
};

/// lockgate's leases.
pub(super) const TTL: Duration = Duration::from_secs(10);
/// Of those that share one with ours not every renewal is seen: one in the same second as ours leaves no trace.
const SHARED_TTL: Duration = Duration::from_secs(20);
/// lockgate looks every two seconds, so the first in its line may take so long to see that it is let in.
pub(super) const LOOKS_WITHIN: Duration = Duration::from_secs(3);

/// As lockgate writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uuid: String,
    #[serde(rename = "lockName")]
    pub(super) lock_name: String,
    #[serde(rename = "ExpireAtTimestamp")]
    pub(super) expire_at: i64,
    #[serde(rename = "SharedHoldersCount")]
    pub(super) count: i64,
    #[serde(rename = "IsShared")]
    pub(super) is_shared: bool,
    #[serde(rename = "QueueMembers", default)]
    pub(super) members: Option<BTreeMap<String, Value>>,
}

/// What ours says of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Belongs {
    pub(super) uuid: String,
    ours: i64,
    expire_at: i64,
    /// Of lockgate's holders, as last seen.
    beat: u64,
}

impl Belongs {
    pub(super) fn new(record: &Record, doc: &Doc) -> Self {
        Self {
            uuid: record.uuid.clone(),
            ours: ours(doc),
            expire_at: record.expire_at,
            beat: doc.holders.iter().find(|entry| entry.foreign).map_or(0, |entry| entry.beat),
        }
    }
}

impl Record {
    /// lockgate's part in it.
    pub(super) fn foreign(&self, belongs: Option<&Belongs>) -> Option<Entry> {
        let ours = belongs.map_or(0, |belongs| belongs.ours);
        let count = self.count - ours;
        let ttl = if ours > 0 { SHARED_TTL } else { TTL };
        let (ttl, owner) = match () {
            () if ours == 0 && self.count == 0 && self.has_members() => {
                (LOOKS_WITHIN, "the first in lockgate's line".to_owned())
            }
            () if count > 1 => (ttl, format!("lockgate ({count} of them)")),
            () if count == 1 => (ttl, "lockgate".to_owned()),
            () => return None,
        };
        let beat = match belongs {
            Some(belongs) if belongs.expire_at == self.expire_at => belongs.beat,
            _ => fnv(format!("{}{}{}", self.uuid, self.expire_at, self.count).as_bytes()),
        };
        let since = u64::try_from(self.expire_at).unwrap_or_default().saturating_sub(TTL.as_secs());
        Some(Entry {
            id: names::seal_foreign(&self.uuid),
            mode: if self.count > 0 && (self.is_shared || belongs.is_some()) {
                Mode::Shared
            } else {
                Mode::Exclusive
            },
            ttl,
            token: 0,
            beat,
            owner: Arc::new(Owner { owner, ..Owner::default() }),
            since: Millis(since.saturating_mul(1_000)),
            foreign: true,
        })
    }

    /// lockgate's waiters are in it.
    pub(super) fn has_members(&self) -> bool {
        self.members.as_ref().is_some_and(|members| !members.is_empty())
    }

    /// As lockgate leaves it, for the first in its line; `None`: nobody is in it. The line has one chance: lockgate leaves those in it
    /// who have given up, and whoever still waits comes to stand in a new one.
    pub(super) fn given_back(&self, now: Duration) -> Option<Self> {
        let members = self.living(now);
        if self.count == 0 || members.is_empty() {
            return None;
        }
        let expire_at = seconds(now) - 1;
        Some(Self { count: 0, expire_at, is_shared: false, members: Some(members), ..self.clone() })
    }

    /// Its line without those whom lockgate would drop.
    fn living(&self, now: Duration) -> BTreeMap<String, Value> {
        let mut members = self.members.clone().unwrap_or_default();
        members.retain(|_, member| {
            member["ExpireAtTimestamp"].as_i64().is_none_or(|expire_at| expire_at >= seconds(now))
        });
        members
    }
}

impl Rest {
    /// What lockgate is to read of a lock that is held; `None`: nobody holds it.
    pub(super) fn next_record(
        &self,
        before: &Doc,
        doc: &Doc,
        lock_name: String,
        now: Duration,
        random: u128,
    ) -> Option<Record> {
        let first = doc.holders.first()?;
        let theirs = doc.holders.iter().any(|entry| entry.foreign);
        let ours = ours(doc);
        let was = self.record.as_ref();
        let of_theirs = was.map(|was| was.count - self.ours_in(was));
        let waits = !doc.queue.is_empty() || doc.upgrading;
        if ours == 0 {
            // Only lockgate is left in it, or alone was in it.
            let is_shared = !waits && first.mode == Mode::Shared;
            return Some(Record { count: of_theirs?, is_shared, ..was?.clone() });
        }
        let was_theirs = before.holders.iter().any(|entry| entry.foreign);
        let goes_on = theirs
            || !was_theirs && before.holders.iter().any(|entry| entry.id == first.id && !entry.foreign);
        let each = doc.holders.iter().filter(|entry| !entry.foreign).map(|entry| entry.ttl);
        // Whole seconds, and none too early: lockgate takes it over then.
        let ends = (now + each.max().unwrap_or_default()).as_millis().div_ceil(1_000);
        let expire_at = i64::try_from(ends).unwrap_or(i64::MAX);
        let known = was.filter(|_| goes_on);
        Some(Record {
            uuid: known.map_or_else(|| uuid(random), |was| was.uuid.clone()),
            lock_name,
            expire_at: known.map_or(expire_at, |was| was.expire_at.max(expire_at)),
            count: ours + of_theirs.filter(|_| theirs).unwrap_or_default(),
            is_shared: !waits && doc.holders.iter().all(|entry| entry.mode == Mode::Shared),
            members: Some(was.map(|was| was.living(now)).unwrap_or_default()),
        })
    }

    /// How many of a record's holders are ours.
    fn ours_in(&self, record: &Record) -> i64 {
        self.belongs.as_ref().filter(|belongs| belongs.uuid == record.uuid).map_or(0, |belongs| belongs.ours)
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// By what lockgate calls a lock.
pub(super) fn full_name(prefix: &str, name: &Name) -> String {
    if prefix.is_empty() { name.as_str().to_owned() } else { format!("{prefix}/{}", name.as_str()) }
}

/// Lockgate's readers are in it.
pub(super) fn has_readers(doc: &Doc) -> bool {
    doc.holders.iter().any(|entry| entry.foreign && entry.mode == Mode::Shared)
}

pub(super) fn ours(doc: &Doc) -> i64 {
    i64::try_from(doc.holders.iter().filter(|entry| !entry.foreign).count()).unwrap_or(i64::MAX)
}

/// A UUID of version 4.
fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0xc << 60) | (0x4 << 76) | (0x8 << 60);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
