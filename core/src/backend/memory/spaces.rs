//! The sets of names of this process, each known by its own name.

use std::{
    collections::HashMap,
    ptr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicPtr, Ordering},
    },
};

use super::Space;
use crate::rt::Runtime;

/// The spaces of one process, and those of the processes that it was forked from.
///
/// A list that only grows and needs no lock, because a lock could be held by another thread at the moment of a `fork`
/// and would then never be free in the child. Nodes are never freed: there is one for each process.
struct Node {
    process: u32,
    spaces: Mutex<HashMap<String, Weak<Space>>>,
    older: *mut Node,
}

static NEWEST: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// The space of this name in this process, made if need be. A space that no locker uses any more is gone.
pub(super) fn find(name: &str, runtime: Arc<dyn Runtime>) -> Arc<Space> {
    let mut spaces = node(runtime.process()).spaces.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(space) = spaces.get(name).and_then(Weak::upgrade) {
        return space;
    }
    spaces.retain(|_, space| space.strong_count() > 0);
    let space = Arc::new(Space::of_this_process(runtime));
    spaces.insert(name.to_owned(), Arc::downgrade(&space));
    space
}

fn node(process: u32) -> &'static Node {
    let mut fresh: Option<Box<Node>> = None;
    loop {
        let newest = NEWEST.load(Ordering::Acquire);
        if let Some(node) = known(newest, process) {
            return node;
        }
        let mut node = fresh
            .take()
            .unwrap_or_else(|| Box::new(Node { process, spaces: Mutex::default(), older: newest }));
        node.older = newest;
        let node = Box::into_raw(node);
        match NEWEST.compare_exchange(newest, node, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: it came from a box, and now that it is in the list it is never freed.
            Ok(_) => return unsafe { &*node },
            // SAFETY: it came from a box and nobody else has seen it.
            Err(_) => fresh = Some(unsafe { Box::from_raw(node) }),
        }
    }
}

fn known(newest: *mut Node, process: u32) -> Option<&'static Node> {
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
