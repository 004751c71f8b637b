//! What a URL may begin with.

/// The schemes that this build knows.
pub(super) const SCHEMES: &[&str] = &[
    #[cfg(not(all(feature = "http", target_family = "wasm")))]
    "memory:",
    #[cfg(all(feature = "etcd", not(target_family = "wasm")))]
    "etcd(s)://H1,H2,H3/PREFIX",
    #[cfg(all(feature = "file", not(target_family = "wasm")))]
    "file:///DIR",
    #[cfg(all(feature = "redis", not(target_family = "wasm")))]
    "redis(s)://HOST:PORT/DB",
    #[cfg(feature = "http")]
    "http(s)://HOST:PORT/NAMESPACE",
    #[cfg(all(feature = "kubernetes", not(target_family = "wasm")))]
    "k8s://NAMESPACE/leases or k8s://NAMESPACE/RESOURCE/NAME",
    #[cfg(all(feature = "lockgate", not(target_family = "wasm")))]
    "lockgate+http(s)://HOST:PORT",
];

/// With which feature a program for an operating system knows this scheme.
pub(super) fn feature_of(scheme: &str) -> Option<&'static str> {
    if cfg!(target_family = "wasm") {
        return None;
    }
    Some(match scheme.split('+').next()? {
        "etcd" | "etcds" => "etcd",
        "file" => "file",
        "http" | "https" => "http",
        "k8s" => "kubernetes",
        "lockgate" => "lockgate",
        "redis" | "rediss" => "redis",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_feature() {
        for known in SCHEMES.iter().filter(|known| **known != "memory:") {
            let scheme = known.split_once(':').unwrap().0.replace("(s)", "");
            for scheme in [scheme.clone(), format!("{scheme}+unix")] {
                assert!(feature_of(&scheme).is_some(), "{scheme}");
            }
        }
        assert_eq!(feature_of("memory"), None);
    }
}
