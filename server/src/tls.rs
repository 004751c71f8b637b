//! The server's certificate, and those of its clients.

use std::{
    fs,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use windlass::{Error, ErrorKind, Result};
use x509_cert::{Certificate, der::Decode};

use crate::options::Tls;

/// What is shown to clients, as the files say it now.
pub(crate) struct Certificates {
    files: Tls,
    /// Every client needs a certificate.
    required: bool,
    now: RwLock<(TlsAcceptor, Vec<Option<SystemTime>>)>,
}

impl Certificates {
    /// `required`: there are no tokens that a client without a certificate could show.
    pub(crate) fn new(files: Tls, required: bool) -> Result<Self> {
        // Before the files: a change in between is seen next time.
        let changed = changed(&files);
        let acceptor = acceptor(&files, required)?;
        Ok(Self { files, required, now: RwLock::new((acceptor, changed)) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.now.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Reads the files again if they have changed. Connections go on with what they began with.
    pub(crate) fn look_again(&self) -> Result<()> {
        let changed = changed(&self.files);
        if self.now.read().unwrap_or_else(PoisonError::into_inner).1 == changed {
            return Ok(());
        }
        let acceptor = acceptor(&self.files, self.required)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = (acceptor, changed);
        Ok(())
    }
}

fn changed(files: &Tls) -> Vec<Option<SystemTime>> {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    paths.into_iter().flatten().map(|path| modified(path)).collect()
}

fn acceptor(files: &Tls, required: bool) -> Result<TlsAcceptor> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.certificate, error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(path, error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unusable(&files.key, error))?;
    let mut config = builder
        .with_single_cert(certificates(&files.certificate)?, key)
        .map_err(|error| unusable(&files.certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| unusable(path, error))?;
    if certificates.is_empty() {
        let message = format!("{} has no certificate in PEM", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(certificates)
}

fn unusable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("cannot use {}: {error}", path.display())).with_source(error)
}

/// The subject of a certificate that was verified: its common name, or else all of it.
pub(crate) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let subject = certificate.tbs_certificate().subject();
    let common_name = subject.common_name().ok().flatten().map(|name| name.value().into_owned());
    Some(common_name.unwrap_or_else(|| subject.to_string()))
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}
