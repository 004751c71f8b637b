//! Something to wait for until any thread rings it: a file descriptor where there are such, so that a signal ends the wait
//! and an event loop can watch it.

#[cfg(unix)]
pub(crate) use with_descriptor::Bell;
#[cfg(not(unix))]
pub(crate) use without_descriptor::Bell;

#[cfg(unix)]
mod with_descriptor {
    use std::{
        fs::File,
        io::{self, Read, Write},
        os::fd::{AsRawFd, RawFd},
        time::Duration,
    };

    /// How often the main thread looks for a signal that arrived in the few instructions before it began to wait.
    const GLANCE: Duration = Duration::from_millis(500);

    /// An eventfd, or a pipe where there is none.
    pub(crate) struct Bell {
        listening: File,
        /// The other end; `None` for an eventfd, which has but one.
        ringing: Option<File>,
    }

    impl Bell {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        pub(crate) fn new() -> io::Result<Self> {
            use std::os::fd::FromRawFd;
            // SAFETY: takes two numbers, returns a new descriptor or -1.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new and nobody else's.
            Ok(Self { listening: unsafe { File::from_raw_fd(fd) }, ringing: None })
        }

        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        pub(crate) fn new() -> io::Result<Self> {
            let (listening, ringing) = io::pipe()?;
            let (listening, ringing): (std::os::fd::OwnedFd, std::os::fd::OwnedFd) =
                (listening.into(), ringing.into());
            for end in [&listening, &ringing] {
                // SAFETY: the descriptor is open; this only sets a flag of it.
                if unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(Self { listening: listening.into(), ringing: Some(ringing.into()) })
        }

        pub(crate) fn descriptor(&self) -> RawFd {
            self.listening.as_raw_fd()
        }

        /// Ends the wait that is under way, or the next one.
        pub(crate) fn ring(&self) {
            // Fails only where it is full, which means that it rings already.
            let _ = self.ringing.as_ref().unwrap_or(&self.listening).write(&1_u64.to_ne_bytes());
        }

        /// Makes the next wait wait again.
        pub(crate) fn hush(&self) {
            let mut rings = [0; 64];
            // Fails only where it is empty, which is what is wanted.
            while matches!((&self.listening).read(&mut rings), Ok(n) if n == rings.len()) {}
        }

        /// Waits for a ring or a signal. May also return for no reason.
        pub(crate) fn wait(&self) {
            let timeout = if is_main_thread() { GLANCE.as_millis() as libc::c_int } else { -1 };
            let mut poll = libc::pollfd { fd: self.descriptor(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd. An error is a signal (EINTR) or passes, and the caller looks again either way.
            unsafe { libc::poll(&mut poll, 1, timeout) };
            self.hush();
        }
    }

    /// Only the main thread runs Python's signal handlers.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn is_main_thread() -> bool {
        // SAFETY: two numbers that cannot fail.
        unsafe { libc::gettid() == libc::getpid() }
    }

    #[cfg(any(target_os = "macos", target_os = "freebsd"))]
    fn is_main_thread() -> bool {
        // SAFETY: a number that cannot fail.
        unsafe { libc::pthread_main_np() != 0 }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "freebsd")))]
    fn is_main_thread() -> bool {
        true
    }
}

#[cfg(not(unix))]
mod without_descriptor {
    use std::{
        io,
        sync::{Condvar, Mutex, PoisonError},
        time::Duration,
    };

    /// How often a wait looks for a signal, which does not end it.
    const TICK: Duration = Duration::from_millis(50);

    #[derive(Default)]
    pub(crate) struct Bell {
        rings: Mutex<bool>,
        rung: Condvar,
    }

    impl Bell {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self::default())
        }

        /// Ends the wait that is under way, or the next one.
        pub(crate) fn ring(&self) {
            *self.rings.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.rung.notify_all();
        }

        /// Waits for a ring, or a moment.
        pub(crate) fn wait(&self) {
            let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut rings, _) = self
                .rung
                .wait_timeout_while(rings, TICK, |rings| !*rings)
                .unwrap_or_else(PoisonError::into_inner);
            *rings = false;
        }
    }
}
