//! Who may come in: each request passes here before a route sees it.
//!
//! In this order, and all of it before a byte of the body is read: does the request name this server (`Host`), may the page
//! it comes from ask (`Origin`), who asks (`Authorization`, or the connection's certificate). Then the body is read, within
//! its limit and deadline.
//!
//! Browsers send `Host` and `Origin` truthfully, and they are what is dangerous to a server that asks nobody who they are: any
//! page can have its readers' browsers post to loopback. So these two are checked also where everybody may do everything.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts},
    response::IntoResponse,
};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tower_service::Service;
use windlass::{Error, ErrorKind};

use crate::{
    access::{Access, BadToken, Identity, Right, denied},
    answer::{Refusal, invalid},
    audit::{Event, What},
    limits::{Accounts, Connections, Ledger},
    metrics::{Refusals, Refused},
    options::{Deadlines, Limits},
    pace::{Busy, Pace},
    who::{Caller, Who},
};

mod sites;

pub(crate) use sites::Sites;
#[cfg(fuzzing)]
pub use sites::fuzz;
use sites::{Protection, protection};

/// For how long browsers may remember what may be asked from elsewhere: as long as any does.
const REMEMBER: HeaderValue = HeaderValue::from_static("7200");

/// What all connections of a server have in common.
pub(crate) struct Door {
    pub(crate) router: Router,
    pub(crate) access: Arc<Access>,
    pub(crate) sites: Sites,
    pub(crate) limits: Arc<Limits>,
    pub(crate) deadlines: Deadlines,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) accounts: Accounts,
    pub(crate) connections: Arc<Connections>,
    pub(crate) refusals: Arc<Refusals>,
}

impl Door {
    /// Somebody, as `version` of the tokens says.
    fn who(&self, identity: Option<Arc<Identity>>, version: u64, name: String) -> Who {
        Who(Arc::new(Caller {
            identity,
            version,
            access: self.access.clone(),
            account: self.accounts.find(name),
            ledger: self.ledger.clone(),
            limits: self.limits.clone(),
        }))
    }
}

/// A connection.
pub(crate) struct Visitor {
    door: Arc<Door>,
    pace: Arc<Pace>,
    /// As whom it counts where it shows no token.
    address: IpAddr,
    /// Who it is without a token; `None`: it needs one.
    without_token: Option<Who>,
    /// The last token that it showed: most show no other.
    last: Mutex<Option<Shown>>,
}

struct Shown {
    credentials: HeaderValue,
    who: Who,
    version: u64,
}

impl Visitor {
    /// A connection from `address`, over which a certificate of this subject was shown.
    pub(crate) fn new(door: Arc<Door>, pace: Arc<Pace>, address: IpAddr, subject: Option<&str>) -> Self {
        let version = door.access.version();
        let certified = subject.and_then(|subject| door.access.certified(subject));
        let without_token = match certified {
            Some(identity) => {
                let name = identity.name.clone();
                Some(door.who(Some(identity), version, name))
            }
            None if door.access.is_anonymous() && subject.is_none() => {
                Some(door.who(None, version, crate::limits::whose(address).to_string()))
            }
            None => None,
        };
        Self { door, pace, address, without_token, last: Mutex::default() }
    }

    /// Answers a request. It never fails: what goes wrong is an answer, too.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Held>, Infallible> {
        let busy = self.pace.busy(request.version() == Version::HTTP_2);
        let (parts, body) = request.into_parts();
        let asked = self.door.ledger.audit().map(|_| format!("{} {}", parts.method, parts.uri.path()));
        let response = match self.door.sites.check(&parts) {
            Err(refusal) => closing(refusal.into_response(), &parts),
            Ok(None) => self.inside(parts, body).await,
            Ok(Some(origin)) if is_preflight(&parts) => preflight(origin),
            Ok(Some(origin)) => {
                let mut response = self.inside(parts, body).await;
                may_be_read(&mut response, origin);
                response
            }
        };
        self.door.refusals.count(&response);
        if let Some(asked) = asked {
            for refused in Refused::all(&response) {
                self.tell(refused.status, &asked);
            }
        }
        Ok(response.map(|body| Held { body, _busy: busy }))
    }

    fn tell(&self, status: u16, asked: &str) {
        let is_refusal = matches!(status, 401 | 403 | 413 | 429);
        let (Some(audit), true) = (self.door.ledger.audit(), is_refusal) else { return };
        let last =
            self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|shown| shown.who.clone());
        let address = self.address.to_string();
        let who = match (&last, &self.without_token) {
            (Some(who), _) | (None, Some(who)) if status != 401 => who.name(),
            _ => &address,
        };
        audit.write(&Event { request: Some(asked), ..Event::new(What::Refused(status), who) });
    }

    async fn inside(&self, mut parts: Parts, body: Incoming) -> Response<Body> {
        let who = match self.who(&parts) {
            Ok(who) => who,
            Err(refusal) => return closing(refusal.into_response(), &parts),
        };
        let body = match self.read(&parts, body).await {
            Ok(body) => body,
            Err(refusal) => return closing(refusal.into_response(), &parts),
        };
        if let Some(who) = who {
            parts.extensions.insert(who);
        }
        // A router is always ready.
        let answered = self.door.router.clone().call(Request::from_parts(parts, Body::from(body))).await;
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Who asks; `None` where nobody has to say.
    fn who(&self, parts: &Parts) -> Result<Option<Who>, Refusal> {
        if self.door.access.is_anonymous() && self.without_token.is_some() {
            return Ok(self.without_token.clone());
        }
        let protection = protection(parts.uri.path());
        let who = match (parts.headers.get(header::AUTHORIZATION), &self.without_token) {
            _ if protection == Protection::Open => return Ok(None),
            (Some(credentials), _) => self.shown(credentials)?,
            (None, Some(who)) => who.clone(),
            (None, None) => return Err(Refusal::unauthenticated(None)),
        };
        who.still()?;
        match (protection, &who.0.identity) {
            (Protection::Whole(namespace), Some(identity))
                if namespace.is_none_or(|of| !identity.may_everywhere(Right::Acquire, of)) =>
            {
                Err(denied().into())
            }
            _ => Ok(Some(who)),
        }
    }

    /// Whose these credentials are.
    fn shown(&self, credentials: &HeaderValue) -> Result<Who, Refusal> {
        let version = self.door.access.version();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has the connection has shown these before: to compare them tells nobody anything.
        if let Some(shown) = &*last
            && shown.credentials == credentials
            && shown.version == version
        {
            return Ok(shown.who.clone());
        }
        let token = sites::token(credentials)
            .ok_or_else(|| Refusal::unauthenticated(Some(BadToken("it is not written as Bearer TOKEN"))))?;
        let identity =
            self.door.access.identify(&token).map_err(|why| Refusal::unauthenticated(Some(why)))?;
        let name = identity.name.clone();
        let who = self.door.who(Some(identity), version, name);
        *last = Some(Shown { credentials: credentials.clone(), who: who.clone(), version });
        Ok(who)
    }

    async fn read(&self, parts: &Parts, body: Incoming) -> Result<Bytes, Refusal> {
        // Requests with both a length and pieces are how requests are smuggled past a proxy, and hyper does not say that there was
        // a length, too. No client of ours sends pieces.
        if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            let refusal = Refusal::from(invalid("send the body at once, with Content-Length"));
            return Err(refusal.with_status(411, "Length Required"));
        }
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let most = self.door.limits.body_bytes;
        let too_long = || {
            let message = format!("the body is longer than {most} bytes: ask for fewer claims at once");
            Refusal::from(invalid(&message)).with_status(413, "Content Too Large")
        };
        if usize::try_from(body.size_hint().lower()).is_ok_and(|bytes| bytes > most) {
            return Err(too_long());
        }
        let mut reading = pin!(Limited::new(body, most).collect());
        // Most bodies come along with the head, and need no timer.
        let read = match reading.as_mut().now_or_never() {
            Some(read) => read,
            None => tokio::time::timeout(self.door.deadlines.body, reading).await.map_err(|_| {
                let error = Error::new(ErrorKind::Unavailable, "the body did not come in time");
                Refusal::from(error).with_status(408, "Request Timeout")
            })?,
        };
        match read {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(too_long()),
            Err(_) => Err(invalid("the body broke off").into()),
        }
    }
}

/// With what makes HTTP/1 close the connection: the body was not read, and what follows might not be a request.
fn closing(mut response: Response<Body>, parts: &Parts) -> Response<Body> {
    if parts.version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A browser asks whether a page from elsewhere may ask.
fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS && parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(origin: HeaderValue) -> Response<Body> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBER);
    may_be_read(&mut response, origin);
    response
}

/// By the page of this origin; never with what the browser knows of its reader.
fn may_be_read(response: &mut Response<Body>, origin: HeaderValue) {
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let exposed = HeaderValue::from_static("retry-after, www-authenticate, windlass-missing");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
}

/// The body of an answer; its request is under way until it is sent.
pub(crate) struct Held {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
