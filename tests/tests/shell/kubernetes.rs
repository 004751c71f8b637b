//! Of Kubernetes alone.

use std::{process::Stdio, sync::OnceLock};

use windlass_tests::{
    kubernetes::{Cluster, LIMITED},
    server_process::port_to_keep,
};

use super::{Here, is_ended_when_the_store_is_gone, is_said};

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

pub(crate) fn here() -> Here {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    Here::new(url, move || {
        let leases = cluster().leases(&namespace);
        leases.iter().map(|lease| lease["metadata"]["name"].to_string()).collect()
    })
}

#[test]
fn a_holder_whose_api_server_is_gone_is_ended() {
    let mut cluster = Cluster::start();
    let here = Here::new(cluster.url("default"), Vec::new);
    is_ended_when_the_store_is_gone(&here, || cluster.kill_apiserver());
    cluster.start_apiserver();
    cluster.until_ready();
    let mut run = here.command(&["run", "job", "--timeout", "30s", "true"]);
    assert_eq!(run.stderr(Stdio::null()).status().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_is_said() {
    let here = here();
    let nobody = ([127, 0, 0, 1], port_to_keep()).into();
    let there = cluster().address();
    let cases = [
        (cluster().url_at(nobody, "default", "hunter2"), 69, "cannot connect to the API server"),
        (cluster().url_at(there, "default", "hunter2"), 77, "does not know who we are"),
        (cluster().url_at(there, "default", LIMITED), 77, "a Role with get, list, watch"),
        ("k8s://default/leases?kubeconfig=/nowhere".to_owned(), 64, "/nowhere is not there"),
    ];
    is_said(&here, &cases, &["hunter2", LIMITED]);
}
