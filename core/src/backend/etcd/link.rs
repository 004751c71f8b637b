//! The way to etcd: one member at a time, and another when that one does not do. Requests run on the library's thread, each
//! with a deadline.
//!
//! One member and no balancing over all: a member that hangs or has lost its leader would be given its share of the
//! requests for as long as it lasts, and streams would stay with it. Here the first failure moves everything, streams
//! included, to the next member; `moved` tells those who have one open, and requests that wait for an answer there: whoever
//! was patient would wait for what others know will not come.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions, Txn, TxnResponse};
use event_listener::{Event, EventListener};
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};
use tokio::sync::Mutex;

use super::{
    address::Address,
    trouble::{Trouble, silent},
};
use crate::{
    authority::TlsFiles,
    awake::Awake,
    background,
    error::{ErrorKind, Result},
    rt::Runtime,
    within::within,
};

/// How long a connection may take: shorter than a try of a renewal with the default TTL.
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);
/// How long an answer may take.
pub(super) const AT_ONCE: Duration = Duration::from_secs(5);
/// ... to a write. One that etcd has lost with its leader is never answered, and the next ones wait for it.
pub(super) const WRITTEN_WITHIN: Duration = Duration::from_secs(3);
/// etcd takes offence at pings that come faster than every five seconds.
const PING_EVERY: Duration = Duration::from_secs(6);
const PONG_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Link {
    address: Address,
    options: ConnectOptions,
    pub(super) rt: Arc<dyn Runtime>,
    member: Mutex<Member>,
    moved: Event,
    pub(super) awake: Awake,
}

struct Member {
    /// How many came before it.
    turn: usize,
    client: Option<Client>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member({})", self.turn)
    }
}

impl Link {
    pub(super) fn new(address: Address, rt: Arc<dyn Runtime>) -> Result<Self> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_EVERY, PONG_WITHIN)
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(CONNECT_WITHIN)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &address.user {
            options = options.with_user(user, password);
        }
        if let Some(files) = &address.tls {
            options = options.with_tls(tls(files)?);
        }
        Ok(Self {
            address,
            options,
            awake: Awake::new(rt.clone()),
            rt,
            member: Mutex::new(Member { turn: 0, client: None }),
            moved: Event::new(),
        })
    }

    pub(super) fn url(&self) -> String {
        self.address.url()
    }

    /// Whether etcd may know who asks, and ask what they may do.
    pub(super) fn is_somebody(&self) -> bool {
        self.address.user.is_some() || self.address.tls.as_ref().is_some_and(|files| files.cert.is_some())
    }

    /// Asks in the background; whoever is no longer interested drops the answer, and the request goes on.
    pub(super) fn ask<T: Send + 'static, F>(
        self: &Arc<Self>,
        request: impl Fn(Client) -> F + Send + Sync + 'static,
    ) -> BoxFuture<'static, Result<T, Trouble>>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        self.ask_within(AT_ONCE, request)
    }

    /// ... what is of use only if it is answered sooner.
    pub(super) fn ask_within<T: Send + 'static, F>(
        self: &Arc<Self>,
        limit: Duration,
        request: impl Fn(Client) -> F + Send + Sync + 'static,
    ) -> BoxFuture<'static, Result<T, Trouble>>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let link = self.clone();
        self.awake.to_its_end(async move { link.ask_here(limit, &request).await })
    }

    /// ... on this thread, which must be the library's.
    pub(super) async fn ask_here<T, F>(
        &self,
        limit: Duration,
        request: &(impl Fn(Client) -> F + Sync),
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut left = self.address.hosts.len();
        loop {
            let (client, turn, moves) = self.member().await?;
            let request = pin!(self.awake.wait(request(client)));
            let trouble = match within(&self.rt, Some(limit), future::select(request, moves)).await {
                Some(Either::Left((Ok(answer), _))) => return Ok(answer),
                Some(Either::Left((Err(error), _))) => error.into(),
                Some(Either::Right(_)) | None => silent(),
            };
            if trouble.is_of_the_member() {
                self.leave(turn).await;
            }
            left -= 1;
            // What was certainly not done can be asked of the next one.
            match trouble {
                Trouble::Refused(error) if left > 0 && error.kind() == ErrorKind::Unavailable => {}
                trouble => return Err(trouble),
            }
        }
    }

    /// The member that is asked now, the number of its turn, and what rings when that is over.
    pub(super) async fn member(&self) -> Result<(Client, usize, EventListener), Trouble> {
        let mut left = self.address.hosts.len();
        loop {
            let mut member = self.member.lock().await;
            let turn = member.turn;
            if let Some(client) = &member.client {
                return Ok((client.clone(), turn, self.moved.listen()));
            }
            let scheme = if self.address.tls.is_some() { "https" } else { "http" };
            let host = &self.address.hosts[turn % self.address.hosts.len()];
            let endpoints = [format!("{scheme}://{host}")];
            let connect: BoxFuture<'_, _> = Client::connect(endpoints, Some(self.options.clone())).boxed();
            let trouble = match within(&self.rt, Some(AT_ONCE), connect).await {
                Some(Ok(client)) => {
                    member.client = Some(client.clone());
                    return Ok((client, turn, self.moved.listen()));
                }
                Some(Err(error)) => error.into(),
                None => silent(),
            };
            member.turn += 1;
            left -= 1;
            // A login does nothing that could be done too late.
            if left == 0 || !trouble.is_of_the_member() {
                return Err(Trouble::Refused(trouble.into_error()));
            }
        }
    }

    /// Goes to another member, unless that was done already.
    pub(super) async fn leave(&self, turn: usize) {
        let mut member = self.member.lock().await;
        if member.turn == turn {
            (member.turn, member.client) = (turn + 1, None);
            self.moved.notify(usize::MAX);
        }
    }
}

/// Reads and writes. Answers are as long as the line is; the most that is taken otherwise, 4 MiB, are some ten thousand claims.
pub(super) async fn transact(client: &Client, txn: Txn) -> Result<TxnResponse, etcd_client::Error> {
    client.kv_client().max_decoding_message_size(usize::MAX).txn(txn).await
}

pub(super) fn no_thread() -> Trouble {
    Trouble::Unknown(background::gone())
}

fn tls(files: &TlsFiles) -> Result<TlsOptions> {
    // One of a process; whoever was earlier has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (ca, ours) = files.read()?;
    let mut tls = TlsOptions::new().with_native_roots();
    if let Some(ca) = ca {
        tls = tls.ca_certificate(Certificate::from_pem(ca));
    }
    if let Some((cert, key)) = ours {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Ok(tls)
}
