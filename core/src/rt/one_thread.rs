//! JavaScript's values where the core asks for `Send` and `Sync`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::Stream;

#[cfg(target_feature = "atomics")]
compile_error!(
    "with threads, JavaScript's values would have to stay on theirs: `OneThread` cannot promise it"
);

/// A value of JavaScript, or a future or stream over such values, on a target that has one thread.
#[derive(Debug)]
pub struct OneThread<T>(pub T);

// SAFETY: this target has one thread (the compiler is asked for that above), so nothing is ever sent or shared.
unsafe impl<T> Send for OneThread<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for OneThread<T> {}

impl<T> OneThread<T> {
    fn inner(self: Pin<&mut Self>) -> Pin<&mut T> {
        // SAFETY: the value is pinned with what it is in: nothing moves it out, and there is no `Drop` that could.
        unsafe { self.map_unchecked_mut(|this| &mut this.0) }
    }
}

impl<F: Future> Future for OneThread<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.inner().poll(context)
    }
}

impl<S: Stream> Stream for OneThread<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.inner().poll_next(context)
    }
}
