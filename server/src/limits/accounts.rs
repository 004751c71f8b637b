//! Whose claims count together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicUsize},
};

/// Whose claims count together.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(super) claims: AtomicUsize,
    pub(super) waiters: AtomicUsize,
}

impl Account {
    pub(crate) fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }
}

/// Those of whom something is there.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Mutex<HashMap<String, Weak<Account>>>);

impl Accounts {
    /// The one account of this name.
    pub(crate) fn find(&self, name: String) -> Arc<Account> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&name).and_then(Weak::upgrade) {
            return account;
        }
        if accounts.len() == accounts.capacity() {
            accounts.retain(|_, account| account.strong_count() > 0);
        }
        let account = Arc::new(Account::new(name.clone()));
        accounts.insert(name, Arc::downgrade(&account));
        account
    }
}
