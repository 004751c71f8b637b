//! What others do with the objects.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use windlass::{
    ErrorKind, LostReason, Mode,
    ask::{Ask, Renewal},
    open_backend,
    rt::Native,
};
use windlass_tests::{
    kubernetes::{configmaps, leases},
    place::{acquire, ask, block_on, waits},
    processes::until,
};

use super::{SLACK, TTL, cluster, locker, locker_with, nothing_is_left};

/// Whoever is told of a loss hears it at once, and not at the next renewal, which is after a third of this.
const LONG: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn a_deleted_object_is_a_release_by_force() {
    let namespace = cluster().namespace();
    let url = cluster().url(&namespace);
    let (ours, other) = (locker_with(&url, LONG), locker(&url));
    let (guard, kept) = (acquire(&ours, "lock"), acquire(&ours, "kept"));
    thread::scope(|scope| {
        let waiting = waits(scope, other.lock("lock"));
        cluster().ask("DELETE", &(leases(&namespace) + "/lock"), None);
        let deleted = Instant::now();
        assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
        assert!(deleted.elapsed() < AT_ONCE, "after {:?}", deleted.elapsed());
        // The queue is gone with it; who waited stands in line anew.
        let next = waiting.join().unwrap();
        assert!(next.fencing_token() > guard.fencing_token());
        block_on(next.release()).unwrap();
    });
    kept.check().unwrap();
    block_on(kept.release()).unwrap();
    nothing_is_left(cluster(), &namespace);
}

/// `kubectl` shows who holds a lock, and what others write beside it stays.
#[test]
fn an_object_is_fit_for_people() {
    let namespace = cluster().namespace();
    let ours = locker(&cluster().url(&namespace));
    let guard = block_on(ours.lock("nightly-job").owner("ann@host:1")).unwrap();
    let path = leases(&namespace) + "/nightly-job";
    let lease = cluster().ask("GET", &path, None);
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap();
    assert!(holder.starts_with("ann@host:1 #"), "{lease}");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 2);
    cluster().ask("PATCH", &path, Some(&json!({"metadata": {"labels": {"of": "somebody"}}})));
    let renewed = &lease["spec"]["renewTime"];
    until("a renewal", || cluster().ask("GET", &path, None)["spec"]["renewTime"] != *renewed);
    let lease = cluster().ask("GET", &path, None);
    assert_eq!(lease["metadata"]["labels"]["of"], "somebody");
    guard.check().unwrap();
    // No text of it is a claim id: a ticket has the id.
    let ticket = guard.detach().unwrap();
    let text = lease.to_string();
    assert!(!text.contains(ticket.reveal().split(':').nth(1).unwrap()));
    block_on(ours.release(&ticket)).unwrap();
    nothing_is_left(cluster(), &namespace);
}

/// What is released under another name is another claim, whatever its id.
#[test]
fn an_id_is_of_one_lock() {
    let namespace = cluster().namespace();
    let client = open_backend(&cluster().url(&namespace), Arc::new(Native)).unwrap();
    let held = ask("lock", Mode::Exclusive);
    block_on(client.acquire(&held, &|_| {})).unwrap().unwrap();
    let elsewhere = Ask { name: "lock/".parse().unwrap(), ..held.clone() };
    block_on(client.release(&[elsewhere.claim()])).unwrap();
    let renewed = block_on(client.renew(&[held.claim()])).unwrap();
    assert!(matches!(renewed[..], [Renewal::Renewed(_)]), "{renewed:?}");
    block_on(client.release(&[held.claim()])).unwrap();
    nothing_is_left(cluster(), &namespace);
}

/// An object that was there before stays, and is free for others.
#[test]
fn an_object_of_others_is_given_back() {
    let namespace = cluster().namespace();
    let ours = locker(&cluster().url(&namespace));
    let lease =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "theirs"}});
    cluster().ask("POST", &leases(&namespace), Some(&lease));
    let (one, two) = (acquire(&ours, "theirs"), block_on(ours.lock("theirs").try_acquire()).unwrap());
    assert!(two.is_none());
    block_on(one.release()).unwrap();
    let [lease] = &cluster().leases(&namespace)[..] else { panic!("it is gone") };
    assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
    assert!(lease["metadata"]["annotations"].is_null(), "{lease}");
    block_on(acquire(&ours, "theirs").release()).unwrap();
}

/// A leader that somebody else elected, in the way of client-go, is waited for while it lives.
#[test]
fn another_holder_is_waited_for() {
    let namespace = cluster().namespace();
    let ours = locker(&cluster().url(&namespace));
    // Of the other one, which renews late where the machine is busy.
    let ttl = 2 * TTL;
    let spec =
        |holder: &str, renewed: &str| json!({"spec": {"holderIdentity": holder, "renewTime": renewed}});
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lock"},
        "spec": {"holderIdentity": "node-1_abc", "leaseDurationSeconds": ttl.as_secs(), "leaseTransitions": 3},
    });
    cluster().ask("POST", &leases(&namespace), Some(&lease));
    let path = leases(&namespace) + "/lock";
    thread::scope(|scope| {
        let waiting = waits(scope, ours.lock("lock"));
        let status = &block_on(ours.list("lock")).unwrap()[0];
        assert_eq!((&*status.holders[0].owner.owner, status.waiters.len()), ("node-1_abc", 1));
        let start = Instant::now();
        let mut renewed_at = start;
        for second in 0..10 {
            let renewed = format!("2026-01-01T00:00:0{second}.000000Z");
            renewed_at = Instant::now();
            cluster().ask("PATCH", &path, Some(&spec("node-1_abc", &renewed)));
            thread::sleep(TTL / 4);
        }
        assert!(start.elapsed() > ttl && !waiting.is_finished(), "it lived all the time");
        let guard = waiting.join().unwrap();
        let took = renewed_at.elapsed();
        assert!(took >= ttl && took < ttl + SLACK, "after {took:?}");
        let lease = cluster().ask("GET", &path, None);
        assert_eq!(lease["spec"]["leaseTransitions"], 4, "{lease}");
        // It comes back and does not look: ours is told.
        cluster().ask("PATCH", &path, Some(&spec("node-1_abc", "2026-01-01T00:01:00.000000Z")));
        block_on(guard.lost());
        // It gives up, as client-go does, and whoever waits is let in at once.
        let waiting = waits(scope, ours.lock("lock"));
        cluster().ask("PATCH", &path, Some(&spec("", "2026-01-01T00:01:01.000000Z")));
        let freed = Instant::now();
        block_on(waiting.join().unwrap().release()).unwrap();
        assert!(freed.elapsed() < AT_ONCE, "after {:?}", freed.elapsed());
    });
}

#[test]
fn a_damaged_object_is_said() {
    let namespace = cluster().namespace();
    let ours = locker(&cluster().url(&namespace));
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "lock", "annotations": {"windlass/lock": "{\"holders\":7}"}},
    });
    cluster().ask("POST", &leases(&namespace), Some(&lease));
    let error = block_on(ours.lock("lock").timeout(TTL)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains("kubectl delete lease lock"), "{error}");
    // Others are not harmed.
    let guard = acquire(&ours, "a/b");
    assert_eq!(block_on(ours.list("")).unwrap().len(), 1);
    // Without what stood in it the name of this one says nothing.
    let all = cluster().leases(&namespace);
    let hashed =
        all.iter().find_map(|lease| lease["metadata"]["name"].as_str().filter(|name| *name != "lock"));
    let nothing = json!({"metadata": {"annotations": {"windlass/lock": null}}});
    cluster().ask("PATCH", &format!("{}/{}", leases(&namespace), hashed.unwrap()), Some(&nothing));
    let error = block_on(locker(&cluster().url(&namespace)).lock("a/b").timeout(TTL)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains(&format!("kubectl delete lease {}", hashed.unwrap())), "{error}");
    drop(guard);
}

/// Two lockers at two locks in one object do not get in each other's way, and what others write beside them stays.
#[test]
fn locks_in_one_object_do_not_conflict() {
    let namespace = cluster().namespace();
    let url = cluster().url_of_new_configmap(&namespace, "locks");
    let path = configmaps(&namespace) + "/locks";
    thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let url = &url;
            scope.spawn(move || {
                let ours = locker(url);
                let mut last = 0;
                for _ in 0..20 {
                    let guard = acquire(&ours, name);
                    assert!(guard.fencing_token() > last);
                    last = guard.fencing_token();
                    block_on(guard.release()).unwrap();
                }
            });
        }
        for n in 0..20 {
            let patch = json!({"metadata": {"annotations": {"of-others": n.to_string()}}, "data": {"n": n.to_string()}});
            cluster().ask("PATCH", &path, Some(&patch));
        }
    });
    let left = cluster().annotations(&namespace, "locks");
    assert_eq!(left, [("of-others".to_owned(), "19".to_owned())]);
}

/// An object with locks that is deleted frees them, and who holds one is told; without it there are none.
#[test]
fn a_deleted_object_of_many_locks() {
    let namespace = cluster().namespace();
    let url = cluster().url_of_new_configmap(&namespace, "locks");
    let ours = locker_with(&url, LONG);
    let guard = acquire(&ours, "lock");
    thread::sleep(Duration::from_millis(300));
    cluster().ask("DELETE", &(configmaps(&namespace) + "/locks"), None);
    let deleted = Instant::now();
    assert_eq!(block_on(guard.lost()), LostReason::ForceReleased);
    assert!(deleted.elapsed() < AT_ONCE, "after {:?}", deleted.elapsed());
    let error = block_on(ours.lock("lock").timeout(TTL)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains("there is no locks among the configmaps"), "{error}");
    cluster().url_of_new_configmap(&namespace, "locks");
    let next = acquire(&ours, "lock");
    assert!(next.fencing_token() > guard.fencing_token());
    block_on(next.release()).unwrap();
}

/// The API server takes 256 KiB of annotations; whoever would be too many is told so, and nobody else.
#[test]
fn annotations_that_are_full() {
    let namespace = cluster().namespace();
    let url = cluster().url_of_new_configmap(&namespace, "locks");
    let ours = locker_with(&url, LONG);
    let guard = acquire(&ours, "lock");
    let full = json!({"metadata": {"annotations": {"of-others": "x".repeat(258_000)}}});
    cluster().ask("PATCH", &(configmaps(&namespace) + "/locks"), Some(&full));
    let error = block_on(ours.lock("another").timeout(TTL)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains("no room in its annotations"), "{error}");
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
}
