//! Who asks: what the routes want to know of it, and what they have to say to the ledger and the audit log.
//!
//! A route asks here before it asks the locks anything, and before it makes a namespace: so a refusal says nothing about
//! what is there.

use std::{sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use windlass::{
    Holder, LostReason, Mode, Name, Waiting,
    ask::{Claim, Grant, Renewal},
    protocol::{ClaimRef, Entry, ForceRelease, Terms},
};

use crate::{
    access::{Access, BadToken, Identity, Right, denied, unix_now},
    answer::{Refusal, invalid},
    audit::{Event, What},
    limits::{Account, Asker, Booking, Ledger, TooMany},
    options::Limits,
    parked::Patience,
};

/// Who asks, once for each connection or token.
#[derive(Clone)]
pub(crate) struct Who(pub(crate) Arc<Caller>);

/// What is known of them.
pub(crate) struct Caller {
    /// `None`: nobody asks who they are.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Of what version of the file of tokens.
    pub(crate) version: u64,
    pub(crate) access: Arc<Access>,
    /// Whose claims theirs count with.
    pub(crate) account: Arc<Account>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) limits: Arc<Limits>,
}

impl<S: Sync> FromRequestParts<S> for Who {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        // The door has let them in.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Refusal::unauthenticated(None))
    }
}

impl Who {
    pub(crate) fn name(&self) -> &str {
        &self.0.account.name
    }

    fn must(&self, may: impl FnOnce(&Identity) -> bool) -> Result<(), Refusal> {
        match &self.0.identity {
            Some(identity) if !may(identity) => Err(denied().into()),
            _ => Ok(()),
        }
    }

    /// Asks for anything there.
    pub(crate) fn is_of(&self, namespace: &str) -> Result<(), Refusal> {
        self.must(|identity| identity.is_of(namespace))
    }

    /// Asks for claims. What this gives speaks for them until there is an answer.
    pub(crate) fn asks<'a>(
        &self,
        namespace: &str,
        terms: &Terms,
        claims: impl IntoIterator<Item = &'a ClaimRef, IntoIter: Clone>,
    ) -> Result<Asking, Refusal> {
        let claims = claims.into_iter();
        let right = if terms.mode == Mode::Shared { Right::Shared } else { Right::Acquire };
        let steals = terms.entry == Entry::Steal;
        self.must(|identity| {
            claims.clone().all(|claim| {
                let may = |right| identity.may(right, namespace, claim.name.as_str());
                may(right) && (!steals || may(Right::Force))
            })
        })?;
        let Limits { metadata_bytes, ttl: longest, claims_at_once, .. } = *self.0.limits;
        let identity = self.0.identity.as_deref();
        let longest = identity.and_then(|identity| identity.longest_ttl).unwrap_or(longest).min(longest);
        if Duration::from_millis(terms.ttl_ms.max(terms.keep_ms.unwrap_or(0))) > longest {
            let message = format!(
                "the longest TTL that you may ask for, and keep a place for, is {} ms",
                longest.as_millis()
            );
            return Err(invalid(&message).into());
        }
        let shown: usize = terms.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if shown + terms.owner.len() > metadata_bytes {
            let message =
                format!("owner and metadata have more than {metadata_bytes} bytes: show a reference");
            return Err(invalid(&message).into());
        }
        let sees = claims.clone().all(|claim| self.may_see(namespace, &claim.name));
        let claims: Vec<Claim> = claims.map(|claim| claim.clone().into()).collect();
        if claims.len() > claims_at_once {
            return Err(invalid(&format!("name at most {claims_at_once} claims in one question")).into());
        }
        let patience = Patience::of(terms);
        let asker = Asker {
            account: &self.0.account,
            most_claims: identity.and_then(|identity| identity.most_claims),
            owner: &terms.owner,
            keep: patience.keep,
        };
        let booking = self.0.ledger.begin(asker, &namespace.into(), &claims)?;
        Ok(Asking { who: self.clone(), booking, sees, steals, patience })
    }

    /// Renews claims that are granted.
    pub(crate) fn renews<'a>(
        &self,
        namespace: &str,
        mut names: impl Iterator<Item = &'a Name>,
    ) -> Result<(), Refusal> {
        self.must(|identity| names.all(|name| identity.may(Right::Shared, namespace, name.as_str())))
    }

    /// Still, after having waited: tokens expire, and are taken out of their file.
    pub(crate) fn still(&self) -> Result<(), Refusal> {
        let Caller { identity: Some(identity), access, version, .. } = &*self.0 else { return Ok(()) };
        let why = match identity {
            identity if identity.has_expired(unix_now()) => "it has expired",
            identity if !access.still_knows(identity, *version) => "it is not known here any more",
            _ => return Ok(()),
        };
        Err(Refusal::unauthenticated(Some(BadToken(why))))
    }

    /// What became of it.
    pub(crate) fn has_renewed(&self, namespace: &str, claims: &[Claim], renewals: &[Renewal]) {
        if !claims.is_empty() {
            self.0.ledger.renewed(&self.0.account, &namespace.into(), claims, renewals);
        }
    }

    /// Changes the mode of a claim.
    pub(crate) fn changes(&self, namespace: &str, name: &Name, to: Mode) -> Result<(), Refusal> {
        let right = if to == Mode::Shared { Right::Shared } else { Right::Acquire };
        self.must(|identity| identity.may(right, namespace, name.as_str()))
    }

    /// Releases claims. Whoever knows their ids may, so that rights that were taken away keep no lock taken.
    pub(crate) fn releases(&self, namespace: &str) -> Result<(), Refusal> {
        self.is_of(namespace)
    }

    /// They were.
    pub(crate) fn has_released(&self, namespace: &str, claims: &[Claim]) {
        self.0.ledger.released(self.name(), &namespace.into(), claims);
    }

    /// Takes a lock from those who hold it.
    pub(crate) fn forces(&self, namespace: &str, name: &Name) -> Result<(), Refusal> {
        self.must(|identity| identity.may(Right::Force, namespace, name.as_str()))
    }

    /// It was.
    pub(crate) fn has_forced(&self, namespace: &str, question: &ForceRelease, taken_from: &[Holder]) {
        let name = &question.name;
        if question.fencing_token.is_none() {
            self.0.ledger.forced(namespace, name, None, LostReason::ForceReleased);
        }
        let Some(audit) = self.0.ledger.audit() else { return };
        for holder in taken_from {
            audit.write(&Event {
                namespace: Some(namespace),
                lock: Some(name),
                owner: Some(&holder.owner.owner),
                fencing_token: Some(holder.fencing_token),
                ..Event::new(What::ForceReleased, self.name())
            });
        }
    }

    /// Looks who holds and who waits, at least for some names.
    pub(crate) fn sees(&self, namespace: &str) -> Result<(), Refusal> {
        self.must(|identity| identity.may_somewhere(Right::See, namespace))
    }

    /// For this name.
    pub(crate) fn may_see(&self, namespace: &str, name: &Name) -> bool {
        let identity = self.0.identity.as_ref();
        identity.is_none_or(|identity| identity.may(Right::See, namespace, name.as_str()))
    }

    /// Sees that there is such a namespace.
    pub(crate) fn may_see_namespace(&self, namespace: &str) -> bool {
        let identity = self.0.identity.as_ref();
        identity.is_none_or(|identity| identity.may_somewhere(Right::See, namespace))
    }
}

/// An acquire under way.
pub(crate) struct Asking {
    who: Who,
    booking: Booking,
    /// May hear who holds the locks.
    sees: bool,
    /// Takes the locks from those who hold them.
    steals: bool,
    pub(crate) patience: Patience,
}

impl Asking {
    /// It cannot be had at once.
    pub(crate) fn waits(&self) -> Result<(), TooMany> {
        self.booking.waits()
    }

    /// Still, after having waited.
    pub(crate) fn still(&self) -> Result<(), Refusal> {
        self.who.still()
    }

    /// All of it was granted.
    pub(crate) fn was_granted(self, grants: &[Grant]) {
        if self.steals {
            self.booking.robs();
        }
        self.booking.granted(self.who.name(), grants);
    }

    /// Nothing was granted, and nobody waits.
    pub(crate) fn ends(mut self) {
        self.booking.take_back();
    }

    /// What to say of those who hold what it waits for.
    pub(crate) fn is_told(&self, waiting: Waiting) -> Waiting {
        if self.sees { waiting } else { Waiting { holders: Vec::new(), ..waiting } }
    }
}

impl std::fmt::Debug for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Who").field(&self.name()).finish()
    }
}
