//! A host with few connections, as a browser is over HTTP/1.1: what finds none free waits for one, behind whatever came before.

use std::{sync::Arc, time::Duration};

use futures_channel::oneshot;
use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture, LocalBoxFuture},
    stream,
};
use tokio::{sync::Semaphore, time::timeout};
use windlass::{
    Backend, Error, ErrorKind, Locker, Result,
    backend::HttpBackend,
    open_backend,
    rt::{Native, Runtime},
    transport::{Request, Response, Streamed, Transport},
};

use crate::place::{Place, block_on};

/// As many as a browser opens to a server.
pub const CONNECTIONS: usize = 6;

/// A client with so many connections.
pub fn client(url: &str, connections: usize) -> HttpBackend {
    // It sets up for the whole process what reqwest wants, and its background thread.
    drop(open_backend(url, Arc::new(Native)).unwrap());
    HttpBackend::new(url, Arc::new(Few::new(connections)), Arc::new(Native)).unwrap()
}

/// A namespace whose clients each have a connection for what is held open, one for what takes its place, one for what is asked for at
/// once, and one for all else.
#[derive(Debug)]
pub struct FewPlace {
    pub url: String,
}

impl Place for FewPlace {
    fn client(&self) -> Arc<dyn Backend> {
        Arc::new(client(&self.url, 4).with_few_connections())
    }

    fn locker(&self) -> Locker {
        Locker::over(self.client(), self.runtime())
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(Native)
    }

    fn run(&self, test: LocalBoxFuture<'_, ()>) {
        block_on(test);
    }

    fn leftovers(&self) -> Vec<String> {
        vec![]
    }
}

#[derive(Clone, Debug)]
struct Few {
    client: reqwest::Client,
    free: Arc<Semaphore>,
}

impl Few {
    fn new(connections: usize) -> Self {
        Self { client: reqwest::Client::new(), free: Arc::new(Semaphore::new(connections)) }
    }

    fn ask(&self, request: Request) -> reqwest::RequestBuilder {
        let asked = if request.method == "GET" {
            self.client.get(request.url)
        } else {
            self.client.post(request.url).header("content-type", "application/json").body(request.body)
        };
        match request.token {
            Some(token) => asked.bearer_auth(token),
            None => asked,
        }
    }
}

impl Transport for Few {
    fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
        let (this, limit) = (self.clone(), request.timeout);
        there(limit, async move {
            let _connection = this.free.acquire().await.unwrap();
            whole(this.ask(request).send().await.map_err(broken)?).await
        })
    }

    fn stream(&self, request: Request) -> BoxFuture<'static, Result<Streamed>> {
        let (this, limit) = (self.clone(), request.timeout);
        there(limit, async move {
            let connection = this.free.clone().acquire_owned().await.unwrap();
            let response = this.ask(request).send().await.map_err(broken)?;
            if response.status() != 200 {
                return whole(response).await.map(Streamed::Refused);
            }
            let pieces = stream::unfold((response, connection), async |(mut response, connection)| {
                let piece = response.chunk().await.map_err(broken).transpose()?;
                Some((piece.map(|bytes| bytes.to_vec()), (response, connection)))
            });
            Ok(Streamed::Body(pieces.boxed()))
        })
    }
}

/// Where there is a runtime for it; given up when nobody waits for it any more.
fn there<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> BoxFuture<'static, Result<T>> {
    let (tell, answer) = oneshot::channel();
    let (abort, registration) = AbortHandle::new_pair();
    let work = async move {
        let silent = |_| Err(Error::new(ErrorKind::Unavailable, "the server does not answer"));
        drop(tell.send(timeout(limit, work).await.unwrap_or_else(silent)));
    };
    Native.spawn(Abortable::new(work, registration).map(drop).boxed());
    let give_up = GiveUp(abort);
    async move {
        let answer = answer.await.unwrap();
        drop(give_up);
        answer
    }
    .boxed()
}

struct GiveUp(AbortHandle);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn whole(response: reqwest::Response) -> Result<Response> {
    let status = response.status().as_u16();
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let retry_after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let missing = header(windlass::protocol::MISSING).map(str::to_owned);
    let body = response.bytes().await.map_err(broken)?.to_vec();
    Ok(Response { status, retry_after, missing, body })
}

#[allow(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn broken(error: reqwest::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the connection to the server broke: {error}"))
}
