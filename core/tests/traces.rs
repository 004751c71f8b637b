//! What whoever traces a program sees of its locks.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fmt::{Debug, Write},
    future::IntoFuture,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, future::poll_immediate};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::with_default,
};

/// Writes down spans and events, a line each.
#[derive(Clone, Default)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    next: Arc<AtomicU64>,
}

impl Lines {
    fn add(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }

    /// Those since the last call that say this.
    fn that_say(&self, what: &str) -> Vec<String> {
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        lines.into_iter().filter(|line| line.contains(what)).collect()
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("windlass")
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::SeqCst) + 1;
        let mut fields = Fields(format!("{id} {}", span.metadata().name()));
        span.record(&mut fields);
        self.add(fields.0);
        Id::from_u64(id)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.add(fields.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
    fn try_close(&self, id: Id) -> bool {
        self.add(format!("{} closed", id.into_u64()));
        true
    }
}

#[test]
fn a_wait_and_a_hold_are_spans_and_what_an_operator_does_is_an_event() {
    let lines = Lines::default();
    with_default(lines.clone(), || {
        let work = async {
            let locker = windlass::connect("memory:traces").await.unwrap();
            let holder = locker.lock("deploy").owner("ann").await.unwrap();
            assert_eq!(
                lines.that_say("windlass."),
                [format!("1 windlass.hold lock=deploy fencing_token={}", holder.fencing_token())]
            );
            let mut waiter = locker.lock("deploy").into_future();
            assert!(poll_immediate(&mut waiter).await.is_none());
            let waits = lines.that_say("windlass.wait");
            assert!(waits[0].starts_with("2 windlass.wait lock=deploy waiting=held by ann"), "{waits:?}");
            holder.release().await.unwrap();
            let guard = waiter.await.unwrap();
            assert_eq!(lines.that_say("closed"), ["1 closed", "2 closed"]);
            locker.force_release("deploy", None).await.unwrap();
            assert_eq!(
                lines.that_say("freed by force"),
                ["WARN message=freed by force lock=deploy holders=1"]
            );
            drop(guard);
        };
        assert!(work.boxed().now_or_never().is_some(), "nothing here has to wait for another thread");
    });
}
