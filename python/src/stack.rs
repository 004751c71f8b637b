//! What is held through one lock object: a stack, as `with` statements nest.
//!
//! Each entry remembers the thread that pushed it, so threads that share a lock object leave their own `with`, and the
//! process, so a child of `fork` releases nothing of its parent's. The mutex is never held while Python runs or anything
//! waits; where the interpreter has its global lock, nobody can fork while it is held.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use pyo3::{PyTraverseError, PyVisit, prelude::*, types::PyList};

use crate::{held::Held, here::process};

/// A claim, or several that were acquired together.
pub(crate) enum Claims {
    One(Py<Held>),
    Many(Vec<Py<Held>>),
}

impl Claims {
    pub(crate) fn all(&self) -> &[Py<Held>] {
        match self {
            Self::One(held) => std::slice::from_ref(held),
            Self::Many(helds) => helds,
        }
    }

    /// What `with` gives.
    pub(crate) fn show(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::One(held) => Ok(held.clone_ref(py).into_any()),
            Self::Many(helds) => {
                Ok(PyList::new(py, helds.iter().map(|held| held.bind(py)))?.into_any().unbind())
            }
        }
    }

    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::One(held) => Self::One(held.clone_ref(py)),
            Self::Many(helds) => Self::Many(helds.iter().map(|held| held.clone_ref(py)).collect()),
        }
    }
}

/// Something that is left by `release` or at the end of a `with`.
pub(crate) struct Left {
    pub(crate) claims: Claims,
    /// It was entered more than once (a re-entrant lock), and is still held.
    pub(crate) still_held: bool,
    /// It was pushed by this process, and not by its parent.
    pub(crate) is_ours: bool,
}

struct Entry {
    claims: Claims,
    thread: NonZeroUsize,
    process: u32,
    entered: u32,
}

#[derive(Default)]
pub(crate) struct Stack(Mutex<Vec<Entry>>);

impl Stack {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, claims: Claims) {
        self.entries().push(Entry { claims, thread: this_thread(), process: process(), entered: 1 });
    }

    /// What this thread pushed last; failing that, what any thread pushed last.
    pub(crate) fn top(&self, py: Python<'_>) -> Option<Claims> {
        let entries = self.entries();
        let mine = entries.iter().rev().find(|entry| entry.thread == this_thread());
        mine.or(entries.last()).map(|entry| entry.claims.clone_ref(py))
    }

    /// What this thread of this process pushed last, to be entered once more.
    pub(crate) fn mine(&self, py: Python<'_>) -> Option<Claims> {
        let entries = self.entries();
        let mine = entries.iter().rev().find(|entry| entry.thread == this_thread())?;
        (mine.process == process()).then(|| mine.claims.clone_ref(py))
    }

    pub(crate) fn enter_again(&self) {
        if let Some(mine) = self.entries().iter_mut().rev().find(|entry| entry.thread == this_thread()) {
            mine.entered += 1;
        }
    }

    /// Leaves what this thread pushed last; unless `own_only`, failing that, what any thread pushed last.
    pub(crate) fn leave(&self, py: Python<'_>, own_only: bool) -> Option<Left> {
        let mut entries = self.entries();
        let mine = entries.iter().rposition(|entry| entry.thread == this_thread());
        let at = if own_only { mine? } else { mine.or(entries.len().checked_sub(1))? };
        let entry = &mut entries[at];
        let is_ours = entry.process == process();
        if entry.entered > 1 {
            entry.entered -= 1;
            return Some(Left { claims: entry.claims.clone_ref(py), still_held: true, is_ours });
        }
        let entry = entries.remove(at);
        Some(Left { claims: entry.claims, still_held: false, is_ours })
    }

    pub(crate) fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether something is certainly held.
    pub(crate) fn is_held(&self, py: Python<'_>) -> bool {
        let all: Vec<Claims> = self.entries().iter().map(|entry| entry.claims.clone_ref(py)).collect();
        all.iter().flat_map(Claims::all).any(|held| held.bind(py).as_super().get().is_held())
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // The collector runs where it likes, but never inside the few lines that hold this mutex.
        let Ok(entries) = self.0.try_lock() else { return Ok(()) };
        entries.iter().flat_map(|entry| entry.claims.all()).try_for_each(|held| visit.call(held))
    }

    /// All there is, to be dropped by the caller.
    pub(crate) fn clear(&self) -> impl Sized + use<> {
        std::mem::take(&mut *self.entries())
    }
}

/// A number that no other living thread has.
pub(crate) fn this_thread() -> NonZeroUsize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr().try_into().unwrap_or(NonZeroUsize::MIN))
}
