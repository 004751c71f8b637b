//! `windlass watch`.

use std::pin::pin;

use futures_util::StreamExt;
use windlass::{ConnectOptions, Status};

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
    let mut statuses = pin!(locker.watch(prefix).await?);
    while let Some(status) = statuses.next().await {
        let status = status?;
        if args.json {
            print_json(&serde_json::json!(status))?;
        } else {
            print(&format!("{}  {}\n", time_of_day(), line(&status)))?;
        }
    }
    Ok(Exit::DONE)
}

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
