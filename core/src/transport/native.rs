//! Requests by reqwest, on the runtime's background thread: a renewal goes out also while the program is busy.

use std::{error::Error as StdError, path::PathBuf, pin::pin, sync::Arc};

use futures_channel::{mpsc, oneshot};
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
};
use reqwest::{Certificate, Client, header};

use super::{Duration, NotSent, Request, Response, Streamed, Transport};
use crate::{
    awake::Awake,
    background, client,
    error::{Error, ErrorKind, Result},
    protocol::MISSING,
    rt::Runtime,
    within::within,
};

/// How long a body that comes in pieces may be silent: a server says at least every quarter of a minute that it is there.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// The longest answer that is read.
const MOST: usize = 16 * 1024 * 1024;

/// Whom to trust besides the system's authorities, and who we are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    /// A file of certificates in PEM.
    pub(crate) ca: Option<PathBuf>,
    /// A file with our certificate and its key in PEM.
    pub(crate) identity: Option<PathBuf>,
}

/// With their connections, one or two clients: a connection of HTTP/2 has room for a number of requests, and those that are held
/// open take it.
#[derive(Debug)]
pub(crate) struct Native {
    at_once: Client,
    held_open: Client,
    rt: Arc<dyn Runtime>,
    awake: Awake,
}

impl Native {
    /// For requests to where this URL leads.
    pub(crate) fn new(url: &str, tls: &Tls, rt: Arc<dyn Runtime>) -> Result<Self> {
        let at_once = new_client(url, tls)?;
        // Without TLS it is HTTP/1.1, where each has a connection of its own; to make a client takes milliseconds.
        let held_open = if url.starts_with("https:") { new_client(url, tls)? } else { at_once.clone() };
        let awake = Awake::new(rt.clone());
        Ok(Self { at_once, held_open, rt, awake })
    }

    fn build(&self, request: Request) -> reqwest::RequestBuilder {
        let client = if request.held_open { &self.held_open } else { &self.at_once };
        let url = request.url;
        let mut built = match request.method {
            "GET" => client.get(url),
            _ => client.post(url).header(header::CONTENT_TYPE, "application/json").body(request.body),
        };
        if let Some(token) = request.token {
            built = built.bearer_auth(token);
        }
        built.header(header::ACCEPT, "application/json, text/event-stream")
    }

    /// Runs a piece of work on the background thread, and gives it up when nobody waits for it any more.
    fn there<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (tell, answer) = oneshot::channel();
        let (abort, registration) = AbortHandle::new_pair();
        let work = async move {
            // Whoever asked may be gone.
            let _ = tell.send(work.await);
        };
        self.rt.spawn(Abortable::new(work, registration).map(drop).boxed());
        let give_up = GiveUp(abort);
        async move {
            let answer = answer.await;
            drop(give_up);
            answer.unwrap_or_else(|_| Err(background::gone()))
        }
        .boxed()
    }
}

fn new_client(url: &str, tls: &Tls) -> Result<Client> {
    // Shorter than what servers and proxies keep idle connections for, ours among them.
    let mut builder = client::builder().pool_idle_timeout(Duration::from_secs(30));
    if is_loopback(url) {
        // No proxy knows it; it would be told the token.
        builder = builder.no_proxy();
    }
    if let Some(path) = &tls.ca {
        let pem = read(path)?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| unusable(path, e))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some(path) = &tls.identity {
        let identity = reqwest::Identity::from_pem(&read(path)?).map_err(|e| unusable(path, e))?;
        builder = builder.identity(identity);
    }
    builder
        .build()
        .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("cannot set up TLS: {e}")).with_source(e))
}

fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

struct GiveUp(AbortHandle);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Transport for Native {
    fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
        let (timeout, held_open) = (request.timeout, request.held_open);
        let request = self.build(request).timeout(timeout);
        let answer = async move { read_all(request.send().await.map_err(trouble)?).await };
        if held_open {
            return self.there(answer);
        }
        let awake = self.awake.clone();
        self.awake.meet(self.there(async move { awake.wait(answer).await }))
    }

    fn stream(&self, request: Request) -> BoxFuture<'static, Result<Streamed>> {
        let (timeout, rt) = (request.timeout, self.rt.clone());
        let request = self.build(request);
        self.there(async move {
            let response = within(&rt, Some(timeout), pin!(request.send())).await.ok_or_else(silent)?;
            let response = response.map_err(trouble)?;
            if response.status() != reqwest::StatusCode::OK {
                return read_all(response).await.map(Streamed::Refused);
            }
            // Read on the background thread, too; it ends when nobody listens any more.
            let (mut tell, body) = mpsc::channel(16);
            let timers = rt.clone();
            rt.spawn(
                async move {
                    let mut response = response;
                    loop {
                        let piece = match within(&timers, Some(LONGEST_SILENCE), pin!(response.chunk())).await
                        {
                            None => Err(silent()),
                            Some(Ok(None)) => return,
                            Some(Ok(Some(piece))) => Ok(piece.to_vec()),
                            Some(Err(error)) => Err(trouble(error)),
                        };
                        let over = piece.is_err();
                        if tell.send(piece).await.is_err() || over {
                            return;
                        }
                    }
                }
                .boxed(),
            );
            Ok(Streamed::Body(body.boxed()))
        })
    }
}

async fn read_all(mut response: reqwest::Response) -> Result<Response> {
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let retry_after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let missing = header(MISSING).map(str::to_owned);
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(trouble)? {
        if body.len() + piece.len() > MOST {
            return Err(Error::new(ErrorKind::Storage, "the server's answer is longer than 16 MiB"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Response { status, retry_after, missing, body })
}

/// What went wrong on the way, without the URL, which the caller knows.
fn trouble(error: reqwest::Error) -> Error {
    let error = error.without_url();
    if error.is_builder() {
        let error =
            Error::new(ErrorKind::InvalidInput, "the URL makes no sense to HTTP: look at its host and port");
        return error.with_source(NotSent);
    }
    let not_sent = error.is_connect();
    let mut message = if error.is_timeout() {
        "the server does not answer".to_owned()
    } else if not_sent {
        "cannot connect to the server".to_owned()
    } else {
        "the connection to the server broke".to_owned()
    };
    let mut cause: Option<&dyn StdError> = error.source();
    let mut untrusted = false;
    while let Some(error) = cause {
        untrusted |= client::of_tls(error).is_some_and(is_untrusted);
        if error.source().is_none() {
            message = format!("{message}: {error}");
        }
        cause = error.source();
    }
    let kind = if untrusted { ErrorKind::Denied } else { ErrorKind::Unavailable };
    // The steps between, such as "error sending request", tell nothing more.
    let error = Error::new(kind, message);
    if not_sent { error.with_source(NotSent) } else { error }
}

/// Whether a certificate, the server's or ours, is not to be trusted. What else goes wrong in TLS may be over soon: a server that is
/// full says so before it begins.
fn is_untrusted(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error as Tls};
    matches!(
        error,
        Tls::InvalidCertificate(_)
            | Tls::AlertReceived(
                Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateExpired
                    | Alert::CertificateUnknown
                    | Alert::CertificateRequired
                    | Alert::UnknownCA
                    | Alert::AccessDenied
            )
    )
}

fn silent() -> Error {
    Error::new(ErrorKind::Unavailable, "the server does not answer")
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| unusable(path, e))
}

fn unusable(path: &std::path::Path, error: impl StdError + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("cannot use {}: {error}", path.display())).with_source(error)
}
