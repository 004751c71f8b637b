//! Work on the background thread that somebody waits for.

#[cfg(any(feature = "lockgate", feature = "etcd", feature = "kubernetes", feature = "redis"))]
use {
    crate::rt::Runtime,
    futures_channel::oneshot,
    futures_util::{FutureExt, future::BoxFuture},
};

use crate::error::{Error, ErrorKind};

/// Does a piece of work there that goes on when nobody waits for it any more. It begins with the call.
///
/// # Errors
/// The thread is [`gone`].
#[cfg(any(feature = "lockgate", feature = "etcd", feature = "kubernetes", feature = "redis"))]
pub(crate) fn to_its_end<T: Send + 'static, E: From<Error> + Send + 'static>(
    rt: &dyn Runtime,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> BoxFuture<'static, Result<T, E>> {
    let (tell, told) = oneshot::channel();
    // Whoever asked may be gone.
    rt.spawn(work.map(|outcome| drop(tell.send(outcome))).boxed());
    told.map(|outcome| outcome.unwrap_or_else(|_| Err(gone().into()))).boxed()
}

/// What those are told who wait for it when it does nothing any more.
pub(crate) fn gone() -> Error {
    Error::new(ErrorKind::Closed, "the background thread of this process is gone")
}
