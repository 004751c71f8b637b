#![doc = include_str!("../README.md")]

mod acquire;
pub mod ask;
#[cfg(all(any(feature = "etcd", feature = "redis"), not(target_family = "wasm")))]
mod authority;
#[cfg(all(any(feature = "etcd", feature = "http", feature = "redis"), not(target_family = "wasm")))]
mod awake;
pub mod backend;
#[cfg(any(
    all(
        any(feature = "etcd", feature = "http", feature = "kubernetes", feature = "redis"),
        not(target_family = "wasm")
    ),
    feature = "lockgate"
))]
mod background;
#[cfg(all(any(feature = "http", feature = "kubernetes"), not(target_family = "wasm")))]
mod client;
mod connect;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod held;
#[cfg(feature = "http")]
mod json;
mod keeper;
mod lease;
mod lock;
mod locker;
#[cfg(feature = "file")]
mod lockgate;
mod metrics;
mod name;
mod options;
mod owner;
#[cfg_attr(
    all(feature = "http", target_family = "wasm"),
    allow(dead_code, reason = "see `memory` in connect.rs")
)]
mod per_process;
pub mod protocol;
mod record;
pub mod rt;
#[cfg(feature = "schema")]
mod schema;
mod session;
pub mod table;
mod ticket;
pub mod time;
pub mod transport;
mod watch;
#[cfg(feature = "http")]
mod wire;
mod within;

pub use ask::{Holder, Mode, Owner, Status, Waiter, Waiting};
pub use backend::{Backend, Capabilities};
#[cfg(any(feature = "native", target_family = "wasm"))]
pub use connect::connect;
#[cfg(all(feature = "file", not(target_family = "wasm")))]
pub use connect::default_url;
pub use connect::{ConnectOptions, open_backend, parse_duration};
pub use error::{Error, ErrorKind, LostReason, Result};
pub use guard::Guard;
pub use lock::{Lock, LockAll, Ran};
pub use locker::Locker;
pub use metrics::Metrics;
pub use name::{ClaimId, Name};
pub use options::{DEFAULT_TTL, MAX_TTL, MIN_TTL, Notice};
pub use ticket::Ticket;
