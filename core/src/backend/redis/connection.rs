//! A connection to a server or a cluster, whichever it is.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, RedisResult, Value,
    aio::MultiplexedConnection,
    cluster_async::ClusterConnection,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
    io::tcp::TcpSettings,
};

use super::{link::ANSWER_WITHIN, scripts::Call};

/// How long a connection may take: shorter than a try of a renewal with the default TTL.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);

#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(Box<ClusterConnection>),
}

impl Connection {
    pub(super) async fn subscribe(self, channel: String) -> RedisResult<()> {
        match self {
            Self::One(mut connection) => connection.subscribe(channel).await,
            Self::Cluster(mut connection) => connection.subscribe(channel).await,
        }
    }

    /// The servers that have keys: of a cluster its masters.
    pub(super) async fn servers(self) -> RedisResult<Vec<Option<(String, u16)>>> {
        let Self::Cluster(mut connection) = self else { return Ok(vec![None]) };
        let slots: Vec<Vec<Value>> =
            redis::cmd("CLUSTER").arg("SLOTS").query_async(connection.as_mut()).await?;
        let mut servers = Vec::new();
        for slots in slots {
            // From, to, the master, the replicas; each with more behind that than is needed here.
            let Some(Value::Array(master)) = slots.into_iter().nth(2) else { continue };
            let mut words = master.into_iter();
            if let (Some(host), Some(port)) = (words.next(), words.next()) {
                let host = String::from_redis_value(host)?;
                // One that has never met another does not know its own name.
                let server = if host.is_empty() { None } else { Some((host, u16::from_redis_value(port)?)) };
                if !servers.contains(&server) {
                    servers.push(server);
                }
            }
        }
        Ok(servers)
    }

    /// Runs a script of ours.
    pub(super) async fn run<T: FromRedisValue>(mut self, call: &Call) -> RedisResult<T> {
        match &mut self {
            Self::One(connection) => call.send(connection).await,
            Self::Cluster(connection) => call.send(connection.as_mut()).await,
        }
    }

    /// Asks this server of the cluster, or the one that there is.
    pub(super) async fn at<T: FromRedisValue>(
        self,
        server: Option<(String, u16)>,
        cmd: Cmd,
    ) -> RedisResult<T> {
        match (self, server) {
            (Self::Cluster(mut connection), Some((host, port))) => {
                let there = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
                Ok(T::from_redis_value(connection.route_command(cmd, there).await?)?)
            }
            (Self::Cluster(mut connection), None) => cmd.query_async(connection.as_mut()).await,
            (Self::One(mut connection), _) => cmd.query_async(&mut connection).await,
        }
    }
}

/// Of a connection to one server. How long an answer may take is said where it is asked for.
pub(super) fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_WITHIN)).set_response_timeout(None)
}

/// What is small is not held back until what was sent before has arrived.
///
/// A machine that is gone says nothing, and a cluster's client would ask it until the kernel gives up, a quarter of an hour, though
/// another one has its place.
pub(super) fn at_once() -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(any(target_os = "android", target_os = "linux"))]
    let settings = settings.set_user_timeout(ANSWER_WITHIN);
    settings
}
