//! Locks in etcd: a claim is a key on the session's lease, and the oldest keys of a line hold the lock, as with Go's
//! `concurrency.Mutex`, so that those and ours stand in one line.
//!
//! - **An acquire** is one transaction: the key is put, unless it is there, and what stands before it is read. A release
//!   deletes it. Both travel with others that are under way ([`post`]). The key is named after the claim where others may
//!   acquire by its id, and otherwise one that is used again ([`seats`]).
//! - **Who holds** follows from the create revisions alone ([`line`]); so does the fencing token. That is why nothing can be
//!   stolen or upgraded here: whoever takes a lock from its holder would have to come after those who wait, whose tokens are given.
//! - **Waiting** is a watch on the key in the way and on one's own ([`wait`], [`hub`]).
//! - **The dead go** with their lease; what all claims of a locker have one lease for, and what follows from it, is in
//!   [`session`].

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::{Client, Compare, CompareOp, PutOptions, TxnOp, TxnOpResponse};
use futures_util::{
    StreamExt,
    future::{self, BoxFuture, join_all},
    stream::{self, BoxStream},
};

use super::{Backend, Capabilities, OnWaiting, in_turn};
use crate::{
    ask::{Ask, Claim, Entry, Grant, Holder, Mode, News, Renewal, Status},
    background::to_its_end,
    error::{Error, ErrorKind, LostReason, Result},
    name::Name,
    options::unsupported,
    rt::Runtime,
};

pub(crate) mod address;
mod ears;
mod hub;
mod keys;
mod line;
mod link;
mod look;
mod post;
mod seats;
mod session;
mod trouble;
mod value;
mod wait;

use address::Address;
use hub::{Happened, Hub, Inbox};
use keys::Keys;
use line::{Member, Standing, holders, modes};
use link::{Link, no_thread};
use post::{Order, Post};
use session::{Known, Session, Spot};
use trouble::Trouble;
use wait::{TRIES, came_between, gone};

/// Locks in etcd.
pub struct EtcdBackend {
    space: Arc<Space>,
}

#[derive(Debug)]
struct Space {
    rt: Arc<dyn Runtime>,
    keys: Keys,
    link: Arc<Link>,
    post: Arc<Post>,
    hub: Hub,
    session: Session,
    ears: ears::Ears,
}

impl Space {
    /// A claim that has no key is known no longer.
    fn forget(self: &Arc<Self>, claim: &Claim) -> Option<()> {
        let known = self.session.claims().remove(&claim.id)?;
        self.end(claim, known, true);
        Some(())
    }

    async fn renew(self: &Arc<Self>, claims: &[Claim]) -> Result<Vec<Renewal>, Trouble> {
        let known: Vec<Option<Known>> = claims.iter().map(|claim| self.session.known(claim)).collect();
        let leases: BTreeMap<i64, _> =
            known.iter().flatten().map(|known| (known.lease.id, known.lease.clone())).collect();
        let kept = join_all(leases.values().map(|lease| self.keep_alive(lease)));
        let (kept, found) = future::join(kept, self.find(claims, &known)).await;
        let kept: BTreeMap<i64, Result<(), Trouble>> = leases.keys().copied().zip(kept).collect();
        let found = found?;
        let each = claims.iter().zip(known).zip(found).map(|((claim, known), found)| {
            let kept = known.as_ref().and_then(|known| kept.get(&known.lease.id)).cloned();
            async move { self.renewed(claim, known, found, kept).await }
        });
        Ok(join_all(each).await)
    }

    async fn renewed(
        self: &Arc<Self>,
        claim: &Claim,
        known: Option<Known>,
        found: Option<Member>,
        kept: Option<Result<(), Trouble>>,
    ) -> Renewal {
        let held = known.filter(|known| known.held.is_some());
        let Some(member) = found else {
            let Some(held) = held else { return Renewal::NotHeld };
            self.forget(claim);
            return Renewal::Lost(held.lease.over().unwrap_or(LostReason::ForceReleased));
        };
        match (held, kept) {
            (Some(held), Some(kept)) if held.hangs_with(&member) => match kept {
                Ok(()) => {
                    if held.lease.is_tainted() {
                        let go_over = self.clone().go_over(claim.clone(), member, held.lease.ttl);
                        if let Err(trouble) = to_its_end(&*self.rt, go_over).await {
                            return Renewal::Unknown(trouble.into_error());
                        }
                    }
                    let now = self.rt.now();
                    let renewed = self.session.change(claim.id, |known| {
                        known.held = Some(now);
                        known.grant()
                    });
                    // It has ended here meanwhile, and its key goes.
                    renewed.map_or(Renewal::NotHeld, Renewal::Renewed)
                }
                Err(Trouble::LeaseGone) => {
                    self.forget(claim);
                    Renewal::Lost(held.lease.over().unwrap_or(LostReason::SessionEnded))
                }
                Err(trouble) => Renewal::Unknown(trouble.into_error()),
            },
            // It hangs on a lease of somebody else's: from now on on ours. Whoever asks again finds it done.
            _ => match to_its_end(&*self.rt, self.clone().attach(claim.clone(), member)).await {
                Ok(Some(grant)) => Renewal::Renewed(grant),
                Ok(None) => Renewal::NotHeld,
                Err(trouble) => Renewal::Unknown(trouble.into_error()),
            },
        }
    }

    /// Takes over a claim from somebody else's lease. It may move meanwhile: the same is done for those who asked twice, here or
    /// through another server.
    async fn attach(self: Arc<Self>, claim: Claim, mut member: Member) -> Result<Option<Grant>, Trouble> {
        for _ in 0..TRIES {
            let id = member.lease;
            let ttl = self
                .link
                .ask(move |mut client: Client| async move { client.lease_time_to_live(id, None).await });
            let spot = Spot { claim: claim.clone(), key: member.key.clone() };
            let (standing, ttl) = future::join(self.standing(&spot, member.mode, member.created), ttl).await;
            if !matches!(standing?, Some(Standing::Holds)) {
                return Ok(None);
            }
            if let Some(seconds) = u64::try_from(ttl?.granted_ttl()).ok().filter(|seconds| *seconds > 0) {
                let lease = self.fresh_lease(Duration::from_secs(seconds)).await?;
                if self.move_here(&claim, &member, &lease, Some(self.rt.now())).await? {
                    return Ok(self.holds(&claim));
                }
            }
            match self.some(&[spot.key]).await?.pop().flatten().filter(|moved| moved.is_of(claim.id)) {
                Some(moved) => member = moved,
                None => {
                    self.forget(&claim);
                    return Ok(None);
                }
            }
        }
        Err(Trouble::Refused(came_between()))
    }

    async fn release(self: &Arc<Self>, claims: &[Claim]) -> Result<Vec<News>, Trouble> {
        let released: Vec<_> = claims.iter().map(|claim| self.delete(claim)).collect();
        let lost: Vec<Option<LostReason>> =
            join_all(released).await.into_iter().collect::<Result<_, Trouble>>()?;
        let lost = claims.iter().zip(lost).filter_map(|(claim, lost)| Some(News::lost(claim, lost?)));
        Ok(lost.collect())
    }

    /// Deletes a claim's key; why it was not there, if it was not. What follows from the answer is seen to also for one who does not
    /// wait for it.
    ///
    /// A key that others have before and after it is deleted only as this claim's. Where that is not known, for its put is still
    /// under way, it is looked for when that has its answer: what is named after the claim is deleted first, behind the put in
    /// the line.
    fn delete(self: &Arc<Self>, claim: &Claim) -> BoxFuture<'static, Result<Option<LostReason>, Trouble>> {
        let known = self.session.known(claim).and_then(|_| self.session.claims().remove(&claim.id));
        let named = self.keys.of(claim);
        let used_again = known.as_ref().filter(|known| known.key != named && known.is_put());
        let this_one = used_again
            .map(|known| Compare::create_revision(known.key.clone(), CompareOp::Equal, known.created));
        let to_look = known.as_ref().is_none_or(|known| known.key != named) && this_one.is_none();
        let key = used_again.map_or(named, |known| known.key.clone());
        let answer = self.post.put_in(self.deletion(&claim.name, key, this_one));
        let (space, claim) = (self.clone(), claim.clone());
        self.link.awake.to_its_end(async move {
            let nothing =
                |answer: &TxnOpResponse| matches!(answer, TxnOpResponse::Delete(it) if it.deleted() == 0);
            let was_there = match answer.await.unwrap_or_else(|_| Err(no_thread())) {
                Ok(done) if to_look && done.answers.iter().any(nothing) => space.erase(&claim).await,
                answer => answer.map(|done| done.so && !done.answers.iter().any(nothing)),
            };
            let over = known.as_ref().and_then(|known| known.lease.over());
            if let Some(mut known) = known {
                if was_there.is_err() {
                    space.taint(&known.lease);
                }
                // Of a put that may come late nobody knows.
                known.seat.take_if(|_| to_look);
                space.end(&claim, known, was_there.is_ok());
            }
            was_there.map(|was_there| (!was_there).then(|| over.unwrap_or(LostReason::ForceReleased)))
        })
    }

    /// Deletes a claim that is known by its id alone, and whose key is not named after it. Whether it was there.
    async fn erase(self: &Arc<Self>, claim: &Claim) -> Result<bool, Trouble> {
        for _ in 0..TRIES {
            let Some(member) = self.look_for(claim).await? else { return Ok(false) };
            let unchanged = member.unchanged();
            if self.post.send(self.deletion(&claim.name, member.key, Some(unchanged))).await?.so {
                return Ok(true);
            }
        }
        Err(Trouble::Refused(came_between()))
    }

    /// It is a renewal, too: what it answers is believed for a whole term.
    async fn downgrade(self: &Arc<Self>, claim: &Claim, to: Mode) -> Result<Grant> {
        for _ in 0..TRIES {
            let known = self.session.known(claim);
            let found = self.find(std::slice::from_ref(claim), std::slice::from_ref(&known)).await;
            let found = found.map_err(Trouble::into_error)?;
            let member = found.into_iter().flatten().next().ok_or_else(gone)?;
            let known = known.filter(|known| known.hangs_with(&member));
            if known.is_none_or(|known| known.held.is_none()) {
                let attach = to_its_end(&*self.rt, self.clone().attach(claim.clone(), member));
                attach.await.map_err(Trouble::into_error)?.ok_or_else(gone)?;
                continue;
            }
            if member.mode != to {
                if (member.mode, to) != (Mode::Exclusive, Mode::Shared) {
                    let message = format!("a claim that is {} cannot become {to}", member.mode);
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                let value = value::write(to, member.claim, &member.owner);
                let order = Order {
                    line: self.keys.line(&claim.name).from,
                    when: vec![member.unchanged()],
                    bytes: value.len() + 2 * member.key.len(),
                    then: vec![TxnOp::put(member.key, value, Some(PutOptions::new().with_ignore_lease()))],
                    otherwise: Vec::new(),
                    deletes: false,
                };
                if !self.post.send(order).await.map_err(Trouble::into_error)?.so {
                    continue;
                }
            }
            let now = self.rt.now();
            let changed = self.session.change(claim.id, |known| {
                (known.mode, known.held) = (to, Some(now));
                known.grant()
            });
            return changed.ok_or_else(gone);
        }
        Err(came_between())
    }
}

impl EtcdBackend {
    pub(crate) fn new(address: Address, raw_names: bool, rt: Arc<dyn Runtime>) -> Result<Self> {
        let keys = Keys::new(&address.prefix, raw_names);
        let link = Arc::new(Link::new(address, rt.clone())?);
        let (post, hub) = (Post::new(link.clone()), Hub::new(link.clone()));
        let session = Session::new(rt.random());
        let space = Space { rt, keys, link, post, hub, session, ears: ears::Ears::default() };
        Ok(Self { space: Arc::new(space) })
    }

    fn here(&self, error: Error) -> Error {
        error.with_backend(self.space.link.url())
    }

    fn trouble(&self, trouble: Trouble) -> Error {
        self.here(trouble.into_error())
    }

    fn check(&self, ask: &Ask) -> Result<()> {
        let missing = match (ask.mode, ask.entry) {
            (Mode::Upgradable, _) => "upgradable claims",
            (_, Entry::Steal) => "steal",
            _ if !ask.keep.is_zero() => "a place in the queue that is kept",
            _ => return Ok(()),
        };
        Err(self.here(unsupported(missing)))
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("url", &self.space.link.url()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            shared: true,
            permit: true,
            downgrade: true,
            upgrade: false,
            steal: false,
            force_release: true,
            fair_between_processes: true,
            hand_on_between_processes: true,
            forgets_names: true,
            fencing_token: true,
            see: true,
            keep_place: false,
        }
    }

    fn url(&self) -> String {
        self.space.link.url()
    }

    async fn acquire(&self, ask: &Ask, waiting: OnWaiting<'_>) -> Result<Option<Grant>> {
        self.check(ask)?;
        let acquire: BoxFuture<'_, _> = Box::pin(self.space.acquire(ask, waiting));
        acquire.await.map_err(|error| self.here(error))
    }

    async fn acquire_all(&self, asks: &[Ask], waiting: OnWaiting<'_>) -> Result<Option<Vec<Grant>>> {
        in_turn(self, &self.space.rt, asks, waiting).await
    }

    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Renewal>> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        self.space.renew(claims).await.map_err(|trouble| self.trouble(trouble))
    }

    async fn release(&self, claims: &[Claim]) -> Result<Vec<News>> {
        self.space.release(claims).await.map_err(|trouble| self.trouble(trouble))
    }

    async fn change(&self, claim: &Claim, to: Mode) -> Result<Grant> {
        if to != Mode::Shared {
            return Err(self.here(unsupported("an upgrade")));
        }
        self.space.downgrade(claim, to).await.map_err(|error| self.here(error))
    }

    async fn hear(&self) -> Result<Vec<News>> {
        self.space.hear().await.map_err(|trouble| self.trouble(trouble))
    }

    async fn inspect(&self, prefix: &str) -> Result<Vec<Status>> {
        let range = self.space.keys.below(prefix);
        let (members, _) = self.space.members(&range).await.map_err(|trouble| self.trouble(trouble))?;
        let mut lines: BTreeMap<Name, Vec<Member>> = BTreeMap::new();
        for member in members {
            if let Some(name) = self.space.keys.name_of(&member.key)
                && name.as_str().starts_with(prefix)
            {
                lines.entry(name).or_default().push(member);
            }
        }
        let status = |(name, line): (Name, Vec<Member>)| {
            let (held, waits) = line.split_at(holders(modes(&line)));
            Status {
                name,
                holders: held.iter().map(Member::as_holder).collect(),
                waiters: waits.iter().map(Member::as_waiter).collect(),
            }
        };
        Ok(lines.into_iter().map(status).collect())
    }

    async fn force_release(&self, name: &Name, fencing_token: Option<u64>) -> Result<Vec<Holder>> {
        let line = self.space.keys.line(name);
        let (members, _) = self.space.members(&line).await.map_err(|trouble| self.trouble(trouble))?;
        let mut freed = Vec::new();
        for member in &members[..holders(modes(&members))] {
            if fencing_token.is_some_and(|token| token != member.token()) {
                continue;
            }
            let this_one = Compare::create_revision(member.key.clone(), CompareOp::Equal, member.created);
            let order = self.space.deletion(name, member.key.clone(), Some(this_one));
            if self.space.post.send(order).await.map_err(|trouble| self.trouble(trouble))?.so {
                let (owner, token) = (&member.owner.owner, member.token());
                tracing::warn!(lock = %name, holder = owner, fencing_token = token, "taken away by force");
                freed.push(member.as_holder());
            }
        }
        Ok(freed)
    }

    async fn changes(&self, prefix: &str) -> Result<BoxStream<'static, Result<()>>> {
        let inbox = Arc::new(Inbox::default());
        let range = self.space.keys.below(prefix);
        let watch = self.space.hub.watch(range, &inbox).await.map_err(|trouble| self.trouble(trouble))?;
        let over = self.here(Error::new(ErrorKind::Unavailable, "the watch in etcd broke"));
        let hints = stream::unfold((inbox, watch, false), move |(inbox, watch, ended)| {
            let over = over.clone();
            async move {
                if ended {
                    return None;
                }
                let broken = inbox.next().await.iter().any(|(_, news)| matches!(news, Happened::Broken));
                Some((if broken { Err(over) } else { Ok(()) }, (inbox, watch, broken)))
            }
        });
        Ok(hints.boxed())
    }
}
