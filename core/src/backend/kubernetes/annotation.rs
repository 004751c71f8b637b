//! A lock in two annotations of an object that somebody has made: lockgate's record to the letter, so that lockgate's locker for
//! Kubernetes and ours exclude each other, and ours beside it with what that cannot hold.
//!
//! Ours says which record it belongs to (its uuid), how many of the record's holders are ours, and when the record was to expire as we
//! last wrote it. All else follows by comparing:
//!
//! - The record is gone, or has another uuid: others have taken the lock or its record away. Ours hold no more; the queue stays.
//! - It counts more holders than ours: lockgate's shared holders have joined. They have no claims of their own, so they are one holder
//!   here, which lives as long as the record's expiry is moved by somebody else than us.
//! - It counts nobody, and has members in its queue: lockgate has given it back, and the first member is to take it. It is given time
//!   for that, as a holder.
//!
//! When a lockgate holder is buried, or the lock changes hands among ours, the record gets a new uuid, so that whoever knew the old
//! one can no longer renew or release it. While one of ours waits to be alone the record says that it is not shared: lockgate's
//! readers wait, too.
//!
//! **Guards.** Each write tests both annotations, and nothing else of the object: locks of other names do not get in its way. A new
//! record could so be made after another one that came and went meanwhile, whose tokens were greater than the version that was
//! read; its grants have the version of the object for a token that the write made, and a second write says so.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha3::{Digest, Sha3_224};

use super::{
    doc::{AS_MADE, Doc, Written},
    lease::version,
    shelf::{Next, Rest as AnyRest, Seen, Write},
};
use crate::{
    error::{Error, ErrorKind, Result},
    name::Name,
};

mod record;

use record::{Belongs, Record, full_name, has_readers, ours};

/// lockgate's readers count the lease of all who share a lock anew whenever they speak, and whoever of lockgate comes then takes
/// the lock of those who are silent for longer.
pub(super) const LONGEST_SHARED: Duration = record::TTL;
const THEIRS: &str = "lockgate.io/";
const OURS: &str = "windlass/";
/// More annotations than this the API server does not take, in bytes; a little is left for those of others.
const MOST: usize = 262_144 - 4_096;

#[derive(Serialize, Deserialize)]
struct Beside {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<Belongs>,
    #[serde(flatten)]
    lock: Written,
}

/// What it takes to write the lock anew.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// The annotations, as they are.
    theirs: Option<String>,
    ours: Option<String>,
    record: Option<Record>,
    belongs: Option<Belongs>,
    unsettled: bool,
    /// The object has annotations.
    has_any: bool,
    /// How many bytes they all have.
    all: usize,
}

impl Rest {
    pub(super) fn is_nothing(&self) -> bool {
        self.theirs.is_none() && self.ours.is_none()
    }

    pub(super) fn next_token(&self, version: u64) -> u64 {
        if self.is_nothing() { AS_MADE } else { version + 1 }
    }

    /// When the record is to expire, by the wall clock of whoever wrote it.
    pub(super) fn expires(&self) -> Option<Duration> {
        u64::try_from(self.record.as_ref()?.expire_at).ok().map(Duration::from_secs)
    }

    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled
    }
}

/// What the annotations of a lock end with.
pub(super) fn key(prefix: &str, name: &Name) -> String {
    hash(&full_name(prefix, name))
}

fn hash(name: &str) -> String {
    Sha3_224::digest(name.as_bytes()).iter().fold(String::with_capacity(56), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
        text
    })
}

pub(super) fn read(object: &Value) -> Vec<(String, Result<Seen>)> {
    let annotations = object["metadata"]["annotations"].as_object();
    let names = annotations.into_iter().flat_map(serde_json::Map::keys);
    let keys = names.filter_map(|name| name.strip_prefix(THEIRS).or_else(|| name.strip_prefix(OURS)));
    let mut keys: Vec<&str> = keys.filter(|key| is_hash(key)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|key| (key.to_owned(), read_one(key, object))).collect()
}

fn is_hash(text: &str) -> bool {
    text.len() == 56 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn read_one(key: &str, object: &Value) -> Result<Seen> {
    let meta = &object["metadata"];
    let version = version(meta)?;
    let annotations = &meta["annotations"];
    let text = |prefix: &str| annotations[format!("{prefix}{key}").as_str()].as_str().map(str::to_owned);
    let (theirs, ours) = (text(THEIRS), text(OURS));
    let damaged = |which: &str| {
        let message = format!(
            "the annotation {which}{key} has something else than a lock: if nobody needs it, remove it"
        );
        Error::new(ErrorKind::Storage, message)
    };
    let record: Option<Record> =
        theirs.as_deref().map(serde_json::from_str).transpose().map_err(|_| damaged(THEIRS))?;
    let beside: Option<Beside> =
        ours.as_deref().map(serde_json::from_str).transpose().map_err(|_| damaged(OURS))?;
    let (belongs, written) = beside.map_or((None, None), |beside| (beside.record, Some(beside.lock)));
    let (mut prefix, mut name) = (String::new(), None);
    let mut unsettled = false;
    let mut doc = match written {
        Some(written) => {
            prefix.clone_from(&written.prefix);
            name = Some(written.name.parse().map_err(|_| damaged(OURS))?);
            unsettled = written.is_unsettled();
            written.doc(version)
        }
        None => {
            name = name.or_else(|| {
                record.as_ref().filter(|record| hash(&record.lock_name) == key)?.lock_name.parse().ok()
            });
            Doc::default()
        }
    };
    let mine = record.as_ref().zip(belongs.as_ref()).filter(|(record, belongs)| record.uuid == belongs.uuid);
    if mine.is_none() {
        doc.holders.clear();
        doc.upgrading = false;
        unsettled = false;
    }
    if let Some(record) = &record
        && let Some(entry) = record.foreign(mine.map(|(_, belongs)| belongs))
    {
        doc.holders.push(entry);
    }
    let each = annotations.as_object().into_iter().flatten();
    let all = each.map(|(name, value)| name.len() + value.as_str().map_or(0, str::len)).sum();
    let rest = Rest { theirs, ours, record, belongs, unsettled, has_any: annotations.is_object(), all };
    Ok(Seen { version, prefix, name, doc, rest: AnyRest::Annotation(Arc::new(rest)) })
}

/// How these locks, which are all of one object or all of one that is not there, become as they are to be.
pub(super) fn write(object: &str, all: &[Next<'_>]) -> Result<Write> {
    let (nothing, free) = (Rest::default(), Doc::default());
    let (mut texts, mut length, mut there) = (Vec::new(), 0, None);
    for next in all {
        let Next { key, prefix, name, seen, doc, now, random } = *next;
        let (rest, before) = match seen {
            Some(Seen { rest: AnyRest::Annotation(rest), doc, .. }) => (&**rest, doc),
            _ => (&nothing, &free),
        };
        there = there.or(seen.map(|_| rest.has_any));
        let record = rest.next_record(before, doc, full_name(prefix, name), now, random);
        // What is as it was stays to the letter.
        let as_it_was =
            |record: &Record| if rest.record.as_ref() == Some(record) { rest.theirs.clone() } else { None };
        let theirs = match &record {
            Some(record) => Some(as_it_was(record).unwrap_or_else(|| text(record))),
            None => rest.record.as_ref().and_then(|record| record.given_back(now)).as_ref().map(text),
        };
        // Of lockgate's readers the record itself does not say that they are some while one of ours waits.
        let is_ours = ours(doc) > 0 || has_readers(doc);
        let belongs = record.as_ref().filter(|_| is_ours).map(|record| Belongs::new(record, doc));
        let stays = ours(doc) > 0 || !doc.queue.is_empty();
        let beside =
            stays.then(|| text(&Beside { record: belongs, lock: Written::new(prefix, name.as_str(), doc) }));
        let bytes = |texts: [&Option<String>; 2]| {
            let each = texts.into_iter().flatten().map(|text| text.len() + OURS.len() + key.len());
            each.sum::<usize>()
        };
        length += bytes([&theirs, &beside]).saturating_sub(bytes([&rest.theirs, &rest.ours]));
        if rest.all + length > MOST && doc.has_grown(Some(before)) {
            let message =
                "the object has no room in its annotations for more: too many wait, or it has too many locks";
            return Err(Error::new(ErrorKind::Storage, message));
        }
        texts.push((format!("{THEIRS}{key}"), &rest.theirs, theirs));
        texts.push((format!("{OURS}{key}"), &rest.ours, beside));
    }
    Ok(match there {
        Some(has_any) => Write::Operations(operations(has_any, texts).into()),
        None => {
            let texts = texts.into_iter().filter_map(|(name, _, is)| Some((name, Value::String(is?))));
            Write::Create(json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": object,
                    "labels": {"app.kubernetes.io/managed-by": "windlass"},
                    "annotations": texts.collect::<serde_json::Map<_, _>>(),
                },
            }))
        }
    })
}

/// Of annotations as they were and as they are to be.
fn operations(has_any: bool, texts: Vec<(String, &Option<String>, Option<String>)>) -> Vec<Value> {
    let mut operations = Vec::new();
    if !has_any {
        let path = "/metadata/annotations";
        operations.push(json!({"op": "test", "path": path, "value": null}));
        operations.push(json!({"op": "add", "path": path, "value": {}}));
    }
    for (name, was, is) in texts {
        let path = format!("/metadata/annotations/{}", name.replace('/', "~1"));
        operations.push(json!({"op": "test", "path": path, "value": was}));
        match (was, is) {
            (_, Some(is)) if was.as_ref() != Some(&is) => {
                operations.push(json!({"op": "add", "path": path, "value": is}));
            }
            (Some(_), None) => operations.push(json!({"op": "remove", "path": path})),
            _ => {}
        }
    }
    operations
}

fn text(value: &impl Serialize) -> String {
    // It has nothing that could not be written.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        record::{LOOKS_WITHIN, TTL},
        *,
    };
    use crate::{
        ask::Mode,
        backend::kubernetes::doc::{Dead, Order},
        name::ClaimId,
        time::Millis,
    };

    const KEY: &str = "98cd";
    const NOW: Duration = Duration::from_millis(2_000_100);

    /// An object with nothing in it.
    fn empty() -> Value {
        json!({"metadata": {"name": "locks", "resourceVersion": "10"}})
    }

    fn with(theirs: Option<&Value>) -> Value {
        let mut object = empty();
        if let Some(theirs) = theirs {
            object["metadata"]["annotations"] = json!({format!("{THEIRS}{KEY}"): theirs.to_string()});
        }
        object
    }

    fn lockgates(count: i64, shared: bool) -> Value {
        json!({
            "uuid": "of-lockgate", "lockName": "demo", "ExpireAtTimestamp": 1_000, "SharedHoldersCount": count,
            "IsShared": shared, "QueueMembers": {},
        })
    }

    /// One in lockgate's line.
    fn member(expire_at: i64) -> Value {
        json!({"AcquirerId": "me", "AcquiredAtTimestamp": 1, "ExpireAtTimestamp": expire_at})
    }

    fn claim(n: u128, mode: Mode) -> Order {
        Order::Acquire(crate::ask::Ask {
            name: "demo".parse().unwrap(),
            claim_id: ClaimId::from_u128(n),
            mode,
            entry: crate::ask::Entry::Queue,
            ttl: TTL,
            owner: Arc::default(),
            keep: Duration::ZERO,
            only_here: false,
        })
    }

    /// Does what is asked for with the object, as the API server would.
    fn done(object: &Value, orders: &[Order], random: u128) -> Value {
        let seen = read_one(KEY, object).unwrap();
        let orders: Vec<&Order> = orders.iter().collect();
        let (doc, _) = seen.doc.after(&orders, Millis(0), seen.next_token(), &BTreeSet::new());
        let (now, name) = (NOW, "demo".parse().unwrap());
        let next = Next { key: KEY, prefix: "", name: &name, seen: Some(&seen), doc: &doc, now, random };
        let Write::Operations(operations) = write("locks", &[next]).unwrap() else { panic!("no operations") };
        let mut object = object.clone();
        for operation in operations.as_array().unwrap() {
            let path = operation["path"].as_str().unwrap();
            let target = match path.strip_prefix("/metadata/annotations/") {
                None => &mut object["metadata"]["annotations"],
                Some(name) => &mut object["metadata"]["annotations"][name.replace("~1", "/").as_str()],
            };
            match operation["op"].as_str().unwrap() {
                "test" => assert_eq!(*target, operation["value"]),
                _ => *target = operation["value"].clone(),
            }
        }
        object["metadata"]["annotations"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let version = version(&object["metadata"]).unwrap() + 5;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object
    }

    fn theirs(object: &Value) -> Option<Record> {
        let text = object["metadata"]["annotations"][format!("{THEIRS}{KEY}").as_str()].as_str()?;
        Some(serde_json::from_str(text).unwrap())
    }

    fn doc(object: &Value) -> Doc {
        read_one(KEY, object).unwrap().doc
    }

    fn release(n: u128) -> Order {
        Order::Release(ClaimId::from_u128(n))
    }

    #[test]
    fn annotations_are_called_as_lockgates() {
        let key = key("", &"demo".parse().unwrap());
        assert!(key.starts_with("98cd") && key.ends_with("4ba9") && is_hash(&key), "{key}");
        assert_ne!(super::key("team", &"demo".parse().unwrap()), key);
    }

    #[test]
    fn a_new_record_is_written_twice_for_its_token() {
        let object = done(&empty(), &[claim(1, Mode::Exclusive)], 7);
        let seen = read_one(KEY, &object).unwrap();
        assert!(seen.is_unsettled());
        assert_eq!((seen.version, seen.doc.holders[0].token), (15, 15));
        let object = done(&object, &[claim(1, Mode::Exclusive)], 8);
        let seen = read_one(KEY, &object).unwrap();
        assert!(!seen.is_unsettled());
        assert_eq!((seen.version, seen.doc.holders[0].token), (20, 15));
        assert_eq!(theirs(&object).unwrap().uuid, "00000000-0000-4000-8000-000000000007", "it goes on");
        assert_eq!(theirs(&object).unwrap().expire_at, 2_011, "not before ours is over");
        let object = done(&object, &[release(1)], 9);
        assert_eq!(object["metadata"]["annotations"], json!({}));
    }

    #[test]
    fn what_lockgate_wrote_stays_to_the_letter() {
        let wrote = "{\"uuid\":\"u\",  \"lockName\":\"demo\",\"ExpireAtTimestamp\":5,\"SharedHoldersCount\":1,\"IsShared\":false}";
        let mut object = empty();
        object["metadata"]["annotations"] = json!({format!("{THEIRS}{KEY}"): wrote});
        let object = done(&object, &[claim(1, Mode::Exclusive)], 7);
        assert_eq!(object["metadata"]["annotations"][format!("{THEIRS}{KEY}").as_str()], wrote);
        let doc = doc(&object);
        assert_eq!((doc.holders.len(), doc.holders[0].foreign, doc.queue.len()), (1, true, 1));
    }

    #[test]
    fn readers_of_both_kinds_are_counted_apart() {
        let mut object =
            done(&with(Some(&lockgates(2, true))), &[claim(1, Mode::Shared), claim(2, Mode::Shared)], 7);
        let record = theirs(&object).unwrap();
        assert_eq!((&*record.uuid, record.count, record.is_shared), ("of-lockgate", 4, true));
        assert_eq!(doc(&object).holders.len(), 3, "lockgate's are one");
        // One of lockgate's goes, and then one of ours.
        let went = Record { count: 3, ..record };
        object["metadata"]["annotations"][format!("{THEIRS}{KEY}").as_str()] = text(&went).into();
        let object = done(&object, &[release(1)], 8);
        assert_eq!(theirs(&object).unwrap().count, 2);
        // A writer of ours waits: lockgate's readers do, too.
        let object = done(&object, &[claim(3, Mode::Exclusive)], 9);
        assert!(!theirs(&object).unwrap().is_shared);
        assert_eq!(doc(&object).queue.len(), 1);
    }

    #[test]
    fn no_more_readers_come_while_a_writer_of_ours_waits() {
        let before = with(Some(&lockgates(2, true)));
        let foreign = |object: &Value| doc(object).holders[0].clone();
        let object = done(&before, &[claim(1, Mode::Exclusive)], 7);
        let record = theirs(&object).unwrap();
        assert_eq!((&*record.uuid, record.count, record.is_shared), ("of-lockgate", 2, false));
        assert_eq!(foreign(&object), foreign(&before), "they are what they were");
        // The writer gives up.
        let object = done(&object, &[release(1)], 8);
        assert_eq!(object["metadata"]["annotations"].as_object().unwrap().len(), 1);
        assert_eq!(theirs(&object), theirs(&before));
    }

    #[test]
    fn a_renewal_of_lockgates_is_seen_beside_ours() {
        let mut object = done(&with(Some(&lockgates(1, true))), &[claim(1, Mode::Shared)], 7);
        let beat = |object: &Value| doc(object).holders.iter().find(|entry| entry.foreign).unwrap().beat;
        let before = beat(&object);
        object = done(&object, &[Order::Renew(ClaimId::from_u128(1))], 7);
        assert_eq!(beat(&object), before, "ours is no sign of its life");
        let record = theirs(&object).unwrap();
        let renewed = Record { expire_at: record.expire_at + 3, ..record };
        object["metadata"]["annotations"][format!("{THEIRS}{KEY}").as_str()] = text(&renewed).into();
        let renewed = beat(&object);
        assert_ne!(renewed, before);
        object = done(&object, &[Order::Renew(ClaimId::from_u128(1))], 7);
        assert_eq!(beat(&object), renewed, "it is remembered over our own");
    }

    #[test]
    fn the_buried_cannot_come_back() {
        let object = done(&with(Some(&lockgates(1, true))), &[claim(1, Mode::Shared)], 7);
        let dead = doc(&object)
            .holders
            .iter()
            .find(|entry| entry.foreign)
            .map(|entry| (entry.id, entry.beat))
            .unwrap();
        let object = done(&object, &[Order::Bury(Dead { holders: vec![dead], ..Dead::default() })], 8);
        let record = theirs(&object).unwrap();
        assert_eq!((&*record.uuid, record.count), ("00000000-0000-4000-8000-000000000008", 1));
        // It hands on among ours: again nobody knows the record.
        let object = done(&object, &[claim(2, Mode::Exclusive), release(1)], 9);
        assert_eq!(theirs(&object).unwrap().uuid, "00000000-0000-4000-8000-000000000009");
    }

    #[test]
    fn a_record_that_others_took_is_theirs() {
        let object = done(&empty(), &[claim(1, Mode::Shared), claim(2, Mode::Exclusive)], 7);
        for (record, holders) in [(Some(lockgates(1, true)), 1), (None, 0)] {
            let mut object = object.clone();
            object["metadata"]["annotations"][format!("{THEIRS}{KEY}").as_str()] =
                record.map_or(Value::Null, |record| record.to_string().into());
            let doc = doc(&object);
            assert_eq!((doc.holders.len(), doc.queue.len()), (holders, 1));
            assert!(doc.holders.iter().all(|entry| entry.foreign));
        }
    }

    #[test]
    fn lockgates_line_is_next_when_nobody_of_ours_waits() {
        let mut waits = lockgates(1, false);
        waits["QueueMembers"] = json!({"me": member(2_005), "gone": member(1_999)});
        let mut object = done(&empty(), &[claim(1, Mode::Exclusive)], 7);
        let record = theirs(&object).unwrap();
        let record =
            Record { members: serde_json::from_value(waits["QueueMembers"].clone()).unwrap(), ..record };
        object["metadata"]["annotations"][format!("{THEIRS}{KEY}").as_str()] = text(&record).into();
        let object = done(&object, &[release(1)], 8);
        let left = theirs(&object).unwrap();
        assert_eq!((left.count, left.expire_at), (0, 1_999));
        assert_eq!(left.members.unwrap().into_keys().collect::<Vec<_>>(), ["me"]);
        let line = &doc(&object).holders[0];
        assert_eq!(line.ttl, LOOKS_WITHIN, "it is given time, and no more");
        let dead = Dead { holders: vec![(line.id, line.beat)], ..Dead::default() };
        let object = done(&object, &[Order::Bury(dead)], 9);
        assert_eq!(object["metadata"]["annotations"], json!({}), "nor a second time");
    }

    #[test]
    fn an_object_that_is_missing_is_made_with_the_lock() {
        let orders = [claim(1, Mode::Exclusive)];
        let (doc, _) = Doc::default().after(&orders.each_ref(), Millis(0), AS_MADE, &BTreeSet::new());
        let (now, name) = (NOW, "demo".parse().unwrap());
        let next = Next { key: KEY, prefix: "", name: &name, seen: None, doc: &doc, now, random: 7 };
        let Write::Create(mut object) = write("locks", &[next]).unwrap() else { panic!("not made") };
        assert_eq!((&object["kind"], &object["metadata"]["name"]), (&"ConfigMap".into(), &"locks".into()));
        object["metadata"]["resourceVersion"] = "15".into();
        let seen = read_one(KEY, &object).unwrap();
        assert!(seen.is_unsettled());
        assert_eq!((seen.doc.holders[0].token, theirs(&object).unwrap().count), (15, 1));
    }

    #[test]
    fn what_is_damaged_or_foreign() {
        let strange = with(Some(&json!({"uuid": 7})));
        assert_eq!(read_one(KEY, &strange).unwrap_err().kind(), ErrorKind::Storage);
        let mut object = empty();
        object["metadata"]["annotations"] =
            json!({"lockgate.io/else": "x", "windlass/": "y", "of-others": "z"});
        assert!(read(&object).is_empty());
    }
}
