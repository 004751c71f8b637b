//! Who got, lost, freed and was refused what: one JSON object a line, to a writer of the caller's.
//!
//! ```json
//! {"at_ms":1760000000000,"event":"granted","who":"ci","namespace":"team-a","lock":"deploy","owner":"ann@build-7:4711","fencing_token":12}
//! ```
//!
//! No line has a claim id or a token. Names are JSON strings, so no name makes a line of its own. Lines are written by a
//! thread of their own: a slow disk delays no lock. When it is so slow that ten thousand lines wait, further ones are left out, and
//! a line says how many.

use std::{
    fmt,
    io::{self, BufWriter, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use windlass::{LostReason, Name};

/// How many lines may wait to be written.
const MOST: usize = 10_000;

/// Where the lines go. Clones write to the same place; when the last is dropped, everything has been written.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    lines: Option<SyncSender<Vec<u8>>>,
    left_out: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Writes to `writer`, and flushes whenever there is nothing more to write.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn to(writer: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, read) = sync_channel(MOST);
        let left_out = Arc::<AtomicU64>::default();
        let count = left_out.clone();
        let thread = std::thread::Builder::new()
            .name("windlass-audit".to_owned())
            .spawn(move || write_all(&read, &count, BufWriter::new(writer)))?;
        Ok(Self(Arc::new(Inner { lines: Some(lines), left_out, thread: Mutex::new(Some(thread)) })))
    }

    pub(crate) fn write(&self, event: &Event<'_>) {
        let Some(lines) = &self.0.lines else { return };
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if lines.try_send(line).is_err() {
            self.0.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, left_out: &AtomicU64, mut writer: impl Write) {
    while let Ok(first) = lines.recv() {
        let mut written = writer.write_all(&first);
        for line in lines.try_iter() {
            written = written.and_then(|()| writer.write_all(&line));
        }
        let count = left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            written = written.and_then(|()| writeln!(writer, r#"{{"event":"left_out","lines":{count}}}"#));
        }
        if let Err(error) = written.and_then(|()| writer.flush()) {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lines = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has no panics to tell of.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audit")
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", content = "reason", rename_all = "snake_case")]
pub(crate) enum What {
    Granted,
    Released,
    Lost(LostReason),
    ForceReleased,
    Refused(u16),
}

/// A line.
#[derive(Debug, Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) at_ms: u64,
    #[serde(flatten)]
    pub(crate) what: What,
    /// A token's name or an address.
    pub(crate) who: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lock: Option<&'a Name>,
    /// What the claim says of itself; nobody has checked it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fencing_token: Option<u64>,
    /// What was asked for, for a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<&'a str>,
}

impl<'a> Event<'a> {
    pub(crate) fn new(what: What, who: &'a str) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at_ms: windlass::protocol::millis(at),
            what,
            who,
            namespace: None,
            lock: None,
            owner: None,
            fencing_token: None,
            request: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_event_is_a_line() {
        let written = Shared::default();
        let audit = Audit::to(written.clone()).unwrap();
        let name: Name = "two\nlines\u{7}".parse().unwrap();
        audit.write(&Event {
            lock: Some(&name),
            fencing_token: Some(7),
            ..Event::new(What::Lost(LostReason::Stolen), "ci")
        });
        audit.write(&Event::new(What::Refused(403), "10.0.0.1"));
        drop(audit);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].ends_with(
                r#""event":"lost","reason":"stolen","who":"ci","lock":"two\nlines\u0007","fencing_token":7}"#
            ),
            "{text}"
        );
        assert!(lines[1].ends_with(r#""event":"refused","reason":403,"who":"10.0.0.1"}"#), "{text}");
    }
}
