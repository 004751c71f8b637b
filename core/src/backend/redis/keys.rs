//! Where a lock is kept. Its key is `PREFIX` and the name, the one that others `SET NX` who want the same lock; all else is
//! kept beside it, in the same slot of a cluster. For that `{`, `}` and `%` in names are written `%7B`, `%7D` and `%25`:
//! braces say what a slot is chosen by.

use std::{borrow::Cow, sync::OnceLock};

use crate::name::Name;

/// Into how many slots a cluster is cut.
const SLOTS: u16 = 16_384;

/// The keys of a namespace.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    changes: String,
    /// A token is given where its lock is.
    in_slots: bool,
}

impl Keys {
    pub(super) fn new(prefix: &str, in_slots: bool) -> Self {
        // What the prefix is, is up to whoever chose it; but it must not choose the slot.
        let prefix = encoded(prefix).into_owned();
        Self { changes: format!("{prefix}changes"), prefix, in_slots }
    }

    /// The keys that the scripts want, in their order.
    pub(super) fn of(&self, name: &Name) -> [String; 5] {
        let key = format!("{}{}", self.prefix, encoded(name.as_str()));
        let beside = |what| format!("{{{key}}}:{what}");
        let token = match self.in_slots {
            false => format!("{{{}}}:tokens", self.prefix),
            true => format!("{{{}}}:{}:tokens", tag_of(slot(key.as_bytes())), self.prefix),
        };
        [key.clone(), beside("queue"), beside("waiting"), token, beside("gone")]
    }

    /// The name of the lock that this key is of.
    pub(super) fn name_of(&self, key: &str) -> Option<Name> {
        let name = key.strip_prefix(&self.prefix)?;
        // What nobody has encoded so is no lock of ours, though it may look like one.
        decoded(name).filter(|decoded| encoded(decoded) == name)?.parse().ok()
    }

    /// A pattern of `SCAN` for the locks whose names begin like this.
    pub(super) fn pattern(&self, prefix: &str) -> String {
        let mut pattern = String::new();
        for c in self.prefix.chars().chain(encoded(prefix).chars()) {
            if "*?[]^-\\".contains(c) {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern + "*"
    }

    /// Whether a lock of this key has a name that begins like this.
    pub(super) fn is_below(&self, key: &str, prefix: &str) -> bool {
        key.strip_prefix(&self.prefix).is_some_and(|name| name.starts_with(&*encoded(prefix)))
    }

    /// The channel of one who is told.
    pub(super) fn inbox(&self, id: u128) -> String {
        format!("{}inbox:{id:032x}", self.prefix)
    }

    /// The channel of those who watch.
    pub(super) fn changes(&self) -> &str {
        &self.changes
    }
}

fn encoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '{', '}']) {
        return text.into();
    }
    text.replace('%', "%25").replace('{', "%7B").replace('}', "%7D").into()
}

fn decoded(text: &str) -> Option<String> {
    Some(text.replace("%7B", "{").replace("%7D", "}").replace("%25", "%"))
}

/// The slot that a key without braces is in: CRC-16/XMODEM.
fn slot(key: &[u8]) -> u16 {
    let step = |crc: u16, byte: &u8| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| crc << 1 ^ if crc >> 15 == 1 { 0x1021 } else { 0 })
    };
    key.iter().fold(0, step) % SLOTS
}

/// A short text that is in this slot.
fn tag_of(wanted: u16) -> u32 {
    static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        let (mut tags, mut left) = (vec![u32::MAX; usize::from(SLOTS)], SLOTS);
        for tag in 0_u32.. {
            let place = &mut tags[usize::from(slot(tag.to_string().as_bytes()))];
            if *place == u32::MAX {
                *place = tag;
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        tags
    });
    tags[usize::from(wanted)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_lock_are_in_one_slot() {
        // By the examples of Redis's own specification.
        assert_eq!(slot(b"123456789"), 0x31C3);
        for name in ["a", "a}b", "{a}b", "50%", "\u{1f319}{}{x}", "{"] {
            let keys = Keys::new("w{x}:", true).of(&name.parse().unwrap());
            let slots = keys.each_ref().map(|key| {
                let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
                slot(tag.map_or(key.as_str(), |(tag, _)| tag).as_bytes())
            });
            assert_eq!(slots, [slots[0]; 5], "{keys:?}");
        }
    }

    #[test]
    fn names_come_back() {
        let keys = Keys::new("w:", false);
        for name in ["a", "a}b", "{a}b", "50%", "%7B", "%257B", "w:"] {
            let key = &keys.of(&name.parse().unwrap())[0];
            assert_eq!(keys.name_of(key).unwrap().as_str(), name, "{key}");
        }
        assert_eq!(keys.name_of("w:50%"), None);
        assert_eq!(keys.name_of("other"), None);
        assert_eq!(keys.pattern("a*[{"), "w:a\\*\\[%7B*");
        assert!(keys.is_below("w:a%7Bb", "a{") && !keys.is_below("w:b", "a"));
    }
}
