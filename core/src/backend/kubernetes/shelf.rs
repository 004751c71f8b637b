//! Where the locks of a place stand: each in a Lease object of its own ([`lease`](super::lease)), or all in the annotations of one
//! object ([`annotation`](super::annotation)).

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{annotation, doc::Doc, lease, names};
use crate::{
    error::{Error, ErrorKind, Result},
    name::Name,
};

/// Which of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shelf {
    Leases,
    Annotations(Object),
}

/// An object that somebody has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// As in `configmaps`.
    pub(super) resource: String,
    /// Empty, and `v1`, for those of the core.
    pub(super) group: String,
    pub(super) version: String,
    pub(super) name: String,
    /// It is made where it is missing.
    pub(super) create: bool,
}

/// A lock as it was read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The resource version of its object.
    pub(super) version: u64,
    pub(super) prefix: String,
    /// `None`: nothing says it.
    pub(super) name: Option<Name>,
    pub(super) doc: Doc,
    pub(super) rest: Rest,
}

/// What it takes to write it anew.
#[derive(Clone, Debug)]
pub(super) enum Rest {
    Lease(lease::Rest),
    Annotation(Arc<annotation::Rest>),
}

/// What is to be written.
pub(super) struct Next<'a> {
    pub(super) key: &'a str,
    pub(super) prefix: &'a str,
    pub(super) name: &'a Name,
    pub(super) seen: Option<&'a Seen>,
    pub(super) doc: &'a Doc,
    /// By the wall clock.
    pub(super) now: Duration,
    pub(super) random: u128,
}

/// What is to be sent.
#[derive(Debug)]
pub(super) enum Write {
    Create(Value),
    Patch(Value),
    /// A list of operations, of which one may test.
    Operations(Value),
    Delete(Value),
}

impl Shelf {
    /// By what a lock is known here.
    pub(super) fn key(&self, prefix: &str, name: &Name) -> String {
        match self {
            Self::Leases => names::object(prefix, name),
            Self::Annotations(_) => annotation::key(prefix, name),
        }
    }

    /// The name of the object in which a lock stands.
    pub(super) fn object<'a>(&'a self, key: &'a str) -> &'a str {
        match self {
            Self::Leases => key,
            Self::Annotations(object) => &object.name,
        }
    }

    /// Whether its objects are looked for by a list, which has a version of its own.
    pub(super) fn is_listed(&self) -> bool {
        !matches!(self, Self::Annotations(Object { create: false, .. }))
    }

    /// The longest TTL of who comes as a reader.
    pub(super) fn longest_shared(&self) -> Duration {
        match self {
            Self::Leases => Duration::MAX,
            Self::Annotations(_) => annotation::LONGEST_SHARED,
        }
    }

    /// The path of the collection that the objects are in.
    pub(super) fn path(&self, namespace: &str) -> String {
        match self {
            Self::Leases => format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
            Self::Annotations(Object { resource, group, version, .. }) => {
                let api = if group.is_empty() {
                    format!("/api/{version}")
                } else {
                    format!("/apis/{group}/{version}")
                };
                match namespace {
                    "" => format!("{api}/{resource}"),
                    _ => format!("{api}/namespaces/{namespace}/{resource}"),
                }
            }
        }
    }

    /// The locks in an object, each by its key.
    pub(super) fn read(&self, object: &Value) -> Vec<(String, Result<Seen>)> {
        match self {
            Self::Leases => {
                let key = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                lease::read(object).transpose().map(|seen| (key, seen)).into_iter().collect()
            }
            Self::Annotations(_) => annotation::read(object),
        }
    }

    /// One of them; `None`: it is not there, and its object need not be.
    pub(super) fn read_one(&self, key: &str, object: Option<&Value>) -> Result<Option<Seen>> {
        match (self, object) {
            (Self::Leases, None) => Ok(None),
            (Self::Leases, Some(object)) => lease::read_one(object).map(Some),
            (Self::Annotations(of), None) if of.create => Ok(None),
            (Self::Annotations(of), None) => Err(of.missing()),
            (Self::Annotations(_), Some(object)) => annotation::read_one(key, object).map(Some),
        }
    }

    /// Writes these locks of one object.
    pub(super) fn write(&self, next: &[Next<'_>]) -> Result<Write> {
        match (self, next) {
            (Self::Leases, [next]) => lease::write(next),
            (Self::Leases, _) => Err(Error::new(ErrorKind::Internal, "a Lease is one lock")),
            (Self::Annotations(of), all) => annotation::write(&of.name, all),
        }
    }

    /// What whoever uses it has to be allowed.
    pub(super) fn rights(&self) -> String {
        match self {
            Self::Leases => {
                "give this user a Role with get, list, watch, create, patch and delete on leases \
                             (coordination.k8s.io) in this namespace"
                    .to_owned()
            }
            Self::Annotations(Object { create: true, .. }) => {
                "give this user a Role with get, list, watch, create and patch on configmaps in this namespace"
                    .to_owned()
            }
            Self::Annotations(Object { resource, group, name, .. }) => format!(
                "give this user a Role with get, watch and patch on {resource}{}{group}, resourceNames: [{name}]",
                if group.is_empty() { "" } else { "." }
            ),
        }
    }
}

impl Object {
    pub(super) fn missing(&self) -> Error {
        let Self { resource, name, .. } = self;
        let message =
            format!("there is no {name} among the {resource}: make it first; locks live in its annotations");
        Error::new(ErrorKind::Storage, message)
    }
}

impl Seen {
    /// There is no trace of the lock in its object.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(&self.rest, Rest::Annotation(rest) if rest.is_nothing())
    }

    /// The token of what is granted by a write for this version.
    pub(super) fn next_token(&self) -> u64 {
        match &self.rest {
            Rest::Lease(_) => self.version + 1,
            Rest::Annotation(rest) => rest.next_token(self.version),
        }
    }

    /// Whether those who hold it would be dead if all wall clocks were right: then it is worth to look whether they are. Of
    /// nothing else is this a sign.
    pub(super) fn looks_dead(&self, wall: Duration) -> bool {
        let longest = self.doc.holders.iter().map(|entry| entry.ttl).max().unwrap_or_default();
        let expires = match &self.rest {
            Rest::Lease(rest) => rest.renewed_ms.map(|renewed| Duration::from_millis(renewed) + longest),
            Rest::Annotation(rest) => rest.expires(),
        };
        expires.is_none_or(|expires| expires + longest < wall)
    }

    /// Whether a grant in it has the version for a token, and the object has others' versions as well: then it has to be written
    /// down at once.
    pub(super) fn is_unsettled(&self) -> bool {
        match &self.rest {
            Rest::Lease(_) => false,
            Rest::Annotation(rest) => rest.is_unsettled(),
        }
    }
}
