//! The conformance suite over `k8s:`: on Lease objects of a real API server, and in the annotations of an object.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::OnceLock;

use windlass_tests::{
    conformance,
    kubernetes::{Cluster, KubernetesPlace},
};

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

fn start() -> KubernetesPlace {
    KubernetesPlace::new(cluster())
}

conformance!(start);

mod annotations {
    use super::*;

    fn start() -> KubernetesPlace {
        KubernetesPlace::in_annotations(cluster())
    }

    conformance!(start);
}
