//! Writes, many in one transaction: at most one is under way, and what is asked for meanwhile travels in the next. One that is
//! asked for alone goes at once.
//!
//! - **In order.** What is asked for later is sent after what was asked for earlier has its answer. So a release never
//!   overtakes the put that it takes back, and a put that nobody waits for any more is taken back by the release that
//!   follows it.
//! - **Keys of one transaction have one create revision**, which would be one place in a line and one fencing token for
//!   two. So of one line a transaction has one write only, but for deletions, which come in any number.
//! - **The rights** that are asked for within a nested transaction are checked by no etcd that we know, and who has none would
//!   be given a lock when others travel along. So where etcd knows who we are, each one has before it, where it is checked, a
//!   look at and a deletion of a key of its line that nobody has. Where it does not, one look for all of them finds out whether
//!   it wants to.
//! - **A transaction that is refused** did nothing. What travelled in it is sent anew, each alone: one that is refused for
//!   itself must not take the others with it. Not so where etcd is out of reach or has too much to do: that would be asking it for
//!   more.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};
use futures_channel::oneshot;
use futures_util::FutureExt;

use super::{
    link::{Link, WRITTEN_WITHIN, no_thread},
    trouble::Trouble,
};

/// Of a transaction: etcd allows 128 operations at each depth.
const MOST: usize = 64;
/// ... and 1.5 MiB in all.
const MOST_BYTES: usize = 512 * 1024;

/// A write of one line, or of several.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) lines: Vec<Vec<u8>>,
    pub(super) when: Vec<Compare>,
    pub(super) then: Vec<TxnOp>,
    pub(super) otherwise: Vec<TxnOp>,
    /// How long it is, roughly.
    pub(super) bytes: usize,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    /// Whether what it was conditional on was so.
    pub(super) so: bool,
    pub(super) answers: Vec<TxnOpResponse>,
    /// The revision of etcd right after.
    pub(super) revision: i64,
}

#[derive(Debug)]
pub(super) struct Post {
    link: Arc<Link>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Letter>,
    under_way: bool,
}

#[derive(Debug)]
struct Letter {
    order: Order,
    tell: oneshot::Sender<Result<Done, Trouble>>,
}

impl Order {
    /// Whether it only deletes, whatever is so.
    fn is_deletion(&self) -> bool {
        self.when.is_empty()
    }

    /// A key beside those that it is about, which is never there.
    fn nobodys(&self) -> Vec<u8> {
        self.lines.iter().flatten().copied().chain(*b"nobody's").collect()
    }

    fn txn(self) -> Txn {
        Txn::new().when(self.when).and_then(self.then).or_else(self.otherwise)
    }
}

impl Post {
    pub(super) fn new(link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self { link, queue: Mutex::default() })
    }

    /// Sends it, also if nobody waits for the answer.
    pub(super) async fn send(self: &Arc<Self>, order: Order) -> Result<Done, Trouble> {
        self.put_in(order).await.unwrap_or_else(|_| Err(no_thread()))
    }

    /// Sends it, from the moment of the call on.
    pub(super) fn put_in(self: &Arc<Self>, order: Order) -> oneshot::Receiver<Result<Done, Trouble>> {
        let (tell, answer) = oneshot::channel();
        let mut queue = self.queue();
        queue.waiting.push_back(Letter { order, tell });
        if !std::mem::replace(&mut queue.under_way, true) {
            drop(queue);
            self.link.rt.spawn(self.clone().work().boxed());
        }
        answer
    }

    async fn work(self: Arc<Self>) {
        while let Some(letters) = self.next() {
            let orders: Vec<Order> = letters.iter().map(|letter| letter.order.clone()).collect();
            match self.deliver(&orders).await {
                Ok(answers) => {
                    for (letter, answer) in letters.into_iter().zip(answers) {
                        let _ = letter.tell.send(Ok(answer));
                    }
                }
                Err(trouble) if trouble.is_of_one() && letters.len() > 1 => {
                    for letter in letters {
                        let answer = self.deliver(std::slice::from_ref(&letter.order)).await;
                        let _ = letter.tell.send(answer.and_then(|mut one| one.pop().ok_or_else(no_thread)));
                    }
                }
                Err(trouble) => {
                    for letter in letters {
                        let _ = letter.tell.send(Err(trouble.clone()));
                    }
                }
            }
        }
    }

    /// What goes into the next transaction; `None`: there is nothing, and whoever comes next starts anew.
    fn next(&self) -> Option<Vec<Letter>> {
        let mut queue = self.queue();
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        // Of each line whether something else than deletions goes, or stays, and then all that follows stays.
        let mut lines: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        let (mut bytes, mut ops) = (0, 0);
        for letter in queue.waiting.drain(..) {
            let order = &letter.order;
            let fits =
                ops + order.then.len() <= MOST && bytes + order.bytes <= MOST_BYTES || taken.is_empty();
            let free = |line| match lines.get(line) {
                None => true,
                Some(written) => order.is_deletion() && !written,
            };
            let goes = fits && order.lines.iter().all(free);
            for line in &order.lines {
                *lines.entry(line.clone()).or_default() |= !goes || !order.is_deletion();
            }
            if goes {
                bytes += order.bytes;
                ops += if order.is_deletion() { order.then.len() } else { 1 };
                taken.push(letter);
            } else {
                left.push_back(letter);
            }
        }
        queue.waiting = left;
        queue.under_way = !taken.is_empty();
        Some(taken).filter(|taken| !taken.is_empty())
    }

    async fn deliver(&self, orders: &[Order]) -> Result<Vec<Done>, Trouble> {
        let guarded = self.link.is_somebody();
        let txn = match orders {
            [alone] => alone.clone().txn(),
            several => {
                let nested = several.iter().filter(|order| !order.is_deletion());
                let nested = nested.take(if guarded { several.len() } else { 1 });
                let looks = nested.map(|order| Compare::version(order.nobodys(), CompareOp::Greater, -1));
                let ops = several.iter().flat_map(|order| match order.is_deletion() {
                    true => order.then.clone(),
                    false => {
                        let deletion = guarded.then(|| TxnOp::delete(order.nobodys(), None));
                        deletion.into_iter().chain([TxnOp::txn(order.clone().txn())]).collect()
                    }
                });
                Txn::new().when(looks.collect::<Vec<_>>()).and_then(ops.collect::<Vec<_>>())
            }
        };
        let response = self
            .link
            .ask_here(WRITTEN_WITHIN, &|mut client: etcd_client::Client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .await?;
        let revision = revision(&response);
        let mut answers = response.op_responses();
        if orders.len() == 1 {
            return Ok(vec![Done { so: response.succeeded(), answers, revision }]);
        }
        let mut answers = answers.drain(..);
        let done = |order: &Order| {
            if order.is_deletion() {
                let answers = answers.by_ref().take(order.then.len()).collect();
                return Done { so: true, answers, revision };
            }
            match answers.nth(usize::from(guarded)) {
                Some(TxnOpResponse::Txn(one)) => {
                    Done { so: one.succeeded(), answers: one.op_responses(), revision }
                }
                _ => Done { so: false, answers: Vec::new(), revision },
            }
        };
        Ok(orders.iter().map(done).collect())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn revision(response: &TxnResponse) -> i64 {
    response.header().map_or(0, |header| header.revision())
}
