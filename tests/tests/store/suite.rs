//! The conformance suite through a server over the store.

use std::sync::{Arc, OnceLock};

use futures_util::future::LocalBoxFuture;
use windlass::{Backend, Locker, rt::Runtime};
use windlass_server::{Server, Store};
use windlass_tests::{
    conformance, etcd, kubernetes,
    place::{Place, UrlPlace, block_on},
    redis, server,
};

mod over_etcd {
    use super::*;

    fn start() -> OverStore {
        static SERVER: OnceLock<String> = OnceLock::new();
        OverStore::of(SERVER.get_or_init(|| server_over(etcd())))
    }

    conformance!(start);
}

mod over_redis {
    use super::*;

    fn start() -> OverStore {
        static SERVER: OnceLock<String> = OnceLock::new();
        OverStore::of(SERVER.get_or_init(|| server_over(redis())))
    }

    conformance!(start);
}

mod over_kubernetes {
    use super::*;

    fn start() -> OverStore {
        static SERVER: OnceLock<String> = OnceLock::new();
        OverStore::of(SERVER.get_or_init(|| server_over(kubernetes())))
    }

    conformance!(start);
}

/// One of the stores of all tests of this program.
pub(crate) fn etcd() -> &'static str {
    static STORE: OnceLock<(etcd::Cluster, String)> = OnceLock::new();
    let (_, url) = STORE.get_or_init(|| {
        let etcd = etcd::Setup::new(etcd::Release::Debian).start();
        let url = etcd.url("locks");
        (etcd, url)
    });
    url
}

pub(crate) fn redis() -> &'static str {
    static STORE: OnceLock<(redis::Server, String)> = OnceLock::new();
    let (_, url) = STORE.get_or_init(|| {
        let redis = redis::Setup::new(redis::Release::Debian).start();
        let url = redis.url(0);
        (redis, url)
    });
    url
}

pub(crate) fn kubernetes() -> &'static str {
    static STORE: OnceLock<String> = OnceLock::new();
    // All clients of these tests go through two servers.
    STORE.get_or_init(|| cluster().url(&cluster().namespace()) + "&qps=1000")
}

pub(crate) fn cluster() -> &'static kubernetes::Cluster {
    static CLUSTER: OnceLock<kubernetes::Cluster> = OnceLock::new();
    CLUSTER.get_or_init(kubernetes::Cluster::start)
}

fn server_over(store: &str) -> String {
    server::start(Server::new(Store::shared(store).unwrap()))
}

/// A place whose clients have heard what the server's store can do, as they do with any first answer.
#[derive(Debug)]
struct OverStore(UrlPlace);

impl OverStore {
    fn of(server: &str) -> Self {
        Self(UrlPlace { url: server::namespace_of(server), folder: None })
    }
}

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
