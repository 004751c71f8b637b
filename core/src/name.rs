//! What is locked, and by which request: [`Name`] and [`ClaimId`], each checked once and carried as a type.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The name of a lock: any UTF-8 text of 1 to 1,024 bytes. Slashes, dots, newlines, NUL and emoji are letters like
/// any other; no name can leave its namespace.
///
/// ```
/// # use windlass::{ErrorKind, Name};
/// let name: Name = "../etc/passwd \u{1f512}".parse()?;
/// assert_eq!(name.as_str(), "../etc/passwd \u{1f512}");
/// assert_eq!("".parse::<Name>().unwrap_err().kind(), ErrorKind::InvalidName);
/// # Ok::<(), windlass::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// The longest name, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 1024;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks a name that comes as bytes, from a command line for example.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] when the bytes are not UTF-8, none, or more than 1,024.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        std::str::from_utf8(bytes)
            .map_err(|e| {
                Error::new(
                    ErrorKind::InvalidName,
                    format!(
                        "the name is not UTF-8 (at byte {}): give the name as UTF-8 text",
                        e.valid_up_to()
                    ),
                )
            })?
            .parse()
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.len() {
            0 => Err(Error::new(
                ErrorKind::InvalidName,
                "the name is empty: a lock needs a name of 1 to 1,024 bytes",
            )),
            1..=Self::MAX_BYTES => Ok(Self(text.into())),
            n => Err(Error::new(
                ErrorKind::InvalidName,
                format!("the name has {n} bytes: a lock's name has at most 1,024; lock a hash of it instead"),
            )),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for Name {
    /// As text without control characters, fit for a message or a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { fmt::Write::write_char(f, c)? }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// One request for a lock, waiting or granted: 128 random bits that the client makes before it asks. Who knows the id
/// can renew and release the claim, so it is a secret and is never shown: `Debug` prints none of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimId(u128);

impl ClaimId {
    /// The id with these bits; they must come from a secure source of randomness.
    pub fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// The secret itself, for a backend to write down.
    pub fn reveal(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimId(secret)")
    }
}
