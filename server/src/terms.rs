//! What a client is told of the terms of its claims (rule R1).
//!
//! It counts the TTL that it is told from when it *sent* its question, plus the time for which it is told that the question
//! was held. The question was read here later than it was sent, so what is right for one who counts from then is safe for it.
//!
//! Locks in memory begin a term while a question is under way, never before. In a shared store a claim may share the
//! term of its session, which may be older than the question: of that only what is left is told.

use std::time::Duration;

use windlass::{ask::Term, time::Moment};

/// For how long a question that was read at `begun` was held before the first of these terms began. It is not how long it took
/// to answer: between the two this server may have stood still.
pub(crate) fn held(begun: Moment, terms: impl Iterator<Item = Term>) -> Duration {
    let first = terms.map(|term| term.counted_from.boot).min();
    first.map_or(Duration::ZERO, |first| first.saturating_sub(begun.boot))
}

/// The TTL that is told to one whose question was read at `begun`.
pub(crate) fn ttl(begun: Moment, term: Term) -> Duration {
    // Of two moments in the wrong order a wall clock that was set could make a difference.
    let before =
        if term.counted_from.boot < begun.boot { begun.since(term.counted_from) } else { Duration::ZERO };
    term.ttl.saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(boot: u64, wall: u64) -> Moment {
        Moment { boot: Duration::from_secs(boot), wall: Duration::from_secs(wall) }
    }

    fn from(counted_from: Moment) -> Term {
        Term { counted_from, ttl: TTL }
    }

    /// Until when a client believes in its claim, if its question was read at once.
    fn believed(begun: Moment, terms: &[Term]) -> Vec<Duration> {
        let held = held(begun, terms.iter().copied());
        terms.iter().map(|term| begun.boot + held + ttl(begun, *term)).collect()
    }

    #[test]
    fn nobody_believes_longer_than_the_store_does() {
        let begun = at(100, 500);
        let [before, after, later] = [97, 104, 160].map(|boot| from(at(boot, boot + 400)));
        assert_eq!(believed(begun, &[after]), [after.counted_from.boot + TTL]);
        assert_eq!(believed(begun, &[before]), [before.counted_from.boot + TTL]);
        for (terms, believed) in
            [[later, after], [before, later], [before, after]].map(|terms| (terms, believed(begun, &terms)))
        {
            assert!(
                terms.iter().zip(believed).all(|(term, until)| until <= term.counted_from.boot + term.ttl)
            );
        }
        assert_eq!(ttl(begun, from(at(80, 480))), Duration::ZERO, "it is over");
    }

    #[test]
    fn a_wall_clock_that_is_set_back_while_a_request_is_held_changes_nothing() {
        assert_eq!(ttl(at(100, 5000), from(at(104, 1400))), TTL);
    }

    #[test]
    fn a_machine_that_stood_still_without_its_clock_is_seen() {
        assert_eq!(ttl(at(100, 5007), from(at(99, 5000))), TTL - Duration::from_secs(7));
    }
}
