//! What a client knows and believes.

use super::{Body, Message, TTL, World};
use crate::ask::Mode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) wish: usize,
    pub(super) doing: Doing,
    /// How often it has sent the request that it is at.
    pub(super) sent: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Resting,
    Asking,
    Holding { mode: Mode, token: u64, until: u64 },
    Releasing,
}

/// A client reads an answer or a notice. What it did not ask for, or no longer wants to know, it drops.
pub(super) fn hear(world: &mut World, message: Message) {
    let at = usize::from(message.claim / 16);
    let client = &mut world.clients[at];
    if client.claim(at) != message.claim {
        return;
    }
    match (message.body, client.doing) {
        (Body::Holds(token, mode), Doing::Asking) => client.hold(token, mode, message.sent + TTL),
        (Body::Holds(token, mode), Doing::Holding { token: known, until, .. }) if token >= known => {
            client.hold(token, mode, until.max(message.sent + TTL));
        }
        (Body::Over, Doing::Asking) | (Body::Released, Doing::Releasing) => client.next(),
        _ => {}
    }
}

impl Client {
    pub(super) fn claim(&self, at: usize) -> u8 {
        (at * 16 + self.wish) as u8
    }

    pub(super) fn next(&mut self) {
        *self = Self { wish: self.wish + 1, doing: Doing::Resting, sent: 0 };
    }

    fn hold(&mut self, token: u64, mode: Mode, until: u64) {
        if !matches!(self.doing, Doing::Holding { .. }) {
            self.sent = 0;
        }
        self.doing = Doing::Holding { mode, token, until };
    }
}
