//! What `windlass run` has to say: lines for people, or JSON lines, on stderr. Stdout is the command's.

use std::{
    io::{self, Write, stderr},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use windlass::Name;

use crate::{args::Run, exit::Failure, text::complaint};

/// How long a line is waited for. Whoever reads stderr may stand still, and a command whose lock is lost must be killed
/// all the same.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Say {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) lock: Name,
    lines: Aside,
}

impl Say {
    pub(crate) fn new(args: &Run, lock: Name) -> Self {
        Self { json: args.json, quiet: args.quiet, lock, lines: Aside::default() }
    }

    /// Something that happened and that only JSON tells.
    pub(crate) fn event(&self, event: &str, details: Value) {
        if self.json && !self.quiet {
            self.write(event, details);
        }
    }

    /// Something worth knowing.
    pub(crate) fn note(&self, event: &str, details: Value, text: &str) {
        if !self.quiet {
            self.warn(event, details, text);
        }
    }

    /// Something that must be known.
    pub(crate) fn warn(&self, event: &str, details: Value, text: &str) {
        if self.json {
            self.write(event, details);
        } else {
            self.line(complaint(text));
        }
    }

    /// What went wrong; what is left to be said of it.
    pub(crate) fn failed(&self, failure: Failure) -> Failure {
        let status = failure.status;
        if let Some(message) = failure.message {
            self.warn("failed", json!({ "message": message, "status": status }), &message);
        }
        Failure::silent(status)
    }

    fn write(&self, event: &str, details: Value) {
        let mut line = json!({ "event": event, "lock": self.lock });
        if let (Some(line), Value::Object(details)) = (line.as_object_mut(), details) {
            line.extend(details);
        }
        self.line(format!("{line}\n"));
    }

    fn line(&self, line: String) {
        // Where even that fails there is nobody to tell.
        let put = |line: &str| drop(stderr().lock().write_all(line.as_bytes()));
        let line: Arc<str> = line.into();
        let same = line.clone();
        if self.lines.have_done(move || put(&same)).is_err() {
            put(&line);
        }
    }
}

/// Does one thing after another, but lets nobody wait long for it.
#[derive(Debug, Default)]
struct Aside(Mutex<Option<JoinHandle<()>>>);

impl Aside {
    /// Returns when it is done: as a rule at once, so that nothing is lost when the program ends. What takes longer is
    /// gone on with as long as the program lives.
    ///
    /// # Errors
    /// The system has no thread for it: it is not done.
    fn have_done(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.take();
        let (done, is_done) = mpsc::channel::<()>();
        let in_turn = move || {
            // It cannot have failed in a way that matters here.
            let _ = before.map(JoinHandle::join);
            work();
            drop(done);
        };
        // A thread for each, and not one of `rt`: it is stopped for writing to a terminal from the background where the
        // calling thread would be.
        *last = Some(Builder::new().name("windlass-say".to_owned()).spawn(in_turn)?);
        let _ = is_done.recv_timeout(PATIENCE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_is_not_waited_for_and_the_rest_comes_after_it() {
        let aside = Aside::default();
        let said = Arc::new(Mutex::new(Vec::new()));
        let say = |what: &'static str| {
            let said = said.clone();
            move || said.lock().unwrap().push(what)
        };
        aside.have_done(say("first")).unwrap();
        assert_eq!(*said.lock().unwrap(), ["first"], "as a rule it is done at once");
        let (go_on, wait) = mpsc::channel::<()>();
        let second = say("second");
        let slow = move || {
            let _ = wait.recv();
            second();
        };
        aside.have_done(slow).unwrap();
        aside.have_done(say("third")).unwrap();
        assert_eq!(*said.lock().unwrap(), ["first"]);
        drop(go_on);
        aside.have_done(say("fourth")).unwrap();
        assert_eq!(*said.lock().unwrap(), ["first", "second", "third", "fourth"]);
    }
}
