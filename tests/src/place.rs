//! Where a conformance test runs, and what such tests say again and again.

use std::{
    fmt,
    future::{Future, IntoFuture},
    num::NonZeroU32,
    path::PathBuf,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread::{Scope, ScopedJoinHandle, Thread},
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::{
    FutureExt,
    future::{AbortHandle, Abortable, BoxFuture, Either, LocalBoxFuture, select},
};
use windlass::{
    Backend, ClaimId, ConnectOptions, Error, ErrorKind, Guard, Lock, Locker, Mode, Owner, Result, Status,
    Waiting,
    ask::{Ask, Claim, Entry, Grant},
    open_backend,
    rt::{Native, Runtime},
};

/// More than anything takes that goes well, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A place for locks of its own for each test. Two clients of it are two programs as far as the backend can tell
/// within one process.
pub trait Place: fmt::Debug {
    /// A new client.
    fn client(&self) -> Arc<dyn Backend>;

    /// A new client with the policy over it.
    fn locker(&self) -> Locker;

    /// Clocks and tasks.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Runs a test to its end.
    fn run(&self, test: LocalBoxFuture<'_, ()>);

    /// Whether other threads may use it.
    fn has_threads(&self) -> bool {
        true
    }

    /// What a test that released everything has left behind and must not have: in the place itself if the backend
    /// forgets names, and outside of it in any case.
    fn leftovers(&self) -> Vec<String>;
}

/// Runs one test in a place of its own, then looks for what it left behind.
#[allow(clippy::needless_pass_by_value, reason = "the place ends with the test")]
pub fn check(place: impl Place, test: for<'a> fn(&'a dyn Place) -> LocalBoxFuture<'a, ()>) {
    place.run(
        async {
            test(&place).await;
            let client = place.client();
            let place: &dyn Place = &place;
            if client.capabilities().see {
                place
                    .until("nobody holds and nobody waits", async || {
                        client.inspect("").await.unwrap().is_empty()
                    })
                    .await;
            }
            place.until("nothing is left behind", async || place.leftovers().is_empty()).await;
        }
        .boxed_local(),
    );
}

impl dyn Place + '_ {
    /// Waits for something that must happen.
    pub async fn soon<T>(&self, what: &str, event: impl Future<Output = T>) -> T {
        match select(pin!(event), self.runtime().sleep(PATIENCE)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => panic!("waited {PATIENCE:?} in vain for: {what}"),
        }
    }

    /// Looks again and again until it is so; for what nobody tells.
    pub async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let looks = async {
            while !so().await {
                self.runtime().sleep(Duration::from_millis(5)).await;
            }
        };
        self.soon(what, looks).await;
    }

    /// Lets others run for a while. Never to wait for something: only to give a fault the time to show.
    pub async fn pause(&self, millis: u64) {
        self.runtime().sleep(Duration::from_millis(millis)).await;
    }

    /// Takes a lock that must be had.
    pub async fn take(&self, client: &dyn Backend, ask: &Ask) -> Grant {
        let taken = client.acquire(ask, &|_| {});
        self.soon("a lock", taken).await.unwrap().expect("a lock that is free is granted")
    }

    /// Tries to take a lock.
    pub async fn attempt(&self, client: &dyn Backend, ask: &Ask) -> Option<Grant> {
        let ask = Ask { entry: Entry::Try, ..ask.clone() };
        self.soon("the answer to a try", client.acquire(&ask, &|_| {})).await.unwrap()
    }

    /// Whether the lock could be had at once; it is not kept.
    pub async fn could_have(&self, client: &dyn Backend, name: &str, mode: Mode) -> bool {
        let ask = ask(name, mode);
        let had = self.attempt(client, &ask).await.is_some();
        self.give_back(client, &[&ask]).await;
        had
    }

    /// Releases these.
    pub async fn give_back(&self, client: &dyn Backend, asks: &[&Ask]) {
        let claims: Vec<Claim> = asks.iter().map(|ask| claim(ask)).collect();
        self.soon("a release", client.release(&claims)).await.unwrap();
    }

    /// Asks for a lock in the background and waits until the claim stands in line.
    pub async fn stand_in_line(&self, client: &Arc<dyn Backend>, ask: &Ask) -> InLine {
        let mut in_line = self.ask_in_background(client, ask);
        self.soon("a place in the queue", in_line.queued()).await;
        in_line
    }

    /// Asks for a lock in the background.
    pub fn ask_in_background(&self, client: &Arc<dyn Backend>, ask: &Ask) -> InLine {
        let (client, mine) = (client.clone(), ask.clone());
        let (tell_queued, queued) = oneshot::channel();
        let tell_queued = Mutex::new(Some(tell_queued));
        self.in_background(queued, ask, async move {
            let waiting = |waiting: Waiting| {
                if let Some(tell) = tell_queued.lock().unwrap().take() {
                    let _ = tell.send(waiting);
                }
            };
            client.acquire(&mine, &waiting).await
        })
    }

    /// Changes a held claim in the background.
    pub fn change_in_background(&self, client: &Arc<dyn Backend>, ask: &Ask, to: Mode) -> InLine {
        let (client, claim) = (client.clone(), claim(ask));
        let (_, queued) = oneshot::channel();
        self.in_background(queued, ask, async move { client.change(&claim, to).await.map(Some) })
    }

    fn in_background(
        &self,
        queued: oneshot::Receiver<Waiting>,
        ask: &Ask,
        work: impl Future<Output = Result<Option<Grant>>> + Send + 'static,
    ) -> InLine {
        let (tell_done, done) = oneshot::channel();
        let (stop, stopped) = AbortHandle::new_pair();
        let work = Abortable::new(work.map(|outcome| drop(tell_done.send(outcome))), stopped);
        self.runtime().spawn(work.map(drop).boxed());
        InLine { ask: ask.clone(), queued: Some(queued), done, stop }
    }

    /// A lock as it stands; without holders and waiters when the backend knows nothing of it.
    pub async fn look(&self, client: &dyn Backend, name: &str) -> Status {
        let all = self.soon("a look", client.inspect(name)).await.unwrap();
        let status = all.into_iter().find(|status| status.name.as_str() == name);
        status.unwrap_or_else(|| Status { name: name.parse().unwrap(), holders: vec![], waiters: vec![] })
    }

    /// Who holds a lock and who waits for it, in the words of [`queue`](Self::queue), where the backend can see it.
    pub async fn shows(&self, client: &dyn Backend, name: &str, queue: &str) {
        if client.capabilities().see {
            assert_eq!(self.queue(client, name).await, queue);
        }
    }

    /// Waits until it [is so](Self::shows).
    pub async fn until_shows(&self, client: &dyn Backend, name: &str, queue: &str) {
        let so = async || !client.capabilities().see || self.queue(client, name).await == queue;
        self.until(queue, so).await;
    }

    /// The owners that hold a lock and those that wait for it, as `a b / c`.
    pub async fn queue(&self, client: &dyn Backend, name: &str) -> String {
        let status = self.look(client, name).await;
        let mut holders: Vec<&str> = status.holders.iter().map(|holder| &*holder.owner.owner).collect();
        holders.sort_unstable();
        let waiters: Vec<&str> = status.waiters.iter().map(|waiter| &*waiter.owner.owner).collect();
        format!("{} / {}", holders.join(" "), waiters.join(" ")).trim().to_owned()
    }
}

/// A claim that was asked for in the background.
#[derive(Debug)]
pub struct InLine {
    pub ask: Ask,
    queued: Option<oneshot::Receiver<Waiting>>,
    done: oneshot::Receiver<Result<Option<Grant>>>,
    stop: AbortHandle,
}

impl InLine {
    /// Until it stands in line, and what it was told then.
    pub async fn queued(&mut self) -> Waiting {
        let queued = self.queued.take().expect("asked only once");
        match select(queued, &mut self.done).await {
            Either::Left((waiting, _)) => waiting.expect("told that it waits"),
            Either::Right((outcome, _)) => panic!("did not have to wait: {outcome:?}"),
        }
    }

    /// Whether it has an answer.
    pub fn is_done(&mut self) -> bool {
        (&mut self.done).now_or_never().is_some()
    }

    pub async fn outcome(self) -> Result<Option<Grant>> {
        self.done.await.expect("an answer")
    }

    /// Until it is granted.
    pub async fn granted(self, place: &dyn Place) -> Grant {
        let who = self.ask.owner.owner.clone();
        place.soon(&format!("the grant of {who}"), self.outcome()).await.unwrap().expect("granted")
    }

    /// Drops the future that waits, and returns once it is dropped.
    pub async fn drop_future(self) {
        self.stop.abort();
        let _ = self.done.await;
    }
}

/// A request that stands in line, with an id of its own.
pub fn ask(name: &str, mode: Mode) -> Ask {
    ask_as("somebody", name, mode)
}

/// ... of an owner that tests can tell from others.
pub fn ask_as(owner: &str, name: &str, mode: Mode) -> Ask {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = u128::from(NEXT.fetch_add(1, Ordering::Relaxed)) << 64 | u128::from(std::process::id());
    Ask {
        name: name.parse().unwrap(),
        claim_id: ClaimId::from_u128(id),
        mode,
        entry: Entry::Queue,
        ttl: windlass::DEFAULT_TTL,
        owner: Arc::new(Owner { owner: owner.into(), ..Owner::default() }),
        keep: Duration::ZERO,
        only_here: true,
    }
}

pub fn claim(ask: &Ask) -> Claim {
    ask.claim()
}

/// A semaphore's mode.
pub fn permit(limit: u32) -> Mode {
    Mode::Permit(NonZeroU32::new(limit).unwrap())
}

/// Polls a future so many times at the most; `None` when it was not done by then and has been dropped.
pub async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Runs a future on this thread.
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future.into_future());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

/// Takes a lock that must be had, sooner or later.
pub fn acquire(locker: &Locker, name: &str) -> Guard {
    block_on(locker.lock(name).timeout(PATIENCE)).unwrap()
}

/// The error of waiting in vain for so long that one hears who holds the lock: how long that takes depends on the machine.
pub async fn in_vain(mut lock: impl FnMut() -> Lock) -> Error {
    let mut timeout = Duration::from_secs(1);
    loop {
        let error = lock().timeout(timeout).await.unwrap_err();
        let has_heard = error.waiting().is_some_and(|waiting| !waiting.holders.is_empty());
        if has_heard || error.kind() != ErrorKind::Timeout || timeout > PATIENCE / 4 {
            return error;
        }
        timeout *= 2;
    }
}

/// Asks for a lock on a thread of its own, and returns once it stands in line.
pub fn waits<'scope>(scope: &'scope Scope<'scope, '_>, lock: Lock) -> ScopedJoinHandle<'scope, Guard> {
    let (tell, waits) = mpsc::channel();
    let waiting = scope.spawn(move || {
        let lock = lock.timeout(PATIENCE).on_wait(move |_| {
            // Told more than once, when it hears more.
            let _ = tell.send(());
        });
        block_on(lock).unwrap()
    });
    waits.recv_timeout(PATIENCE).unwrap();
    waiting
}

/// Lets other tasks go first, once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A task in the background whose outcome can be waited for.
pub fn task<T: Send + 'static>(
    rt: &dyn Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    let (tell, done) = oneshot::channel();
    let work: BoxFuture<'static, ()> = work.map(|output| drop(tell.send(output))).boxed();
    rt.spawn(work);
    done.map(|output| output.expect("the task did not panic")).boxed()
}

/// A place that a URL names.
#[derive(Debug)]
pub struct UrlPlace {
    pub url: String,
    /// Its directory, in a folder of its own, if it is one.
    pub folder: Option<Folder>,
}

impl UrlPlace {
    /// Memory of its own.
    pub fn memory() -> Self {
        Self { url: format!("memory:{}", unique()), folder: None }
    }

    /// A directory of its own.
    pub fn file() -> Self {
        let folder = Folder::new();
        Self { url: format!("file://{}", folder.path("locks").display()), folder: Some(folder) }
    }
}

impl Place for UrlPlace {
    fn client(&self) -> Arc<dyn Backend> {
        open_backend(&self.url, self.runtime()).unwrap()
    }

    fn locker(&self) -> Locker {
        block_on(ConnectOptions::new().connect(&self.url)).unwrap()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(Native)
    }

    fn run(&self, test: LocalBoxFuture<'_, ()>) {
        block_on(test);
    }

    fn leftovers(&self) -> Vec<String> {
        let Some(folder) = &self.folder else { return vec![] };
        let around = std::fs::read_dir(&folder.0).unwrap();
        let around = around.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        around.filter(|name| name != "locks").collect()
    }
}

/// A temporary folder, removed when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("windlass-tests-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn unique() -> String {
    format!("{}-{:x}", std::process::id(), Native.random())
}
