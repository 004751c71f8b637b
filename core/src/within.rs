//! A limit on waiting.

use std::{fmt, future::Future, sync::Arc, time::Duration};

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

/// A limit as people say it: `30 s`, `0.25 s`. Without floating point, whose text is a tenth of the code of a small program.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!(".{:09}", self.0.subsec_nanos());
        write!(f, "{}{} s", self.0.as_secs(), fraction.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_as_people_say_them() {
        let said = |nanos| Seconds(Duration::from_nanos(nanos)).to_string();
        assert_eq!(
            [said(30_000_000_000), said(250_000_000), said(1), said(0)],
            ["30 s", "0.25 s", "0.000000001 s", "0 s"]
        );
    }
}
