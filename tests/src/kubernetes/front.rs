//! Before an API server: plain HTTP that is carried on request by request, so that a test sees what is asked, and can answer itself.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Certificate, Client, Method, header};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Notify,
};

use super::Cluster;
use crate::proxy::{listen, pause};

/// It ends with the test's process.
#[derive(Clone, Debug)]
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What becomes of the next requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Next {
    /// So many watches begin, and tell nothing.
    pub silent_watches: usize,
    /// So many are told that they come too late (410).
    pub late_watches: usize,
    /// So many are asked who they are (401).
    pub denied_watches: usize,
    /// So many other requests are told to come again in a second (429).
    pub too_many: usize,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    server: String,
    asked: Mutex<Vec<String>>,
    next: Mutex<Next>,
    /// Changes of this object take so long.
    slow: Mutex<Option<(String, Duration)>>,
    /// Rings when all watches are to break.
    cut: Notify,
}

impl Front {
    pub fn before(cluster: &Cluster) -> Self {
        // One of a process; whoever was earlier has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = Certificate::from_pem(&std::fs::read(cluster.ca()).unwrap()).unwrap();
        let client = Client::builder().tls_certs_only([ca]).build().unwrap();
        let shared = Arc::new(Shared {
            client,
            server: format!("https://{}", cluster.address()),
            asked: Mutex::default(),
            next: Mutex::default(),
            slow: Mutex::default(),
            cut: Notify::new(),
        });
        let served = shared.clone();
        let address = listen(move |stream| {
            let served = served.clone();
            // A connection that breaks is its client's.
            async move { drop(served.carry(stream).await) }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, next: Next) {
        *self.shared.next.lock().unwrap() = next;
    }

    /// Changes of this object take so long from now on.
    pub fn slow_down(&self, object: &str, by: Duration) {
        *self.shared.slow.lock().unwrap() = Some((format!("/{object}"), by));
    }

    /// Breaks all watches.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// How many requests there were that begin so and have this in them.
    pub fn asked(&self, method: &str, part: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked.iter().filter(|line| line.starts_with(method) && line.contains(part)).count()
    }
}

struct Request {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Shared {
    /// Whether the next watch comes too late, and whether it is silent.
    fn how_to_watch(&self) -> (bool, bool) {
        let mut next = self.next.lock().unwrap();
        (taken(&mut next.late_watches), taken(&mut next.silent_watches))
    }

    async fn carry(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read(&mut stream).await? {
            let watches = request.path.contains("watch=true");
            self.asked.lock().unwrap().push(format!("{} {}", request.method, request.path));
            if watches && taken(&mut self.next.lock().unwrap().denied_watches) {
                stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await?;
            } else if watches {
                let cut = self.cut.notified();
                let (late, silent) = self.how_to_watch();
                tokio::select! {
                    () = cut => return Ok(()),
                    ended = self.watch(request, &mut stream, late, silent) => ended?,
                }
            } else if taken(&mut self.next.lock().unwrap().too_many) {
                stream
                    .write_all(
                        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
                    )
                    .await?;
            } else {
                let slow = self.slow.lock().unwrap().clone();
                if let Some((object, by)) = slow
                    && request.method == Method::PATCH
                    && request.path.ends_with(&object)
                {
                    pause(by).await;
                }
                let answer = self.ask(request).await?;
                let status = answer.status();
                let said = answer.bytes().await.map_err(std::io::Error::other)?;
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", said.len());
                stream.write_all(&[head.as_bytes(), &said].concat()).await?;
            }
        }
        Ok(())
    }

    async fn watch(
        &self,
        request: Request,
        stream: &mut BufReader<TcpStream>,
        late: bool,
        silent: bool,
    ) -> std::io::Result<()> {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        if late {
            let told =
                "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\"}}\n";
            stream.write_all(&chunk(told.as_bytes())).await?;
        } else if silent {
            std::future::pending::<()>().await;
        } else {
            let mut answer = self.ask(request).await?;
            while let Some(piece) = answer.chunk().await.map_err(std::io::Error::other)? {
                stream.write_all(&chunk(&piece)).await?;
            }
        }
        stream.write_all(&chunk(b"")).await
    }

    async fn ask(&self, request: Request) -> std::io::Result<reqwest::Response> {
        let Request { method, path, headers, body } = request;
        let mut asked = self.client.request(method, format!("{}{path}", self.server));
        for (name, value) in headers {
            asked = asked.header(name, value);
        }
        asked.body(body).send().await.map_err(std::io::Error::other)
    }
}

/// One of so many.
fn taken(count: &mut usize) -> bool {
    std::mem::replace(count, count.saturating_sub(1)) > 0
}

fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// `None`: the client has no more.
async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap().parse().unwrap(), words.next().unwrap().to_owned());
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        if name.eq_ignore_ascii_case(header::CONTENT_LENGTH.as_str()) {
            length = value.parse().unwrap();
        } else if !name.eq_ignore_ascii_case(header::HOST.as_str()) {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { method, path, headers, body }))
}
