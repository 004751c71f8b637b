//! The deadlines of a connection: nobody occupies one by saying nothing, or a byte a second.
//!
//! ```text
//!            bytes             head read            answered
//!   Silent ---------> Head -----------------> Busy(n) -------> Idle --- bytes ---> Head
//!   first_byte        head                     none            idle
//! ```
//!
//! - hyper's own deadline for heads begins when it waits for one, so it would close idle connections, and it knows nothing of the
//!   first byte or of the guess between HTTP/1 and HTTP/2. Bytes are seen here, and that a head was whole is seen by the door,
//!   which calls [`Pace::busy`].
//! - HTTP/2 interleaves: once a request has come, its connection is busy or idle and never again in a head. hyper's pings find
//!   those who stop in the middle of a frame.
//! - Bodies have a deadline where they are read, in the door. A read that ends a deadline is an error, which closes the connection;
//!   so is a write of which nothing is taken for long.
//! - The timer of a connection is not set anew for each request: it looks now and then, and sooner only for half a head.
//! - hyper reads while a request is worked on, to see a client that has gone. A timer that was armed then looks again later,
//!   because after an answer hyper may not read until the next byte comes.
//! - hyper takes a bare LF for the end of a line, other servers do not: where two differ, requests can be smuggled. So heads are
//!   looked through here, too.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::options::Deadlines;

/// Where a connection stands; shared by its stream and its requests.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    http2: bool,
    head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Silent(Instant),
    Head(Instant),
    Busy(u32),
    Idle(Instant),
}

/// When a phase is over; `None`: it may last.
fn over(phase: Phase, deadlines: &Deadlines) -> Option<Instant> {
    match phase {
        Phase::Silent(since) => Some(since + deadlines.first_byte),
        Phase::Head(since) => Some(since + deadlines.head),
        Phase::Busy(_) => None,
        Phase::Idle(since) => Some(since + deadlines.idle),
    }
}

/// What was seen of the head of a request of HTTP/1.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    /// Bytes since the last line break.
    line: usize,
    /// The last byte was a CR.
    cr: bool,
    /// A line that was not empty has gone by: an empty one is the end. Before a request it says nothing.
    begun: bool,
    whole: bool,
}

impl Head {
    /// Whether each line of the head ends with CR and LF, as far as it is here.
    fn is_clean(&mut self, mut bytes: &[u8]) -> bool {
        while !self.whole && !bytes.is_empty() {
            let Some(at) = bytes.iter().position(|byte| *byte == b'\n') else {
                self.line += bytes.len();
                self.cr = bytes.last() == Some(&b'\r');
                return true;
            };
            let cr = if at == 0 { self.cr } else { bytes[at - 1] == b'\r' };
            if !cr {
                return false;
            }
            let is_empty = self.line + at == 1;
            self.whole = is_empty && self.begun;
            self.begun |= !is_empty;
            (self.line, self.cr) = (0, false);
            bytes = &bytes[at + 1..];
        }
        true
    }
}

/// How the first bytes of a connection of HTTP/2 begin.
const HTTP2: &[u8] = b"PRI ";

/// How a head ends.
const WHOLE: &[u8] = b"\r\n\r\n";

impl Pace {
    pub(crate) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { phase: Phase::Silent(now), http2: false, head: Head::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request's head is whole. The request is under way until what this gives is dropped.
    pub(crate) fn busy(self: &Arc<Self>, http2: bool) -> Busy {
        let mut state = self.lock();
        state.http2 = http2;
        state.phase = match state.phase {
            Phase::Busy(requests) => Phase::Busy(requests + 1),
            _ => Phase::Busy(1),
        };
        Busy(self.clone())
    }

    fn answered(&self, now: Instant) {
        let mut state = self.lock();
        state.phase = match state.phase {
            Phase::Busy(requests) if requests > 1 => Phase::Busy(requests - 1),
            _ => Phase::Idle(now),
        };
        state.head = Head::default();
    }

    /// Bytes have come. Whether they may be part of a request.
    fn bytes(&self, now: Instant, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        if state.http2 {
            return true;
        }
        match state.phase {
            Phase::Silent(_) => {
                state.phase = Phase::Head(now);
                // Its frames are not lines.
                state.head.whole = HTTP2.starts_with(&bytes[..bytes.len().min(HTTP2.len())]);
            }
            Phase::Idle(_) => state.phase = Phase::Head(now),
            Phase::Head(_) => {}
            Phase::Busy(_) => return true,
        }
        state.head.is_clean(bytes)
    }

    fn over(&self, deadlines: &Deadlines) -> Option<Instant> {
        over(self.lock().phase, deadlines)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.answered(Instant::now());
    }
}

/// A stream with deadlines.
pub(crate) struct Paced<S> {
    stream: S,
    pace: Arc<Pace>,
    deadlines: Deadlines,
    look: Pin<Box<Sleep>>,
    /// Since when nothing of an answer is taken.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(crate) fn new(stream: S, pace: Arc<Pace>, deadlines: Deadlines) -> Self {
        let first = Instant::now() + deadlines.first_byte;
        Self { stream, pace, deadlines, look: Box::pin(sleep_until(first)), stuck: None }
    }

    /// Looks whether the client has used up its time, and sees to it that somebody looks again.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let over = self.pace.over(&self.deadlines);
            if let Some(over) = over
                && over < self.look.deadline()
            {
                self.look.as_mut().reset(over);
            }
            if self.look.as_mut().poll(cx).is_pending() {
                return false;
            }
            let now = Instant::now();
            match over {
                Some(over) if over <= now => return true,
                Some(over) => self.look.as_mut().reset(over),
                None => self.look.as_mut().reset(now + self.deadlines.idle),
            }
        }
    }

    /// What came of a write, unless nothing was taken for too long.
    fn taken<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stuck = None;
            return write;
        }
        let write = self.deadlines.write;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + write)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(late("nothing of the answer was taken")))
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if Pin::new(&mut self.stream).poll_read(cx, buf)?.is_ready() {
            let bytes = &buf.filled()[before..];
            if !bytes.is_empty() && !self.pace.bytes(Instant::now(), bytes) {
                // No head has a NUL: hyper answers 400 and closes, as soon as the head seems to be whole.
                buf.filled_mut()[before..].fill(0);
                // Where there is no room, it looks for the version, and then at all that is there.
                if buf.remaining() >= WHOLE.len() {
                    buf.put_slice(WHOLE);
                }
            }
            return Poll::Ready(Ok(()));
        }
        if self.is_late(cx) {
            return Poll::Ready(Err(late("the client is too slow")));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.taken(cx, write)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(cx);
        self.taken(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.taken(cx, shutdown)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.taken(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_phase_has_its_deadline() {
        let (begun, deadlines) = (Instant::now(), Deadlines::default());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let pace = Pace::new(begun);
        assert_eq!(pace.over(&deadlines), Some(begun + deadlines.first_byte));
        // A byte a second moves nothing.
        assert!(pace.bytes(at(1), b"P") && pace.bytes(at(2), b"O"));
        assert_eq!(pace.over(&deadlines), Some(at(1) + deadlines.head));
        let (one, other) = (pace.busy(false), pace.busy(false));
        assert_eq!(pace.over(&deadlines), None);
        drop(one);
        assert_eq!(pace.over(&deadlines), None);
        drop(other);
        assert!(pace.over(&deadlines).unwrap() >= begun + deadlines.idle);
        assert!(pace.bytes(at(100), b"G"));
        assert_eq!(pace.over(&deadlines), Some(at(100) + deadlines.head));
    }

    #[test]
    fn http2_is_never_again_in_a_head() {
        let (now, deadlines) = (Instant::now(), Deadlines::default());
        let pace = Pace::new(now);
        assert!(pace.bytes(now, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\n\n"));
        assert_eq!(pace.over(&deadlines), Some(now + deadlines.head));
        drop(pace.busy(true));
        let idle = pace.over(&deadlines);
        assert!(pace.bytes(now + Duration::from_secs(50), b"\n\n"));
        assert_eq!(pace.over(&deadlines), idle);
    }

    #[test]
    fn lines_of_a_head_end_with_cr_and_lf() {
        let clean = |parts: &[&str]| {
            let mut head = Head::default();
            parts.iter().all(|part| head.is_clean(part.as_bytes()))
        };
        assert!(clean(&["GET / HTTP/1.1\r\nHost: a\r\n\r\n"]));
        assert!(clean(&["GET / HTTP/1.1\r", "\nHost: a\r\n", "\r", "\n", "{\n}\n"]));
        assert!(clean(&["\r\n\r\nGET / HTTP/1.1\r\n\r\nbody\n\n"]));
        assert!(!clean(&["GET / HTTP/1.1\nHost: a\r\n\r\n"]));
        assert!(!clean(&["GET / HTTP/1.1\r\nHost: a\n", "\r\n"]));
        assert!(!clean(&["GET / HTTP/1.1\r\n", "\nHost: a\r\n"]));
        assert!(!clean(&["\n"]));
    }
}
