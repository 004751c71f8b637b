//! The controlling terminal: who of windlass and its command is in the foreground.
//!
//! The command has a process group of its own, so it must be told to the terminal as the foreground one, or it could
//! neither read from it nor be reached by Ctrl-C and Ctrl-Z; and taken back before a shell goes on. In a pipeline the
//! terminal stays with the job of the shell, to which the other programs of the pipeline belong, until the command asks
//! for it by being stopped for reading or changing it. So it does where stdin is no terminal: a script that starts us
//! with `&` gives us /dev/null there, is in the foreground itself, and goes on.

use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal, stdin, stdout},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    libc,
    sys::{
        signal::{SigSet, Signal},
        stat::{SFlag, fstat},
        termios::{SetArg, Termios, tcgetattr, tcsetattr},
    },
    unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp},
};

#[derive(Debug)]
pub(crate) struct Terminal {
    tty: File,
    ours: Pid,
    modes: Option<Termios>,
    given: bool,
    /// It was given before, or the command has asked for it.
    wanted: bool,
    ttou_was_blocked: bool,
}

impl Terminal {
    /// The controlling terminal, if there is one. Until this is dropped, this thread may write to it and set it up from
    /// the background, too.
    pub(crate) fn open() -> Option<Self> {
        let tty =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/tty").ok()?;
        let modes = tcgetattr(&tty).ok();
        let ttou_was_blocked = SigSet::thread_get_mask().is_ok_and(|mask| mask.contains(Signal::SIGTTOU));
        let _ = SigSet::from(Signal::SIGTTOU).thread_block();
        Some(Self { tty, ours: getpgrp(), modes, given: false, wanted: false, ttou_was_blocked })
    }

    /// Whether windlass is in the foreground.
    pub(crate) fn is_ours(&self) -> bool {
        self.foreground() == Some(self.ours)
    }

    /// Whether the command should have the terminal from its start: it is neither part of a pipeline nor in the
    /// background of a script.
    pub(crate) fn is_ours_alone(&self) -> bool {
        self.is_ours() && stdin().is_terminal() && !is_pipe(stdout())
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.tty.as_raw_fd()
    }

    /// Whether the command has the terminal by our doing.
    pub(crate) fn is_given(&self) -> bool {
        self.given
    }

    /// The command has taken it as it was told to.
    pub(crate) fn was_taken(&mut self) {
        self.given = true;
        self.wanted = true;
    }

    /// The command was stopped for doing what only the foreground may do.
    pub(crate) fn is_asked_for(&mut self) {
        self.wanted = true;
    }

    /// Gives it to the command that wants it, if windlass is in the foreground.
    pub(crate) fn give(&mut self, group: Pid) {
        match self.foreground() {
            Some(foreground) if foreground == self.ours => {
                self.given = self.wanted && tcsetpgrp(&self.tty, group).is_ok();
            }
            Some(foreground) if foreground == group => {}
            // A shell has it: we were put into the background.
            _ => self.given = false,
        }
    }

    /// Takes back what was given.
    pub(crate) fn take_back(&mut self) {
        if std::mem::take(&mut self.given) && !self.is_ours() {
            let _ = tcsetpgrp(&self.tty, self.ours);
        }
    }

    /// Sets it up as it was: for a command that had no time to do so.
    pub(crate) fn restore(&self) {
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, modes);
        }
    }

    fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.tty).ok()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take_back();
        if !self.ttou_was_blocked {
            let _ = SigSet::from(Signal::SIGTTOU).thread_unblock();
        }
    }
}

fn is_pipe(stream: impl AsFd) -> bool {
    fstat(stream).is_ok_and(|stat| {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK
    })
}

/// Whether this process group may draw on the terminal that is its stderr.
pub(crate) fn may_draw() -> bool {
    tcgetpgrp(std::io::stderr()).is_ok_and(|foreground| foreground == getpgrp())
}
