//! Who asks, unless the program says it.

/// `user@host:pid`, as far as this system tells.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn this_process() -> String {
    let variable = |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok());
    let user = variable(&["USER", "LOGNAME", "USERNAME"]).unwrap_or_else(user_name);
    format!("{user}@{}:{}", host(), std::process::id())
}

/// A JavaScript host has neither users nor processes.
#[cfg(target_family = "wasm")]
pub(crate) fn this_process() -> String {
    "javascript".to_owned()
}

/// The user of this process by the local table of users, as for a job of cron, which has no `$USER`. A directory service
/// is not asked: that can take long.
#[cfg(all(unix, feature = "native"))]
fn user_name() -> String {
    let id = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("uid{id}"))
}

#[cfg(all(unix, feature = "native"))]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(any(all(unix, feature = "native"), target_family = "wasm")))]
fn user_name() -> String {
    "somebody".to_owned()
}

#[cfg(not(any(all(unix, feature = "native"), target_family = "wasm")))]
fn host() -> String {
    ["COMPUTERNAME", "HOSTNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| "localhost".into())
}
