//! Values that belong to the process that made them.

use std::mem::ManuallyDrop;

use windlass::rt::{Native, Runtime};

/// The number of this process: another one in a child of `fork`.
pub(crate) fn process() -> u32 {
    Native.process()
}

/// A value that is neither used nor dropped in a child of `fork`: a thread of the parent may have been half way through
/// a change of it, so not even its memory may be given back there.
pub(crate) struct Here<T> {
    value: ManuallyDrop<T>,
    process: u32,
}

impl<T> Here<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), process: process() }
    }

    /// The value, in the process that made it.
    pub(crate) fn as_ref(&self) -> Option<&T> {
        (self.process == process()).then_some(&*self.value)
    }

    /// The value, also in a child of `fork`: for what is safe to ask there.
    pub(crate) fn inherited(&self) -> &T {
        &self.value
    }

    /// The value, in the process that made it; elsewhere it is leaked.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        let ours = self.process == process();
        // SAFETY: `self` is forgotten right away, so the value is taken once.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        std::mem::forget(self);
        if ours {
            Some(value)
        } else {
            std::mem::forget(value);
            None
        }
    }
}

impl<T> Drop for Here<T> {
    fn drop(&mut self) {
        if self.process == process() {
            // SAFETY: dropped once, here, and never used again.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}
