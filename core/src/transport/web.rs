//! Requests by the `fetch` of a JavaScript host.
//!
//! - **A request goes out at once**, in the call and not in a task that runs later: the last words of a page that is being
//!   closed are sent in time.
//! - **A dropped future aborts its request.** JavaScript's values are not `Send`, and the futures of a
//!   [`Transport`] are: they wait for a channel, and a local task has the request until nobody waits for it.
//! - **Time-outs are ours**: what `fetch` says of an aborted request differs from host to host.
//! - **A browser tells a page nothing of why** a request failed: a server that is down, one that does not allow the page's
//!   origin, and a policy of the page look the same, and the message names all three.

use std::{pin::pin, time::Duration};

use futures_channel::{mpsc, oneshot};
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    future::{self, BoxFuture, Either},
};
use js_sys::{Error as JsError, JsString, Promise, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, prelude::*};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    AbortController, Headers, ReadableStreamDefaultReader, RequestInit, RequestRedirect, Response as Fetched,
};

use super::{Request, Response, Streamed, Transport};
use crate::{
    error::{Error, ErrorKind, Result},
    rt::{Runtime, Web as Host},
};

/// The longest answer that is read.
const MOST: u32 = 16 * 1024 * 1024;

#[wasm_bindgen]
extern "C" {
    /// Of a page, a worker, or a program alike.
    #[wasm_bindgen(js_name = fetch, catch)]
    fn fetch(url: &str, how: &RequestInit) -> std::result::Result<Promise, JsValue>;

    #[wasm_bindgen(thread_local_v2, js_name = location)]
    static LOCATION: Option<web_sys::Location>;
}

/// The host's `fetch`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Web;

impl Transport for Web {
    fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
        let sent = Sent::new(&request);
        there(async move { within(request.timeout, sent?.whole()).await? })
    }

    fn stream(&self, request: Request) -> BoxFuture<'static, Result<Streamed>> {
        let sent = Sent::new(&request);
        there(async move {
            let sent = sent?;
            let fetched = within(request.timeout, sent.answer()).await??;
            if fetched.status() != 200 {
                return read_all(&fetched).await.map(Streamed::Refused);
            }
            let (tell, body) = mpsc::channel(1);
            let (listening, nobody_listens) = oneshot::channel::<()>();
            spawn_local(async move {
                // Its drop aborts the request.
                let _sent = sent;
                future::select(pin!(read_on(&fetched, tell)), nobody_listens).await;
            });
            // Dropped with the stream, whatever is under way.
            let body = body.inspect(move |_| _ = &listening);
            Ok(Streamed::Body(body.boxed()))
        })
    }
}

/// A request under way, aborted by its drop.
struct Sent {
    promise: Promise,
    abort: AbortController,
}

impl Sent {
    fn new(request: &Request) -> Result<Self> {
        let start = || {
            let headers = Headers::new()?;
            headers.set("accept", "application/json, text/event-stream")?;
            let how = RequestInit::new();
            how.set_method(request.method);
            if request.method != "GET" {
                headers.set("content-type", "application/json")?;
                how.set_body(&Uint8Array::from(request.body.as_slice()));
            }
            if let Some(token) = &request.token {
                headers.set("authorization", &format!("Bearer {token}"))?;
            }
            how.set_headers(&headers);
            how.set_redirect(RequestRedirect::Manual);
            let abort = AbortController::new()?;
            how.set_signal(Some(&abort.signal()));
            if request.last_words {
                Reflect::set(&how, &"keepalive".into(), &true.into())?;
            }
            Ok(Self { promise: fetch(&request.url, &how)?, abort })
        };
        // A URL or a token that no request can be made of.
        start().map_err(|thrown| Error::new(ErrorKind::InvalidInput, text(&thrown)))
    }

    async fn answer(&self) -> Result<Fetched> {
        let answer = JsFuture::from(self.promise.clone()).await.map_err(|thrown| trouble(&thrown))?;
        Ok(answer.unchecked_into())
    }

    async fn whole(self) -> Result<Response> {
        read_all(&self.answer().await?).await
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

async fn within<T>(timeout: Duration, work: impl Future<Output = T>) -> Result<T> {
    match future::select(pin!(work), Host.sleep(timeout)).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(((), _)) => Err(Error::new(ErrorKind::Unavailable, "the server does not answer")),
    }
}

/// Runs a piece of work as a local task, and gives it up when nobody waits for it any more.
fn there<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + 'static,
) -> BoxFuture<'static, Result<T>> {
    let (mut tell, answer) = oneshot::channel();
    spawn_local(async move {
        let done = match future::select(pin!(work), tell.cancellation()).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => return,
        };
        // Whoever asked may be gone.
        let _ = tell.send(done);
    });
    let gone = || Err(Error::new(ErrorKind::Closed, "this JavaScript host has ended the request's task"));
    answer.map(move |answer| answer.unwrap_or_else(|_| gone())).boxed()
}

async fn read_all(fetched: &Fetched) -> Result<Response> {
    let broken = |thrown: JsValue| trouble(&thrown);
    let buffer = JsFuture::from(fetched.array_buffer().map_err(broken)?).await.map_err(broken)?;
    let body = Uint8Array::new(&buffer);
    if body.length() > MOST {
        return Err(Error::new(ErrorKind::Storage, "the server's answer is longer than 16 MiB"));
    }
    let retry_after = fetched.headers().get("retry-after").ok().flatten();
    let retry_after = retry_after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    // A browser shows of a redirect only that it was one, and says 0.
    let status = if fetched.status() == 0 { 302 } else { fetched.status() };
    Ok(Response { status, retry_after, body: body.to_vec() })
}

async fn read_on(fetched: &Fetched, mut tell: mpsc::Sender<Result<Vec<u8>>>) {
    let Some(body) = fetched.body() else { return };
    let reader: ReadableStreamDefaultReader = body.get_reader().unchecked_into();
    loop {
        let piece = JsFuture::from(reader.read()).await;
        let piece = match piece.map(|piece| Reflect::get(&piece, &"value".into())) {
            Ok(Ok(bytes)) if bytes.is_object() => Ok(bytes.unchecked_into::<Uint8Array>().to_vec()),
            Ok(_) => return,
            Err(thrown) => Err(trouble(&thrown)),
        };
        if tell.send(piece).await.is_err() {
            return;
        }
    }
}

/// What went wrong on the way.
fn trouble(thrown: &JsValue) -> Error {
    let mut message = format!("cannot reach the server: {}", text(thrown));
    let page = LOCATION.with(|location| location.as_ref().and_then(|location| location.origin().ok()));
    if let Some(origin) = page {
        message += &format!(
            "; a browser does not say why: is the server up, does it allow pages of {origin} (--origin), and does \
             the page's Content-Security-Policy allow to connect to it?"
        );
    }
    Error::new(ErrorKind::Unavailable, message)
}

/// The text of something thrown, and of what caused it.
fn text(thrown: &JsValue) -> String {
    let own = |thrown: &JsValue| match thrown.dyn_ref::<JsError>() {
        Some(error) => String::from(error.message()),
        None => thrown.dyn_ref::<JsString>().map(String::from).unwrap_or_default(),
    };
    let cause = Reflect::get(thrown, &"cause".into()).map(|cause| own(&cause)).unwrap_or_default();
    if cause.is_empty() { own(thrown) } else { cause }
}
