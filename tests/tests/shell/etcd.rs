//! Of etcd alone.

use std::{process::Stdio, sync::OnceLock};

use windlass_tests::{
    etcd::{Cluster, PASSWORD, PASSWORD_IN_URL, Release, Setup},
    server_process::port_to_keep,
};

use super::{
    Here, is_ended_when_the_store_is_gone, is_said, next, the_password_is_taken_from_beside_the_url,
};

fn etcd() -> &'static Cluster {
    static ETCD: OnceLock<Cluster> = OnceLock::new();
    ETCD.get_or_init(|| Setup::new(Release::Debian).start())
}

pub(crate) fn here() -> Here {
    let prefix = format!("shell-{}", next());
    let foreign = etcd().etcdctl_command(&["lock", &format!("/{prefix}/counter"), "--"]);
    let here = Here::new(etcd().url(&prefix), move || etcd().keys(&prefix));
    Here { foreign: Some(foreign), ..here }
}

#[test]
fn a_holder_whose_etcd_is_gone_is_ended() {
    let mut etcd = Setup::new(Release::Debian).start();
    let here = Here::new(etcd.url("shell"), Vec::new);
    is_ended_when_the_store_is_gone(&here, || etcd.kill(0));
    etcd.start_again(0);
    // Its lease is there again with it.
    let mut run = here.command(&["run", "job", "--timeout", "30s", "true"]);
    assert_eq!(run.stderr(Stdio::null()).status().unwrap().code(), Some(0));
}

#[test]
fn nothing_is_stolen_there() {
    let here = here();
    let mut holder = here.hold("job", &[]);
    let (status, said) = here.run(&["run", "job", "--steal", "true"]);
    assert_eq!(status, Some(64), "{said}");
    assert!(said.contains("cannot do steal"), "{said}");
    holder.ends_well();
    here.is_empty();
}

#[test]
fn what_cannot_be_is_said() {
    let (here, guarded) = (here(), Setup::new(Release::Debian).auth().start());
    let (guarded, open) = (guarded.address(0), etcd().address(0));
    let (nobody, password) = (format!("127.0.0.1:{}", port_to_keep()), PASSWORD_IN_URL);
    let cases = [
        (format!("etcd://app:hunter2@{nobody}/app"), 69, "cannot connect"),
        (format!("etcd://app:hunter2@{guarded}/app"), 77, "refuses the user or its password"),
        (format!("etcd://{guarded}/app"), 77, "give a user and password"),
        (format!("etcd://app:{password}@{guarded}/other"), 77, "no right to read"),
        (format!("etcd://app:{password}@{open}/app"), 77, "authentication is not enabled"),
        (format!("etcd://app@{guarded}/app"), 64, "WINDLASS_PASSWORD"),
    ];
    is_said(&here, &cases, &["hunter2", PASSWORD, PASSWORD_IN_URL]);
    the_password_is_taken_from_beside_the_url(&here, format!("etcd://app@{guarded}/app"), PASSWORD);
}
