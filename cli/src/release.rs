//! `windlass release`: an operator's force-release.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};

use windlass::{ConnectOptions, Holder, Locker, Name, ask::Rough};

use crate::{
    args::Release,
    connect,
    exit::{Exit, Failure},
    name,
    text::{complain, plain, print, print_json},
};

pub(crate) async fn release(args: Release) -> Result<Exit, Failure> {
    let name = name(&args.name)?;
    let locker = connect(&args.place, ConnectOptions::new()).await?;
    let taken = if !args.yes && stdin().is_terminal() && stderr().is_terminal() {
        let Some(tokens) = ask(&locker, &name, args.token).await? else {
            return Err(Failure::new(1, "nothing was released"));
        };
        let mut taken = Vec::new();
        for token in tokens {
            taken.extend(locker.force_release(name.as_str(), token).await?);
        }
        taken
    } else {
        locker.force_release(name.as_str(), args.token).await?
    };
    if args.json {
        print_json(&serde_json::json!({ "name": name, "taken_from": taken }))?;
    } else if taken.is_empty() {
        complain(&nobody(&name, args.token));
    } else {
        print(
            &taken.iter().map(|holder| format!("{name}: taken from {}\n", who(holder))).collect::<String>(),
        )?;
    }
    Ok(Exit::Status(u8::from(taken.is_empty())))
}

/// Asks whether to take the lock from those who hold it now, and gives the fencing tokens to take: of those whom the
/// operator has seen, and of nobody who comes after them. `None`: no.
async fn ask(locker: &Locker, name: &Name, token: Option<u64>) -> Result<Option<Vec<Option<u64>>>, Failure> {
    let statuses = locker.list(name.as_str()).await?;
    let status = statuses.into_iter().find(|status| status.name == *name);
    let mut holders = status.map(|status| status.holders).unwrap_or_default();
    holders.retain(|holder| token.is_none_or(|token| token == holder.fencing_token));
    if holders.is_empty() {
        return Err(Failure::new(1, nobody(name, token)));
    }
    let list: Vec<String> = holders.iter().map(who).collect();
    let _ = write!(stderr(), "Take \"{name}\" from {}? [y/N] ", list.join(" and "));
    let mut answer = String::new();
    // What cannot be read is no yes.
    let _ = stdin().lock().read_line(&mut answer);
    if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(None);
    }
    // A foreign client that holds it has no token to name it by.
    let all_have_one = holders.iter().all(|holder| holder.fencing_token != 0);
    Ok(Some(if all_have_one {
        holders.iter().map(|holder| Some(holder.fencing_token)).collect()
    } else {
        vec![None]
    }))
}

fn nobody(name: &Name, token: Option<u64>) -> String {
    match token {
        Some(token) => format!("nobody holds \"{name}\" with token {token}"),
        None => format!("nobody holds \"{name}\""),
    }
}

fn who(holder: &Holder) -> String {
    let held_for = holder.held_for.map(|time| format!(", for {}", Rough(time))).unwrap_or_default();
    format!("{} ({}, token {}{held_for})", plain(&holder.owner.owner), holder.mode, holder.fencing_token)
}
