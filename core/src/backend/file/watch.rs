//! One thread of this process hears what happens to the files of a directory, once somebody wants to know: that a lock
//! of ours is wanted or taken away, or that anything changes.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use futures_channel::mpsc;
use futures_util::{FutureExt, StreamExt, stream::BoxStream};

use super::{
    dir::Directory,
    ears::{Ears, To, wait},
    line::Held,
    lockfile::identity,
    record::{HEAD, Head},
};
use crate::{
    error::{LostReason, Result},
    lockgate::FileKey,
    rt,
};

/// How often it looks without having heard anything (rule R18).
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often where there is nothing to hear with: no inotify here, or none left for this user.
const LOOK_EVERY_IF_DEAF: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Watch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: bool,
    /// There was no thread, and soon it is tried again.
    tries_again: bool,
    ears: Option<Arc<Places>>,
    /// Who wants to hear of any change.
    hints: Vec<mpsc::Sender<()>>,
}

/// What is listened to.
struct Places {
    ears: Ears,
    main: AtomicI32,
    side: AtomicI32,
}

impl Drop for Watch {
    /// The thread hears that a place has ended, sees that the directory is gone, and ends.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = &state.ears {
            places.ears.stop(places.main.load(Ordering::Relaxed));
        }
    }
}

impl Directory {
    /// Hears of what we hold from now on. Cheap where that is so already.
    pub(super) fn watch_held(self: &Arc<Self>) {
        let mut state = self.watch.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.start_watching(&mut state);
    }

    /// The same for those that were granted before anybody wanted to know.
    pub(super) fn watch_what_is_held(self: &Arc<Self>) {
        let mut any = false;
        self.each_shard(|lines| any |= lines.values().any(|line| !line.held.is_empty()));
        if any {
            self.watch_held();
            self.look_at_all();
        }
    }

    /// A hint each time that something may have changed.
    pub(super) fn hints(self: &Arc<Self>) -> Result<BoxStream<'static, Result<()>>> {
        self.make_side()?;
        // One hint says it all: a second one is kept only until the first was read.
        let (tell, hints) = mpsc::channel(0);
        let mut state = self.watch.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.start_watching(&mut state);
        state.hints.push(tell);
        self.listen(&state);
        Ok(hints.map(Ok).boxed())
    }

    fn start_watching(self: &Arc<Self>, state: &mut State) {
        if state.running {
            return;
        }
        // Who is deaf looks more often.
        state.ears = self.prick_up().map(Arc::new);
        let (directory, ears) = (Arc::downgrade(self), state.ears.clone());
        state.running = rt::thread("windlass-watch", move || watch(&directory, ears.as_deref())).is_ok();
        if !state.running && !mem::replace(&mut state.tries_again, true) {
            // What is held must not go unheard for as long as nobody takes anything.
            let (directory, pause) = (Arc::downgrade(self), self.rt.sleep(LOOK_EVERY_IF_DEAF));
            self.rt.spawn(pause.map(move |()| try_again(&directory)).boxed());
        }
    }

    fn prick_up(&self) -> Option<Places> {
        self.make_side().ok()?;
        let ears = Ears::new().ok()?;
        let main = ears.listen(self.path(), To::Names).ok()?;
        let side = ears.listen(self.side(), To::Writes).ok()?;
        Some(Places { ears, main: main.into(), side: side.into() })
    }

    /// Listens to what matters now, also where a directory was removed and made anew.
    fn listen(&self, state: &State) {
        let Some(places) = &state.ears else { return };
        let (main, side) =
            if state.hints.is_empty() { (To::Names, To::Writes) } else { (To::Changes, To::Changes) };
        // One that is not there is not made here: somebody may be removing it. The next look tries again.
        if let Ok(place) = places.ears.listen(self.path(), main) {
            places.main.store(place, Ordering::Relaxed);
        }
        if let Ok(place) = places.ears.listen(self.side(), side) {
            places.side.store(place, Ordering::Relaxed);
        }
    }

    fn hint(&self) {
        let mut state = self.watch.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.hints.len();
        state.hints.retain_mut(|tell| !tell.try_send(()).is_err_and(|e| e.is_disconnected()));
        if before > 0 && state.hints.is_empty() {
            self.listen(&state);
        }
    }

    /// Looks at what is held here, as if something had been heard of it.
    fn look_at(self: &Arc<Self>, key: FileKey) {
        self.look_for_replacement(key);
        self.look_for_waiter(key);
        self.obey(key);
    }

    pub(super) fn look_at_all(self: &Arc<Self>) {
        let mut keys = Vec::new();
        self.each_shard(|lines| {
            keys.extend(lines.iter().filter(|(_, line)| !line.held.is_empty()).map(|(key, _)| *key));
        });
        for key in keys {
            self.look_at(key);
        }
    }

    /// A lock whose file was removed or replaced excludes nobody any more.
    fn look_for_replacement(self: &Arc<Self>, key: FileKey) {
        let path = self.main_path(key);
        self.with_line(key, |line| {
            let Ok(there) = identity(&path) else { return };
            let lost: Vec<Held> = line
                .held
                .extract_if(.., |held| held.file.stat().is_ok_and(|stat| Some(stat.identity) != there))
                .collect();
            if lost.is_empty() {
                return;
            }
            tracing::warn!(path = %path.display(), "the file of a lock that is held was removed or replaced");
            for held in lost {
                self.lose(held, LostReason::ForceReleased);
            }
            self.go_on(key, line);
        });
    }

    fn look_for_waiter(&self, key: FileKey) {
        let mut shard = self.shard(key);
        let Some(line) = shard.get_mut(&key) else { return };
        let waits = line.held.first().is_some_and(|held| {
            let mut head = [0; HEAD];
            held.file.read_at(&mut head, 0).is_ok_and(|read| Head::parse(&head[..read]).waiting)
        });
        if waits {
            line.tell_contended();
        }
    }

    fn heard(self: &Arc<Self>, in_side: bool, file: &str) {
        match file.split_once('.') {
            None if !in_side => {
                if let Some(key) = FileKey::parse(file) {
                    self.look_for_replacement(key);
                }
            }
            Some((key, suffix)) if in_side => {
                let Some(key) = FileKey::parse(key).filter(|key| self.shard(*key).contains_key(key)) else {
                    return;
                };
                match suffix {
                    "queue" => self.look_for_waiter(key),
                    "revoke" => self.obey(key),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

fn try_again(directory: &Weak<Directory>) {
    let Some(this) = directory.upgrade() else { return };
    let mut state = this.watch.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.tries_again = false;
    this.start_watching(&mut state);
    drop(state);
    this.look_at_all();
}

/// The life of the thread.
fn watch(directory: &Weak<Directory>, places: Option<&Places>) {
    let mut look = true;
    loop {
        let Some(this) = directory.upgrade() else { return };
        if look {
            this.listen(&this.watch.state.lock().unwrap_or_else(PoisonError::into_inner));
            this.look_at_all();
            this.hint();
        }
        drop(this);
        look = !match places {
            Some(places) => wait(Some(&places.ears), LOOK_EVERY),
            None => wait(None, LOOK_EVERY_IF_DEAF),
        };
        let Some(this) = directory.upgrade() else { return };
        if let Some(places) = places
            && !look
        {
            let mut heard: Vec<(bool, String)> = Vec::new();
            places.ears.hear(|noise| match noise.file {
                Some(file) if !noise.overflow => {
                    let one = (noise.place == places.side.load(Ordering::Relaxed), file);
                    if heard.last() != Some(&one) {
                        heard.push(one);
                    }
                }
                _ => look = true,
            });
            for (in_side, file) in heard {
                this.heard(in_side, &file);
            }
            this.hint();
        }
    }
}
