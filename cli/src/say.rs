//! What `windlass run` has to say: lines for people, or JSON lines, on stderr. Stdout is the command's.

use std::io::{Write, stderr};

use serde_json::{Value, json};
use windlass::Name;

use crate::{exit::Failure, text::complain};

#[derive(Debug)]
pub(crate) struct Say {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) lock: Name,
}

impl Say {
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
            complain(text);
        }
    }

    /// What went wrong; what is left to be said of it.
    pub(crate) fn failed(&self, failure: Failure) -> Failure {
        match &failure.message {
            Some(message) if self.json => {
                self.write("failed", json!({ "message": message, "status": failure.status }));
                Failure::silent(failure.status)
            }
            _ => failure,
        }
    }

    fn write(&self, event: &str, details: Value) {
        let mut line = json!({ "event": event, "lock": self.lock });
        if let (Some(line), Value::Object(details)) = (line.as_object_mut(), details) {
            line.extend(details);
        }
        // Where even that fails there is nobody to tell.
        let _ = writeln!(stderr().lock(), "{line}");
    }
}
