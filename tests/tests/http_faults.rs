//! The server behind a bad network: slow, cut at every byte, dead in one direction, repeating itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "in real time, over real sockets")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use windlass::{ConnectOptions, DEFAULT_TTL, ErrorKind, Lock, Locker, LostReason, rt::Native};
use windlass_server::{Server, ServerOptions, Store, Tls};
use windlass_tests::{
    adversity::SLACK,
    certificates::Authority,
    few::{CONNECTIONS, client},
    place::{Folder, PATIENCE, block_on},
    processes::until,
    proxy::{Faults, Proxy},
    server,
};

/// All that backends have to pass, over a network that is slow and uneven.
mod slow {
    use super::*;
    use windlass_tests::{conformance, place::UrlPlace};

    fn start() -> UrlPlace {
        let (address, namespace) = split(&server::namespace());
        let proxy = Proxy::before(address);
        proxy.set(Faults { delay: Duration::from_millis(4), ..Faults::default() });
        UrlPlace { url: format!("http://{}/{namespace}", proxy.address()), folder: None }
    }

    conformance!(start);
}

/// Each of these as a program asks that has as many connections as it wants, and as one does that has few.
macro_rules! over_many_and_few {
    ($($test:ident,)*) => {
        mod many {
            $(#[test]
            fn $test() {
                super::$test(super::net);
            })*
        }
        mod few {
            $(#[test]
            fn $test() {
                super::$test(super::net_of_few);
            })*
        }
    };
}

over_many_and_few! {
    cut_at_every_byte,
    a_waiter_keeps_its_place_over_broken_connections,
    cut_off_holders_know_first,
    short_outages_are_survived,
    repeated_requests_do_nothing,
}

struct Net {
    proxy: Proxy,
    /// Over the bad network.
    locker: Locker,
    /// Not over it.
    other: Locker,
}

impl Net {
    fn lock(&self) -> Lock {
        self.locker.lock("lock").ttl(TTL)
    }
}

const TTL: Duration = Duration::from_secs(2);

fn net() -> Net {
    let url = server::namespace();
    let (address, namespace) = split(&url);
    let proxy = Proxy::before(address);
    let connect = |url: &str| block_on(ConnectOptions::new().ttl(TTL).connect(url)).unwrap();
    let locker = connect(&format!("http://{}/{namespace}", proxy.address()));
    Net { proxy, locker, other: connect(&url) }
}

/// The same, and the locker over the bad network has few connections.
fn net_of_few() -> Net {
    let net = net();
    let backend = client(&net.locker.url().unwrap(), CONNECTIONS).with_few_connections();
    Net { locker: Locker::over(Arc::new(backend), Arc::new(Native)), ..net }
}

fn split(url: &str) -> (SocketAddr, String) {
    let (address, namespace) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    (address.parse().unwrap(), namespace.to_owned())
}

/// Wherever the connection breaks, asking again finds the one grant, and nothing is left behind.
fn cut_at_every_byte(net: fn() -> Net) {
    let request = |after| Faults { cut_request_after: Some(after), ..Faults::default() };
    let answer = |after| Faults { cut_answer_after: Some(after), ..Faults::default() };
    // Side by side, because most of the time is the pause before asking again.
    const PARTS: usize = 6;
    thread::scope(|scope| {
        for part in 0..PARTS {
            scope.spawn(move || cut(&net(), (1 + part..420).step_by(PARTS).map(request)));
            scope.spawn(move || cut(&net(), (1 + part..300).step_by(PARTS).map(answer)));
        }
    });
}

fn cut(net: &Net, cuts: impl Iterator<Item = Faults>) {
    let mut last_token = 0;
    for faults in cuts {
        net.proxy.reset();
        net.proxy.set(faults);
        let guard = block_on(net.lock().timeout(PATIENCE)).unwrap();
        assert!(guard.fencing_token() > last_token, "{faults:?}");
        last_token = guard.fencing_token();
        let holders = &block_on(net.other.list("lock")).unwrap()[0].holders;
        assert_eq!(holders.len(), 1, "{faults:?}");
        assert_eq!(holders[0].fencing_token, last_token, "one grant, and this one: {faults:?}");
        // The release over what is left of the connection, and over a new one that breaks.
        net.proxy.reset();
        net.proxy.set(faults);
        block_on(guard.release()).unwrap();
        assert!(block_on(net.other.list("")).unwrap().is_empty(), "{faults:?}");
    }
}

/// A waiter whose connections break again and again keeps its place.
fn a_waiter_keeps_its_place_over_broken_connections(net: fn() -> Net) {
    let net = net();
    let guard = block_on(net.other.lock("lock")).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let waiter = |who: &'static str, lock: Lock| {
        let order = order.clone();
        thread::spawn(move || {
            let guard = block_on(lock).unwrap();
            order.lock().unwrap().push(who);
            block_on(guard.release()).unwrap();
        })
    };
    let waiting = |n| until("a waiter", || block_on(net.other.list("lock")).unwrap()[0].waiters.len() == n);
    let first = waiter("over the bad network", net.lock());
    waiting(1);
    let second = waiter("beside it", net.other.lock("lock"));
    waiting(2);
    for _ in 0..20 {
        net.proxy.reset();
        thread::sleep(Duration::from_millis(20));
    }
    block_on(guard.release()).unwrap();
    first.join().unwrap();
    second.join().unwrap();
    assert_eq!(*order.lock().unwrap(), ["over the bad network", "beside it"]);
}

/// A holder that is cut off knows before anybody else is let in, whichever direction is dead.
fn cut_off_holders_know_first(net: fn() -> Net) {
    let requests = Faults { swallow_requests: true, ..Faults::default() };
    let answers = Faults { swallow_answers: true, ..Faults::default() };
    let both = Faults { swallow_answers: true, swallow_requests: true, ..Faults::default() };
    for faults in [requests, answers, both] {
        let net = net();
        let guard = Arc::new(block_on(net.lock()).unwrap());
        net.proxy.set(faults);
        let held = guard.clone();
        let lost = thread::spawn(move || (block_on(held.lost()), Instant::now()));
        let next = block_on(net.other.lock("lock").timeout(PATIENCE)).unwrap();
        assert!(!guard.is_held(), "{faults:?}");
        let granted = Instant::now();
        let (reason, told) = lost.join().unwrap();
        assert_eq!(reason, LostReason::Unreachable, "{faults:?}");
        assert!(told <= granted + SLACK, "told late: {faults:?}");
        assert!(next.fencing_token() > guard.fencing_token());
        // Back on the network it can ask again.
        net.proxy.set(Faults::default());
        block_on(next.release()).unwrap();
        let again = block_on(net.lock().timeout(PATIENCE)).unwrap();
        block_on(again.release()).unwrap();
    }
}

/// A network that is dead for less than the TTL costs nobody a lock.
fn short_outages_are_survived(net: fn() -> Net) {
    let net = net();
    // A machine that is busy makes them longer.
    let guard = block_on(net.lock().ttl(3 * TTL)).unwrap();
    for _ in 0..4 {
        net.proxy.set(Faults { swallow_answers: true, ..Faults::default() });
        thread::sleep(TTL / 2);
        net.proxy.set(Faults::default());
        net.proxy.reset();
        thread::sleep(TTL);
        guard.check().unwrap();
    }
    block_on(guard.release()).unwrap();
}

/// Requests that come a second time, later, make no claim that nobody knows of and harm nobody.
fn repeated_requests_do_nothing(net: fn() -> Net) {
    let net = net();
    net.proxy.record();
    let guard = block_on(net.lock()).unwrap();
    assert!(block_on(net.lock().try_acquire()).unwrap().is_none());
    let timeout = block_on(net.lock().timeout(Duration::from_millis(50))).unwrap_err();
    assert_eq!(timeout.kind(), ErrorKind::Timeout);
    block_on(guard.release()).unwrap();
    until("nobody", || block_on(net.other.list("")).unwrap().is_empty());
    let next = block_on(net.other.lock("lock")).unwrap();
    net.proxy.reset();
    net.proxy.repeat();
    next.check().unwrap();
    let status = &block_on(net.other.list("")).unwrap()[0];
    assert_eq!((status.holders.len(), status.waiters.len()), (1, 0), "{status:?}");
    assert_eq!(status.holders[0].fencing_token, next.fencing_token());
    block_on(next.release()).unwrap();
    assert!(block_on(net.other.list("")).unwrap().is_empty());
}

/// It is not trouble on the way, which would be tried again until the timeout.
#[test]
fn a_url_that_http_does_not_know_is_said_so_at_once() {
    let locker = block_on(ConnectOptions::new().connect("http://127.0.0.1:99999/team")).unwrap();
    let error = block_on(locker.lock("lock").timeout(PATIENCE)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

/// A watch that is not answered is not waited for without end.
#[test]
fn a_watch_that_is_not_answered_fails() {
    let net = net();
    let (address, namespace) = (net.proxy.address(), "watch");
    net.proxy.set(Faults { swallow_answers: true, ..Faults::default() });
    let backend = windlass::open_backend(&format!("http://{address}/{namespace}"), Arc::new(Native));
    let start = Instant::now();
    let watched = block_on(backend.unwrap().changes(""));
    assert_eq!(watched.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(start.elapsed() < PATIENCE);
}

/// A network on the way has forgotten a connection over which all requests travel together: a new one is made in time.
#[test]
fn a_lock_outlives_a_connection_that_is_silently_dead() {
    let folder = Folder::new();
    let authority = Authority::new(&folder.path("certificates"));
    let file = || authority.certificate("server").to_owned();
    let tls = Some(Tls { certificate: file(), key: file(), client_ca: None });
    let server = Server::with_options(Store::in_memory(), ServerOptions { tls, ..ServerOptions::default() });
    let (address, namespace) = split(&server::namespace_of(&server::start(server.unwrap())));
    let proxy = Proxy::before(address);
    let url = format!("https://{}/{namespace}?ca={}", proxy.address(), authority.ca().display());
    let locker = block_on(ConnectOptions::new().connect(&url)).unwrap();
    let guard = block_on(locker.lock("lock")).unwrap();
    proxy.hold_up();
    thread::sleep(DEFAULT_TTL + TTL);
    guard.check().unwrap();
    block_on(guard.release()).unwrap();
}

/// It would be held for ever: by who has given it away, for as long as that holds anything.
#[test]
fn a_detached_claim_is_not_renewed_along_with_others() {
    let net = net();
    let _held = block_on(net.locker.lock("another")).unwrap();
    drop(block_on(net.lock()).unwrap().detach().unwrap());
    block_on(block_on(net.other.lock("lock").timeout(TTL * 5)).unwrap().release()).unwrap();
}
