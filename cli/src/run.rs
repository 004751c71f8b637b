//! `windlass run`: a command under a lock.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{self, Either},
    stream,
};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use windlass::{
    ConnectOptions, ErrorKind, Guard, Locker, Name, Waiting,
    ask::Rough,
    rt::{Native, Runtime},
};

use crate::{
    args::Run,
    connect,
    exit::{Exit, Failure, HELD_TOO_LONG, LOST, OS_ERROR},
    hold::Hold,
    name,
    say::Say,
    signals::{ENDING, JOB_CONTROL, Signals, stop},
    waiting::WaitLine,
};

/// How long what is left to be done may take when all is over: taking a claim back, looking for whom it failed.
const PARTING: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Run) -> Result<Exit, Failure> {
    let say = Say::new(&args, name(&args.name)?);
    under_lock(args, &say).await.map_err(|failure| say.failed(failure))
}

async fn under_lock(args: Run, say: &Say) -> Result<Exit, Failure> {
    let mut options = ConnectOptions::new();
    if let Some(owner) = &args.owner {
        options = options.owner(owner);
    }
    if let Some(ttl) = args.ttl {
        options = options.ttl(ttl);
    }
    for (key, value) in &args.meta {
        options = options.metadata(key, value);
    }
    let mut signals = Signals::default();
    signals.listen(&ENDING).map_err(|error| no_signals(&error))?;
    let locker = match unless_signalled(&mut signals, connect(&args.place, options)).await {
        Ok(connected) => connected?,
        Err(ended) => return Ok(ended),
    };
    let outcome = with_locker(&args, &locker, say, &mut signals).await;
    // However it went: nothing of ours stays behind where the locks live.
    let close = pin!(locker.close());
    future::select(close, Native.sleep(PARTING)).await;
    outcome
}

async fn with_locker(args: &Run, locker: &Locker, say: &Say, signals: &mut Signals) -> Result<Exit, Failure> {
    let too_long = Arc::new(Notify::new());
    let guard = match acquire(args, locker, say, signals, too_long.clone()).await? {
        Ok(guard) => guard,
        Err(ended) => return Ok(ended),
    };
    signals.listen(&JOB_CONTROL).map_err(|error| no_signals(&error))?;
    guard.check()?;
    let exit = Hold::start(args, say, &guard, signals, &too_long)?.until_gone().await;
    Ok(release(args, guard, say, signals, exit).await)
}

/// Gets the lock; or how the program is to end without it.
async fn acquire(
    args: &Run,
    locker: &Locker,
    say: &Say,
    signals: &mut Signals,
    too_long: Arc<Notify>,
) -> Result<Result<Guard, Exit>, Failure> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let attempt = args.attempt || args.timeout.is_some_and(|timeout| timeout.is_zero());
    let mut acquiring = Box::pin(ask(args, locker, &say.lock, attempt, tell, too_long));
    let mut line = WaitLine::new(say, locker.url()?);
    let own = args.owner.clone().unwrap_or_else(|| format!(":{}", std::process::id()));
    let is_ours = |owner: &str| if args.owner.is_some() { owner == own } else { owner.ends_with(&own) };
    let mut looks = stream::empty().boxed().fuse();
    let mut tick = Native.sleep(Duration::from_secs(1));
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut acquiring => break outcome,
            signal = signals.next() => {
                line.clear();
                return Ok(Err(Exit::Signal(signal)));
            }
            Some(told) = told.recv() => match told {
                Told::Waiting(waiting) => {
                    line.heard(waiting);
                    if line.is_live() {
                        let watch = async { locker.watch(say.lock.as_str()).await };
                        looks = stream::once(watch).try_flatten().boxed().fuse();
                    }
                }
                Told::Trouble(trouble) => line.troubled(trouble),
                Told::Acquired => line.clear(),
            },
            // Where there is no look to be had, the line goes on with what it has.
            Some(Ok(status)) = looks.next() => {
                if status.name == say.lock {
                    line.seen(status, &is_ours);
                }
            }
            () = &mut tick => {
                line.tick();
                tick = Native.sleep(Duration::from_secs(1));
            }
        }
    };
    line.clear();
    match outcome {
        Ok(Some(guard)) => {
            say.event("acquired", json!({ "fencing_token": guard.fencing_token() }));
            Ok(Ok(guard))
        }
        Ok(None) => {
            let looking = pin!(who_holds(locker, say));
            let waiting = match future::select(looking, Native.sleep(PARTING)).await {
                Either::Left((waiting, _)) => waiting,
                Either::Right(_) => Waiting::default(),
            };
            say.note("not_acquired", json!(waiting), &format!("\"{}\" is taken: {waiting}", say.lock));
            Ok(Err(Exit::Status(args.conflict_exit_code)))
        }
        Err(error) if error.kind() == ErrorKind::Timeout => {
            say.note("not_acquired", json!(error.waiting()), &format!("{error:#}"));
            Ok(Err(Exit::Status(args.conflict_exit_code)))
        }
        Err(error) => Err(error.into()),
    }
}

enum Told {
    Waiting(Waiting),
    /// Why there is no answer just now.
    Trouble(String),
    Acquired,
}

async fn ask(
    args: &Run,
    locker: &Locker,
    name: &Name,
    attempt: bool,
    tell: mpsc::UnboundedSender<Told>,
    too_long: Arc<Notify>,
) -> windlass::Result<Option<Guard>> {
    // Whoever listens outlives the acquire.
    let (tell_acquired, tell_trouble) = (tell.clone(), tell.clone());
    let mut lock = locker
        .lock(name.as_str())
        .on_wait(move |waiting| drop(tell.send(Told::Waiting(waiting.clone()))))
        .on_trouble(move |error| drop(tell_trouble.send(Told::Trouble(error.message().to_owned()))))
        .on_acquired(move |_| drop(tell_acquired.send(Told::Acquired)))
        .on_held_too_long(move |_| too_long.notify_one())
        .max_hold(args.max_hold)
        .hold_at_least(args.hold_at_least.unwrap_or_default())
        .random_delay(args.random_delay.unwrap_or_default());
    if args.shared {
        lock = lock.shared();
    }
    if let Some(limit) = args.limit {
        lock = lock.permit(limit);
    }
    if attempt {
        return lock.try_acquire().await;
    }
    if args.steal {
        lock = lock.steal();
    }
    lock.timeout(args.timeout).await.map(Some)
}

/// Who holds the lock that could not be had at once.
async fn who_holds(locker: &Locker, say: &Say) -> Waiting {
    let statuses = locker.list(say.lock.as_str()).await.unwrap_or_default();
    let status = statuses.into_iter().find(|status| status.name == say.lock);
    Waiting { holders: status.map(|status| status.holders).unwrap_or_default(), place: None }
}

/// Gives the lock back, and says how the program is to end.
async fn release(args: &Run, guard: Guard, say: &Say, signals: &mut Signals, exit: Exit) -> Exit {
    let held_for = guard.held_for();
    let rest = args.hold_at_least.unwrap_or_default().saturating_sub(held_for);
    if !rest.is_zero() && guard.is_held() {
        let text = format!("the command has ended; holding \"{}\" for another {}", say.lock, Rough(rest));
        say.note("holding", json!({ "for_ms": rest.as_millis() as u64 }), &text);
    }
    let mut releasing = pin!(guard.release());
    let released = loop {
        let signalled = pin!(signals.next());
        match future::select(releasing.as_mut(), signalled).await {
            Either::Left((released, _)) => break released,
            Either::Right((signal @ (Signal::SIGTSTP | Signal::SIGTTIN), _)) => stop(signal),
            Either::Right((Signal::SIGCONT, _)) => {}
            Either::Right((signal, _)) => return Exit::Signal(signal),
        }
    };
    let exit = match released {
        Ok(()) => exit,
        Err(error) if matches!(error.kind(), ErrorKind::Lost(_)) => {
            // If it was lost while the command ran, this has been said.
            if !matches!(exit, Exit::Status(LOST | HELD_TOO_LONG)) {
                say.warn("lost", json!({ "reason": error.lost_reason() }), &format!("{error:#}"));
                Exit::Status(LOST)
            } else {
                exit
            }
        }
        Err(error) => {
            say.warn("not_released", json!({ "message": error.to_string() }), &format!("{error:#}"));
            exit
        }
    };
    if let Exit::Status(status) = exit {
        say.event("ended", json!({ "status": status, "held_for_ms": held_for.as_millis() as u64 }));
    }
    exit
}

/// What the work gives; or, if a signal comes before, how the program is to end.
async fn unless_signalled<T>(signals: &mut Signals, work: impl Future<Output = T>) -> Result<T, Exit> {
    let (work, signal) = (pin!(work), pin!(signals.next()));
    match future::select(work, signal).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right((signal, _)) => Err(Exit::Signal(signal)),
    }
}

fn no_signals(error: &std::io::Error) -> Failure {
    Failure::new(OS_ERROR, format!("cannot listen for signals: {error}"))
}
