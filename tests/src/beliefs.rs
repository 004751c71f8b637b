//! Who believed to hold a lock, and when, by the clock that all processes of this machine share. Whatever happens to them, to
//! the network and to servers: two that conflict never believe at once.

use std::{fmt, str::FromStr, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use windlass::{
    Guard,
    rt::{Native, Runtime},
};

use crate::place::block_on;

/// How often one who holds asks itself.
const EVERY: Duration = Duration::from_millis(5);

/// A time in which a lock was believed to be held, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Belief {
    from: u64,
    to: u64,
    mode: String,
    token: u64,
}

impl Belief {
    /// Holds for so long, or until it is lost. `None`: it was lost at once.
    pub fn hold(guard: &Guard, time: Duration) -> Option<Self> {
        let (from, mut to) = (nanos(), None);
        let end = from + u64::try_from(time.as_nanos()).unwrap();
        loop {
            let now = nanos();
            // Whoever believes now has believed all along.
            if !guard.is_held() {
                break;
            }
            to = Some(now);
            if now >= end {
                break;
            }
            block_on(Native.sleep(EVERY.min(Duration::from_nanos(end - now))));
        }
        let mode = guard.mode().to_string();
        Some(Self { from, to: to?, mode, token: guard.fencing_token() })
    }
}

impl fmt::Display for Belief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.from, self.to, self.mode, self.token)
    }
}

impl FromStr for Belief {
    type Err = std::num::ParseIntError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = line.split(' ').collect();
        let [from, to, mode, token] = words[..] else { panic!("{line:?}") };
        Ok(Self { from: from.parse()?, to: to.parse()?, mode: mode.to_owned(), token: token.parse()? })
    }
}

/// Of one lock: two that do not fit never overlapped, and tokens grew in the order of the holds.
pub fn no_overlap(mut beliefs: Vec<Belief>, fit: impl Fn(&str, &str) -> bool) {
    beliefs.sort_unstable();
    for (n, belief) in beliefs.iter().enumerate() {
        // No hold lasts longer than what lies between this one and the hundredth before it.
        for older in &beliefs[n.saturating_sub(100)..n] {
            if !fit(&belief.mode, &older.mode) {
                assert!(older.to <= belief.from, "{older:?} overlaps {belief:?}");
                assert!(older.token < belief.token, "{belief:?} has no greater token than {older:?}");
            }
        }
    }
}

/// Of one exclusive lock: tokens grew in the order of the holds; how many of them began while another one was believed.
pub fn overlaps_by_tokens(mut beliefs: Vec<Belief>) -> usize {
    beliefs.sort_unstable();
    for pair in beliefs.windows(2) {
        assert!(pair[0].token < pair[1].token, "{:?} has no greater token than {:?}", pair[1], pair[0]);
    }
    beliefs.windows(2).filter(|pair| pair[0].to > pair[1].from).count()
}

/// The most that held at once.
pub fn most_at_once(beliefs: &[Belief]) -> i32 {
    let mut ends: Vec<(u64, i32)> = beliefs.iter().flat_map(|b| [(b.from, 1), (b.to, -1)]).collect();
    ends.sort_unstable();
    let running = ends.into_iter().scan(0, |inside, (_, step)| {
        *inside += step;
        Some(*inside)
    });
    running.max().unwrap_or_default()
}

/// A clock that all processes share.
pub fn nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
