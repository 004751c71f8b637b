//! The runtime of an operating system: one background thread `windlass` that runs timers and tasks, started when it is
//! first needed and again in a child of `fork`.
//!
//! Renewals run on this thread and not on the program's own runtime, so that a program that blocks its runtime, or ends
//! it, keeps its locks or is told that it lost them (rule R3).
//!
//! **Tasks of other threads come by one queue**, out of which it takes many at a time. Each by itself, as tokio takes them, would
//! have to wake the thread, and what it wakes would run before the next one: requests that are made at the same time would not
//! travel together. Nor does it take all: what it has begun, such as renewals, goes on between (rule R24).
//!
//! **A machine that has no thread or descriptor to give** is said by [`Runtime::start`], which everything that connects
//! calls first. From then on the thread is there. Who uses this runtime without having started it, and cannot have it, sleeps
//! on its own thread, and its tasks are dropped with an error in the log; nothing panics.

use std::{
    cell::{Cell, RefCell},
    io, ptr,
    sync::{
        Arc,
        atomic::{AtomicPtr, AtomicU32, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::{Builder as TokioBuilder, Handle},
    sync::mpsc::{self, UnboundedSender},
    task::yield_now,
};

use self::calls::Calls;
use super::Runtime;
use crate::{
    error::{Error, ErrorKind, Result},
    time::{Millis, Moment},
};

mod calls;

/// How many tasks are taken before others go on; fewer than tokio runs in a turn.
const AT_A_TIME: usize = 32;
/// The pause before another try to have a thread.
const NO_THREAD: Duration = Duration::from_millis(100);

/// The clocks, timers and tasks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

impl Runtime for Native {
    fn now(&self) -> Moment {
        clock::now()
    }

    fn monotonic(&self) -> Millis {
        clock::monotonic()
    }

    fn start(&self) -> Result<()> {
        background().map(drop).map_err(|error| {
            let message = format!(
                "cannot start the background thread that keeps locks alive: {error}; raise the limits on threads and \
                 open files (ulimit -u, ulimit -n)"
            );
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        })
    }

    #[allow(clippy::disallowed_methods, reason = "this is where sleep comes from")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        match background() {
            Ok(background) => {
                let _context = background.handle.enter();
                tokio::time::sleep(duration).boxed()
            }
            Err(_) => async move { std::thread::sleep(duration) }.boxed(),
        }
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        match background() {
            Ok(background) if IS_OURS.get() => drop(background.handle.spawn(task)),
            // It is dropped where the thread has ended.
            Ok(background) => drop(background.tasks.send(task)),
            Err(error) => tracing::error!(%error, "a task is dropped: there is no background thread"),
        }
    }

    fn call(&self, code: Box<dyn FnOnce() + Send>) {
        call_on(|background| &background.calls, code);
    }

    fn call_at_once(&self, code: Box<dyn FnOnce() + Send>) {
        call_on(|background| &background.calls_at_once, code);
    }

    fn random(&self) -> u128 {
        random()
    }

    fn process(&self) -> u32 {
        process()
    }
}

fn call_on(calls: fn(&Background) -> &Arc<Calls>, code: calls::Code) {
    match background() {
        Ok(background) => {
            let calls = calls(background);
            calls.push(code);
            if calls.start().is_err() {
                Native.spawn(call_later(calls.clone()).boxed());
            }
        }
        Err(error) => tracing::error!(%error, "a callback is dropped: there is no background thread"),
    }
}

async fn call_later(calls: Arc<Calls>) {
    while let Err(error) = calls.start() {
        tracing::warn!(%error, "no thread for a callback: it comes later");
        Native.sleep(NO_THREAD).await;
    }
}

/// Starts a thread that no signal is delivered to: a program's signals belong to the program's own threads, and a
/// `Ctrl-C` that lands on one of ours would not wake it.
///
/// # Errors
/// The operating system's, when it has no thread to give.
pub fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    start_thread(Builder::new().name(name.to_owned()).stack_size(256 * 1024), body)
}

#[allow(clippy::disallowed_methods, reason = "this is where threads come from")]
fn start_thread(builder: Builder, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    #[cfg(unix)]
    {
        let old = signals::block_all();
        let started = builder.spawn(body);
        signals::restore(&old);
        started
    }
    #[cfg(not(unix))]
    builder.spawn(body)
}

/// 128 bits of the system's randomness, fetched for a few ids at a time: the call costs more than all else that an
/// uncontended acquire does. What was fetched before a `fork` is used on one side of it only.
#[allow(clippy::disallowed_methods, reason = "this is where randomness comes from")]
fn random() -> u128 {
    const AT_A_TIME: usize = 16;
    struct Stock {
        process: u32,
        bytes: [[u8; 16]; AT_A_TIME],
        left: usize,
    }
    thread_local! {
        static STOCK: RefCell<Stock> =
            const { RefCell::new(Stock { process: 0, bytes: [[0; 16]; AT_A_TIME], left: 0 }) };
    }
    STOCK.with_borrow_mut(|stock| {
        let process = process();
        if stock.left == 0 || stock.process != process {
            // Without the system's randomness nobody could prove what they own: there is no safe way to go on. On the
            // systems this builds for the call fails only before the kernel has seeded its generator.
            #[allow(clippy::expect_used)]
            getrandom::fill(stock.bytes.as_flattened_mut()).expect("the operating system has no randomness");
            (stock.process, stock.left) = (process, AT_A_TIME);
        }
        stock.left -= 1;
        u128::from_ne_bytes(std::mem::take(&mut stock.bytes[stock.left]))
    })
}

/// How many `fork`s lie between this process and the one that first asked.
fn process() -> u32 {
    static FORKS: AtomicU32 = AtomicU32::new(0);
    #[cfg(unix)]
    {
        static REGISTERED: std::sync::OnceLock<()> = std::sync::OnceLock::new();
        extern "C" fn in_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        REGISTERED.get_or_init(|| {
            // SAFETY: the handler only adds to an atomic, which is allowed in a child of a process with threads.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
    }
    FORKS.load(Ordering::Relaxed)
}

thread_local! {
    /// Whether this thread runs what is in the background; or was forked from one that did, where that does no harm.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is the thread that runs what is in the background.
#[cfg(any(feature = "etcd", feature = "http", feature = "redis"))]
pub(crate) fn is_background() -> bool {
    IS_OURS.get()
}

/// What runs in the background of a process.
struct Background {
    process: u32,
    handle: Handle,
    /// The runtime ends when this is dropped.
    tasks: UnboundedSender<BoxFuture<'static, ()>>,
    calls: Arc<Calls>,
    calls_at_once: Arc<Calls>,
}

/// What runs in the background of this process, started if it does not run yet.
///
/// An atomic pointer and no lock, because a lock could be held by another thread at the moment of a `fork` and would
/// then never be free in the child. What it points to is never freed: there is one for each process, and a child must not drop
/// the runtime of its parent, whose thread it does not have.
fn background() -> io::Result<&'static Background> {
    static CURRENT: AtomicPtr<Background> = AtomicPtr::new(ptr::null_mut());
    let process = process();
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: a pointer in CURRENT comes from Box::into_raw below and is never freed.
    if let Some(background) = unsafe { current.as_ref() }
        && background.process == process
    {
        return Ok(background);
    }
    let fresh = Box::into_raw(Box::new(start(process)?));
    match CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: just made, and never freed from here on.
        Ok(_) => Ok(unsafe { &*fresh }),
        Err(winner) => {
            // Another thread was faster.
            // SAFETY: nobody else has seen `fresh`; `winner` is what another thread has put there for good.
            unsafe {
                drop(Box::from_raw(fresh));
                Ok(&*winner)
            }
        }
    }
}

fn start(process: u32) -> io::Result<Background> {
    let runtime = TokioBuilder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (tasks, mut come) = mpsc::unbounded_channel();
    thread("windlass", move || {
        IS_OURS.set(true);
        runtime.block_on(async {
            let mut some = Vec::with_capacity(AT_A_TIME);
            // Ends by the drop of the sender.
            while come.recv_many(&mut some, AT_A_TIME).await > 0 {
                let there_may_be_more = some.len() == AT_A_TIME;
                for task in some.drain(..) {
                    runtime.spawn(task);
                }
                if there_may_be_more {
                    yield_now().await;
                }
            }
        });
    })?;
    Ok(Background { process, handle, tasks, calls: Arc::default(), calls_at_once: Arc::default() })
}

#[cfg(unix)]
mod signals {
    use std::mem::MaybeUninit;

    pub(super) fn block_all() -> libc::sigset_t {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut old = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises `all`; pthread_sigmask reads it and initialises `old`. Neither can fail with
        // these arguments.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            old.assume_init()
        }
    }

    pub(super) fn restore(old: &libc::sigset_t) {
        // SAFETY: `old` came from block_all on this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
    }
}

#[cfg(unix)]
mod clock {
    use std::time::Duration;

    use rustix::time::{ClockId, Timespec, clock_gettime};

    use crate::time::{Millis, Moment};

    // Darwin's CLOCK_MONOTONIC goes on while the machine sleeps, and its CLOCK_UPTIME_RAW stops; Linux's stops.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const BOOT: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const BOOT: ClockId = ClockId::Monotonic;

    fn read(clock: ClockId) -> Duration {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        // A wall clock before 1970 reads as 1970: only differences count, and this one errs on the early side.
        Duration::new(u64::try_from(tv_sec).unwrap_or(0), u32::try_from(tv_nsec).unwrap_or(0))
    }

    pub(super) fn now() -> Moment {
        Moment { boot: read(BOOT), wall: read(ClockId::Realtime) }
    }

    pub(super) fn monotonic() -> Millis {
        Millis(u64::try_from(read(ClockId::Monotonic).as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(windows)]
mod clock {
    use std::time::{Duration, Instant, SystemTime};

    use windows_sys::Win32::System::SystemInformation::GetTickCount64;

    use crate::time::{Millis, Moment};

    #[allow(clippy::disallowed_methods, reason = "this is where the clocks come from")]
    pub(super) fn now() -> Moment {
        // SAFETY: takes nothing and cannot fail. It counts the time asleep, in steps of some 16 ms; between two steps
        // the wall clock tells.
        let boot = Duration::from_millis(unsafe { GetTickCount64() });
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment { boot, wall }
    }

    #[allow(clippy::disallowed_methods, reason = "this is where the clocks come from")]
    pub(super) fn monotonic() -> Millis {
        use std::sync::OnceLock;
        static START: OnceLock<Instant> = OnceLock::new();
        Millis(u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Those that are told of a loss, and those that renewals need, are not kept waiting by any number of others.
    #[test]
    fn what_is_called_at_once_waits_for_no_slow_code() {
        let ((tell, told), (open, gate)) = (channel(), channel::<()>());
        let gate = Arc::new(std::sync::Mutex::new(gate));
        for _ in 0..100 {
            let gate = gate.clone();
            Native.call(Box::new(move || _ = gate.lock().unwrap().recv()));
        }
        Native.call_at_once(Box::new(move || tell.send(()).unwrap()));
        told.recv_timeout(Duration::from_secs(30)).unwrap();
        drop(open);
    }

    /// So that what they ask travels together; but not all of them before what is there already.
    #[test]
    fn tasks_that_come_together_begin_before_what_they_wake() {
        let ((tell, told), (begin, begun), (open, gate)) = (channel(), channel(), channel::<()>());
        let (wake, mut woken) = mpsc::unbounded_channel();
        Native.spawn(
            async move {
                let first = woken.recv().await;
                tell.send((first, woken.len())).unwrap();
            }
            .boxed(),
        );
        Native.spawn(
            async move {
                begin.send(()).unwrap();
                _ = gate.recv();
            }
            .boxed(),
        );
        begun.recv_timeout(Duration::from_secs(30)).unwrap();
        for number in 0..10 * AT_A_TIME {
            let wake = wake.clone();
            Native.spawn(async move { wake.send(number).unwrap() }.boxed());
        }
        drop(open);
        let (first, more) = told.recv_timeout(Duration::from_secs(30)).unwrap();
        // Other tests use the thread, too.
        assert!(first == Some(0) && (1..AT_A_TIME).contains(&more), "{first:?} and {more} more");
    }
}
