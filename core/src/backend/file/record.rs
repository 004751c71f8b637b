//! What a lock file says: one line of JSON for people (`cat`), with the parts that every acquire looks at in fixed
//! places. Pure: bytes in, bytes out.
//!
//! ```text
//! {"waiting":0,"stealing":0,"fencing_token":    1763703419123456,"mode":"exclusive","boot":"5c7d0f12","limit":         0,
//!  "version":1,"pid":4711,"fd":9,"since":"2026-11-21T05:13:00.123456Z","name":"deploy","owner":"ann@build-7:4711"}
//! ```
//!
//! It tells of the last grant that was written down. Whether that one still holds the lock it does not tell: the kernel
//! knows, and one system call less is a tenth of an acquire. `pid` and `fd` tell where to ask it: `/proc/4711/fdinfo/9`.
//!
//! The first two values are single digits in places of their own, because three parties write: `waiting` whoever
//! holds the gate, `stealing` whoever steals, and the rest whoever holds the lock. Anything else in the file, lockgate's
//! nothing or another program's something, is no record: its parts are then missing, never wrong.

use std::{collections::BTreeMap, fmt::Write, num::NonZeroU32, time::Duration};

use serde::{Deserialize, de::IgnoredAny};

use crate::ask::{Mode, Owner};

/// What an acquire reads: all that has a fixed place.
pub(super) const HEAD: usize = 99;
/// The most that is read of a file: a record with a name, an owner and metadata of the greatest length.
pub(super) const LONGEST: usize = 64 * 1024;
/// Where the holder's part starts.
pub(super) const BODY_AT: u64 = 25;
/// Where the digits are.
pub(super) const WAITING_AT: u64 = 11;
pub(super) const STEALING_AT: u64 = 24;
/// The part in front of the holder's, for a file that has none yet.
pub(super) const CLEAR_FLAGS: &[u8; 25] = b"{\"waiting\":0,\"stealing\":0";

/// Records are padded to this, so that a shorter one covers a longer one.
const SHORTEST: usize = 512;
/// A fencing token beyond this was never ours: the clock will not get there, and there must be room to grow.
const LARGEST_TOKEN: u64 = 1 << 62;

/// For whom the lock was last taken. It tells shared claims and permits apart, which the kernel does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Exclusive,
    Shared,
    Permit,
}

/// The parts in fixed places. Missing parts read as "nothing special".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// The file starts with the two flags, so that they can be set in place.
    pub(super) has_flags: bool,
    pub(super) waiting: bool,
    pub(super) stealing: bool,
    /// The last fencing token that was written down, and for whom.
    pub(super) last: Option<(u64, Kind)>,
    /// In which life of the machine. What was written in an earlier one may be an old state of the file: nobody waits
    /// for the disk, and the power may have failed.
    pub(super) boot: u32,
}

impl Head {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let part = |at: usize, text: &[u8]| bytes.get(at..at + text.len()) == Some(text);
        let digit = |at: u64| matches!(bytes.get(at as usize), Some(b'0' | b'1'));
        let one = |at: u64| bytes.get(at as usize) == Some(&b'1');
        let has_flags = part(0, b"{\"waiting\":")
            && digit(WAITING_AT)
            && part(12, b",\"stealing\":")
            && digit(STEALING_AT);
        let last = if part(25, b",\"fencing_token\":") {
            let kind = match bytes.get(62..81) {
                Some(b",\"mode\":\"exclusive\"") => Some(Kind::Exclusive),
                Some(b",\"mode\":\"shared\"   ") => Some(Kind::Shared),
                Some(b",\"mode\":\"permit\"   ") => Some(Kind::Permit),
                _ => None,
            };
            number(&bytes[42..62.min(bytes.len())]).filter(|token| *token <= LARGEST_TOKEN).zip(kind)
        } else {
            None
        };
        let boot = bytes
            .get(90..98)
            .filter(|_| part(81, b",\"boot\":\""))
            .and_then(|boot| u32::from_str_radix(std::str::from_utf8(boot).ok()?, 16).ok());
        let last = last.filter(|_| boot.is_some());
        let boot = boot.unwrap_or(0);
        Self {
            boot,
            has_flags,
            waiting: has_flags && one(WAITING_AT),
            stealing: has_flags && one(STEALING_AT),
            last,
        }
    }
}

/// What the holder writes.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) token: u64,
    pub(super) mode: Mode,
    pub(super) boot: u32,
    pub(super) pid: u32,
    /// The descriptor that has the lock.
    pub(super) fd: u32,
    /// Wall-clock time, for people.
    pub(super) since: Duration,
    pub(super) name: &'a str,
    pub(super) owner: &'a Owner,
}

impl Entry<'_> {
    /// The holder's part of the file, to be written at [`BODY_AT`], padded and ended with a newline.
    pub(super) fn body(&self) -> Vec<u8> {
        let (mode, limit) = match self.mode {
            Mode::Exclusive => ("\"exclusive\"", 0),
            Mode::Shared | Mode::Upgradable => ("\"shared\"   ", 0),
            Mode::Permit(limit) => ("\"permit\"   ", limit.get()),
        };
        let mut text = String::with_capacity(SHORTEST);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            ",\"fencing_token\":{:>20},\"mode\":{mode},\"boot\":\"{:08x}\",\"limit\":{limit:>10},\"version\":1,\
             \"pid\":{},\"fd\":{},\"since\":\"{}\"",
            self.token,
            self.boot,
            self.pid,
            self.fd,
            Rfc3339(self.since),
        );
        let mut room = LONGEST - SHORTEST;
        for (key, value) in [("name", serde_json::to_string(self.name)), ("owner", json(&self.owner.owner))] {
            push(&mut text, &mut room, key, value);
        }
        if !self.owner.metadata.is_empty() {
            push(&mut text, &mut room, "metadata", serde_json::to_string(&self.owner.metadata));
        }
        text.push('}');
        let mut bytes = text.into_bytes();
        let padded = (SHORTEST - BODY_AT as usize - 1).max(bytes.len());
        bytes.resize(padded, b' ');
        bytes.push(b'\n');
        bytes
    }
}

fn json(text: &str) -> serde_json::Result<String> {
    serde_json::to_string(text)
}

/// Adds a value if there is room for it: what does not fit is not worth failing for.
fn push(text: &mut String, room: &mut usize, key: &str, value: serde_json::Result<String>) {
    if let Ok(value) = value
        && value.len() + key.len() + 4 <= *room
    {
        *room -= value.len() + key.len() + 4;
        let _ = write!(text, ",\"{key}\":{value}");
    }
}

/// The whole record, for those who look.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) token: u64,
    pub(super) pid: u32,
    pub(super) fd: u32,
    pub(super) owner: Owner,
    /// Wall-clock time since 1970.
    pub(super) since: Option<Duration>,
}

impl Record {
    /// What the file says, if it says anything that we wrote.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            fencing_token: u64,
            limit: u32,
            pid: u32,
            #[serde(default)]
            fd: u32,
            since: String,
            name: String,
            #[serde(default)]
            owner: String,
            #[serde(default)]
            metadata: BTreeMap<String, String>,
            version: IgnoredAny,
        }
        let (_, kind) = Head::parse(bytes).last?;
        // Only the first value: what follows it may be left from a longer record.
        let line: Line = serde_json::Deserializer::from_slice(bytes).into_iter().next()?.ok()?;
        let IgnoredAny = line.version;
        Some(Self {
            mode: match kind {
                Kind::Exclusive => Mode::Exclusive,
                Kind::Shared => Mode::Shared,
                Kind::Permit => Mode::Permit(NonZeroU32::new(line.limit)?),
            },
            name: line.name,
            token: line.fencing_token,
            pid: line.pid,
            fd: line.fd,
            owner: Owner { owner: line.owner, metadata: line.metadata },
            since: parse_rfc3339(&line.since),
        })
    }
}

/// Reads a file that anybody may have written.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let head = Head::parse(bytes);
    if let Some(record) = Record::parse(bytes) {
        assert!(head.last.is_some(), "{record:?}");
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.trim_start_matches(' ');
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// `2026-11-21T05:13:00.123456Z`
struct Rfc3339(Duration);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        // Howard Hinnant's civil_from_days, for days since 1970 only.
        let days = seconds / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = year_of_era + era * 400 + carry;
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let micros = self.0.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

fn parse_rfc3339(text: &str) -> Option<Duration> {
    let field = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    if text.len() != 27 || !text.ends_with('Z') {
        return None;
    }
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 0000-03-01, years beginning in March.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = (days - 719_468) * 86_400 + field(11, 13)? * 3600 + field(14, 16)? * 60 + field(17, 19)?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(field(20, 26)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(waiting: u8, entry: &Entry<'_>) -> Vec<u8> {
        let mut bytes = CLEAR_FLAGS.to_vec();
        bytes[WAITING_AT as usize] = waiting;
        bytes.extend(entry.body());
        bytes
    }

    fn entry<'a>(name: &'a str, owner: &'a Owner, mode: Mode) -> Entry<'a> {
        Entry {
            token: 1_763_703_419_123_456,
            mode,
            boot: 0xb007,
            pid: 4711,
            fd: 9,
            since: Duration::from_micros(1_795_238_000_123_456),
            name,
            owner,
        }
    }

    fn permit(limit: u32) -> Mode {
        Mode::Permit(NonZeroU32::new(limit).unwrap())
    }

    #[test]
    fn a_record_is_one_line_for_people_and_comes_back() {
        let metadata = BTreeMap::from([("task".to_owned(), "deploy \"x\"\n".to_owned())]);
        let owner = Owner { owner: "ann@build-7:4711".to_owned(), metadata };
        for mode in [Mode::Exclusive, Mode::Shared, permit(1), permit(u32::MAX)] {
            let bytes = file(b'1', &entry("a/b \u{1f512}", &owner, mode));
            assert_eq!(bytes.len(), 512);
            assert_eq!(bytes.iter().position(|b| *b == b'\n'), Some(511), "one line");
            let head = Head::parse(&bytes[..HEAD]);
            assert!(head.has_flags && head.waiting && !head.stealing);
            assert_eq!(head.last.map(|last| last.0), Some(1_763_703_419_123_456));
            assert_eq!(head.boot, 0xb007);
            let record = Record::parse(&bytes).unwrap();
            assert_eq!((record.name.as_str(), record.mode), ("a/b \u{1f512}", mode));
            assert_eq!((record.pid, record.fd), (4711, 9));
            assert_eq!(record.owner, owner);
            assert_eq!(record.since, Some(Duration::from_micros(1_795_238_000_123_456)));
        }
    }

    #[test]
    fn the_digits_are_where_they_are_said_to_be() {
        let bytes = file(b'0', &entry("n", &Owner::default(), Mode::Exclusive));
        for (at, flag) in [(WAITING_AT, "waiting"), (STEALING_AT, "stealing")] {
            let mut bytes = bytes.clone();
            bytes[at as usize] = b'7';
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(&format!("\"{flag}\":7")), "{text}");
        }
    }

    #[test]
    fn a_shorter_record_over_a_longer_one_is_read() {
        let owner = Owner::default();
        let mut bytes = file(b'0', &entry(&"\u{1}".repeat(1024), &owner, Mode::Exclusive));
        assert_eq!(
            Record::parse(&bytes).unwrap().name,
            "\u{1}".repeat(1024),
            "six bytes for each of the name's"
        );
        let shorter = file(b'0', &entry("short", &owner, permit(3)));
        bytes[..shorter.len()].copy_from_slice(&shorter);
        assert_eq!(Record::parse(&bytes).unwrap().name, "short");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let owner = Owner {
            owner: "me".to_owned(),
            metadata: BTreeMap::from([("big".to_owned(), "x".repeat(100_000))]),
        };
        let bytes = file(b'0', &entry("n", &owner, Mode::Exclusive));
        assert!(bytes.len() <= LONGEST);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!((record.name.as_str(), record.owner.owner.as_str()), ("n", "me"));
    }

    #[test]
    fn a_token_that_cannot_be_ours_is_none() {
        let owner = Owner::default();
        let mut entry = entry("n", &owner, Mode::Exclusive);
        entry.token = u64::MAX;
        assert_eq!(Head::parse(&file(b'0', &entry)).last, None);
    }

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Rfc3339(Duration::from_secs(seconds)).to_string(), text);
            assert_eq!(parse_rfc3339(text), Some(Duration::from_secs(seconds)));
        }
    }

    proptest! {
        #[test]
        fn any_garbage_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(Head::parse(&bytes).last, None);
            prop_assert_eq!(Record::parse(&bytes), None);
        }

        #[test]
        fn a_torn_or_bitten_record_does_no_harm(cut in 0usize..512, at in 0usize..512, byte: u8) {
            let mut bytes = file(b'0', &entry("n", &Owner::default(), Mode::Exclusive));
            bytes[at] = byte;
            bytes.truncate(cut);
            if let Some((token, _)) = Head::parse(&bytes).last {
                prop_assert!(token <= LARGEST_TOKEN);
            }
            Record::parse(&bytes);
        }

        #[test]
        fn any_time_comes_back(micros in 0u64..253_402_300_799_000_000) {
            let time = Duration::from_micros(micros);
            prop_assert_eq!(parse_rfc3339(&Rfc3339(time).to_string()), Some(time));
        }
    }
}
