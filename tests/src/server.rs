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
#[allow(clippy::disallowed_methods, reason = "the server has threads of its own")]
pub fn namespace() -> String {
    static SERVER: OnceLock<String> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let server = SERVER.get_or_init(|| {
        let (tell, address) = mpsc::channel();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                Server::new(Store::in_memory()).serve(listener, std::future::pending()).await.unwrap();
            });
        });
        format!("http://{}", address.recv().unwrap())
    });
    format!("{server}/test-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
