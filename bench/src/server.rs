//! Locks in a server on the same machine: ours, lockgate's by raw HTTP, and a server that only echoes as the limit.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Builder, task::LocalSet};
use windlass_server::{Server, Store};

use crate::{Result, client::Connection, clock::now, memory::block_on};

const HOLD: Duration = Duration::from_millis(1);

/// Prints its address, and serves until it is killed.
pub(crate) fn serve(peer: &str) -> Result<()> {
    Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        match peer {
            "windlass" => Ok(Server::new(Store::in_memory()).serve(listener, std::future::pending()).await?),
            "echo" => loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let service = service_fn(async |request: Request<Incoming>| {
                    Ok::<_, hyper::Error>(Response::new(request.into_body()))
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            },
            _ => Err(format!("no such server: {peer}").into()),
        }
    })
}

/// A client of one lock that speaks the protocol of its server.
struct Client {
    connection: Connection,
    kind: Kind,
    name: String,
    next: u128,
    /// What the server knows the claim by.
    held: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Windlass,
    Lockgate,
    Echo,
}

impl Client {
    async fn new(peer: &str, address: &str, name: String, number: usize) -> Result<Self> {
        let kind = match peer {
            "windlass" => Kind::Windlass,
            "lockgate" => Kind::Lockgate,
            "echo" => Kind::Echo,
            _ => return Err(format!("no such peer: {peer}").into()),
        };
        let connection = Connection::open(address).await?;
        let next = ((number as u128) << 64) + u128::from(now());
        Ok(Self { connection, kind, name, next, held: String::new() })
    }

    async fn acquire(&mut self) -> Result<()> {
        let name = &self.name;
        match self.kind {
            Kind::Windlass => {
                self.next += 1;
                self.held = format!("{:032x}", self.next);
                let body = format!(r#"{{"name":"{name}","claim":"{}"}}"#, self.held);
                let answer = self.connection.ask("/v1/bench/acquire", &body).await?;
                if answer.contains(r#""outcome":"granted""#) { Ok(()) } else { Err(answer.into()) }
            }
            Kind::Lockgate => {
                let body = format!(r#"{{"lockName":"{name}","opts":{{"shared":false,"acquirerId":""}}}}"#);
                let answer: Value = serde_json::from_str(self.connection.ask("/acquire", &body).await?)?;
                self.held = answer["lockHandle"]["uuid"].as_str().unwrap_or_default().to_owned();
                if self.held.is_empty() { Err(answer.to_string().into()) } else { Ok(()) }
            }
            Kind::Echo => {
                self.next += 1;
                self.held = format!("{:032x}", self.next);
                let body = format!(r#"{{"name":"{name}","claim":"{}"}}"#, self.held);
                self.connection.ask("/", &body).await.map(drop)
            }
        }
    }

    async fn release(&mut self) -> Result<()> {
        let (name, held) = (&self.name, &self.held);
        let (path, body) = match self.kind {
            Kind::Windlass => {
                ("/v1/bench/release", format!(r#"{{"claims":[{{"name":"{name}","claim":"{held}"}}]}}"#))
            }
            Kind::Lockgate => {
                ("/release", format!(r#"{{"lockHandle":{{"uuid":"{held}","lockName":"{name}"}}}}"#))
            }
            Kind::Echo => ("/", format!(r#"{{"claims":[{{"name":"{name}","claim":"{held}"}}]}}"#)),
        };
        self.connection.ask(path, &body).await.map(drop)
    }
}

/// Each of so many clients, on a connection of its own, does this again and again until the time is over, one after another
/// on one thread.
pub(crate) fn each<W>(clients: usize, time: Duration, work: impl Fn(usize) -> W) -> Result<()>
where
    W: AsyncFnMut() -> Result<()> + 'static,
{
    let (end, errors) = (now() + nanos(time), Rc::new(RefCell::new(Vec::new())));
    let all = LocalSet::new();
    for client in 0..clients {
        let (mut work, errors) = (work(client), errors.clone());
        all.spawn_local(async move {
            while now() < end {
                if let Err(error) = work().await {
                    errors.borrow_mut().push(error);
                    return;
                }
            }
        });
    }
    Builder::new_current_thread().enable_all().build()?.block_on(all);
    errors.take().pop().map_or(Ok(()), Err)
}

/// Pairs a second of all who do them at once, and how many there were; after a quarter of the time to warm up.
pub(crate) fn rate_of_each<W>(clients: usize, time: Duration, work: impl Fn(usize) -> W) -> Result<Value>
where
    W: AsyncFnMut() -> Result<()> + 'static,
{
    let count = Rc::new(Cell::new(0_u32));
    let run = |time: Duration| -> Result<f64> {
        let (before, start) = (count.get(), now());
        each(clients, time, |number| {
            let (count, mut pair) = (count.clone(), work(number));
            async move || {
                pair().await?;
                count.set(count.get() + 1);
                Ok(())
            }
        })?;
        Ok(f64::from(count.get() - before) / Duration::from_nanos(now() - start).as_secs_f64())
    };
    run(time / 4)?;
    Ok(json!({ "pairs_per_s": run(time)?, "pairs": count.get() }))
}

/// Each client takes a lock of its own as often as it can.
pub(crate) fn pairs(peer: &'static str, address: &str, clients: usize, time: Duration) -> Result<Value> {
    rate_of_each(clients, time, |number| {
        let address = address.to_owned();
        let mut client = None;
        async move || {
            if client.is_none() {
                client = Some(Client::new(peer, &address, format!("bench-{number}"), number).await?);
            }
            let client = client.as_mut().ok_or("no client")?;
            client.acquire().await?;
            client.release().await
        }
    })
}

/// All clients want one lock: from just before a release until the next one knows that it is granted.
pub(crate) fn turns(address: &str, clients: usize, time: Duration) -> Result<Value> {
    let (released, samples) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    each(clients, time, |number| {
        let (released, samples, address) = (released.clone(), samples.clone(), address.to_owned());
        let mut client = None;
        async move || {
            if client.is_none() {
                client = Some(Client::new("windlass", &address, "turns".into(), number).await?);
            }
            let client = client.as_mut().ok_or("no client")?;
            client.acquire().await?;
            if released.get() > 0 {
                samples.borrow_mut().push(now() - released.get());
            }
            // So that those who have been served are in the queue again.
            tokio::time::sleep(HOLD).await;
            released.set(now());
            client.release().await
        }
    })?;
    Ok(json!({ "samples_ns": samples.take() }))
}

/// What a hand-over cannot be faster than: one client asks a server that echoes, after the same pause.
pub(crate) fn echoes(address: &str, time: Duration) -> Result<Value> {
    let samples = Rc::new(RefCell::new(Vec::new()));
    each(1, time, |number| {
        let (samples, address) = (samples.clone(), address.to_owned());
        let mut client = None;
        async move || {
            if client.is_none() {
                client = Some(Client::new("echo", &address, "turns".into(), number).await?);
            }
            let client = client.as_mut().ok_or("no client")?;
            tokio::time::sleep(HOLD).await;
            let asked = now();
            client.release().await?;
            samples.borrow_mut().push(now() - asked);
            Ok(())
        }
    })?;
    Ok(json!({ "samples_ns": samples.take() }))
}

/// All clients want one lock: how often each was served.
pub(crate) fn contend(address: &str, clients: usize, time: Duration) -> Result<Value> {
    let (served, end) = (Rc::new(RefCell::new(vec![0_u32; clients])), now() + nanos(time));
    each(clients, time, |number| {
        let (served, address) = (served.clone(), address.to_owned());
        let mut client = None;
        async move || {
            if client.is_none() {
                client = Some(Client::new("windlass", &address, "contend".into(), number).await?);
            }
            let client = client.as_mut().ok_or("no client")?;
            client.acquire().await?;
            served.borrow_mut()[number] += u32::from(now() < end);
            // Not tokio's: its timers are as coarse as the time.
            std::thread::sleep(HOLD);
            client.release().await
        }
    })?;
    Ok(json!({ "served": served.take() }))
}

/// Renewals a second of the claims of one program, a thousand in a request.
pub(crate) fn renewals(address: &str, time: Duration) -> Result<Value> {
    const CLAIMS: usize = 1_000;
    block_on(async {
        let mut connection = Connection::open(address).await?;
        let unique = u128::from(now()) << 32;
        let claim = |n: usize| {
            let id = format!("{:032x}", unique + n as u128);
            json!({ "name": format!("renewed-{n}"), "claim": id })
        };
        let claims = json!((0..CLAIMS).map(claim).collect::<Vec<_>>());
        connection.ask("/v1/bench/acquire-all", &json!({ "claims": claims }).to_string()).await?;
        let (body, start, mut count) = (json!({ "claims": claims }).to_string(), now(), 0_usize);
        while now() < start + nanos(time) {
            connection.ask("/v1/bench/renew", &body).await?;
            count += CLAIMS;
        }
        let took = Duration::from_nanos(now() - start).as_secs_f64();
        connection.ask("/v1/bench/release", &body).await?;
        Ok(json!({ "pairs_per_s": count as f64 / took }))
    })
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
