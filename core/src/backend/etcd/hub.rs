//! All watches of a backend value, through one stream that is kept open.
//!
//! A watch begins now and not at a revision of the past: etcd would serve the latter only at its next tick of 100 ms. So
//! whoever watches first waits until the watch is there, then looks, and only then sleeps (rule R18). A watch that breaks, with its
//! stream or for itself, says so; its owner looks again and opens another.
//!
//! A stream stays with the login that it was opened with, which runs out where other requests have long had the next one. When
//! it is refused a watch after others, that one is opened on another stream, and only what is refused there is refused.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use event_listener::Event;
use futures_channel::{mpsc, oneshot};
use futures_util::{
    FutureExt, StreamExt,
    future::{self, Either},
};

use super::{
    keys::Range,
    link::{AT_ONCE, Link, no_thread},
    trouble::{Trouble, silent},
};
use crate::{
    error::{Error, ErrorKind},
    within::within,
};

/// What has happened to a key that is watched.
#[derive(Clone, Debug)]
pub(super) enum Happened {
    /// It was written; `created`: for the first time.
    Put {
        created: bool,
    },
    Deleted,
    /// Nothing more will be heard.
    Broken,
}

/// Where it is told.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    news: Mutex<Vec<(i64, Happened)>>,
    bell: Event,
}

impl Inbox {
    fn tell(&self, id: i64, news: impl IntoIterator<Item = Happened>) {
        let mut all = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(news.into_iter().map(|happened| (id, happened)));
        drop(all);
        self.bell.notify(usize::MAX);
    }

    pub(super) fn take(&self) -> Vec<(i64, Happened)> {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Until there is something.
    pub(super) async fn bell(&self) {
        loop {
            let rings = self.bell.listen();
            if !self.news.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                return;
            }
            rings.await;
        }
    }

    /// Waits for something, and takes it.
    pub(super) async fn next(&self) -> Vec<(i64, Happened)> {
        self.bell().await;
        self.take()
    }
}

/// Dropped, it ends.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) id: i64,
    wishes: mpsc::UnboundedSender<Wish>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.wishes.unbounded_send(Wish::Close(self.id));
    }
}

#[derive(Debug)]
enum Wish {
    Open(i64, Open),
    Close(i64),
}

#[derive(Debug)]
struct Open {
    range: Range,
    inbox: Arc<Inbox>,
    ready: Option<oneshot::Sender<Result<(), Trouble>>>,
}

#[derive(Debug)]
pub(super) struct Hub {
    link: Arc<Link>,
    wishes: mpsc::UnboundedSender<Wish>,
    next: AtomicI64,
    /// What the task begins with, until it does.
    idle: Mutex<Option<mpsc::UnboundedReceiver<Wish>>>,
}

struct Wishes {
    /// What the last stream could not do, and the next one may.
    left: VecDeque<Wish>,
    heard: mpsc::UnboundedReceiver<Wish>,
}

impl Wishes {
    async fn next(&mut self) -> Option<Wish> {
        match self.left.pop_front() {
            Some(wish) => Some(wish),
            None => self.heard.next().await,
        }
    }
}

impl Hub {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let (wishes, heard) = mpsc::unbounded();
        Self { link, wishes, next: AtomicI64::new(1), idle: Mutex::new(Some(heard)) }
    }

    /// Watches these keys; it does when this returns.
    pub(super) async fn watch(&self, range: Range, inbox: &Arc<Inbox>) -> Result<Watch, Trouble> {
        if let Some(heard) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.link.rt.spawn(run(self.link.clone(), heard).boxed());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (ready, is_ready) = oneshot::channel();
        let open = Open { range, inbox: inbox.clone(), ready: Some(ready) };
        let watch = Watch { id, wishes: self.wishes.clone() };
        let _ = self.wishes.unbounded_send(Wish::Open(id, open));
        match within(&self.link.rt, Some(AT_ONCE), is_ready).await {
            Some(ready) => ready.unwrap_or_else(|_| Err(no_thread()))?,
            None => return Err(silent()),
        }
        Ok(watch)
    }
}

/// Ends with the hub and the last watch.
async fn run(link: Arc<Link>, heard: mpsc::UnboundedReceiver<Wish>) {
    let mut wishes = Wishes { left: VecDeque::new(), heard };
    while let Some(wish) = wishes.next().await {
        let Wish::Open(id, mut open) = wish else { continue };
        let (turn, moves) = match link.member().await {
            Ok((_, turn, moves)) => (turn, moves),
            Err(trouble) => {
                let _ = open.ready.take().map(|ready| ready.send(Err(trouble)));
                continue;
            }
        };
        let range = open.range.clone();
        let request = move |mut client: etcd_client::Client| {
            let (key, options) = options(id, &range);
            async move { client.watch(key, Some(options)).await }
        };
        match link.ask_here(AT_ONCE, &request).await {
            Ok(stream) => {
                if serve(stream, &mut wishes, moves, id, open).await {
                    link.leave(turn).await;
                }
            }
            Err(trouble) => {
                let _ = open.ready.take().map(|ready| ready.send(Err(trouble)));
            }
        }
    }
}

/// Serves one stream to its end; whether it broke.
async fn serve(
    stream: WatchStream,
    wishes: &mut Wishes,
    mut moves: event_listener::EventListener,
    first: i64,
    open: Open,
) -> bool {
    let (mut say, mut hear) = stream.split();
    let mut all = BTreeMap::from([(first, open)]);
    let (mut fresh, mut stale, mut broken) = (true, false, false);
    loop {
        let wish = wishes.next().boxed();
        let step = future::select(hear.message().boxed(), future::select(wish, &mut moves)).await;
        match step {
            Either::Left((Ok(Some(response)), _)) if is_of_the_login(&response) => {
                stale = true;
                if fresh {
                    // It has the login of now. Where that has run out itself, another one is needed.
                    told(&mut all, &response);
                    broken = response.cancel_reason().contains("auth token");
                }
                break;
            }
            Either::Left((Ok(Some(response)), _)) => {
                fresh &= !response.created() || response.canceled();
                told(&mut all, &response);
            }
            Either::Left(_) => {
                broken = true;
                break;
            }
            Either::Right((Either::Left((Some(Wish::Open(id, open)), _)), _)) => {
                let (key, options) = options(id, &open.range);
                all.insert(id, open);
                if say.watch(key, Some(options)).await.is_err() {
                    break;
                }
            }
            Either::Right((Either::Left((Some(Wish::Close(id)), _)), _)) => {
                // A watch that is broken already has nothing to be closed.
                if all.remove(&id).is_some() && say.cancel(id).await.is_err() {
                    break;
                }
            }
            Either::Right(_) => break,
        }
    }
    for (id, mut open) in all {
        match open.ready.take() {
            Some(ready) if stale => {
                wishes.left.push_back(Wish::Open(id, Open { ready: Some(ready), ..open }));
            }
            Some(ready) => drop(ready.send(Err(broke("the watch broke with its connection")))),
            None => open.inbox.tell(id, [Happened::Broken]),
        }
    }
    broken
}

/// Whether a watch is refused for who asks.
fn is_of_the_login(response: &WatchResponse) -> bool {
    let reason = response.cancel_reason();
    response.canceled() && (reason.contains("permission denied") || reason.contains("auth token"))
}

fn told(all: &mut BTreeMap<i64, Open>, response: &WatchResponse) {
    let id = response.watch_id();
    if response.canceled() {
        // One that is refused has no id of its own since 3.6; one that was closed here is known no longer.
        let ended: Vec<i64> = match all.contains_key(&id) {
            true => vec![id],
            false if !response.created() => return,
            false => all.iter().filter(|(_, open)| open.ready.is_some()).map(|(id, _)| *id).collect(),
        };
        for id in ended {
            let Some(mut open) = all.remove(&id) else { continue };
            match open.ready.take() {
                Some(ready) => drop(ready.send(Err(refused(response.cancel_reason())))),
                None => open.inbox.tell(id, [Happened::Broken]),
            }
        }
        return;
    }
    let Some(open) = all.get_mut(&id) else { return };
    if response.created()
        && let Some(ready) = open.ready.take()
    {
        let _ = ready.send(Ok(()));
    }
    let happened = response.events().iter().map(|event| match event.event_type() {
        EventType::Put => Happened::Put { created: event.kv().is_some_and(|kv| kv.version() == 1) },
        EventType::Delete => Happened::Deleted,
    });
    let happened: Vec<Happened> = happened.collect();
    if !happened.is_empty() {
        open.inbox.tell(id, happened);
    }
}

fn options(id: i64, range: &Range) -> (Vec<u8>, WatchOptions) {
    let options = WatchOptions::new().with_watch_id(id);
    let options = if range.to.is_empty() { options } else { options.with_range(range.to.clone()) };
    (range.from.clone(), options)
}

fn broke(message: &str) -> Trouble {
    Trouble::Refused(Error::new(ErrorKind::Unavailable, message))
}

fn refused(reason: &str) -> Trouble {
    let denied = |message| Trouble::Refused(Error::new(ErrorKind::Denied, message));
    if reason.contains("permission denied") {
        return denied("etcd refuses to watch: the user has no right to read under the prefix");
    }
    if reason.contains("user name is empty") {
        return denied("etcd asks who we are: give a user and password");
    }
    broke(&format!("etcd ended the watch: {reason}"))
}
