//! Where a request comes from and where it wants to go, by its head alone: pure.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderValue, Version, header, request::Parts, uri::Authority};
use base64::{Engine, prelude::BASE64_STANDARD};
use windlass::{Error, ErrorKind, protocol::DEFAULT_NAMESPACE};

use crate::answer::{Refusal, invalid};

/// By which names the server may be called, and which pages may ask.
#[derive(Debug)]
pub(crate) struct Sites {
    names: Vec<String>,
    /// Every name will do.
    any: bool,
    listen: IpAddr,
    origins: Vec<String>,
    /// The server's own pages may ask.
    own: bool,
}

impl Sites {
    /// Of a server that listens there. `asks_who` says that everybody has to show who they are.
    pub(crate) fn new(hosts: &[String], origins: &[String], listen: SocketAddr, asks_who: bool) -> Self {
        let any = hosts.iter().any(|host| host == "*");
        let lower = |texts: &[String]| -> Vec<String> {
            texts.iter().map(|text| text.trim_end_matches('/').to_ascii_lowercase()).collect()
        };
        // Where every name will do, a page of another site can be made to look like the server's own.
        Self { names: lower(hosts), any, listen: listen.ip(), origins: lower(origins), own: !any || asks_who }
    }

    /// The origin to name in the answer, if there is one.
    pub(crate) fn check(&self, parts: &Parts) -> Result<Option<HeaderValue>, Refusal> {
        let host = self.host(parts)?;
        let mut origins = parts.headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(None) };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let is_own = || {
            let site = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
            self.own && site.is_some() && site == host.map(str::to_ascii_lowercase).as_deref()
        };
        if origins.next().is_none() && (self.origins.contains(&text) || is_own()) {
            return Ok(Some(origin.clone()));
        }
        let message = "pages of this origin may not ask this server: its operator can allow it with --origin";
        Err(Error::new(ErrorKind::Denied, message).into())
    }

    /// Host and port, as the request says them.
    fn host<'a>(&self, parts: &'a Parts) -> Result<Option<&'a str>, Refusal> {
        let mut fields = parts.headers.get_all(header::HOST).iter();
        let text = match (parts.uri.authority(), fields.next(), fields.next()) {
            (_, _, Some(_)) => return Err(invalid("a request has one Host").into()),
            (Some(authority), ..) => authority.as_str(),
            (None, Some(field), None) => field.to_str().map_err(|_| invalid("Host is no name"))?,
            // No browser is that old.
            (None, None, None) if parts.version < Version::HTTP_11 => return Ok(None),
            (None, None, None) => return Err(invalid("Host is missing").into()),
        };
        if self.is_called(text) {
            return Ok(Some(text));
        }
        let message = "this server does not go by the name in Host: its operator can allow it with --host";
        Err(Error::new(ErrorKind::Denied, message).into())
    }

    fn is_called(&self, host_and_port: &str) -> bool {
        if self.any {
            return true;
        }
        let Some((host, bare)) = split(host_and_port) else { return false };
        if let Ok(address) = bare.parse::<IpAddr>() {
            // An address cannot be made to point elsewhere, as a name can.
            let ours = address == self.listen || self.listen.is_unspecified() || address.is_loopback();
            return ours || self.names.iter().any(|name| name == host || name == bare);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        host.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// Host without port; and without the brackets of IPv6.
fn split(text: &str) -> Option<(&str, &str)> {
    // Names are compared as they are: what looks odd is no name of ours.
    if let Some(rest) = text.strip_prefix('[') {
        let (bare, _) = rest.split_once(']')?;
        return Some((&text[..bare.len() + 2], bare));
    }
    text.parse::<Authority>().ok()?;
    let host = text.split_once(':').map_or(text, |(host, _)| host);
    Some((host, host))
}

/// Who a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection<'a> {
    /// Everybody: it says nothing about locks.
    Open,
    /// Those who are known; the route looks what they may do.
    Known,
    /// Those who may acquire every lock of this namespace; `None`: of a namespace that is not said plainly. The protocols of
    /// lockgate and werf know of no finer rights.
    Whole(Option<&'a str>),
}

/// What a path needs.
pub(crate) fn protection(path: &str) -> Protection<'_> {
    match path {
        "/" | "/page/style.css" | "/page/page.js" | "/page/stream.js" => return Protection::Open,
        "/healthz" | "/readyz" | "/health" | "/openapi.json" => return Protection::Open,
        "/acquire" | "/renew-lease" | "/release" => return Protection::Whole(Some(DEFAULT_NAMESPACE)),
        _ => {}
    }
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some("v1"), _) => Protection::Known,
        (Some(namespace), Some("locker")) if !namespace.contains('%') => Protection::Whole(Some(namespace)),
        // `%6cocker` is a locker, too.
        _ if path.contains('%') => Protection::Whole(None),
        _ => Protection::Known,
    }
}

/// The token in `Authorization`: `Bearer TOKEN`, or the password of `Basic`, which is how a URL says it to clients that know of
/// no tokens, such as lockgate's.
pub(super) fn token(credentials: &HeaderValue) -> Option<String> {
    let (scheme, rest) = credentials.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim_start();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(rest).ok()?).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// Looks at a head of such fields.
#[cfg(fuzzing)]
pub fn fuzz(host: &[u8], origin: &[u8], credentials: &[u8], path: &str) {
    const APP: &str = "https://app.example.com";
    let listen = SocketAddr::from(([10, 0, 0, 1], 7420));
    let sites = Sites::new(&["locks.example.com".to_owned()], &[APP.to_owned()], listen, false);
    let fields = [(header::HOST, host), (header::ORIGIN, origin), (header::AUTHORIZATION, credentials)];
    let mut request = axum::http::Request::new(());
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            request.headers_mut().insert(name, value);
        }
    }
    if let Some(credentials) = request.headers().get(header::AUTHORIZATION) {
        token(credentials);
    }
    let parts = request.into_parts().0;
    if let Ok(named) = sites.check(&parts) {
        let host = String::from_utf8(host.to_ascii_lowercase()).unwrap();
        assert!(!host.starts_with("evil"), "{host}");
        let Some(origin) = named else { return };
        let origin = origin.to_str().unwrap().to_ascii_lowercase();
        let own = [format!("http://{host}"), format!("https://{host}")];
        assert!(origin == APP || own.contains(&origin), "{origin} at {host}");
    }
    protection(path);
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn sites(hosts: &[&str], origins: &[&str], listen: &str) -> Sites {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Sites::new(&owned(hosts), &owned(origins), listen.parse().unwrap(), false)
    }

    fn ask(sites: &Sites, host: &str, origin: Option<&str>) -> Result<Option<String>, Refusal> {
        let mut request = Request::get("/v1").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let named = sites.check(&parts)?;
        Ok(named.map(|origin| origin.to_str().unwrap().to_owned()))
    }

    #[test]
    fn a_server_goes_by_its_own_names() {
        let ours = sites(&["locks.example.com"], &[], "10.0.0.1:7420");
        for host in
            ["localhost", "LOCALHOST:7420", "127.0.0.1", "[::1]:7420", "10.0.0.1:1", "locks.Example.com:80"]
        {
            assert!(ask(&ours, host, None).is_ok(), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "10.0.0.2", "", "a@localhost", "[::2]", "locks"]
        {
            assert!(ask(&ours, host, None).is_err(), "{host}");
        }
        assert!(ask(&sites(&["*"], &[], "10.0.0.1:1"), "anything", None).is_ok());
        let open = sites(&[], &[], "0.0.0.0:7420");
        assert!(ask(&open, "10.9.9.9", None).is_ok() && ask(&open, "name", None).is_err());
        let two = Request::get("/").header("host", "localhost").header("host", "localhost");
        assert!(ours.check(&two.body(()).unwrap().into_parts().0).is_err());
        assert!(ours.check(&Request::get("/").body(()).unwrap().into_parts().0).is_err());
    }

    #[test]
    fn pages_from_elsewhere_may_not_ask() {
        let ours = sites(&[], &["https://app.example.com/"], "127.0.0.1:7420");
        let check = |host, origin| ask(&ours, host, Some(origin));
        assert_eq!(
            check("localhost:7420", "https://app.example.com").ok().flatten().as_deref(),
            Some("https://app.example.com")
        );
        assert!(check("localhost:7420", "http://localhost:7420").is_ok());
        for origin in [
            "null",
            "https://evil.example",
            "http://localhost:3000",
            "https://app.example.com.evil.example",
            "",
        ] {
            assert!(check("localhost:7420", origin).is_err(), "{origin}");
        }
        // A name that was made to point here looks like its own.
        assert!(check("evil.example:7420", "http://evil.example:7420").is_err());
        let any = sites(&["*"], &[], "127.0.0.1:7420");
        assert!(ask(&any, "evil.example", Some("http://evil.example")).is_err());
    }

    #[test]
    fn paths_of_other_protocols_need_a_whole_namespace() {
        assert_eq!(protection("/healthz"), Protection::Open);
        assert_eq!(protection("/v1/a%2fb/acquire"), Protection::Known);
        assert_eq!(protection("/acquire"), Protection::Whole(Some("default")));
        assert_eq!(protection("/client-1/locker/acquire"), Protection::Whole(Some("client-1")));
        assert_eq!(protection("/client-1/%6cocker/acquire"), Protection::Whole(None));
        assert_eq!(protection("/%61cquire"), Protection::Whole(None));
    }

    #[test]
    fn tokens_come_in_one_header() {
        let token = |text| token(&HeaderValue::from_static(text));
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("basic eDphYmM=").as_deref(), Some("abc"));
        assert!(token("abc").is_none() && token("Basic ???").is_none() && token("Digest abc").is_none());
    }
}
