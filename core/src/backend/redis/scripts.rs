//! The scripts that do the work in Redis; each is sent there when it is found missing.

use std::sync::{Arc, OnceLock};

use redis::{
    Arg, Cmd, ErrorKind as Kind, FromRedisValue, RedisResult, Script, ServerErrorKind, ToRedisArgs,
    aio::ConnectionLike,
};

/// Room for what is sent for one lock, so that it is got at once.
const USUAL_ARGS: usize = 20;
const USUAL_BYTES: usize = 512;

macro_rules! script {
    ($flags:literal, $($file:literal),*) => {
        Code {
            text: concat!(
                "#!lua",
                $flags,
                "\n",
                include_str!("scripts/head.lua"),
                $(include_str!(concat!("scripts/", $file))),*
            ),
            hash: OnceLock::new(),
        }
    };
}

pub(super) struct Code {
    text: &'static str,
    hash: OnceLock<String>,
}

impl Code {
    fn hash(&self) -> &str {
        self.hash.get_or_init(|| Script::new(self.text).get_hash().to_owned())
    }
}

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
        cmd.arg("EVALSHA").arg(code.hash()).arg(keys.len()).arg(keys).arg(args);
        Self { code, cmd: Arc::new(cmd) }
    }

    pub(super) async fn send<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        match self.cmd.query_async(connection).await {
            // Only the server that has the lock needs it; what loads it in a cluster wants all of them to be there.
            Err(error) if error.kind() == Kind::Server(ServerErrorKind::NoScript) => {
                self.with_code().query_async(connection).await
            }
            answer => answer,
        }
    }

    fn with_code(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(self.code.text);
        for arg in self.cmd.args_iter().skip(2) {
            if let Arg::Simple(arg) = arg {
                cmd.arg(arg);
            }
        }
        cmd
    }
}
