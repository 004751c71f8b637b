//! What went wrong in a request to etcd: for the caller in its error, and for us in whether the request can have been
//! carried out all the same.

use std::error::Error as StdError;

use crate::error::{Error, ErrorKind};

/// Why a request has no answer that can be used.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// etcd knows no such lease, and did nothing.
    LeaseGone,
    /// It did nothing.
    Refused(Error),
    /// ... because it has too much to do, which is made worse by whoever asks another member at once.
    Busy(Error),
    /// Nobody knows what it did, or will still do.
    Unknown(Error),
}

impl Trouble {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::LeaseGone => Error::new(ErrorKind::NotHeld, "the session in etcd has ended"),
            Self::Refused(error) | Self::Busy(error) | Self::Unknown(error) => error,
        }
    }

    /// Whether it did nothing for a reason that lies with one of those who asked in one request, and not with all.
    pub(super) fn is_of_one(&self) -> bool {
        matches!(self, Self::LeaseGone)
            || matches!(self, Self::Refused(error) if error.kind() != ErrorKind::Unavailable)
    }

    /// Whether another member may do better.
    pub(super) fn is_of_the_member(&self) -> bool {
        matches!(self, Self::Refused(error) | Self::Unknown(error) if error.kind() == ErrorKind::Unavailable)
    }
}

pub(super) fn silent() -> Trouble {
    Trouble::Unknown(Error::new(ErrorKind::Unavailable, "etcd does not answer"))
}

/// What went wrong on our side of a request.
impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Unknown(error)
    }
}

impl From<etcd_client::Error> for Trouble {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => of_status(&status),
            etcd_client::Error::LeaseKeepAliveError(_) => Self::LeaseGone,
            other => of_transport(&other),
        }
    }
}

fn of_status(status: &tonic::Status) -> Trouble {
    use tonic::Code;
    let said = status.message().trim_start_matches("etcdserver: ");
    let refused = |kind, message: &str| Trouble::Refused(Error::new(kind, message));
    match status.code() {
        Code::NotFound if said.contains("lease not found") => Trouble::LeaseGone,
        Code::PermissionDenied => refused(
            ErrorKind::Denied,
            "etcd refuses it: the user has no right to read and write under the prefix; grant it to one of its roles",
        ),
        Code::InvalidArgument if said.contains("revision of auth store is old") => {
            refused(ErrorKind::Unavailable, "the rights in etcd are being changed")
        }
        Code::InvalidArgument if said.contains("user name is empty") => {
            refused(ErrorKind::Denied, "etcd asks who we are: give a user and password")
        }
        Code::InvalidArgument if said.contains("authentication failed") => {
            refused(ErrorKind::Denied, "etcd refuses the user or its password")
        }
        Code::FailedPrecondition if said.contains("authentication is not enabled") => refused(
            ErrorKind::Denied,
            "a user was given, but authentication is not enabled in this etcd: leave the user out of the URL, or enable it",
        ),
        Code::Unauthenticated => refused(ErrorKind::Unavailable, "etcd no longer knows our login"),
        Code::ResourceExhausted if said.contains("space exceeded") => refused(
            ErrorKind::Storage,
            "the database of etcd is full: compact and defragment it, then disarm its alarm",
        ),
        Code::ResourceExhausted if said.contains("too many requests") => {
            Trouble::Busy(Error::new(ErrorKind::Unavailable, "etcd has too much to do"))
        }
        // A web server's page, read as if it were a message.
        Code::Internal if said.contains("invalid compression flag") => {
            refused(ErrorKind::Storage, "what answers there is no etcd: look at the URL")
        }
        Code::Unavailable | Code::Unknown | Code::Cancelled if status.source().is_some() => {
            of_transport(status)
        }
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal => {
            Trouble::Unknown(Error::new(
                ErrorKind::Unavailable,
                format!("etcd cannot do it just now: {said}"),
            ))
        }
        Code::Unimplemented => {
            refused(ErrorKind::Storage, "what answers there is no etcd of version 3.4 or later")
        }
        _ => refused(ErrorKind::Storage, &format!("etcd refuses it: {said}")),
    }
}

fn of_transport(error: &(dyn StdError + 'static)) -> Trouble {
    let (mut cause, mut last) = (Some(error), String::new());
    let (mut refused, mut untrusted) = (false, false);
    while let Some(error) = cause {
        untrusted |= error.is::<rustls::Error>();
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            refused |= error.kind() == std::io::ErrorKind::ConnectionRefused;
            untrusted |= error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        }
        last = error.to_string();
        cause = error.source();
    }
    if untrusted {
        let message = format!("no TLS with etcd: {last}; look at etcds:, ca= and cert=");
        return Trouble::Refused(Error::new(ErrorKind::Denied, message));
    }
    if refused {
        // Nothing was sent.
        return Trouble::Refused(Error::new(
            ErrorKind::Unavailable,
            format!("cannot connect to etcd: {last}"),
        ));
    }
    Trouble::Unknown(Error::new(ErrorKind::Unavailable, format!("no connection to etcd: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_to_do_is_no_reason_to_do_more() {
        let status =
            |code, message| Trouble::from(etcd_client::Error::from(tonic::Status::new(code, message)));
        let busy = status(tonic::Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(!busy.is_of_the_member() && !busy.is_of_one());
        assert_eq!(busy.into_error().kind(), ErrorKind::Unavailable);
        let unknown = status(tonic::Code::Unavailable, "etcdserver: request timed out");
        assert!(unknown.is_of_the_member() && !unknown.is_of_one());
        let too_large = status(tonic::Code::InvalidArgument, "etcdserver: request is too large");
        assert!(!too_large.is_of_the_member() && too_large.is_of_one());
        assert!(status(tonic::Code::NotFound, "etcdserver: requested lease not found").is_of_one());
    }
}
