//! The scripts that do the work in Redis; each is loaded there when it is found missing.

use std::sync::{Arc, LazyLock};

use redis::{
    Cmd, ErrorKind as Kind, FromRedisValue, RedisResult, Script, ServerErrorKind, ToRedisArgs,
    aio::ConnectionLike,
};

/// Room for what is sent for one lock, so that it is got at once.
const USUAL_ARGS: usize = 20;
const USUAL_BYTES: usize = 512;

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

/// What is to be run in Redis, as it is sent.
#[derive(Clone)]
pub(super) struct Call {
    code: &'static Code,
    cmd: Arc<Cmd>,
}

impl Call {
    pub(super) fn new(code: &'static Code, keys: &[String], args: impl ToRedisArgs) -> Self {
        let mut cmd = Cmd::with_capacity(USUAL_ARGS, USUAL_BYTES);
        cmd.arg("EVALSHA").arg(code.get_hash()).arg(keys.len()).arg(keys).arg(args);
        Self { code, cmd: Arc::new(cmd) }
    }

    pub(super) async fn send<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        match self.cmd.query_async(connection).await {
            Err(error) if error.kind() == Kind::Server(ServerErrorKind::NoScript) => {
                self.code.load_async(connection).await?;
                self.cmd.query_async(connection).await
            }
            answer => answer,
        }
    }
}
