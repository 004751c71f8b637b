//! `etcd://[USER:PASSWORD@]H1,H2,H3/PREFIX`, understood.

use std::fmt;

use crate::authority::{Authority, TlsFiles};

pub(crate) const PORT: u16 = 2379;
pub(crate) const FORM: &str = "etcd://H1:2379,H2:2379,H3:2379/PREFIX";
/// Where locks live if nobody says: the root of etcd belongs to everybody.
const PREFIX: &str = "windlass";

/// Where etcd is, who we are there, and where in it the locks live.
#[derive(Clone)]
pub(crate) struct Address {
    pub(super) hosts: Vec<String>,
    pub(super) prefix: String,
    pub(super) user: Option<(String, String)>,
    pub(super) tls: Option<TlsFiles>,
}

impl Address {
    pub(crate) fn new(authority: Authority, tls: Option<TlsFiles>) -> Self {
        let Authority { user, hosts, path } = authority;
        Self { hosts, prefix: if path.is_empty() { PREFIX.to_owned() } else { path }, user, tls }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_has_no_secret_and_a_prefix() {
        let user = Some(("ann".to_owned(), "secret".to_owned()));
        let mut authority = Authority { user, hosts: vec!["a:1".to_owned()], path: "app/locks".to_owned() };
        assert_eq!(format!("{:?}", Address::new(authority.clone(), None)), "etcd://a:1/app/locks");
        authority.path.clear();
        let tls = Some(TlsFiles::default());
        assert_eq!(format!("{:?}", Address::new(authority, tls)), "etcds://a:1/windlass");
    }
}
