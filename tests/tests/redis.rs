//! The conformance suite over `redis:` in each of its forms: one server of Debian's, by TLS with rights, over a socket of
//! Valkey's, led to by Sentinels, a Cluster of the newest, and three that know nothing of one another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::OnceLock;

use windlass_tests::{
    conformance,
    redis::{Cluster, RedisPlace, Release, Server, Setup, Watched},
};

fn start() -> RedisPlace {
    static REDIS: OnceLock<Server> = OnceLock::new();
    RedisPlace::database(REDIS.get_or_init(|| Setup::new(Release::Debian).start()))
}

conformance!(start);

mod tls_and_rights {
    use super::*;

    fn start() -> RedisPlace {
        static REDIS: OnceLock<Server> = OnceLock::new();
        RedisPlace::database(REDIS.get_or_init(|| Setup::new(Release::Debian).tls().acl().start()))
    }

    conformance!(start);
}

mod socket_of_valkey {
    use super::*;

    fn start() -> RedisPlace {
        static REDIS: OnceLock<Server> = OnceLock::new();
        RedisPlace::socket(REDIS.get_or_init(|| Setup::new(Release::Valkey).start()))
    }

    conformance!(start);
}

mod sentinels {
    use super::*;

    fn start() -> RedisPlace {
        static REDIS: OnceLock<Watched> = OnceLock::new();
        RedisPlace::watched(REDIS.get_or_init(|| Watched::start(Release::Debian)))
    }

    conformance!(start);
}

mod cluster_of_the_newest {
    use super::*;

    fn start() -> RedisPlace {
        static REDIS: OnceLock<Cluster> = OnceLock::new();
        RedisPlace::cluster(REDIS.get_or_init(|| Cluster::start(Release::Newest)))
    }

    conformance!(start);
}

mod redlock {
    use super::*;

    fn start() -> RedisPlace {
        static REDIS: OnceLock<[Server; 3]> = OnceLock::new();
        let start = || std::array::from_fn(|_| Setup::new(Release::Debian).start());
        RedisPlace::redlock(REDIS.get_or_init(start))
    }

    conformance!(start);
}
