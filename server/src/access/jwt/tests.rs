use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
/// The key of RFC 8410, section 10.3, and its public half.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PUBLIC KEY-----\n";

fn claims() -> Claims {
    let locks = vec![Scope { names: "team-a/deploy/*".to_owned(), rights: vec![Right::Acquire] }];
    Claims { locks, most_claims: Some(3), longest_ttl_ms: Some(30_000), ..Claims::new("ci", minutes(5)) }
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

fn keys(keys: &[&JwtKey]) -> JwtKeys {
    JwtKeys::new(keys.iter().map(|key| (*key).clone()), "windlass")
}

fn secret() -> JwtKey {
    JwtKey::of_secret(SECRET).unwrap()
}

#[test]
fn what_is_minted_is_good_for_what_it_says() {
    let private = JwtKey::of_text(PRIVATE.as_bytes()).unwrap();
    let public = JwtKey::of_text(PUBLIC.as_bytes()).unwrap();
    for (sign, verify) in [(&secret(), &secret()), (&private, &public), (&private, &private)] {
        let token = mint(sign, &claims()).unwrap();
        let identity = keys(&[verify]).identify(&token).unwrap();
        assert_eq!((identity.name.as_str(), identity.most_claims), ("ci", Some(3)));
        assert_eq!(identity.longest_ttl, Some(Duration::from_secs(30)));
        assert!(identity.may(Right::Acquire, "team-a", "deploy/web"));
        assert!(!identity.may(Right::See, "team-a", "deploy/web"));
        assert!(!identity.has_expired(claims().exp + 25) && identity.has_expired(claims().exp + 35));
    }
    assert!(mint(&public, &claims()).is_err());
}

#[test]
fn two_keys_live_for_rotation() {
    let other = JwtKey::of_secret(b"another secret, also long enough").unwrap();
    let token = mint(&other, &claims()).unwrap();
    assert_eq!(keys(&[&secret()]).identify(&token), Err(BadToken("none of the keys has signed it")));
    assert!(keys(&[&secret(), &other]).identify(&token).is_ok());
}

#[test]
fn times_are_checked_with_half_a_minute_of_leeway() {
    let now = unix_now();
    let identify = |claims: &Claims| keys(&[&secret()]).identify(&mint(&secret(), claims).unwrap()).err();
    let expired = |ago| Claims { exp: now - ago, ..claims() };
    assert_eq!(identify(&expired(20)), None);
    assert_eq!(identify(&expired(40)), Some(BadToken("it has expired")));
    let from = |later| Claims { nbf: Some(now + later), ..claims() };
    assert_eq!(identify(&from(20)), None);
    assert_eq!(identify(&from(60)), Some(BadToken("it is not valid yet")));
    let elsewhere = Claims { aud: "elsewhere".to_owned(), ..claims() };
    assert_eq!(identify(&elsewhere), Some(BadToken("it is meant for another audience")));
}

#[test]
fn the_algorithm_is_the_keys() {
    let public = JwtKey::of_text(PUBLIC.as_bytes()).unwrap();
    let with = |header: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        let part = |bytes: &[u8]| base64(bytes);
        let message = format!(
            "{}.{}",
            part(header.as_bytes()),
            part(serde_json::to_string(&claims()).unwrap().as_bytes())
        );
        let signature = part(&sign(message.as_bytes()));
        format!("{message}.{signature}")
    };
    // The public key, which everybody may know, taken for a secret.
    let bytes = public.verify.try_get_as_bytes().unwrap().to_vec();
    let hmac = |key: &[u8], message: &[u8]| {
        ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), message).as_ref().to_vec()
    };
    let confused = with(r#"{"alg":"HS256"}"#, &|message| hmac(&bytes, message));
    assert!(keys(&[&public]).identify(&confused).is_err());
    let unsigned = with(r#"{"alg":"none"}"#, &|_| Vec::new());
    let renamed = with(r#"{"alg":"EdDSA"}"#, &|message| hmac(SECRET, message));
    let right = with(r#"{"alg":"HS256"}"#, &|message| hmac(SECRET, message));
    let key = keys(&[&secret()]);
    assert!(key.identify(&unsigned).is_err() && key.identify(&renamed).is_err());
    assert!(key.identify(&right).is_ok());
}

#[test]
fn what_a_token_must_say() {
    #[derive(Serialize)]
    struct Bare {
        sub: &'static str,
        locks: [(); 0],
        exp: Option<u64>,
        aud: Option<&'static str>,
    }
    let identify = |exp, aud| {
        let bare = Bare { sub: "ci", locks: [], exp, aud };
        let sign = EncodingKey::from_secret(SECRET);
        provider::install();
        keys(&[&secret()]).identify(&encode(&Header::new(Algorithm::HS256), &bare, &sign).unwrap())
    };
    let soon = unix_now() + 60;
    assert!(identify(Some(soon), Some("windlass")).is_ok());
    assert!(identify(None, Some("windlass")).is_err());
    assert!(identify(Some(soon), None).is_err());
    assert!(keys(&[&secret()]).identify(&format!("{}.a.b", "a".repeat(9000))).is_err());
    assert!(mint(&secret(), &Claims { locks: vec![scope("team-a")], ..claims() }).is_err());
}

fn scope(names: &str) -> Scope {
    Scope { names: names.to_owned(), rights: vec![Right::See] }
}

fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
