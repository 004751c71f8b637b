//! How lockgate names the file of a lock, so that its file locker and ours meet in the same files.

use std::fmt;

use sha2::{Digest, Sha256};

/// The file of a lock: the hash of its name. As text, in lowercase hex, it is the file's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FileKey {
    /// SHA-256, lockgate's way today and ours.
    Sha256([u8; 32]),
    /// `MurmurHash3` x86 32 with seed 0, in hex without leading zeros: lockgate's legacy way. Names whose hashes are
    /// equal share a lock.
    Murmur3(u32),
}

impl FileKey {
    /// The hash of today.
    pub(crate) fn sha256(name: &str) -> Self {
        Self::Sha256(Sha256::digest(name.as_bytes()).into())
    }

    /// The hash of lockgate's legacy mode.
    pub(crate) fn murmur3(name: &str) -> Self {
        Self::Murmur3(murmur3(name.as_bytes()))
    }

    /// The hash that a file's name is, if it is one.
    pub(crate) fn parse(file: &str) -> Option<Self> {
        if file.is_empty() || !file.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        match file.len() {
            64 => {
                let mut hash = [0; 32];
                for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
                    *byte = u8::from_str_radix(&file[at..at + 2], 16).ok()?;
                }
                Some(Self::Sha256(hash))
            }
            1..=8 => u32::from_str_radix(file, 16).ok().map(Self::Murmur3),
            _ => None,
        }
    }
}

impl fmt::Display for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        match self {
            Self::Murmur3(hash) => write!(f, "{hash:x}"),
            Self::Sha256(hash) => {
                let mut text = [0; 64];
                for (pair, byte) in text.chunks_exact_mut(2).zip(hash) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                f.write_str(std::str::from_utf8(&text).unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `MurmurHash3` x86 32, seed 0, by Austin Appleby (public domain).
fn murmur3(bytes: &[u8]) -> u32 {
    const C1: u32 = 0xcc9e_2d51;
    const C2: u32 = 0x1b87_3593;
    let scramble = |block: u32| block.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2);
    let mut hash = 0u32;
    let mut blocks = bytes.chunks_exact(4);
    for block in &mut blocks {
        hash ^= scramble(u32::from_le_bytes([block[0], block[1], block[2], block[3]]));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    let tail = blocks.remainder().iter().rev().fold(0, |tail, &byte| (tail << 8) | u32::from(byte));
    hash ^= scramble(tail);
    // The algorithm mixes in the length modulo 2^32.
    hash ^= bytes.len() as u32;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_64_lowercase_digits() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(FileKey::sha256("abc").to_string(), abc);
        assert!(FileKey::parse(abc) == Some(FileKey::sha256("abc")));
    }

    #[test]
    fn murmur3_gives_the_published_values() {
        for (text, hash) in [
            ("", 0),
            ("a", 0x3c25_69b2),
            ("ab", 0x9bbf_d75f),
            ("abc", 0xb3dd_93fa),
            ("test", 0xba6b_d213),
            ("Hello, world!", 0xc036_3e43),
            ("The quick brown fox jumps over the lazy dog", 0x2e4f_f723),
        ] {
            assert_eq!(murmur3(text.as_bytes()), hash, "{text:?}");
        }
        assert_eq!(FileKey::Murmur3(0xab).to_string(), "ab", "lockgate does not pad");
        assert!(FileKey::parse("ab") == Some(FileKey::Murmur3(0xab)));
        for other in ["", "AB", "xyz", "123456789", ".windlass", &"a".repeat(65)] {
            assert!(FileKey::parse(other).is_none(), "{other:?}");
        }
    }
}
