//! What is seen of the server from outside: the files of its page, its numbers, and whether it is ready.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use windlass_server::{Access, Server, ServerOptions, Store, token::Tokens};

const SOON: Duration = Duration::from_secs(20);

async fn serve(store: Store, options: ServerOptions) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::with_options(store, options).unwrap();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await.unwrap() });
    address
}

/// A server that begins to serve, and is gone without a clean stop, with all that it has begun.
fn end_abruptly(directory: &Path) {
    let server = Server::new(Store::in_directory(directory).unwrap());
    let life = move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let serving = server.serve(listener, std::future::pending());
            tokio::time::timeout(Duration::ZERO, serving).await.unwrap_err();
        });
    };
    std::thread::spawn(life).join().unwrap();
}

struct Answer {
    status: u16,
    fields: BTreeMap<String, String>,
    body: String,
}

async fn get(address: SocketAddr, path: &str, fields: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let field = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_owned())
    };
    Answer { status, fields: lines.map(field).collect(), body: body.to_owned() }
}

/// All series with their numbers, once the whole is checked to be what Prometheus reads.
async fn numbers(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = get(address, "/metrics", "").await;
    assert_eq!(
        (answer.status, answer.fields["content-type"].as_str()),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    let (mut all, mut typed) = (BTreeMap::new(), Vec::new());
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, what) = rest.split_once(' ').unwrap();
            assert!(["gauge", "counter", "histogram"].contains(&what), "{line}");
            assert_eq!(what == "counter", name.ends_with("_total"), "{line}");
            assert!(!typed.contains(&name), "{name} twice");
            typed.push(name);
        } else if !line.starts_with("# HELP ") {
            let (series, number) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let is_named = |typed: &&str| {
                name.strip_prefix(*typed).is_some_and(|end| ["", "_bucket", "_sum", "_count"].contains(&end))
            };
            assert!(typed.last().is_some_and(is_named), "{line}");
            assert!(all.insert(series.to_owned(), number.parse().unwrap()).is_none(), "{series} twice");
        }
    }
    for histogram in ["windlass_wait_seconds", "windlass_hold_seconds"] {
        let end = |series: &str| series.split("le=\"").nth(1)?.trim_end_matches("\"}").parse::<f64>().ok();
        let buckets = all.iter().filter(|(series, _)| series.starts_with(&format!("{histogram}_bucket")));
        let mut buckets: Vec<(f64, f64)> =
            buckets.map(|(series, count)| (end(series).unwrap(), *count)).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, all[&format!("{histogram}_count")])));
    }
    all
}

/// Waits until the numbers are these.
async fn become_so(address: SocketAddr, wanted: &[(&str, f64)]) -> BTreeMap<String, f64> {
    let begun = Instant::now();
    loop {
        let all = numbers(address).await;
        let of = |series: &str| all.get(&format!("windlass_{series}")).copied();
        if wanted.iter().all(|(series, number)| of(series) == Some(*number)) {
            return all;
        }
        assert!(begun.elapsed() < SOON, "wanted {wanted:?} of {all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted() {
    let address = serve(Store::in_memory(), ServerOptions::default()).await;
    let all = numbers(address).await;
    assert_eq!(all[&format!("windlass_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))], 1.0);
    for series in ["ready", "connections"] {
        assert_eq!(all[&format!("windlass_{series}")], 1.0, "{series}");
    }
    for series in ["locks_held", "waiters", "namespaces", "clients", "epoch", "grace_seconds", "grants_total"]
    {
        assert_eq!(all[&format!("windlass_{series}")], 0.0, "{series}");
    }

    let locker = windlass::connect(&format!("http://{address}/secret-space")).await.unwrap();
    let other = windlass::connect(&format!("http://{address}/secret-space")).await.unwrap();
    let guard = locker.lock("secret-name").owner("secret-owner").await.unwrap();
    let _shared = locker.lock("shared").shared().await.unwrap();
    let waits = tokio::spawn({
        let other = other.clone();
        async move { other.lock("secret-name").await }
    });
    let now =
        [("locks_held", 2.0), ("holders", 2.0), ("waiters", 1.0), ("namespaces", 1.0), ("clients", 2.0)];
    become_so(address, &now).await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    guard.release().await.unwrap();
    let guard = waits.await.unwrap().unwrap();
    let all = become_so(address, &[("waiters", 0.0), ("grants_total", 3.0), ("releases_total", 1.0)]).await;
    assert_eq!(all["windlass_wait_seconds_bucket{le=\"0.1\"}"], 2.0, "one waited for longer");
    assert!(all["windlass_wait_seconds_sum"] >= 0.1);
    assert_eq!(all["windlass_hold_seconds_count"], 1.0);

    other.force_release("secret-name", None).await.unwrap();
    become_so(
        address,
        &[("losses_total{reason=\"force_released\"}", 1.0), ("losses_total{reason=\"expired\"}", 0.0)],
    )
    .await;
    drop(guard);

    assert_eq!(get(address, "/v1/x/nothing", "").await.status, 404);
    let refused = become_so(address, &[("refusals_total{kind=\"invalid_input\",status=\"404\"}", 1.0)]).await;
    assert_eq!(refused["windlass_refusals_total{kind=\"denied\",status=\"401\"}"], 0.0);
    let text = get(address, "/metrics", "").await.body;
    assert!(!text.contains("secret"), "names are in it: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_has_strict_headers_and_is_cached_by_its_content() {
    let address = serve(Store::in_memory(), ServerOptions::default()).await;
    let files = [
        ("/", "text/html"),
        ("/page/style.css", "text/css"),
        ("/page/page.js", "text/javascript"),
        ("/page/stream.js", "text/javascript"),
    ];
    for (path, media_type) in files {
        let answer = get(address, path, "").await;
        let field = |name: &str| answer.fields[name].as_str();
        assert_eq!(answer.status, 200);
        assert!(field("content-type").starts_with(media_type), "{path}: {}", field("content-type"));
        assert_eq!(
            field("content-security-policy"),
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        assert_eq!(field("x-content-type-options"), "nosniff");
        assert_eq!(field("referrer-policy"), "no-referrer");
        assert_eq!(field("cache-control"), "no-cache");
        let tag = field("etag");
        for known in [tag.to_owned(), format!("\"other\", W/{tag}"), "*".to_owned()] {
            let again = get(address, path, &format!("If-None-Match: {known}\r\n")).await;
            assert_eq!((again.status, again.body.as_str()), (304, ""), "{known}");
            assert_eq!(again.fields["etag"], tag);
        }
        assert_eq!(get(address, path, "If-None-Match: \"other\"\r\n").await.status, 200);
        // The page writes untrusted text: there is one safe way.
        for unsafe_way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "localStorage",
            " style=",
            "onclick=",
        ] {
            assert!(!answer.body.contains(unsafe_way), "{path} has {unsafe_way}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_tokens_shows_the_page_to_all_and_locks_and_numbers_to_those_it_knows() {
    let token = "secret-secret-secret-1";
    let tokens = Some(Tokens::of_text(&format!("{token} ci see team-a/*")).unwrap());
    let options = ServerOptions { access: Access { tokens, jwt: None }, ..ServerOptions::default() };
    let address = serve(Store::in_memory(), options).await;
    for path in ["/", "/page/style.css", "/page/page.js", "/page/stream.js", "/readyz"] {
        assert_eq!(get(address, path, "").await.status, 200, "{path}");
    }
    for path in ["/metrics", "/v1/events", "/v1"] {
        assert_eq!(get(address, path, "").await.status, 401, "{path}");
    }
    let answer = get(address, "/metrics", &format!("Authorization: Bearer {token}\r\n")).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.body.contains("windlass_refusals_total{kind=\"denied\",status=\"401\"} 3\n"),
        "{}",
        answer.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_its_grace_is_not_ready() {
    let directory = std::env::temp_dir().join(format!("windlass-page-{}", std::process::id()));
    end_abruptly(&directory);
    let store = Store::in_directory(&directory).unwrap();
    let grace = store.grace().unwrap();
    let address = serve(store, ServerOptions::default()).await;
    let answer = get(address, "/readyz", "").await;
    assert_eq!((answer.status, answer.fields["content-type"].as_str()), (503, "application/problem+json"));
    assert!(answer.fields["retry-after"].parse::<u64>().unwrap() <= grace.as_secs() + 1);
    let all = numbers(address).await;
    assert_eq!((all["windlass_ready"], all["windlass_epoch"]), (0.0, 2.0));
    assert!(all["windlass_grace_seconds"] > 0.0);
    assert_eq!(get(address, "/healthz", "").await.status, 200, "it is alive");
    become_so(address, &[("ready", 1.0), ("grace_seconds", 0.0)]).await;
    assert_eq!(get(address, "/readyz", "").await.status, 200);
    std::fs::remove_dir_all(directory).unwrap();
}
