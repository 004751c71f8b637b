//! `redis://[USER:PASSWORD@]HOST:PORT/DB` and its kin, understood.

use std::{fmt, path::PathBuf};

use super::trouble::Trouble;
use crate::{
    authority::{Authority, TlsFiles, credentials},
    error::{Error, ErrorKind, Result},
};

const PORT: u16 = 6379;
pub(super) const SENTINEL_PORT: u16 = 26379;
/// What the keys of locks begin with if nobody says.
const PREFIX: &str = "windlass:";

/// Where Redis is, who we are there, and how our keys begin.
#[derive(Clone)]
pub(crate) struct Address {
    scheme: String,
    pub(super) place: Place,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) db: u32,
    pub(super) prefix: String,
    /// How many replicas must have a grant before it is one.
    pub(super) min_replicas: u32,
}

/// How servers make up the place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// One server.
    Server(String),
    /// One server, by a socket of this machine.
    Socket(PathBuf),
    /// The server that these sentinels call the master of this name.
    Sentinel(Vec<String>, String),
    /// A cluster that these are of.
    Cluster(Vec<String>),
    /// A majority of these, which know nothing of one another.
    Redlock(Vec<String>),
}

/// What the options of the URL say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) prefix: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) db: Option<u32>,
    pub(crate) min_replicas: Option<u32>,
}

pub(crate) fn is_scheme(scheme: &str) -> bool {
    form(scheme).is_some()
}

/// How a URL of this scheme is written.
fn form(scheme: &str) -> Option<(&'static str, u16)> {
    match scheme {
        "redis" | "rediss" => Some(("redis://HOST:6379/DB", PORT)),
        "redis+unix" => Some(("redis+unix:///PATH", 0)),
        "redis+sentinel" | "rediss+sentinel" => Some(("redis+sentinel://H1,H2,H3/NAME", SENTINEL_PORT)),
        "redis+cluster" | "rediss+cluster" => Some(("redis+cluster://H1,H2,H3", PORT)),
        "redis+redlock" | "rediss+redlock" => Some(("redis+redlock://H1,H2,H3", PORT)),
        _ => None,
    }
}

impl Address {
    /// `rest` is what follows the scheme, still encoded; `decode` undoes that. A password that is not there is taken from
    /// `password`.
    pub(crate) fn parse(
        scheme: &str,
        rest: &str,
        decode: impl Fn(&str) -> Result<String>,
        password: Option<String>,
        settings: Settings,
    ) -> Result<Self> {
        let (form, port) = form(scheme).unwrap_or_default();
        let Settings { tls, prefix, namespace, mut db, min_replicas } = settings;
        let (place, user) = if scheme == "redis+unix" {
            let rest = rest.strip_prefix("//").unwrap_or_default();
            let (user, path) = match rest.split_once('/') {
                Some((user, path)) if !path.is_empty() => (user, decode(&format!("/{path}"))?),
                _ => return Err(invalid(&format!("the path is missing: write {form}"))),
            };
            let user = match user.strip_suffix('@') {
                Some(user) => Some(credentials(user, &decode, password)?),
                None if user.is_empty() => None,
                None => {
                    // It may be the beginning of a password.
                    return Err(invalid(&format!(
                        "before the path is no user: write {form}, with three slashes, and / in a password as %2F"
                    )));
                }
            };
            (Place::Socket(path.into()), user)
        } else {
            let Authority { user, mut hosts, path } = Authority::parse(rest, port, decode, password, form)?;
            if path.contains('@') {
                // The rest of a password, with a slash before it.
                return Err(invalid(&format!(
                    "the @ stands behind the first slash: write {form}, and / in a password as %2F"
                )));
            }
            let mut path = Some(path).filter(|path| !path.is_empty());
            let place = match scheme.split_once('+').map(|(_, kind)| kind) {
                Some("sentinel") => {
                    let name = path.take();
                    let name = name.ok_or_else(|| {
                        invalid(&format!(
                            "the name that the sentinels know the master by is missing: write {form}"
                        ))
                    })?;
                    Place::Sentinel(hosts, name)
                }
                Some("cluster") => Place::Cluster(hosts),
                Some("redlock") => Place::Redlock(hosts),
                _ if hosts.len() > 1 => {
                    return Err(invalid(
                        "redis: is one server: for several write redis+sentinel:, redis+cluster: or redis+redlock:",
                    ));
                }
                _ => Place::Server(hosts.pop().unwrap_or_default()),
            };
            if let Some(path) = path {
                let number = path.parse().map_err(|_| {
                    invalid(&format!(
                        "\"{path}\" is no number of a database: write {form}; a prefix is ?prefix=TEXT"
                    ))
                })?;
                if db.replace(number).is_some_and(|other| other != number) {
                    return Err(invalid("two databases: leave db out, or the number behind the host"));
                }
            }
            (place, user)
        };
        let db = db.unwrap_or(0);
        if db > 0 && matches!(place, Place::Cluster(_)) {
            return Err(invalid("a cluster of Redis has one database, number 0"));
        }
        if min_replicas.is_some() && matches!(place, Place::Redlock(_)) {
            return Err(invalid(
                "the servers of redis+redlock: have no replicas that count: leave min_replicas out",
            ));
        }
        if tls.is_some() && matches!(place, Place::Socket(_)) {
            return Err(invalid(
                "there is no TLS over a socket of this machine: leave tls, ca, cert and key out",
            ));
        }
        // A user without a name is the one that every Redis has.
        let (user, password) = user.unzip();
        let mut prefix = prefix.unwrap_or_else(|| PREFIX.to_owned());
        if let Some(namespace) = namespace {
            prefix = prefix + &namespace + ":";
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            place,
            user: user.filter(|user| !user.is_empty()),
            password,
            tls,
            db,
            prefix,
            min_replicas: min_replicas.unwrap_or(0),
        })
    }

    /// Without credentials.
    pub(super) fn url(&self) -> String {
        let scheme = &self.scheme;
        let mut url = match &self.place {
            Place::Server(host) => format!("{scheme}://{host}/{}", self.db),
            Place::Socket(path) => format!("{scheme}://{}", path.display()),
            Place::Sentinel(hosts, name) => format!("{scheme}://{}/{name}", hosts.join(",")),
            Place::Cluster(hosts) | Place::Redlock(hosts) => format!("{scheme}://{}", hosts.join(",")),
        };
        if self.prefix != PREFIX {
            url += "?prefix=";
            url += &self.prefix;
        }
        url
    }

    /// The servers of a redlock, where it is one.
    pub(super) fn redlock(&self) -> Option<&[String]> {
        match &self.place {
            Place::Redlock(hosts) => Some(hosts),
            _ => None,
        }
    }

    /// One of them.
    pub(super) fn one_of(&self, host: &str) -> Self {
        Self { place: Place::Server(host.to_owned()), ..self.clone() }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// A host and its port; the address has seen to it that there is one.
pub(super) fn split(host: &str) -> Result<(String, u16), Trouble> {
    let wrong = || Trouble::new(ErrorKind::InvalidInput, format!("\"{host}\" has no port: write HOST:PORT"));
    let (name, port) = host.rsplit_once(':').ok_or_else(wrong)?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    Ok((name.to_owned(), port.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address> {
        let (scheme, rest) = url.split_once(':').unwrap();
        let password = Some("from outside".to_owned());
        Address::parse(scheme, rest, |text| Ok(text.to_owned()), password, Settings::default())
    }

    #[test]
    fn each_place_is_understood_and_shown_without_secrets() {
        for (url, shown, place) in [
            ("redis://a", "redis://a:6379/0", Place::Server("a:6379".into())),
            ("rediss://ann:secret@a:1/3", "rediss://a:1/3", Place::Server("a:1".into())),
            ("redis+unix:///run/r.sock", "redis+unix:///run/r.sock", Place::Socket("/run/r.sock".into())),
            ("redis+unix://:secret@/r", "redis+unix:///r", Place::Socket("/r".into())),
            (
                "redis+sentinel://a,b:1/main",
                "redis+sentinel://a:26379,b:1/main",
                Place::Sentinel(vec!["a:26379".into(), "b:1".into()], "main".into()),
            ),
            (
                "redis+cluster://x@a,b",
                "redis+cluster://a:6379,b:6379",
                Place::Cluster(vec!["a:6379".into(), "b:6379".into()]),
            ),
            ("redis+redlock://a", "redis+redlock://a:6379", Place::Redlock(vec!["a:6379".into()])),
        ] {
            let address = parse(url).unwrap();
            assert_eq!(format!("{address:?}"), shown);
            assert_eq!(address.place, place);
        }
        let address = parse("redis://:p@a").unwrap();
        assert_eq!((address.user, address.password), (None, Some("p".to_owned())));
    }

    #[test]
    fn a_namespace_goes_behind_the_prefix() {
        for (prefix, whole) in [(None, "windlass:team:"), (Some("x/"), "x/team:"), (Some(""), "team:")] {
            let prefix = prefix.map(str::to_owned);
            let settings = Settings { prefix, namespace: Some("team".to_owned()), ..Settings::default() };
            let address = Address::parse("redis", "//a", |text| Ok(text.to_owned()), None, settings).unwrap();
            assert_eq!(address.prefix, whole);
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (wrong, part) in [
            ("redis:", "the hosts are missing"),
            ("redis://a,b", "redis+cluster:"),
            ("redis://a/locks", "no number of a database"),
            ("redis+sentinel://a", "the name that the sentinels"),
            ("redis+cluster://a/1", "one database"),
            ("redis+unix://", "the path is missing"),
            ("redis+unix://run/r.sock", "three slashes"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.message().contains(part), "{wrong}: {error}");
        }
    }

    #[test]
    fn options_that_do_nothing_there_are_refused() {
        let tls = || Some(TlsFiles { ca: None, cert: None, key: None });
        for (url, settings, part) in [
            (
                "redis+redlock://a,b,c",
                Settings { min_replicas: Some(1), ..Settings::default() },
                "no replicas",
            ),
            ("redis+unix:///r", Settings { tls: tls(), ..Settings::default() }, "no TLS"),
            ("redis://a/1", Settings { db: Some(2), ..Settings::default() }, "two databases"),
        ] {
            let (scheme, rest) = url.split_once(':').unwrap();
            let parsed = Address::parse(scheme, rest, |text| Ok(text.to_owned()), None, settings);
            let error = parsed.unwrap_err();
            assert!(error.message().contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_with_a_slash_is_not_said() {
        for wrong in [
            "redis://:hunter2/word@a/1",
            "redis://:word/hunter2@a",
            "redis://ann:hunter2/hunter2@a,b",
            "redis+sentinel://:hunter2/hunter2@a/main",
            "redis+cluster://:hunter2/hunter2@a",
            "redis+redlock://:hunter2/hunter2@a,b,c",
            "redis+unix://:hunter2/hunter2@/run/r.sock",
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.message().contains("%2F"), "{wrong}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{wrong}: {error}");
        }
    }
}
