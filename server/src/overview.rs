//! The locks of all namespaces in one stream, for people: browsers open few connections to one server.
//!
//! As in `events`, all locks come first, then `synced`, then each that changes; each says its namespace. It looks a few times
//! a second: eyes are no faster, and a page that is open all day should not cost the locks anything.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::response::Response;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;
use windlass::{Result, Status};

use crate::{
    events::{self, Known},
    space::Space,
    spaces::Spaces,
    who::Who,
};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);
/// So often at least something is sent, so that the page sees soon that the connection is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A lock, with what the page wants to know besides.
#[derive(Serialize)]
struct Seen<'a> {
    namespace: &'a str,
    /// Whether it makes sense to offer its reader to free it.
    may_force: bool,
    #[serde(flatten)]
    lock: &'a Status,
}

struct Overview {
    spaces: Arc<Spaces>,
    who: Who,
    watched: HashMap<String, Watched>,
    synced: bool,
    said: Instant,
}

struct Watched {
    /// Not kept: that somebody looks at a namespace is no reason not to forget it.
    space: Weak<Space>,
    hints: stream::BoxStream<'static, Result<()>>,
    known: Known,
}

/// The stream of all changes, as far as this client may see them.
pub(crate) fn stream(spaces: Arc<Spaces>, who: Who) -> Response {
    let overview = Overview { spaces, who, watched: HashMap::new(), synced: false, said: Instant::now() };
    events::answer(stream::unfold(overview, |mut overview| async {
        let text = overview.next().await?;
        Some((text, overview))
    }))
}

impl Overview {
    /// The next events as text; `None` when the server ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.synced {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = self.spaces.stopping() => return None,
                }
            }
            // Whose token expires meanwhile sees no more.
            self.who.still().ok()?;
            let mut text = self.look().await.ok()?;
            events::write_synced(&mut text, &mut self.synced);
            if text.is_empty() && self.said.elapsed() >= KEEP_ALIVE {
                text.push_str(events::NOTHING);
            }
            if !text.is_empty() {
                self.said = Instant::now();
                return Some(text);
            }
        }
    }

    async fn look(&mut self) -> Result<String> {
        let mut text = String::new();
        let mut before = std::mem::take(&mut self.watched);
        for space in self.spaces.all() {
            if !self.who.may_see_namespace(&space.name) {
                continue;
            }
            // Forgotten and made anew, it has the same name and other locks.
            let is_same = |watched: &Watched| watched.space.as_ptr() == Arc::as_ptr(&space);
            let (mut watched, is_new) = match before.remove(&space.name) {
                Some(watched) if is_same(&watched) => (watched, false),
                earlier => {
                    let hints = space.client(None)?.changes("").await?;
                    let known = earlier.map(|earlier| earlier.known).unwrap_or_default();
                    (Watched { space: Arc::downgrade(&space), hints, known }, true)
                }
            };
            if is_new || watched.hints.next().now_or_never().is_some() {
                let mut locks = space.client(None)?.inspect("").await?;
                locks.retain(|lock| self.who.may_see(&space.name, &lock.name));
                for lock in watched.known.changed(locks) {
                    self.write(&space.name, &lock, &mut text);
                }
            }
            self.watched.insert(space.name.clone(), watched);
        }
        for (namespace, gone) in before {
            for lock in gone.known.all_freed() {
                self.write(&namespace, &lock, &mut text);
            }
        }
        Ok(text)
    }

    fn write(&self, namespace: &str, lock: &Status, text: &mut String) {
        let may_force = self.who.forces(namespace, &lock.name).is_ok();
        events::write_lock(text, &Seen { namespace, may_force, lock });
    }
}
