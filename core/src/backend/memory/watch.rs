//! Hints that something has changed. Any number of changes between two looks make one hint.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use event_listener::Event;
use futures_util::stream::{BoxStream, StreamExt, unfold};

use crate::{error::Result, name::Name};

/// Somebody who watches the names under a prefix.
pub(super) struct Watch {
    prefix: String,
    changed: AtomicBool,
    bell: Event,
}

impl Watch {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), changed: AtomicBool::new(false), bell: Event::new() }
    }

    pub(super) fn concerns(&self, name: &Name) -> bool {
        name.as_str().starts_with(&self.prefix)
    }

    pub(super) fn hint(&self) {
        self.changed.store(true, Ordering::Release);
        self.bell.notify(1);
    }

    pub(super) fn stream(watch: Arc<Self>) -> BoxStream<'static, Result<()>> {
        unfold(watch, |watch| async {
            watch.changed().await;
            Some((Ok(()), watch))
        })
        .boxed()
    }

    async fn changed(&self) {
        loop {
            let rung = self.bell.listen();
            if self.changed.swap(false, Ordering::AcqRel) {
                return;
            }
            rung.await;
        }
    }
}
