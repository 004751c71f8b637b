//! The conformance suite through a server over the store.

use std::sync::{Arc, OnceLock};

use futures_util::future::LocalBoxFuture;
use windlass::{Backend, Locker, rt::Runtime};
use windlass_server::{Server, Store};
use windlass_tests::{
    conformance,
    etcd::{Cluster, Release, Setup},
    place::{Place, UrlPlace, block_on},
    server,
};

conformance!(start);

/// The store of all tests of this program.
pub(crate) fn store() -> &'static str {
    static STORE: OnceLock<(Cluster, String)> = OnceLock::new();
    let (_, url) = STORE.get_or_init(|| {
        let etcd = Setup::new(Release::Debian).start();
        let url = etcd.url("locks");
        (etcd, url)
    });
    url
}

fn start() -> OverStore {
    static SERVER: OnceLock<String> = OnceLock::new();
    let server = SERVER.get_or_init(|| server::start(Server::new(Store::shared(store()).unwrap())));
    OverStore(UrlPlace { url: server::namespace_of(server), folder: None })
}

/// A place whose clients have heard what the server's store can do, as they do with any first answer.
#[derive(Debug)]
struct OverStore(UrlPlace);

impl Place for OverStore {
    fn client(&self) -> Arc<dyn Backend> {
        let client = self.0.client();
        block_on(client.inspect("")).unwrap();
        client
    }

    fn locker(&self) -> Locker {
        let locker = self.0.locker();
        block_on(locker.list("")).unwrap();
        locker
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.0.runtime()
    }

    fn run(&self, test: LocalBoxFuture<'_, ()>) {
        self.0.run(test);
    }

    fn leftovers(&self) -> Vec<String> {
        self.0.leftovers()
    }
}
