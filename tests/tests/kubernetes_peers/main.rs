//! Others in a cluster, and what people start there: lockgate's locker, client-go's leader election, the manifests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, with other programs")]

mod leader;
mod lockgate;
mod manifests;

use std::{sync::OnceLock, time::Duration};

use windlass_tests::kubernetes::Cluster;

/// What a take-over takes beyond a TTL: the time to take up a grant, and a busy machine.
const SLACK: Duration = Duration::from_secs(4);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

/// `windlass`, as a process.
fn program() -> &'static str {
    env!("CARGO_BIN_EXE_windlass-tests-server")
}
