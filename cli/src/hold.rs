//! The command while the lock is held for it.

use std::{io, process::Command, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, pending},
};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::Notify;
use windlass::{
    Guard, LostReason,
    ask::Rough,
    rt::{Native, Runtime},
};

use crate::{
    args::Run,
    child::{Ended, Group},
    exit::{Exit, Failure, HELD_TOO_LONG, LOST, NOT_EXECUTABLE, NOT_FOUND, OS_ERROR},
    say::Say,
    signals::{Signals, listener, stop},
    terminal::Terminal,
    text::{plain, seconds},
};

/// How often the group is looked at after the command itself has ended. On Linux its ends are told; this is for
/// other systems, and for processes whose parent has left the group.
const GLANCE: Duration = Duration::from_millis(100);
/// How often it is looked at how long the lock is held at the least.
const LOOK: Duration = Duration::from_millis(500);
/// After how many glances people are told that the command has left others behind.
const LEFT_BEHIND: u32 = 10;

/// A command that runs under a lock.
pub(crate) struct Hold<'a> {
    say: &'a Say,
    guard: &'a Guard,
    signals: &'a mut Signals,
    too_long: &'a Notify,
    children: tokio::signal::unix::Signal,
    group: Group,
    terminal: Option<Terminal>,
    kill_after: Duration,
    /// The lock is lost after this time, unless it is renewed.
    runs_out: BoxFuture<'a, Duration>,
    /// Why the group was told to end, if it was.
    ending: Option<Ending>,
    kill_at: Timer,
    glance: Timer,
    glances: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Lost,
    /// The lock will be lost soon, unless the backend can be reached again.
    RunsOut,
    HeldTooLong,
    /// The command has ended, and a signal came for those whom it left behind.
    Signalled,
}

impl<'a> Hold<'a> {
    /// Starts the command.
    pub(crate) fn start(
        args: &Run,
        say: &'a Say,
        guard: &'a Guard,
        signals: &'a mut Signals,
        too_long: &'a Notify,
    ) -> Result<Self, Failure> {
        let children = listener(Signal::SIGCHLD)
            .map_err(|error| Failure::new(OS_ERROR, format!("cannot listen for signals: {error}")))?;
        let (program, mut command) = command(args);
        command.env("WINDLASS_LOCK", guard.name().as_str());
        // A script that needs one where there is none must not find another lock's.
        match guard.fencing_token() {
            0 => command.env_remove("WINDLASS_FENCING_TOKEN"),
            token => command.env("WINDLASS_FENCING_TOKEN", token.to_string()),
        };
        let mut terminal = Terminal::open();
        let for_it = terminal.as_mut().filter(|terminal| terminal.is_ours_alone());
        let group = Group::start(command, for_it).map_err(|error| not_started(&program, &error))?;
        Ok(Self {
            say,
            guard,
            signals,
            too_long,
            children,
            group,
            terminal,
            kill_after: args.kill_after,
            runs_out: runs_out(guard, args.kill_after).boxed(),
            ending: None,
            kill_at: None,
            glance: None,
            glances: 0,
        })
    }

    /// Waits until nobody is left in the group, passing on signals, and ending the group when the lock is lost. Says how
    /// the program is to end.
    pub(crate) async fn until_gone(mut self) -> Exit {
        loop {
            tokio::select! {
                biased;
                reason = self.guard.lost(), if self.ending != Some(Ending::Lost) => self.lost(reason),
                () = due(&mut self.kill_at) => self.group.signal(Signal::SIGKILL),
                () = self.too_long.notified(), if self.ending.is_none() => self.held_too_long(),
                remaining = &mut self.runs_out, if self.ending.is_none() => self.runs_out(remaining),
                _ = self.children.recv() => {}
                signal = self.signals.next() => self.signalled(signal),
                () = due(&mut self.glance) => {
                    self.glances += 1;
                    if self.glances == LEFT_BEHIND {
                        self.left_behind();
                    }
                }
            }
            if let Some(signal) = self.group.reap() {
                self.stopped(signal);
            }
            if let Some(ended) = self.group.ended() {
                if self.group.is_gone() {
                    return self.gone(ended);
                }
                self.glance.get_or_insert_with(|| Native.sleep(GLANCE));
            }
        }
    }

    /// The lock is lost: another may hold it now, so every moment counts, and talking comes second.
    fn lost(&mut self, reason: LostReason) {
        let (kill_after, ends) = if self.ending.is_some() {
            // The group has had its time.
            self.group.signal(Signal::SIGKILL);
            (Duration::ZERO, "ending the command: SIGKILL".to_owned())
        } else {
            self.end_group();
            (self.kill_after, self.told_to_end())
        };
        self.ending = Some(Ending::Lost);
        let error = self.guard.check().err().map_or_else(String::new, |error| format!("{error:#}; "));
        let details = json!({ "reason": reason, "kill_after_ms": kill_after.as_millis() as u64 });
        self.say.warn("lost", details, &format!("{error}{ends}"));
    }

    /// Nobody else can have the lock yet: the group gets its time before that, not after it.
    fn runs_out(&mut self, remaining: Duration) {
        self.end_group();
        self.ending = Some(Ending::RunsOut);
        let details = json!({ "kill_after_ms": remaining.as_millis() as u64 });
        let text = format!(
            "\"{}\" could not be renewed, and is lost in {}; ending the command: SIGTERM now, SIGKILL then",
            self.say.lock,
            Rough(remaining)
        );
        self.say.warn("runs_out", details, &text);
    }

    fn held_too_long(&mut self) {
        self.end_group();
        self.ending = Some(Ending::HeldTooLong);
        let details = json!({ "kill_after_ms": self.kill_after.as_millis() as u64 });
        let text = format!("\"{}\" was held for all of --max-hold; {}", self.say.lock, self.told_to_end());
        self.say.warn("held_too_long", details, &text);
    }

    fn end_group(&mut self) {
        self.group.signal(Signal::SIGTERM);
        // Who is stopped hears it only when going on.
        self.group.signal(Signal::SIGCONT);
        self.kill_at = Some(Native.sleep(self.kill_after));
    }

    fn told_to_end(&self) -> String {
        format!("ending the command: SIGTERM now, SIGKILL in {}", seconds(self.kill_after))
    }

    fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCONT => self.go_on(),
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT
                if self.group.ended().is_some() =>
            {
                // Background processes of a shell ignore SIGINT, so passing it on would end nobody.
                if self.ending.is_none() {
                    self.ending = Some(Ending::Signalled);
                    self.end_group();
                }
            }
            signal => self.group.signal(signal),
        }
    }

    /// The command was stopped. On a terminal, windlass stops with it, as one job of the shell.
    fn stopped(&mut self, signal: Signal) {
        let Some(terminal) = &mut self.terminal else { return };
        let wants_terminal = matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU);
        if wants_terminal {
            terminal.is_asked_for();
        }
        if wants_terminal && terminal.is_ours() {
            return self.go_on();
        }
        // SIGSTOP comes from the terminal's user (a shell's `suspend`), or from anybody else for the command alone.
        if signal == Signal::SIGSTOP && !terminal.is_given() {
            return;
        }
        terminal.take_back();
        stop(if wants_terminal { Signal::SIGTTIN } else { Signal::SIGTSTP });
        self.go_on();
    }

    /// Lets the group go on, in the foreground if windlass is there.
    fn go_on(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            terminal.give(self.group.id());
        }
        if !self.guard.is_held() {
            // Lost while stopped: the group must not do a thing more of what the lock guards.
            self.group.signal(Signal::SIGTERM);
        }
        self.group.signal(Signal::SIGCONT);
    }

    fn left_behind(&self) {
        let text = format!(
            "the command has ended, but not all that it has started: holding \"{}\" until process group {} is gone",
            self.say.lock,
            self.group.id()
        );
        self.say.note("left_behind", json!({ "process_group": self.group.id().as_raw() }), &text);
    }

    fn gone(mut self, ended: Ended) -> Exit {
        let mut had_terminal = false;
        if let Some(terminal) = &mut self.terminal {
            had_terminal = terminal.is_given();
            terminal.take_back();
            if had_terminal && matches!(ended, Ended::Killed(_)) {
                terminal.restore();
            }
        }
        match (self.ending, ended) {
            (Some(Ending::Lost | Ending::RunsOut), _) => Exit::Status(LOST),
            (Some(Ending::HeldTooLong), _) => Exit::Status(HELD_TOO_LONG),
            (_, Ended::Killed(signal)) if had_terminal && signal == Signal::SIGINT as i32 => {
                Exit::SignalToGroup(Signal::SIGINT)
            }
            (_, ended) => Exit::Status(ended.status()),
        }
    }
}

/// Completes when the command has to be told to end if it is to have so much time for it before the lock is lost, or the last
/// quarter of the TTL. What is lost already is not told here.
async fn runs_out(guard: &Guard, time_to_end: Duration) -> Duration {
    let mut longest = Duration::ZERO;
    // Who is given no time needs none before.
    while let Some(remaining) = guard.remaining().filter(|left| !left.is_zero() && !time_to_end.is_zero()) {
        longest = longest.max(remaining);
        let notice = time_to_end.min(longest / 4);
        if remaining > notice {
            // Timers stand still in suspend, and leases do not.
            Native.sleep((remaining - notice).min(LOOK)).await;
            continue;
        }
        // After a stop this may be noticed before the renewal that is due by then comes through.
        Native.sleep(remaining / 4).await;
        match guard.remaining() {
            Some(less) if less < remaining && !less.is_zero() => return less,
            _ => {}
        }
    }
    pending().await
}

type Timer = Option<BoxFuture<'static, ()>>;

/// Completes when the timer does; never, if none is set. Cancel-safe.
async fn due(timer: &mut Timer) {
    match timer {
        Some(running) => running.await,
        None => pending().await,
    }
    *timer = None;
}

/// The command that was asked for, and its name for messages.
fn command(args: &Run) -> (String, Command) {
    let command = match (&args.shell, args.command.split_first()) {
        (None, Some((program, rest))) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        (text, _) => {
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
            let mut command = Command::new(shell.unwrap_or_else(|| "/bin/sh".into()));
            command.arg("-c").args(text);
            command
        }
    };
    let program = plain(&command.get_program().to_string_lossy());
    (program, command)
}

fn not_started(program: &str, error: &io::Error) -> Failure {
    let status = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => OS_ERROR,
        _ => NOT_EXECUTABLE,
    };
    Failure::new(status, format!("cannot run {program}: {error}"))
}
