//! The accept loop: how many connections there may be, TLS, and HTTP over them with deadlines.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    door::{Door, Visitor},
    limits::{Expired, Ledger, Place},
    pace::{Pace, Paced},
    spaces::Spaces,
    tls::{self, Certificates},
};

/// How long connections may take to end when the server does.
const END_WITHIN: Duration = Duration::from_millis(800);
/// How long to wait when the system has no descriptor left.
const BREATH: Duration = Duration::from_millis(50);
/// How often it is looked for claims that have run out and files that have changed.
const LOOK: Duration = Duration::from_secs(1);
/// To whom there is no room for, before a word is read.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

type Http = auto::Builder<TokioExecutor>;

pub(crate) async fn serve(
    listener: TcpListener,
    door: Arc<Door>,
    certificates: Option<Arc<Certificates>>,
    spaces: &Arc<Spaces>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let http = Arc::new(http(&door));
    let connections = GracefulShutdown::new();
    let looking = tokio::spawn(look(door.clone(), certificates.clone(), spaces.clone()));
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let limits = &door.limits;
        let Some(place) = door.connections.enter(address.ip(), limits.connections_each, limits.connections)
        else {
            // What does not fit into the socket's own room is not waited for.
            let _ = socket.try_write(FULL);
            continue;
        };
        // Answers are small and waited for.
        let _ = socket.set_nodelay(true);
        let connection = Connection { http: http.clone(), door: door.clone(), address, _place: place };
        let watcher = connections.watcher();
        match &certificates {
            None => drop(tokio::spawn(connection.speak(socket, None, watcher))),
            Some(certificates) => {
                let handshake = certificates.acceptor().accept(socket);
                tokio::spawn(connection.secure(handshake, watcher));
            }
        }
    }
    drop(listener);
    looking.abort();
    spaces.stop();
    if tokio::time::timeout(END_WITHIN, connections.shutdown()).await.is_err() {
        tracing::info!("some connections were still open");
    }
}

fn http(door: &Door) -> Http {
    let mut http = Http::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        // Its deadlines are in `pace`.
        .header_read_timeout(None)
        .max_headers(door.limits.head_fields)
        // hyper takes no less.
        .max_buf_size(door.limits.head_bytes.max(8 * 1024))
        .keep_alive(true);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(door.limits.streams)
        .max_header_list_size(u32::try_from(door.limits.head_bytes).unwrap_or(u32::MAX))
        // Streams that are opened and reset at once cost the server and not the client ("rapid reset").
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100);
    http
}

/// Now and then: what has run out, and which files have changed.
async fn look(door: Arc<Door>, certificates: Option<Arc<Certificates>>, spaces: Arc<Spaces>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let expired = door.ledger.sweep(std::time::Instant::now());
        if door.ledger.audit().is_some() && !expired.is_empty() {
            tokio::spawn(tell_expired(door.ledger.clone(), spaces.clone(), expired));
        }
        let tokens = door.access.tokens.as_ref().map_or(Ok(()), |tokens| tokens.look_again());
        let tls = certificates.as_ref().map_or(Ok(()), |certificates| certificates.look_again());
        for changed in [tokens, tls] {
            if let Err(error) = changed {
                tracing::error!(%error, "what was known before stays in use");
            }
        }
    }
}

/// Writes down who lost a lock because nothing was heard of them.
async fn tell_expired(ledger: Arc<Ledger>, spaces: Arc<Spaces>, expired: Vec<Expired>) {
    for claim in &expired {
        let Some((namespace, name, fencing_token)) = claim.grant() else { continue };
        // Where the store does not say whether it lives on, nobody knows.
        if let Ok(false) = spaces.lives_on(namespace, name, fencing_token).await {
            ledger.expired(claim);
        }
    }
}

struct Connection {
    http: Arc<Http>,
    door: Arc<Door>,
    address: SocketAddr,
    _place: Place,
}

impl Connection {
    async fn secure(self, handshake: tokio_rustls::Accept<TcpStream>, watcher: Watcher) {
        let stream = match tokio::time::timeout(self.door.deadlines.handshake, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "a handshake failed"),
            Err(_) => return tracing::debug!("a handshake took too long"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        // One without a name is nobody in particular, and must not be taken for none.
        let subject = certificate.map(|certificate| tls::subject(certificate).unwrap_or_default());
        self.speak(stream, subject, watcher).await;
    }

    async fn speak<S>(self, stream: S, subject: Option<String>, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pace = Pace::new(Instant::now());
        let stream = Paced::new(stream, pace.clone(), self.door.deadlines);
        let visitor = Arc::new(Visitor::new(self.door.clone(), pace, self.address.ip(), subject.as_deref()));
        let service = service_fn(move |request| visitor.clone().answer(request));
        let connection = self.http.serve_connection(TokioIo::new(stream), service).into_owned();
        // A client that goes away is no trouble.
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(error, "a connection broke");
        }
    }
}
