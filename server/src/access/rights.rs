//! Rights, and for which locks: pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use windlass::{Error, ErrorKind, Result};

/// What somebody may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Ask for claims of every mode, and renew, change and release them.
    Acquire,
    /// The same for shared claims only.
    Shared,
    /// See who holds and who waits.
    See,
    /// Take locks from those who hold them.
    Force,
}

impl Right {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Acquire, "acquire"), (Self::Shared, "shared"), (Self::See, "see"), (Self::Force, "force")];
}

/// A set of rights: in text `acquire,see`, or `all`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// All that there are.
    pub const ALL: Self = Self(0b1111);

    /// With one more.
    #[must_use]
    pub fn with(self, right: Right) -> Self {
        Self(self.0 | Self::bit(right))
    }

    /// Whether this is among them: who may acquire may also share.
    pub fn has(self, right: Right) -> bool {
        let enough = match right {
            Right::Shared => Self::bit(Right::Acquire) | Self::bit(Right::Shared),
            other => Self::bit(other),
        };
        self.0 & enough != 0
    }

    /// Each of them by itself.
    pub fn each(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().map(|(right, _)| right).filter(move |right| self.has(*right))
    }

    fn bit(right: Right) -> u8 {
        1 << right as u8
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        rights.into_iter().fold(Self::default(), Self::with)
    }
}

impl FromStr for Rights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::ALL);
        }
        text.split(',')
            .map(|word| {
                Right::ALL.iter().find(|(_, text)| *text == word).map(|(right, _)| *right).ok_or_else(|| {
                    invalid("rights are acquire, shared, see and force with commas between them, or all")
                })
            })
            .collect()
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = Right::ALL.iter().filter(|(right, _)| self.0 & Self::bit(*right) != 0);
        f.debug_set().entries(words.map(|(_, text)| text)).finish()
    }
}

/// Which locks: `NAMESPACE/NAME`, where the last segment of the name may be `*` for whatever follows there, and the namespace `*`
/// for every one.
///
/// ```
/// use windlass_server::token::Pattern;
///
/// let pattern: Pattern = "team-a/deploy/*".parse()?;
/// assert!(pattern.covers("team-a", "deploy/web") && pattern.covers("team-a", "deploy/web/eu"));
/// assert!(!pattern.covers("team-a", "deploy") && !pattern.covers("team-a", "deployment"));
/// # Ok::<(), windlass::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// `None`: every one.
    namespace: Option<String>,
    /// What a name has to be, or has to begin with.
    name: String,
    is_prefix: bool,
}

impl Pattern {
    pub(super) fn everything() -> Self {
        Self { namespace: None, name: String::new(), is_prefix: true }
    }

    /// Whether this lock is among them.
    pub fn covers(&self, namespace: &str, name: &str) -> bool {
        self.is_of(namespace) && if self.is_prefix { name.starts_with(&self.name) } else { name == self.name }
    }

    /// Whether all locks of this namespace are among them.
    pub fn is_all_of(&self, namespace: &str) -> bool {
        self.is_of(namespace) && self.is_prefix && self.name.is_empty()
    }

    /// Whether locks of this namespace are among them.
    pub fn is_of(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|own| own == namespace)
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((namespace, name)) = text.split_once('/') else {
            return Err(invalid("a pattern is NAMESPACE/NAME or NAMESPACE/*: the slash is missing"));
        };
        if namespace.is_empty() || name.is_empty() {
            return Err(invalid("a pattern is NAMESPACE/NAME or NAMESPACE/*: one of them is empty"));
        }
        let (name, is_prefix) = match name.strip_suffix('*') {
            // Slash included: segments are whole.
            Some(before) if before.is_empty() || before.ends_with('/') => (before, true),
            _ => (name, false),
        };
        if name.contains('*') || (namespace.contains('*') && namespace != "*") {
            return Err(invalid(
                "in a pattern * stands for the namespace, or for the last segments of the name",
            ));
        }
        let namespace = (namespace != "*").then(|| namespace.to_owned());
        Ok(Self { namespace, name: name.to_owned(), is_prefix })
    }
}

/// Rights for some locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Which locks.
    pub pattern: Pattern,
    /// Which rights.
    pub rights: Rights,
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_whole() {
        let covers = |pattern: &str, namespace: &str, name: &str| {
            pattern.parse::<Pattern>().unwrap().covers(namespace, name)
        };
        assert!(covers("a/*", "a", "x") && covers("a/*", "a", "x/y") && covers("*/x", "b", "x"));
        assert!(!covers("a/*", "b", "x") && !covers("a/x", "a", "x/y") && !covers("a/x/*", "a", "x"));
        assert!(!covers("a/x/*", "a", "xy/z") && covers("a/x/*", "a", "x/y/z"));
        for wrong in ["a", "/x", "a/", "a/x*", "a/*/x", "a*/x", "a/**"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_may_acquire_may_share_and_not_the_other_way_round() {
        let rights = |text: &str| text.parse::<Rights>().unwrap();
        assert!(rights("acquire").has(Right::Shared) && !rights("shared").has(Right::Acquire));
        assert!(!rights("acquire,see").has(Right::Force) && rights("all").has(Right::Force));
        assert!("".parse::<Rights>().is_err() && "acquire, see".parse::<Rights>().is_err());
        assert_eq!(format!("{:?}", rights("see,acquire")), r#"{"acquire", "see"}"#);
    }
}
