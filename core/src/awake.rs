//! Waiting awake. A thread that sleeps has to be woken when an answer comes, and when the next request does. Where the store is near
//! that takes as long as the store itself. So the library's thread goes on looking for a moment before it sleeps, as Go's scheduler
//! and Linux (`haltpoll`) do, where the last requests say that this is worth it:
//!
//! - **Each came at once after the one before, and was answered at once.** No time is spent on a store that is far away, or writes to
//!   a disk, nor on requests that come now and then: those are not sped up either, for a kernel may put a store that it wakes for us
//!   on our processor, where it would wait for us.
//! - **Few were under way, or nobody else needs the processor**: before each look it is offered to other threads, and if that took
//!   long they had use for it. What many ask while we sleep is then sent together, which costs less for us and for the store. Who keeps
//!   the processor for very long would do so at each offer, while whoever has slept comes first.
//! - **There is another processor**, for this process too (a container's share counts).
//!
//! To wake whoever asked takes as long again: with few under way one of those who wait for the store is awake, too. Its thread's other
//! tasks, sockets and timers have their turn before each look.
//!
//! A wrong guess costs no more than [`ANSWER`] of a processor, or of two. Each look is one turn of all the thread's tasks, sockets and
//! timers: they wait for nothing but for those who take the processor that is offered, until that is noticed.

use std::{
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, poll_immediate},
};

#[cfg(any(feature = "etcd", feature = "redis"))]
use crate::background::to_its_end;
#[cfg(any(feature = "etcd", feature = "redis"))]
use crate::error::Error;
use crate::{
    rt::{Runtime, is_background},
    time::Moment,
};

/// An answer within this comes at once: longer than a store in memory takes that is on this machine or the next.
const ANSWER: Duration = Duration::from_micros(500);
/// The next request within this does: longer than a program takes that has nothing else to do. What comes one by one at random, some
/// thousands of times a second, does not keep a processor busy.
const REQUEST: Duration = Duration::from_micros(200);
/// How many may be under way where others need the processor.
const FEW: usize = 2;
/// Others needed the processor that had it for longer than this: more than one request takes a store in memory.
const WANTED: Duration = Duration::from_micros(50);
/// For how long that is remembered.
const CROWDED: Duration = Duration::from_millis(100);
/// How many requests must have been like that: more than one acquire and its release.
const SOME: u8 = 3;

/// Those who wait for the answers of one store.
#[derive(Clone, Debug)]
pub(crate) struct Awake {
    rt: Arc<dyn Runtime>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pace: Mutex<Pace>,
    /// Whether the library's thread looks, with few under way.
    looks_for_few: AtomicBool,
    /// Whether somebody on another thread is awake, too; one is, for others may be on the same.
    met: AtomicBool,
}

impl Awake {
    pub(crate) fn new(rt: Arc<dyn Runtime>) -> Self {
        Self { rt, shared: Arc::default() }
    }

    /// Waits, on the library's thread, for an answer; if nobody wants it any more, that counts as one.
    pub(crate) async fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        if processors() == 1 {
            return answer.await;
        }
        let asked = self.rt.now();
        let _waiting = Waiting { awake: self, asked };
        self.look_if(self.shared.change(|pace| pace.asked(asked)));
        answer.await
    }

    /// [`to_its_end`], for work that waits for answers.
    #[cfg(any(feature = "etcd", feature = "redis"))]
    pub(crate) fn to_its_end<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, E>> {
        self.meet(to_its_end(&*self.rt, work))
    }

    /// Waits, on whatever thread, for what the library's thread makes of answers.
    pub(crate) fn meet<T: Send + 'static>(&self, outcome: BoxFuture<'static, T>) -> BoxFuture<'static, T> {
        // On Windows to go round Python's event loops can take a thread each time.
        if processors() == 1 || cfg!(windows) || is_background() {
            return outcome;
        }
        self.clone().meet_here(outcome).boxed()
    }

    async fn meet_here<T>(self, mut outcome: BoxFuture<'static, T>) -> T {
        if let Some(_meeting) = Meeting::begin(&self.shared) {
            let begun = self.rt.now();
            // What is dropped before its end goes on in the background.
            while self.shared.looks_for_few.load(Ordering::Relaxed) && !is_background() {
                // With the waker, as whoever sleeps: an executor that runs inside of tokio's may not hear what `yield_now` says.
                if let Some(outcome) = poll_immediate(&mut outcome).await {
                    return outcome;
                }
                let (offered, now) = offer(&*self.rt);
                if now.since(offered) > WANTED {
                    self.shared.change(|pace| pace.offered(offered, now));
                }
                if now.since(begun) > ANSWER {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        outcome.await
    }

    fn look_if(&self, worth_it: bool) {
        if worth_it {
            self.rt.spawn(look(self.rt.clone(), self.shared.clone()).boxed());
        }
    }
}

/// How many there are for this process.
fn processors() -> usize {
    // No lock: another thread could have it at a `fork`.
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let count = available_parallelism().map_or(1, NonZero::get);
            KNOWN.store(count, Ordering::Relaxed);
            count
        }
        count => count,
    }
}

/// Offers the processor to other threads; when, and when it is back. The kernel may have put whoever was sent a request on this one,
/// as if we slept.
fn offer(rt: &dyn Runtime) -> (Moment, Moment) {
    let offered = rt.now();
    std::thread::yield_now();
    (offered, rt.now())
}

async fn look(rt: Arc<dyn Runtime>, shared: Arc<Shared>) {
    loop {
        let (offered, now) = offer(&*rt);
        if !shared.change(|pace| pace.goes_on(offered, now)) {
            return;
        }
        // Everything else on this thread goes first, and then what its sockets have.
        tokio::task::yield_now().await;
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Pace) -> T) -> T {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut pace);
        self.looks_for_few.store(pace.looking && pace.under_way <= FEW, Ordering::Relaxed);
        outcome
    }
}

struct Meeting<'a>(&'a Shared);

impl<'a> Meeting<'a> {
    fn begin(shared: &'a Shared) -> Option<Self> {
        (!shared.met.swap(true, Ordering::Relaxed)).then(|| Self(shared))
    }
}

impl Drop for Meeting<'_> {
    fn drop(&mut self) {
        self.0.met.store(false, Ordering::Relaxed);
    }
}

struct Waiting<'a> {
    awake: &'a Awake,
    asked: Moment,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = self.awake.rt.now();
        let worth_it = self.awake.shared.change(|pace| pace.answered(self.asked, now));
        self.awake.look_if(worth_it);
    }
}

/// When something was asked and answered, and whether the next is worth looking for.
#[derive(Debug, Default)]
struct Pace {
    /// How many requests in a row came at once, had room, and were answered at once; no more are counted than matter.
    brisk: u8,
    /// When others needed the processor, and how many may be under way since then.
    crowded: Option<(Moment, usize)>,
    under_way: usize,
    /// When the last one was asked or answered.
    last: Option<Moment>,
    /// Whether somebody looks.
    looking: bool,
}

impl Pace {
    /// A request is sent; whether somebody has to begin to look.
    fn asked(&mut self, now: Moment) -> bool {
        let came_at_once = self.last_is_near(now);
        self.under_way += 1;
        if !came_at_once || !self.has_room(now) {
            self.brisk = 0;
        }
        self.begin(now)
    }

    /// It is over; whether somebody has to begin to look.
    fn answered(&mut self, asked: Moment, now: Moment) -> bool {
        let is_brisk = self.has_room(now) && now.since(asked) <= ANSWER;
        self.under_way -= 1;
        self.brisk = if is_brisk { SOME.min(self.brisk + 1) } else { 0 };
        self.begin(now)
    }

    fn begin(&mut self, now: Moment) -> bool {
        self.last = Some(now);
        let begins = !self.looking && self.is_worth_it();
        self.looking |= begins;
        begins
    }

    /// Whether whoever looks is to look again, which has `offered` the processor to others then and has it again.
    fn goes_on(&mut self, offered: Moment, now: Moment) -> bool {
        self.offered(offered, now);
        self.looking = self.is_worth_it() && self.last_is_near(now);
        self.looking
    }

    fn offered(&mut self, offered: Moment, now: Moment) {
        let room = match now.since(offered) {
            // Whoever that was, it is no store that is near.
            away if away > ANSWER => 0,
            away if away > WANTED => FEW,
            _ => usize::MAX,
        };
        // Where nothing is under way, the next request is looked for.
        if self.under_way.max(1) > room {
            (self.crowded, self.brisk) = (Some((now, room)), 0);
        }
    }

    fn has_room(&self, now: Moment) -> bool {
        let lately = self.crowded.filter(|(since, _)| now.since(*since) <= CROWDED);
        lately.is_none_or(|(_, room)| self.under_way <= room)
    }

    fn last_is_near(&self, now: Moment) -> bool {
        let limit = if self.under_way == 0 { REQUEST } else { ANSWER };
        self.last.is_some_and(|last| now.since(last) <= limit)
    }

    fn is_worth_it(&self) -> bool {
        self.brisk >= SOME
    }
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Poll, Wake},
        thread::Thread,
    };

    use futures_channel::oneshot;
    use futures_util::future;

    use super::*;
    use crate::rt::{Native, Still, thread};

    const NOW: Moment = Still::NOW;
    const SOON: Duration = Duration::from_micros(100);
    const LATER: Duration = Duration::from_micros(400);
    const LATE: Duration = Duration::from_millis(2);

    /// Requests one after the other, each with the time until it is sent and until it is answered: whether somebody looked for
    /// the last request, and for its answer.
    fn looked(requests: &[(Duration, Duration)]) -> (bool, bool) {
        let (mut pace, mut now, mut seen) = (Pace::default(), NOW, (false, false));
        for (pause, answer) in requests {
            let later = now.plus(SOON / 2);
            seen.0 = pace.goes_on(later, later);
            let asked = now.plus(*pause);
            pace.goes_on(asked, asked);
            pace.asked(asked);
            seen.1 = pace.looking;
            now = asked.plus(*answer);
            pace.goes_on(now, now);
            pace.answered(asked, now);
        }
        seen
    }

    #[test]
    fn what_comes_at_once_is_looked_for() {
        assert_eq!(looked(&[(LATE, SOON), (SOON, SOON), (SOON, SOON)]), (false, false), "not yet");
        assert_eq!(looked(&[(LATE, SOON), (SOON, SOON), (SOON, SOON), (SOON, SOON)]), (true, true));
        assert_eq!(looked(&[(SOON, LATER); 5]), (true, true), "a store that takes a little longer");
    }

    #[test]
    fn what_is_late_is_not() {
        assert_eq!(looked(&[(SOON, LATE); 20]), (false, false), "a store that is far");
        assert_eq!(looked(&[(LATE, SOON), (SOON, SOON)].repeat(20)), (false, false), "a lock now and then");
        assert_eq!(looked(&[(LATER, SOON); 20]), (false, false), "and a little more often");
    }

    #[test]
    fn one_looks_and_not_for_long() {
        let mut pace = Pace { brisk: SOME, last: Some(NOW), ..Pace::default() };
        let goes_on = |pace: &mut Pace, after| pace.goes_on(NOW.plus(after), NOW.plus(after));
        assert!(pace.asked(NOW), "one begins");
        assert!(!pace.asked(NOW), "and no other");
        assert!(goes_on(&mut pace, LATER));
        assert!(!goes_on(&mut pace, LATE));
        assert!(pace.answered(NOW, NOW) && !pace.answered(NOW, NOW));
        assert!(goes_on(&mut pace, SOON));
        assert!(!goes_on(&mut pace, LATER), "for the next request not as long as for an answer");
    }

    #[test]
    fn among_many_only_while_nobody_else_needs_the_processor() {
        let mut pace = Pace { brisk: SOME, last: Some(NOW), ..Pace::default() };
        let (soon, later) = (NOW.plus(WANTED), NOW.plus(SOON));
        assert!(pace.asked(NOW) && !pace.asked(NOW));
        assert!(pace.goes_on(NOW, later), "two are under way");
        pace.asked(NOW);
        assert!(pace.goes_on(NOW, soon), "three are");
        assert!(!pace.goes_on(NOW, later), "and others need the processor");
        // So many at once; whether somebody began to look.
        let round = |pace: &mut Pace, count| {
            let asked = (0..count).fold(false, |begun, _| pace.asked(NOW) | begun);
            (0..count).fold(asked, |begun, _| pace.answered(NOW, NOW) | begun)
        };
        assert!((0..3).all(|_| !pace.answered(NOW, NOW)), "as they end");
        assert!(!round(&mut pace, 3), "not among many from now on");
        assert!(round(&mut pace, 1), "but among few");
        assert!(!round(&mut pace, 2) && pace.goes_on(NOW, NOW), "as before");
        (0..3).for_each(|_| _ = pace.asked(NOW));
        assert!(!pace.goes_on(NOW, NOW), "and not among many");
        (0..3).for_each(|_| _ = pace.answered(NOW, NOW));
        let now = NOW.plus(CROWDED + LATE);
        (0..30).for_each(|_| _ = pace.asked(now));
        (0..30).for_each(|_| _ = pace.answered(now, now));
        assert!(pace.goes_on(now, now), "until that is long ago");
    }

    #[test]
    fn not_beside_those_who_keep_the_processor() {
        for under_way in 0..3 {
            let mut pace = Pace { brisk: SOME, last: Some(NOW), under_way, ..Pace::default() };
            assert!(pace.goes_on(NOW, NOW.plus(SOON)));
            let now = NOW.plus(LATE);
            pace.last = Some(now);
            assert!(!pace.goes_on(NOW, now));
            assert!((0..SOME).all(|_| !pace.asked(now) && !pace.answered(now, now)), "{under_way}");
            let now = now.plus(CROWDED + LATE);
            assert!((0..=SOME).any(|_| pace.asked(now) | pace.answered(now, now)), "{under_way}, later");
        }
    }

    /// While the library's thread looks, with so many under way, and each look at the clock takes so long.
    fn looking(under_way: usize, step: Duration) -> Awake {
        let awake = Awake::new(Arc::new(Still { step, ..Still::default() }));
        awake.shared.change(|pace| {
            *pace = Pace { brisk: SOME, looking: true, under_way, last: Some(NOW), ..Pace::default() }
        });
        awake
    }

    /// Who is polled, and whether they are woken at once, and so stay awake.
    struct Caller<T>(BoxFuture<'static, T>, Arc<AtomicBool>);

    impl<T: Send + 'static> Caller<T> {
        fn new(awake: &Awake, outcome: impl Future<Output = T> + Send + 'static) -> Self {
            Self(awake.meet(outcome.boxed()), Arc::default())
        }

        fn poll(&mut self) -> (Poll<T>, bool) {
            struct Woken(Arc<AtomicBool>);
            impl Wake for Woken {
                fn wake(self: Arc<Self>) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let waker = Arc::new(Woken(self.1.clone())).into();
            self.1.store(false, Ordering::Relaxed);
            let polled = self.0.poll_unpin(&mut Context::from_waker(&waker));
            (polled, self.is_woken())
        }

        fn is_woken(&self) -> bool {
            self.1.load(Ordering::Relaxed)
        }
    }

    /// A caller who is awake, where that is done.
    fn awake_there() -> (Poll<Result<i32, oneshot::Canceled>>, bool) {
        (Poll::Pending, processors() > 1 && !cfg!(windows))
    }

    #[test]
    fn one_of_those_who_asked_is_awake_too() {
        let awake = looking(FEW, Duration::ZERO);
        let caller = || {
            let (tell, told) = oneshot::channel();
            (tell, Caller::new(&awake, told))
        };
        let ((tell, mut one), (tell_other, mut other)) = (caller(), caller());
        assert_eq!(one.poll(), awake_there());
        assert_eq!(one.poll(), awake_there());
        assert_eq!(other.poll(), (Poll::Pending, false));
        for (tell, mut caller) in [(tell_other, other), (tell, one)] {
            tell.send(1).unwrap();
            assert!(caller.is_woken());
            assert_eq!(caller.poll().0, Poll::Ready(Ok(1)));
        }
        assert_eq!(caller().1.poll(), awake_there(), "the next one, who gives up");
        let (tell, mut caller) = caller();
        assert_eq!(caller.poll(), awake_there(), "and the next");
        awake.shared.change(|pace| pace.looking = false);
        assert_eq!(caller.poll(), (Poll::Pending, false), "who sleeps when the library's thread does");
        tell.send(2).unwrap();
        assert!(caller.is_woken());
        assert_eq!(caller.poll().0, Poll::Ready(Ok(2)));
    }

    #[test]
    fn who_asked_sleeps_among_many_and_after_a_while() {
        let pending = future::pending::<Result<i32, oneshot::Canceled>>;
        assert_eq!(Caller::new(&looking(FEW + 1, Duration::ZERO), pending()).poll(), (Poll::Pending, false));
        let mut caller = Caller::new(&looking(1, SOON), pending());
        // Two looks at the clock a turn.
        let turns = (0..10).take_while(|_| caller.poll().1).count();
        assert_eq!(turns, if awake_there().1 { 2 } else { 0 });
    }

    #[test]
    fn others_who_keep_the_processor_of_whoever_asked_are_noticed() {
        let awake = looking(1, LATE);
        _ = Caller::new(&awake, future::pending::<()>()).poll();
        let crowded = awake.shared.change(|pace| pace.crowded);
        assert_eq!(crowded.map(|(_, room)| room), awake_there().1.then_some(0));
    }

    /// Where the caller's own executor runs inside of tokio's, which does not go on meanwhile.
    #[test]
    fn who_asked_is_woken_by_the_answer_alone() {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let mut answered = false;
        let outcome = future::poll_fn(move |context| {
            if std::mem::replace(&mut answered, true) {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            thread("answers", move || waker.wake()).unwrap();
            Poll::Pending
        });
        let awake = looking(1, Duration::ZERO);
        let mut caller = awake.meet(outcome.boxed());
        let (tell, told) = std::sync::mpsc::channel();
        thread("asks", move || {
            let waker = Arc::new(Unpark(std::thread::current())).into();
            let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
            tokio.block_on(async {
                while caller.poll_unpin(&mut Context::from_waker(&waker)).is_pending() {
                    std::thread::park();
                }
            });
            tell.send(()).unwrap();
        })
        .unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(()));
    }

    #[test]
    fn the_thread_itself_does_not_wait_for_itself() {
        let awake = looking(1, Duration::ZERO);
        let mut begun_elsewhere = Caller::new(&awake, future::pending::<Result<i32, oneshot::Canceled>>());
        assert_eq!(begun_elsewhere.poll(), awake_there());
        let (tell, told) = std::sync::mpsc::channel();
        let look = async move {
            for mut caller in [begun_elsewhere, Caller::new(&awake, future::pending())] {
                _ = caller.poll();
                tell.send(awake.shared.met.load(Ordering::Relaxed)).unwrap();
            }
        };
        Native.spawn(look.boxed());
        for _ in 0..2 {
            assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(false));
        }
    }

    /// The thread goes to sleep again.
    #[test]
    fn nobody_looks_for_ever() {
        let is_worth_it = processors() > 1;
        let start = Native.now();
        let looks = || {
            let awake = Awake::new(Arc::new(Native));
            let here = awake.clone();
            let (tell, told) = std::sync::mpsc::channel();
            let request = async move {
                here.shared.change(|pace| {
                    *pace = Pace { brisk: SOME, last: Some(Native.now()), ..Pace::default() };
                });
                here.wait(async { tell.send(here.shared.change(|pace| pace.looking)).unwrap() }).await;
            };
            Native.spawn(request.boxed());
            (told.recv_timeout(Duration::from_secs(30)).unwrap() == is_worth_it).then_some(awake)
        };
        // What is kept from its processor just then comes too late to be worth it.
        let awake = loop {
            if let Some(awake) = looks() {
                break awake;
            }
            assert!(Native.now().since(start) < Duration::from_secs(30));
        };
        let start = Native.now();
        while awake.shared.change(|pace| pace.looking || pace.under_way > 0) {
            assert!(Native.now().since(start) < Duration::from_secs(30));
            std::thread::yield_now();
        }
    }
}
