//! The command: a process group of its own.

use std::{
    io,
    os::{
        fd::{BorrowedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigSet, Signal, killpg},
    unistd::{Pid, getpid, getppid, tcsetpgrp},
};

use crate::terminal::Terminal;

/// How the command itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(u8),
    Killed(i32),
}

impl Ended {
    /// As a shell tells it.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => 128_u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX)),
        }
    }
}

/// The command and all that it has started and that has not left its process group.
#[derive(Debug)]
pub(crate) struct Group {
    leader: Pid,
    ended: Option<Ended>,
}

impl Group {
    /// Starts the command in a process group of its own, which takes the terminal if `terminal` is given.
    ///
    /// Children of the command that survive it become ours (on Linux), so that their ends are told us.
    pub(crate) fn start(mut command: Command, terminal: Option<&mut Terminal>) -> io::Result<Self> {
        let windlass = getpid();
        let tty = terminal.as_ref().map(|terminal| terminal.fd());
        adopt(true);
        command.process_group(0);
        // SAFETY: `in_child` makes system calls only, and none that is forbidden between fork and exec.
        unsafe { command.pre_exec(move || in_child(windlass, tty)) };
        let started = command.spawn();
        if let Some(terminal) = terminal {
            terminal.was_taken();
        }
        // The standard library's own handle is not for us: it cannot tell of a stop.
        let child = started.inspect_err(|_| adopt(false))?;
        let leader = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Self { leader, ended: None })
    }

    pub(crate) fn id(&self) -> Pid {
        self.leader
    }

    /// How the command itself ended, if it has; others of its group may live on.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Whether nobody is left in the group.
    pub(crate) fn is_gone(&self) -> bool {
        // Those who may not be told are there, too: EPERM.
        self.ended.is_some() && killpg(self.leader, None) == Err(Errno::ESRCH)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if !self.is_gone() {
            // It may end at this very moment, and then there is nothing to be told.
            let _ = killpg(self.leader, signal);
        }
    }

    /// Takes note of who has ended. If the command itself was stopped: by which signal.
    pub(crate) fn reap(&mut self) -> Option<Signal> {
        let mut stopped = None;
        loop {
            let mut status = 0;
            // Everybody's end, not only the group's: who has left the group and lost its parent is ours to bury, too.
            // SAFETY: the call writes to `status` only.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED) };
            match pid {
                -1 if Errno::last() == Errno::EINTR => {}
                pid if pid <= 0 => return stopped,
                pid if pid != self.leader.as_raw() => {}
                _ if libc::WIFSTOPPED(status) => stopped = Signal::try_from(libc::WSTOPSIG(status)).ok(),
                _ if libc::WIFSIGNALED(status) => self.ended = Some(Ended::Killed(libc::WTERMSIG(status))),
                _ => {
                    let status = u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX);
                    self.ended = Some(Ended::Exited(status));
                }
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        adopt(false);
    }
}

/// Between fork and exec.
fn in_child(windlass: Pid, tty: Option<RawFd>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // The lock of a file is freed by our death, so the command must not survive it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != windlass {
            return Err(Errno::ESRCH.into());
        }
    }
    if let Some(tty) = tty {
        // SAFETY: the descriptor is open until exec closes it.
        let tty = unsafe { BorrowedFd::borrow_raw(tty) };
        let ttou = SigSet::from(Signal::SIGTTOU);
        ttou.thread_block()?;
        // Without the terminal it runs as well, until it wants to read from it.
        let _ = tcsetpgrp(tty, getpid());
        ttou.thread_unblock()?;
    }
    Ok(())
}

/// Whether orphans among our descendants become our children.
#[cfg(target_os = "linux")]
fn adopt(orphans: bool) {
    let _ = nix::sys::prctl::set_child_subreaper(orphans);
}

#[cfg(not(target_os = "linux"))]
fn adopt(_: bool) {}
