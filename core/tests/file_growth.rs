//! Neither threads nor descriptors grow. In a process of its own, where no other test has any.
#![cfg(all(feature = "file", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test may"
)]

use std::fs::File;

#[path = "file/support.rs"]
mod support;

use support::{Party, descriptors, exclusive, scratch, shared, threads, until};

#[tokio::test]
async fn threads_and_descriptors_do_not_grow() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let before = (threads(), descriptors());
    for name in 0..300 {
        let name = format!("lock {name}");
        party.take(&exclusive(&name, 1)).await;
        let waiter = party.start(&exclusive(&name, 2));
        party.release(1, &name).await;
        waiter.await.unwrap();
        party.release(2, &name).await;
    }
    until("all is as before", || (threads(), descriptors()) == before);

    // Waiters that give up while another program holds the lock.
    let theirs = File::create(dir.file("a")).unwrap();
    theirs.lock_shared().unwrap();
    for id in 0..1000 {
        party.give_up(&exclusive("a", id)).await;
        assert!(party.try_take(&shared("a", id)).await.is_some(), "and nobody is kept out by it");
        party.release(id, "a").await;
    }
    // One that waits, and one that looks who holds the lock. The file of the one, what the other looks at, and theirs.
    until("few are left", || threads() <= before.0 + 2 && descriptors() <= before.1 + 3);
    theirs.lock().unwrap();
    for id in 0..1000 {
        party.give_up(&shared("a", id)).await;
        party.give_up(&exclusive("a", id)).await;
    }
    until("few are left again", || threads() <= before.0 + 3 && descriptors() <= before.1 + 4);
    // Nobody waits for them any more.
    until("the threads have gone", || threads() == before.0);
    assert_eq!(descriptors(), before.1 + 1, "theirs");
    drop(theirs);

    // Nor do many locks need many threads.
    let theirs: Vec<File> =
        (0..300).map(|name| File::create(dir.file(&format!("their {name}"))).unwrap()).collect();
    theirs.iter().for_each(|file| file.lock().unwrap());
    for name in 0..300 {
        party.give_up(&exclusive(&format!("their {name}"), 1)).await;
    }
    until("the threads have gone", || threads() == before.0);
    assert_eq!(descriptors(), before.1 + theirs.len());
}
