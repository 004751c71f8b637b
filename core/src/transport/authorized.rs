//! Requests with a bearer token that comes from a function and is asked for anew when a server refuses it.
//!
//! - **There is no token yet**: the first request asks the source, and all others wait for that answer. Who came later than the
//!   question asks once more where the answer is a refusal, which is of the time before.
//! - **A request is refused for want of authentication** (401): its token is forgotten, unless another one is there by then,
//!   and the request is sent once more with a new one. A source that has no other leaves the refusal as it is.
//! - **The source fails, or hangs**: those who wait are told, and the next request asks again. A holder's renewals
//!   go on being tried until its lease is over.

use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use super::{Request, Response, Streamed, Transport};
use crate::{
    error::{Error, ErrorKind, Result},
    rt::Runtime,
    within::within,
};

/// The longest that a source may take: one that hangs once must not cost a lock with the default TTL.
const PATIENCE: Duration = Duration::from_secs(5);

/// Gives a fresh token whenever it is asked.
#[derive(Clone)]
pub struct TokenSource(Arc<dyn Fn() -> BoxFuture<'static, Result<String>> + Send + Sync>);

impl TokenSource {
    /// A function that gives a token. It is called on the library's background thread and must not block it. What it fails
    /// with is the cause of a [`Denied`](ErrorKind::Denied), unless it is an [`Error`] of this crate, which stays as it is.
    pub fn new<F, E>(source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self(Arc::new(move || {
            let fetching = source();
            async move { fetching.await.map_err(|error| failed(error.into())) }.boxed()
        }))
    }

    /// A token that never changes.
    pub fn fixed(token: impl Into<String>) -> Self {
        let token = token.into();
        Self::new(move || std::future::ready(Ok::<_, Error>(token.clone())))
    }

    /// A token in a file, read again whenever it is refused.
    #[cfg(not(target_family = "wasm"))]
    pub fn file(path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        Self::new(move || {
            let read = std::fs::read_to_string(&path);
            std::future::ready(read.map(|text| text.trim().to_owned()).map_err(|error| {
                let message = format!("cannot read the token in {}: {error}", path.display());
                Error::new(ErrorKind::Denied, message).with_source(error)
            }))
        })
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

/// A transport that shows a token.
#[derive(Clone, Debug)]
pub struct Authorized(Arc<Inner>);

struct Inner {
    transport: Arc<dyn Transport>,
    source: TokenSource,
    rt: Arc<dyn Runtime>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<String>,
    fetching: Option<Fetching>,
}

type Fetching = Shared<oneshot::Receiver<Result<String>>>;

impl Authorized {
    /// Shows the tokens of `source` to whoever `transport` leads to.
    pub fn new(transport: Arc<dyn Transport>, source: TokenSource, rt: Arc<dyn Runtime>) -> Self {
        Self(Arc::new(Inner { transport, source, rt, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(&self) -> Result<String> {
        let (fetching, came_later) = match self.known_or_fetching() {
            Ok(token) => return Ok(token),
            Err(fetching) => fetching,
        };
        match self.fetched(fetching).await {
            Err(error) if came_later && error.kind() == ErrorKind::Denied => match self.known_or_fetching() {
                Ok(token) => Ok(token),
                Err((fetching, _)) => self.fetched(fetching).await,
            },
            fetched => fetched,
        }
    }

    /// The token, or the question for one that is under way, and whether it was under way before.
    fn known_or_fetching(&self) -> std::result::Result<String, (Fetching, bool)> {
        let mut state = self.state();
        if let Some(token) = &state.token {
            return Ok(token.clone());
        }
        let came_later = state.fetching.is_some();
        Err((state.fetching.get_or_insert_with(|| self.fetch()).clone(), came_later))
    }

    async fn fetched(&self, fetching: Fetching) -> Result<String> {
        fetching.await.unwrap_or_else(|_| {
            // Its task is gone without a word.
            self.state().fetching = None;
            Err(Error::new(ErrorKind::Denied, "no token: the function that gives tokens panicked"))
        })
    }

    /// Asks the source in a task of its own, so that nobody who gives up takes the answer from the others.
    fn fetch(&self) -> Fetching {
        let (tell, fetching) = oneshot::channel();
        let this = self.clone();
        let work = async move {
            let fetched = within(&this.0.rt, Some(PATIENCE), (this.0.source.0)()).await;
            let fetched = fetched.unwrap_or_else(|| Err(no_answer())).and_then(checked);
            {
                let mut state = this.state();
                state.fetching = None;
                state.token = fetched.as_ref().ok().cloned();
            }
            // Whoever asked may be gone.
            let _ = tell.send(fetched);
        };
        self.0.rt.spawn(work.boxed());
        fetching.shared()
    }

    /// Sends a request, and once more where its token was not taken.
    async fn send<A>(
        &self,
        request: Request,
        send: impl Fn(Request) -> BoxFuture<'static, Result<A>>,
        is_refused: impl Fn(&A) -> bool,
    ) -> Result<A> {
        let with = |token: &String| Request { token: Some(token.clone()), ..request.clone() };
        let token = self.token().await?;
        let answer = send(with(&token)).await?;
        if !is_refused(&answer) {
            return Ok(answer);
        }
        self.state().token.take_if(|known| *known == token);
        let fresh = self.token().await?;
        if fresh == token {
            return Ok(answer);
        }
        send(with(&fresh)).await
    }
}

impl Transport for Authorized {
    fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
        let this = self.clone();
        async move { this.send(request, |request| this.0.transport.send(request), is_unauthenticated).await }
            .boxed()
    }

    fn stream(&self, request: Request) -> BoxFuture<'static, Result<Streamed>> {
        let this = self.clone();
        async move {
            let is_refused =
                |answer: &Streamed| matches!(answer, Streamed::Refused(response) if is_unauthenticated(response));
            this.send(request, |request| this.0.transport.stream(request), is_refused).await
        }
        .boxed()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorized").field("transport", &self.transport).finish_non_exhaustive()
    }
}

fn is_unauthenticated(response: &Response) -> bool {
    response.status == 401
}

/// A token that cannot stand in a header would be told as trouble on the way, and tried again.
fn checked(token: String) -> Result<String> {
    if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token);
    }
    Err(Error::new(ErrorKind::Denied, "the token is empty, or has spaces or signs in it that no token has"))
}

fn failed(cause: Box<dyn StdError + Send + Sync>) -> Error {
    match cause.downcast::<Error>() {
        Ok(error) => *error,
        Err(cause) => {
            let message = format!("no token: {cause}");
            Error::new(ErrorKind::Denied, message).with_source(Cause(cause))
        }
    }
}

fn no_answer() -> Error {
    let message =
        format!("no token: the function that gives tokens has not answered for {} s", PATIENCE.as_secs());
    Error::new(ErrorKind::Unavailable, message)
}

/// An error behind a box is none itself.
#[derive(Debug)]
struct Cause(Box<dyn StdError + Send + Sync>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::ready,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures_util::future::{join, poll_immediate};

    use super::*;
    use crate::rt::Native;

    #[derive(Debug)]
    struct Takes;

    impl Transport for Takes {
        fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
            let body = request.token.unwrap_or_default().into_bytes();
            ready(Ok(Response { status: 200, retry_after: None, missing: None, body })).boxed()
        }

        fn stream(&self, _: Request) -> BoxFuture<'static, Result<Streamed>> {
            ready(Err(Error::new(ErrorKind::Unsupported, "not in this test"))).boxed()
        }
    }

    /// The source refused before the second request was there: its answer is not for that one.
    #[tokio::test]
    async fn who_comes_later_asks_once_more_after_a_refusal() {
        let rt = Arc::new(Native);
        rt.start().unwrap();
        let (refuse, refused) = oneshot::channel::<()>();
        let (refused, asked) = (refused.shared(), AtomicUsize::new(0));
        let source = TokenSource::new(move || {
            let (first, refused) = (asked.fetch_add(1, Ordering::SeqCst) == 0, refused.clone());
            async move {
                if first {
                    let _ = refused.await;
                    return Err("not yet".to_owned());
                }
                Ok("token".to_owned())
            }
        });
        let authorized = Authorized::new(Arc::new(Takes), source, rt);
        let request = Request {
            method: "POST",
            url: String::new(),
            token: None,
            body: Vec::new(),
            timeout: Duration::from_secs(10),
            held_open: false,
            last_words: false,
        };
        let send = || Transport::send(&authorized, request.clone());
        let (mut first, mut second) = (send(), send());
        assert!(poll_immediate(&mut first).await.is_none(), "it waits for the source");
        assert!(poll_immediate(&mut second).await.is_none(), "it waits for the same answer");
        refuse.send(()).unwrap();
        let (first, second) = join(first, second).await;
        assert_eq!(first.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(second.unwrap().body, b"token");
    }
}
