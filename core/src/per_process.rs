//! What the lockers of one process have in common, each thing known by its own name.

use std::{
    collections::HashMap,
    ptr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicPtr, Ordering},
    },
};

/// The things of one process, and those of the processes that it was forked from.
///
/// A list that only grows and needs no lock, because a lock could be held by another thread at the moment of a `fork`
/// and would then never be free in the child. Nodes are never freed: there is one for each process.
pub(crate) struct PerProcess<T> {
    newest: AtomicPtr<Node<T>>,
}

struct Node<T> {
    process: u32,
    things: Mutex<HashMap<String, Weak<T>>>,
    older: *mut Node<T>,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The thing of this name in this process, made if need be. One that no locker uses any more is gone.
    pub(crate) fn find(&'static self, process: u32, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut things = self.node(process).things.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thing) = things.get(name).and_then(Weak::upgrade) {
            return thing;
        }
        things.retain(|_, thing| thing.strong_count() > 0);
        let thing = Arc::new(make());
        things.insert(name.to_owned(), Arc::downgrade(&thing));
        thing
    }

    fn node(&'static self, process: u32) -> &'static Node<T> {
        let mut fresh: Option<Box<Node<T>>> = None;
        loop {
            let newest = self.newest.load(Ordering::Acquire);
            if let Some(node) = known(newest, process) {
                return node;
            }
            let mut node = fresh
                .take()
                .unwrap_or_else(|| Box::new(Node { process, things: Mutex::default(), older: newest }));
            node.older = newest;
            let node = Box::into_raw(node);
            match self.newest.compare_exchange(newest, node, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: it came from a box, and now that it is in the list it is never freed.
                Ok(_) => return unsafe { &*node },
                // SAFETY: it came from a box and nobody else has seen it.
                Err(_) => fresh = Some(unsafe { Box::from_raw(node) }),
            }
        }
    }
}

fn known<T>(newest: *mut Node<T>, process: u32) -> Option<&'static Node<T>> {
    let mut next = newest;
    // SAFETY: null, or a node of the list; those are never freed and never change.
    while let Some(node) = unsafe { next.as_ref() } {
        if node.process == process {
            return Some(node);
        }
        next = node.older;
    }
    None
}
