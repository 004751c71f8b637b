//! The `windlass` command as a library, so that the binary and the Python package are one program.

mod args;
mod exit;
mod list;
mod manual;
mod release;
mod serve;
mod text;
mod token;
mod watch;

#[cfg(unix)]
mod child;
#[cfg(unix)]
mod hold;
#[cfg(unix)]
mod run;
#[cfg(unix)]
mod say;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod waiting;

use std::{ffi::OsString, future::Future, io::Write};

use clap::{Parser, error::ErrorKind};
use windlass::{ConnectOptions, Locker};

use crate::{
    args::{Cli, Command, Place},
    exit::{Exit, Failure, OS_ERROR, USAGE},
};

/// Runs the command line whose arguments, without the name of the program, these are, and returns the exit status.
///
/// It may be called in a process that is not its own, but takes over that process's signals. Where a signal ends it,
/// the process dies of that signal.
pub fn main(args: Vec<OsString>) -> i32 {
    #[cfg(unix)]
    signals::end_on_interrupt();
    let program = OsString::from("windlass");
    let command = match Cli::try_parse_from(std::iter::once(program).chain(args)) {
        Ok(cli) => cli.command,
        Err(told) => return usage(&told),
    };
    let outcome = match command {
        Command::Run(run) => start(run::run(*run)),
        Command::Ls(ls) => start(list::ls(ls)),
        Command::Watch(watch) => start(watch::watch(watch)),
        Command::Release(release) => start(release::release(release)),
        Command::Serve(serve) => serve::serve(&serve),
        Command::Token(token) => token::token(&token),
        Command::Completions(completions) => manual::completions(&completions),
        Command::Man(man) => manual::man(&man),
    };
    match outcome {
        Ok(exit) => exit.status(),
        Err(failure) => failure.tell(),
    }
}

#[cfg(not(unix))]
mod run {
    use super::{Exit, Failure, args, exit};

    pub(super) async fn run(_: args::Run) -> Result<Exit, Failure> {
        Err(Failure::new(
            exit::UNAVAILABLE,
            "windlass run needs process groups, which this system does not have",
        ))
    }
}

fn start(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| Failure::new(OS_ERROR, format!("cannot wait for events: {error}")))?;
    runtime.block_on(work)
}

/// Connects to where the locks live.
async fn connect(place: &Place, options: ConnectOptions) -> Result<Locker, Failure> {
    let url = match &place.url {
        Some(url) => utf8(url, "the URL")?.to_owned(),
        None => windlass::default_url()?,
    };
    if url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("memory:")) {
        let message =
            "memory: is the memory of one process, so a command with it shuts nobody out: use another place";
        return Err(Failure::new(USAGE, message));
    }
    Ok(options.connect(&url).await?)
}

/// Text of the command line that must be UTF-8 and is not the name of a lock.
fn utf8<'a>(text: &'a std::ffi::OsStr, what: &str) -> Result<&'a str, Failure> {
    text.to_str().ok_or_else(|| Failure::new(USAGE, format!("{what} is not UTF-8: give it as UTF-8 text")))
}

/// The name of a lock from the command line.
fn name(text: &std::ffi::OsStr) -> Result<windlass::Name, Failure> {
    Ok(windlass::Name::from_bytes(text.as_encoded_bytes())?)
}

/// What clap has to tell: help, the version, or what is wrong with the command line.
fn usage(told: &clap::Error) -> i32 {
    if told.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = write!(std::io::stderr(), "{told}");
        return USAGE.into();
    }
    if told.use_stderr() {
        let text = told.to_string();
        return Failure::new(USAGE, text.strip_prefix("error: ").unwrap_or(&text).trim_end()).tell();
    }
    match text::print(&told.to_string()) {
        Ok(()) => 0,
        Err(failure) => failure.tell(),
    }
}
