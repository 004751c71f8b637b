//! Writes, many in one transaction: at most two are under way, so that etcd has the next one to do when it answers, and what is
//! asked for meanwhile travels in the next. One that is asked for alone goes at once; beside a large one go no small ones.
//!
//! - **In order.** What is asked for later of a line is sent after what was asked for earlier has its answer. So a release never
//!   overtakes the put that it takes back, and a put that nobody waits for any more is taken back by the release that
//!   follows it.
//! - **Keys of one transaction have one create revision**, which would be one place in a line and one fencing token for
//!   two. So of one line a transaction has one write only, but for deletions, which come in any number. With raw names a
//!   line has others in it.
//! - **The rights** that are asked for within a nested transaction are checked by no etcd that we know, and who has none would
//!   be given a lock when others travel along. So where etcd knows who we are, each one has before it, where it is checked, a
//!   look at and a deletion of a key of its line that nobody has. Where it does not, one look for all of them finds out whether
//!   it wants to.
//! - **A transaction that is refused** did nothing. What travelled in it is sent anew, each alone: one that is refused for
//!   itself must not take the others with it. Not so where etcd is out of reach or has too much to do: that would be asking it for
//!   more.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};
use futures_channel::oneshot;
use futures_util::FutureExt;

use super::{
    link::{Link, WRITTEN_WITHIN, no_thread, transact},
    trouble::Trouble,
};

/// Of a transaction: etcd allows 128 operations at each depth.
const MOST: usize = 64;
/// ... and 1.5 MiB in all.
const MOST_BYTES: usize = 512 * 1024;
/// How many are under way.
const AT_ONCE: usize = 2;
/// What is under way is so little that the next one goes whatever it carries.
const FEW: usize = 8;

/// A write of one line.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) line: Vec<u8>,
    pub(super) when: Vec<Compare>,
    pub(super) then: Vec<TxnOp>,
    pub(super) otherwise: Vec<TxnOp>,
    /// Whether it only deletes, if anything.
    pub(super) deletes: bool,
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
    /// How many carry letters, and of which lines.
    carriers: usize,
    under_way: BTreeSet<Vec<u8>>,
}

#[derive(Debug)]
struct Letter {
    order: Order,
    tell: oneshot::Sender<Result<Done, Trouble>>,
}

impl Queue {
    /// Whether what waits need not wait for more: many small transactions take etcd longer than few large ones.
    fn is_worth_it(&self) -> bool {
        self.under_way.len() <= FEW || 2 * self.waiting.len() >= self.under_way.len()
    }
}

impl Order {
    /// Whether it needs a transaction of its own in one of many.
    fn is_nested(&self) -> bool {
        !self.when.is_empty()
    }

    /// A key beside those that it is about, which is never there.
    fn nobodys(&self) -> Vec<u8> {
        self.line.iter().copied().chain(*b"nobody's").collect()
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
        if queue.carriers < AT_ONCE && queue.is_worth_it() {
            queue.carriers += 1;
            drop(queue);
            self.link.rt.spawn(self.clone().work().boxed());
        }
        answer
    }

    async fn work(self: Arc<Self>) {
        let mut done: Vec<Vec<u8>> = Vec::new();
        while let Some(letters) = self.next(&done) {
            done = letters.iter().map(|letter| letter.order.line.clone()).collect();
            let orders: Vec<&Order> = letters.iter().map(|letter| &letter.order).collect();
            match self.deliver(&orders).await {
                Ok(answers) => {
                    for (letter, answer) in letters.into_iter().zip(answers) {
                        let _ = letter.tell.send(Ok(answer));
                    }
                }
                Err(trouble) if trouble.is_of_one() && letters.len() > 1 => {
                    for letter in letters {
                        let answer = self.deliver(&[&letter.order]).await;
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

    /// What goes into the next transaction, after that of these lines; `None`: there is nothing that may go yet, and whoever
    /// comes next, or is under way, goes on.
    fn next(&self, done: &[Vec<u8>]) -> Option<Vec<Letter>> {
        let mut queue = self.queue();
        for line in done {
            queue.under_way.remove(line);
        }
        if !queue.is_worth_it() {
            queue.carriers -= 1;
            return None;
        }
        let (mut taken, mut left) = (Vec::<Letter>::new(), VecDeque::new());
        // Of each line whether something else than deletions goes, or stays, and then all that follows stays.
        let mut lines: BTreeMap<Vec<u8>, bool> =
            queue.under_way.iter().map(|line| (line.clone(), true)).collect();
        let (mut bytes, mut ops) = (0, 0);
        for letter in queue.waiting.drain(..) {
            let order = &letter.order;
            let fits =
                ops + order.then.len() <= MOST && bytes + order.bytes <= MOST_BYTES || taken.is_empty();
            let goes = fits && overlapping(&lines, &order.line).all(|taken| order.deletes && !taken);
            *lines.entry(order.line.clone()).or_default() |= !goes || !order.deletes;
            if goes {
                bytes += order.bytes;
                ops += if order.is_nested() { 1 } else { order.then.len() };
                taken.push(letter);
            } else {
                left.push_back(letter);
            }
        }
        queue.waiting = left;
        queue.under_way.extend(taken.iter().map(|letter| letter.order.line.clone()));
        queue.carriers -= usize::from(taken.is_empty());
        Some(taken).filter(|taken| !taken.is_empty())
    }

    async fn deliver(&self, orders: &[&Order]) -> Result<Vec<Done>, Trouble> {
        let guarded = self.link.is_somebody();
        let txn = match orders {
            [alone] => (*alone).clone().txn(),
            several => {
                let nested = several.iter().filter(|order| order.is_nested());
                let nested = nested.take(if guarded { several.len() } else { 1 });
                let looks = nested.map(|order| Compare::version(order.nobodys(), CompareOp::Greater, -1));
                let ops = several.iter().flat_map(|order| match order.is_nested() {
                    false => order.then.clone(),
                    true => {
                        let deletion = guarded.then(|| TxnOp::delete(order.nobodys(), None));
                        deletion.into_iter().chain([TxnOp::txn((*order).clone().txn())]).collect()
                    }
                });
                Txn::new().when(looks.collect::<Vec<_>>()).and_then(ops.collect::<Vec<_>>())
            }
        };
        let response = self
            .link
            .ask_here(WRITTEN_WITHIN, &|client: etcd_client::Client| {
                let txn = txn.clone();
                async move { transact(&client, txn).await }
            })
            .await?;
        let revision = revision(&response);
        let mut answers = response.op_responses();
        if orders.len() == 1 {
            return Ok(vec![Done { so: response.succeeded(), answers, revision }]);
        }
        let mut answers = answers.drain(..);
        let done = |order: &Order| {
            if !order.is_nested() {
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
        Ok(orders.iter().copied().map(done).collect())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is noted of a line, of those that it is in and of those that are in it: all end in a slash.
fn overlapping<'a>(lines: &'a BTreeMap<Vec<u8>, bool>, line: &'a [u8]) -> impl Iterator<Item = &'a bool> {
    let around =
        (1..line.len()).filter(|end| line[end - 1] == b'/').filter_map(|end| lines.get(&line[..end]));
    let within = lines.range::<[u8], _>((Bound::Included(line), Bound::Unbounded));
    around.chain(within.take_while(|(other, _)| other.starts_with(line)).map(|(_, taken)| taken))
}

pub(super) fn revision(response: &TxnResponse) -> i64 {
    response.header().map_or(0, |header| header.revision())
}

#[cfg(test)]
mod tests {
    use super::{super::address::Address, *};
    use crate::rt::Native;

    /// Nobody sends anything.
    fn post() -> Arc<Post> {
        let hosts = vec!["127.0.0.1:1".to_owned()];
        let address = Address { hosts, prefix: "app".to_owned(), user: None, tls: None };
        let post = Post::new(Arc::new(Link::new(address, Arc::new(Native)).unwrap()));
        post.queue().carriers = AT_ONCE;
        post
    }

    /// To each a line, and whether it is written there or deleted.
    fn put_in(post: &Arc<Post>, orders: &[(&str, bool)]) {
        for (n, (line, written)) in orders.iter().enumerate() {
            let there = Compare::version(*line, CompareOp::Greater, 0);
            drop(post.put_in(Order {
                line: line.as_bytes().to_vec(),
                when: if *written { vec![there] } else { Vec::new() },
                then: Vec::new(),
                otherwise: Vec::new(),
                deletes: !written,
                bytes: n,
            }));
        }
    }

    /// Which of them go next, when these are done.
    fn next(post: &Post, done: &[&str]) -> Option<Vec<usize>> {
        let done: Vec<Vec<u8>> = done.iter().map(|line| line.as_bytes().to_vec()).collect();
        Some(post.next(&done)?.iter().map(|letter| letter.order.bytes).collect())
    }

    /// Which of these go together, one transaction after the other.
    fn batches(orders: &[(&str, bool)]) -> Vec<Vec<usize>> {
        let post = post();
        put_in(&post, orders);
        let lines: Vec<&str> = orders.iter().map(|(line, _)| *line).collect();
        std::iter::from_fn(|| next(&post, &lines)).collect()
    }

    #[test]
    fn a_line_is_written_once_in_a_transaction() {
        assert_eq!(batches(&[("/a/", true), ("/b/", true), ("/ab/", true)]), [vec![0, 1, 2]]);
        assert_eq!(batches(&[("/a/", false), ("/a/", false)]), [[0, 1]]);
        let orders = [("/a/", true), ("/a/", false), ("/b/", true), ("/a/", false)];
        assert_eq!(batches(&orders), [vec![0, 2], vec![1, 3]]);
    }

    #[test]
    fn so_is_one_that_has_others_in_it() {
        assert_eq!(batches(&[("/a/", true), ("/a/b/c/", true), ("/a0/", true)]), [vec![0, 2], vec![1]]);
        assert_eq!(batches(&[("/a/b/", true), ("/a/c/", true), ("/a/", true)]), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn few_wait_for_more_beside_many() {
        let (post, lines) = (post(), (0..30).map(|n| format!("/{n}/")).collect::<Vec<_>>());
        let orders: Vec<(&str, bool)> = lines.iter().map(|line| (line.as_str(), true)).collect();
        put_in(&post, &orders[..20]);
        assert_eq!(next(&post, &[]).unwrap().len(), 20);
        put_in(&post, &orders[20..29]);
        assert_eq!(next(&post, &[]), None);
        post.queue().carriers = AT_ONCE;
        put_in(&post, &orders[29..]);
        assert_eq!(next(&post, &[]).unwrap().len(), 10);
    }

    #[test]
    fn what_follows_on_a_line_waits_for_the_answer() {
        let post = post();
        put_in(&post, &[("/a/", true), ("/a/", false), ("/a/b/", true)]);
        assert_eq!(next(&post, &[]), Some(vec![0]));
        assert_eq!(next(&post, &[]), None, "the line is under way");
        assert_eq!(next(&post, &["/a/"]), Some(vec![1]));
        assert_eq!(next(&post, &["/a/"]), Some(vec![2]));
        assert_eq!(post.queue().carriers, AT_ONCE - 1, "one has found nothing");
    }
}
