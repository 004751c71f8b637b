//! The scripts that do the work in Redis; each is loaded there when it is found missing.

use std::sync::LazyLock;

use redis::Script;

macro_rules! script {
    ($flags:literal, $file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "#!lua",
                $flags,
                "\n",
                include_str!("scripts/record.lua"),
                include_str!(concat!("scripts/", $file))
            ))
        })
    };
}

pub(super) type Code = LazyLock<Script>;

// Where memory has run out, nothing new is begun, but what there is goes on and ends.
pub(super) static ACQUIRE: Code = script!("", "acquire.lua");
/// ... of one who waits.
pub(super) static LOOK: Code = script!(" flags=allow-oom", "acquire.lua");
pub(super) static RENEW: Code = script!(" flags=allow-oom", "renew.lua");
pub(super) static RELEASE: Code = script!(" flags=allow-oom", "release.lua");
pub(super) static CHANGE: Code = script!(" flags=allow-oom", "change.lua");
pub(super) static FORCE: Code = script!(" flags=allow-oom", "force.lua");
pub(super) static INSPECT: Code = script!(" flags=no-writes", "inspect.lua");
