//! Tokens of a file, one a line: `TOKEN NAME RIGHTS NAMESPACE/PATTERN… [claims=N] [ttl=30s]`.
//!
//! - A line that begins with `#` says nothing. A token may have several lines of one name, for different rights.
//! - `TOKEN` is the token itself, or `sha256:` and its SHA-256 in hexadecimal digits; in memory it is that alone.
//! - `cert:SUBJECT` in its place gives rights to the clients' certificates with this common name.
//!
//! The file is read again when it has changed: a token that was taken out is good for nothing from then on.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use windlass::{Error, ErrorKind, Result};

use super::{Identity, Permission, Rights};

/// Shorter ones could be guessed.
const SHORTEST: usize = 20;

/// What a hash begins with in the file.
const HASHED: &str = "sha256:";

type Hash = [u8; 32];

/// The tokens of a file.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    path: Option<PathBuf>,
    known: RwLock<Known>,
    version: AtomicU64,
}

#[derive(Default)]
struct Known {
    tokens: Vec<(Hash, Arc<Identity>)>,
    certificates: HashMap<String, Arc<Identity>>,
    changed: Option<SystemTime>,
}

impl Known {
    /// Those of whom it says what was said before stay who they are.
    fn keep(&mut self, before: &Self) {
        for (hash, identity) in &mut self.tokens {
            let same = |(own, known): &&(Hash, Arc<Identity>)| own == hash && known == identity;
            if let Some((_, known)) = before.tokens.iter().find(same) {
                *identity = known.clone();
            }
        }
        for (subject, identity) in &mut self.certificates {
            if let Some(known) = before.certificates.get(subject).filter(|known| *known == identity) {
                *identity = known.clone();
            }
        }
    }
}

impl Tokens {
    /// Those of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it cannot be read or a line of it makes no sense.
    pub fn of_file(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let known = read(&path)?;
        Ok(Self(Arc::new(Inner { path: Some(path), known: RwLock::new(known), version: AtomicU64::new(0) })))
    }

    /// Those of a text such as such a file has.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when a line of it makes no sense.
    pub fn of_text(text: &str) -> Result<Self> {
        let known = RwLock::new(parse(text)?);
        Ok(Self(Arc::new(Inner { path: None, known, version: AtomicU64::new(0) })))
    }

    /// Reads the file again if it has changed. What is wrong with it is said, and the tokens known before stay.
    ///
    /// # Errors
    /// As for [`of_file`](Self::of_file).
    pub fn look_again(&self) -> Result<()> {
        let Some(path) = &self.0.path else { return Ok(()) };
        let before = self.known().changed;
        if changed(path) == before {
            return Ok(());
        }
        let mut known = read(path)?;
        known.keep(&self.known());
        *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        self.0.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    pub(crate) fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Whether the file still says so of this one, whom it has said it of before.
    pub(crate) fn still_has(&self, identity: &Arc<Identity>) -> bool {
        let known = self.known();
        let tokens = known.tokens.iter().map(|(_, identity)| identity);
        tokens.chain(known.certificates.values()).any(|known| Arc::ptr_eq(known, identity))
    }

    /// Compares with all of them, each as a whole, so that the time says nothing about how near a guess came.
    pub(crate) fn find(&self, token: &str) -> Option<Arc<Identity>> {
        let hash: Hash = Sha256::digest(token).into();
        let known = self.known();
        let mut found = None;
        for (own, identity) in &known.tokens {
            if bool::from(own.ct_eq(&hash)) {
                found = Some(identity);
            }
        }
        found.cloned()
    }

    pub(crate) fn certified(&self, subject: &str) -> Option<Arc<Identity>> {
        self.known().certificates.get(subject).cloned()
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("path", &self.0.path).finish_non_exhaustive()
    }
}

/// A new token for a line of the file: 43 characters that nobody can guess.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when the system has no randomness.
pub fn secret() -> Result<String> {
    let bytes: [u8; 32] = ring::rand::generate(&SystemRandom::new())
        .map_err(|_| Error::new(ErrorKind::Unavailable, "the system gives no randomness"))?
        .expose();
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// How a token stands in the file without being told: by its hash.
pub fn hashed(token: &str) -> String {
    let hash = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{HASHED}{hash}")
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn read(path: &Path) -> Result<Known> {
    let unusable = |error: &dyn fmt::Display| {
        Error::new(ErrorKind::InvalidInput, format!("the tokens in {}: {error}", path.display()))
    };
    // Before the text: a change in between is seen next time.
    let changed = changed(path);
    let text = fs::read_to_string(path).map_err(|error| unusable(&error))?;
    Ok(Known { changed, ..parse(&text).map_err(|error| unusable(&error))? })
}

/// Pure.
fn parse(text: &str) -> Result<Known> {
    let mut known = Known::default();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, identity) = parse_line(line).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("line {number}: {}", error.message()))
        })?;
        let before = match &key {
            Key::Token(hash) => known.tokens.iter_mut().find(|(own, _)| own == hash).map(|(_, of)| of),
            Key::Certificate(subject) => known.certificates.get_mut(subject),
        };
        match (before, key) {
            (Some(before), _) => {
                let before = Arc::make_mut(before);
                if before.name != identity.name {
                    return Err(invalid(&format!("line {number}: an earlier line gives it another name")));
                }
                before.permissions.extend(identity.permissions);
                before.most_claims = identity.most_claims.or(before.most_claims);
                before.longest_ttl = identity.longest_ttl.or(before.longest_ttl);
            }
            (None, Key::Token(hash)) => known.tokens.push((hash, Arc::new(identity))),
            (None, Key::Certificate(subject)) => {
                known.certificates.insert(subject, Arc::new(identity));
            }
        }
    }
    Ok(known)
}

enum Key {
    Token(Hash),
    Certificate(String),
}

/// Errors have no word of the line: it begins with a secret.
fn parse_line(line: &str) -> Result<(Key, Identity)> {
    let mut words = line.split_whitespace();
    let (Some(key), Some(name), Some(rights)) = (words.next(), words.next(), words.next()) else {
        return Err(invalid("write TOKEN NAME RIGHTS NAMESPACE/PATTERN"));
    };
    let key = match (key.strip_prefix(HASHED), key.strip_prefix("cert:")) {
        (Some(hash), _) => {
            Key::Token(parse_hash(hash).ok_or_else(|| {
                invalid("after sha256: come the 64 hexadecimal digits of the token's SHA-256")
            })?)
        }
        (_, Some(subject)) => Key::Certificate(subject.to_owned()),
        _ if key.len() < SHORTEST => {
            return Err(invalid("the token is shorter than 20 characters: make one with `windlass token`"));
        }
        _ => Key::Token(Sha256::digest(key).into()),
    };
    let rights: Rights = rights.parse()?;
    let mut identity = Identity {
        name: name.to_owned(),
        permissions: Vec::new(),
        most_claims: None,
        longest_ttl: None,
        expires: None,
    };
    for word in words {
        if let Some(claims) = word.strip_prefix("claims=") {
            identity.most_claims = Some(claims.parse().map_err(|_| invalid("after claims= comes a number"))?);
        } else if let Some(ttl) = word.strip_prefix("ttl=") {
            let ttl = windlass::parse_duration(ttl).filter(|ttl| *ttl >= Duration::from_secs(1));
            identity.longest_ttl = Some(ttl.ok_or_else(|| {
                invalid("after ttl= comes a duration of a second or more, such as 30s or 5m")
            })?);
        } else {
            identity.permissions.push(Permission { pattern: word.parse()?, rights });
        }
    }
    if identity.permissions.is_empty() {
        return Err(invalid("it is of no use without a NAMESPACE/PATTERN"));
    }
    Ok((key, identity))
}

fn parse_hash(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = Hash::default();
    for (place, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(hash)
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Right;

    #[test]
    fn a_file_says_who_may_do_what() {
        let hash = "5d93d07df8c2d56b5c2ad9f7cd7a1a7a2a5b7f1ae0ae4a5c9d5a5d1e0f2a3b4c";
        let tokens = Tokens::of_text(&format!(
            "# a comment\n\n\
             secret-secret-secret-1 ci acquire,see team-a/deploy/* claims=3 ttl=30s\n\
             secret-secret-secret-1 ci shared team-b/*\n\
             sha256:{hash} ops all */*\n\
             cert:build-7 build-7 shared team-a/*\n"
        ))
        .unwrap();
        let ci = tokens.find("secret-secret-secret-1").unwrap();
        assert_eq!((ci.name.as_str(), ci.most_claims), ("ci", Some(3)));
        assert_eq!(ci.longest_ttl, Some(Duration::from_secs(30)));
        assert!(ci.may(Right::Acquire, "team-a", "deploy/x") && ci.may(Right::Shared, "team-b", "x"));
        assert!(!ci.may(Right::Acquire, "team-b", "x") && !ci.may(Right::Force, "team-a", "deploy/x"));
        assert!(tokens.find("secret-secret-secret-2").is_none() && tokens.find("").is_none());
        assert!(tokens.certified("build-7").unwrap().may(Right::Shared, "team-a", "x"));
        assert!(tokens.certified("build-8").is_none());
    }

    #[test]
    fn a_token_is_found_by_its_hash() {
        let token = secret().unwrap();
        let line = format!("{} ann all a/*", hashed(&token));
        assert!(!line.contains(&token));
        assert_eq!(Tokens::of_text(&line).unwrap().find(&token).unwrap().name, "ann");
    }

    #[test]
    fn what_makes_no_sense_is_said_without_the_secret() {
        for wrong in [
            "short ci all a/*",
            "secret-secret-secret-1 ci all",
            "secret-secret-secret-1 ci some a/*",
            "secret-secret-secret-1 ci all a",
            "secret-secret-secret-1 ci all a/* ttl=5ms",
            "secret-secret-secret-1 ci all a/*\nsecret-secret-secret-1 other all a/*",
            "sha256:secret-secret ci all a/*",
        ] {
            let error = Tokens::of_text(wrong).unwrap_err().to_string();
            assert!(error.contains("line ") && !error.contains("secret-"), "{error}");
        }
    }
}
