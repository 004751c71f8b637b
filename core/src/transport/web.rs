//! Requests by the `fetch` of a JavaScript host.
//!
//! - **A request goes out at once**, in the call and not in a task that runs later: the last words of a page that is being
//!   closed are sent in time.
//! - **A dropped future aborts its request**, and a dropped stream its own. JavaScript's values are not `Send`, and the futures of
//!   a [`Transport`] are: [`OneThread`] says why they may.
//! - **Time-outs are ours**: what `fetch` says of an aborted request differs from host to host.
//! - **A browser tells a page nothing of why** a request failed: a server that is down, one that does not allow the page's
//!   origin, and a policy of the page look the same, and the message names all three.

use std::{pin::pin, time::Duration};

use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{self, BoxFuture, Either},
    stream,
};
use js_sys::{Error as JsError, JsString, Promise, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, prelude::*};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    AbortController, Headers, ReadableStreamDefaultReader, RequestInit, RequestRedirect, Response as Fetched,
};

use super::{Request, Response, Streamed, Transport};
use crate::{
    error::{Error, ErrorKind, Result},
    protocol::MISSING,
    rt::{OneThread, Runtime, Web as Host},
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
        OneThread(async move { within(request.timeout, sent?.whole()).await? }).boxed()
    }

    fn stream(&self, request: Request) -> BoxFuture<'static, Result<Streamed>> {
        let sent = Sent::new(&request);
        let answer = async move {
            let sent = sent?;
            let fetched = within(request.timeout, sent.answer()).await??;
            if fetched.status() != 200 {
                return read_all(&fetched).await.map(Streamed::Refused);
            }
            Ok(Streamed::Body(OneThread(pieces(sent, &fetched)).boxed()))
        };
        OneThread(answer).boxed()
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

async fn read_all(fetched: &Fetched) -> Result<Response> {
    let broken = |thrown: JsValue| trouble(&thrown);
    let buffer = JsFuture::from(fetched.array_buffer().map_err(broken)?).await.map_err(broken)?;
    let body = Uint8Array::new(&buffer);
    if body.length() > MOST {
        return Err(Error::new(ErrorKind::Storage, "the server's answer is longer than 16 MiB"));
    }
    let header = |name| fetched.headers().get(name).ok().flatten();
    let (retry_after, missing) = (header("retry-after"), header(MISSING));
    let retry_after = retry_after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    // A browser shows of a redirect only that it was one, and says 0.
    let status = if fetched.status() == 0 { 302 } else { fetched.status() };
    Ok(Response { status, retry_after, missing, body: body.to_vec() })
}

/// The body as it comes, until it ends or breaks off. The request is aborted when this is dropped.
fn pieces(sent: Sent, fetched: &Fetched) -> impl Stream<Item = Result<Vec<u8>>> + 'static {
    let reader = fetched.body().map(|body| body.get_reader().unchecked_into::<ReadableStreamDefaultReader>());
    stream::unfold(reader.map(|reader| (sent, reader)), async |reading| {
        let (sent, reader) = reading?;
        match JsFuture::from(reader.read()).await.map(|piece| Reflect::get(&piece, &"value".into())) {
            Ok(Ok(bytes)) if bytes.is_object() => {
                Some((Ok(bytes.unchecked_into::<Uint8Array>().to_vec()), Some((sent, reader))))
            }
            Ok(_) => None,
            Err(thrown) => Some((Err(trouble(&thrown)), None)),
        }
    })
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
