//! The signals of this process.

use std::{future::poll_fn, io, task::Poll};

use nix::{
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction},
    unistd::Pid,
};
use tokio::signal::unix::{self, SignalKind};

/// What ends a program that does nothing about it, and is passed on to the command while it runs.
pub(crate) const ENDING: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// What stops a job of a shell and lets it go on.
pub(crate) const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// Signals, one after another.
#[derive(Debug, Default)]
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// From now on these signals come here. Those that this process was started to ignore stay ignored, by the command
    /// too: nohup(1) and background jobs count on it.
    pub(crate) fn listen(&mut self, signals: &[Signal]) -> io::Result<()> {
        for &signal in signals {
            if !is_ignored(signal) {
                self.0.push((signal, listener(signal)?));
            }
        }
        Ok(())
    }

    /// The next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

pub(crate) fn listener(signal: Signal) -> io::Result<unix::Signal> {
    // A parent may have left it blocked.
    SigSet::from(signal).thread_unblock()?;
    unix::signal(SignalKind::from_raw(signal as i32))
}

/// Lets Ctrl-C end this process, unless it was started to ignore it: a host such as Python has a handler that waits for
/// its interpreter to look.
pub(crate) fn end_on_interrupt() {
    if !is_ignored(Signal::SIGINT) {
        let _ = by_default(Signal::SIGINT);
    }
}

/// Stops this process and its group as a shell's job until somebody continues it. Where nobody could (the group is
/// orphaned) the kernel stops nothing, and this returns at once.
pub(crate) fn stop(signal: Signal) {
    let Ok(before) = by_default(signal) else { return };
    let _ = kill(Pid::from_raw(0), signal);
    // SAFETY: `before` is what was in place, as sigaction returned it.
    let _ = unsafe { sigaction(signal, &before) };
}

/// Dies of this signal, with its process group or alone. Returns only where that cannot be, as for the first process of
/// a container: then what a shell makes of such an end.
pub(crate) fn die_of(signal: Signal, with_group: bool) -> i32 {
    let _ = by_default(signal);
    let _ = SigSet::from(signal).thread_unblock();
    let _ = if with_group { kill(Pid::from_raw(0), signal) } else { raise(signal) };
    128 + signal as i32
}

fn is_ignored(signal: Signal) -> bool {
    let mut now = std::mem::MaybeUninit::<nix::libc::sigaction>::zeroed();
    // SAFETY: with no new action the call changes nothing and fills `now`, which all zeroes initialise anyway.
    let now = unsafe {
        nix::libc::sigaction(signal as i32, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == nix::libc::SIG_IGN
}

/// Has the signal do what it does by default; what it did before.
fn by_default(signal: Signal) -> nix::Result<SigAction> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler of ours is installed that could run in the wrong place.
    unsafe { sigaction(signal, &default) }
}
