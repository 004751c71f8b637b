//! Few connections. A browser opens six to a server over HTTP/1.1, for all its pages together, and what finds none free stands
//! behind what has one. So a locker there has two lanes, of one request each: one for what can be answered at once, and one
//! that is held open for everything it waits for, parked renewals among it. However much is asked for, renewals that are due
//! and releases have connections of their own (rule R24).
//!
//! - **More is asked for, or something is given up**: a request with all that is asked now takes the place of the one that is held open.
//!   The server answers that one when it sees the next, so nothing that it has heard is lost, and its connection is free.
//! - **It does not**, because it is another server of the same store, or the connection is dead: the earlier request is given up when
//!   the next but one is sent.
//! - **A request fails**: everybody is told, and asks again by the same ids. One whose place another has taken fails unheard.
//! - **A question makes no sense**: all of the request is refused. What is asked here was found to make sense before; what somebody
//!   may not ask for is refused alone.
//! - **Two requests bring the same grant**: who was told by the first asks no more, and the second finds nobody to tell.
//! - **More than fits into a request** goes by itself, or with the next one where that is soon.

use std::{
    future::poll_fn,
    mem::{replace, take},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use event_listener::Event;
use futures_channel::oneshot;
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};

use super::{MOST_BYTES, answers::another_server, server::Server};
use crate::{
    error::{Error, ErrorKind, Result},
    json::Json,
    protocol::{Problem, millis},
    time::Moment,
    wire::Answer,
};

/// An answer, and when its question was sent.
pub(super) type Told = Result<(Moment, Json)>;

/// Both.
pub(super) struct Lanes {
    at_once: Arc<Lane>,
    waits: Arc<Lane>,
}

impl Lanes {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        let lane = |waits| {
            Arc::new(Lane { server: server.clone(), waits, state: Mutex::default(), changed: Event::new() })
        };
        Self { at_once: lane(false), waits: lane(true) }
    }

    /// Asks together with others; `None`: it is too long for that.
    pub(super) async fn ask(&self, path: &str, question: &Json, wait: Duration) -> Option<Told> {
        let lane = if wait.is_zero() { &self.at_once } else { &self.waits };
        lane.ask(format!("{{\"{path}\":{}}}", question.to_text()), wait).await
    }
}

struct Lane {
    server: Arc<Server>,
    /// Its requests are held open.
    waits: bool,
    state: Mutex<State>,
    /// Rings when somebody asks, or gives up.
    changed: Event,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    /// How many have asked.
    count: u64,
    /// The last request was answered, or is not about the same questions.
    is_due: bool,
    /// There is a task that sends the requests.
    runs: bool,
}

/// A question without an answer.
struct Asked {
    number: u64,
    text: String,
    since: Moment,
    wait: Duration,
    tell: oneshot::Sender<Told>,
}

/// A request that was answered.
struct Answered {
    /// Whose questions were in it.
    numbers: Vec<u64>,
    sent: Moment,
    answer: Result<Json>,
}

impl Lane {
    async fn ask(self: &Arc<Self>, text: String, wait: Duration) -> Option<Told> {
        let (tell, told) = oneshot::channel();
        let _place = self.enter(text, wait, tell)?;
        Some(
            told.await
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the question was not sent"))),
        )
    }

    fn enter(
        self: &Arc<Self>,
        text: String,
        wait: Duration,
        tell: oneshot::Sender<Told>,
    ) -> Option<Place<'_>> {
        let mut state = self.state();
        // What is held open leaves no room for a second request; what is not is sent with the next.
        let before = if self.waits { state.asked.iter().map(|asked| asked.text.len() + 1).sum() } else { 0 };
        if before + text.len() > MOST_BYTES {
            return None;
        }
        state.count += 1;
        let number = state.count;
        state.asked.push(Asked { number, text, since: self.server.rt.now(), wait, tell });
        state.is_due = true;
        let runs = replace(&mut state.runs, true);
        drop(state);
        if runs {
            self.changed.notify(usize::MAX);
        } else {
            self.server.rt.spawn(self.clone().run().boxed());
        }
        Some(Place { lane: self, number })
    }

    /// Sends requests for as long as there is somebody who asks.
    async fn run(self: Arc<Self>) {
        // The newest is the last.
        let mut under_way: Vec<BoxFuture<'static, Answered>> = Vec::new();
        loop {
            let changed = self.changed.listen();
            let request = {
                let mut state = self.state();
                if state.asked.is_empty() {
                    // What is under way is wanted by nobody.
                    state.runs = false;
                    return;
                }
                // What is answered at once goes one by one.
                let may_be_sent = under_way.is_empty() || self.waits;
                (state.is_due && may_be_sent).then(|| self.request(&mut state))
            };
            if let Some(request) = request {
                if under_way.len() > 1 {
                    drop(under_way.remove(0));
                }
                under_way.push(request);
            }
            let answered = match future::select(future::select_all(under_way.iter_mut()), changed).await {
                Either::Left(((answered, at, _), _)) => Some((answered, at)),
                Either::Right(_) => None,
            };
            let Some((answered, at)) = answered else { continue };
            drop(under_way.remove(at));
            self.tell(answered, at == under_way.len());
            // Most of those who were told ask again.
            others_first().await;
        }
    }

    /// A request with the questions of all, as many as fit.
    fn request(&self, state: &mut State) -> BoxFuture<'static, Answered> {
        state.is_due = false;
        let sent = self.server.rt.now();
        let (mut numbers, mut questions, mut wait) = (Vec::new(), String::new(), Duration::MAX);
        for asked in &state.asked {
            if questions.len() + asked.text.len() > MOST_BYTES {
                break;
            }
            if !questions.is_empty() {
                questions.push(',');
            }
            questions.push_str(&asked.text);
            numbers.push(asked.number);
            wait = wait.min(asked.wait.saturating_sub(sent.since(asked.since)));
        }
        let server = self.server.clone();
        let (client, wait_ms) = (server.client.reveal(), millis(wait));
        let text =
            format!("{{\"client\":\"{client:032x}\",\"wait_ms\":{wait_ms},\"questions\":[{questions}]}}");
        async move {
            let answer = server.post_text("together", text, Some(wait)).await;
            Answered { numbers, sent, answer }
        }
        .boxed()
    }

    /// Tells those who are answered.
    fn tell(&self, Answered { numbers, sent, answer }: Answered, is_newest: bool) {
        let url = &self.server.url;
        let answers = answer.and_then(|answer| match answer.get("answers").list() {
            Some(answers) if answers.len() == numbers.len() => Ok(answers.to_vec()),
            _ => Err(another_server().with_backend(url)),
        });
        let mut state = self.state();
        state.is_due |= is_newest;
        match answers {
            Ok(answers) => {
                for (number, answer) in numbers.into_iter().zip(answers) {
                    let told = match answer {
                        Json::Object(mut fields) => fields.pop(),
                        _ => None,
                    };
                    let (Some((of, answer)), Some(at)) = (told, state.place(number)) else { continue };
                    let told = if of == "problem" {
                        let problem = Problem::read(&answer).unwrap_or_default();
                        Err(problem.into_error().with_backend(url))
                    } else {
                        Ok((sent, answer))
                    };
                    // Whoever asked may be gone, here and below.
                    let _ = state.asked.remove(at).tell.send(told);
                }
            }
            Err(error) if is_newest => {
                for asked in take(&mut state.asked) {
                    let _ = asked.tell.send(Err(error.clone()));
                }
            }
            Err(_) => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn place(&self, number: u64) -> Option<usize> {
        self.asked.iter().position(|asked| asked.number == number)
    }
}

/// That of a question; dropped without an answer, it is given up.
struct Place<'a> {
    lane: &'a Lane,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.lane.state();
        if let Some(at) = state.place(self.number) {
            state.asked.remove(at);
            state.is_due = true;
            drop(state);
            self.lane.changed.notify(usize::MAX);
        }
    }
}

/// Lets those go on first who were woken.
async fn others_first() {
    let mut they_were = false;
    poll_fn(|context| {
        if replace(&mut they_were, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "on the runtime of the test")]
mod tests {
    use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
    use futures_util::{StreamExt, future::join_all};
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::{
        Backend,
        ask::{Ask, Claim, Entry, Grant, Mode},
        backend::HttpBackend,
        name::ClaimId,
        protocol::{Question, Together},
        rt::{Native, Runtime},
        transport::{Request, Response, Streamed, Transport},
    };

    /// Requests, in the order in which they were sent.
    #[derive(Debug)]
    struct Wire(UnboundedSender<Sent>);

    #[derive(Debug)]
    struct Sent {
        path: String,
        body: Vec<u8>,
        tell: oneshot::Sender<Result<Response>>,
    }

    impl Transport for Wire {
        fn send(&self, request: Request) -> BoxFuture<'static, Result<Response>> {
            let (tell, answer) = oneshot::channel();
            let path = request.url.rsplit('/').next().unwrap().to_owned();
            self.0.unbounded_send(Sent { path, body: request.body, tell }).unwrap();
            async move {
                match answer.await {
                    Ok(answer) => answer,
                    // The test does not answer it.
                    Err(_) => future::pending().await,
                }
            }
            .boxed()
        }

        fn stream(&self, _: Request) -> BoxFuture<'static, Result<Streamed>> {
            future::pending().boxed()
        }
    }

    impl Sent {
        /// What is asked in it, and for how long it may be held open.
        fn together(&self) -> (Vec<Question>, u64) {
            assert_eq!(self.path, "together");
            let Together { questions, wait_ms, client } = serde_json::from_slice(&self.body).unwrap();
            assert!(client.is_some());
            (questions, wait_ms.unwrap())
        }

        /// The names of the locks that are asked for in it.
        fn names(&self) -> Vec<String> {
            let name = |question| match question {
                Question::Acquire(asked) => asked.claim.name.to_string(),
                Question::Renew(_) => "renew".to_owned(),
                other => panic!("{other:?}"),
            };
            self.together().0.into_iter().map(name).collect()
        }

        fn answer(self, answers: &[Value]) {
            let body = json!({ "answers": answers }).to_string().into_bytes();
            // It may have been given up.
            let _ = self.tell.send(Ok(Response { status: 200, retry_after: None, missing: None, body }));
        }

        fn fails(self) {
            let _ = self.tell.send(Err(Error::new(ErrorKind::Unavailable, "the connection broke")));
        }

        async fn given_up(mut self) {
            self.tell.cancellation().await;
        }
    }

    fn waiting() -> Value {
        json!({ "acquire": { "outcome": "waiting", "holders": [], "place": 1 } })
    }

    fn granted(fencing_token: u64) -> Value {
        let grant = json!({ "fencing_token": fencing_token, "mode": "exclusive", "ttl_ms": 10_000 });
        json!({ "acquire": { "outcome": "granted", "grant": grant, "held_ms": 0 } })
    }

    fn few() -> (Arc<HttpBackend>, UnboundedReceiver<Sent>) {
        let (send, sent) = unbounded();
        Native.start().unwrap();
        let backend = HttpBackend::new("http://test/names", Arc::new(Wire(send)), Arc::new(Native)).unwrap();
        (Arc::new(backend.with_few_connections()), sent)
    }

    fn ask(name: &str) -> Ask {
        Ask {
            name: name.parse().unwrap(),
            claim_id: ClaimId::from_u128(Native.random()),
            mode: Mode::Exclusive,
            entry: Entry::Queue,
            ttl: Duration::from_secs(10),
            owner: Arc::default(),
            keep: Duration::ZERO,
            only_here: false,
        }
    }

    fn acquire(backend: &Arc<HttpBackend>, name: &str) -> JoinHandle<Result<Option<Grant>>> {
        let (backend, ask) = (backend.clone(), ask(name));
        tokio::spawn(async move { backend.acquire(&ask, &|_| ()).await })
    }

    /// Sees to it that all of these wait, and gives the request that is held open for them.
    async fn all_wait(sent: &mut UnboundedReceiver<Sent>, names: &[&str]) -> Sent {
        loop {
            let request = sent.next().await.unwrap();
            let (questions, wait_ms) = request.together();
            if wait_ms == 0 {
                request.answer(&vec![waiting(); questions.len()]);
                continue;
            }
            let mut asked = request.names();
            asked.sort_unstable();
            if asked == names {
                return request;
            }
        }
    }

    /// Two acquires that wait, and the request for the first with the one for both, which takes its place.
    async fn one_after_another(
        backend: &Arc<HttpBackend>,
        sent: &mut UnboundedReceiver<Sent>,
    ) -> ([JoinHandle<Result<Option<Grant>>>; 2], [Sent; 2]) {
        let first = acquire(backend, "a");
        let earlier = all_wait(sent, &["a"]).await;
        let second = acquire(backend, "b");
        sent.next().await.unwrap().answer(&[waiting()]);
        let later = sent.next().await.unwrap();
        ([first, second], [earlier, later])
    }

    #[tokio::test]
    async fn however_many_wait_two_requests_are_under_way() {
        let (backend, mut sent) = few();
        let first = acquire(&backend, "a");
        let request = sent.next().await.unwrap();
        assert_eq!((request.names(), request.together().1), (vec!["a".to_owned()], 0));
        let others = ["b", "c", "d"].map(|name| acquire(&backend, name));
        let claim = Claim { name: "held".parse().unwrap(), id: ClaimId::from_u128(7) };
        let renewing = backend.clone();
        let renewal = tokio::spawn(async move { renewing.renew(&[claim]).await });
        // It does not stand behind those who ask.
        let renew = sent.next().await.unwrap();
        assert_eq!(renew.path, "renew");
        request.answer(&[waiting()]);
        let open = all_wait(&mut sent, &["a", "b", "c", "d"]).await;
        assert!(open.together().1 > 50_000);
        renew.fails();
        renewal.await.unwrap().unwrap_err();
        // Two at once, and the other two are asked for anew.
        open.answer(&[Value::Null, granted(1), granted(2), Value::Null]);
        let open = sent.next().await.unwrap();
        assert_eq!(open.names().len(), 2);
        open.answer(&[granted(3), granted(4)]);
        let all = join_all([first].into_iter().chain(others)).await;
        let mut tokens: Vec<u64> =
            all.into_iter().map(|grant| grant.unwrap().unwrap().unwrap().fencing_token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_request_takes_the_place_of_the_one_before() {
        let (backend, mut sent) = few();
        let ([first, second], [earlier, later]) = one_after_another(&backend, &mut sent).await;
        assert_eq!(later.names(), ["a", "b"]);
        // What it has heard before the server saw the next one counts.
        earlier.answer(&[granted(1)]);
        assert_eq!(first.await.unwrap().unwrap().unwrap().fencing_token, 1);
        later.answer(&[granted(1), granted(2)]);
        assert_eq!(second.await.unwrap().unwrap().unwrap().fencing_token, 2);
    }

    #[tokio::test]
    async fn one_that_failed_is_told_unless_another_has_taken_its_place() {
        let (backend, mut sent) = few();
        let ([first, second], [earlier, later]) = one_after_another(&backend, &mut sent).await;
        earlier.fails();
        // The third finds the earlier one gone.
        let third = acquire(&backend, "c");
        sent.next().await.unwrap().answer(&[waiting()]);
        let last = sent.next().await.unwrap();
        assert_eq!(last.names(), ["a", "b", "c"]);
        assert!(!later.tell.is_canceled());
        last.fails();
        for told in join_all([first, second, third]).await {
            assert_eq!(told.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        }
        later.given_up().await;
    }

    #[tokio::test]
    async fn a_request_that_hangs_given_up_for_the_next_but_one() {
        let (backend, mut sent) = few();
        let _first = acquire(&backend, "a");
        let hangs = all_wait(&mut sent, &["a"]).await;
        for name in ["b", "c"] {
            let _waits = acquire(&backend, name);
            let request = sent.next().await.unwrap();
            assert!(!hangs.tell.is_canceled());
            request.answer(&[waiting()]);
            sent.next().await.unwrap();
        }
        hangs.given_up().await;
    }

    #[tokio::test]
    async fn what_given_up_is_asked_no_more() {
        let (backend, mut sent) = few();
        let (first, second) = (acquire(&backend, "a"), acquire(&backend, "b"));
        let open = all_wait(&mut sent, &["a", "b"]).await;
        first.abort();
        let fewer = sent.next().await.unwrap();
        assert_eq!(fewer.names(), ["b"]);
        second.abort();
        open.given_up().await;
        fewer.given_up().await;
    }

    #[tokio::test]
    async fn one_that_is_refused_is_the_only_one() {
        let (backend, mut sent) = few();
        let (first, second) = (acquire(&backend, "a"), acquire(&backend, "b"));
        let open = all_wait(&mut sent, &["a", "b"]).await;
        let problem = json!({ "problem": { "status": 403, "kind": "denied", "detail": "not for you" } });
        let answers = open.names().into_iter().map(|name| match name.as_str() {
            "a" => problem.clone(),
            _ => Value::Null,
        });
        open.answer(&answers.collect::<Vec<_>>());
        let error = first.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Denied, "not for you"));
        let open = sent.next().await.unwrap();
        assert_eq!(open.names(), ["b"]);
        open.answer(&[granted(1)]);
        second.await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_does_not_fit_goes_by_itself() {
        let (backend, mut sent) = few();
        let long = |n| ask(&format!("{n:04}{}", "x".repeat(1_000)));
        let asks: Vec<Ask> = (0..300).map(long).collect();
        let by = backend.clone();
        let _several = tokio::spawn(async move { by.acquire_all(&asks, &|_| ()).await });
        let alone = sent.next().await.unwrap();
        assert_eq!(alone.path, "acquire-all");
        assert!(alone.body.len() > MOST_BYTES);
    }
}
