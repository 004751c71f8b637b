use std::sync::Arc;

use super::*;
use crate::ask::Entry;

const START: Moment = Moment { boot: Duration::from_secs(1_000), wall: Duration::from_secs(1_700_000_000) };
const FORGET: Duration = Duration::from_secs(18);

fn ask(id: u128, mode: Mode) -> Ask {
    Ask {
        name: "lock".parse().unwrap(),
        claim_id: ClaimId::from_u128(id),
        mode,
        entry: Entry::Queue,
        ttl: Duration::from_secs(10),
        owner: Arc::default(),
        keep: Duration::ZERO,
        only_here: false,
    }
}

fn after(seconds: u64) -> Moment {
    START.plus(Duration::from_secs(seconds))
}

fn uuid(text: &str) -> Uuid {
    text.into()
}

/// Those who asked in this order.
fn line(ids: &[u128]) -> (Book, Vec<Claim>) {
    let mut book = Book::default();
    let asks: Vec<Ask> = ids.iter().map(|id| ask(*id, Mode::Exclusive)).collect();
    for ask in &asks {
        book.enroll(ask);
    }
    (book, asks.iter().map(Ask::claim).collect())
}

#[test]
fn the_head_alone_asks_and_once_at_a_time() {
    let (mut book, claims) = line(&[1, 2]);
    assert!(matches!(book.turn(&claims[1]), Turn::Listen));
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
    assert!(matches!(book.turn(&claims[0]), Turn::Listen), "its request is under way");
    assert!(book.asked(&claims[0], Some(&uuid("a")), START));
    assert!(matches!(book.turn(&claims[0]), Turn::Held));
    assert!(matches!(book.turn(&claims[1]), Turn::Ask), "the next one of the line");
}

#[test]
fn asked_again_a_claim_has_the_place_it_had() {
    let (mut book, claims) = line(&[1, 2]);
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
    assert!(book.asked(&claims[0], None, START));
    book.enroll(&ask(1, Mode::Exclusive));
    assert!(matches!(book.turn(&claims[1]), Turn::Listen));
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
}

#[test]
fn what_a_claim_gets_that_was_called_off_is_not_wanted() {
    let (mut book, claims) = line(&[1, 2]);
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
    assert!(matches!(book.end(&claims[0], START), End::UnderWay(_)));
    assert!(!book.asked(&claims[0], Some(&uuid("a")), START), "to be given back");
    assert!(matches!(book.turn(&claims[1]), Turn::Listen), "until it is");
    book.over(&claims[0], START);
    assert!(matches!(book.end(&claims[0], START), End::Done));
    assert!(matches!(book.turn(&claims[1]), Turn::Ask));
}

#[test]
fn a_bell_that_rang_while_the_head_asked_is_heard() {
    let (mut book, claims) = line(&[1, 2]);
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
    assert!(book.asked(&claims[0], Some(&uuid("a")), START));
    assert!(matches!(book.turn(&claims[1]), Turn::Ask));
    assert!(matches!(book.end(&claims[0], START), End::Release(..)));
    book.ended(&claims[0], Ended::Answered, START, FORGET);
    assert!(book.asked(&claims[1], None, START));
    assert!(book.listen(&claims[1]).is_none(), "it asks again at once");
    assert!(matches!(book.turn(&claims[1]), Turn::Ask));
    assert!(book.asked(&claims[1], None, START));
    assert!(book.listen(&claims[1]).is_some());
}

#[test]
fn a_release_in_doubt_is_never_sent_again_and_one_not_sent_is() {
    for (ended, again) in [(Ended::InDoubt, false), (Ended::Again, true)] {
        let (mut book, claims) = line(&[1]);
        assert!(matches!(book.turn(&claims[0]), Turn::Ask));
        assert!(book.asked(&claims[0], Some(&uuid("a")), START));
        assert!(matches!(book.end(&claims[0], START), End::Release(..)));
        assert!(matches!(book.end(&claims[0], START), End::UnderWay(_)), "once at a time");
        book.ended(&claims[0], ended, START, FORGET);
        assert!(book.lease(&claims[0]).is_none(), "nobody renews it");
        assert!(matches!(book.turn(&claims[0]), Turn::Over));
        match book.end(&claims[0], START) {
            End::Release(..) => assert!(again),
            End::InDoubt => assert!(!again),
            _ => panic!("{again}"),
        }
    }
}

#[test]
fn the_right_id_under_another_name_is_not_the_claim() {
    let (mut book, claims) = line(&[1]);
    let elsewhere = Claim { name: "elsewhere".parse().unwrap(), id: claims[0].id };
    assert!(matches!(book.turn(&elsewhere), Turn::Over));
    assert!(matches!(book.end(&elsewhere, START), End::Done));
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
}

#[test]
fn a_place_in_the_servers_queue_outlives_its_claim_and_then_nothing_is_left() {
    let (mut book, claims) = line(&[1]);
    assert!(matches!(book.turn(&claims[0]), Turn::Ask));
    book.queued(&claims[0].name, Some(START));
    assert!(book.asked(&claims[0], None, START));
    assert!(matches!(book.end(&claims[0], after(1)), End::Done));
    assert!(book.is_queued(&claims[0].name, after(10)));
    assert!(!book.is_queued(&claims[0].name, after(11)));
    assert!(!book.is_behind_others(&ask(2, Mode::Exclusive)), "nobody of us waits");
    // Somebody else gives up, much later.
    let other = Ask { name: "other".parse().unwrap(), ..ask(3, Mode::Exclusive) };
    book.enroll(&other);
    book.queued(&other.name, Some(after(20)));
    assert!(matches!(book.end(&other.claim(), after(20)), End::Done));
    assert!(!book.lines.contains_key(&claims[0].name), "a name that nobody waits for");
    assert!(book.claims.is_empty());
}

#[test]
fn releases_that_nobody_asks_about_are_forgotten() {
    let (mut book, claims) = line(&[1, 2]);
    for (claim, now) in claims.iter().zip([START, after(19)]) {
        assert!(matches!(book.turn(claim), Turn::Ask));
        assert!(book.asked(claim, Some(&uuid("a")), now));
        assert!(matches!(book.end(claim, now), End::Release(..)));
        book.ended(claim, Ended::InDoubt, now, FORGET);
    }
    assert_eq!(book.claims.len(), 1);
}
