//! What a lock table has to do, as plainly as it can be said: one flat list of claims, searched from end to end. Slow,
//! and without any of the structures of the real one.

use std::time::Duration;

use windlass::{
    ClaimId, LostReason, Mode,
    ask::{Ask, Claim, Entry},
    table::{Changed, Effect, Granted, Origin, Outcome, What},
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Naive {
    pub(crate) expires: bool,
    pub(crate) remember: u64,
    pub(crate) now: u64,
    pub(crate) tokens: u64,
    pub(crate) arrivals: u64,
    pub(crate) claims: Vec<Known>,
    pub(crate) ended: Vec<Ended>,
    pub(crate) effects: Vec<Effect>,
}

#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) claim: Claim,
    pub(crate) origin: Origin,
    pub(crate) mode: Mode,
    pub(crate) ttl: u64,
    pub(crate) since: u64,
    pub(crate) told: bool,
    pub(crate) state: State,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    Waits { arrived: u64, leaves: Option<u64> },
    Holds { token: u64, ends: Option<u64>, upgrading: bool },
}

#[derive(Clone, Debug)]
pub(crate) struct Ended {
    id: ClaimId,
    busy: bool,
    until: u64,
}

impl Naive {
    pub(crate) fn acquire(&mut self, ask: &Ask, origin: Origin) -> Outcome {
        let claim = Claim { name: ask.name.clone(), id: ask.claim_id };
        let Some(at) = self.find(&claim) else { return self.acquire_new(ask, &claim, origin) };
        match self.claims[at].state {
            State::Holds { .. } => {
                let granted = self.renew(&claim, origin);
                Outcome::Granted(granted.expect("it holds"))
            }
            State::Waits { .. } if ask.entry == Entry::Try => {
                self.claims.remove(at);
                self.remember(claim.id, true);
                self.let_in(&claim, None);
                Outcome::Busy
            }
            State::Waits { .. } if ask.entry == Entry::Steal => {
                let mut thief = self.claims.remove(at);
                thief.origin = origin;
                thief.since = self.now;
                self.steal(thief)
            }
            State::Waits { ref mut leaves, .. } => {
                *leaves = None;
                self.claims[at].origin = origin;
                Outcome::Queued { place: self.place(&claim).expect("it waits") }
            }
        }
    }

    fn acquire_new(&mut self, ask: &Ask, claim: &Claim, origin: Origin) -> Outcome {
        if let Some(ended) = self.ended.iter().find(|ended| ended.id == claim.id) {
            return if ended.busy { Outcome::Busy } else { Outcome::Over };
        }
        self.arrivals += 1;
        let known = Known {
            claim: claim.clone(),
            origin,
            mode: ask.mode,
            ttl: ask.ttl.as_millis() as u64,
            since: self.now,
            told: false,
            state: State::Waits { arrived: self.arrivals, leaves: None },
        };
        if ask.entry == Entry::Steal {
            return self.steal(known);
        }
        self.claims.push(known);
        if ask.entry == Entry::Try && self.next_in(claim).is_none_or(|next| self.claims[next].claim != *claim)
        {
            self.claims.pop();
            self.remember(claim.id, true);
            return Outcome::Busy;
        }
        self.let_in(claim, Some(claim));
        let at = self.find(claim).expect("it is here now");
        match self.claims[at].state {
            State::Holds { .. } => Outcome::Granted(self.granted(at)),
            State::Waits { .. } => Outcome::Queued { place: self.place(claim).expect("it waits") },
        }
    }

    fn steal(&mut self, thief: Known) -> Outcome {
        let claim = thief.claim.clone();
        let all = self.holders(&claim);
        for victim in all.iter().filter(|victim| !pair(victim.mode, thief.mode)) {
            self.lose(&victim.claim, LostReason::Stolen);
        }
        for victim in all {
            if self.find(&victim.claim).is_some() && !self.room(&claim, thief.mode) {
                self.lose(&victim.claim, LostReason::Stolen);
            }
        }
        self.claims.push(thief);
        let at = self.claims.len() - 1;
        self.hold(at);
        self.let_in(&claim, Some(&claim));
        Outcome::Granted(self.granted(self.find(&claim).expect("the thief holds")))
    }

    pub(crate) fn renew(&mut self, claim: &Claim, origin: Origin) -> Option<Granted> {
        let at = self.find(claim)?;
        if !matches!(self.claims[at].state, State::Holds { .. }) {
            return None;
        }
        self.claims[at].origin = origin;
        self.rearm(at);
        Some(self.granted(at))
    }

    pub(crate) fn release(&mut self, claim: &Claim) -> bool {
        self.remember(claim.id, false);
        let Some(at) = self.find(claim) else { return false };
        let gone = self.claims.remove(at);
        self.let_in(claim, None);
        matches!(gone.state, State::Holds { .. })
    }

    pub(crate) fn change(&mut self, claim: &Claim, to: Mode) -> Changed {
        let Some(at) = self.find(claim) else { return Changed::NotHeld };
        let now_mode = self.claims[at].mode;
        let State::Holds { ref mut upgrading, .. } = self.claims[at].state else { return Changed::NotHeld };
        match (now_mode, to) {
            (Mode::Upgradable, Mode::Exclusive) => *upgrading = true,
            (Mode::Upgradable | Mode::Exclusive, Mode::Upgradable | Mode::Shared) => {
                *upgrading = false;
                self.claims[at].mode = to;
            }
            (same, to) if same == to => {}
            _ => return Changed::Refused { from: now_mode },
        }
        self.rearm(at);
        self.let_in(claim, Some(claim));
        let at = self.find(claim).expect("it holds on");
        match self.claims[at].state {
            State::Holds { upgrading: true, .. } => Changed::Waiting,
            _ => Changed::Done(self.granted(at)),
        }
    }

    pub(crate) fn waiter_gone(&mut self, claim: &Claim, grace: u64) -> bool {
        let until = self.now + grace;
        match self.find(claim).map(|at| &mut self.claims[at].state) {
            Some(State::Waits { leaves, .. }) => {
                *leaves = Some(until);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn force_release(&mut self, any: &Claim, token: Option<u64>) -> Vec<u64> {
        let mut taken = Vec::new();
        for holder in self.holders(any) {
            if token.is_none_or(|token| token == holder.token()) {
                self.lose(&holder.claim, LostReason::ForceReleased);
                taken.push(holder.token());
            }
        }
        self.let_in(any, None);
        taken
    }

    pub(crate) fn expire(&mut self) {
        let now = self.now;
        let mut names: Vec<Claim> = self.claims.iter().map(|known| known.claim.clone()).collect();
        for known in self.claims.clone() {
            match known.state {
                State::Waits { leaves: Some(leaves), .. } if leaves <= now => {
                    self.claims.retain(|other| other.claim != known.claim);
                    self.tell(&known, What::Left);
                }
                State::Holds { ends: Some(ends), .. } if ends <= now => {
                    self.lose(&known.claim, LostReason::Expired);
                }
                _ => {}
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        names.iter().for_each(|name| self.let_in(name, None));
        self.ended.retain(|ended| ended.until > now);
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let claims = self.claims.iter().filter_map(|known| match known.state {
            State::Waits { leaves, .. } => leaves,
            State::Holds { ends, .. } => ends,
        });
        claims.chain(self.ended.iter().map(|ended| ended.until)).min()
    }

    /// Those who hold the same lock as `any`, in the order of their grants.
    pub(crate) fn holders(&self, any: &Claim) -> Vec<Known> {
        let mut all: Vec<Known> = self.same_lock(any).filter(|known| known.holds()).cloned().collect();
        all.sort_by_key(Known::token);
        all
    }

    /// Those who wait for the same lock as `any`, in the order of their coming.
    pub(crate) fn line(&self, any: &Claim) -> Vec<Known> {
        let mut all: Vec<Known> = self.same_lock(any).filter(|known| !known.holds()).cloned().collect();
        all.sort_by_key(|known| match known.state {
            State::Waits { arrived, .. } => arrived,
            State::Holds { .. } => 0,
        });
        all
    }

    /// An upgrade stands before all others.
    pub(crate) fn place(&self, claim: &Claim) -> Option<usize> {
        let upgrade = self.upgrading(claim).into_iter();
        upgrade.chain(self.line(claim)).position(|known| known.claim == *claim).map(|ahead| ahead + 1)
    }

    pub(crate) fn upgrading(&self, any: &Claim) -> Option<Known> {
        self.same_lock(any).find(|known| matches!(known.state, State::Holds { upgrading: true, .. })).cloned()
    }

    fn same_lock(&self, any: &Claim) -> impl Iterator<Item = &Known> {
        self.claims.iter().filter(|known| known.claim.name == any.name)
    }

    fn find(&self, claim: &Claim) -> Option<usize> {
        self.claims.iter().position(|known| known.claim == *claim)
    }

    /// Which waiting claim of this lock can be let in now.
    fn next_in(&self, any: &Claim) -> Option<usize> {
        let head = self.line(any).into_iter().next()?;
        let fits = self.holders(any).iter().all(|holder| pair(holder.mode, head.mode));
        let free = self.upgrading(any).is_none() && fits && self.room(any, head.mode);
        free.then(|| self.find(&head.claim).expect("the head waits"))
    }

    fn room(&self, any: &Claim, mode: Mode) -> bool {
        let holders = self.holders(any);
        let limits = holders.iter().map(|holder| holder.mode).chain([mode]).filter_map(|mode| match mode {
            Mode::Permit(limit) => Some(limit.get() as usize),
            _ => None,
        });
        limits.min().is_none_or(|limit| holders.len() < limit)
    }

    /// Lets in all who can be let in, and tells everybody what they have to know. `asking` gets an answer and so needs
    /// no effect.
    fn let_in(&mut self, any: &Claim, asking: Option<&Claim>) {
        let mut new = Vec::new();
        loop {
            let alone = self.upgrading(any).filter(|_| self.holders(any).len() == 1);
            let Some(at) = alone.and_then(|up| self.find(&up.claim)).or_else(|| self.next_in(any)) else {
                break;
            };
            if self.claims[at].holds() {
                self.claims[at].mode = Mode::Exclusive;
            }
            self.hold(at);
            new.push(self.claims[at].claim.clone());
        }
        let anybody_waits = !self.line(any).is_empty() || self.upgrading(any).is_some();
        let answered = asking.filter(|claim| self.upgrading(any).is_none_or(|up| up.claim != **claim));
        for holder in self.holders(any) {
            let at = self.find(&holder.claim).expect("it holds");
            let in_the_way = self.in_the_way(&holder);
            let mut told = holder.told && anybody_waits;
            if answered == Some(&holder.claim) {
                told = in_the_way;
            } else if new.contains(&holder.claim) {
                told = in_the_way;
                self.tell(&holder, What::Granted(self.granted(at)));
            } else if in_the_way && !told {
                told = true;
                self.tell(&holder, What::Contended);
            }
            self.claims[at].told = told;
        }
    }

    fn in_the_way(&self, holder: &Known) -> bool {
        let upgrade = self.upgrading(&holder.claim).is_some_and(|up| up.claim != holder.claim);
        upgrade || self.line(&holder.claim).iter().any(|waiter| competes(holder.mode, waiter.mode))
    }

    fn hold(&mut self, at: usize) {
        self.tokens += 1;
        let ends = self.expires.then(|| self.now + self.claims[at].ttl);
        if !self.claims[at].holds() {
            self.claims[at].since = self.now;
        }
        self.claims[at].told = false;
        self.claims[at].state = State::Holds { token: self.tokens, ends, upgrading: false };
    }

    fn rearm(&mut self, at: usize) {
        let until = self.now + self.claims[at].ttl;
        if let State::Holds { ends: Some(ends), .. } = &mut self.claims[at].state {
            *ends = until;
        }
    }

    fn lose(&mut self, claim: &Claim, reason: LostReason) {
        let lost = self.claims.remove(self.find(claim).expect("it holds"));
        self.remember(claim.id, false);
        self.tell(&lost, What::Lost(reason));
    }

    fn remember(&mut self, id: ClaimId, busy: bool) {
        if self.remember > 0 {
            match self.ended.iter_mut().find(|ended| ended.id == id) {
                Some(ended) => ended.busy = busy,
                None => self.ended.push(Ended { id, busy, until: self.now + self.remember }),
            }
        }
    }

    fn granted(&self, at: usize) -> Granted {
        let known = &self.claims[at];
        Granted {
            fencing_token: known.token(),
            mode: known.mode,
            ttl: self.expires.then_some(Duration::from_millis(known.ttl)),
            contended: self.in_the_way(known),
        }
    }

    fn tell(&mut self, known: &Known, what: What) {
        self.effects.push(Effect { claim: known.claim.clone(), origin: known.origin, what });
    }
}

impl Known {
    pub(crate) fn holds(&self) -> bool {
        matches!(self.state, State::Holds { .. })
    }

    pub(crate) fn token(&self) -> u64 {
        match self.state {
            State::Holds { token, .. } => token,
            State::Waits { .. } => 0,
        }
    }
}

/// The table of the modes, in full.
pub(crate) fn pair(a: Mode, b: Mode) -> bool {
    match (a, b) {
        (Mode::Exclusive, _) | (_, Mode::Exclusive) => false,
        (Mode::Permit(_), Mode::Permit(_)) => true,
        (Mode::Permit(_), _) | (_, Mode::Permit(_)) => false,
        (Mode::Upgradable, Mode::Upgradable) => false,
        (Mode::Shared | Mode::Upgradable, Mode::Shared | Mode::Upgradable) => true,
    }
}

fn competes(holder: Mode, waiter: Mode) -> bool {
    let both_permits = matches!((holder, waiter), (Mode::Permit(_), Mode::Permit(_)));
    both_permits || !pair(holder, waiter)
}
