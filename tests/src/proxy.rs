//! A bad network between a client and its server, or servers: one TCP proxy, whose faults are set while it runs.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::{Notify, futures::Notified, watch},
};

use crate::processes::until;

/// What the network does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each piece of either direction takes up to this long.
    pub delay: Duration,
    /// ... and what the server sends just so long, besides.
    pub delay_answers: Duration,
    /// What is sent to the server does not arrive; connections stay.
    pub swallow_requests: bool,
    /// What the server sends does not arrive.
    pub swallow_answers: bool,
    /// The next connection is reset after so many bytes to the server.
    pub cut_request_after: Option<usize>,
    /// ... or from it.
    pub cut_answer_after: Option<usize>,
    /// All connections are reset after so many bytes more to the server.
    pub break_after_requests: Option<usize>,
    /// ... or from it.
    pub break_after_answers: Option<usize>,
}

impl Faults {
    pub const NONE: Self = Self {
        delay: Duration::ZERO,
        delay_answers: Duration::ZERO,
        swallow_requests: false,
        swallow_answers: false,
        cut_request_after: None,
        cut_answer_after: None,
        break_after_requests: None,
        break_after_answers: None,
    };
    /// Requests are lost.
    pub const REQUESTS: Self = Self { swallow_requests: true, ..Self::NONE };
    /// Answers are lost.
    pub const ANSWERS: Self = Self { swallow_answers: true, ..Self::NONE };
    /// Both are.
    pub const BOTH: Self = Self { swallow_requests: true, swallow_answers: true, ..Self::NONE };
}

/// The network. It ends with the test's process.
#[derive(Clone, Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Each connection goes to the next one of those that are there.
    servers: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    faults: Mutex<Faults>,
    /// Rings when connections are to be reset.
    reset: Notify,
    /// Connections with a smaller number are held up.
    held_up: watch::Sender<usize>,
    opened: AtomicUsize,
    ended: AtomicUsize,
    /// How many there had been when connections were reset.
    were_reset: AtomicUsize,
    /// What was sent to the server, a connection at a time.
    requests: Mutex<Vec<Vec<u8>>>,
    record: AtomicBool,
    random: AtomicU64,
}

/// Serves connections on a thread of its own, until the process ends; where.
#[allow(clippy::disallowed_methods, reason = "the network has a thread of its own")]
pub(crate) fn listen<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let (tell, address) = mpsc::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client));
            }
        });
    });
    address.recv().unwrap()
}

impl Proxy {
    /// A network in front of a server, without faults yet.
    pub fn before(server: SocketAddr) -> Self {
        Self::before_all(vec![server])
    }

    /// In front of several that are alike.
    pub fn before_all(servers: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            servers: Mutex::new(servers),
            next: AtomicUsize::new(0),
            faults: Mutex::default(),
            reset: Notify::new(),
            held_up: watch::Sender::new(0),
            opened: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            were_reset: AtomicUsize::new(0),
            requests: Mutex::default(),
            record: AtomicBool::new(false),
            random: AtomicU64::new(1),
        });
        let served = shared.clone();
        Self { address: listen(move |client| served.clone().carry(client)), shared }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap() = faults;
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.shared.servers.lock().unwrap() = vec![server];
    }

    /// Breaks all connections.
    pub fn reset(&self) {
        self.shared.were_reset.store(self.shared.opened.load(Ordering::SeqCst), Ordering::SeqCst);
        self.shared.reset.notify_waiters();
    }

    /// Holds up what comes over the connections that there are. Nothing of it is lost.
    pub fn hold_up(&self) {
        self.shared.held_up.send_replace(self.shared.opened.load(Ordering::SeqCst));
    }

    /// Lets it arrive.
    pub fn let_go(&self) {
        self.shared.held_up.send_replace(0);
    }

    /// Keeps what is sent to the server from now on.
    pub fn record(&self) {
        self.shared.record.store(true, Ordering::SeqCst);
    }

    /// Sends it all to the server once more, and waits for the answers. What went over a connection is recorded when that ends.
    pub fn repeat(&self) {
        let were_reset = self.shared.were_reset.load(Ordering::SeqCst);
        until("the ends of connections", || self.shared.ended.load(Ordering::SeqCst) >= were_reset);
        let requests = std::mem::take(&mut *self.shared.requests.lock().unwrap());
        assert!(!requests.is_empty(), "nothing was recorded");
        let first = self.shared.servers.lock().unwrap()[0];
        for request in requests {
            use std::io::{Read, Write};
            let mut server = std::net::TcpStream::connect(first).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            server.write_all(&request).unwrap();
            let mut answers = [0; 4096];
            while server.read(&mut answers).is_ok_and(|read| read > 0) {}
        }
    }
}

impl Shared {
    async fn carry(self: Arc<Self>, client: TcpStream) {
        // It is of those that a reset breaks from now on.
        let reset = self.reset.notified();
        let number = self.opened.fetch_add(1, Ordering::SeqCst);
        self.carry_until(reset, number, client).await;
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    async fn carry_until(&self, reset: Notified<'_>, number: usize, mut client: TcpStream) {
        let Some(mut server) = self.connect().await else { return };
        let (mut cut_request, mut cut_answer) = {
            let mut faults = self.faults.lock().unwrap();
            (faults.cut_request_after.take(), faults.cut_answer_after.take())
        };
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        let mut sent = Vec::new();
        tokio::pin!(reset);
        loop {
            let (from_client, read) = tokio::select! {
                read = client.read(&mut up) => (true, read),
                read = server.read(&mut down) => (false, read),
                () = &mut reset => break,
            };
            let Some(read) = read.ok().filter(|read| *read > 0) else { break };
            let faults = *self.faults.lock().unwrap();
            self.delay(faults.delay).await;
            if !from_client && !faults.delay_answers.is_zero() {
                pause(faults.delay_answers).await;
            }
            let held_up = self.until_let_go(number).await;
            let (bytes, to, cut, swallow) = if from_client {
                (&up[..read], &mut server, &mut cut_request, faults.swallow_requests)
            } else {
                (&down[..read], &mut client, &mut cut_answer, faults.swallow_answers)
            };
            if swallow {
                continue;
            }
            let (pass, breaks) = self.breaks(from_client, cut.map_or(read, |left| left.min(read)));
            if from_client && self.record.load(Ordering::SeqCst) {
                sent.extend_from_slice(&bytes[..pass]);
            }
            if to.write_all(&bytes[..pass]).await.is_err() {
                break;
            }
            if held_up {
                // It is read before the end of the connection is.
                pause(Duration::from_millis(200)).await;
            }
            if breaks {
                self.reset.notify_waiters();
                break;
            }
            if let Some(left) = cut {
                *left -= pass;
                if *left == 0 {
                    break;
                }
            }
        }
        if !sent.is_empty() {
            self.requests.lock().unwrap().push(sent);
        }
        // A reset and not an end: what is on the way is lost.
        for stream in [&client, &server] {
            let _ = stream.set_zero_linger();
        }
    }

    async fn connect(&self) -> Option<TcpStream> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let servers = self.servers.lock().unwrap().clone();
        for server in servers.iter().cycle().skip(first % servers.len()).take(servers.len()) {
            if let Ok(connected) = TcpStream::connect(server).await {
                return Some(connected);
            }
        }
        None
    }

    /// Waits as long as this connection is held up; whether it was.
    async fn until_let_go(&self, number: usize) -> bool {
        let mut held_up = self.held_up.subscribe();
        let was = number < *held_up.borrow();
        // Its sender lives as long as this.
        let _ = held_up.wait_for(|below| number >= *below).await;
        was
    }

    /// How many of these bytes pass, and whether all breaks then.
    fn breaks(&self, from_client: bool, bytes: usize) -> (usize, bool) {
        let mut faults = self.faults.lock().unwrap();
        let after =
            if from_client { &mut faults.break_after_requests } else { &mut faults.break_after_answers };
        match after {
            Some(left) if *left <= bytes => (after.take().unwrap_or_default(), true),
            Some(left) => {
                *left -= bytes;
                (bytes, false)
            }
            None => (bytes, false),
        }
    }

    async fn delay(&self, most: Duration) {
        if !most.is_zero() {
            let random = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let part = (random ^ (random >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
            pause(most.mul_f64(part as f64 / (1 << 24) as f64)).await;
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the network is slow in real time")]
pub(crate) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
