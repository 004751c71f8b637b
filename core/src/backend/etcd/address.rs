//! `etcd://[USER:PASSWORD@]H1,H2,H3/PREFIX`, taken apart.

use std::{fmt, path::PathBuf};

use crate::error::{Error, ErrorKind, Result};

const PORT: u16 = 2379;
/// Where locks live if nobody says: the root of etcd belongs to everybody.
const PREFIX: &str = "windlass";

/// Where etcd is, who we are there, and where in it the locks live.
#[derive(Clone)]
pub(crate) struct Address {
    pub(super) hosts: Vec<String>,
    pub(super) prefix: String,
    pub(super) user: Option<(String, String)>,
    pub(super) tls: Option<Files>,
}

/// Whom to trust besides the system's authorities, and who we are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    /// A file of certificates in PEM.
    pub(crate) ca: Option<PathBuf>,
    /// A file with our certificate in PEM, and its key where no other file has it.
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Address {
    /// `rest` is what follows the scheme, still encoded; `decode` undoes that. A password that is not there is taken from
    /// `password`.
    pub(crate) fn parse(
        rest: &str,
        decode: impl Fn(&str) -> Result<String>,
        password: Option<String>,
        tls: Option<Files>,
    ) -> Result<Self> {
        let invalid = |message: &str| Error::new(ErrorKind::InvalidInput, message);
        let missing = || invalid("the hosts are missing: write etcd://H1:2379,H2:2379,H3:2379/PREFIX");
        let rest = rest.strip_prefix("//").ok_or_else(missing)?;
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let user = match user {
            None => None,
            Some(user) => {
                let (name, written) = match user.split_once(':') {
                    Some((name, password)) => (name, Some(decode(password)?)),
                    None => (user, None),
                };
                let password = written.or(password).ok_or_else(|| {
                    invalid("the password is missing: set WINDLASS_PASSWORD, or write etcd://USER:PASSWORD@HOST/PREFIX")
                })?;
                Some((decode(name)?, password))
            }
        };
        let hosts: Vec<String> =
            hosts.split(',').map(with_port).collect::<Option<_>>().ok_or_else(missing)?;
        let prefix = decode(prefix)?;
        let prefix = Some(prefix.trim_matches('/')).filter(|prefix| !prefix.is_empty()).unwrap_or(PREFIX);
        Ok(Self { hosts, prefix: prefix.to_owned(), user, tls })
    }

    /// Without credentials.
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://{}/{}", self.hosts.join(","), self.prefix)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

fn with_port(host: &str) -> Option<String> {
    let bare = host.strip_prefix('[').and_then(|v6| v6.split_once(']')).map_or(host, |(_, port)| port);
    match host {
        "" => None,
        _ if bare.contains(':') => Some(host.to_owned()),
        _ => Some(format!("{host}:{PORT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Address> {
        Address::parse(rest, |text| Ok(text.replace("%40", "@")), Some("from outside".to_owned()), None)
    }

    #[test]
    fn hosts_have_ports_and_the_url_no_secret() {
        let address = parse("//ann:p%40ss@a,b:1,[::1],[::1]:5/app/locks/").unwrap();
        assert_eq!(address.hosts, ["a:2379", "b:1", "[::1]:2379", "[::1]:5"]);
        assert_eq!(address.user, Some(("ann".to_owned(), "p@ss".to_owned())));
        assert_eq!(format!("{address:?}"), "etcd://a:2379,b:1,[::1]:2379,[::1]:5/app/locks");
        assert_eq!(parse("//ann@a").unwrap().user.unwrap().1, "from outside");
        assert_eq!(parse("//a").unwrap().prefix, "windlass");
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for wrong in ["", "a/b", "//", "///app", "//a,,b/app"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.message().contains("the hosts are missing"), "{wrong}: {error}");
        }
    }
}
