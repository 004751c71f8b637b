//! `windlass watch`.

use std::{
    io::{Write, stderr},
    time::Duration,
};

use futures_util::StreamExt;
use windlass::{
    ConnectOptions, ErrorKind, Status,
    rt::{Native, Runtime},
};

use crate::{
    args::Watch,
    connect,
    exit::{Exit, Failure},
    text::{plain, print, print_json, time_of_day},
    utf8,
};

pub(crate) async fn watch(args: Watch) -> Result<Exit, Failure> {
    let prefix = utf8(&args.prefix, "the prefix")?;
    let locker = connect(&args.place, ConnectOptions::new()).await?;
    // The first time, what is wrong may be the URL.
    let mut statuses = Box::pin(locker.watch(prefix).await?);
    loop {
        match statuses.next().await {
            None => return Ok(Exit::DONE),
            Some(Ok(status)) if args.json => print_json(&serde_json::json!(status))?,
            Some(Ok(status)) => print(&format!("{}  {}\n", time_of_day(), line(&status)))?,
            Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {
                let _ = writeln!(stderr(), "windlass: {error:#}; all locks again once that is over");
                statuses = loop {
                    Native.sleep(AGAIN).await;
                    match locker.watch(prefix).await {
                        Ok(statuses) => break Box::pin(statuses),
                        Err(error) if error.kind() == ErrorKind::Unavailable => {}
                        Err(error) => return Err(error.into()),
                    }
                };
            }
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// The pause between looks whether the place is there again.
const AGAIN: Duration = Duration::from_secs(1);

fn line(status: &Status) -> String {
    let mut line = format!("{}  ", status.name);
    if status.holders.is_empty() {
        line.push_str("free");
    } else {
        line.push_str("held by ");
        let holders: Vec<String> = status
            .holders
            .iter()
            .map(|holder| {
                format!("{} ({}, token {})", plain(&holder.owner.owner), holder.mode, holder.fencing_token)
            })
            .collect();
        line.push_str(&holders.join(", "));
    }
    if !status.waiters.is_empty() {
        line.push_str("; next: ");
        let waiters: Vec<String> = status
            .waiters
            .iter()
            .map(|waiter| format!("{} ({})", plain(&waiter.owner.owner), waiter.mode))
            .collect();
        line.push_str(&waiters.join(", "));
    }
    line
}
