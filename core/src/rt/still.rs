//! For tests of what does no I/O.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, pending},
};

use super::Runtime;
use crate::{
    error::Result,
    time::{Millis, Moment},
};

/// Clocks that stand still, or go on by a step each time that somebody looks at them, and a process that a test can say has forked.
#[derive(Debug, Default)]
pub(crate) struct Still {
    pub(crate) process: AtomicU32,
    pub(crate) passed: Mutex<Duration>,
    pub(crate) step: Duration,
}

impl Still {
    /// When it begins.
    pub(crate) const NOW: Moment = Moment { boot: Duration::from_secs(1), wall: Duration::from_millis(1) };
}

impl Runtime for Still {
    fn start(&self) -> Result<()> {
        Ok(())
    }
    fn now(&self) -> Moment {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        *passed += self.step;
        Self::NOW.plus(*passed)
    }
    fn monotonic(&self) -> Millis {
        Millis(0)
    }
    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        pending().boxed()
    }
    fn spawn(&self, _: BoxFuture<'static, ()>) {}
    fn call(&self, _: Box<dyn FnOnce() + Send>) {}
    fn random(&self) -> u128 {
        0
    }
    fn process(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }
}
