//! A world in one thread: virtual time, seeded chance, and tasks that run until none can before time goes on to the next
//! timer. Each [`Host`] has clocks of its own that tests set, stop, slow down and suspend. The same seed gives the same run.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, LocalBoxFuture},
};
use windlass::{
    rt::Runtime,
    time::{Millis, Moment},
};

/// Longer than any run may take in virtual time: what goes on for ever is found by this.
const END_OF_TIME: Duration = Duration::from_secs(24 * 3600);
/// More than happens at one instant: what goes round in circles without time passing is found by this.
const MOST_STEPS: u32 = 1_000_000;
/// The future that the test itself is.
const MAIN: u64 = 0;

pub struct World {
    state: Mutex<State>,
    ready: Arc<Mutex<Ready>>,
    /// Called at each instant before time leaves it, and again once it has come to the next, before anything runs there.
    observers: Mutex<Vec<Arc<dyn Fn() + Send + Sync>>>,
    seed: u64,
}

struct State {
    now: Duration,
    /// How much has happened now.
    steps: u32,
    chance: u64,
    next_id: u64,
    tasks: HashMap<u64, Task>,
    sleeps: HashMap<u64, Alarm>,
    alarms: BTreeSet<(Duration, u64)>,
    hosts: Vec<HostState>,
    trace: DefaultHasher,
    last_notes: VecDeque<String>,
}

struct Task {
    host: usize,
    /// Away while it is polled.
    future: Option<BoxFuture<'static, ()>>,
}

struct Alarm {
    host: usize,
    at: Duration,
    waker: Waker,
}

struct HostState {
    clocks: [ClockState; 3],
    suspended_until: Duration,
    /// What became ready while the host was suspended.
    deferred: Vec<u64>,
}

#[derive(Clone, Copy)]
struct ClockState {
    set_at: Duration,
    value: Duration,
    rate: f64,
}

/// One of a host's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Counts suspend.
    Boot,
    /// Can be set by hand.
    Wall,
    /// Stops in suspend.
    Monotonic,
}

#[derive(Default)]
struct Ready {
    queue: VecDeque<u64>,
    queued: BTreeSet<u64>,
}

struct Wakes {
    id: u64,
    ready: Weak<Mutex<Ready>>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        let Some(ready) = self.ready.upgrade() else { return };
        let mut ready = ready.lock().unwrap();
        if ready.queued.insert(self.id) {
            ready.queue.push_back(self.id);
        }
    }
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                now: Duration::ZERO,
                steps: 0,
                chance: seed,
                next_id: MAIN + 1,
                tasks: HashMap::new(),
                sleeps: HashMap::new(),
                alarms: BTreeSet::new(),
                hosts: Vec::new(),
                trace: DefaultHasher::new(),
                last_notes: VecDeque::new(),
            }),
            ready: Arc::default(),
            observers: Mutex::default(),
            seed,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A new machine in this world, with a wall clock and an uptime that are like no other's.
    pub fn host(self: &Arc<Self>) -> Arc<Host> {
        let skew = Duration::from_millis(self.below(3_600_000));
        let mut state = self.state();
        let now = state.now;
        let clock = |value| ClockState { set_at: now, value, rate: 1.0 };
        let clocks = [
            clock(Duration::from_secs(1_000) + skew),
            clock(Duration::from_secs(1_700_000_000) + skew * 3),
            clock(Duration::from_secs(500) + skew),
        ];
        state.hosts.push(HostState { clocks, suspended_until: Duration::ZERO, deferred: Vec::new() });
        Arc::new(Host { world: self.clone(), id: state.hosts.len() - 1 })
    }

    /// The time that is the same for all.
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// Adds to what is compared between two runs of one seed, and shown when a run fails.
    pub fn note(&self, what: impl fmt::Display) {
        let mut state = self.state();
        let note = format!("{:?} {what}", state.now);
        note.hash(&mut state.trace);
        if std::env::var_os("WINDLASS_TRACE").is_some() {
            eprintln!("{note}");
        }
        state.last_notes.push_back(note);
        if state.last_notes.len() > 60 {
            state.last_notes.pop_front();
        }
    }

    /// What all notes so far come to.
    pub fn trace(&self) -> u64 {
        self.state().trace.finish()
    }

    /// A random number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        ((u128::from(self.next_random()) * u128::from(limit.max(1))) >> 64) as u64
    }

    /// Whether something happens that does so with this probability.
    pub fn chance(&self, probability: f64) -> bool {
        (self.next_random() >> 11) as f64 / ((1_u64 << 53) as f64) < probability
    }

    /// A random time below `limit`.
    pub fn time_below(&self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64))
    }

    /// `splitmix64`.
    fn next_random(&self) -> u64 {
        let mut state = self.state();
        state.chance = state.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn observe(&self, observer: impl Fn() + Send + Sync + 'static) {
        self.observers.lock().unwrap().push(Arc::new(observer));
    }

    /// Runs the world until this future is done.
    pub fn run<T>(self: &Arc<Self>, main: impl Future<Output = T>) -> T {
        let _told = TellOnPanic(self);
        let mut main: LocalBoxFuture<'_, T> = main.boxed_local();
        self.wake(MAIN);
        loop {
            let Some(id) = self.next_ready() else {
                self.advance();
                continue;
            };
            let waker = self.waker(id);
            let context = &mut Context::from_waker(&waker);
            if id == MAIN {
                if let Poll::Ready(output) = main.poll_unpin(context) {
                    return output;
                }
            } else {
                self.poll_task(id, context);
            }
        }
    }

    fn waker(&self, id: u64) -> Waker {
        Waker::from(Arc::new(Wakes { id, ready: Arc::downgrade(&self.ready) }))
    }

    fn wake(&self, id: u64) {
        self.waker(id).wake();
    }

    /// Any of those that are ready: nobody may count on an order.
    fn next_ready(&self) -> Option<u64> {
        loop {
            let length = self.ready.lock().unwrap().queue.len();
            if length == 0 {
                return None;
            }
            let at = self.below(length as u64) as usize;
            let id = {
                let mut ready = self.ready.lock().unwrap();
                let id = ready.queue.remove(at).unwrap();
                ready.queued.remove(&id);
                id
            };
            self.step();
            let mut state = self.state();
            let Some(host) = state.tasks.get(&id).map(|task| task.host) else {
                if id == MAIN {
                    return Some(id);
                }
                continue;
            };
            let now = state.now;
            let host = &mut state.hosts[host];
            if host.suspended_until > now {
                host.deferred.push(id);
                continue;
            }
            return Some(id);
        }
    }

    fn step(&self) {
        let steps = {
            let mut state = self.state();
            state.steps += 1;
            state.steps
        };
        // Only once: what is dropped on the way out may step, too.
        assert!(steps != MOST_STEPS, "this goes round in circles");
    }

    fn poll_task(&self, id: u64, context: &mut Context<'_>) {
        let Some(mut future) = self.state().tasks.get_mut(&id).and_then(|task| task.future.take()) else {
            return;
        };
        if future.poll_unpin(context).is_ready() {
            let task = self.state().tasks.remove(&id);
            // What it holds may come back to this world when dropped.
            drop(task);
            return;
        }
        if let Some(task) = self.state().tasks.get_mut(&id) {
            task.future = Some(future);
        }
    }

    /// Goes on to the next instant at which anything happens.
    fn advance(&self) {
        self.look();
        let wakers = {
            let mut state = self.state();
            let resumptions =
                state.hosts.iter().map(|host| host.suspended_until).filter(|at| *at > state.now);
            let next = state.alarms.first().map(|(at, _)| *at).into_iter().chain(resumptions).min();
            let next = next.expect("nothing will ever happen again, and the test is not over");
            assert!(next < END_OF_TIME, "this goes on for ever");
            if next > state.now {
                (state.now, state.steps) = (next, 0);
            }
            let now = state.now;
            let mut wakers = Vec::new();
            while let Some((_, id)) = state.alarms.first().copied().filter(|(at, _)| *at <= now) {
                state.alarms.pop_first();
                wakers.extend(state.sleeps.remove(&id).map(|alarm| alarm.waker));
            }
            for host in 0..state.hosts.len() {
                if state.hosts[host].suspended_until <= now {
                    let deferred = std::mem::take(&mut state.hosts[host].deferred);
                    wakers.extend(deferred.into_iter().map(|id| self.waker(id)));
                }
            }
            wakers
        };
        self.look();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn look(&self) {
        let observers = self.observers.lock().unwrap().clone();
        observers.iter().for_each(|observer| observer());
    }

    /// How many tasks there are: none may be left over.
    pub fn tasks(&self) -> usize {
        self.state().tasks.len()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.seed).finish_non_exhaustive()
    }
}

struct TellOnPanic<'a>(&'a World);

impl Drop for TellOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(state) = self.0.state.lock()
        {
            for note in &state.last_notes {
                eprintln!("  {note}");
            }
            eprintln!("seed {}, at {:?} of virtual time", self.0.seed, state.now);
        }
    }
}

/// A machine of the world, and the [`Runtime`] of what runs there.
pub struct Host {
    world: Arc<World>,
    id: usize,
}

impl Host {
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    fn with<R>(&self, change: impl FnOnce(&mut HostState, Duration) -> R) -> R {
        let mut state = self.world.state();
        let now = state.now;
        change(&mut state.hosts[self.id], now)
    }

    fn read(&self, clock: Clock) -> Duration {
        self.with(|host, now| host.clocks[clock as usize].read(now))
    }

    /// Sets a clock forward.
    pub fn set_forward(&self, clock: Clock, by: Duration) {
        self.with(|host, now| host.clocks[clock as usize].rebase(now, |value| value + by));
    }

    /// Sets a clock back.
    pub fn set_back(&self, clock: Clock, by: Duration) {
        self.with(|host, now| host.clocks[clock as usize].rebase(now, |value| value.saturating_sub(by)));
    }

    /// From now on the clock runs at this rate: 1 is right, 0 stands still.
    pub fn set_rate(&self, clock: Clock, rate: f64) {
        self.with(|host, now| {
            let clock = &mut host.clocks[clock as usize];
            clock.rebase(now, |value| value);
            clock.rate = rate;
        });
    }

    /// Nothing runs here for so long, as with SIGSTOP; the clocks go on.
    pub fn suspend(&self, for_so_long: Duration) {
        self.with(|host, now| host.suspended_until = host.suspended_until.max(now + for_so_long));
    }

    /// As a machine that sleeps: nothing runs, timers and the monotonic clock stand still meanwhile, and on a machine
    /// that does not count suspend, only the wall clock tells of it.
    pub fn sleep_machine(&self, for_so_long: Duration, boot_counts: bool) {
        self.set_back(Clock::Monotonic, Duration::ZERO);
        self.suspend(for_so_long);
        let mut state = self.world.state();
        let now = state.now;
        let host = &mut state.hosts[self.id];
        // They are set back by what they will have counted in vain.
        host.clocks[Clock::Monotonic as usize].rebase(now, |value| value.saturating_sub(for_so_long));
        if !boot_counts {
            host.clocks[Clock::Boot as usize].rebase(now, |value| value.saturating_sub(for_so_long));
        }
        let mine: Vec<u64> =
            state.sleeps.iter().filter(|(_, alarm)| alarm.host == self.id).map(|(id, _)| *id).collect();
        for id in mine {
            let alarm = state.sleeps.get_mut(&id).unwrap();
            let was = alarm.at;
            alarm.at += for_so_long;
            let is = alarm.at;
            state.alarms.remove(&(was, id));
            state.alarms.insert((is, id));
        }
    }
}

impl ClockState {
    fn read(&self, now: Duration) -> Duration {
        self.value + (now - self.set_at).mul_f64(self.rate)
    }

    fn rebase(&mut self, now: Duration, change: impl FnOnce(Duration) -> Duration) {
        (self.value, self.set_at) = (change(self.read(now)), now);
    }
}

impl Runtime for Host {
    fn start(&self) -> windlass::Result<()> {
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment { boot: self.read(Clock::Boot), wall: self.read(Clock::Wall) }
    }

    fn monotonic(&self) -> Millis {
        Millis(self.read(Clock::Monotonic).as_millis() as u64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut state = self.world.state();
        state.next_id += 1;
        let (id, at) = (state.next_id, state.now.saturating_add(duration));
        Sleep { world: self.world.clone(), host: self.id, id, at, registered: false }.boxed()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let id = {
            let mut state = self.world.state();
            state.next_id += 1;
            let id = state.next_id;
            state.tasks.insert(id, Task { host: self.id, future: Some(task) });
            id
        };
        self.world.wake(id);
    }

    fn call(&self, code: Box<dyn FnOnce() + Send>) {
        let code = async move {
            // A panic in the program's code is the program's.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code));
        };
        self.spawn(code.boxed());
    }

    fn random(&self) -> u128 {
        u128::from(self.world.next_random()) << 64 | u128::from(self.world.next_random())
    }

    fn process(&self) -> u32 {
        0
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.id)
    }
}

struct Sleep {
    world: Arc<World>,
    host: usize,
    id: u64,
    at: Duration,
    registered: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = self.world.clone();
        world.step();
        let mut state = world.state();
        let waker = context.waker().clone();
        if self.registered {
            let Some(alarm) = state.sleeps.get_mut(&self.id) else { return Poll::Ready(()) };
            alarm.waker = waker;
            return Poll::Pending;
        }
        if self.at <= state.now {
            return Poll::Ready(());
        }
        let (id, at, host) = (self.id, self.at, self.host);
        state.sleeps.insert(id, Alarm { host, at, waker });
        state.alarms.insert((at, id));
        drop(state);
        self.registered = true;
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let mut state = self.world.state();
        if let Some(alarm) = state.sleeps.remove(&self.id) {
            state.alarms.remove(&(alarm.at, self.id));
        }
    }
}

/// Counts by name, for what a scenario has seen.
pub type Tally = BTreeMap<&'static str, u64>;
