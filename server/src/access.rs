//! Who may do what.
//!
//! A request shows a token or comes over a connection with a client's certificate; either leads to an [`Identity`], which has
//! permissions. They are looked at for every request, before anything is asked of the locks: a refusal has the same words
//! and takes the same time whether a lock is there or not. What is long, such as a parked renewal, is looked at again
//! before it has an effect: a token that expires meanwhile renews nothing.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use windlass::{Error, ErrorKind, Result};

mod jwt;
mod provider;
mod rights;
mod tokens;

#[cfg(fuzzing)]
pub use jwt::fuzz;
pub use jwt::{Claims, JwtKey, JwtKeys, Scope, mint};
pub use rights::{Pattern, Permission, Right, Rights};
pub use tokens::{Tokens, hashed, secret};

/// Who may use a server. By default nobody is asked.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Tokens of a file.
    pub tokens: Option<Tokens>,
    /// Tokens that others sign.
    pub jwt: Option<JwtKeys>,
}

impl Access {
    /// Whether nobody has to show a token.
    pub fn is_anonymous(&self) -> bool {
        self.tokens.is_none() && self.jwt.is_none()
    }

    /// Whom a token stands for.
    pub(crate) fn identify(&self, token: &str) -> Result<Arc<Identity>, BadToken> {
        if let Some(identity) = self.tokens.as_ref().and_then(|tokens| tokens.find(token)) {
            return Ok(identity);
        }
        match &self.jwt {
            // What has no dots was never one.
            Some(keys) if token.contains('.') => keys.identify(token).map(Arc::new),
            _ => Err(BadToken("it is not known here")),
        }
    }

    /// What a client's certificate stands for: what the file of tokens says of it, or everything where there is none.
    pub(crate) fn certified(&self, subject: &str) -> Option<Arc<Identity>> {
        match &self.tokens {
            Some(tokens) => tokens.certified(subject),
            None if self.jwt.is_none() => Some(Arc::new(Identity::of_everything(subject))),
            None => None,
        }
    }

    /// Whether somebody whom a token of `version` stood for is still known; not whether a signed token has expired.
    pub(crate) fn still_knows(&self, identity: &Arc<Identity>, version: u64) -> bool {
        match &self.tokens {
            Some(tokens) if identity.expires.is_none() && tokens.version() != version => {
                tokens.still_has(identity)
            }
            _ => true,
        }
    }

    /// Changes with what tokens are known.
    pub(crate) fn version(&self) -> u64 {
        self.tokens.as_ref().map_or(0, Tokens::version)
    }
}

/// Why a token is refused, in words without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadToken(pub(crate) &'static str);

/// Somebody, and what they may do.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who, for people to see.
    pub name: String,
    /// What.
    pub permissions: Vec<Permission>,
    /// How many claims at once, held or waiting; what the server's limits say by default.
    pub most_claims: Option<usize>,
    /// The longest TTL; what the server's limits say by default.
    pub longest_ttl: Option<Duration>,
    /// Until when, in seconds since 1970; the leeway of clocks is in it.
    pub(crate) expires: Option<u64>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

impl Identity {
    fn of_everything(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            permissions: vec![Permission { pattern: Pattern::everything(), rights: Rights::ALL }],
            most_claims: None,
            longest_ttl: None,
            expires: None,
        }
    }

    /// Whether it has this right for this lock.
    pub fn may(&self, right: Right, namespace: &str, name: &str) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.rights.has(right) && permission.pattern.covers(namespace, name))
    }

    /// Whether it has this right for any lock of the namespace.
    pub fn may_somewhere(&self, right: Right, namespace: &str) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.rights.has(right) && permission.pattern.is_of(namespace))
    }

    /// Whether it has this right for all locks of the namespace.
    pub fn may_everywhere(&self, right: Right, namespace: &str) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.rights.has(right) && permission.pattern.is_all_of(namespace))
    }

    /// Whether any of its permissions is of this namespace.
    pub fn is_of(&self, namespace: &str) -> bool {
        self.permissions.iter().any(|permission| permission.pattern.is_of(namespace))
    }

    pub(crate) fn has_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| now > expires)
    }
}

/// What everybody is told who may not do something, whatever it was.
pub(crate) fn denied() -> Error {
    Error::new(
        ErrorKind::Denied,
        "this may not be done with this token: its rights, namespaces and names are those that it was made with",
    )
}

/// Seconds since 1970, which tokens count in.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
