//! What a URL may begin with.

/// A place for locks, as its URLs are written.
struct Place {
    /// `(s)` stands for: with TLS, too.
    form: &'static str,
    /// The feature that brings it to a program for an operating system.
    feature: Option<&'static str>,
    is_here: bool,
}

const fn native(form: &'static str, feature: &'static str, is_on: bool) -> Place {
    Place { form, feature: Some(feature), is_here: is_on && cfg!(not(target_family = "wasm")) }
}

const PLACES: [Place; 7] = [
    // A package for browsers has the server's locks alone.
    Place {
        form: "memory:",
        feature: None,
        is_here: cfg!(not(all(feature = "http", target_family = "wasm"))),
    },
    native("etcd(s)://H1,H2,H3/PREFIX", "etcd", cfg!(feature = "etcd")),
    native("file:///DIR", "file", cfg!(feature = "file")),
    native("redis(s)://HOST:PORT/DB", "redis", cfg!(feature = "redis")),
    Place { form: "http(s)://HOST:PORT/NAMESPACE", feature: Some("http"), is_here: cfg!(feature = "http") },
    native(
        "k8s://NAMESPACE/leases or k8s://NAMESPACE/RESOURCE/NAME",
        "kubernetes",
        cfg!(feature = "kubernetes"),
    ),
    native("lockgate+http(s)://HOST:PORT", "lockgate", cfg!(feature = "lockgate")),
];

/// The forms that this build knows.
pub(super) fn forms() -> String {
    let here = PLACES.iter().filter(|place| place.is_here);
    here.map(|place| place.form).collect::<Vec<_>>().join(", ")
}

/// Which feature brings this scheme; none in WebAssembly, where the packages are built as they are.
pub(super) fn feature_of(scheme: &str) -> Option<&'static str> {
    if cfg!(target_family = "wasm") {
        return None;
    }
    PLACES.iter().find(|place| place.is_of(scheme))?.feature
}

impl Place {
    fn is_of(&self, scheme: &str) -> bool {
        let (ours, theirs) = (first(self.form), first(scheme));
        match ours.strip_suffix("(s)") {
            Some(ours) => theirs == ours || theirs.strip_suffix('s') == Some(ours),
            None => theirs == ours,
        }
    }
}

/// What comes after a `+` is a way to it, or what is beyond it.
fn first(scheme: &str) -> &str {
    scheme.split([':', '+']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_has_its_feature() {
        for (schemes, feature) in [
            (&["etcd", "etcds"][..], "etcd"),
            (&["file"], "file"),
            (
                &["redis", "rediss", "redis+sentinel", "rediss+cluster", "redis+unix", "redis+redlock"],
                "redis",
            ),
            (&["http", "https", "http+unix"], "http"),
            (&["k8s"], "kubernetes"),
            (&["lockgate+http", "lockgate+https"], "lockgate"),
        ] {
            for scheme in schemes {
                assert_eq!(feature_of(scheme), Some(feature), "{scheme}");
            }
        }
        for unknown in ["memory", "memorys", "files", "k8", "redi", "httpss", "", "(s)"] {
            assert_eq!(feature_of(unknown), None, "{unknown}");
        }
    }
}
