//! `//[USER[:PASSWORD]@]H1,H2,H3[/PATH]`, the part of a URL that says who goes where, taken apart; and the files of TLS.

use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};

/// Who, and where.
#[derive(Clone)]
pub(crate) struct Authority {
    /// A user and a password.
    pub(crate) user: Option<(String, String)>,
    /// Each with its port.
    pub(crate) hosts: Vec<String>,
    /// Without the slashes around it, decoded.
    pub(crate) path: String,
}

/// Whom to trust besides the system's authorities, and who we are.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    /// A file of certificates in PEM.
    pub(crate) ca: Option<PathBuf>,
    /// A file with our certificate in PEM, and its key where no other file has it.
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Authority {
    /// `rest` is what follows the scheme, still encoded; `decode` undoes that. A password that is not there is taken from
    /// `password`. `form` is how such a URL is written.
    pub(crate) fn parse(
        rest: &str,
        port: u16,
        decode: impl Fn(&str) -> Result<String>,
        password: Option<String>,
        form: &str,
    ) -> Result<Self> {
        let missing = || invalid(&format!("the hosts are missing: write {form}"));
        let rest = rest.strip_prefix("//").ok_or_else(missing)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let user = user.map(|user| credentials(user, &decode, password)).transpose()?;
        let hosts: Option<Vec<String>> = hosts.split(',').map(|host| with_port(host, port)).collect();
        let path = decode(path)?.trim_matches('/').to_owned();
        Ok(Self { user, hosts: hosts.ok_or_else(missing)?, path })
    }
}

/// `USER:PASSWORD`, or `USER` alone.
pub(crate) fn credentials(
    user: &str,
    decode: impl Fn(&str) -> Result<String>,
    password: Option<String>,
) -> Result<(String, String)> {
    let (name, written) = match user.split_once(':') {
        Some((name, password)) => (name, Some(decode(password)?)),
        None => (user, None),
    };
    let password = written.or(password).ok_or_else(|| {
        invalid(
            "the password is missing: set WINDLASS_PASSWORD, or write USER:PASSWORD@ before the first host",
        )
    })?;
    Ok((decode(name)?, password))
}

type Pem = Vec<u8>;
/// A certificate and its key.
type Certified = (Pem, Pem);

impl TlsFiles {
    /// What the files say: the authorities, and our certificate with its key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for one that cannot be read.
    pub(crate) fn read(&self) -> Result<(Option<Pem>, Option<Certified>)> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| {
                let message = format!("cannot use {}: {e}", path.display());
                Error::new(ErrorKind::InvalidInput, message).with_source(e)
            })
        };
        let ca = self.ca.as_ref().map(read).transpose()?;
        let ours = self.cert.as_ref().map(|cert| Ok((read(cert)?, read(self.key.as_ref().unwrap_or(cert))?)));
        Ok((ca, ours.transpose()?))
    }
}

fn with_port(host: &str, port: u16) -> Option<String> {
    let bare = host.strip_prefix('[').and_then(|v6| v6.split_once(']')).map_or(host, |(_, port)| port);
    match host {
        "" => None,
        _ if bare.contains(':') => Some(host.to_owned()),
        _ => Some(format!("{host}:{port}")),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Authority> {
        let decode = |text: &str| Ok(text.replace("%40", "@"));
        Authority::parse(rest, 2379, decode, Some("from outside".to_owned()), "etcd://H1,H2,H3/PREFIX")
    }

    #[test]
    fn hosts_have_ports_and_users_passwords() {
        let authority = parse("//ann:p%40ss@a,b:1,[::1],[::1]:5/app/locks/").unwrap();
        assert_eq!(authority.hosts, ["a:2379", "b:1", "[::1]:2379", "[::1]:5"]);
        assert_eq!(authority.user, Some(("ann".to_owned(), "p@ss".to_owned())));
        assert_eq!(authority.path, "app/locks");
        assert_eq!(parse("//ann@a").unwrap().user.unwrap().1, "from outside");
        assert_eq!(parse("//a").unwrap().path, "");
        let error = credentials("ann", |text| Ok(text.to_owned()), None).unwrap_err();
        assert!(error.message().contains("WINDLASS_PASSWORD"), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for wrong in ["", "a/b", "//", "///app", "//a,,b/app"] {
            let Err(error) = parse(wrong) else { panic!("{wrong} was taken") };
            assert!(error.message().contains("the hosts are missing: write etcd://H1"), "{wrong}: {error}");
        }
    }
}
