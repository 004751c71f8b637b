//! Our own server, once for all tests of a program, on a free port.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use windlass_server::{Server, Store};

/// The URL of a namespace of its own.
pub fn namespace() -> String {
    static SERVER: OnceLock<String> = OnceLock::new();
    namespace_of(SERVER.get_or_init(|| start(Server::new(Store::in_memory()))))
}

/// That of a server of the test's own.
pub fn namespace_of(server: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{server}/test-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Starts a server, which ends with the test's process, and gives its URL.
#[allow(clippy::disallowed_methods, reason = "the server has threads of its own")]
pub fn start(server: Server) -> String {
    let (tell, address) = mpsc::channel();
    thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            server.serve(listener, std::future::pending()).await.unwrap();
        });
    });
    format!("http://{}", address.recv().unwrap())
}
