//! Where claims are kept: `/PREFIX/NAME/SUFFIX`, the layout of Go's `concurrency.Mutex`, whose suffix is its lease and ours is
//! the claim id, or one that is [used again](super::seats). What stands in one line is the range `/PREFIX/NAME/`, so a `/` in
//! a name is encoded: otherwise the lock `a` would have the claims of `a/b` in its line. Where the names are shared with
//! others who have a `/` in them, the URL says `raw_names=true`, and the locks below a name are in its line, as they are for
//! those others.

use std::{borrow::Cow, fmt::Write as _};

use crate::{ask::Claim, name::Name};

/// The keys of a namespace.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Begins and ends with a slash.
    prefix: String,
    raw_names: bool,
}

/// The keys from the first one up to and without the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
}

impl Range {
    /// The keys that begin like this; never empty here.
    pub(super) fn below(from: Vec<u8>) -> Self {
        let mut to = from.clone();
        // What ends in 0xff has no successor of its length, but that of what comes before.
        while to.pop_if(|last| *last == u8::MAX).is_some() {}
        to.last_mut().into_iter().for_each(|last| *last += 1);
        Self { from, to }
    }

    /// This key alone.
    pub(super) fn of(key: Vec<u8>) -> Self {
        Self { from: key, to: Vec::new() }
    }
}

impl Keys {
    pub(super) fn new(prefix: &str, raw_names: bool) -> Self {
        Self { prefix: format!("/{}/", prefix.trim_matches('/')), raw_names }
    }

    /// The line of a lock.
    pub(super) fn line(&self, name: &Name) -> Range {
        Range::below(format!("{}{}/", self.prefix, self.encoded(name.as_str())).into_bytes())
    }

    /// The key that is named after a claim.
    pub(super) fn of(&self, claim: &Claim) -> Vec<u8> {
        self.ending_in(&claim.name, &format!("{:032x}", claim.id.reveal()))
    }

    /// ... of a lock that ends like this.
    pub(super) fn ending_in(&self, name: &Name, suffix: &str) -> Vec<u8> {
        let (prefix, name) = (&self.prefix, self.encoded(name.as_str()));
        format!("{prefix}{name}/{suffix}").into_bytes()
    }

    /// The keys of the locks whose names begin like this, and perhaps a few others.
    pub(super) fn below(&self, prefix: &str) -> Range {
        Range::below(format!("{}{}", self.prefix, self.encoded(prefix)).into_bytes())
    }

    /// The lock in whose line a key stands, if it can be one's.
    pub(super) fn name_of(&self, key: &[u8]) -> Option<Name> {
        let key = std::str::from_utf8(key).ok()?;
        let (written, _) = key.strip_prefix(&self.prefix)?.rsplit_once('/')?;
        let name = if self.raw_names { written.to_owned() } else { decoded(written)? };
        // A name has one encoding: what is written in another way is in no line.
        (self.encoded(&name) == written).then(|| name.parse().ok()).flatten()
    }

    fn encoded<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let is_safe = |c: char| !c.is_ascii_control() && c != '/' && c != '%';
        if self.raw_names || name.chars().all(is_safe) {
            return Cow::Borrowed(name);
        }
        let encoded = name.chars().fold(String::with_capacity(name.len() + 8), |mut encoded, c| {
            if is_safe(c) {
                encoded.push(c);
            } else {
                // Writing to a String cannot fail, and all of these are ASCII.
                let _ = write!(encoded, "%{:02X}", u32::from(c));
            }
            encoded
        });
        Cow::Owned(encoded)
    }
}

fn decoded(written: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::ClaimId;

    fn claim(name: &str) -> Claim {
        Claim { name: name.parse().unwrap(), id: ClaimId::from_u128(0xab) }
    }

    #[test]
    fn the_layout_of_gos_mutex() {
        let keys = Keys::new("app/locks", false);
        assert_eq!(
            String::from_utf8(keys.of(&claim("deploy"))).unwrap(),
            "/app/locks/deploy/000000000000000000000000000000ab"
        );
        assert_eq!(keys.line(&"deploy".parse().unwrap()).from, b"/app/locks/deploy/");
        assert_eq!(keys.line(&"deploy".parse().unwrap()).to, b"/app/locks/deploy0");
        assert_eq!(keys.name_of(b"/app/locks/deploy/694d7a").unwrap().as_str(), "deploy");
    }

    #[test]
    fn a_slash_makes_no_line_below_another() {
        let keys = Keys::new("app", false);
        assert_eq!(keys.line(&"a/%\n".parse().unwrap()).from, b"/app/a%2F%25%0A/");
        assert_eq!(Keys::new("app", true).line(&"a/b".parse().unwrap()).from, b"/app/a/b/");
    }

    #[test]
    fn keys_of_strangers_are_in_the_line_of_a_name_or_in_none() {
        let keys = Keys::new("app", false);
        for strange in [
            &b"/app/x"[..],
            b"/app/a/b/x",
            b"/app/a%2fb/x",
            b"/app/%/x",
            b"/app//x",
            b"/app/\xff/x",
            b"/b/x/y",
        ] {
            assert_eq!(keys.name_of(strange), None, "{}", String::from_utf8_lossy(strange));
        }
        assert_eq!(Keys::new("app", true).name_of(b"/app/a/b/x").unwrap().as_str(), "a/b");
    }

    proptest! {
        #[test]
        fn a_name_comes_back(name in "\\PC{1,20}|[a/%\\x00-\\x1f]{1,9}", raw in any::<bool>()) {
            let keys = Keys::new("app", raw);
            let back = keys.name_of(&keys.of(&claim(&name))).unwrap();
            prop_assert_eq!(back.as_str(), name);
        }

        #[test]
        fn two_names_have_two_lines(one in "[a/%2F]{1,6}", other in "[a/%2F]{1,6}") {
            let keys = Keys::new("app", false);
            let Range { from, to } = keys.line(&one.parse().unwrap());
            let key = keys.of(&claim(&other));
            prop_assert_eq!(from <= key && key < to, one == other);
        }

        #[test]
        fn a_prefix_has_the_keys_of_its_names(name in "[a/%]{1,6}", prefix in "[a/%]{0,3}") {
            let keys = Keys::new("app", false);
            let Range { from, to } = keys.below(&prefix);
            let key = keys.of(&claim(&name));
            // The suffix is no part of the name.
            prop_assert!(!name.starts_with(&prefix) || (from <= key && key < to));
        }
    }
}
