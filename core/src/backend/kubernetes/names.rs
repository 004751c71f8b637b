//! What the object of a lock is called.
//!
//! A name that Kubernetes takes for an object is the object's name, so that a lock and what client-go's leader election calls
//! by that name are the same. All others are hashed, and the object says which lock it is.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::name::{ClaimId, Name};

/// What the names of the others begin with.
const HASHED: &str = "windlass-";
/// The longest name that an object may have.
const LONGEST: usize = 253;

/// The object of a lock.
pub(super) fn object(prefix: &str, name: &Name) -> String {
    if prefix.is_empty() && is_plain(name.as_str()) {
        return name.as_str().to_owned();
    }
    let mut hash = Sha256::new();
    hash.update(prefix.as_bytes());
    hash.update([0]);
    hash.update(name.as_str().as_bytes());
    hash.finalize().iter().fold(HASHED.to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The lock whose object has this name, if the name alone says so.
pub(super) fn of_object(object: &str) -> Option<Name> {
    is_plain(object).then(|| object.parse().ok()).flatten()
}

/// What stands for a claim id in an object, which others may read: who reads it can neither renew nor release the claim.
pub(super) fn seal(id: ClaimId) -> ClaimId {
    sealed(b"claim", &id.reveal().to_be_bytes())
}

/// What stands for a holder that is not one of ours.
pub(super) fn seal_foreign(identity: &str) -> ClaimId {
    sealed(b"foreign", identity.as_bytes())
}

fn sealed(what: &[u8], secret: &[u8]) -> ClaimId {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(secret);
    let hash: [u8; 32] = hash.finalize().into();
    ClaimId::from_u128(hash.iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte)))
}

fn is_plain(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let ends = part.bytes().next().is_some_and(letter) && part.bytes().last().is_some_and(letter);
        ends && part.bytes().all(|byte| letter(byte) || byte == b'-')
    };
    name.len() <= LONGEST && !name.starts_with(HASHED) && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prefix: &str, name: &str) -> String {
        object(prefix, &name.parse().unwrap())
    }

    #[test]
    fn names_that_objects_may_have_stay() {
        for plain in ["a", "0", "my-controller", "a.b-c.d", &"x".repeat(253)] {
            assert_eq!(of("", plain), plain);
            assert_eq!(of_object(plain).unwrap().as_str(), plain);
            assert!(of("team", plain).starts_with(HASHED), "under a prefix the name is not the object's");
        }
    }

    #[test]
    fn others_are_hashed_each_to_its_own() {
        let odd =
            ["A", "a/b", "-a", "a-", "a..b", ".a", "a.", "a_b", "\u{e9}", "windlass-a", &"x".repeat(254)];
        let mut all: Vec<String> = odd.iter().map(|name| of("", name)).collect();
        all.extend(["a/b", "b"].map(|name| of("a", name)));
        for object in &all {
            assert_eq!((object.len(), of_object(object)), (73, None), "{object}");
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), odd.len() + 2);
    }

    #[test]
    fn a_seal_does_not_show_the_secret() {
        let id = ClaimId::from_u128(7);
        assert_ne!(seal(id), id);
        assert_ne!(seal(id), seal(ClaimId::from_u128(8)));
        assert_ne!(seal(ClaimId::from_u128(0)), seal_foreign("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    }
}
