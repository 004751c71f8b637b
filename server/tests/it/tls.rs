//! TLS, and clients that show certificates.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use windlass::ErrorKind;
use windlass_server::{Deadlines, ServerOptions, Tls};

use crate::kit::{Answer, SOON, acquire, id, over, request, serve, serve_file, tokens};

/// A folder with an authority, and certificates that it signed.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    /// Writes `NAME.pem` with a certificate and its key.
    fn sign(&self, name: &str) -> std::path::PathBuf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = self.folder.path().join(format!("{name}.pem"));
        fs::write(&path, certificate.pem() + &key.serialize_pem()).unwrap();
        path
    }

    fn tls(&self, with_clients: bool) -> Option<Tls> {
        let server = self.sign("server");
        let client_ca = with_clients.then(|| self.folder.path().join("ca.pem"));
        Some(Tls { certificate: server.clone(), key: server, client_ca })
    }

    async fn connect(
        &self,
        address: SocketAddr,
        identity: Option<&Path>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let chain = CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(path).unwrap()).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
    }

    /// Asks for a lock; `None` when the connection is refused.
    async fn ask(
        &self,
        address: SocketAddr,
        identity: Option<&Path>,
        fields: &[(&str, &str)],
    ) -> Option<Answer> {
        let mut stream = self.connect(address, identity).await.ok()?;
        let body = acquire(&id(), &id());
        Answer::of(&over(&mut stream, request("POST", "/v1/a/acquire", fields, &body)).await)
    }
}

#[tokio::test]
async fn requests_come_by_tls_only() {
    let authority = Authority::new();
    let address = serve(ServerOptions { tls: authority.tls(false), ..ServerOptions::default() }).await;
    assert_eq!(authority.ask(address, None, &[]).await.unwrap().status, 200);
    assert!(Answer::of(&crate::kit::raw(address, request("GET", "/healthz", &[], "")).await).is_none());
}

/// Nobody tries again what will never do.
#[tokio::test]
async fn a_certificate_that_nobody_trusts_ends_an_acquire() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = serve(ServerOptions { tls: authority.tls(false), ..ServerOptions::default() }).await;
    let locker = async |trusted: &Authority| {
        let ca = trusted.folder.path().join("ca.pem");
        let url = format!("https://localhost:{}/a?ca={}", address.port(), ca.display());
        windlass::connect(&url).await.unwrap()
    };
    locker(&authority).await.lock("lock").await.unwrap().release().await.unwrap();
    let error = locker(&other).await.lock("lock").timeout(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn a_certificate_is_who_asks() {
    let (authority, other) = (Authority::new(), Authority::new());
    let options = ServerOptions { tls: authority.tls(true), ..ServerOptions::default() };
    let address = serve(options).await;
    let client = authority.sign("build-7");
    assert_eq!(authority.ask(address, Some(&client), &[]).await.unwrap().status, 200);
    assert!(authority.ask(address, None, &[]).await.is_none());
    assert!(authority.ask(address, Some(&other.sign("build-7")), &[]).await.is_none());
}

#[tokio::test]
async fn a_file_says_what_certificates_may() {
    let authority = Authority::new();
    let lines = "cert:build-7 build-7 acquire a/*\ncert:build-8 build-8 acquire b/*\n\
                 token-of-the-operator-1 operator all */*\n";
    let address = serve(ServerOptions { tls: authority.tls(true), ..tokens(lines) }).await;
    let ask =
        async |name: &str| authority.ask(address, Some(&authority.sign(name)), &[]).await.unwrap().status;
    assert_eq!((ask("build-7").await, ask("build-8").await, ask("build-9").await), (200, 403, 401));
    let bearer = [("Authorization", "Bearer token-of-the-operator-1")];
    assert_eq!(authority.ask(address, None, &bearer).await.unwrap().status, 200);
    assert_eq!(authority.ask(address, None, &[]).await.unwrap().status, 401);
}

/// Also on a connection that was opened when it was still there.
#[tokio::test]
async fn a_certificate_that_is_taken_out_of_the_file_is_good_for_nothing() {
    let authority = Authority::new();
    let (address, file) =
        serve_file("cert:build-7 build-7 acquire a/*\n", |options| options.tls = authority.tls(true)).await;
    let mut stream = authority.connect(address, Some(&authority.sign("build-7"))).await.unwrap();
    let mut status = async || {
        stream.write_all(b"GET /v1 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut read = [0; 4096];
        let count = timeout(SOON, stream.read(&mut read)).await.unwrap().unwrap();
        Answer::of(&String::from_utf8_lossy(&read[..count])).map(|answer| answer.status)
    };
    assert_eq!(status().await, Some(200));
    fs::write(&file, "cert:build-8 build-8 acquire a/*\n").unwrap();
    let begun = std::time::Instant::now();
    loop {
        match status().await {
            Some(200) => assert!(begun.elapsed() < SOON),
            Some(401) => break,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_up() {
    let authority = Authority::new();
    let tls = authority.tls(false);
    let address = serve(ServerOptions { tls: tls.clone(), ..ServerOptions::default() }).await;
    let shown = async || {
        let stream = authority.connect(address, None).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = shown().await;
    // A broken file changes nothing.
    fs::write(&tls.unwrap().certificate, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(shown().await, before);
    authority.sign("server");
    let begun = std::time::Instant::now();
    while shown().await == before {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_handshake_that_is_not_finished() {
    let authority = Authority::new();
    let deadlines = Deadlines { handshake: Duration::from_secs(3), ..Deadlines::default() };
    let address =
        serve(ServerOptions { tls: authority.tls(false), deadlines, ..ServerOptions::default() }).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut all = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut all)).await.expect("the server closes");
    assert!(authority.ask(address, None, &[]).await.is_some());
}
