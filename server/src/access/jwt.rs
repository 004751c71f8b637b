//! Tokens that say themselves what they are good for (JWT): signed by whoever has the key, such as an application's own server or
//! `windlass token`.
//!
//! The algorithm is the key's and not the token's: a token that says another one, or none, is refused. `exp` and `aud` are
//! required, `nbf` is heeded, and clocks may differ by 30 s. There may be several keys, so that an old one stays good for as long
//! as its tokens live.

use std::{fmt, fs, path::Path, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, errors::ErrorKind as Jwt,
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use windlass::{Error, ErrorKind, Result};

use super::{BadToken, Identity, Permission, Right, provider, unix_now};

/// By how much clocks may differ, in seconds.
const LEEWAY: u64 = 30;
/// The shortest secret: as long as what HS256 makes of it.
const SHORTEST: usize = 32;
/// Longer tokens are not read.
const LONGEST_TOKEN: usize = 8 * 1024;
/// How the DER of a public key of Ed25519 begins (RFC 8410); the 32 bytes of the key follow.
const ED25519_SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key of which tokens are signed.
#[derive(Clone)]
pub struct JwtKey {
    algorithm: Algorithm,
    verify: DecodingKey,
    /// `None`: it can only look at them.
    sign: Option<EncodingKey>,
}

impl JwtKey {
    /// A secret of at least 32 bytes, for HS256.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it is shorter.
    pub fn of_secret(secret: &[u8]) -> Result<Self> {
        if secret.len() < SHORTEST {
            return Err(invalid("the secret is shorter than 32 bytes: make one with `openssl rand -hex 32`"));
        }
        Ok(Self {
            algorithm: Algorithm::HS256,
            verify: DecodingKey::from_secret(secret),
            sign: Some(EncodingKey::from_secret(secret)),
        })
    }

    /// What a file says: a private or public key of Ed25519 in PEM (EdDSA), or else a secret (HS256).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it is neither.
    pub fn of_text(text: &[u8]) -> Result<Self> {
        let text = text.trim_ascii();
        if !text.starts_with(b"-----BEGIN") {
            return Self::of_secret(text);
        }
        let wrong = || invalid("the PEM is neither a private nor a public key of Ed25519");
        if let Ok(key) = SubjectPublicKeyInfoDer::from_pem_slice(text) {
            let bytes = key.strip_prefix(ED25519_SPKI).filter(|bytes| bytes.len() == 32).ok_or_else(wrong)?;
            return Ok(Self {
                algorithm: Algorithm::EdDSA,
                verify: DecodingKey::from_ed_der(bytes),
                sign: None,
            });
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_| wrong())?;
        let der = key.secret_pkcs8_der();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| wrong())?;
        Ok(Self {
            algorithm: Algorithm::EdDSA,
            verify: DecodingKey::from_ed_der(pair.public_key().as_ref()),
            sign: Some(EncodingKey::from_ed_der(der)),
        })
    }

    /// The same, of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it cannot be read or is neither.
    pub fn of_file(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|error| {
            invalid(&format!("the key in {} cannot be read: {error}", path.display())).with_source(error)
        })?;
        Self::of_text(&text)
            .map_err(|error| invalid(&format!("the key in {}: {}", path.display(), error.message())))
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({:?})", self.algorithm)
    }
}

/// The keys that tokens may be signed by, and for whom they have to be meant.
#[derive(Clone, Debug)]
pub struct JwtKeys {
    keys: Vec<(JwtKey, Validation)>,
}

impl JwtKeys {
    /// What the claim `aud` says unless told otherwise.
    pub const AUDIENCE: &str = "windlass";

    /// These keys; `audience` is what tokens have to say in `aud`.
    pub fn new(keys: impl IntoIterator<Item = JwtKey>, audience: &str) -> Self {
        provider::install();
        let with_validation = |key: JwtKey| {
            let mut validation = Validation::new(key.algorithm);
            validation.leeway = LEEWAY;
            validation.validate_nbf = true;
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["exp", "aud", "sub"]);
            (key, validation)
        };
        Self { keys: keys.into_iter().map(with_validation).collect() }
    }

    pub(crate) fn identify(&self, token: &str) -> Result<Identity, BadToken> {
        if token.len() > LONGEST_TOKEN {
            return Err(BadToken("it is longer than 8 KiB"));
        }
        let mut refusal = BadToken("none of the keys has signed it");
        for (key, validation) in &self.keys {
            match decode::<Read>(token, &key.verify, validation) {
                Ok(data) => return data.claims.identity(),
                Err(error) => match error.kind() {
                    // Perhaps by the next key.
                    Jwt::InvalidSignature | Jwt::InvalidAlgorithm => {}
                    Jwt::ExpiredSignature => refusal = BadToken("it has expired"),
                    Jwt::ImmatureSignature => refusal = BadToken("it is not valid yet"),
                    Jwt::InvalidAudience => refusal = BadToken("it is meant for another audience"),
                    Jwt::MissingRequiredClaim(_) => refusal = BadToken("exp, aud and sub are required"),
                    _ => refusal = BadToken("its claims make no sense here"),
                },
            }
        }
        Err(refusal)
    }
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// Who, for people to see.
    pub sub: String,
    /// For whom it is meant.
    pub aud: String,
    /// Until when it is good, in seconds since 1970.
    pub exp: u64,
    /// From when on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// For which locks.
    pub locks: Vec<Scope>,
    /// How many claims at once; what the server says by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_claims: Option<usize>,
    /// The longest TTL; what the server says by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_ttl_ms: Option<u64>,
}

/// Rights for some locks, as a token says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// `NAMESPACE/NAME` or `NAMESPACE/PATTERN/*`.
    pub names: String,
    /// What for.
    pub rights: Vec<Right>,
}

impl Claims {
    /// For somebody, from now on for so long, and so far for no lock.
    pub fn new(sub: impl Into<String>, lives: Duration) -> Self {
        Self {
            sub: sub.into(),
            aud: JwtKeys::AUDIENCE.to_owned(),
            exp: unix_now().saturating_add(lives.as_secs()),
            nbf: None,
            locks: Vec::new(),
            most_claims: None,
            longest_ttl_ms: None,
        }
    }
}

/// Signs a token.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when the key can only look at tokens, or the claims make no sense.
pub fn mint(key: &JwtKey, claims: &Claims) -> Result<String> {
    provider::install();
    let Some(sign) = &key.sign else {
        return Err(invalid("this is the public key, which signs nothing: give the private one"));
    };
    permissions(&claims.locks)?;
    encode(&Header::new(key.algorithm), claims, sign)
        .map_err(|error| invalid("the key cannot sign").with_source(error))
}

/// A token as it comes: what was minted elsewhere may say more, and numbers in other ways.
#[derive(Deserialize)]
struct Read {
    sub: String,
    exp: f64,
    locks: Vec<Scope>,
    most_claims: Option<usize>,
    longest_ttl_ms: Option<u64>,
}

impl Read {
    fn identity(self) -> Result<Identity, BadToken> {
        let permissions = permissions(&self.locks).map_err(|_| BadToken("its names make no sense here"))?;
        // It was validated, so it is a time.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let expires = (self.exp as u64).saturating_add(LEEWAY);
        Ok(Identity {
            name: self.sub,
            permissions,
            most_claims: self.most_claims,
            longest_ttl: self.longest_ttl_ms.map(Duration::from_millis),
            expires: Some(expires),
        })
    }
}

/// Shows a text as a token, which nobody has signed; signs it as a token's claims; and reads it as a file of tokens.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    static KEYS: std::sync::LazyLock<(JwtKeys, EncodingKey)> = std::sync::LazyLock::new(|| {
        let key = JwtKey::of_secret(&[7; SHORTEST]).unwrap();
        let sign = key.sign.clone().unwrap();
        (JwtKeys::new([key], JwtKeys::AUDIENCE), sign)
    });
    let (keys, sign) = &*KEYS;
    assert!(keys.identify(text).is_err(), "a token that nobody signed");
    if let Ok(claims) = serde_json::from_str::<serde_json::Value>(text) {
        let token = encode(&Header::new(Algorithm::HS256), &claims, sign).unwrap();
        if let Ok(identity) = keys.identify(&token) {
            identity.may(Right::Acquire, "namespace", "name");
            assert!(!identity.has_expired(unix_now()), "{claims}");
        }
    }
    if let Ok(tokens) = super::Tokens::of_text(text) {
        tokens.find(text);
    }
}

fn permissions(scopes: &[Scope]) -> Result<Vec<Permission>> {
    let permission = |scope: &Scope| {
        Ok(Permission { pattern: scope.names.parse()?, rights: scope.rights.iter().copied().collect() })
    };
    scopes.iter().map(permission).collect()
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests;
