//! Who joins what was asked before.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Instant,
};

use tokio::{sync::watch, task::yield_now};
use windlass::{
    Mode,
    ask::{Entry, Owner},
    backend::MemoryStore,
    rt::Native,
    table::Rules,
};

use super::*;
use crate::{space, space::Released, store::Store};

const LONG: Duration = Duration::from_secs(60);

/// In the place of locks: what counts how often it is asked, and grants what the test says.
struct Locks {
    spaces: Arc<Spaces>,
    space: Arc<Space>,
    asked: Arc<AtomicUsize>,
    told: Arc<AtomicUsize>,
    token: watch::Sender<u64>,
}

fn locks() -> Locks {
    let spaces = Spaces::new(Store::in_memory());
    let space = spaces.get("a").unwrap();
    let (asked, told) = Default::default();
    Locks { spaces, space, asked, told, token: watch::Sender::new(0) }
}

fn ask() -> Ask {
    Ask {
        name: "n".parse().unwrap(),
        claim_id: ClaimId::from_u128(7),
        mode: Mode::Exclusive,
        entry: Entry::Queue,
        ttl: Duration::from_secs(10),
        owner: Arc::new(Owner::default()),
        keep: Duration::ZERO,
        only_here: false,
    }
}

impl Locks {
    fn view(&self, client: u128) -> Arc<dyn Backend> {
        self.space.client(Some(ClaimId::from_u128(client))).unwrap()
    }

    /// The token that is granted within this time.
    fn wait(&self, time: Duration, client: u128, ask: Ask) -> impl Future<Output = Option<u64>> + use<> {
        let (spaces, space, view, line) =
            (self.spaces.clone(), self.space.clone(), self.view(client), Line::default());
        let (asked, told, mut token, hears) =
            (self.asked.clone(), self.told.clone(), self.token.subscribe(), line.clone().hear());
        let work = async move {
            asked.fetch_add(1, SeqCst);
            hears(Waiting::default());
            let fencing_token = *token.wait_for(|token| *token > 0).await.unwrap();
            told.fetch_add(1, SeqCst);
            Ok(Some(vec![Grant { fencing_token, mode: Mode::Exclusive, lease: None }]))
        };
        let claims = vec![ask.claim()];
        let question = Question { view, claims, asks: Arc::new([ask]), work: work.boxed(), line };
        let patience = Patience { wait: time, keep: GRACE };
        async move {
            match wait(&spaces, &space, question, patience, || Ok(())).await {
                Waited::Over(taken) => Some(taken.unwrap().unwrap()[0].fencing_token),
                Waited::NotYet(_) => None,
                Waited::Refused(_) => unreachable!("nobody objects"),
            }
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

#[tokio::test]
async fn who_asks_again_joins() {
    let locks = locks();
    assert_eq!(locks.wait(Duration::ZERO, 1, ask()).await, None);
    assert_eq!(locks.wait(Duration::ZERO, 1, ask()).await, None);
    let again = tokio::spawn(locks.wait(LONG, 1, ask()));
    yield_now().await;
    let beside = tokio::spawn(locks.wait(LONG, 1, ask()));
    yield_now().await;
    assert_eq!(locks.wait(Duration::ZERO, 1, ask()).await, None);
    assert_eq!(locks.asked(), 1);
    locks.token.send_replace(3);
    assert_eq!((again.await.unwrap(), beside.await.unwrap()), (Some(3), Some(3)));
    assert_eq!(locks.asked(), 1);
    assert!(locks.space.waiters.lock().is_empty());
}

#[tokio::test]
async fn who_asks_something_else_does_not() {
    let locks = locks();
    let shared = Ask { mode: Mode::Shared, ..ask() };
    let other = Ask { claim_id: ClaimId::from_u128(8), ..ask() };
    let ways = [(1, ask()), (2, ask()), (2, shared), (2, other)];
    for (before, (client, ask)) in ways.into_iter().enumerate() {
        assert_eq!(locks.wait(Duration::ZERO, client, ask).await, None);
        assert_eq!(locks.asked(), before + 1);
    }
}

/// Nobody may have any more what was granted then.
#[tokio::test]
async fn what_came_while_nobody_asked_is_asked_anew() {
    let locks = locks();
    assert_eq!(locks.wait(Duration::ZERO, 1, ask()).await, None);
    locks.token.send_replace(3);
    while locks.told.load(SeqCst) == 0 {
        yield_now().await;
    }
    locks.token.send_replace(4);
    assert_eq!(locks.wait(LONG, 1, ask()).await, Some(4));
    assert_eq!(locks.asked(), 2);
}

#[tokio::test]
async fn what_is_over_is_not_joined() {
    let locks = locks();
    let mut slow = Box::pin(locks.wait(LONG, 1, ask()));
    assert_eq!((&mut slow).now_or_never(), None);
    let other = tokio::spawn(locks.wait(LONG, 1, ask()));
    yield_now().await;
    locks.token.send_replace(3);
    assert_eq!(other.await.unwrap(), Some(3));
    locks.token.send_replace(4);
    assert_eq!(locks.wait(LONG, 1, ask()).await, Some(4));
    assert_eq!((locks.asked(), slow.await), (2, Some(3)));
}

#[tokio::test]
async fn what_nobody_joins_ends() {
    let locks = locks();
    let before = Arc::strong_count(&locks.asked);
    assert_eq!(locks.wait(Duration::ZERO, 1, ask()).await, None);
    assert!(Arc::strong_count(&locks.asked) > before);
    while Arc::strong_count(&locks.asked) > before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is before the claim leaves.
    assert!(!locks.space.waiters.lock().is_empty());
    assert_eq!(locks.wait(Duration::ZERO, 1, ask()).await, None);
    assert_eq!(locks.asked(), 2);
}

/// One over a store, and a view of the locks there.
fn over_a_store() -> (Arc<Space>, Arc<dyn Backend>) {
    // Nobody is asked there.
    let shared = Store::shared("http://127.0.0.1:1/store").unwrap().shared.unwrap();
    let there = space::Locks::There(Arc::new(shared), Released::default());
    let rules = Rules { first_token: 1, expires: true, remember: Duration::ZERO };
    let view = MemoryStore::new(Arc::new(Native), rules).client("the store");
    (Arc::new(Space::new("a", there, Arc::default(), Instant::now())), view)
}

/// Else it could put them into the store behind the release.
#[tokio::test]
async fn what_is_released_is_asked_for_no_more() {
    let (space, view) = over_a_store();
    let (claims, asks) = ([ask().claim()], Arc::new(()));
    let asking = asks.clone();
    let acquire = async move {
        let _asking = asking;
        std::future::pending::<Result<()>>().await
    };
    let release = async {
        assert_eq!(Arc::strong_count(&asks), 2);
        space.release(view.clone(), &claims).await.unwrap();
        assert_eq!(Arc::strong_count(&asks), 1, "the release waits for that");
    };
    let both = async { tokio::join!(space.take(view.as_ref(), &claims, acquire), release) };
    let (taken, ()) = timeout(LONG, both).await.expect("it is called off");
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::NotHeld);
    let late = space.take(view.as_ref(), &claims, async { Ok(()) }).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::NotHeld);
}

/// The release may be that of another view.
#[tokio::test]
async fn what_was_released_is_given_back_by_who_took_it() {
    let (space, view) = over_a_store();
    let (_, other) = over_a_store();
    let claims = [ask().claim()];
    let acquire = async {
        view.acquire(&ask(), &|_| {}).await?;
        std::future::pending::<Result<()>>().await
    };
    let both =
        async { tokio::join!(space.take(view.as_ref(), &claims, acquire), space.release(other, &claims)) };
    let (taken, released) = timeout(LONG, both).await.expect("it is called off");
    assert_eq!((taken.unwrap_err().kind(), released.is_ok()), (ErrorKind::NotHeld, true));
    assert!(view.inspect("").await.unwrap().is_empty());
}

/// What went on may put them into the store after the release.
#[tokio::test]
async fn what_was_released_is_given_back_when_it_ends() {
    let (space, view) = over_a_store();
    let spaces = Spaces::new(Store::in_memory());
    let (put, line, claims, by) =
        (Arc::new(Notify::new()), Line::default(), vec![ask().claim()], view.clone());
    let (is_put, hears) = (put.clone(), line.clone().hear());
    let work = async move {
        hears(Waiting::default());
        is_put.notified().await;
        // Its TTL does not end it.
        by.acquire(&Ask { ttl: LONG * 60, ..ask() }, &hears).await?;
        std::future::pending().await
    };
    let question = Question {
        view: view.clone(),
        claims: claims.clone(),
        asks: Arc::new([ask()]),
        work: work.boxed(),
        line,
    };
    let patience = Patience { wait: Duration::ZERO, keep: GRACE };
    let waited = wait(&spaces, &space, question, patience, || Ok(())).await;
    assert!(matches!(waited, Waited::NotYet(_)));
    space.release(view.clone(), &claims).await.unwrap();
    put.notify_one();
    while view.inspect("").await.unwrap().is_empty() {
        yield_now().await;
    }
    space.waiters.stay(&claims);
    let given_back = async {
        while !view.inspect("").await.unwrap().is_empty() {
            yield_now().await;
        }
    };
    timeout(LONG, given_back).await.expect("it is given back");
}
