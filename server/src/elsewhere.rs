//! Which namespaces are used at any of the servers that share a store, for people who look at one of them.
//!
//! Each server holds a shared claim on the name of each namespace that has clients there, in a namespace of the servers' own.
//! So what is held there is what is used anywhere, and what only a dead server knew is gone after a TTL. No lock depends on
//! it: what fails is done at the next look.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use windlass::{
    ClaimId, DEFAULT_TTL, Result,
    ask::{Ask, Claim, Entry, Mode, Owner, Renewal},
    rt::{Native, Runtime},
};

use crate::{spaces::Spaces, store::Shared};

/// The servers' own namespace, in which clients have no locks.
pub(crate) const NAMESPACE: &str = ".namespaces";
/// How often the claims are renewed: as any client does.
const LOOK: Duration = Duration::from_secs(3);

/// Shows the others what is used here and looks what is used there, for as long as it is polled.
pub(crate) async fn look(spaces: Arc<Spaces>) {
    let Some(shared) = spaces.shared().cloned() else { return };
    let mut shown = HashMap::new();
    loop {
        if let Err(error) = look_once(&shared, &spaces, &mut shown).await {
            tracing::debug!(%error, "it is not known which namespaces other servers have");
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look_once(shared: &Shared, spaces: &Spaces, shown: &mut HashMap<String, Claim>) -> Result<()> {
    let used: BTreeSet<String> = spaces.used();
    let gone: Vec<Claim> = shown.extract_if(|name, _| !used.contains(name)).map(|(_, claim)| claim).collect();
    let servers = shared.servers();
    if !gone.is_empty() {
        servers.release(&gone).await?;
    }
    for name in used.into_iter().filter(|name| !shown.contains_key(name)).collect::<Vec<_>>() {
        let ask = ask(&name)?;
        match servers.acquire(&ask, &|_| ()).await {
            Ok(granted) => shown.extend(granted.map(|_| (name, ask.claim()))),
            Err(error) => {
                // It may have been granted, and nobody asks for this claim again.
                servers.release(&[ask.claim()]).await?;
                return Err(error);
            }
        }
    }
    let claims: Vec<Claim> = shown.values().cloned().collect();
    for (claim, renewal) in claims.iter().zip(servers.renew(&claims).await?) {
        if matches!(renewal, Renewal::Lost(_) | Renewal::NotHeld) {
            shown.remove(claim.name.as_str());
        }
    }
    let held = servers.inspect("").await?;
    spaces.are_elsewhere(held.into_iter().map(|lock| lock.name.as_str().to_owned()).collect());
    Ok(())
}

fn ask(namespace: &str) -> Result<Ask> {
    Ok(Ask {
        name: namespace.parse()?,
        claim_id: ClaimId::from_u128(Native.random()),
        mode: Mode::Shared,
        entry: Entry::Try,
        ttl: DEFAULT_TTL,
        owner: Arc::new(Owner { owner: "windlass serve".to_owned(), ..Owner::default() }),
        keep: Duration::ZERO,
        only_here: true,
    })
}
