//! What etcd does with its disk: compaction, and no more room.

use std::{
    thread,
    time::{Duration, Instant},
};

use windlass::ErrorKind;
use windlass_tests::{
    etcd::{Cluster, Release, Setup},
    place::block_on,
    processes::until,
};

use super::{TTL, acquire, etcd, locker, nothing_is_left, prefix, waits};

/// Watches that are older than what etcd remembers go on, also when their connection breaks.
#[test]
fn compaction_under_a_watch() {
    let prefix = prefix();
    let proxy = windlass_tests::proxy::Proxy::before(etcd().address(0));
    let (ours, other) = (locker(&etcd().url_at(&[proxy.address()], &prefix)), locker(&etcd().url(&prefix)));
    for breaks in [false, true] {
        let guard = acquire(&other, "lock");
        thread::scope(|scope| {
            let waiting = waits(scope, ours.lock("lock"));
            compact(etcd());
            if breaks {
                proxy.reset();
            }
            block_on(guard.release()).unwrap();
            let released = Instant::now();
            block_on(waiting.join().unwrap().release()).unwrap();
            assert!(released.elapsed() < TTL, "after {:?}", released.elapsed());
        });
    }
    nothing_is_left(etcd(), &prefix);
}

/// A full database refuses new claims with an error that says so; what is held stays held, what is released is released.
#[test]
fn a_full_database() {
    let etcd = Setup::new(Release::Newest).options(&["--quota-backend-bytes=4194304"]).start();
    let (prefix, other) = (prefix(), "filling");
    let ours = locker(&etcd.url(&prefix));
    let (kept, guard) = (acquire(&ours, "kept"), acquire(&ours, "lock"));
    let megabyte = "x".repeat(1_000_000);
    let mut n = 0;
    until("the database to be full", || {
        n += 1;
        let put = etcd.etcdctl_command(&["put", &format!("/{other}/{n}")]).arg(&megabyte[..100_000]).output();
        !put.unwrap().status.success()
    });
    let start = Instant::now();
    let error = block_on(ours.lock("new").timeout(Duration::from_secs(20))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    let error = block_on(locker(&etcd.url(&prefix)).lock("new").try_acquire()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    block_on(guard.release()).unwrap();
    assert_eq!(etcd.keys(&prefix).len(), 1, "a release needs no room");
    while start.elapsed() < 2 * TTL {
        kept.check().unwrap();
        thread::sleep(TTL / 10);
    }
    etcd.ctl(&["del", "--prefix", &format!("/{other}/")]);
    compact(&etcd);
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    block_on(acquire(&ours, "new").release()).unwrap();
    block_on(kept.release()).unwrap();
    nothing_is_left(&etcd, &prefix);
}

fn compact(etcd: &Cluster) {
    let said = etcd.ctl(&["get", "no-key", "--write-out=json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    etcd.ctl(&["compact", &said["header"]["revision"].to_string(), "--physical"]);
}
