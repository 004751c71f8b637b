//! Questions that may have to wait, asked together: for programs with few connections, such as pages in a browser over HTTP/1.1.
//!
//! Each is what it is by itself. The request is answered as soon as one of them has its answer, or when the same client asks
//! another time. For the others it is then a request that has ended: their claims keep their places as after any such request.

use std::{future::pending, pin::pin};

use axum::body::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use windlass::protocol::{Answer as Told, Answers, Question, Together};

use crate::{
    answer::{Answer, Refusal, answer, question},
    metrics::Refused,
    routes::{Heard, Visit},
};

pub(crate) async fn together(visit: Visit, body: Bytes) -> Answer {
    let Together { client, wait_ms, questions } = question(&body)?;
    visit.who.is_of(&visit.namespace)?;
    let space = visit.spaces.get(&visit.namespace)?;
    let is_held_open = wait_ms != Some(0);
    let later = match client {
        Some(client) if is_held_open => Some(space.later(client)?),
        _ => None,
    };
    let mut later = pin!(async {
        match later {
            Some(later) => later.await,
            None => pending().await,
        }
    });
    let mut answers = vec![None; questions.len()];
    let mut refused = Vec::new();
    let over = async |(at, question)| (at, visit.over(question, wait_ms).await);
    let mut open: FuturesUnordered<_> = questions.into_iter().enumerate().map(over).collect();
    let mut is_over = false;
    loop {
        let next = if is_over {
            // What has its answer by now comes along.
            open.next().now_or_never().flatten()
        } else {
            tokio::select! {
                biased;
                next = open.next() => next,
                () = &mut later => None,
            }
        };
        let Some((at, over)) = next else { break };
        answers[at] = Some(visit.told(over, &mut refused).await?);
        is_over = is_held_open;
    }
    let mut response = answer(&Answers { answers })?;
    response.extensions_mut().insert(refused);
    Ok(response)
}

/// What a question has come to.
enum Over {
    Told(Told),
    /// It has still to be told.
    Heard(Heard),
}

impl Visit {
    /// Until it has an answer.
    async fn over(&self, question: Question, wait_ms: Option<u64>) -> Result<Over, Refusal> {
        Ok(Over::Told(match question {
            Question::Acquire(mut asked) => {
                asked.terms.wait_ms = wait_ms;
                Told::Acquire(self.acquire(asked).await?)
            }
            Question::AcquireAll(mut asked) => {
                asked.terms.wait_ms = wait_ms;
                Told::AcquireAll(self.acquire_all(asked).await?)
            }
            Question::Change(mut asked) => {
                asked.wait_ms = wait_ms;
                Told::Change(self.change(asked).await?)
            }
            Question::Renew(mut asked) => {
                asked.park_ms = wait_ms.or(Some(u64::MAX));
                return self.hear(asked).await.map(Over::Heard);
            }
        }))
    }

    /// Its answer.
    ///
    /// # Errors
    /// That this program has to show another token, for all questions alike.
    async fn told(&self, over: Result<Over, Refusal>, refused: &mut Vec<Refused>) -> Result<Told, Refusal> {
        let told = match over {
            Ok(Over::Heard(heard)) => self.tell(heard).await.map(Told::Renew),
            Ok(Over::Told(told)) => Ok(told),
            Err(refusal) => Err(refusal),
        };
        told.or_else(|refusal| {
            let problem = refusal.problem();
            if problem.status == 401 {
                return Err(refusal);
            }
            refused.push(Refused::of(&problem));
            Ok(Told::Problem(problem))
        })
    }
}
