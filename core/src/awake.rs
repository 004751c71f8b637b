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
//! Nor does the thread of whoever asked sleep then, with few under way: to wake that one takes as long again. Its other tasks, sockets
//! and timers have their turn before each look.
//!
//! A wrong guess costs no more than [`ANSWER`] of a processor, or of two. Each look is one turn of all the thread's tasks, sockets and
//! timers: they wait for nothing but for those who take the processor that is offered, until that is noticed.

use std::{
    num::NonZero,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

#[cfg(any(feature = "etcd", feature = "redis"))]
use crate::{background::to_its_end, error::Error};
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

static PROCESSORS: LazyLock<usize> = LazyLock::new(|| available_parallelism().map_or(1, NonZero::get));

/// Those who wait for the answers of one store.
#[derive(Clone, Debug)]
pub(crate) struct Awake {
    rt: Arc<dyn Runtime>,
    pace: Arc<Mutex<Pace>>,
    /// Whether somebody waits awake on another thread than the library's: one does, for others may be on the same.
    met: Arc<AtomicBool>,
}

impl Awake {
    pub(crate) fn new(rt: Arc<dyn Runtime>) -> Self {
        Self { rt, pace: Arc::default(), met: Arc::default() }
    }

    /// Waits, on the library's thread, for an answer; if nobody wants it any more, that counts as one.
    pub(crate) async fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        if *PROCESSORS == 1 {
            return answer.await;
        }
        let asked = self.rt.now();
        let _waiting = Waiting { awake: self, asked };
        self.look_if(lock(&self.pace).asked(asked));
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
        if *PROCESSORS == 1 || is_background() {
            return outcome;
        }
        self.clone().meet_here(outcome).boxed()
    }

    async fn meet_here<T>(self, mut outcome: BoxFuture<'static, T>) -> T {
        if let Some(_meeting) = Meeting::begin(&self.met) {
            let begun = self.rt.now();
            while self.looks_for_few() && self.rt.now().since(begun) <= ANSWER {
                // Nobody has to wake us.
                if let Some(outcome) = (&mut outcome).now_or_never() {
                    return outcome;
                }
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
        outcome.await
    }

    fn looks_for_few(&self) -> bool {
        // While the library's thread is at it, it looks.
        self.pace.try_lock().map_or(true, |pace| pace.looking && pace.under_way <= FEW)
    }

    fn look_if(&self, worth_it: bool) {
        if worth_it {
            self.rt.spawn(look(self.rt.clone(), self.pace.clone()).boxed());
        }
    }
}

async fn look(rt: Arc<dyn Runtime>, pace: Arc<Mutex<Pace>>) {
    loop {
        let offered = rt.now();
        // The kernel may have put whoever was sent the request on this processor, as if we slept.
        std::thread::yield_now();
        if !lock(&pace).goes_on(offered, rt.now()) {
            return;
        }
        // Everything else on this thread goes first, and then what its sockets have.
        tokio::task::yield_now().await;
    }
}

struct Meeting<'a>(&'a AtomicBool);

impl<'a> Meeting<'a> {
    fn begin(met: &'a AtomicBool) -> Option<Self> {
        (!met.swap(true, Ordering::Relaxed)).then(|| Self(met))
    }
}

impl Drop for Meeting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Waiting<'a> {
    awake: &'a Awake,
    asked: Moment,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let worth_it = lock(&self.awake.pace).answered(self.asked, self.awake.rt.now());
        self.awake.look_if(worth_it);
    }
}

fn lock(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    pace.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.looking = self.is_worth_it() && self.last_is_near(now);
        self.looking
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
    use std::task::{Context, Poll, Wake};

    use futures_channel::oneshot;
    use futures_util::future;

    use super::*;
    use crate::rt::Native;

    const NOW: Moment = Moment { boot: Duration::from_secs(1), wall: Duration::from_secs(2) };
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

    #[test]
    fn who_asked_is_awake_while_the_thread_is() {
        let several = *PROCESSORS > 1;
        let awake = Awake::new(Arc::new(Native));
        let look = |looking, under_way| {
            let mut pace = lock(&awake.pace);
            (pace.looking, pace.under_way) = (looking, under_way);
        };
        let caller = || {
            let (tell, told) = oneshot::channel();
            (tell, Caller::new(&awake, told))
        };
        let asleep = (Poll::Pending, false);
        look(true, FEW);
        let ((tell, mut one), (tell_other, mut other)) = (caller(), caller());
        assert_eq!(one.poll(), (Poll::Pending, several));
        assert_eq!(other.poll(), asleep, "one of them");
        one.1.store(false, Ordering::Relaxed);
        tell.send(1).unwrap();
        assert_eq!(one.is_woken(), !several, "nobody wakes who is awake");
        assert_eq!(one.poll().0, Poll::Ready(Ok(1)));
        tell_other.send(2).unwrap();
        assert!(other.is_woken());
        assert_eq!(other.poll().0, Poll::Ready(Ok(2)));
        for (looking, under_way) in [(false, 1), (true, FEW + 1)] {
            look(true, 1);
            let (tell, mut caller) = caller();
            assert_eq!(caller.poll(), (Poll::Pending, several), "the next one is");
            look(looking, under_way);
            assert_eq!(caller.poll(), asleep);
            tell.send(3).unwrap();
            assert!(caller.is_woken());
        }
        look(true, 1);
        assert_eq!(caller().1.poll(), (Poll::Pending, several), "one that gives up");
        let (_tell, mut caller) = caller();
        let begun = Native.now();
        while caller.poll().1 {
            assert!(Native.now().since(begun) < Duration::from_secs(30), "for ever");
        }
        assert!(!several || Native.now().since(begun) >= ANSWER);
    }

    #[test]
    fn the_thread_itself_does_not_wait_for_itself() {
        let awake = Awake::new(Arc::new(Native));
        lock(&awake.pace).looking = true;
        let (tell, told) = std::sync::mpsc::channel();
        let look = async move { tell.send(Caller::new(&awake, future::pending::<()>()).poll()).unwrap() };
        Native.spawn(look.boxed());
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok((Poll::Pending, false)));
    }

    /// The thread goes to sleep again.
    #[test]
    fn nobody_looks_for_ever() {
        let awake = Awake::new(Arc::new(Native));
        let here = awake.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let request = async move {
            *lock(&here.pace) = Pace { brisk: SOME, last: Some(Native.now()), ..Pace::default() };
            here.wait(async { tell.send(lock(&here.pace).looking).unwrap() }).await;
        };
        Native.spawn(request.boxed());
        let is_worth_it = available_parallelism().unwrap().get() > 1;
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(is_worth_it));
        let start = Native.now();
        while lock(&awake.pace).looking || lock(&awake.pace).under_way > 0 {
            assert!(Native.now().since(start) < Duration::from_secs(30));
            std::thread::yield_now();
        }
    }
}
