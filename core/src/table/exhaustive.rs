//! Every behaviour of the real table with three clients and a network that loses, repeats, delays and re-orders
//! requests and answers, within bounds: how many messages are lost and repeated, how often a client asks again, how
//! many messages are under way, how long time runs.
//!
//! The clients do what a [`Locker`](crate::Locker) does: they ask again with the same id when no answer comes, give up
//! by a release, and believe to hold from the *sending* of the request that was answered (rule R1).

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::{Changed, Effect, Granted, Origin, Outcome, Rules, Table, What};
use crate::{
    ask::{Ask, Claim, Entry, Mode},
    name::{ClaimId, Name},
    record::{Image, Record},
    time::Millis,
};

mod client;

use client::{Client, Doing, hear};

const TTL: u64 = 1;

/// What each client does, one claim after another, and how far the model goes.
struct Bounds {
    scripts: Vec<Vec<Wish>>,
    horizon: u64,
    losses: u8,
    repeats: u8,
    sends: u8,
    under_way: usize,
}

#[derive(Clone, Copy)]
struct Wish {
    name: &'static str,
    mode: Mode,
    entry: Entry,
}

#[derive(Clone, Debug)]
struct World {
    now: u64,
    table: Table,
    clients: Vec<Client>,
    /// Sorted, because it keeps no order.
    network: Vec<Message>,
    losses: u8,
    repeats: u8,
    /// Requests that are held open until they can be answered: when they were sent.
    open: BTreeMap<u8, u64>,
    /// Claims that the table has said are over: they must never come back.
    over: Vec<u8>,
    /// The newest token of each name.
    newest: BTreeMap<&'static str, u64>,
    /// A token was not greater than all before it, or changed when it was asked for again.
    token_fault: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Message {
    claim: u8,
    sent: u64,
    body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Body {
    Acquire,
    Renew,
    Upgrade,
    Release,
    // Answers; `sent` is when their request was sent, as the client itself remembers it.
    Holds(u64, Mode),
    Over,
    Released,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Pass,
    Expire,
    Send(usize, Body),
    GiveUpReleasing(usize),
    Deliver(usize),
    Repeat(usize),
    Lose(usize),
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let rules =
            Rules { first_token: 1, expires: true, remember: Duration::from_millis(4 * self.horizon) };
        vec![World {
            now: 0,
            table: Table::new(rules),
            clients: vec![Client { wish: 0, doing: Doing::Resting, sent: 0 }; self.scripts.len()],
            network: Vec::new(),
            losses: self.losses,
            repeats: self.repeats,
            open: BTreeMap::new(),
            over: Vec::new(),
            newest: BTreeMap::new(),
            token_fault: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.now < self.horizon {
            actions.push(Action::Pass);
        }
        // The table's owner may be late with this, never early.
        if world.table.next_deadline().is_some_and(|at| at.0 <= world.now) {
            actions.push(Action::Expire);
        }
        let room = world.network.len() < self.under_way;
        for (at, client) in world.clients.iter().enumerate() {
            if client.wish == self.scripts[at].len() {
                continue;
            }
            let again = room && client.sent < self.sends;
            let mut send = |body, possible: bool| actions.extend(possible.then_some(Action::Send(at, body)));
            match client.doing {
                Doing::Resting => send(Body::Acquire, room),
                Doing::Asking => {
                    send(Body::Acquire, again);
                    send(Body::Release, room);
                }
                Doing::Holding { mode, .. } => {
                    send(Body::Renew, again);
                    send(Body::Upgrade, again && mode == Mode::Upgradable);
                    send(Body::Release, room);
                }
                Doing::Releasing => {
                    send(Body::Release, again);
                    actions.extend((!again).then_some(Action::GiveUpReleasing(at)));
                }
            }
        }
        for (at, message) in world.network.iter().enumerate() {
            // One copy of several is as good as the other.
            if at > 0 && world.network[at - 1] == *message {
                continue;
            }
            actions.push(Action::Deliver(at));
            if world.repeats > 0 && room {
                actions.push(Action::Repeat(at));
            }
            if world.losses > 0 {
                actions.push(Action::Lose(at));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Pass => world.now += 1,
            Action::Expire => {
                let mut effects = Vec::new();
                world.table.expire(Millis(world.now), &mut effects);
                self.tell(&mut world, effects);
            }
            Action::Send(at, body) => self.send(&mut world, at, body),
            Action::GiveUpReleasing(at) => world.clients[at].next(),
            Action::Repeat(at) => {
                world.repeats -= 1;
                self.deliver(&mut world, at, true);
            }
            Action::Deliver(at) => self.deliver(&mut world, at, false),
            Action::Lose(at) => {
                world.losses -= 1;
                world.network.remove(at);
            }
        }
        world.network.sort_unstable_by_key(|message| (message.claim, message.sent, message.body.order()));
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two believers", Self::one_believer),
            Property::always("a claim that is over stays over", Self::no_ghosts),
            Property::always("fencing tokens grow", |_, world: &World| !world.token_fault),
            Property::always("nobody waits who could hold", Self::no_lost_wake_up),
            Property::always("quiet is empty", Self::quiet_is_empty),
            Property::sometimes("all get what they want", |model, world: &World| {
                world.clients.iter().zip(&model.scripts).all(|(client, script)| client.wish == script.len())
            }),
            Property::sometimes("somebody waits", |_, world: &World| !world.open.is_empty()),
        ]
    }
}

impl Bounds {
    fn wish(&self, claim: u8) -> Wish {
        self.scripts[usize::from(claim / 16)][usize::from(claim % 16)]
    }

    fn claim(&self, claim: u8) -> Claim {
        Claim { name: named(self.wish(claim).name), id: ClaimId::from_u128(claim.into()) }
    }

    fn send(&self, world: &mut World, at: usize, body: Body) {
        let now = world.now;
        let client = &mut world.clients[at];
        let claim = client.claim(at);
        let was = client.doing;
        match body {
            Body::Acquire => client.doing = Doing::Asking,
            Body::Release => client.doing = Doing::Releasing,
            _ => {}
        }
        let same = std::mem::discriminant(&was) == std::mem::discriminant(&client.doing);
        client.sent = if same { client.sent + 1 } else { 1 };
        world.network.push(Message { claim, sent: now, body });
    }

    fn deliver(&self, world: &mut World, at: usize, keep: bool) {
        let message = if keep { world.network[at] } else { world.network.remove(at) };
        match message.body {
            Body::Acquire | Body::Renew | Body::Upgrade | Body::Release => self.serve(world, message),
            Body::Holds(..) | Body::Over | Body::Released => hear(world, message),
        }
    }

    /// The server: the real table, and an answer.
    fn serve(&self, world: &mut World, message: Message) {
        let claim = self.claim(message.claim);
        let wish = self.wish(message.claim);
        let now = Millis(world.now);
        let token_before = world.token_of(&claim);
        let mut effects = Vec::new();
        let over = |world: &mut World, body| {
            if !world.over.contains(&message.claim) {
                world.over.push(message.claim);
                world.over.sort_unstable();
            }
            Some(body)
        };
        let answer = match message.body {
            Body::Acquire => {
                let ask = Ask {
                    name: claim.name,
                    claim_id: claim.id,
                    mode: wish.mode,
                    entry: wish.entry,
                    ttl: Duration::from_millis(TTL),
                    owner: Arc::default(),
                    keep: Duration::ZERO,
                    only_here: false,
                };
                match world.table.acquire(now, &ask, Origin(0), &mut effects) {
                    Outcome::Granted(granted) => {
                        world.token_fault |= token_before.is_some_and(|token| token != granted.fencing_token);
                        world.note(wish.name, token_before, granted);
                        Some(holds(granted))
                    }
                    Outcome::Queued { .. } => world.hold_open(message),
                    Outcome::Busy | Outcome::Over => over(world, Body::Over),
                }
            }
            Body::Renew => world.table.renew(now, &claim, Origin(0)).map(holds),
            Body::Upgrade => match world.table.change(now, &claim, Mode::Exclusive, &mut effects) {
                Changed::Done(granted) => {
                    world.note(wish.name, token_before, granted);
                    Some(holds(granted))
                }
                Changed::Waiting => world.hold_open(message),
                Changed::NotHeld | Changed::Refused { .. } => None,
            },
            _ => {
                world.open.remove(&message.claim);
                world.table.release(now, &claim, &mut effects);
                over(world, Body::Released)
            }
        };
        world.network.extend(answer.map(|body| Message { body, ..message }));
        self.tell(world, effects);
    }

    fn tell(&self, world: &mut World, effects: Vec<Effect>) {
        for effect in effects {
            let claim = effect.claim.id.reveal() as u8;
            let open = world.open.get(&claim).copied();
            match effect.what {
                What::Granted(granted) => {
                    world.note(self.wish(claim).name, None, granted);
                    world.network.extend(open.map(|sent| Message { claim, sent, body: holds(granted) }));
                }
                What::Contended => continue,
                What::Lost(_) | What::Left => {}
            }
            world.open.remove(&claim);
        }
    }

    fn one_believer(&self, world: &World) -> bool {
        let believers: Vec<(&str, Mode)> = world
            .clients
            .iter()
            .zip(&self.scripts)
            .filter_map(|(client, script)| match client.doing {
                Doing::Holding { mode, until, .. } if world.now < until => {
                    Some((script[client.wish].name, mode))
                }
                _ => None,
            })
            .collect();
        let clash = |a: &(&str, Mode), b: &(&str, Mode)| a.0 == b.0 && conflict(a.1, b.1);
        (0..believers.len()).all(|i| (0..i).all(|j| !clash(&believers[i], &believers[j])))
    }

    fn no_lost_wake_up(&self, world: &World) -> bool {
        world.table.records.values().map(Record::image).all(|(holders, queue, upgrading)| {
            match queue.first() {
                Some((_, head, _)) => upgrading || holders.iter().any(|(_, mode, ..)| conflict(*mode, *head)),
                None => !upgrading || holders.len() > 1,
            }
        })
    }

    fn no_ghosts(&self, world: &World) -> bool {
        let known =
            |claim: &Claim| world.table.records.get(&claim.name).is_some_and(|record| record.knows(claim.id));
        world.over.iter().all(|claim| !known(&self.claim(*claim)))
    }

    /// Nothing under way and everybody done: what is left in the table is left by clients that gave up releasing, and
    /// the TTL frees it.
    fn quiet_is_empty(&self, world: &World) -> bool {
        let done =
            world.clients.iter().zip(&self.scripts).all(|(client, script)| client.wish == script.len());
        if !done || !world.network.is_empty() {
            return true;
        }
        let mut table = world.table.clone();
        while let Some(next) = table.next_deadline() {
            table.expire(next, &mut Vec::new());
        }
        table.is_empty() && table.deadlines.is_empty()
    }
}

impl World {
    fn note(&mut self, name: &'static str, token_before: Option<u64>, granted: Granted) {
        let newest = self.newest.entry(name).or_default();
        if token_before != Some(granted.fencing_token) {
            self.token_fault |= granted.fencing_token <= *newest;
            *newest = granted.fencing_token;
        }
    }

    fn hold_open(&mut self, request: Message) -> Option<Body> {
        self.open.insert(request.claim, request.sent);
        None
    }

    fn token_of(&self, claim: &Claim) -> Option<u64> {
        let (holders, ..) = self.table.records.get(&claim.name)?.image();
        holders.iter().find(|(id, ..)| *id == claim.id.reveal()).map(|(_, _, token, ..)| *token)
    }

    /// All that decides what can happen next.
    fn image(&self) -> impl Hash + Eq {
        let mut records: Vec<(&Name, Image)> =
            self.table.records.iter().map(|(name, record)| (name, record.image())).collect();
        records.sort_by_key(|(name, _)| *name);
        let bounds = (self.now, self.losses, self.repeats);
        let seen = (&self.over, &self.newest, self.token_fault);
        (
            bounds,
            seen,
            records,
            self.table.ended.image(),
            self.table.next_token,
            &self.clients,
            &self.network,
            &self.open,
        )
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.image().hash(hasher);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.image() == other.image()
    }
}

impl Body {
    fn order(self) -> (u8, u64) {
        match self {
            Self::Acquire => (0, 0),
            Self::Renew => (1, 0),
            Self::Upgrade => (2, 0),
            Self::Release => (3, 0),
            Self::Over => (4, 0),
            Self::Released => (5, 0),
            // The token tells the mode.
            Self::Holds(token, _) => (6, token),
        }
    }
}

fn holds(granted: Granted) -> Body {
    Body::Holds(granted.fencing_token, granted.mode)
}

/// For the modes that these models use.
fn conflict(one: Mode, other: Mode) -> bool {
    one == Mode::Exclusive || other == Mode::Exclusive || (one == other && one != Mode::Shared)
}

fn named(name: &str) -> Name {
    name.parse().expect("a name")
}

fn wish(name: &'static str, mode: Mode, entry: Entry) -> Wish {
    Wish { name, mode, entry }
}

fn check(what: &str, bounds: Bounds) {
    let checker = bounds.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{what}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn two_claims_that_are_renewed_and_asked_for_again() {
    let one = wish("a", Mode::Exclusive, Entry::Queue);
    let scripts = vec![vec![one, one], vec![one]];
    check("again", Bounds { scripts, horizon: 2, losses: 1, repeats: 0, sends: 2, under_way: 2 });
}

#[test]
fn three_claims_of_all_sharing_modes() {
    let scripts = [Mode::Exclusive, Mode::Shared, Mode::Upgradable]
        .map(|mode| vec![wish("a", mode, Entry::Queue)])
        .to_vec();
    check("modes", Bounds { scripts, horizon: 1, losses: 1, repeats: 1, sends: 1, under_way: 2 });
}

#[test]
fn three_claims_of_two_names_one_of_them_a_try() {
    let scripts = [("a", Entry::Queue), ("a", Entry::Try), ("b", Entry::Queue)]
        .map(|(name, entry)| vec![wish(name, Mode::Exclusive, entry)])
        .to_vec();
    check("names", Bounds { scripts, horizon: 1, losses: 0, repeats: 1, sends: 1, under_way: 2 });
}
