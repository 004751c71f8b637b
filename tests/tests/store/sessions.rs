//! What keeps a claim alive, and what does not.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use windlass::{ErrorKind, Locker, LostReason, Mode, open_backend, rt::Native};
use windlass_server::{Audit, Server, ServerOptions, Store};
use windlass_tests::{
    few,
    place::{Folder, PATIENCE, ask, block_on},
    proxy::{Faults, Proxy},
    server,
    server_process::ServerProcess,
};

use crate::{Servers, TTL, acquire, attempt, locker, locker_of, program, suite, until, waiters};

over_each_store! { both_servers_have_the_same_locks, one_with_few_connections_keeps_what_it_has_at_either_server, many_tasks_with_few_connections_take_turns, the_claim_of_a_dead_client_ends_by_its_ttl, a_dead_waiter_leaves_its_place_by_its_ttl, a_claim_that_was_released_is_not_granted_late, claims_without_a_client_live_each_by_its_own_renewals, a_claim_goes_from_server_to_server_and_back, any_server_downgrades, a_waiter_that_goes_to_another_server_keeps_its_place, the_audit_log_tells_of_a_loss_when_there_is_one, a_server_is_stopped_and_started_again, the_namespaces_of_all_servers_are_known_at_each, it_is_ready_when_its_store_is_and_counts_only_what_it_knows }

fn both_servers_have_the_same_locks(store: &'static str) {
    let servers = Servers::over(store);
    let (one, other) = (locker_of("ann", &servers.url_of_one()), locker_of("bob", &servers.url_of_other()));
    let guard = acquire(&one, "lock");
    assert!(attempt(&other, "lock").is_none());
    let held = block_on(other.list("")).unwrap();
    assert_eq!(held[0].holders[0].owner.owner, "ann");
    let next = thread::scope(|scope| {
        let waiting = scope.spawn(|| acquire(&other, "lock"));
        until("bob waits", || waiters(&one, "lock") == ["bob"]);
        block_on(guard.release()).unwrap();
        waiting.join().unwrap()
    });
    let taken_from = block_on(one.force_release("lock", Some(next.fencing_token()))).unwrap();
    assert_eq!(taken_from.len(), 1);
    until("bob hears of it", || !next.is_held());
    assert_eq!(next.check().unwrap_err().kind(), ErrorKind::Lost(LostReason::ForceReleased));
}

/// Each of its requests may reach another server, so the earlier one is not ended by the next.
fn one_with_few_connections_keeps_what_it_has_at_either_server(store: &'static str) {
    let servers = Servers::over(store);
    let other = locker(&servers.url_of_one());
    let backend = few::client(&servers.url_of_both(), few::CONNECTIONS).with_few_connections();
    let page = Locker::over(Arc::new(backend), Arc::new(Native));
    let names: Vec<String> = (0..8).map(|n| format!("lock-{n}")).collect();
    let taken: Vec<_> = names.iter().map(|name| acquire(&other, name)).collect();
    let held = block_on(page.lock("held").ttl(TTL).timeout(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = names.iter().map(|name| scope.spawn(|| acquire(&page, name))).collect();
        let wait = || names.iter().all(|name| waiters(&other, name).len() == 1);
        until("it waits for all", wait);
        let start = Instant::now();
        while start.elapsed() < TTL * 2 {
            held.check().unwrap();
            assert!(wait());
        }
        taken.into_iter().for_each(|guard| block_on(guard.release()).unwrap());
        waiting.into_iter().for_each(|waiting| block_on(waiting.join().unwrap().release()).unwrap());
    });
    block_on(held.release()).unwrap();
    until("nothing is left", || block_on(other.list("")).unwrap().is_empty());
}

/// Each turn ends the request in which all the others wait, too.
fn many_tasks_with_few_connections_take_turns(store: &'static str) {
    let servers = Servers::over(store);
    let backend = few::client(&servers.url_of_one(), few::CONNECTIONS).with_few_connections();
    let page = Locker::over(Arc::new(backend), Arc::new(Native));
    let tokens = Mutex::new(Vec::new());
    let turns = || {
        for _ in 0..20 {
            let guard = acquire(&page, "turn");
            tokens.lock().unwrap().push(guard.fencing_token());
            block_on(guard.release()).unwrap();
        }
    };
    thread::scope(|scope| (0..32).for_each(|_| drop(scope.spawn(turns))));
    let tokens = tokens.into_inner().unwrap();
    assert!(tokens.len() == 32 * 20 && tokens.is_sorted_by(|a, b| a < b), "one after the other: {tokens:?}");
    assert!(block_on(page.list("")).unwrap().is_empty());
}

/// The server that speaks for it lives on, and renews for others.
fn the_claim_of_a_dead_client_ends_by_its_ttl(store: &'static str) {
    let servers = Servers::over(store);
    let other = locker(&servers.url_of_one());
    let long = acquire(&other, "another lock");
    let mut run = Command::new(program())
        .args(["run", "--ttl", "2s", "--url", &servers.url_of_one(), "lock", "--", "sleep", "1000"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it holds", || attempt(&other, "lock").is_none());
    run.kill().unwrap();
    let died = Instant::now();
    run.wait().unwrap();
    let next = acquire(&other, "lock");
    assert!(died.elapsed() < TTL * 3, "only after {:?}", died.elapsed());
    block_on(next.release()).unwrap();
    long.check().unwrap();
}

/// Also when the server that spoke for it goes on to speak for others.
fn a_dead_waiter_leaves_its_place_by_its_ttl(store: &'static str) {
    let servers = Servers::over(store);
    let other = locker(&servers.url_of_other());
    let (_long, guard) = (acquire(&locker(&servers.url_of_one()), "another lock"), acquire(&other, "lock"));
    let mut run = Command::new(program())
        .args(["run", "--ttl", "2s", "--url", &servers.url_of_one(), "lock", "--", "true"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Another one says no id of its own, and is not heard of again.
    let asked = format!(r#"{{"name": "lock", "claim": "{:032x}", "ttl_ms": 2000, "wait_ms": 1}}"#, 1);
    post(&servers.one.address(), &format!("/v1/{}/acquire", servers.namespace), &asked);
    until("both wait", || waiters(&other, "lock").len() == 2);
    run.kill().unwrap();
    let died = Instant::now();
    run.wait().unwrap();
    if store.starts_with("k8s:") {
        // Who waits there says nothing while it does: it loses its place when its turn comes.
        block_on(guard.release()).unwrap();
        block_on(acquire(&other, "lock").release()).unwrap();
        assert!(died.elapsed() < TTL * 4, "only after {:?}", died.elapsed());
        return;
    }
    until("their places are free", || waiters(&other, "lock").is_empty());
    // A grace for coming back, the TTL, and what etcd takes to see that it is over.
    assert!(died.elapsed() < TTL * 4, "only after {:?}", died.elapsed());
    guard.check().unwrap();
}

/// Requests of one client may overtake each other: one that is called off before it comes must not get the lock for nobody.
fn a_claim_that_was_released_is_not_granted_late(store: &'static str) {
    let servers = Servers::over(store);
    let client = open_backend(&servers.url_of_one(), Arc::new(Native)).unwrap();
    let late = ask("lock", Mode::Exclusive);
    block_on(client.release(&[late.claim()])).unwrap();
    let error = block_on(client.acquire(&late, &|_| {})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotHeld, "{error}");
    let all = block_on(client.acquire_all(std::slice::from_ref(&late), &|_| {})).unwrap_err();
    assert_eq!(all.kind(), ErrorKind::NotHeld, "{all}");
    assert!(attempt(&locker(&servers.url_of_other()), "lock").is_some());
}

/// Claims of nobody in particular, as programs without the library ask for them: one is renewed, one is not.
fn claims_without_a_client_live_each_by_its_own_renewals(store: &'static str) {
    let servers = Servers::over(store);
    let other = locker(&servers.url_of_other());
    for (n, lock) in [(1, "renewed"), (2, "forgotten")] {
        let asked = format!(r#"{{"name": "{lock}", "claim": "{n:032x}", "ttl_ms": 2000, "entry": "try"}}"#);
        let answer = post(&servers.one.address(), &format!("/v1/{}/acquire", servers.namespace), &asked);
        assert!(answer.contains("granted"), "{answer}");
    }
    let start = Instant::now();
    let mut freed = None;
    while freed.is_none() {
        assert!(start.elapsed() < PATIENCE, "it lives by the renewals of another");
        let asked = format!(r#"{{"claims": [{{"name": "renewed", "claim": "{:032x}"}}]}}"#, 1);
        let answer = post(&servers.one.address(), &format!("/v1/{}/renew", servers.namespace), &asked);
        assert!(answer.contains(r#""state":"held""#), "{answer}");
        thread::sleep(TTL / 8);
        freed = attempt(&other, "forgotten");
    }
    assert!(start.elapsed() > TTL / 2);
    let released = format!(r#"{{"claims": [{{"name": "renewed", "claim": "{:032x}"}}]}}"#, 1);
    post(&servers.other.address(), &format!("/v1/{}/release", servers.namespace), &released);
    assert!(attempt(&other, "renewed").is_some(), "any server releases");
}

/// A server that has spoken for a claim before must not believe that it still does.
fn a_claim_goes_from_server_to_server_and_back(store: &'static str) {
    let servers = Servers::over(store);
    let other = locker(&servers.url_of_other());
    let (client, claim) = ("c".repeat(32), format!(r#"{{"name": "lock", "claim": "{:032x}"}}"#, 1));
    let asked = format!(r#"{{"name": "lock", "claim": "{:032x}", "ttl_ms": 2000, "client": "{client}"}}"#, 1);
    let answer = post(&servers.one.address(), &format!("/v1/{}/acquire", servers.namespace), &asked);
    assert!(answer.contains("granted"), "{answer}");
    for server in [&servers.other, &servers.one, &servers.other, &servers.one] {
        let start = Instant::now();
        while start.elapsed() < TTL * 2 {
            let asked = format!(r#"{{"claims": [{claim}], "client": "{client}"}}"#);
            let answer = post(&server.address(), &format!("/v1/{}/renew", servers.namespace), &asked);
            assert!(answer.contains(r#""state":"held""#), "{answer}");
            assert!(attempt(&other, "lock").is_none(), "it has ended in the store, but not at the server");
            thread::sleep(TTL / 8);
        }
    }
}

/// Also one that has not heard of the claim before.
fn any_server_downgrades(store: &'static str) {
    let servers = Servers::over(store);
    let (claim, path) = (format!(r#""name": "lock", "claim": "{:032x}""#, 1), |what| {
        format!("/v1/{}/{what}", servers.namespace)
    });
    let asked = format!(r#"{{{claim}, "ttl_ms": 10000}}"#);
    let answer = post(&servers.one.address(), &path("acquire"), &asked);
    assert!(answer.contains("granted"), "{answer}");
    let asked = format!(r#"{{{claim}, "to": "shared"}}"#);
    let answer = post(&servers.other.address(), &path("change"), &asked);
    assert!(answer.contains("granted"), "{answer}");
    let shared = block_on(locker(&servers.url_of_one()).lock("lock").shared().timeout(PATIENCE)).unwrap();
    block_on(shared.release()).unwrap();
    let released = format!(r#"{{"claims": [{{{claim}}}]}}"#);
    post(&servers.one.address(), &path("release"), &released);
    assert!(attempt(&locker(&servers.url_of_other()), "lock").is_some());
}

/// The server that it has left does not take its place from it, although nobody speaks for it there any more.
fn a_waiter_that_goes_to_another_server_keeps_its_place(store: &'static str) {
    for client in ["", r#", "client": "cccccccccccccccccccccccccccccccc""#] {
        let servers = Servers::over(store);
        let other = locker_of("behind", &servers.url_of_other());
        let guard = acquire(&other, "lock");
        let asked = |wait_ms: u32| {
            let claim = format!(r#""name": "lock", "claim": "{:032x}", "owner": "first""#, 1);
            format!(r#"{{{claim}, "ttl_ms": 10000, "wait_ms": {wait_ms}{client}}}"#)
        };
        let path = format!("/v1/{}/acquire", servers.namespace);
        let answer = post(&servers.one.address(), &path, &asked(100));
        assert!(answer.contains(r#""waiting""#) && answer.contains(r#""place":1"#), "{answer}");
        thread::scope(|scope| {
            let first = scope.spawn(|| post(&servers.other.address(), &path, &asked(60_000)));
            let behind = scope.spawn(|| acquire(&other, "lock"));
            until("both wait", || waiters(&other, "lock") == ["first", "behind"]);
            // Longer than a place is kept for which nobody speaks.
            thread::sleep(Duration::from_secs(4));
            assert_eq!(waiters(&other, "lock"), ["first", "behind"]);
            block_on(guard.release()).unwrap();
            let answer = first.join().unwrap();
            assert!(answer.contains(r#""granted""#), "{answer}");
            let released = format!(r#"{{"claims": [{{"name": "lock", "claim": "{:032x}"}}]}}"#, 1);
            post(&servers.one.address(), &format!("/v1/{}/release", servers.namespace), &released);
            block_on(behind.join().unwrap().release()).unwrap();
        });
    }
}

/// A claim that lives on at another server is not lost, and one that does not is.
fn the_audit_log_tells_of_a_loss_when_there_is_one(store: &'static str) {
    let folder = Folder::new();
    let log = |name| fs::read_to_string(folder.path(name)).unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let audit = Some(Audit::to(File::create(folder.path(name)).unwrap()).unwrap());
        let options = ServerOptions { audit, ..ServerOptions::default() };
        let server = Server::with_options(Store::shared(store).unwrap(), options).unwrap();
        server::start(server)
    });
    let url = server::namespace_of(&one);
    let (address, namespace) = url.trim_start_matches("http://").split_once('/').unwrap();
    let claim = format!(r#""name": "lock", "claim": "{:032x}""#, 1);
    let answer =
        post(address, &format!("/v1/{namespace}/acquire"), &format!(r#"{{{claim}, "ttl_ms": 2000}}"#));
    assert!(answer.contains("granted"), "{answer}");
    let start = Instant::now();
    while start.elapsed() < TTL * 4 {
        let path = format!("/v1/{namespace}/renew");
        post(other.trim_start_matches("http://"), &path, &format!(r#"{{"claims": [{{{claim}}}]}}"#));
        thread::sleep(TTL / 8);
    }
    until("it is told", || log("other").contains(r#""event":"lost","reason":"expired""#));
    let told = log("one");
    assert!(told.contains(r#""event":"granted""#) && !told.contains(r#""event":"lost""#), "{told}");
}

fn a_server_is_stopped_and_started_again(store: &'static str) {
    let mut servers = Servers::over(store);
    let one = locker(&servers.url_of_one());
    let guard = acquire(&one, "lock");
    servers.one.stop();
    assert!(attempt(&locker(&servers.url_of_other()), "lock").is_none());
    servers.one.start_again();
    thread::sleep(TTL * 2);
    guard.check().expect("it lives on");
    block_on(guard.release()).unwrap();
    assert!(attempt(&locker(&servers.url_of_other()), "lock").is_some());
}

/// The store is away for a moment, and who waits is told so and does not come back.
#[test]
fn a_waiter_that_ends_with_an_error_leaves_its_place() {
    let store = suite::etcd();
    let servers = Servers::over(store);
    let address = store.trim_start_matches("etcd://").split('/').next().unwrap();
    let proxy = Proxy::before(address.parse().unwrap());
    let one = ServerProcess::over(program(), &store.replacen(address, &proxy.address().to_string(), 1));
    let other = locker(&servers.url_of_other());
    let guard = acquire(&other, "lock");
    let asked = format!(r#"{{"name": "lock", "claim": "{:032x}", "ttl_ms": 2000}}"#, 1);
    let path = format!("/v1/{}/acquire", servers.namespace);
    let answer = thread::scope(|scope| {
        let waiting = scope.spawn(|| post(&one.address(), &path, &asked));
        until("it waits", || waiters(&other, "lock").len() == 1);
        proxy.set(Faults::BOTH);
        proxy.reset();
        let answer = waiting.join().unwrap();
        proxy.set(Faults::default());
        proxy.reset();
        answer
    });
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    block_on(guard.release()).unwrap();
    block_on(acquire(&other, "lock").release()).unwrap();
}

fn post(address: &str, path: &str, body: &str) -> String {
    request(address, &format!("POST {path}"), body)
}

pub(crate) fn request(address: &str, what: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!("{what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}");
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What only the other server has clients of is shown, too.
fn the_namespaces_of_all_servers_are_known_at_each(store: &'static str) {
    let servers = Servers::over(store);
    let guard = acquire(&locker(&servers.url_of_one()), "lock");
    let get = |what| request(&servers.other.address(), &format!("GET {what}"), "");
    until("it is listed", || get("/v1").contains(&format!(r#""{}""#, servers.namespace)));
    let mut events = TcpStream::connect(servers.other.address()).unwrap();
    let head = format!("GET /v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", servers.other.address());
    events.write_all(head.as_bytes()).unwrap();
    events.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut shown, mut piece) = (String::new(), [0; 4096]);
    let wanted = format!(r#""namespace":"{}","may_force":true,"name":"lock""#, servers.namespace);
    while !shown.contains(&wanted) {
        let read = events.read(&mut piece).unwrap_or_else(|error| panic!("{error}: {shown}"));
        shown.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    block_on(guard.release()).unwrap();
    let refused = post(&servers.one.address(), "/v1/.namespaces/release", r#"{"claims": []}"#);
    assert!(refused.starts_with("HTTP/1.1 400"), "it is the servers' own: {refused}");
}

fn it_is_ready_when_its_store_is_and_counts_only_what_it_knows(store: &'static str) {
    let servers = Servers::over(store);
    let guard = acquire(&locker(&servers.url_of_one()), "lock");
    let get = |what| request(&servers.one.address(), &format!("GET {what}"), "");
    assert!(get("/readyz").starts_with("HTTP/1.1 200"));
    let numbers = get("/metrics");
    assert!(
        numbers.contains("windlass_clients 1\n") && !numbers.contains("windlass_locks_held"),
        "{numbers}"
    );
    drop(guard);
    // Nobody is at port 1.
    let alone = ServerProcess::over(program(), "http://127.0.0.1:1");
    let answer = request(&alone.address(), "GET /readyz", "");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("unavailable"), "{answer}");
    let asked = format!(r#"{{"name": "lock", "claim": "{:032x}", "wait_ms": 0}}"#, 1);
    let start = Instant::now();
    let answer = post(&alone.address(), "/v1/team/acquire", &asked);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(5), "within what clients wait for: {:?}", start.elapsed());
}
