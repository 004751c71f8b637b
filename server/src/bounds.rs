//! What makes no sense whoever asks, though it can be written: it is refused before anything is done for it. What somebody may
//! not ask for is [`Who`](crate::who::Who)'s affair.

use std::time::Duration;

use windlass::{
    MAX_TTL, MIN_TTL, Name, Result,
    protocol::{Acquire, AcquireAll, Change, ForceRelease, Question, Release, Renew, Terms, Together},
};

use crate::answer::invalid;

/// The most claims in one question.
const MOST_CLAIMS: usize = 10_000;

/// What can be asked.
pub(crate) trait Asked {
    /// # Errors
    /// [`InvalidInput`](windlass::ErrorKind::InvalidInput)
    fn makes_sense(&self) -> Result<()> {
        Ok(())
    }
}

impl Asked for Acquire {
    fn makes_sense(&self) -> Result<()> {
        can_be_kept(&self.terms)
    }
}

impl Asked for AcquireAll {
    fn makes_sense(&self) -> Result<()> {
        can_be_kept(&self.terms)?;
        if self.claims.is_empty() || self.claims.len() > MOST_CLAIMS {
            return Err(invalid("name 1 to 10,000 claims"));
        }
        let mut names: Vec<&Name> = self.claims.iter().map(|claim| &claim.name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(invalid("the same name twice: name each lock once"));
        }
        Ok(())
    }
}

impl Asked for Renew {
    fn makes_sense(&self) -> Result<()> {
        if self.claims.len() > MOST_CLAIMS {
            return Err(invalid("too many claims in one question: 10,000 at the most"));
        }
        Ok(())
    }
}

impl Asked for Change {}
impl Asked for Release {}
impl Asked for ForceRelease {}

/// All of them do, or none is asked.
impl Asked for Together {
    fn makes_sense(&self) -> Result<()> {
        self.questions.iter().try_for_each(|question| match question {
            Question::Acquire(asked) => asked.makes_sense(),
            Question::AcquireAll(asked) => asked.makes_sense(),
            Question::Change(asked) => asked.makes_sense(),
            Question::Renew(asked) => asked.makes_sense(),
        })
    }
}

fn can_be_kept(terms: &Terms) -> Result<()> {
    let ttl = Duration::from_millis(terms.ttl_ms);
    if ttl < MIN_TTL || ttl > MAX_TTL {
        return Err(invalid("ttl_ms is out of range: 1000 to 3600000"));
    }
    if terms.keep_ms.is_some_and(|keep| Duration::from_millis(keep) > MAX_TTL) {
        return Err(invalid("keep_ms is out of range: 3600000 at the most"));
    }
    Ok(())
}
