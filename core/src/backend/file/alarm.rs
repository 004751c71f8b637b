//! Gets a thread of ours out of the kernel's queue: at intervals, to look around, or for good, when nobody wants what it
//! waits for any more.
//!
//! Only a signal ends a wait in flock(2) or fcntl(2). It comes from a timer of the kernel that is aimed at the one thread and
//! goes off again and again until it is stopped: so none is missed that goes off just before the thread begins to wait.
//! The signal is `SIGURG`, as in the runtime of Go: where somebody resets what it does it is ignored, and does no harm. If
//! the program has a use of its own for it, it stays the program's, and our threads wait until they get what they wait for.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(super) use sys::Alarm;

/// How long a thread goes on waiting for nobody: until then the next claim finds it there, and needs no other.
const GRACE: Duration = Duration::from_millis(100);

/// How to call back a thread that waits, before it has begun to and from then on.
#[derive(Default)]
pub(super) struct Recall(Mutex<State>);

#[derive(Default)]
struct State {
    alarm: Option<Arc<Alarm>>,
    called: bool,
}

impl Recall {
    /// Calls the thread back, or not after all.
    pub(super) fn set(&self, called: bool) {
        let mut state = self.state();
        if state.called != called {
            state.called = called;
            state.ring(called);
        }
    }

    /// Runs what waits, on the thread that is to be called back.
    pub(super) fn during<T>(&self, alarm: Option<&Arc<Alarm>>, wait: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        state.alarm = alarm.cloned();
        if state.called {
            state.ring(true);
        }
        drop(state);
        let waited = wait();
        let mut state = self.state();
        if state.called {
            state.ring(false);
        }
        state.alarm = None;
        waited
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ring(&self, on: bool) {
        if let Some(alarm) = &self.alarm {
            alarm.set(on.then_some(GRACE));
        }
    }
}

/// Runs what waits, and has it interrupted at intervals.
pub(super) fn interrupted_every<T>(time: Duration, alarm: Option<&Alarm>, wait: impl FnOnce() -> T) -> T {
    let set = |time| alarm.into_iter().for_each(|alarm| alarm.set(time));
    set(Some(time));
    let waited = wait();
    set(None);
    waited
}

#[cfg(target_os = "linux")]
mod sys {
    use std::{mem, ptr, time::Duration};

    /// A timer that interrupts the thread that made it.
    pub(in super::super) struct Alarm(libc::timer_t);

    // SAFETY: a timer belongs to the process; the kernel orders what its threads do with it.
    unsafe impl Send for Alarm {}
    // SAFETY: as above.
    unsafe impl Sync for Alarm {}

    impl Alarm {
        /// `None` where the system has none to give, or the program has a use of its own for the signal.
        pub(in super::super) fn of_this_thread() -> Option<Self> {
            if !signal_is_ours() {
                return None;
            }
            // SAFETY: plain data, all of which may be zero.
            let (mut set, mut event): (libc::sigset_t, libc::sigevent) = unsafe { mem::zeroed() };
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGURG;
            let mut timer: libc::timer_t = ptr::null_mut();
            // SAFETY: the pointers are to values of our own that outlive the calls.
            unsafe {
                event.sigev_notify_thread_id = libc::gettid();
                if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
                    return None;
                }
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGURG);
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
            }
            Some(Self(timer))
        }

        /// Goes off after `time`, and each time that it has passed again; never with `None`.
        pub(in super::super) fn set(&self, time: Option<Duration>) {
            let time = time.unwrap_or_default();
            let time = libc::timespec {
                tv_sec: time.as_secs() as libc::time_t,
                tv_nsec: time.subsec_nanos() as libc::c_long,
            };
            let times = libc::itimerspec { it_interval: time, it_value: time };
            // SAFETY: the timer is deleted in `drop` alone, and the times are read only.
            unsafe { libc::timer_settime(self.0, 0, &raw const times, ptr::null_mut()) };
        }
    }

    impl Drop for Alarm {
        fn drop(&mut self) {
            // SAFETY: made in `of_this_thread`, and deleted once.
            unsafe { libc::timer_delete(self.0) };
        }
    }

    /// Has the signal interrupt what waits, unless it does something else. Asked each time: the program may have come to
    /// use it.
    fn signal_is_ours() -> bool {
        extern "C" fn nothing(_signal: libc::c_int) {}
        let ours = nothing as *const () as libc::sighandler_t;
        // SAFETY: plain data, all of which may be zero.
        let (mut old, mut new): (libc::sigaction, libc::sigaction) = unsafe { mem::zeroed() };
        // Without SA_RESTART. Whoever else lives in this process may have small stacks.
        new.sa_flags = libc::SA_ONSTACK;
        new.sa_sigaction = ours;
        // SAFETY: the pointers are to values of our own, and the handler does nothing.
        unsafe {
            libc::sigaction(libc::SIGURG, ptr::null(), &raw mut old) == 0
                && (old.sa_sigaction == ours
                    || matches!(old.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
                        && libc::sigaction(libc::SIGURG, &raw const new, ptr::null_mut()) == 0)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::{convert::Infallible, time::Duration};

    /// There are none here: a thread waits until it gets what it waits for.
    pub(in super::super) struct Alarm(Infallible);

    impl Alarm {
        pub(in super::super) fn of_this_thread() -> Option<Self> {
            None
        }

        pub(in super::super) fn set(&self, _time: Option<Duration>) {
            match self.0 {}
        }
    }
}
