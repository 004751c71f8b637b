//! Where a server keeps its locks: in its own memory, or in a store that it shares with others.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use windlass::{
    Backend, Error, ErrorKind, Result,
    backend::Capabilities,
    open_backend,
    rt::{Native, Runtime},
};

use crate::{
    durable::{Durable, Found},
    elsewhere,
};

/// How long a shared store may take to say that it is there.
const IS_THERE: Duration = Duration::from_secs(2);

/// Where a server keeps its locks.
#[derive(Debug)]
pub struct Store {
    pub(crate) rt: Arc<dyn Runtime>,
    pub(crate) durable: Option<Durable>,
    pub(crate) found: Found,
    pub(crate) shared: Option<Shared>,
}

impl Store {
    /// In memory alone: when the server ends, so do the locks, and one that is started again at once may give them to
    /// others while their holders still believe in them. For tests.
    pub fn in_memory() -> Self {
        let rt = Arc::new(Native);
        let first_token = clock(&*rt);
        Self { rt, durable: None, found: Found { first_token, ..Found::default() }, shared: None }
    }

    /// In memory, with a directory for what outlives the server: after a clean stop everything, after any other end enough that
    /// no lock is given twice. Nothing is written for a single lock.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when another server uses the directory, [`ErrorKind::Storage`] when it cannot be
    /// used.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let rt = Arc::new(Native);
        let (durable, found) = Durable::open(directory, [rt.random(), rt.random()], clock(&*rt))?;
        Ok(Self { rt, durable: Some(durable), found, shared: None })
    }

    /// In the store that this URL leads to; the locks of a namespace are those of `URL/NAMESPACE`, or in Kubernetes those of the URL
    /// with the namespace for its `*`. The server keeps nothing, so there may be any number of them over one store. The store
    /// need not be there yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the URL makes no sense, or its locks are those of one process or machine.
    pub fn shared(url: &str) -> Result<Self> {
        let rt: Arc<dyn Runtime> = Arc::new(Native);
        let shared = Shared::new(url, rt.clone())?;
        Ok(Self { rt, durable: None, found: Found::default(), shared: Some(shared) })
    }

    /// How long it will grant nothing new, because the last server in its directory did not end cleanly.
    pub fn grace(&self) -> Option<Duration> {
        self.found.grace
    }
}

/// Tokens grow over restarts as the wall clock does (rule R14).
fn clock(rt: &dyn Runtime) -> u64 {
    u64::try_from(rt.now().wall.as_micros()).unwrap_or(u64::MAX / 2).max(1)
}

/// A store that other servers use, too.
pub(crate) struct Shared {
    url: StoreUrl,
    rt: Arc<dyn Runtime>,
    /// What the servers have to tell each other is here, and it is asked whether the store is there.
    servers: Arc<dyn Backend>,
}

/// It may have a password.
struct StoreUrl {
    /// Up to the options, without a slash at the end.
    place: String,
    /// With their question mark.
    options: String,
}

impl StoreUrl {
    fn new(url: &str) -> Self {
        let (place, options) = url.split_at(url.find('?').unwrap_or(url.len()));
        Self { place: place.trim_end_matches('/').to_owned(), options: options.to_owned() }
    }

    /// Whether an option of it says what the server says for each namespace.
    fn is_of_one_namespace(&self) -> bool {
        let mut options = self.options.trim_start_matches('?').split('&');
        self.place.starts_with("redis") && options.any(|option| option.starts_with("namespace="))
    }

    fn of(&self, namespace: &str) -> String {
        let Self { place, options } = self;
        // What follows the host is a number there, or another name.
        if place.starts_with("redis") {
            let and = if options.is_empty() { "?" } else { "&" };
            return format!("{place}{options}{and}namespace={namespace}");
        }
        // Where each namespace has an object of its own, the servers' own has a name that none could have.
        if place.starts_with("k8s:")
            && let Some((before, after)) = place.split_once('*')
        {
            if namespace == elsewhere::NAMESPACE {
                let cluster: Vec<&str> = place.splitn(4, '/').take(3).collect();
                return format!("{}/leases/{namespace}{options}", cluster.join("/"));
            }
            return format!("{before}{namespace}{after}{options}");
        }
        format!("{place}/{namespace}{options}")
    }
}

impl Shared {
    fn new(url: &str, rt: Arc<dyn Runtime>) -> Result<Self> {
        let url = StoreUrl::new(url);
        if url.is_of_one_namespace() {
            let message =
                "a store is of all namespaces: leave namespace= out, and keep stores apart by prefix=";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let servers = open_backend(&url.of(elsewhere::NAMESPACE), rt.clone())?;
        // Claims move between servers, and end by themselves when nobody renews them.
        if !servers.capabilities().hand_on_between_processes {
            let message =
                "servers cannot share locks that are of one process: name a store such as etcd://HOST/PREFIX";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_backend(servers.url()));
        }
        if !servers.capabilities().see {
            let message = "servers cannot share locks of which there is no list: name another store";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_backend(servers.url()));
        }
        Ok(Self { url, rt, servers })
    }

    /// A client of its own in the store, for the locks of a namespace.
    pub(crate) fn open(&self, namespace: &str) -> Result<Arc<dyn Backend>> {
        open_backend(&self.url.of(namespace), self.rt.clone())
    }

    /// The servers' own client in the store, and namespace.
    pub(crate) fn servers(&self) -> &dyn Backend {
        self.servers.as_ref()
    }

    /// What the store can promise.
    pub(crate) fn promises(&self) -> Capabilities {
        self.servers.capabilities()
    }

    /// Whether the store answers.
    pub(crate) async fn is_there(&self) -> Result<()> {
        let name = "is it there?".parse()?;
        match tokio::time::timeout(IS_THERE, self.servers.inspect_one(&name)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, "the store of the locks does not answer")
                .with_backend(self.servers.url())),
        }
    }
}

impl fmt::Debug for Shared {
    /// Without the URL, which may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.servers).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_goes_where_the_store_has_it() {
        for (store, of_team) in [
            ("etcd://a,b:2379", "etcd://a,b:2379/team"),
            ("etcd://a/locks/?user=x&ca=/y", "etcd://a/locks/team?user=x&ca=/y"),
            ("redis://a/1", "redis://a/1?namespace=team"),
            ("redis+cluster://a,b/?prefix=x:", "redis+cluster://a,b?prefix=x:&namespace=team"),
            ("k8s://locks/leases?context=x", "k8s://locks/leases/team?context=x"),
            ("k8s://werf/configmaps/werf-*?create=true", "k8s://werf/configmaps/werf-team?create=true"),
        ] {
            assert_eq!(StoreUrl::new(store).of("team"), of_team);
        }
        let error = Store::shared("redis://a/1?prefix=x:&namespace=prod").unwrap_err();
        assert!(error.to_string().contains("prefix="), "{error}");
        let werf = StoreUrl::new("k8s://werf/configmaps/werf-*?create=true");
        assert_eq!(werf.of(elsewhere::NAMESPACE), "k8s://werf/leases/.namespaces?create=true");
    }
}
