//! What the model in `tests/table_model.rs` cannot see: how much room is kept, and what is not moved.

use std::sync::Arc;

use super::*;
use crate::ask::Entry;

const RULES: Rules = Rules { first_token: 7, expires: true, remember: Duration::from_millis(5) };

fn ask(name: &str, id: u128, mode: Mode) -> Ask {
    Ask {
        name: name.parse().unwrap(),
        claim_id: ClaimId::from_u128(id),
        mode,
        entry: Entry::Queue,
        ttl: Duration::from_secs(1),
        owner: Arc::default(),
    }
}

fn claim(name: &str, id: u128) -> Claim {
    Claim { name: name.parse().unwrap(), id: ClaimId::from_u128(id) }
}

#[test]
fn a_peak_of_names_gives_its_room_back() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let names: Vec<String> = (0..10_000).map(|n| format!("lock {n}")).collect();
    for name in &names {
        let _ = table.acquire(Millis(0), &ask(name, 1, Mode::Exclusive), Origin(0), &mut effects);
    }
    let peak = table.records.capacity();
    assert!(peak >= 10_000);
    for name in &names[..8_000] {
        table.release(Millis(0), &claim(name, 1), &mut effects);
    }
    // A map's capacity is not exact once things were removed from it.
    assert!(table.records.capacity() > peak / 2, "no room is moved as long as much of it is used");
    for name in &names[8_000..9_000] {
        table.release(Millis(0), &claim(name, 1), &mut effects);
    }
    let less = table.records.capacity();
    assert!(less < peak / 2 && less > peak / 8, "not all at once: a peak often comes back");
    for name in &names {
        table.release(Millis(0), &claim(name, 1), &mut effects);
    }
    let little = table.records.capacity();
    assert!((ROOM_TO_KEEP / 8..=ROOM_TO_KEEP).contains(&little));
    for name in &names[..100] {
        let _ = table.acquire(Millis(0), &ask(name, 1, Mode::Exclusive), Origin(0), &mut effects);
        table.release(Millis(0), &claim(name, 1), &mut effects);
    }
    assert!(table.records.capacity() > little / 2, "a little room is kept");
    assert!(table.deadlines.is_empty());
    assert_eq!(effects, []);
}

#[test]
fn a_peak_of_ended_claims_gives_its_room_back() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let release = |table: &mut Table, now, ids: std::ops::Range<u128>| {
        ids.for_each(|id| _ = table.release(Millis(now), &claim("a", id), &mut Vec::new()));
    };
    release(&mut table, 0, 0..8_000);
    release(&mut table, 1, 8_000..10_000);
    let peak = table.ended.room();
    assert!(peak >= 10_000);
    table.expire(Millis(4), &mut effects);
    table.expire(Millis(5), &mut effects);
    assert!(table.ended.room() > peak / 2, "no room is moved as long as much of it is used");
    table.expire(Millis(6), &mut effects);
    assert!(table.ended.room() < peak / 2 && table.ended.room() > peak / 8);
    for now in 0..4 {
        table.expire(Millis(7 + now), &mut effects);
    }
    let little = table.ended.room();
    assert!((ROOM_TO_KEEP / 8..=ROOM_TO_KEEP).contains(&little));
    release(&mut table, 10, 0..10);
    table.expire(Millis(15), &mut effects);
    assert!(table.ended.room() > little / 2, "a little room is kept");
    assert_eq!(table.next_deadline(), None);
}

#[test]
fn a_peak_of_claims_on_one_lock_gives_its_room_back() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let _ = table.acquire(Millis(0), &ask("a", 0, Mode::Exclusive), Origin(0), &mut effects);
    for id in 1..=1_000 {
        let _ = table.acquire(Millis(0), &ask("a", id, Mode::Shared), Origin(0), &mut effects);
    }
    assert!(table.records.values().all(|record| record.room().1 >= 1_000));
    table.release(Millis(0), &claim("a", 0), &mut effects);
    let (holders, queue) = table.records.values().next().unwrap().room();
    assert!(holders >= 1_000 && queue <= 32);
    for id in 2..=1_000 {
        table.release(Millis(0), &claim("a", id), &mut effects);
    }
    assert_eq!(table.records.values().next().unwrap().room().0, 1);
}

#[test]
fn a_small_queue_keeps_its_room() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let _ = table.acquire(Millis(0), &ask("a", 0, Mode::Exclusive), Origin(0), &mut effects);
    let _ = table.acquire(Millis(0), &ask("a", 1, Mode::Exclusive), Origin(0), &mut effects);
    table.release(Millis(0), &claim("a", 0), &mut effects);
    assert!(table.records.values().all(|record| record.room().1 > 0));
}

#[test]
fn a_lease_never_gets_shorter() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let _ = table.acquire(Millis(10), &ask("a", 0, Mode::Exclusive), Origin(0), &mut effects);
    // The caller's clock is monotonic; if it is not after all, nobody loses by it.
    assert!(table.renew(Millis(3), &claim("a", 0), Origin(0)).is_some());
    assert_eq!(table.next_deadline(), Some(Millis(1010)));
}
