//! What is written in the key of a claim, for others to see: how it shares the lock, who it is, and, where the key is not
//! named after it, which claim. Nothing else decides by it. Others write what they like there: a key of theirs counts as
//! exclusive.

use serde::{Deserialize, Serialize};

use crate::{
    ask::{Mode, Owner},
    name::ClaimId,
    protocol::maybe_hex,
};

/// The most that is shown of what a stranger wrote, in characters.
const MOST_SHOWN: usize = 64;

#[derive(Serialize, Deserialize)]
struct Value<O> {
    mode: Mode,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_hex")]
    claim: Option<ClaimId>,
    #[serde(flatten)]
    owner: O,
}

pub(super) fn write(mode: Mode, claim: Option<ClaimId>, owner: &Owner) -> Vec<u8> {
    // None of the three can fail to be written as JSON.
    serde_json::to_vec(&Value { mode, claim, owner }).unwrap_or_default()
}

/// What a key says; `None` for one that is not ours.
pub(super) fn read(value: &[u8]) -> Option<(Mode, Option<ClaimId>, Owner)> {
    let Value { mode, claim, owner } = serde_json::from_slice::<Value<Owner>>(value).ok()?;
    // Whether an upgradable claim may be granted is no question of its place in the line.
    (mode != Mode::Upgradable).then_some((mode, claim, owner))
}

/// A stranger, by what is written in its key or, where that is nothing, by how the key ends: etcd's own lockers put their
/// lease there.
pub(super) fn stranger(key: &[u8], value: &[u8]) -> Owner {
    let suffix = key.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let text = String::from_utf8_lossy(if value.is_empty() { suffix } else { value });
    // As long as a claim id, or with one in it as a later version may write it: not to be shown, whoever's it is.
    if value.is_empty() && suffix.len() >= 32 || text.contains("\"claim\"") {
        return Owner { owner: "somebody unknown".to_owned(), ..Owner::default() };
    }
    let shown: String = text.chars().take(MOST_SHOWN).flat_map(char::escape_debug).collect();
    let what = if value.is_empty() { "the lease " } else { "" };
    Owner { owner: format!("{what}{shown}"), ..Owner::default() }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, num::NonZeroU32};

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let metadata = BTreeMap::from([("job".to_owned(), "a \u{1f319}\n".to_owned())]);
        let owner = Owner { owner: "ann@host:1".to_owned(), metadata };
        for mode in [Mode::Exclusive, Mode::Shared, Mode::Permit(NonZeroU32::MIN)] {
            for claim in [None, Some(ClaimId::from_u128(0xab))] {
                assert_eq!(read(&write(mode, claim, &owner)), Some((mode, claim, owner.clone())));
            }
        }
        assert_eq!(write(Mode::Shared, None, &Owner::default()), br#"{"mode":"shared","owner":""}"#);
    }

    #[test]
    fn strangers_are_shown_in_bounds() {
        let strange = |value: &[u8]| {
            assert_eq!(read(value), None);
            stranger(b"/app/a/694d7a2d", value).owner
        };
        assert_eq!(strange(b""), "the lease 694d7a2d");
        assert_eq!(strange(b"hi\n\xff"), "hi\\n\u{fffd}");
        assert_eq!(strange(br#"{"mode":"upgradable","owner":"x"}"#).len(), 41);
        assert_eq!(strange(&[b'x'; 9000]).len(), MOST_SHOWN);
        assert_eq!(stranger(&[b'7'; 32], b"").owner, "somebody unknown");
        assert_eq!(strange(br#"{"mode":"new","claim":"ab","owner":"x"}"#), "somebody unknown");
    }
}
