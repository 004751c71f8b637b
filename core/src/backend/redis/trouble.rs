//! What went wrong in a request to Redis, in words for whoever has to mend it.

use redis::{ErrorKind as Kind, RedisError, ServerErrorKind as Server};

use crate::error::{Error, ErrorKind};

/// A request without an answer that can be used.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) error: Error,
    /// The connection is of no use any more, or leads to the wrong server.
    pub(super) leave: bool,
    /// Asking once more on another connection may do.
    pub(super) again: bool,
}

impl Trouble {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { error: Error::new(kind, message), leave: false, again: false }
    }

    pub(super) fn silent() -> Self {
        Self { leave: true, ..Self::new(ErrorKind::Unavailable, "Redis does not answer") }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { leave: true, ..Self::new(ErrorKind::Unavailable, message) }
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        let said = without_args(error.detail().unwrap_or_default());
        let unavailable = |message: &str| Self::new(ErrorKind::Unavailable, message);
        match (error.kind(), error.code().unwrap_or_default()) {
            (Kind::Server(Server::NoPerm), _) => Self::new(
                ErrorKind::Denied,
                format!(
                    "Redis refuses it: the user has no right: {said}; grant the rights that the docs name"
                ),
            ),
            (Kind::AuthenticationFailed, _) | (_, "WRONGPASS") => {
                Self::new(ErrorKind::Denied, "Redis refuses the user or its password")
            }
            (_, "NOAUTH") => Self::new(ErrorKind::Denied, "Redis asks who we are: give a user and password"),
            (_, "WRONGTYPE") => Self::new(
                ErrorKind::Storage,
                "the key holds something else than a lock: choose another name or another prefix",
            ),
            (_, "OOM") => Self::new(ErrorKind::Storage, "Redis has no memory left: raise its maxmemory"),
            (_, "MISCONF") => Self::new(
                ErrorKind::Storage,
                "Redis refuses to write because it cannot save to its disk: look at its log",
            ),
            (_, "NOREPLICAS") => unavailable("Redis has too few replicas to write"),
            (Kind::Server(Server::ReadOnly), _) => Self {
                leave: true,
                again: true,
                ..unavailable("this Redis is a replica, or has become one: go to its master")
            },
            (Kind::Server(Server::BusyLoading), _) => unavailable("Redis is starting"),
            (Kind::Server(Server::TryAgain | Server::Moved | Server::Ask), _) => {
                unavailable("the lock is just being moved to another server of the cluster")
            }
            (Kind::Server(Server::ClusterDown | Server::MasterDown) | Kind::ClusterConnectionNotFound, _) => {
                unavailable("a part of the cluster has no master just now")
            }
            (Kind::RESP3NotSupported, _) => {
                Self::new(ErrorKind::Unsupported, "this Redis is too old: take 7.0 or later")
            }
            (Kind::Server(_) | Kind::Extension, _) if said.contains("unknown command") => {
                Self::new(ErrorKind::Unsupported, format!("this is no Redis of 7.0 or later: {said}"))
            }
            (Kind::Parse, _) => Self {
                leave: true,
                ..Self::new(ErrorKind::Storage, "what answers there is no Redis: look at the host and port")
            },
            _ if is_of_tls(&error) => Self::new(
                ErrorKind::Denied,
                format!("TLS fails: {error}; ca=FILE says whom to trust, cert=FILE&key=FILE who we are"),
            ),
            _ if error.to_string().contains("DB index is out of range") => Self::new(
                ErrorKind::InvalidInput,
                "this Redis has no database of that number: take another, or raise its `databases`",
            ),
            _ if error.is_timeout() => Self::silent(),
            _ if error.is_connection_refusal() || error.is_io_error() || error.is_unrecoverable_error() => {
                Self { leave: true, again: true, ..unavailable(&format!("cannot reach Redis: {error}")) }
            }
            _ => unavailable(&format!("Redis answers: {}", without_args(&error.to_string()))),
        }
    }
}

/// Redis repeats what it does not understand: of a `HELLO` also the password.
fn without_args(said: &str) -> String {
    said.split(", with args").next().unwrap_or_default().to_owned()
}

/// Whether one of the two does not trust the other: that does not mend itself.
fn is_of_tls(error: &RedisError) -> bool {
    let said = error.to_string();
    ["peer certificate", "certificate required", "CertificateRequired", "UnknownCA"]
        .iter()
        .any(|words| said.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_repeats_of_a_request_is_not_said() {
        for said in [
            "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'app' 'hunter2' ",
            "ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `app`, `hunter2`, ",
            "ERR of another kind, with args beginning with: 'hunter2'",
        ] {
            let answer = redis::parse_redis_value(format!("-{said}\r\n").as_bytes()).unwrap();
            let message = Trouble::from(answer.extract_error().unwrap_err()).error.to_string();
            let (kept, _) = said.strip_prefix("ERR ").unwrap().split_once(',').unwrap();
            assert!(message.contains(kept) && !message.contains("hunter2"), "{message}");
        }
    }
}
