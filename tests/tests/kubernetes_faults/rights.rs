//! What rights are needed, and what is said when one is missing.

use std::thread;

use serde_json::json;
use windlass::{ErrorKind, Locker};
use windlass_tests::{
    kubernetes::{LIMITED, RIGHTS},
    place::{acquire, block_on, waits},
    processes::until,
};

use super::{TTL, cluster, locker, nothing_is_left};

/// One who has these rights and no others; they come late, so whoever uses this waits for them.
fn limited(namespace: &str, verbs: &[&str]) -> Locker {
    cluster().allow(namespace, verbs);
    locker(&cluster().url_at(cluster().address(), namespace, LIMITED))
}

fn until_allowed(locker: &Locker) {
    until("the rights", || match block_on(locker.lock("try").try_acquire()) {
        Ok(guard) => guard.map(|guard| block_on(guard.release()).unwrap()).is_some(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            false
        }
    });
}

#[test]
fn these_are_enough() {
    let namespace = cluster().namespace();
    let (one, two) = (limited(&namespace, &RIGHTS), limited(&namespace, &RIGHTS));
    until_allowed(&one);
    let guard = acquire(&one, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, two.lock("lock"));
        assert_eq!(block_on(two.list("")).unwrap()[0].waiters.len(), 1);
        thread::sleep(TTL);
        block_on(guard.release()).unwrap();
        let guard = waiting.join().unwrap();
        block_on(one.force_release("lock", None)).unwrap();
        block_on(guard.lost());
        let held = block_on(one.lock("a/b").upgradable()).unwrap();
        block_on(held.upgrade(TTL)).unwrap();
        let stolen = block_on(two.lock("a/b").steal()).unwrap();
        block_on(held.lost());
        block_on(stolen.release()).unwrap();
    });
    nothing_is_left(cluster(), &namespace);
}

/// For the annotations of one object there is no need of a right on any other.
#[test]
fn these_are_enough_for_one_object() {
    let namespace = cluster().namespace();
    cluster().url_of_new_configmap(&namespace, "locks");
    let rule = json!({
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["locks"], "verbs": ["get", "watch", "patch"],
    });
    cluster().allow_by(&namespace, &[rule]);
    let url = cluster().url_at(cluster().address(), &namespace, LIMITED);
    let (one, two) = (locker(&url.replace("/leases?", "/configmaps/locks?")), locker(&url));
    until_allowed(&one);
    let guard = acquire(&one, "lock");
    thread::scope(|scope| {
        let waiting = waits(scope, one.lock("lock"));
        thread::sleep(TTL);
        assert_eq!(block_on(one.list("")).unwrap()[0].waiters.len(), 1);
        block_on(guard.release()).unwrap();
        block_on(waiting.join().unwrap().release()).unwrap();
    });
    assert!(cluster().annotations(&namespace, "locks").is_empty());
    // On leases it has none, and on another object neither.
    assert_eq!(block_on(two.lock("lock").timeout(TTL)).unwrap_err().kind(), ErrorKind::Denied);
    let other = locker(&url.replace("/leases?", "/configmaps/other?"));
    let error = block_on(other.lock("lock").timeout(TTL)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(
        error.to_string().contains("get, watch and patch on configmaps, resourceNames: [other]"),
        "{error}"
    );
}

#[test]
fn each_that_is_missing_is_named() {
    for missing in ["create", "get", "patch", "list", "watch", "delete"] {
        let namespace = cluster().namespace();
        let holder = locker(&cluster().url(&namespace));
        let guard = acquire(&holder, "lock");
        let rest: Vec<&str> = RIGHTS.into_iter().filter(|verb| *verb != missing).collect();
        let limited = limited(&namespace, &rest);
        let mut error = None;
        // Some of the rights may not have come yet.
        until("an error that names what is missing", || {
            let said = match missing {
                "list" => block_on(limited.list("")).unwrap_err(),
                "delete" => match block_on(limited.lock("other").try_acquire()) {
                    Ok(Some(other)) => {
                        let error = block_on(other.release()).unwrap_err();
                        block_on(holder.force_release("other", None)).unwrap();
                        error
                    }
                    Ok(None) => return false,
                    Err(error) => error,
                },
                "create" => block_on(limited.lock("other").timeout(TTL)).unwrap_err(),
                _ => block_on(limited.lock("lock").timeout(TTL)).unwrap_err(),
            };
            let named = said.to_string().contains(&format!("cannot {missing} resource"));
            error = Some(said);
            named
        });
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(
            error.to_string().contains("a Role with get, list, watch, create, patch and delete"),
            "{error}"
        );
        guard.check().unwrap();
        drop(guard);
    }
}

/// Whoever loses his rights while he holds is told in time, and the lock is free for others after the TTL.
#[test]
fn rights_that_are_taken_away() {
    let namespace = cluster().namespace();
    let ours = limited(&namespace, &RIGHTS);
    until_allowed(&ours);
    let guard = acquire(&ours, "lock");
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/limited");
    cluster().ask("DELETE", &path, None);
    let next = acquire(&locker(&cluster().url(&namespace)), "lock");
    assert!(!guard.is_held());
    block_on(guard.lost());
    assert!(next.fencing_token() > guard.fencing_token());
    block_on(next.release()).unwrap();
    nothing_is_left(cluster(), &namespace);
}
