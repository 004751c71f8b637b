//! Who the master is, by those who watch it.

use std::pin::pin;

use redis::{Client, ConnectionAddr, IntoConnectionInfo};

use super::{
    address::{SENTINEL_PORT, split},
    connection::{CONNECT_WITHIN, config},
    link::Link,
    trouble::Trouble,
};
use crate::{error::ErrorKind, within::within};

impl Link {
    /// Asks the sentinels in turn who the master is.
    pub(super) async fn master(&self, sentinels: &[String], name: &str) -> Result<String, Trouble> {
        let mut last = None;
        for sentinel in sentinels {
            let (host, port) = split(sentinel)?;
            let ask = async {
                // They have users and passwords of their own, or none.
                let client = Client::open(ConnectionAddr::Tcp(host, port).into_connection_info()?)?;
                let mut sentinel = client.get_multiplexed_async_connection_with_config(&config()).await?;
                let mut ask = redis::cmd("SENTINEL");
                ask.arg("get-master-addr-by-name").arg(name);
                ask.query_async::<Option<(String, u16)>>(&mut sentinel).await
            };
            match within(&self.rt, Some(CONNECT_WITHIN), pin!(ask)).await {
                Some(Ok(Some((host, port)))) if host.contains(':') => return Ok(format!("[{host}]:{port}")),
                Some(Ok(Some((host, port)))) => return Ok(format!("{host}:{port}")),
                Some(Ok(None)) => {
                    let message =
                        format!("the sentinels know no master \"{name}\": look at their `sentinel monitor`");
                    return Err(Trouble::unavailable(message));
                }
                Some(Err(error)) if error.code() == Some("NOAUTH") => {
                    let message =
                        format!("{sentinel} wants a password, and Sentinels that do cannot be asked");
                    return Err(Trouble::new(ErrorKind::Unsupported, message));
                }
                Some(Err(error)) if error.detail().is_some_and(|said| said.contains("unknown command")) => {
                    let message =
                        format!("{sentinel} is no Sentinel: theirs is port {SENTINEL_PORT} unless told");
                    return Err(Trouble::new(ErrorKind::InvalidInput, message));
                }
                Some(Err(error)) => last = Some(Trouble::from(error)),
                None => last = Some(Trouble::silent()),
            }
        }
        Err(last.unwrap_or_else(Trouble::silent))
    }
}
