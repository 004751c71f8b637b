//! The scripts that do the work in Redis; each is loaded there when it is found missing.

use std::sync::LazyLock;

use redis::Script;

macro_rules! script {
    ($flags:literal, $($file:literal),*) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "#!lua",
                $flags,
                "\n",
                include_str!("scripts/head.lua"),
                $(include_str!(concat!("scripts/", $file))),*
            ))
        })
    };
}

pub(super) type Code = LazyLock<Script>;

// Where memory has run out, nothing new is begun, but what there is goes on and ends.
pub(super) static ACQUIRE: Code = script!("", "acquire_free.lua", "record.lua", "acquire.lua");
/// ... of one who waits.
pub(super) static LOOK: Code = script!(" flags=allow-oom", "record.lua", "acquire.lua");
pub(super) static RENEW: Code = script!(" flags=allow-oom", "record.lua", "renew.lua");
pub(super) static RELEASE: Code =
    script!(" flags=allow-oom", "release_alone.lua", "record.lua", "release.lua");
pub(super) static CHANGE: Code = script!(" flags=allow-oom", "record.lua", "change.lua");
pub(super) static FORCE: Code = script!(" flags=allow-oom", "record.lua", "force.lua");
pub(super) static INSPECT: Code = script!(" flags=no-writes", "record.lua", "inspect.lua");
