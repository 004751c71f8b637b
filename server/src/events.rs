//! Changes as server-sent events: each is a lock as it stands, all of them first, then each that has changed.
//!
//! The number of an event is of its stream alone. Whoever comes back with `Last-Event-ID` gets all locks once more, which is
//! what it missed and some more; one that was freed meanwhile it sees by its absence from what comes before `synced`.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, http::header, response::Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use windlass::{Result, Status};

use crate::{routes::of_this_moment, space::Space, spaces::Spaces, who::Who};

/// So often at least something is sent: proxies cut what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Changes that come closer together are looked at once.
const TOGETHER: Duration = Duration::from_millis(20);

struct Watcher {
    spaces: Arc<Spaces>,
    space: Arc<Space>,
    who: Who,
    prefix: String,
    hints: stream::BoxStream<'static, Result<()>>,
    known: Known,
    number: u64,
    synced: bool,
}

/// The stream of a namespace's changes, as far as this client may see them.
pub(crate) async fn stream(
    spaces: Arc<Spaces>,
    space: Arc<Space>,
    who: Who,
    prefix: String,
) -> Result<Response> {
    // In this order, so that nothing is missed in between.
    let hints = space.client(None)?.changes(&prefix).await?;
    let known = Known::default();
    let watcher = Watcher { spaces, space, who, prefix, hints, known, number: 0, synced: false };
    let texts = stream::unfold(watcher, |mut watcher| async {
        let text = watcher.next().await?;
        Some((text, watcher))
    });
    Ok(answer(texts))
}

/// An answer whose body is these events.
pub(crate) fn answer(texts: impl Stream<Item = String> + Send + 'static) -> Response {
    let body = Body::from_stream(texts.map(Ok::<_, Infallible>));
    of_this_moment(([(header::CONTENT_TYPE, "text/event-stream")], body))
}

/// One event about a lock.
pub(crate) fn write_lock(text: &mut String, lock: &impl Serialize) {
    // It has no line breaks: JSON escapes them.
    let data = serde_json::to_string(lock).unwrap_or_default();
    for part in ["event: lock\ndata: ", &data, "\n\n"] {
        text.push_str(part);
    }
}

/// Says once that all locks have been shown.
pub(crate) fn write_synced(text: &mut String, synced: &mut bool) {
    if !std::mem::replace(synced, true) {
        text.push_str("event: synced\ndata: {}\n\n");
    }
}

/// What keeps a connection open and says nothing.
pub(crate) const NOTHING: &str = ":\n\n";

impl Watcher {
    /// The next events as text; `None` when the server ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.synced {
                let keep_alive = tokio::time::sleep(KEEP_ALIVE);
                tokio::select! {
                    hint = self.hints.next() => { hint?.ok()?; }
                    () = keep_alive => return Some(NOTHING.to_owned()),
                    () = self.spaces.stopping() => return None,
                }
                tokio::time::sleep(TOGETHER).await;
            }
            // Whose token expires meanwhile sees no more.
            self.who.still().ok()?;
            let mut locks = self.space.client(None).ok()?.inspect(&self.prefix).await.ok()?;
            locks.retain(|lock| self.who.may_see(&self.space.name, &lock.name));
            let mut text = self.changed(locks);
            write_synced(&mut text, &mut self.synced);
            if !text.is_empty() {
                return Some(text);
            }
        }
    }

    fn changed(&mut self, locks: Vec<Status>) -> String {
        let mut text = String::new();
        for lock in self.known.changed(locks) {
            self.number += 1;
            text.push_str(&format!("id: {}\n", self.number));
            write_lock(&mut text, &lock);
        }
        text
    }
}

/// The locks of a namespace as they were last shown.
#[derive(Default)]
pub(crate) struct Known(HashMap<String, Status>);

impl Known {
    /// Those that have changed since; one that is free now has no holders.
    pub(crate) fn changed(&mut self, locks: Vec<Status>) -> Vec<Status> {
        let mut changed = Vec::new();
        let mut before = std::mem::take(&mut self.0);
        for lock in locks {
            let name = lock.name.as_str().to_owned();
            if before.remove(&name).is_none_or(|before| !same(&before, &lock)) {
                changed.push(lock.clone());
            }
            self.0.insert(name, lock);
        }
        changed.extend(before.into_values().map(freed));
        changed
    }

    /// All of them, as free.
    pub(crate) fn all_freed(self) -> Vec<Status> {
        self.0.into_values().map(freed).collect()
    }
}

fn freed(lock: Status) -> Status {
    Status { holders: Vec::new(), waiters: Vec::new(), ..lock }
}

/// Whether two looks show the same, but for the time that has passed.
fn same(a: &Status, b: &Status) -> bool {
    let holders = |status: &Status| -> Vec<_> {
        status
            .holders
            .iter()
            .map(|holder| (holder.owner.clone(), holder.mode, holder.fencing_token))
            .collect()
    };
    let waiters = |status: &Status| -> Vec<_> {
        status.waiters.iter().map(|waiter| (waiter.owner.clone(), waiter.mode)).collect()
    };
    holders(a) == holders(b) && waiters(a) == waiters(b)
}
