//! What is special about locks in files: the files themselves, other programs that lock them, and processes that die.
#![cfg(all(feature = "file", target_os = "linux"))]

#[path = "file/support.rs"]
mod support;

use std::time::Duration;

use support::{Party, exclusive, scratch, shared};
use windlass::ask::Entry;

#[tokio::test]
async fn a_claim_waits_for_another_and_gets_a_greater_token() {
    let dir = scratch();
    let party = Party::open(dir.path());
    let first = party.take(&exclusive("a", 1)).await;
    let second = exclusive("a", 2);
    let waiting = party.start(&second);
    assert!(party.try_take(&exclusive("a", 3)).await.is_none());
    party.release(1, "a").await;
    let second = waiting.await.unwrap();
    assert!(second.fencing_token > first.fencing_token);
    assert!(party.try_take(&exclusive("a", 3)).await.is_none());
    party.release(2, "a").await;
    let third = party.try_take(&exclusive("a", 3)).await.unwrap();
    assert!(third.fencing_token > second.fencing_token);
}

#[tokio::test]
async fn readers_share_and_a_waiting_writer_stops_later_ones() {
    let dir = scratch();
    let party = Party::open(dir.path());
    party.take(&shared("a", 1)).await;
    party.take(&shared("a", 2)).await;
    let writer = party.start(&exclusive("a", 3));
    assert!(party.try_take(&shared("a", 4)).await.is_none());
    let reader = party.start(&shared("a", 5));
    party.release(1, "a").await;
    party.release(2, "a").await;
    writer.await.unwrap();
    party.release(3, "a").await;
    reader.await.unwrap();
    let _ = (Entry::Queue, Duration::ZERO);
}
