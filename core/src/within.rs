//! A limit on waiting.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::future::{self, Either};

use crate::rt::Runtime;

/// What the work gives, or `None` when it did not end in time. What can be done without waiting is done without a timer.
pub(crate) async fn within<T>(
    rt: &Arc<dyn Runtime>,
    timeout: Option<Duration>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    let Some(timeout) = timeout else { return Some(work.await) };
    if let Poll::Ready(done) = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
        return Some(done);
    }
    match future::select(work, rt.sleep(timeout)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}
