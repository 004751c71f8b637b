//! What is shown while `windlass run` waits: on a terminal a line that keeps up with the wait and goes with it, elsewhere a
//! line in the log.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use serde_json::json;
use windlass::{
    Status, Waiting,
    ask::Rough,
    rt::{Native, Runtime},
    time::Moment,
};

use crate::{
    say::Say,
    terminal::may_draw,
    text::{cut, plain},
};

/// After this long without an answer of the backend, people are told that there is none.
const SILENCE: Duration = Duration::from_secs(2);

pub(crate) struct WaitLine<'a> {
    say: &'a Say,
    /// Where the locks live, for the case that no answer comes from there.
    url: String,
    live: bool,
    start: Moment,
    heard: Option<(Waiting, Moment)>,
    /// What went wrong since.
    trouble: Option<String>,
    said_silence: bool,
    drawn: bool,
}

impl<'a> WaitLine<'a> {
    pub(crate) fn new(say: &'a Say, url: String) -> Self {
        let live = stderr().is_terminal() && !say.quiet && !say.json;
        Self {
            say,
            url,
            live,
            start: Native.now(),
            heard: None,
            trouble: None,
            said_silence: false,
            drawn: false,
        }
    }

    /// Whether the line keeps up with the wait.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// The wait has begun, or there is news of it.
    pub(crate) fn heard(&mut self, waiting: Waiting) {
        let first = self.heard.is_none();
        self.heard = Some((waiting, Native.now()));
        self.trouble = None;
        if self.live {
            self.draw();
        } else if first {
            self.log();
        }
    }

    /// The backend could not be asked; it is asked again.
    pub(crate) fn troubled(&mut self, trouble: String) {
        let first = self.trouble.replace(trouble).is_none();
        if self.live {
            self.tick();
        } else if first && self.heard.is_some() {
            self.log();
        }
    }

    /// Somebody had a look at the lock.
    pub(crate) fn seen(&mut self, status: Status, is_ours: &dyn Fn(&str) -> bool) {
        let Some((waiting, _)) = &self.heard else { return };
        // While the lock changes hands nobody holds it.
        let holders = if status.holders.is_empty() { waiting.holders.clone() } else { status.holders };
        let mine = |waiter: &windlass::Waiter| is_ours(&waiter.owner.owner);
        let place = match status.waiters.iter().filter(|waiter| mine(waiter)).count() {
            1 => status.waiters.iter().position(mine).map(|at| at + 1),
            _ => waiting.place,
        };
        self.heard(Waiting { holders, place });
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        let silent = self.heard.is_none() && Native.now().since(self.start) >= SILENCE;
        if self.live && (self.heard.is_some() || silent) {
            self.draw();
        } else if silent && !std::mem::replace(&mut self.said_silence, true) {
            self.log();
        }
    }

    /// The wait is over.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) && may_draw() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    fn draw(&mut self) {
        if !may_draw() {
            return;
        }
        let columns = terminal_size::terminal_size_of(stderr()).map_or(80, |(width, _)| usize::from(width.0));
        let waited = Rough(Duration::from_secs(Native.now().since(self.start).as_secs()));
        let place = self.heard.as_ref().and_then(|(waiting, _)| waiting.place);
        // First what must not be cut off.
        let about: Vec<String> = (!waited.0.is_zero())
            .then(|| waited.to_string())
            .into_iter()
            .chain(place.map(|place| format!("place {place}")))
            .collect();
        let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join(", ")) };
        let line = format!("windlass: waiting for \"{}\"{about}: {}", self.say.lock, self.what(false));
        let _ = write!(stderr(), "\r\x1b[K{}", cut(&line, columns.saturating_sub(1)));
        self.drawn = true;
    }

    fn log(&self) {
        let details = self.heard.as_ref().map_or_else(|| json!({}), |(waiting, _)| json!(waiting));
        self.say.note("waiting", details, &format!("waiting for \"{}\": {}", self.say.lock, self.what(true)));
    }

    fn what(&self, with_place: bool) -> String {
        let Some((waiting, when)) = &self.heard else {
            let why = self.trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default();
            return plain(&format!("no answer yet from {}{why}", self.url));
        };
        let since = Native.now().since(*when);
        let mut waiting = waiting.clone();
        waiting.place = waiting.place.filter(|_| with_place);
        for held_for in waiting.holders.iter_mut().filter_map(|holder| holder.held_for.as_mut()) {
            *held_for += since;
        }
        match &self.trouble {
            None => plain(&waiting.to_string()),
            Some(trouble) => plain(&format!("{waiting}; but now {trouble}")),
        }
    }
}
