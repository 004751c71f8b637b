//! The Windlass lock server: one machine's locks for many machines.
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use windlass_server::{Server, Store};
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:7420").await?;
//! let server = Server::new(Store::in_memory());
//! server.serve(listener, std::future::pending()).await?;
//! # Ok(()) }
//! ```

#![allow(
    clippy::disallowed_methods,
    reason = "a program's timers and tasks are its own; its locks are the core's"
)]

mod access;
mod answer;
mod audit;
mod bounds;
mod door;
mod durable;
mod elsewhere;
mod events;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod limits;
mod listen;
mod lockgate;
mod metrics;
mod options;
mod overview;
mod pace;
mod page;
mod parked;
mod routes;
mod space;
mod spaces;
mod store;
mod terms;
mod tls;
mod together;
mod who;

use std::{future::Future, net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;
use windlass::{Error, ErrorKind, Result};

pub use access::Access;
pub use audit::Audit;
pub use options::{Deadlines, Limits, ServerOptions, Tls};
pub use store::Store;

/// Tokens: what they say, and how to make them.
pub mod token {
    pub use crate::access::{
        Claims, Identity, JwtKey, JwtKeys, Pattern, Permission, Right, Rights, Scope, Tokens, hashed, mint,
        secret,
    };
}

use door::{Door, Sites};
use limits::{Accounts, Connections, Ledger};
use metrics::{Meter, Refusals};
use spaces::Spaces;
use tls::Certificates;

/// A lock server, before it listens.
#[derive(Clone, Debug)]
pub struct Server {
    spaces: Arc<Spaces>,
    options: ServerOptions,
    certificates: Option<Arc<Certificates>>,
}

impl Server {
    /// A server of the locks of `store`, for this machine alone: it asks nobody who they are.
    pub fn new(store: Store) -> Self {
        let options = ServerOptions::default();
        let spaces = Spaces::new(store);
        Self { spaces, options, certificates: None }
    }

    /// A server of the locks of `store`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when a file that the options name cannot be used.
    pub fn with_options(store: Store, options: ServerOptions) -> Result<Self> {
        let required = options.access.is_anonymous();
        let certificates = options.tls.clone().map(|files| Certificates::new(files, required)).transpose()?;
        Ok(Self { options, certificates: certificates.map(Arc::new), ..Self::new(store) })
    }

    /// Whether everybody has to show who they are.
    fn asks_who(&self) -> bool {
        let has_authority = self.options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        has_authority || !self.options.access.is_anonymous()
    }

    /// Whether it may serve those who can reach this address.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when others than this machine could reach it and it would ask nobody who they are.
    pub fn may_listen_at(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_loopback() || self.asks_who() || self.options.allow_anonymous {
            return Ok(());
        }
        let message = format!(
            "anybody who can reach {address} could take and free every lock: give the server tokens (a file of tokens, \
             a JWT key, or an authority for clients' certificates), listen at 127.0.0.1, or let anybody in \
             (--allow-anonymous)"
        );
        Err(Error::new(ErrorKind::Denied, message))
    }

    /// Answers until `shutdown` completes. Then it takes no new connection, sends those who wait on (they ask again
    /// elsewhere, by the same ids), and returns when all have been told, within a second.
    ///
    /// # Errors
    /// As for [`may_listen_at`](Self::may_listen_at); [`ErrorKind::InvalidInput`] when the listener has no address;
    /// [`ErrorKind::Storage`] when the store's directory cannot be written to.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let address = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("the listener has no address: {error}"))
                .with_source(error)
        })?;
        self.may_listen_at(address)?;
        self.spaces.begin()?;
        let asks_who = self.asks_who();
        let watched = tokio::spawn(spaces::watch_durable(self.spaces.clone()));
        let looking = tokio::spawn(elsewhere::look(self.spaces.clone()));
        let ServerOptions { access, hosts, origins, limits, deadlines, audit, .. } = self.options;
        self.spaces.limit(limits.namespaces);
        let meter = Meter {
            spaces: self.spaces.clone(),
            connections: Arc::<Connections>::default(),
            refusals: Arc::<Refusals>::default(),
        };
        let door = Door {
            connections: meter.connections.clone(),
            refusals: meter.refusals.clone(),
            router: routes::router(self.spaces.clone(), meter),
            access: Arc::new(access),
            sites: Sites::new(&hosts, &origins, address, asks_who),
            ledger: Arc::new(Ledger::new(limits.clone(), audit)),
            limits: Arc::new(limits),
            deadlines,
            accounts: Accounts::default(),
        };
        listen::serve(listener, Arc::new(door), self.certificates, &self.spaces, shutdown).await;
        watched.abort();
        looking.abort();
        self.spaces.write_down();
        Ok(())
    }
}
