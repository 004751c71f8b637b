//! A server, and HTTP as bytes: a client library would not send what these tests do.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use windlass_server::{Access, Server, ServerOptions, Store, token::Tokens};

/// For what has to happen; generous, because machines are slow.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Serves until the test ends.
pub(crate) async fn serve(options: ServerOptions) -> SocketAddr {
    serve_at(Server::with_options(Store::in_memory(), options).unwrap()).await
}

/// Where it serves until the test ends.
pub(crate) async fn serve_at(server: Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await.unwrap() });
    address
}

/// With a file of tokens such as this.
pub(crate) fn tokens(text: &str) -> ServerOptions {
    let tokens = Some(Tokens::of_text(text).unwrap());
    ServerOptions { access: Access { tokens, jwt: None }, ..ServerOptions::default() }
}

/// A server with a file of tokens, which the test may change; and the file.
pub(crate) async fn serve_file(
    text: &str,
    change: impl FnOnce(&mut ServerOptions),
) -> (SocketAddr, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    let tokens = Some(Tokens::of_file(file.path()).unwrap());
    let mut options = ServerOptions { access: Access { tokens, jwt: None }, ..ServerOptions::default() };
    change(&mut options);
    (serve(options).await, file)
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    /// Of all that came over a connection, the first answer; `None` when it was closed without one.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_lowercase(), value.trim().to_owned())
        };
        Some(Self { status, fields: lines.map(field).collect(), body: body.to_owned() })
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// Sends bytes, and gives what comes until the server closes the connection.
pub(crate) async fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    over(&mut stream, bytes).await
}

pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: impl AsRef<[u8]>,
) -> String {
    // A server that has heard enough closes.
    let _ = timeout(SOON, stream.write_all(bytes.as_ref())).await.expect("the server reads");
    let mut read = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut read)).await.expect("the server closes");
    String::from_utf8_lossy(&read).into_owned()
}

/// A request that closes its connection.
pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> String {
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("Host: localhost\r\n");
    }
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n" + body
}

pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> Answer {
    Answer::of(&raw(address, request(method, path, fields, body)).await).expect("an answer")
}

/// With a bearer token.
pub(crate) async fn ask_as(address: SocketAddr, token: &str, path: &str, body: &str) -> Answer {
    let method = if body.is_empty() { "GET" } else { "POST" };
    ask(address, method, path, &[("Authorization", &format!("Bearer {token}"))], body).await
}

/// A new claim id.
pub(crate) fn id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The question for a lock that is given up at once if it is taken.
pub(crate) fn acquire(name: &str, id: &str) -> String {
    serde_json::json!({ "name": name, "claim": id, "entry": "try" }).to_string()
}

/// Whether the server still gives a lock to somebody who does nothing wrong.
pub(crate) async fn is_well(address: SocketAddr) {
    let answer = ask(address, "POST", "/v1/honest/acquire", &[], &acquire(&id(), &id())).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains(r#""outcome":"granted""#), "{answer:?}");
}
