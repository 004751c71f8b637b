//! A lock as a Lease object: what is read from one, and what is sent to change it.
//!
//! All of ours is in one annotation. The fields of the Lease say the same to others: who holds it (`kubectl get leases`), and to
//! client-go's leader election that it is held, for as long as `renewTime` moves. A Lease whose holder is not the one that ours
//! would be called is held by somebody else: that one has taken it over, or had it before.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    doc::{Doc, Entry, Written},
    names,
    shelf::{Next, Rest as AnyRest, Seen, Write},
};
use crate::{
    ask::{Mode, Owner},
    error::{Error, ErrorKind, Result},
    name::Name,
    time::Millis,
};

/// The annotation with all of ours.
const ANNOTATION: &str = "windlass/lock";
/// More annotations than this the API server does not take, in bytes; a little is left for those of others.
const MOST: usize = 262_144 - 4_096;
/// What a foreign Lease that does not say it lives for.
const FOREIGN_TTL: Duration = Duration::from_secs(15);
/// The most that is shown of what a stranger wrote, in characters.
const MOST_SHOWN: usize = 64;

/// What it takes to write it anew.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    uid: String,
    transitions: u64,
    /// What others read as the holder.
    identity: String,
    /// When somebody last said that he holds it, by his wall clock, in milliseconds.
    pub(super) renewed_ms: Option<u64>,
}

/// Reads an object; `None`: it has nothing to do with locks of this prefix.
pub(super) fn read(object: &Value) -> Result<Option<Seen>> {
    let meta = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object_name = text(&meta["name"]);
    let version = version(meta)?;
    let ours = meta["annotations"][ANNOTATION].as_str();
    let ours: Option<Written> = ours
        .map(serde_json::from_str)
        .transpose()
        .map_err(|_| damaged(object, "something else in its annotation windlass/lock"))?;
    let (prefix, name, mut doc): (String, Name, Doc) = match ours {
        Some(ours) => {
            let name = ours.name.parse().map_err(|_| damaged(object, "no name of a lock"))?;
            (ours.prefix.clone(), name, ours.doc(version))
        }
        None => {
            let Some(name) = names::of_object(&object_name) else { return Ok(None) };
            // Somebody else made it.
            (String::new(), name, Doc { kept: true, ..Doc::default() })
        }
    };
    let spec = &object["spec"];
    let identity = text(&spec["holderIdentity"]);
    if identity != identity_of(&doc) {
        doc.holders.clear();
        doc.upgrading = false;
        if !identity.is_empty() {
            doc.holders.push(foreign(&identity, spec));
        }
    }
    let rest = Rest {
        uid: text(&meta["uid"]),
        transitions: spec["leaseTransitions"].as_u64().unwrap_or_default(),
        identity,
        renewed_ms: spec["renewTime"].as_str().and_then(millis_of),
    };
    Ok(Some(Seen { version, prefix, name: Some(name), doc, rest: AnyRest::Lease(rest) }))
}

/// ... that is to have a lock.
pub(super) fn read_one(object: &Value) -> Result<Seen> {
    read(object)?.ok_or_else(|| damaged(object, "lost its annotation windlass/lock"))
}

fn damaged(object: &Value, what: &str) -> Error {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let message = format!("the Lease {name} has {what}: if nobody needs it, `kubectl delete lease {name}`");
    Error::new(ErrorKind::Storage, message)
}

/// The resource version of an object or a list. It is a number that grows with each change in the whole cluster.
pub(super) fn version(meta: &Value) -> Result<u64> {
    meta["resourceVersion"].as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
        let message =
            "the resource versions of this API server are no numbers: they cannot order the grants of a lock";
        Error::new(ErrorKind::Storage, message)
    })
}

/// How a lock that was read so becomes this one.
pub(super) fn write(next: &Next<'_>) -> Result<Write> {
    let Next { key, prefix, name, doc, now, .. } = *next;
    let seen = match next.seen {
        Some(Seen { version, doc, rest: AnyRest::Lease(rest), .. }) => Some((*version, doc, rest)),
        _ => None,
    };
    if let Some((version, _, rest)) = seen
        && doc.is_idle()
        && !doc.kept
    {
        let only_if = json!({"resourceVersion": version.to_string(), "uid": rest.uid});
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": only_if});
        return Ok(Write::Delete(options));
    }
    let text = if doc.is_idle() {
        Value::Null
    } else {
        // It has nothing that could not be written.
        let text = serde_json::to_string(&Written::new(prefix, name.as_str(), doc)).unwrap_or_default();
        if text.len() > MOST && doc.has_grown(seen.map(|(_, before, _)| before)) {
            let message = "too many wait for this lock: its Lease has no room in its annotations for more";
            return Err(Error::new(ErrorKind::Storage, message));
        }
        Value::String(text)
    };
    let mut meta = json!({"annotations": {ANNOTATION: text}});
    let mut body = json!({});
    if !doc.is_foreign() && seen.is_none_or(|(_, before, rest)| has_moved(before, rest, doc)) {
        body["spec"] = spec(seen.map(|(.., rest)| rest), doc, now);
    }
    match seen {
        Some((version, ..)) => {
            meta["resourceVersion"] = version.to_string().into();
            body["metadata"] = meta;
            Ok(Write::Patch(body))
        }
        None => {
            meta["name"] = key.into();
            meta["labels"] = json!({"app.kubernetes.io/managed-by": "windlass"});
            body["metadata"] = meta;
            body["apiVersion"] = "coordination.k8s.io/v1".into();
            body["kind"] = "Lease".into();
            Ok(Write::Create(body))
        }
    }
}

/// Whether others have to see that somebody lives, or has come or gone.
fn has_moved(before: &Doc, rest: &Rest, doc: &Doc) -> bool {
    let beats = |doc: &Doc| -> Vec<_> { doc.holders.iter().map(|entry| (entry.id, entry.beat)).collect() };
    beats(before) != beats(doc) || rest.identity != identity_of(doc)
}

fn spec(seen: Option<&Rest>, doc: &Doc, now: Duration) -> Value {
    let identity = identity_of(doc);
    let changed = seen.is_none_or(|seen| seen.identity != identity);
    let mut spec = json!({"renewTime": micro_time(now)});
    if identity.is_empty() {
        // As client-go gives it back.
        spec["holderIdentity"] = Value::Null;
        return spec;
    }
    let ttl = doc.holders.iter().map(|entry| entry.ttl).max().unwrap_or_default();
    spec["leaseDurationSeconds"] =
        u64::max(1, ttl.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)).into();
    if changed {
        spec["holderIdentity"] = identity.into();
        spec["acquireTime"] = micro_time(now).into();
        spec["leaseTransitions"] = seen.map_or(0, |seen| seen.transitions + 1).into();
    }
    spec
}

/// What our holders are called in the Lease: nobody else there is called so.
fn identity_of(doc: &Doc) -> String {
    let mut ours = doc.holders.iter().filter(|entry| !entry.foreign);
    let Some(first) = ours.next() else { return String::new() };
    let owner: String = first.owner.owner.chars().take(MOST_SHOWN).collect();
    let seal = (first.id.reveal() >> 96) as u32;
    match ours.count() {
        0 => format!("{owner} #{seal:08x}"),
        more => format!("{owner} #{seal:08x} and {more} more"),
    }
}

fn foreign(identity: &str, spec: &Value) -> Entry {
    let ttl = spec["leaseDurationSeconds"].as_u64().map_or(FOREIGN_TTL, Duration::from_secs);
    let owner: String = identity.chars().take(MOST_SHOWN).collect();
    Entry {
        id: names::seal_foreign(identity),
        mode: Mode::Exclusive,
        ttl,
        token: 0,
        // Whatever it changes is a sign of life.
        beat: fnv(spec.to_string().as_bytes()),
        owner: Arc::new(Owner { owner, ..Owner::default() }),
        since: Millis(spec["acquireTime"].as_str().and_then(millis_of).unwrap_or_default()),
        foreign: true,
    }
}

/// FNV-1a.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `2026-11-28T07:30:00.000000Z`, as Kubernetes wants it. By Howard Hinnant's `civil_from_days`.
fn micro_time(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z",
        since_epoch.subsec_micros()
    )
}

/// The milliseconds since the epoch that such a time means; to the second.
pub(super) fn millis_of(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let seconds = number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?;
    let (y, m) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = (365 * y + y / 4 + y / 400 + (153 * m + 2) / 5 + day).checked_sub(y / 100 + 719_469)?;
    Some((days * 86_400 + seconds) * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ClaimId;

    fn name() -> Name {
        "my-lock".parse().unwrap()
    }

    fn held_by(n: u128, beat: u64) -> Entry {
        Entry {
            id: ClaimId::from_u128(n << 96),
            mode: Mode::Exclusive,
            ttl: Duration::from_millis(1_500),
            token: 7,
            beat,
            owner: Arc::new(Owner { owner: "ann@host:1".to_owned(), ..Owner::default() }),
            since: Millis(5),
            foreign: false,
        }
    }

    fn doc(holders: &[Entry]) -> Doc {
        Doc { holders: holders.to_vec(), ..Doc::default() }
    }

    fn spec_of(write: &Write) -> &Value {
        let (Write::Create(body) | Write::Patch(body) | Write::Operations(body) | Write::Delete(body)) =
            write;
        &body["spec"]
    }

    /// What the API server makes of it: a merge patch, of which a null removes.
    fn stored(before: Option<&Value>, write: &Write, version: u64) -> Value {
        fn merge(into: &mut Value, patch: &Value) {
            let Some(fields) = patch.as_object() else {
                *into = patch.clone();
                return;
            };
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in fields {
                if value.is_null() {
                    into.as_object_mut().unwrap().remove(key);
                } else {
                    merge(&mut into[key], value);
                }
            }
        }
        let (Write::Create(body) | Write::Patch(body)) = write else { panic!("{write:?}") };
        let mut object =
            before.cloned().unwrap_or_else(|| json!({"metadata": {"name": "my-lock", "uid": "u"}}));
        merge(&mut object, body);
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object
    }

    fn written(before: Option<&Value>, doc: &Doc) -> Write {
        let seen = before.map(|object| read(object).unwrap().unwrap());
        let now = Duration::from_secs(1_795_200_000);
        write(&Next { key: "my-lock", prefix: "", name: &name(), seen: seen.as_ref(), doc, now, random: 0 })
            .unwrap()
    }

    #[test]
    fn made_renewed_queued_and_deleted() {
        let made = written(None, &doc(&[held_by(1, 1)]));
        let object = stored(None, &made, 10);
        assert_eq!(object["spec"]["holderIdentity"], "ann@host:1 #00000001");
        assert_eq!(object["spec"]["leaseDurationSeconds"], 2);
        assert_eq!(object["spec"]["leaseTransitions"], 0);
        let seen = read(&object).unwrap().unwrap();
        assert_eq!((seen.version, &seen.name, &seen.doc), (10, &Some(name()), &doc(&[held_by(1, 1)])));
        let renewed = written(Some(&object), &doc(&[held_by(1, 2)]));
        assert_eq!(spec_of(&renewed)["renewTime"], "2026-11-20T18:40:00.000000Z");
        assert!(spec_of(&renewed)["leaseTransitions"].is_null(), "nothing passes on");
        let queued = Doc { queue: vec![Entry { token: 0, ..held_by(2, 0) }], ..doc(&[held_by(1, 1)]) };
        assert!(
            spec_of(&written(Some(&object), &queued)).is_null(),
            "who waits is no sign of the holder's life"
        );
        let next = stored(Some(&object), &written(Some(&object), &doc(&[held_by(2, 0)])), 12);
        assert_eq!(next["spec"]["leaseTransitions"], 1);
        let Write::Delete(options) = written(Some(&object), &Doc::default()) else { panic!("kept") };
        assert_eq!(options["preconditions"], json!({"resourceVersion": "10", "uid": "u"}));
    }

    fn leader(who: &str, renewed: &str) -> Value {
        json!({
            "metadata": {"name": "my-lock", "uid": "u", "resourceVersion": "5"},
            "spec": {
                "holderIdentity": who, "leaseDurationSeconds": 15, "leaseTransitions": 3,
                "acquireTime": "2026-11-20T18:40:00.000000Z", "renewTime": renewed,
            },
        })
    }

    #[test]
    fn a_leader_of_client_go_holds_it_alone() {
        let object = leader("node-1_abc", "2026-11-20T18:40:00.000000Z");
        let seen = read(&object).unwrap().unwrap();
        let [holder] = &seen.doc.holders[..] else { panic!("{seen:?}") };
        assert_eq!((&*holder.owner.owner, holder.mode, holder.token), ("node-1_abc", Mode::Exclusive, 0));
        assert_eq!((holder.ttl, holder.since), (FOREIGN_TTL, Millis(1_795_200_000_000)));
        let later = read(&leader("node-1_abc", "2026-11-20T18:40:02.000000Z")).unwrap().unwrap();
        assert_ne!(later.doc.holders[0].beat, holder.beat, "it lives");
        // Ours wait beside it, and leave its fields alone.
        let queued = Doc { queue: vec![Entry { token: 0, ..held_by(2, 0) }], ..seen.doc.clone() };
        let queued = written(Some(&object), &queued);
        assert!(spec_of(&queued).is_null());
        let object = stored(Some(&object), &queued, 6);
        let seen = read(&object).unwrap().unwrap();
        assert_eq!((seen.doc.holders.len(), seen.doc.queue.len()), (1, 1));
        // It gives up, as client-go does.
        let mut free = object;
        free["spec"]["holderIdentity"] = "".into();
        let seen = read(&free).unwrap().unwrap();
        assert!(seen.doc.holders.is_empty());
        let taken = Doc { kept: true, ..doc(&[held_by(2, 1)]) };
        let taken = stored(Some(&free), &written(Some(&free), &taken), 7);
        assert_eq!(taken["spec"]["leaseTransitions"], 4);
        // The object was there before us, and stays.
        let idle = Doc { kept: true, ..Doc::default() };
        let idle = stored(Some(&taken), &written(Some(&taken), &idle), 8);
        assert_eq!(
            (&idle["spec"]["holderIdentity"], &idle["metadata"]["annotations"]),
            (&Value::Null, &json!({}))
        );
    }

    #[test]
    fn who_is_overwritten_holds_no_more() {
        let object = stored(None, &written(None, &doc(&[held_by(1, 1)])), 10);
        for (who, holders) in [("node-1_abc", 1), ("", 0)] {
            let mut object = object.clone();
            object["spec"]["holderIdentity"] = who.into();
            let seen = read(&object).unwrap().unwrap();
            assert_eq!(seen.doc.holders.len(), holders);
            assert!(seen.doc.holders.iter().all(|holder| holder.foreign));
        }
    }

    #[test]
    fn what_is_not_ours_or_damaged() {
        let mut object = leader("a", "");
        object["metadata"]["name"] = "windlass-00".into();
        assert!(read(&object).unwrap().is_none(), "a hashed name that does not say what it is of");
        let mut object = leader("a", "");
        object["metadata"]["annotations"] = json!({ANNOTATION: "{}"});
        assert!(read(&object).unwrap_err().message().contains("kubectl delete lease my-lock"));
        object["metadata"]["resourceVersion"] = "abc".into();
        assert_eq!(read(&object).unwrap_err().kind(), ErrorKind::Storage);
    }

    #[test]
    fn a_queue_without_end_has_one() {
        let long = Owner { owner: "x".repeat(5_000), ..Owner::default() };
        let waits = |n| Entry { token: 0, owner: Arc::new(long.clone()), ..held_by(n, 0) };
        let doc = Doc { queue: (0..60).map(waits).collect(), ..doc(&[held_by(99, 1)]) };
        let now = Duration::ZERO;
        let next = Next { key: "my-lock", prefix: "", name: &name(), seen: None, doc: &doc, now, random: 0 };
        let error = write(&next).unwrap_err();
        assert!(error.message().contains("too many wait"), "{error}");
    }

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_704_067_199, "2023-12-31T23:59:59.000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(micro_time(Duration::from_secs(seconds)), text);
            assert_eq!(millis_of(text), Some(seconds * 1_000), "{text}");
        }
        assert_eq!(micro_time(Duration::from_micros(1)), "1970-01-01T00:00:00.000001Z");
        for wrong in ["", "soon", "0000-00-00T00:00:00Z", "\u{e9}\u{e9}\u{e9}\u{e9}"] {
            assert_eq!(millis_of(wrong), None, "{wrong}");
        }
    }
}
