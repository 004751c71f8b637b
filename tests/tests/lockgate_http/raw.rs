//! The protocol to the letter, by requests made by hand.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use windlass::{
    connect,
    rt::{Native, Runtime},
};
use windlass_tests::{
    place::{PATIENCE, block_on},
    server,
};

use crate::{acquire, attempt, until_waiters, waiters};

pub(crate) const SHOULD_WAIT: &str = r#"{"lockHandle":{"uuid":"","lockName":""},"err":"should wait"}"#;
pub(crate) const NO_LEASE: &str = r#"{"err":"no existing lock lease found"}"#;
pub(crate) const ALREADY_LEASED: &str = r#"{"err":"lock already leased"}"#;
pub(crate) const DONE: &str = r#"{"err":""}"#;

#[test]
fn an_acquire_brings_a_handle_and_other_answers_have_the_words_that_clients_compare() {
    let server = Server::new();
    let (status, answer) =
        server.post("acquire", r#"{"lockName":"lock","opts":{"shared":false,"acquirerId":""}}"#);
    let uuid = uuid_of(&answer);
    assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"), "of version 4: {uuid}");
    let handle = format!(r#"{{"lockHandle":{{"uuid":"{uuid}","lockName":"lock"}}"#);
    assert_eq!((status, answer), (200, format!(r#"{handle},"err":""}}"#)));
    let asked = server.post("acquire", r#"{"lockName":"lock","opts":{"shared":true,"acquirerId":"b"}}"#);
    assert_eq!(asked, (200, SHOULD_WAIT.into()));
    let of = |what, uuid| server.post(what, &of_handle(uuid, "lock"));
    let other = "00000000-0000-4000-8000-000000000000";
    for what in ["renew-lease", "release"] {
        assert_eq!(of(what, other), (200, ALREADY_LEASED.into()), "{what}");
        assert_eq!(of(what, "no uuid"), (200, ALREADY_LEASED.into()), "{what}");
        let free = server.post(what, &of_handle(other, "loc"));
        assert_eq!(free, (200, NO_LEASE.into()), "{what}");
    }
    assert_eq!(of("renew-lease", &uuid), (200, DONE.into()));
    assert_eq!(of("release", &uuid), (200, DONE.into()));
}

#[test]
fn what_is_no_json_is_refused_in_lockgates_words() {
    let server = Server::new();
    for path in ["acquire", "renew-lease", "release"] {
        for body in ["", "{", "[1]", r#"{"lockName":1,"lockHandle":1}"#] {
            let (status, answer) = server.post(path, body);
            assert_eq!(status, 400, "{path} {body}");
            assert!(answer.starts_with("unable to unmarshal request json: "), "{answer}");
        }
    }
    assert_eq!(server.request("GET", &server.path("acquire"), "").0, 405, "only a POST changes something");
}

#[test]
fn lockgates_own_paths_are_of_the_namespace_default() {
    let server = Server::new();
    let name = server.url.rsplit('/').next().unwrap();
    let ask = |shared| format!(r#"{{"lockName":"{name}","opts":{{"shared":{shared}}}}}"#);
    let (_, granted) = server.request("POST", "/acquire", &ask(false));
    let root = server.url.rsplit_once('/').unwrap().0;
    let locker = block_on(connect(&format!("{root}/default"))).unwrap();
    assert_eq!(block_on(locker.list(name)).unwrap().len(), 1);
    assert_eq!(server.request("POST", "/acquire", &ask(true)), (200, SHOULD_WAIT.into()));
    for (path, answer) in [("/renew-lease", DONE), ("/release", DONE), ("/release", NO_LEASE)] {
        let answered = server.request("POST", path, &of_handle(&uuid_of(&granted), name));
        assert_eq!(answered, (200, answer.into()), "{path}");
    }
}

#[test]
fn werfs_client_asks_for_health_and_an_id() {
    let server = Server::new();
    let health = server.request("POST", "/health", r#"{"echo":"\"x\""}"#);
    assert_eq!(health, (200, r#"{"echo":"\"x\"","err":"","status":"OK"}"#.into()));
    let ask = || server.request("POST", "/new-client-id", "{}").1;
    let (one, other) = (ask(), ask());
    let id = one.strip_prefix(r#"{"clientID":""#).and_then(|rest| rest.strip_suffix(r#"","err":""}"#));
    let id = id.unwrap_or_else(|| panic!("{one}"));
    assert!(id.len() == 36 && &id[14..15] == "4" && one != other, "{one} {other}");
    // Each id is a namespace.
    for id in [id, "another"] {
        let answer = server.request("POST", &format!("/{id}/locker/acquire"), &exclusive("lock", "")).1;
        assert!(answer.ends_with(r#""err":""}"#), "{answer}");
    }
}

/// Who comes back after two seconds need not sleep out the next two: the grant comes with the release.
#[test]
fn a_waiters_request_is_held_open_and_answered_by_the_release() {
    for acquirer in ["", "a"] {
        let server = Server::new();
        let locker = block_on(connect(&server.url)).unwrap();
        let mut guard = Some(acquire(&locker, false));
        assert_eq!(server.post("acquire", &exclusive("lock", acquirer)).1, SHOULD_WAIT, "the first at once");
        let granted = (0..5).find_map(|_| {
            pause(2000);
            let (tell, answer) = channel();
            std::thread::scope(|scope| {
                scope.spawn(|| tell.send(server.post("acquire", &exclusive("lock", acquirer)).1));
                // On a machine that is very busy it may have come too late to be a sleeper's.
                match answer.recv_timeout(Duration::from_millis(300)) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return None,
                }
                block_on(guard.take().unwrap().release()).unwrap();
                Some(answer.recv_timeout(PATIENCE).unwrap())
            })
        });
        assert_eq!(uuid_of(&granted.expect("held open")).len(), 36);
    }
}

/// Whoever broke off has given up: neither a place in line nor the lock is kept for it for long.
#[test]
fn a_connection_that_breaks_leaves_the_line() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let guard = acquire(&locker, false);
    assert_eq!(server.post("acquire", &exclusive("lock", "a")).1, SHOULD_WAIT);
    pause(2000);
    let held_open = server.send("POST", &server.path("acquire"), &exclusive("lock", "a"));
    pause(100);
    let begun = Native.now();
    drop(held_open);
    until_waiters(&locker, 0);
    let took = Native.now().boot - begun.boot;
    assert!(took < Duration::from_secs(8), "sooner than the ten seconds of who only is silent: {took:?}");
    block_on(guard.release()).unwrap();
    assert!(attempt(&locker, false).is_some());
}

/// When it is the turn of a waiter that has died, the lock waits for it a few seconds only.
#[test]
fn a_dead_waiter_is_passed_over() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let guard = acquire(&locker, false);
    server.post("acquire", &exclusive("lock", "dead"));
    assert_eq!(waiters(&locker), ["lockgate:dead"]);
    block_on(guard.release()).unwrap();
    let begun = Native.now();
    assert!(acquire(&locker, false).is_held());
    let took = Native.now().boot - begun.boot;
    assert!(took < Duration::from_secs(9), "sooner than by the TTL of a grant: {took:?}");
}

/// One place a name: two requests at once do not both have what was granted to it.
#[test]
fn a_grant_is_told_to_one_request_only() {
    let server = Server::new();
    let locker = block_on(connect(&server.url)).unwrap();
    let guard = acquire(&locker, false);
    server.post("acquire", &exclusive("lock", "a"));
    block_on(guard.release()).unwrap();
    let granted = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.post("acquire", &exclusive("lock", "a")).1)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).filter(|a| a != SHOULD_WAIT).count()
    });
    assert_eq!(granted, 1);
}

pub(crate) struct Server {
    /// Of a namespace of its own.
    pub(crate) url: String,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self { url: server::namespace() }
    }

    /// By werf's path.
    pub(crate) fn path(&self, what: &str) -> String {
        format!("/{}/locker/{what}", self.url.rsplit('/').next().unwrap())
    }

    pub(crate) fn post(&self, what: &str, body: &str) -> (u16, String) {
        self.request("POST", &self.path(what), body)
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut answer = String::new();
        self.send(method, path, body).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// As lockgate's client does: it names no type of its body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let address = self.url.split('/').nth(2).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}"
        );
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        stream
    }
}

pub(crate) fn exclusive(name: &str, acquirer: &str) -> String {
    format!(r#"{{"lockName":"{name}","opts":{{"shared":false,"acquirerId":"{acquirer}"}}}}"#)
}

pub(crate) fn shared(name: &str) -> String {
    format!(r#"{{"lockName":"{name}","opts":{{"shared":true,"acquirerId":""}}}}"#)
}

pub(crate) fn of_handle(uuid: &str, name: &str) -> String {
    format!(r#"{{"lockHandle":{{"uuid":"{uuid}","lockName":"{name}"}}}}"#)
}

pub(crate) fn uuid_of(answer: &str) -> String {
    answer.split('"').nth(5).unwrap_or_else(|| panic!("no handle: {answer}")).to_owned()
}

pub(crate) fn pause(millis: u64) {
    block_on(Native.sleep(Duration::from_millis(millis)));
}
