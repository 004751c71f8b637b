//! The conformance suite over `etcd:`: on one member of Debian's etcd, and on three of the newest with TLS and auth.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::OnceLock;

use windlass_tests::{
    conformance,
    etcd::{Cluster, EtcdPlace, Release, Setup},
};

fn start() -> EtcdPlace {
    static ETCD: OnceLock<Cluster> = OnceLock::new();
    EtcdPlace::new(ETCD.get_or_init(|| Setup::new(Release::Debian).start()))
}

conformance!(start);

mod three_members {
    use super::*;

    fn start() -> EtcdPlace {
        static ETCD: OnceLock<Cluster> = OnceLock::new();
        EtcdPlace::new(ETCD.get_or_init(|| Setup::new(Release::Newest).members(3).tls().auth().start()))
    }

    conformance!(start);
}
