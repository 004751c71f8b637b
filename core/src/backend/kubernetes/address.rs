//! `k8s://NAMESPACE/leases[/PREFIX]` and `k8s://NAMESPACE/RESOURCE[.VERSION.GROUP]/NAME[/PREFIX]`, taken apart.

use std::fmt;

pub(crate) use super::login::Cluster;
use super::{
    login::Login,
    shelf::{Object, Shelf},
};
use crate::error::{Error, ErrorKind, Result};

/// As many as a busy program needs, and as no API server minds.
const QPS: u32 = 50;

/// Where in which cluster the locks live.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// `None`: that of the context, or of the pod; of an object, that it has none.
    pub(super) namespace: Option<String>,
    pub(super) shelf: Shelf,
    /// Keeps the locks of several users of a namespace apart; empty for those whose objects have plain names.
    pub(super) prefix: String,
    pub(super) cluster: Cluster,
    /// How many acquires are begun in a second.
    pub(super) qps: u32,
}

/// Where that is, once the kubeconfig was read.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The URL of the API server.
    pub(super) server: String,
    /// Empty: it has none.
    pub(super) namespace: String,
}

/// What the options say.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) cluster: Cluster,
    /// The object for annotations is made where it is missing.
    pub(crate) create: bool,
    pub(crate) qps: Option<u32>,
}

impl Address {
    /// `rest` is what follows the scheme, still encoded; `decode` undoes that.
    pub(crate) fn parse(
        rest: &str,
        decode: impl Fn(&str) -> Result<String>,
        settings: Settings,
    ) -> Result<Self> {
        let Settings { cluster, create, qps } = settings;
        let wrong = || {
            invalid(
                "that is no place in a cluster: write k8s://NAMESPACE/leases or k8s://NAMESPACE/configmaps/NAME",
            )
        };
        let (namespace, rest) =
            rest.strip_prefix("//").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let (resource, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (shelf, prefix) = if resource == "leases" {
            (Shelf::Leases, rest)
        } else {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let mut kind = resource.splitn(3, '.');
            let (resource, version) = (kind.next().unwrap_or_default(), kind.next().unwrap_or("v1"));
            let group = kind.next();
            let parts = [resource, version, name];
            if !parts.iter().copied().chain(group).all(is_path) {
                return Err(wrong());
            }
            if create && (resource, version, group) != ("configmaps", "v1", None) {
                return Err(invalid("create=true is for configmaps: make the object of the locks yourself"));
            }
            let [resource, version, name] = parts.map(str::to_owned);
            let group = group.unwrap_or_default().to_owned();
            (Shelf::Annotations(Object { resource, group, version, name, create }), prefix)
        };
        let namespace = decode(namespace)?;
        if !namespace.is_empty() && !is_label(&namespace) {
            return Err(invalid(&format!(
                "\"{}\" is no namespace: it has letters a to z, digits and -",
                namespace.escape_debug()
            )));
        }
        let prefix = decode(prefix)?.trim_matches('/').to_owned();
        let namespace = Some(namespace).filter(|text| !text.is_empty());
        let qps = match qps {
            Some(0) => return Err(invalid("with qps=0 no acquire would ever be begun")),
            told => told.unwrap_or(QPS),
        };
        Ok(Self { namespace, shelf, prefix, cluster, qps })
    }

    pub(super) fn place(&self, login: &Login) -> Place {
        let namespace = match (&self.namespace, &self.shelf) {
            (Some(namespace), _) => namespace.clone(),
            (None, Shelf::Leases) => login.namespace.clone(),
            (None, Shelf::Annotations(_)) => String::new(),
        };
        Place { server: login.server.clone(), namespace }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k8s://{}/", self.namespace.as_deref().unwrap_or_default())?;
        match &self.shelf {
            Shelf::Leases => f.write_str("leases")?,
            Shelf::Annotations(Object { resource, group, version, name, .. }) => match group.is_empty() {
                true => write!(f, "{resource}/{name}")?,
                false => write!(f, "{resource}.{version}.{group}/{name}")?,
            },
        }
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        match &self.cluster.context {
            Some(context) => write!(f, "?context={context}"),
            None => Ok(()),
        }
    }
}

/// What resources, versions, groups and objects may be called.
fn is_path(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !text.is_empty() && text.bytes().all(letter) && text.bytes().any(|byte| byte != b'.')
}

/// What a namespace may be called.
fn is_label(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(letter) && text.bytes().last().is_some_and(letter);
    ends && text.len() <= 63 && text.bytes().all(|byte| letter(byte) || byte == b'-')
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Address> {
        Address::parse(rest, |text| Ok(text.replace("%20", " ")), Settings::default())
    }

    #[test]
    fn places() {
        let shown = |rest: &str| parse(rest).unwrap().to_string();
        assert_eq!(shown("//team-a/leases"), "k8s://team-a/leases");
        assert_eq!(shown("///leases/"), "k8s:///leases");
        assert_eq!(shown("//team-a/leases/app/x/"), "k8s://team-a/leases/app/x");
        assert_eq!(parse("//team-a/leases/a%20b").unwrap().prefix, "a b");
        assert_eq!(parse("///leases").unwrap().namespace, None);
        for object in ["//team-a/configmaps/locks", "///nodes/n-1", "//a/deployments.v1.apps/web/app/x"] {
            assert_eq!(shown(object), format!("k8s:{object}"));
        }
        let path = |rest: &str| parse(rest).unwrap().shelf.path(rest.split('/').nth(2).unwrap());
        assert_eq!(path("//a/configmaps/b"), "/api/v1/namespaces/a/configmaps");
        assert_eq!(path("///nodes/n"), "/api/v1/nodes");
        assert_eq!(path("//a/deployments.v1.apps/b"), "/apis/apps/v1/namespaces/a/deployments");
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for wrong in [
            "",
            "team-a/leases",
            "//team-a",
            "//team-a/secrets",
            "//leases",
            "//",
            "//a/secrets/..",
            "//a/b.v1./c",
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.message().contains("k8s://NAMESPACE/leases"), "{wrong}: {error}");
        }
        let create = |rest: &str| {
            Address::parse(rest, |text| Ok(text.to_owned()), Settings { create: true, ..Settings::default() })
        };
        assert!(create("//a/configmaps/b").is_ok() && create("//a/leases").is_ok());
        for wrong in ["//a/secrets/b", "//a/configmaps.v1.example.com/b"] {
            assert!(create(wrong).unwrap_err().message().contains("is for configmaps"), "{wrong}");
        }
        for wrong in ["//Team/leases", "//-a/leases", "//a%20b/leases", "//a.b/leases"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.message().contains("is no namespace"), "{wrong}: {error}");
        }
    }
}
