//! A limit on waiting.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::{self, Either};

use crate::rt::Runtime;

/// What the work gives, or `None` when it did not end in time. What can be done without waiting is done without a timer.
///
/// It comes pinned: a future that takes another by value has room for it twice.
pub(crate) async fn within<T>(
    rt: &Arc<dyn Runtime>,
    timeout: Option<Duration>,
    mut work: impl Future<Output = T> + Unpin,
) -> Option<T> {
    let Some(timeout) = timeout else { return Some(work.await) };
    if let Some(done) = future::poll_immediate(&mut work).await {
        return Some(done);
    }
    match future::select(work, rt.sleep(timeout)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}
