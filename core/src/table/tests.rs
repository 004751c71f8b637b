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
        keep: Duration::ZERO,
        only_here: false,
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

#[test]
fn force_takes_the_grant_that_is_named_or_all() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    for id in 1..=3 {
        let _ = table.acquire(Millis(0), &ask("a", id, Mode::Shared), Origin(0), &mut effects);
    }
    let tokens = |table: &Table| -> Vec<u64> {
        table.status(Millis(0), "").iter().flat_map(|lock| &lock.holders).map(|h| h.fencing_token).collect()
    };
    let [first, second, third] = tokens(&table)[..] else { panic!("three hold") };
    let name = "a".parse().unwrap();
    let taken = table.force_release(Millis(1), &name, Some(second), &mut effects);
    assert_eq!((taken.len(), taken[0].fencing_token), (1, second));
    assert_eq!(tokens(&table), [first, third]);
    assert_eq!(table.force_release(Millis(1), &name, Some(second), &mut effects), []);
    assert_eq!(table.force_release(Millis(1), &name, None, &mut effects).len(), 2);
    assert!(table.is_empty());
}

#[test]
fn a_stolen_permit_takes_the_longest_held_and_no_more_than_needed() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let permit = Mode::Permit(2.try_into().unwrap());
    for id in 1..=2 {
        let _ = table.acquire(Millis(0), &ask("a", id, permit), Origin(0), &mut effects);
    }
    let steal = |id| Ask { entry: Entry::Steal, ..ask("a", id, permit) };
    let _ = table.acquire(Millis(1), &steal(3), Origin(0), &mut effects);
    let held = |table: &mut Table| -> Vec<u128> {
        (1..=4).filter(|&id| table.renew(Millis(2), &claim("a", id), Origin(0)).is_some()).collect()
    };
    assert_eq!(held(&mut table), [2, 3]);
    table.release(Millis(2), &claim("a", 2), &mut effects);
    let _ = table.acquire(Millis(2), &steal(4), Origin(0), &mut effects);
    assert_eq!(held(&mut table), [3, 4], "there was room");
}

#[test]
fn people_see_who_holds_and_who_waits_and_for_how_long() {
    let (mut table, mut effects) = (Table::new(RULES), Vec::new());
    let _ = table.acquire(Millis(0), &ask("a", 1, Mode::Exclusive), Origin(0), &mut effects);
    let _ = table.acquire(Millis(3), &ask("a", 2, Mode::Shared), Origin(0), &mut effects);
    let status = table.status(Millis(10), "");
    let waiters: Vec<_> = status[0].waiters.iter().map(|w| (w.mode, w.waited_for)).collect();
    assert_eq!(waiters, [(Mode::Shared, Some(Duration::from_millis(7)))]);
    let holders: Vec<_> = status[0].holders.iter().map(|h| (h.mode, h.held_for)).collect();
    assert_eq!(holders, [(Mode::Exclusive, Some(Duration::from_millis(10)))]);
}
