//! What the server counts, as Prometheus reads it: text format 0.0.4. No name of a lock, an owner or a namespace is in it: each
//! would make a series of its own, and whoever may read numbers may not see locks.
//!
//! What happens to claims the table itself counts, where it has its mutex anyway; the rest are relaxed atomics, or is
//! looked up when somebody asks.

use std::{
    fmt::{Display, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{Response, header},
    response::IntoResponse,
    routing::get,
};
use windlass::{
    ErrorKind,
    protocol::{Problem, kind_text},
    table::{RANGES_MS, REASONS, Tally, Times},
};

use crate::{limits::Connections, routes::of_this_moment, spaces::Spaces, who::Who};

const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All statuses of refusals; what is none of them is counted with the last.
const STATUSES: [u16; 13] = [400, 401, 403, 404, 405, 408, 409, 411, 413, 422, 429, 503, 500];
/// All kinds of them, in the same way.
const KINDS: [&str; 9] = [
    "invalid_name",
    "invalid_input",
    "unsupported",
    "timeout",
    "not_held",
    "denied",
    "unavailable",
    "storage",
    "internal",
];

/// What is refused by an answer, for [`Refusals`] and the audit log: an answer has a list of these.
#[derive(Clone)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    kind: String,
}

impl Refused {
    pub(crate) fn of(problem: &Problem) -> Self {
        Self { status: problem.status, kind: problem.kind.clone() }
    }

    /// What this answer refuses.
    pub(crate) fn all<B>(response: &Response<B>) -> &[Self] {
        response.extensions().get::<Vec<Self>>().map_or(&[], Vec::as_slice)
    }
}

/// Refusals by what they said.
#[derive(Default)]
pub(crate) struct Refusals([[AtomicU64; KINDS.len()]; STATUSES.len()]);

impl Refusals {
    pub(crate) fn count<B>(&self, response: &Response<B>) {
        for Refused { status, kind } in Refused::all(response) {
            let row = STATUSES.iter().position(|known| known == status).unwrap_or(STATUSES.len() - 1);
            let column = KINDS.iter().position(|known| known == kind).unwrap_or(KINDS.len() - 1);
            self.0[row][column].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn each(&self) -> impl Iterator<Item = (String, u64)> {
        let rows = STATUSES.iter().zip(&self.0);
        let all = rows.flat_map(|(status, row)| KINDS.iter().zip(row).map(move |cell| (status, cell)));
        all.filter_map(|(status, (kind, count))| {
            let count = count.load(Ordering::Relaxed);
            let labels = format!("kind=\"{kind}\",status=\"{status}\"");
            // The two that are watched for are there from the start.
            let is_usual = *kind == kind_text(ErrorKind::Denied) && matches!(*status, 401 | 403);
            (count > 0 || is_usual).then_some((labels, count))
        })
    }
}

/// Where the numbers are.
#[derive(Clone)]
pub(crate) struct Meter {
    pub(crate) spaces: Arc<Spaces>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) refusals: Arc<Refusals>,
}

pub(crate) fn router<S: Clone + Send + Sync + 'static>(meter: Meter) -> Router<S> {
    Router::new().route("/metrics", get(metrics)).with_state(meter)
}

async fn metrics(State(meter): State<Meter>, _: Who) -> impl IntoResponse {
    of_this_moment(([(header::CONTENT_TYPE, FORMAT)], meter.text().await))
}

impl Meter {
    async fn text(&self) -> String {
        let counted = self.spaces.counted();
        let ready = self.spaces.ready().await.is_ok();
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));

        let mut text = Text(String::with_capacity(8 * 1024));
        text.gauge("build_info", "The version of the server.", [(version, 1)]);
        text.gauge("ready", "Whether the server grants locks now.", one(u8::from(ready)));
        text.gauge("namespaces", "Namespaces.", one(counted.namespaces));
        text.gauge("clients", "Clients heard of within a minute.", one(counted.clients));
        text.gauge("connections", "Connections.", one(self.connections.count()));
        text.counter("refusals_total", "Requests that were refused.", self.refusals.each());
        if let Some((locks, tally)) = counted.locks {
            self.locks(&mut text, locks, &tally);
        }
        text.0
    }

    /// What only a server can count that has its locks to itself.
    fn locks(&self, text: &mut Text, locks: usize, tally: &Tally) {
        let grace = self.spaces.grace_left().unwrap_or_default();
        let lost = REASONS.iter().map(|reason| format!("reason=\"{reason}\"")).zip(tally.lost);
        text.gauge("epoch", "How many servers there were in this data directory.", one(self.spaces.epoch));
        text.gauge(
            "grace_seconds",
            "For how long nothing new is granted, after an abrupt end.",
            one(grace.as_secs_f64()),
        );
        text.gauge("locks_held", "Locks that somebody holds.", one(locks));
        text.gauge("holders", "Claims that hold a lock.", one(tally.holding));
        text.gauge("waiters", "Claims that wait.", one(tally.waiting));
        text.counter(
            "grants_total",
            "Claims that were granted.",
            one(tally.waited.counts.iter().sum::<u64>()),
        );
        text.counter("releases_total", "Claims that their holders released.", one(tally.released));
        text.counter("losses_total", "Claims that were lost, by reason.", lost);
        text.counter("given_up_total", "Claims that left the queue without a grant.", one(tally.gave_up));
        text.histogram("wait_seconds", "How long granted claims had waited.", &tally.waited);
        text.histogram("hold_seconds", "How long claims held that hold no longer.", &tally.held);
    }
}

/// One series without labels.
fn one<N: Display>(number: N) -> [(String, N); 1] {
    [(String::new(), number)]
}

struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A string takes what it is given.
        let _ = self.0.write_fmt(line);
    }

    fn head(&mut self, name: &str, what: &str, help: &str) {
        self.line(format_args!("# HELP windlass_{name} {help}\n# TYPE windlass_{name} {what}\n"));
    }

    fn gauge<N: Display>(&mut self, name: &str, help: &str, all: impl IntoIterator<Item = (String, N)>) {
        self.series(name, "gauge", help, all);
    }

    fn counter<N: Display>(&mut self, name: &str, help: &str, all: impl IntoIterator<Item = (String, N)>) {
        self.series(name, "counter", help, all);
    }

    fn series<N: Display>(
        &mut self,
        name: &str,
        what: &str,
        help: &str,
        all: impl IntoIterator<Item = (String, N)>,
    ) {
        self.head(name, what, help);
        for (labels, number) in all {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            self.line(format_args!("windlass_{name}{labels} {number}\n"));
        }
    }

    fn histogram(&mut self, name: &str, help: &str, times: &Times) {
        self.head(name, "histogram", help);
        let mut below = 0;
        for (end, count) in RANGES_MS.iter().zip(times.counts) {
            below += count;
            self.line(format_args!("windlass_{name}_bucket{{le=\"{}\"}} {below}\n", Seconds(*end)));
        }
        let all: u64 = times.counts.iter().sum();
        self.line(format_args!("windlass_{name}_bucket{{le=\"+Inf\"}} {all}\n"));
        self.line(format_args!(
            "windlass_{name}_sum {}\nwindlass_{name}_count {all}\n",
            Seconds(times.sum_ms)
        ));
    }
}

/// Milliseconds, exactly.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0 / 1000, self.0 % 1000) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, part) => f.write_str(format!("{whole}.{part:03}").trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{answer::Refusal, limits::TooMany};

    #[test]
    fn each_kind_of_refusal_has_a_place() {
        let refusals = Refusals::default();
        let count = |refusal: Refusal| refusals.count(&refusal.into_response());
        count(TooMany::OfOne("claims", 1).into());
        count(TooMany::OfOne("claims", 1).into());
        count(Refusal::unauthenticated(None));
        refusals.count(&"fine".into_response());
        let each: Vec<_> = refusals.each().collect();
        let of = |labels: &str| each.iter().find(|(found, _)| found == labels).map(|(_, count)| *count);
        assert_eq!(of("kind=\"unavailable\",status=\"429\""), Some(2));
        assert_eq!(of("kind=\"denied\",status=\"401\""), Some(1));
        assert_eq!((of("kind=\"denied\",status=\"403\""), each.len()), (Some(0), 3));
    }

    #[test]
    fn seconds_are_exact() {
        let text = |ms| Seconds(ms).to_string();
        assert_eq!(
            (text(1), text(250), text(60_000), text(61_030)),
            ("0.001".into(), "0.25".into(), "60".into(), "61.03".into())
        );
    }
}
