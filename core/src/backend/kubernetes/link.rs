//! The way to the API server: requests with deadlines, over one connection of HTTP/2, whose pings find out when the other side is
//! gone. All of it runs on the library's thread.

use std::{future::Future, net::ToSocketAddrs, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use futures_channel::oneshot;
use futures_util::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, Url, header};
use serde_json::Value;
use tokio::sync::Mutex;

use super::{
    address::{Address, Place},
    lease,
    login::{Login, Proof},
    pace::Pace,
    plugin::Credential,
    shelf::{Shelf, Write},
    trouble::{Reply, of_transport, refused, silent},
};
use crate::{
    background, client,
    error::{Error, ErrorKind, Result},
    rt::{Runtime, thread},
    time::Moment,
    within::within,
};

/// How long an answer may take: so that two tries of a renewal fit into a lease of the default TTL.
const AT_ONCE: Duration = Duration::from_secs(3);
/// ... of a list, which may be long.
const LISTED_WITHIN: Duration = Duration::from_secs(10);
/// How long a program may take that the kubeconfig names for logging in.
const LOGGED_IN_WITHIN: Duration = Duration::from_secs(30);
/// A watch ends by itself after this time, and is taken up again.
const WATCHED_FOR: Duration = Duration::from_secs(290);
/// The API server marks its place in a watch about every minute.
const LONGEST_SILENCE: Duration = Duration::from_secs(150);
/// A token in a file is read again after this time.
const TOKEN_LASTS: Duration = Duration::from_secs(60);
/// So long before its end what a plugin gave is asked for anew, and used until that is there.
const BEFORE_ITS_END: Duration = Duration::from_secs(10);
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const OPERATIONS: &str = "application/json-patch+json";

#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: Address,
    pub(super) rt: Arc<dyn Runtime>,
    /// Where it led at first.
    place: Place,
    ways: Mutex<Ways>,
    /// Where the API server is, for people to see.
    at: String,
    pace: Mutex<Pace>,
}

#[derive(Debug, Default)]
struct Ways {
    kept: Option<Way>,
    /// The next one, while it is being found.
    next: Option<oneshot::Receiver<Result<Way>>>,
}

/// A way that was found.
#[derive(Clone)]
struct Way {
    client: Client,
    /// The URL of the collection. Each way has its own.
    objects: Arc<str>,
    shows: Shows,
    until_ms: Option<u64>,
    /// It was not found just now.
    is_known: bool,
}

/// What is shown with each request.
#[derive(Clone)]
enum Shows {
    Nothing,
    Token(String),
    TokenFile { path: PathBuf, token: String, read: Moment },
    Password(String, String),
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.objects)
    }
}

/// What became of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// The object as it is now.
    Done(Value),
    /// It was not as expected.
    Conflict,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event {
    /// An object as it is now.
    Is(Value),
    /// An object as it was last.
    Gone(Value),
    /// All up to this version was told.
    UpTo(u64),
    /// What happened after the version that was asked for is not known any more.
    TooOld,
}

impl Link {
    pub(super) fn new(address: Address, place: Place, rt: Arc<dyn Runtime>) -> Self {
        let pace = Mutex::new(Pace::new(address.qps));
        let at = format!(" {}", place.server);
        Self { address, rt, place, ways: Mutex::default(), at, pace }
    }

    pub(super) fn at(&self) -> &str {
        &self.at
    }

    pub(super) fn silent(&self) -> Error {
        silent(self.at())
    }

    /// Until an acquire may be begun. They stand in line for it, and who gives up has used nothing.
    pub(super) async fn turn(&self) {
        let mut pace = self.pace.lock().await;
        let wait = pace.wait(self.rt.monotonic());
        if !wait.is_zero() {
            self.rt.sleep(wait).await;
        }
        pace.begin(self.rt.monotonic());
    }

    /// An object; `None`: there is none.
    pub(super) async fn get(&self, object: &str) -> Result<Option<Value>> {
        let reply = self.ask(AT_ONCE, Method::GET, &format!("/{object}"), JSON, None).await?;
        match reply.status {
            200 => Ok(Some(reply.said)),
            // Also of a namespace that is not there, which is said to whoever writes.
            404 => Ok(None),
            _ => Err(self.refused(&reply)),
        }
    }

    /// All objects that locks may be in, and the version at which this is so.
    pub(super) async fn all(&self) -> Result<(u64, Vec<Value>)> {
        let only = match &self.address.shelf {
            Shelf::Leases => String::new(),
            // One that may be missing has no version.
            Shelf::Annotations(of) if of.create => format!("?fieldSelector=metadata.name%3D{}", of.name),
            Shelf::Annotations(of) => {
                let object = self.get(&of.name).await?.ok_or_else(|| of.missing())?;
                return Ok((lease::version(&object["metadata"])?, vec![object]));
            }
        };
        let mut reply = self.ask(LISTED_WITHIN, Method::GET, &only, JSON, None).await?;
        if reply.status != 200 {
            return Err(self.refused(&reply));
        }
        let version = lease::version(&reply.said["metadata"])?;
        Ok((version, reply.said["items"].as_array_mut().map(std::mem::take).unwrap_or_default()))
    }

    fn refused(&self, reply: &Reply) -> Error {
        refused(reply, &self.address.shelf, self.at())
    }

    pub(super) async fn write(&self, object: &str, write: &Write) -> Result<Written> {
        let path = format!("/{object}");
        let reply = match write {
            Write::Create(body) => self.ask(AT_ONCE, Method::POST, "", JSON, Some(body)).await?,
            Write::Patch(body) => self.ask(AT_ONCE, Method::PATCH, &path, MERGE, Some(body)).await?,
            Write::Operations(body) => {
                self.ask(AT_ONCE, Method::PATCH, &path, OPERATIONS, Some(body)).await?
            }
            Write::Delete(body) => self.ask(AT_ONCE, Method::DELETE, &path, JSON, Some(body)).await?,
        };
        match (reply.status, write) {
            (200..=202, _) => Ok(Written::Done(reply.said)),
            (409, _) | (404, Write::Patch(_) | Write::Delete(_)) => Ok(Written::Conflict),
            (404, Write::Operations(_)) | (422, Write::Operations(_)) if !is_too_long(&reply.said) => {
                Ok(Written::Conflict)
            }
            _ => Err(self.refused(&reply)),
        }
    }

    /// All that happens after this version; after 0: the objects as they are, and what happens then.
    pub(super) async fn watch(&self, after: u64) -> Result<BoxStream<'static, Result<Event>>> {
        let seconds = WATCHED_FOR.as_secs();
        let only = match &self.address.shelf {
            Shelf::Leases => String::new(),
            Shelf::Annotations(of) => format!("&fieldSelector=metadata.name%3D{}", of.name),
        };
        // What begins with the objects has marks only where the API server and its etcd are new.
        let how = format!("watch=true&allowWatchBookmarks={}&timeoutSeconds={seconds}", after > 0);
        let request =
            |way: &Way| way.client.get(format!("{}?{how}&resourceVersion={after}{only}", way.objects));
        let response = self.exchange(AT_ONCE, request, future::ok).await?;
        match response.status().as_u16() {
            200 => {}
            410 => return Ok(stream::iter([Ok(Event::TooOld)]).boxed()),
            _ => {
                let reply = pin!(Reply::of(response));
                let reply = within(&self.rt, Some(AT_ONCE), reply).await.ok_or_else(|| self.silent())?;
                return Err(self.refused(&reply.map_err(|error| of_transport(error, self.at()))?));
            }
        }
        let lines = Lines { response, read: Vec::new(), rt: self.rt.clone() };
        let events = stream::unfold(Some(lines), async |lines| {
            let mut lines = lines?;
            match lines.next().await {
                Ok(None) => None,
                Ok(Some(line)) => {
                    let event = event(&line);
                    let goes_on = event.is_ok();
                    Some((event, goes_on.then_some(lines)))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(events.boxed())
    }

    async fn ask(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Reply> {
        let request = |way: &Way| {
            let request = way.client.request(method.clone(), format!("{}{path}", way.objects));
            let request = request.header(header::ACCEPT, JSON);
            match body {
                Some(body) => request.header(header::CONTENT_TYPE, content).body(body.to_string()),
                None => request,
            }
        };
        self.exchange(limit, request, Reply::of).await
    }

    /// A request, and of its answer what is to be read within the limit. Where the API server asks who we are, that is found out anew.
    async fn exchange<T, F: Future<Output = reqwest::Result<T>> + Send>(
        &self,
        limit: Duration,
        request: impl Fn(&Way) -> RequestBuilder + Sync,
        read: impl Fn(Response) -> F + Sync,
    ) -> Result<T> {
        loop {
            let way = self.way().await?;
            let request = way.shows.with(request(&way));
            let exchange = pin!(async {
                let response = request.send().await?;
                Ok((response.status().as_u16() == 401, read(response).await?))
            });
            let (refused, answer) = match within(&self.rt, Some(limit), exchange).await {
                Some(Ok(answered)) => answered,
                Some(Err(error)) => return Err(self.failed(error, &way).await),
                None => return Err(self.silent()),
            };
            if !refused || !self.leave(&way).await {
                return Ok(answer);
            }
        }
    }

    /// Certificates change: after a refusal they are read again.
    async fn failed(&self, error: reqwest::Error, way: &Way) -> Error {
        let error = of_transport(error, self.at());
        if error.kind() == ErrorKind::Denied {
            self.leave(way).await;
        }
        error
    }

    /// Leaves a way that was refused; whether another one may lead there.
    async fn leave(&self, way: &Way) -> bool {
        let kept = &mut self.ways.lock().await.kept;
        // Somebody may have found another one meanwhile.
        kept.take_if(|kept| Arc::ptr_eq(&kept.objects, &way.objects));
        way.is_known
    }

    /// The way there; it is found by whoever comes first. One that ends soon is used until the next one is found.
    async fn way(&self) -> Result<Way> {
        let Ways { kept, next } = &mut *self.ways.lock().await;
        let now = self.rt.now();
        if let Some(way) = kept
            && way.lasts_for(Duration::ZERO, now)
        {
            if !way.lasts_for(BEFORE_ITS_END, now) {
                if next.is_none() {
                    *next = self.log_in(now).ok();
                }
                match next.as_mut().map(oneshot::Receiver::try_recv) {
                    Some(Ok(None)) => {}
                    Some(Ok(Some(Ok(found)))) => (*way, *next) = (Way { is_known: true, ..found }, None),
                    // It is tried again.
                    _ => *next = None,
                }
            }
            way.shows.refresh(now)?;
            return Ok(way.clone());
        }
        let finding = match next {
            Some(finding) => finding,
            None => next.insert(self.log_in(now)?),
        };
        // Where a program does not end, this is still told.
        let found = within(&self.rt, Some(LOGGED_IN_WITHIN + AT_ONCE), finding).await;
        *next = None;
        let way = found.ok_or_else(|| self.silent())?.map_err(|_| background::gone())??;
        *kept = Some(Way { is_known: true, ..way.clone() });
        Ok(way)
    }

    /// Begins to find a way.
    fn log_in(&self, now: Moment) -> Result<oneshot::Receiver<Result<Way>>> {
        let login = self.address.cluster.login()?;
        let Place { server, namespace } = self.address.place(&login);
        if (&server, &namespace) != (&self.place.server, &self.place.namespace) {
            let message = format!(
                "the kubeconfig leads to {server} now, and the locks are in {}: name the context in the URL (context=NAME)",
                self.place.server
            );
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let path = self.address.shelf.path(&namespace);
        // It may run a program that asks somebody for a token, or a name server.
        let (tell, told) = oneshot::channel();
        thread("windlass-login", move || drop(tell.send(find(login, &path, now)))).map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("no thread to log in by: {error}")).with_source(error)
        })?;
        Ok(told)
    }
}

impl Way {
    fn lasts_for(&self, time: Duration, now: Moment) -> bool {
        self.until_ms.is_none_or(|until| now.wall + time < Duration::from_millis(until))
    }
}

/// A test that fails and annotations that are too long have the same status.
fn is_too_long(answer: &Value) -> bool {
    answer["message"].as_str().is_some_and(|said| said.contains("Too long"))
}

/// Makes a client, on a thread that may wait.
fn find(login: Login, path: &str, now: Moment) -> Result<Way> {
    let invalid = |what: &str| Error::new(ErrorKind::InvalidInput, format!("the kubeconfig's {what}"));
    let mut builder = client::builder();
    if let Some(ca) = &login.ca {
        let certificates = Certificate::from_pem_bundle(ca)
            .map_err(|error| invalid(&format!("certificate-authority is none: {error}")))?;
        builder = builder.tls_certs_only(certificates);
    }
    if login.insecure {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if let Some(proxy) = &login.proxy {
        let proxy =
            reqwest::Proxy::all(proxy).map_err(|error| invalid(&format!("proxy-url is none: {error}")))?;
        builder = builder.proxy(proxy);
    }
    let mut server =
        Url::parse(&login.server).map_err(|error| invalid(&format!("server is no URL: {error}")))?;
    if let Some(name) = &login.server_name {
        let host = server.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = server.port_or_known_default().unwrap_or(443);
        let found = (host.as_str(), port).to_socket_addrs().map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("cannot find the API server {host}: {error}"))
        })?;
        builder = builder.resolve_to_addrs(name, &found.collect::<Vec<_>>());
        server.set_host(Some(name)).map_err(|error| invalid(&format!("tls-server-name is none: {error}")))?;
    }
    let credential = match &login.proof {
        Proof::Plugin(plugin) => plugin.run(LOGGED_IN_WITHIN)?,
        _ => Credential::default(),
    };
    if let Some(identity) = credential.identity.as_ref().or(login.identity.as_ref()) {
        let identity = reqwest::Identity::from_pem(identity)
            .map_err(|error| invalid(&format!("client-certificate or its key is none: {error}")))?;
        builder = builder.identity(identity);
    }
    let shows = match login.proof {
        Proof::Token(token) => Shows::Token(token),
        Proof::TokenFile(path) => Shows::TokenFile { token: read_token(&path)?, path, read: now },
        Proof::Password(name, password) => Shows::Password(name, password),
        Proof::Plugin(_) => credential.token.map_or(Shows::Nothing, Shows::Token),
        Proof::Nothing => Shows::Nothing,
    };
    let client = builder.build().map_err(|error| invalid(&format!("way of TLS does not work: {error}")))?;
    let server = server.as_str().trim_end_matches('/');
    let objects = format!("{server}{path}").into();
    Ok(Way { client, objects, shows, until_ms: credential.until_ms, is_known: false })
}

impl Shows {
    fn with(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nothing => request,
            Self::Token(token) | Self::TokenFile { token, .. } => request.bearer_auth(token),
            Self::Password(name, password) => request.basic_auth(name, Some(password)),
        }
    }

    fn refresh(&mut self, now: Moment) -> Result<()> {
        if let Self::TokenFile { path, token, read } = self
            && now.since(*read) > TOKEN_LASTS
        {
            (*token, *read) = (read_token(path)?, now);
        }
        Ok(())
    }
}

fn read_token(path: &std::path::Path) -> Result<String> {
    let token = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot read the token for the API server in {}: {error}", path.display());
        Error::new(ErrorKind::Denied, message).with_source(error)
    })?;
    Ok(token.trim().to_owned())
}

/// An answer that comes in lines.
struct Lines {
    response: Response,
    read: Vec<u8>,
    rt: Arc<dyn Runtime>,
}

impl Lines {
    /// `None`: it has ended.
    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.read, rest)));
            }
            match within(&self.rt, Some(LONGEST_SILENCE), pin!(self.response.chunk())).await {
                Some(Ok(Some(piece))) => self.read.extend_from_slice(&piece),
                Some(Ok(None)) => return Ok(None),
                Some(Err(error)) => return Err(of_transport(error, "")),
                None => return Err(silent("")),
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Event> {
    let strange = || Error::new(ErrorKind::Unavailable, "the watch tells something that is not understood");
    let mut line: Value = serde_json::from_slice(line).map_err(|_| strange())?;
    let object = line.get_mut("object").map(Value::take).unwrap_or_default();
    match line["type"].as_str() {
        Some("ADDED" | "MODIFIED") => Ok(Event::Is(object)),
        Some("DELETED") => Ok(Event::Gone(object)),
        Some("BOOKMARK") => Ok(Event::UpTo(lease::version(&object["metadata"])?)),
        Some("ERROR") => match object["code"].as_u64().and_then(|code| u16::try_from(code).ok()) {
            Some(410) => Ok(Event::TooOld),
            status => Err(refused(&Reply::new(status.unwrap_or(500), object), &Shelf::Leases, "")),
        },
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::kubernetes::{address::Settings, login::Cluster},
        rt::Native,
    };

    #[test]
    fn what_a_watch_tells_that_is_no_event() {
        for line in ["7", "[]", "null", "\"ADDED\"", "{}", "{\"type\":\"BOOKMARK\"}", "{"] {
            assert!(event(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_leads_elsewhere_is_not_followed() {
        let file = std::env::temp_dir().join(format!("windlass-kubeconfig-{}", std::process::id()));
        let config = "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u}], \
                      clusters: [{name: c, cluster: {server: 'https://new.example'}}]}";
        std::fs::write(&file, config).unwrap();
        let settings = Settings {
            cluster: Cluster { kubeconfig: Some(file.clone()), context: None },
            ..Settings::default()
        };
        let address = Address::parse("//team/leases", |text| Ok(text.to_owned()), settings).unwrap();
        let place = Place { server: "https://old.example".to_owned(), namespace: "team".to_owned() };
        Native.start().unwrap();
        let error = Link::new(address, place, Arc::new(Native)).get("lock").await.unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("https://new.example now"), "{error}");
    }
}
