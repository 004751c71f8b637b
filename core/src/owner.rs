//! Who asks, unless the program says it.

/// `user@host:pid`, as far as this system tells.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn this_process() -> String {
    let variable = |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok());
    let user = variable(&["USER", "LOGNAME", "USERNAME"]).unwrap_or_else(user_id);
    format!("{user}@{}:{}", host(), std::process::id())
}

/// A JavaScript host has neither users nor processes.
#[cfg(target_family = "wasm")]
pub(crate) fn this_process() -> String {
    "javascript".to_owned()
}

#[cfg(all(unix, feature = "native"))]
fn user_id() -> String {
    format!("uid{}", rustix::process::getuid().as_raw())
}

#[cfg(all(unix, feature = "native"))]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(any(all(unix, feature = "native"), target_family = "wasm")))]
fn user_id() -> String {
    "somebody".to_owned()
}

#[cfg(not(any(all(unix, feature = "native"), target_family = "wasm")))]
fn host() -> String {
    ["COMPUTERNAME", "HOSTNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| "localhost".into())
}
