//! The acquire that a builder starts.
//!
//! It makes its claim id first, then asks until it has an answer. Whatever ends it early (timeout, error, a
//! dropped future) leaves an [`Owed`] behind that gives the claim back, whether it was queued, granted, or its answer
//! lost on the way (rules R11 and R12). Only a timeout that was told to keep the place leaves the claim where it is, and gives
//! its ticket to the program.

use std::{
    any::Any,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use smallvec::smallvec;

use crate::{
    ask::{Ask, Claim, Entry, Grant, Owner, Term, Waiting},
    error::{Error, ErrorKind, Result},
    guard::Guard,
    held::Held,
    lease::{BackOff, Lease},
    metrics::{add_time, count},
    name::{ClaimId, Name},
    options::{AcquireOptions, OnWait, check_metadata, check_owner},
    session::{Few, Owed, Session},
    ticket::Ticket,
    time::Moment,
    within::{Seconds, within},
};

/// For whoever stood in line until a request broke off the pause before the next one is no longer: a server keeps the place for
/// twice as long.
const PLACE_KEPT: Duration = Duration::from_secs(1);

/// What is known of a wait.
#[derive(Default)]
struct Wait {
    since: Option<Moment>,
    heard: Option<Waiting>,
    /// Why there was no answer, the last time there was none.
    trouble: Option<Error>,
    /// What `on_wait` returned, dropped with the wait.
    _wraps: Option<Box<dyn Any + Send>>,
    _span: Option<tracing::Span>,
}

/// Acquires all of these locks or none; `None` for a try that failed. One name is just the shortest list.
pub(crate) async fn acquire_all(
    session: &Arc<Session>,
    names: &[Name],
    options: &AcquireOptions,
) -> Result<Option<Few<Guard>>> {
    session.check_open()?;
    let Some(first) = names.first() else { return Ok(Some(Few::new())) };
    let explain = |error| match names {
        [name] => session.explain(error, name),
        _ => session.explain_backend(error),
    };
    let owner = options.owner(&session.owner);
    options.check(names, &session.backend.capabilities()).map_err(explain)?;
    check_owner(&owner.owner).and_then(|()| check_metadata(&owner.metadata)).map_err(explain)?;
    let wait = Mutex::new(Wait::default());
    let mut owed = None;
    let granted = {
        let on_waiting = |waiting: Waiting| heard_waiting(&wait, session, &options.on_wait, first, &waiting);
        let on_trouble = |error: &Error| {
            wait.lock().unwrap_or_else(PoisonError::into_inner).trouble = Some(error.clone());
            if let Some(on_trouble) = &options.on_trouble {
                on_trouble(error);
            }
        };
        let asking = pin!(async {
            let mut back_off = BackOff::default();
            let mut ticket = options.ticket.as_ref();
            loop {
                let asks = asks(session, names, options, ticket.take(), &owner)?;
                let claims = asks.iter().map(Ask::claim).collect();
                owed = Some(Owed::new(session, claims));
                match ask_until_answered(session, &asks, &on_waiting, &on_trouble).await {
                    // While we were cut off or away, the claim left the queue, or was granted and ran out: it waits on as
                    // another.
                    Err(error) if error.kind() == ErrorKind::NotHeld && options.entry != Entry::Try => {
                        count(&session.counters.retries);
                        owed = None;
                        session.rt.sleep(back_off.pause(session.rt.jitter(), error.retry_after())).await;
                    }
                    answer => return answer.map(|grants| (asks, grants)),
                }
            }
        });
        let asking = pin!(session.unless_closed(asking));
        within(&session.rt, options.timeout, asking).await
    };
    let wait = wait.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (asks, grants) = match granted {
        Some(Ok((asks, Some(grants)))) => (asks, grants),
        Some(Ok((_, None))) => {
            owed.map(Owed::settle);
            return Ok(None);
        }
        Some(Err(error)) => return Err(explain(error)),
        None => {
            count(&session.counters.timeouts);
            // Unless it is to be kept, what is owed is given back here.
            let kept = options.keep_place.and(owed).map(Owed::settle);
            return Err(explain(timed_out(names, options, wait, kept.unwrap_or_default())));
        }
    };
    if let Some(since) = wait.since {
        count(&session.counters.waited);
        add_time(&session.counters.wait_micros, session.rt.now().since(since));
    }
    drop(wait);
    let mut guards: Few<Guard> = Few::with_capacity(grants.len());
    for (ask, grant) in asks.iter().zip(&grants) {
        match take_over(session, ask.claim(), grant, options) {
            Ok(guard) => guards.push(guard),
            Err(error) => {
                // What a guard has, one of these or an earlier one with the same ticket, is its to give back.
                drop(owed.map(Owed::but_for_what_is_held));
                return Err(explain(error));
            }
        }
    }
    owed.map(Owed::settle);
    // Asked for in the order of names, given in that of the program.
    for (at, name) in names.iter().enumerate() {
        if let Some(found) = guards.iter().position(|guard| guard.name() == name) {
            guards.swap(at, found);
        }
    }
    // The program's own code comes last: by now the guards give the locks back, whatever it does.
    guards.iter().for_each(Guard::tell_acquired);
    if !options.hold.random_delay.is_zero() {
        session.rt.sleep(options.hold.random_delay.mul_f64(session.rt.jitter())).await;
        guards.iter().try_for_each(Guard::check)?;
    }
    Ok(Some(guards))
}

/// The questions, sorted by name.
fn asks(
    session: &Session,
    names: &[Name],
    options: &AcquireOptions,
    ticket: Option<&Ticket>,
    owner: &Arc<Owner>,
) -> Result<Few<Ask>> {
    let mut asks: Few<Ask> = Few::with_capacity(names.len());
    for name in names {
        let Err(place) = asks.binary_search_by(|ask| ask.name.cmp(name)) else {
            let message = "asked for twice in one acquire_all: name each lock once";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_lock(name));
        };
        let ask = Ask {
            name: name.clone(),
            claim_id: ticket
                .map_or_else(|| ClaimId::from_u128(session.rt.random()), |ticket| ticket.claim.id),
            mode: options.mode,
            entry: options.entry,
            ttl: options.ttl,
            owner: owner.clone(),
            keep: options.keep_place.unwrap_or_default(),
            only_here: ticket.is_none(),
        };
        asks.insert(place, ask);
    }
    Ok(asks)
}

fn heard_waiting(
    wait: &Mutex<Wait>,
    session: &Session,
    on_wait: &Option<OnWait>,
    name: &Name,
    waiting: &Waiting,
) {
    let first = {
        let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
        wait.since.get_or_insert_with(|| session.rt.now());
        wait.trouble = None;
        wait.heard.replace(waiting.clone()).is_none()
    };
    if first {
        let span = tracing::debug_span!("windlass.wait", lock = %name, waiting = %waiting);
        let wraps = on_wait.as_ref().map(|on_wait| on_wait(waiting));
        let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
        (wait._wraps, wait._span) = (wraps, Some(span));
    }
}

/// Asks, and asks again with the same claim ids while the backend is unavailable: what an earlier try got is found again.
async fn ask_until_answered(
    session: &Session,
    asks: &[Ask],
    on_waiting: &(dyn Fn(Waiting) + Send + Sync),
    on_trouble: &(dyn Fn(&Error) + Send + Sync),
) -> Result<Option<Few<Grant>>> {
    let mut back_off = BackOff::default();
    let stood_in_line = AtomicBool::new(false);
    let on_waiting = &|waiting: Waiting| {
        stood_in_line.store(true, Ordering::Relaxed);
        on_waiting(waiting);
    };
    loop {
        let answer = match asks {
            [ask] => session
                .backend
                .acquire(ask, on_waiting)
                .await
                .map(|grant| grant.map(|grant| smallvec![grant])),
            _ => session.backend.acquire_all(asks, on_waiting).await.map(|grants| grants.map(Few::from_vec)),
        };
        let too_late = |term: Term| !Lease::new(term).is_held(session.rt.now());
        match answer {
            // The answer took longer than the lease: asking again by the same id renews it.
            Ok(Some(grants)) if grants.iter().any(|grant| grant.lease.is_some_and(too_late)) => {}
            Err(error) if error.kind() == ErrorKind::Unavailable && asks[0].entry != Entry::Try => {
                count(&session.counters.retries);
                tracing::warn!(%error, "backend unavailable, trying again");
                on_trouble(&error);
                let mut pause = back_off.pause(session.rt.jitter(), error.retry_after());
                if stood_in_line.swap(false, Ordering::Relaxed) {
                    // By a proxy that cuts off what takes long this happens again and again.
                    pause = pause.min(PLACE_KEPT.max(error.retry_after().unwrap_or_default()));
                }
                session.rt.sleep(pause).await;
            }
            answer => return answer,
        }
    }
}

/// `kept`: the claim that keeps its place.
fn timed_out(names: &[Name], options: &AcquireOptions, wait: Wait, kept: Few<Claim>) -> Error {
    let what = match names {
        [_] => "not acquired".to_owned(),
        _ => {
            let names: Vec<String> = names.iter().map(Name::to_string).collect();
            format!("not all of the locks {} acquired", names.join(", "))
        }
    };
    let limit = Seconds(options.timeout.unwrap_or_default());
    // What was heard before the trouble may no longer be so, but is all that is known.
    let why = match (&wait.trouble, &wait.heard) {
        (Some(trouble), None) => trouble.message().to_owned(),
        (Some(trouble), Some(waiting)) => format!("{waiting}; then {}", trouble.message()),
        (None, Some(waiting)) => waiting.to_string(),
        (None, None) => "that was too short to hear who holds it".to_owned(),
    };
    // Who never heard of the lock did not wait for it: that the backend is gone must not look like a lock that is taken.
    let kind = match (&wait.trouble, &wait.heard) {
        (Some(_), None) => ErrorKind::Unavailable,
        _ => ErrorKind::Timeout,
    };
    let error = Error::new(kind, format!("{what} within {limit}: {why}"));
    let error = wait.heard.into_iter().fold(error, Error::with_waiting);
    let ticket = |claim| Ticket { claim, fencing_token: 0, mode: options.mode, ttl: options.ttl };
    kept.into_iter().map(ticket).fold(error, Error::with_ticket)
}

/// Makes a guard of a claim that the backend has granted.
///
/// # Errors
/// Where the locker was closed meanwhile, or has this claim already.
pub(crate) fn take_over(
    session: &Arc<Session>,
    claim: Claim,
    grant: &Grant,
    options: &AcquireOptions,
) -> Result<Guard> {
    let now = session.rt.now();
    let held = Arc::new(Held::new(claim, grant, options.ttl, now, options.hold.clone()));
    session.keep(&held, now)?;
    Ok(Guard::new(session.clone(), held))
}
