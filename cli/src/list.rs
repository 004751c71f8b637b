//! `windlass ls`.

use std::io::{IsTerminal, stderr};

use windlass::{ConnectOptions, Status, ask::Rough};

use crate::{
    args::Ls,
    connect,
    exit::{Exit, Failure},
    text::{complain, or_dash, plain, print, print_json, table},
    utf8,
};

pub(crate) async fn ls(args: Ls) -> Result<Exit, Failure> {
    let prefix = utf8(&args.prefix, "the prefix")?;
    let locker = connect(&args.place, ConnectOptions::new()).await?;
    let statuses = locker.list(prefix).await?;
    if args.json {
        print_json(&serde_json::json!(statuses))?;
    } else if !statuses.is_empty() {
        print(&table(&rows(&statuses)))?;
    } else if stderr().is_terminal() {
        complain(&format!("no locks in {}", locker.url()?));
    }
    Ok(Exit::DONE)
}

fn rows(statuses: &[Status]) -> Vec<Vec<String>> {
    let mut rows =
        vec![["NAME", "HOLDER", "MODE", "TOKEN", "HELD FOR", "WAITERS"].map(str::to_owned).to_vec()];
    let has_metadata =
        |status: &Status| status.holders.iter().any(|holder| !holder.owner.metadata.is_empty());
    let with_metadata = statuses.iter().any(has_metadata);
    if with_metadata {
        rows[0].push("METADATA".to_owned());
    }
    for status in statuses {
        let waiters = status.waiters.len().to_string();
        if status.holders.is_empty() {
            let [holder, mode, token, held_for] = std::array::from_fn(|_| "-".to_owned());
            rows.push(vec![status.name.to_string(), holder, mode, token, held_for, waiters.clone()]);
        }
        for holder in &status.holders {
            let mut row = vec![
                status.name.to_string(),
                plain(&holder.owner.owner),
                holder.mode.to_string(),
                // A foreign client has none.
                or_dash(Some(holder.fencing_token).filter(|token| *token != 0)),
                or_dash(holder.held_for.map(Rough)),
                waiters.clone(),
            ];
            if with_metadata {
                let pairs = holder.owner.metadata.iter().map(|(key, value)| plain(&format!("{key}={value}")));
                row.push(pairs.collect::<Vec<_>>().join(" "));
            }
            rows.push(row);
        }
    }
    rows
}
