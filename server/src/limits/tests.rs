use windlass::{ClaimId, Mode, ask::Term, time::Moment};

use super::*;
use crate::parked::GRACE;

fn ledger(limits: Limits) -> (Arc<Ledger>, Arc<str>) {
    (Arc::new(Ledger::new(limits, None)), "team-a".into())
}

fn claim(id: u128) -> Claim {
    Claim { name: format!("lock-{id}").parse().unwrap(), id: ClaimId::from_u128(id) }
}

fn asker(account: &Arc<Account>) -> Asker<'_> {
    Asker { account, most_claims: None, owner: "", keep: GRACE }
}

fn grant() -> Grant {
    let moment = Moment { boot: Duration::ZERO, wall: Duration::ZERO };
    let lease = Some(Term { counted_from: moment, ttl: Duration::from_secs(10) });
    Grant { fencing_token: 1, mode: Mode::Exclusive, lease }
}

#[test]
fn one_who_has_enough_disturbs_nobody() {
    let (ledger, space) = ledger(Limits { claims_each: 2, claims: 3, ..Limits::default() });
    let (ann, bob) = (Arc::new(Account::default()), Arc::new(Account::default()));
    let _held = ledger.begin(asker(&ann), &space, &[claim(1), claim(2)]).unwrap();
    let refused = ledger.begin(asker(&ann), &space, &[claim(3)]).err().unwrap();
    assert_eq!(refused, TooMany::OfOne("claims", 2));
    // Asking again for the same is no more.
    let _again = ledger.begin(asker(&ann), &space, &[claim(1)]).unwrap();
    let one = ledger.begin(asker(&bob), &space, &[claim(4)]).unwrap();
    // All or nothing.
    assert!(ledger.begin(asker(&bob), &space, &[claim(4), claim(5)]).is_err());
    assert_eq!(ledger.count(), (3, 0));
    drop(one);
    let few = Asker { most_claims: Some(0), ..asker(&bob) };
    assert!(ledger.begin(few, &space, &[claim(6)]).is_err());
}

#[test]
fn what_ends_is_struck_out() {
    let (ledger, space) = ledger(Limits::default());
    let ann = Arc::new(Account::default());
    let begin = |id| ledger.begin(asker(&ann), &space, &[claim(id)]).unwrap();
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    begin(1).granted("ann", [&grant()]);
    begin(2).take_back();
    begin(3).granted("ann", [&grant()]);
    let waiting = begin(4);
    waiting.waits().unwrap();
    assert_eq!(ledger.count(), (3, 1));
    ledger.released("ann", &space, &[claim(3), claim(5)]);
    assert_eq!(ledger.count(), (2, 1));
    // Nobody speaks for it any more.
    drop(waiting);
    ledger.sweep(later(1));
    assert_eq!(ledger.count(), (2, 1));
    ledger.sweep(later(5));
    assert_eq!(ledger.count(), (1, 0));
    ledger.sweep(later(12));
    assert_eq!(ledger.count(), (0, 0));
    ledger.renewed(&ann, &space, &[claim(7)], &[Renewal::Renewed(grant())]);
    assert_eq!(ledger.count(), (1, 0));
    ledger.renewed(&ann, &space, &[claim(7)], &[Renewal::NotHeld]);
    assert_eq!(ledger.count(), (0, 0));
    assert_eq!((ann.claims.load(Ordering::Relaxed), ann.waiters.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_place_counts_for_as_long_as_it_is_kept() {
    let (ledger, space) = ledger(Limits { waiters_each: 1, ..Limits::default() });
    let ann = Arc::new(Account::default());
    let keeps = Asker { keep: Duration::from_secs(60), ..asker(&ann) };
    let begin = |asker, id| ledger.begin(asker, &space, &[claim(id)]).unwrap();
    let waiting = begin(keeps, 1);
    waiting.waits().unwrap();
    drop(waiting);
    ledger.sweep(Instant::now() + Duration::from_secs(55));
    let mut another = begin(asker(&ann), 2);
    assert_eq!(another.waits(), Err(TooMany::OfOne("waiting claims", 1)));
    another.take_back();
    ledger.sweep(Instant::now() + Duration::from_secs(65));
    assert_eq!(ledger.count(), (0, 0));
}

#[test]
fn the_later_request_speaks_for_a_claim() {
    let (ledger, space) = ledger(Limits::default());
    let ann = Arc::new(Account::default());
    let begin = || ledger.begin(asker(&ann), &space, &[claim(1)]).unwrap();
    let (earlier, later) = (begin(), begin());
    later.waits().unwrap();
    drop(earlier);
    ledger.sweep(Instant::now() + Duration::from_secs(60));
    assert_eq!(ledger.count(), (1, 1));
    later.granted("ann", [&grant()]);
    assert_eq!(ledger.count(), (1, 0));
    // Asked again after its answer was lost; what the request leaves behind does not end what is held.
    drop(begin());
    assert_eq!(ledger.count(), (1, 0));
    let mut again = begin();
    again.take_back();
    assert_eq!(ledger.count(), (1, 0));
}

#[test]
fn waiters_are_counted_apart() {
    let (ledger, space) = ledger(Limits { waiters_each: 1, ..Limits::default() });
    let ann = Arc::new(Account::default());
    let begin = |id| ledger.begin(asker(&ann), &space, &[claim(id)]).unwrap();
    let first = begin(1);
    first.waits().unwrap();
    first.waits().unwrap();
    let mut second = begin(2);
    assert_eq!(second.waits(), Err(TooMany::OfOne("waiting claims", 1)));
    second.take_back();
    assert_eq!(ledger.count(), (1, 1));
}
