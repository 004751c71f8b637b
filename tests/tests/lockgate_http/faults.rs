//! What lockgate's server does wrong and ours does not, by the numbers of our list of its faults. The missing numbers are
//! faults of its clients and of its Kubernetes store.

use windlass::{Mode, connect};
use windlass_tests::place::block_on;

use crate::{
    acquire, attempt,
    raw::{
        ALREADY_LEASED, DONE, NO_LEASE, SHOULD_WAIT, Server, exclusive, of_handle, pause, shared, uuid_of,
    },
    until_waiters, waiters,
};

/// Fault 1: who took over an expired shared lease was taken for shared itself.
/// Fault 4: shared holders had one expiry, so one that lived kept the dead alive.
#[test]
fn dead_readers_end_each_by_its_own_ttl_and_the_writer_after_them_is_alone() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let grant = || uuid_of(&server.post("acquire", &shared("lock")).1);
    let (_dead, alive) = (grant(), grant());
    let writer = exclusive("lock", "writer");
    assert_eq!(server.post("acquire", &writer).1, SHOULD_WAIT);
    // One lives on until the other is dead.
    let holders = || block_on(locker.list("lock")).unwrap()[0].holders.len();
    let ended = (0..20).any(|_| {
        assert_eq!(server.post("renew-lease", &of_handle(&alive, "lock")).1, DONE);
        assert_eq!(server.post("acquire", &writer).1, SHOULD_WAIT);
        pause(1000);
        holders() == 1
    });
    assert!(ended, "the dead holder is kept alive by the other's renewals");
    assert_eq!(server.post("release", &of_handle(&alive, "lock")).1, DONE);
    let uuid = uuid_of(&server.post("acquire", &writer).1);
    assert_eq!(uuid.len(), 36, "the writer has waited for it");
    assert_eq!(server.post("acquire", &shared("lock")).1, SHOULD_WAIT, "a reader beside the writer");
    assert_eq!(block_on(locker.list("lock")).unwrap()[0].holders[0].mode, Mode::Exclusive);
    assert!(attempt(&locker, true).is_none());
}

/// Fault 2: of two who asked at once, one could be told of a lease that nobody had.
#[test]
fn of_those_who_ask_at_once_one_has_the_lock_and_keeps_it() {
    let server = Server::new();
    for round in 0..20 {
        let name = format!("lock-{round}");
        let answers: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..8).map(|_| scope.spawn(|| server.post("acquire", &exclusive(&name, "")).1)).collect();
            all.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        let granted: Vec<_> = answers.iter().filter(|answer| *answer != SHOULD_WAIT).collect();
        assert_eq!(granted.len(), 1, "{answers:?}");
        assert_eq!(server.post("renew-lease", &of_handle(&uuid_of(granted[0]), &name)).1, DONE);
    }
}

/// Fault 3: shared holders had one uuid, so one that released twice ended another's lease.
#[test]
fn releasing_twice_ends_nobody_elses_lease() {
    let server = Server::new();
    let grant = || uuid_of(&server.post("acquire", &shared("lock")).1);
    let (one, other) = (grant(), grant());
    assert_ne!(one, other);
    let of = |what, uuid| server.post(what, &of_handle(uuid, "lock")).1;
    assert_eq!(of("release", &one), DONE);
    assert_eq!(of("release", &one), ALREADY_LEASED);
    assert_eq!(of("renew-lease", &other), DONE);
    assert_eq!(of("release", &other), DONE);
    assert_eq!(of("release", &other), NO_LEASE);
}

/// Fault 5: readers came in past a writer that waited.
#[test]
fn readers_do_not_overtake_a_writer() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let first = uuid_of(&server.post("acquire", &shared("lock")).1);
    assert_eq!(server.post("acquire", &exclusive("lock", "writer")).1, SHOULD_WAIT);
    assert_eq!(server.post("acquire", &shared("lock")).1, SHOULD_WAIT);
    assert!(attempt(&locker, true).is_none());
    server.post("release", &of_handle(&first, "lock"));
    assert_eq!(uuid_of(&server.post("acquire", &exclusive("lock", "writer")).1).len(), 36);
}

/// Fault 6: it never forgot a name.
#[test]
fn a_name_that_nobody_holds_is_forgotten() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    for round in 0..50 {
        let name = format!("lock-{round}");
        let uuid = uuid_of(&server.post("acquire", &exclusive(&name, "a")).1);
        assert_eq!(server.post("acquire", &exclusive(&name, "")).1, SHOULD_WAIT);
        server.post("release", &of_handle(&uuid, &name));
    }
    assert!(block_on(locker.list("")).unwrap().is_empty());
}

/// Fault 10: no limits, no tokens, and no way to see who holds what.
#[test]
fn there_are_limits_and_who_holds_is_seen() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let name = |length| exclusive(&"x".repeat(length), "");
    assert!(server.post("acquire", &name(1024)).1.ends_with(r#""err":""}"#));
    let holders = block_on(locker.list("xxx")).unwrap().remove(0).holders;
    assert!(holders[0].fencing_token > 0 && holders[0].owner.owner == "lockgate");
    for (too_long, of) in
        [(name(1025), "1,024"), (name(0), "empty"), (exclusive("x", &"x".repeat(1025)), "1,024")]
    {
        let (status, answer) = server.post("acquire", &too_long);
        assert!(status == 200 && answer.contains(of), "{answer}");
    }
    // The server may end the connection before it has read all.
    assert_eq!(server.post("acquire", &name(300_000)).0, 413);
}

/// Fault 12, as far as it is the server's: no request waits behind those that are held open.
#[test]
fn renewals_do_not_wait_behind_waiters() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let uuid = uuid_of(&server.post("acquire", &exclusive("lock", "")).1);
    for id in 0..50 {
        assert_eq!(server.post("acquire", &exclusive("lock", &id.to_string())).1, SHOULD_WAIT);
    }
    assert_eq!(waiters(&locker).len(), 50);
    pause(2000);
    let held_open: Vec<_> = (0..50)
        .map(|id| server.send("POST", &server.path("acquire"), &exclusive("lock", &id.to_string())))
        .collect();
    assert_eq!(server.post("renew-lease", &of_handle(&uuid, "lock")).1, DONE);
    drop(held_open);
    until_waiters(&locker, 0);
    assert_eq!(server.post("release", &of_handle(&uuid, "lock")).1, DONE);
    assert!(acquire(&locker, false).is_held());
}
