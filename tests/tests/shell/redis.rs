//! Of Redis alone.

use std::{
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use windlass_tests::{
    etcd::{PASSWORD, PASSWORD_IN_URL},
    redis::{Release, Server, Setup, of_locks},
    server_process::port_to_keep,
};

use super::{Here, is_ended_when_the_store_is_gone, is_said, the_password_is_taken_from_beside_the_url};

pub(crate) fn here() -> Here {
    static REDIS: OnceLock<Server> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let redis = REDIS.get_or_init(|| Setup::new(Release::Debian).start());
    let database = NEXT.fetch_add(1, Ordering::Relaxed);
    Here::new(redis.url(database), move || of_locks(redis.keys(database)))
}

#[test]
fn a_holder_whose_redis_is_gone_is_ended() {
    let mut redis = Setup::new(Release::Debian).start();
    let here = Here::new(redis.url(0), Vec::new);
    is_ended_when_the_store_is_gone(&here, || redis.kill());
    redis.start_again();
    let mut run = here.command(&["run", "job", "--timeout", "30s", "true"]);
    assert_eq!(run.stderr(Stdio::null()).status().unwrap().code(), Some(0));
}

#[test]
fn a_lock_is_stolen() {
    let here = here();
    let mut holder = here.hold("job", &[]);
    let mut thief = here.hold("job", &["--steal"]);
    assert!(thief.token > holder.token);
    assert_eq!(holder.program.status(), Some(79));
    assert!(here.said(&holder).contains("another claim took it over"), "{}", here.said(&holder));
    thief.ends_well();
    here.is_empty();
}

#[test]
fn what_cannot_be_is_said() {
    let (here, guarded) = (here(), Setup::new(Release::Debian).acl().start());
    let (guarded, password) = (guarded.address(), PASSWORD_IN_URL);
    let nobody = format!("127.0.0.1:{}", port_to_keep());
    let cases = [
        (format!("redis://app:hunter2@{nobody}"), 69, "cannot reach"),
        (format!("redis://app:hunter2@{guarded}"), 77, "password"),
        (format!("redis://{guarded}"), 77, "give a user and password"),
        (format!("redis://narrow:{password}@{guarded}"), 77, "no right"),
        (format!("redis://app@{guarded}"), 64, "WINDLASS_PASSWORD"),
    ];
    is_said(&here, &cases, &["hunter2", PASSWORD, PASSWORD_IN_URL]);
    the_password_is_taken_from_beside_the_url(&here, format!("redis://app@{guarded}"), PASSWORD);
}
