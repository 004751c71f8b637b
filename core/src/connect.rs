//! From a URL to a locker. A new backend is one arm here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    backend::Backend,
    error::{Error, ErrorKind, Result},
    locker::{Locker, Parts},
    options::{DEFAULT_TTL, check_metadata, check_ttl},
    rt::Runtime,
    transport::TokenSource,
};

mod schemes;

use schemes::{feature_of, forms};

/// Connects to where locks live.
///
/// | URL | where |
/// | --- | --- |
/// | `memory:` or `memory:NAME` | the memory of this process |
/// | `etcd://H1,H2,H3/PREFIX`, `etcds://…` with TLS | etcd; `USER:PASSWORD@` before the hosts, or the password in `$WINDLASS_PASSWORD`; `?ca=FILE`, `?cert=FILE&key=FILE`; `?raw_names=true` for prefixes shared with others |
/// | `file:///DIR` | files of this machine; `?names=murmur3` for lockgate's old file names |
/// | `http://HOST:PORT/NAMESPACE`, `https://…` | a Windlass server, with the token in `$WINDLASS_TOKEN` or `$WINDLASS_TOKEN_FILE`; `?ca=FILE` trusts its certificates besides the system's, `?cert=FILE` shows ours |
/// | `redis://HOST:PORT/DB`, `rediss://…` with TLS, `redis+unix:///PATH`, `redis+sentinel://H1,H2,H3/NAME`, `redis+cluster://H1,H2,H3`, `redis+redlock://H1,H2,H3` | Redis or Valkey; credentials and files as for etcd, `?tls=true`; `?prefix=TEXT` and `?namespace=TEXT` before the names; `?min_replicas=N`; `?db=N` where the URL has no place for it |
/// | `k8s://NAMESPACE/leases`, `k8s://NAMESPACE/configmaps/NAME` | a Kubernetes cluster, as `kubectl` reaches it, or a pod its own: Lease objects, or the annotations of any object, which lockgate uses, too; `?context=NAME`, `?kubeconfig=FILE`, `?create=true`, `?qps=50` |
/// | `lockgate+http://HOST:PORT`, `lockgate+https://…` | lockgate's own server; `?ca=FILE` and `?cert=FILE` as for `http:` |
///
/// Every URL takes `?ttl=15s` (or `1500ms`, `2m`) and `?owner=TEXT`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
/// let locker = windlass::connect("memory:").await?;
/// # let _ = locker; Ok(()) }
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a URL or an option that is not known, with those that are; what the backend says.
#[cfg(any(feature = "native", target_family = "wasm"))]
pub async fn connect(url: &str) -> Result<Locker> {
    ConnectOptions::new().connect(url).await
}

/// Where locks live if nobody says: `$WINDLASS_URL`, else files of this user on this machine.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
/// let locker = windlass::connect(&windlass::default_url()?).await?;
/// # let _ = locker; Ok(()) }
/// ```
///
/// # Errors
/// [`ErrorKind::Denied`] when the directory of this user is not safe to use; [`ErrorKind::InvalidInput`] when
/// `$WINDLASS_URL` is not UTF-8.
#[cfg(all(feature = "file", not(target_family = "wasm")))]
pub fn default_url() -> Result<String> {
    if let Some(url) = from_environment("WINDLASS_URL")? {
        return Ok(url);
    }
    let directory = crate::backend::file::default_dir()?;
    Ok(format!("file://{}", percent_encode(directory.as_os_str().as_encoded_bytes())))
}

/// A variable of the environment; `None` where it is not set, or empty.
#[cfg(all(
    any(feature = "etcd", feature = "file", feature = "http", feature = "redis"),
    not(target_family = "wasm")
))]
fn from_environment(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        // Never passed over: what was meant may be another place.
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(invalid(&format!("${name} is not UTF-8: set it as UTF-8 text")))
        }
    }
}

/// What applies to all locks of a locker.
///
/// ```
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
/// let options = windlass::ConnectOptions::new().ttl(Duration::from_secs(15)).owner("nightly job");
/// let locker = options.connect("memory:options-docs").await?;
/// # let _ = locker; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    ttl: Option<Duration>,
    owner: Option<String>,
    metadata: BTreeMap<String, String>,
    rt: Option<Arc<dyn Runtime>>,
    token: Option<TokenSource>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self { ttl: None, owner: None, metadata: BTreeMap::new(), rt: None, token: None }
    }

    /// How long a granted claim lives without renewal: 1 s to 1 h, 10 s unless told otherwise here or in the URL.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Who asks, for people to see: `user@host:pid` unless told otherwise.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Something more about the program for people to see; 2 KiB in all at the most.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The bearer token for an `http(s)` URL. Unless told otherwise: `$WINDLASS_TOKEN`, else what is in the file
    /// `$WINDLASS_TOKEN_FILE`, which is read again whenever its token is refused.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        self.token_source(TokenSource::fixed(token))
    }

    /// Where the bearer token for an `http(s)` URL comes from, for tokens that end: the source is asked for one when there is
    /// none yet, and again when the server refuses the one there is.
    ///
    /// ```
    /// # use std::io;
    /// # async fn fresh() -> io::Result<String> { Ok("token".into()) }
    /// use windlass::{ConnectOptions, transport::TokenSource};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> windlass::Result<()> {
    /// let options = ConnectOptions::new().token_source(TokenSource::new(|| fresh()));
    /// let locker = options.connect("http://127.0.0.1:7420/team-a").await?;
    /// # let _ = locker; Ok(()) }
    /// ```
    #[must_use]
    pub fn token_source(mut self, source: TokenSource) -> Self {
        self.token = Some(source);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// As for [`connect`](crate::connect).
    pub async fn connect(self, url: &str) -> Result<Locker> {
        let rt = match self.rt {
            Some(rt) => rt,
            None => this_host()?,
        };
        let mut address = Address::parse(url)?;
        let ttl = match (self.ttl, address.option("ttl")) {
            (Some(ttl), _) => ttl,
            (None, Some(text)) => parse_duration(&text).ok_or_else(|| {
                invalid(&format!("ttl={text} is no duration: write it as 15s, 1500ms or 2m"))
            })?,
            (None, None) => DEFAULT_TTL,
        };
        check_ttl(ttl)?;
        check_metadata(&self.metadata)?;
        let owner = self.owner.or(address.option("owner"));
        let open = opener(address, self.token.as_ref(), rt.clone())?;
        let locker = Locker::new(Parts { rt, open, ttl, owner, metadata: self.metadata });
        // Opens the backend now, so that what is wrong with it is said here.
        locker.session()?;
        Ok(locker)
    }
}

/// Opens the bare backend of a URL, without a locker's policy over it: for servers, and for the tests of backends.
///
/// # Errors
/// As for [`connect`](crate::connect); `ttl` and `owner` are a locker's and not known here.
pub fn open_backend(url: &str, rt: Arc<dyn Runtime>) -> Result<Arc<dyn Backend>> {
    rt.start()?;
    opener(Address::parse(url)?, None, rt)?()
}

/// Says what a URL leads to, and opens nothing: that would make directories.
#[cfg(fuzzing)]
pub fn fuzz(url: &str) -> Result<()> {
    opener(Address::parse(url)?, None, Arc::new(crate::rt::Native)).map(drop)
}

type Open = Box<dyn Fn() -> Result<Arc<dyn Backend>> + Send + Sync>;

/// How to open the backend of a scheme, now and again in a child of `fork`.
#[allow(clippy::needless_pass_by_value, reason = "which of them is kept depends on the features")]
fn opener(address: Address, token: Option<&TokenSource>, rt: Arc<dyn Runtime>) -> Result<Open> {
    if token.is_some() && !matches!(address.scheme.as_str(), "http" | "https") {
        let scheme = &address.scheme;
        return Err(invalid(&format!("a token is for http: and https:, and \"{scheme}:\" asks for none")));
    }
    match address.scheme.as_str() {
        // A page that has a server has no use for it, and would download the whole table of locks.
        #[cfg(not(all(feature = "http", target_family = "wasm")))]
        "memory" => {
            address.no_more_options(&[])?;
            Ok(Box::new(move || {
                Ok(Arc::new(crate::backend::memory::Memory::named(&address.rest, rt.clone())))
            }))
        }
        #[cfg(all(feature = "etcd", not(target_family = "wasm")))]
        "etcd" | "etcds" => {
            use crate::backend::etcd::{
                EtcdBackend,
                address::{self, FORM, PORT},
            };
            let mut address = address;
            let tls = address.tls_files(address.scheme == "etcds", "etcds")?;
            let raw_names = address.truth("raw_names")?;
            address.no_more_options(&["ca", "cert", "key", "tls", "raw_names"])?;
            let there = address::Address::new(address.authority(PORT, FORM)?, tls);
            Ok(Box::new(move || Ok(Arc::new(EtcdBackend::new(there.clone(), raw_names, rt.clone())?))))
        }
        #[cfg(all(feature = "redis", not(target_family = "wasm")))]
        scheme if crate::backend::redis::address::is_scheme(scheme) => {
            use crate::backend::redis::{self, address::Settings};
            let mut address = address;
            let secure = address.scheme.starts_with("rediss");
            let tls = address.tls_files(secure, "rediss")?;
            let min_replicas = address.number("min_replicas")?;
            let (prefix, namespace) = (address.option("prefix"), address.option("namespace"));
            let db = address.number("db")?;
            let known = ["ca", "cert", "key", "tls", "db", "prefix", "namespace", "min_replicas"];
            address.no_more_options(&known)?;
            let settings = Settings { tls, prefix, namespace, db, min_replicas };
            let password = from_environment("WINDLASS_PASSWORD")?;
            let there = redis::address::Address::parse(
                &address.scheme,
                &address.rest,
                percent_decode,
                password,
                settings,
            )?;
            Ok(Box::new(move || redis::open(there.clone(), rt.clone())))
        }
        #[cfg(all(feature = "file", not(target_family = "wasm")))]
        "file" => {
            use crate::backend::file::{FileBackend, Naming};
            let mut address = address;
            let naming = match address.option("names").as_deref() {
                None | Some("sha256") => Naming::Sha256,
                Some("murmur3") => Naming::Murmur3,
                Some(other) => {
                    return Err(invalid(&format!("names={other} is not known: sha256 or murmur3")));
                }
            };
            address.no_more_options(&["names"])?;
            let directory = address.path()?;
            Ok(Box::new(move || Ok(Arc::new(FileBackend::open(&directory, naming, rt.clone())?))))
        }
        #[cfg(all(feature = "http", not(target_family = "wasm")))]
        "http" | "https" => {
            use crate::{
                backend::http::HttpBackend,
                transport::{Authorized, Native, Transport},
            };
            let mut address = address;
            let tls = tls_of(&mut address)?;
            let token = match token {
                Some(token) => Some(token.clone()),
                None => token_of_this_process()?,
            };
            let url = format!("{}:{}", address.scheme, address.rest);
            Ok(Box::new(move || {
                let native: Arc<dyn Transport> = Arc::new(Native::new(&url, &tls, rt.clone())?);
                let transport = match token.clone() {
                    Some(token) => Arc::new(Authorized::new(native, token, rt.clone())),
                    None => native,
                };
                Ok(Arc::new(HttpBackend::new(&url, transport, rt.clone())?))
            }))
        }
        #[cfg(all(feature = "http", target_family = "wasm", target_os = "unknown"))]
        "http" | "https" => {
            use crate::{
                backend::http::HttpBackend,
                transport::{Authorized, Transport, Web},
            };
            address.no_more_options(&[])?;
            let Address { scheme, rest, .. } = address;
            let url = format!("{scheme}:{rest}");
            let token = token.cloned();
            Ok(Box::new(move || {
                let transport: Arc<dyn Transport> = match token.clone() {
                    Some(token) => Arc::new(Authorized::new(Arc::new(Web), token, rt.clone())),
                    None => Arc::new(Web),
                };
                Ok(Arc::new(HttpBackend::new(&url, transport, rt.clone())?.with_few_connections()))
            }))
        }
        #[cfg(all(feature = "kubernetes", not(target_family = "wasm")))]
        "k8s" => {
            use crate::backend::kubernetes::{KubernetesBackend, address};
            let mut address = address;
            let [kubeconfig, context] = ["kubeconfig", "context"].map(|key| address.option(key));
            let (create, qps) = (address.truth("create")?, address.number("qps")?);
            address.no_more_options(&["kubeconfig", "context", "create", "qps"])?;
            let cluster = address::Cluster { kubeconfig: kubeconfig.map(Into::into), context };
            let settings = address::Settings { cluster, create, qps };
            let there = address::Address::parse(&address.rest, percent_decode, settings)?;
            Ok(Box::new(move || Ok(Arc::new(KubernetesBackend::new(there.clone(), &rt)?))))
        }
        #[cfg(all(feature = "lockgate", not(target_family = "wasm")))]
        "lockgate+http" | "lockgate+https" => {
            use crate::{backend::lockgate::LockgateBackend, transport};
            let mut address = address;
            let tls = tls_of(&mut address)?;
            let url = format!("{}:{}", address.scheme, address.rest);
            Ok(Box::new(move || {
                let transport = Arc::new(transport::Native::new(&url, &tls, rt.clone())?);
                Ok(Arc::new(LockgateBackend::new(&url, transport, rt.clone())?))
            }))
        }
        other => Err(invalid(&match feature_of(other) {
            Some(feature) => {
                format!("\"{other}:\" is not in this build: the feature `{feature}` of the crate brings it")
            }
            None => format!("\"{other}:\" is not a known place for locks: use {}", forms()),
        })),
    }
}

/// What the environment says.
#[cfg(all(feature = "http", not(target_family = "wasm")))]
fn token_of_this_process() -> Result<Option<TokenSource>> {
    if let Some(token) = from_environment("WINDLASS_TOKEN")? {
        return Ok(Some(TokenSource::fixed(token)));
    }
    Ok(from_environment("WINDLASS_TOKEN_FILE")?.map(TokenSource::file))
}

/// What the options of a URL say of TLS.
#[cfg(all(feature = "http", not(target_family = "wasm")))]
fn tls_of(address: &mut Address) -> Result<crate::transport::Tls> {
    let (ca, identity) = (address.option("ca"), address.option("cert"));
    address.no_more_options(&["ca", "cert"])?;
    Ok(crate::transport::Tls { ca: ca.map(Into::into), identity: identity.map(Into::into) })
}

#[cfg(all(feature = "native", not(target_family = "wasm")))]
fn this_host() -> Result<Arc<dyn Runtime>> {
    Ok(Arc::new(crate::rt::Native))
}

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
fn this_host() -> Result<Arc<dyn Runtime>> {
    Ok(Arc::new(crate::rt::Web))
}

#[cfg(not(any(
    all(feature = "native", not(target_family = "wasm")),
    all(target_family = "wasm", target_os = "unknown")
)))]
fn this_host() -> Result<Arc<dyn Runtime>> {
    Err(invalid(
        "this build has no runtime of its own: enable the feature `native`, or give one with `runtime`",
    ))
}

/// A URL in parts: `scheme:rest?options`.
#[derive(Debug)]
struct Address {
    scheme: String,
    rest: String,
    options: Vec<(String, String)>,
}

impl Address {
    fn parse(url: &str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(invalid(&format!(
                "\"{}\" is not a URL: use {}",
                url.chars().take(40).collect::<String>().escape_debug(),
                forms()
            )));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.push((percent_decode(key)?, percent_decode(value)?));
        }
        Ok(Self { scheme: scheme.to_ascii_lowercase(), rest: rest.to_owned(), options })
    }

    /// The last one of this name counts.
    fn option(&mut self, key: &str) -> Option<String> {
        self.options.extract_if(.., |(name, _)| name == key).last().map(|(_, value)| value)
    }

    /// Who goes where; a password that is not written there is that of this process.
    #[cfg(all(feature = "etcd", not(target_family = "wasm")))]
    fn authority(&self, port: u16, form: &str) -> Result<crate::authority::Authority> {
        let password = from_environment("WINDLASS_PASSWORD")?;
        crate::authority::Authority::parse(&self.rest, port, percent_decode, password, form)
    }

    /// What the options say of TLS, where it is wanted: by the scheme `secure`, or by `tls=true`.
    #[cfg(all(any(feature = "etcd", feature = "redis"), not(target_family = "wasm")))]
    fn tls_files(&mut self, by_scheme: bool, secure: &str) -> Result<Option<crate::authority::TlsFiles>> {
        let [ca, cert, key] = ["ca", "cert", "key"].map(|file| self.option(file).map(Into::into));
        if self.truth("tls")? || by_scheme {
            return Ok(Some(crate::authority::TlsFiles { ca, cert, key }));
        }
        if [&ca, &cert, &key].iter().any(|file: &&Option<std::path::PathBuf>| file.is_some()) {
            return Err(invalid(&format!("ca=, cert= and key= are for TLS: write {secure}://, or tls=true")));
        }
        Ok(None)
    }

    #[cfg(all(any(feature = "kubernetes", feature = "redis"), not(target_family = "wasm")))]
    fn number(&mut self, key: &str) -> Result<Option<u32>> {
        let Some(text) = self.option(key) else { return Ok(None) };
        let number = text.parse().map_err(|_| invalid(&format!("{key}={text} is no whole number")))?;
        Ok(Some(number))
    }

    #[cfg(all(
        any(feature = "etcd", feature = "kubernetes", feature = "redis"),
        not(target_family = "wasm")
    ))]
    fn truth(&mut self, key: &str) -> Result<bool> {
        match self.option(key).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(invalid(&format!("{key}={other} is not known: true or false"))),
        }
    }

    fn no_more_options(&self, known: &[&str]) -> Result<()> {
        let Some((unknown, _)) = self.options.first() else { return Ok(()) };
        let known: Vec<&str> = ["ttl", "owner"].iter().chain(known).copied().collect();
        Err(invalid(&format!(
            "the option \"{unknown}\" is not known: {}: takes {}",
            self.scheme,
            known.join(", ")
        )))
    }

    /// The path of a `file:` URL: `file:///abs`, `file:/abs` or `file:relative`.
    #[cfg(all(feature = "file", not(target_family = "wasm")))]
    fn path(&self) -> Result<std::path::PathBuf> {
        let path = match self.rest.strip_prefix("//") {
            Some(local) if local.starts_with('/') => local,
            Some(local) if local.starts_with("localhost/") => &local["localhost".len()..],
            Some(host) => {
                let host = host.split('/').next().unwrap_or_default();
                return Err(invalid(&format!(
                    "file: URLs are of this machine, not of \"{host}\": write file:///DIR with three slashes"
                )));
            }
            None => &self.rest,
        };
        if path.is_empty() {
            return Err(invalid("the directory is missing: write file:///DIR"));
        }
        path_of(percent_decode_bytes(path)?)
    }
}

/// `15s`, `1500ms`, `2m`, `1h`, or plain seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let unit = match &text[unit_at..] {
        "ms" => Duration::from_millis(1),
        "" | "s" => Duration::from_secs(1),
        "m" | "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    let (whole, fraction) = text[..unit_at].split_once('.').unwrap_or((&text[..unit_at], ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Tenths, hundredths and so on; what is finer than anybody means is left out.
    let digits = fraction.bytes().take(9).zip(1..);
    let parts: Duration =
        digits.map(|(digit, place)| unit * u32::from(digit - b'0') / 10_u32.pow(place)).sum();
    unit.checked_mul(whole)?.checked_add(parts)
}

fn percent_decode(text: &str) -> Result<String> {
    String::from_utf8(percent_decode_bytes(text)?).map_err(|_| invalid("the URL does not decode to UTF-8"))
}

fn percent_decode_bytes(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
                return Err(invalid(
                    "a % in a URL is followed by two hexadecimal digits; write %25 for the sign itself",
                ));
            };
            bytes.push(byte);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    Ok(bytes)
}

/// A path, which need not be UTF-8 where the system does not want it to be.
#[cfg(all(feature = "file", not(target_family = "wasm")))]
fn path_of(bytes: Vec<u8>) -> Result<std::path::PathBuf> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Ok(std::ffi::OsString::from_vec(bytes).into())
    }
    #[cfg(not(unix))]
    String::from_utf8(bytes).map(Into::into).map_err(|_| invalid("the URL does not decode to UTF-8"))
}

/// A path for a URL: `%` and `?` would be read as something else, and what is not ASCII may not be UTF-8.
#[cfg(all(feature = "file", not(target_family = "wasm")))]
fn percent_encode(path: &[u8]) -> String {
    path.iter().fold(String::with_capacity(path.len()), |mut url, &byte| {
        if byte.is_ascii() && !byte.is_ascii_control() && !b"%?".contains(&byte) {
            url.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = std::fmt::Write::write_fmt(&mut url, format_args!("%{byte:02X}"));
        }
        url
    })
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        let millis = |text| parse_duration(text).map(|duration| duration.as_millis());
        let read = ["15s", "1500ms", "2m", "1h", "3", "0.25", "1.5min", ".5s", "5.s"].map(millis);
        assert_eq!(
            read.map(Option::unwrap),
            [15_000, 1_500, 120_000, 3_600_000, 3_000, 250, 90_000, 500, 5_000]
        );
        for wrong in [
            "",
            "s",
            ".",
            "-1s",
            "1d",
            "1.2.3",
            "1 s",
            "0x1",
            "1e3",
            "NaN",
            "inf",
            "99999999999h",
            "\u{661}s",
        ] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
