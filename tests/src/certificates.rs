//! Certificates for servers and clients of a test, of an authority of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// An authority, and what it has signed, in files.
#[derive(Debug)]
pub struct Authority {
    ca: PathBuf,
    certificates: Vec<(&'static str, PathBuf)>,
}

impl Authority {
    /// In a new folder, with a certificate for `server`, which is this machine, and one for `app`, a client.
    pub fn new(folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = folder.join("ca.pem");
        fs::write(&ca, issuer.pem()).unwrap();
        let certificates = ["server", "app"].map(|name| {
            let key = KeyPair::generate().unwrap();
            let mut params =
                CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let path = folder.join(format!("{name}.pem"));
            fs::write(&path, certificate.pem() + &key.serialize_pem()).unwrap();
            (name, path)
        });
        Self { ca, certificates: certificates.into() }
    }

    /// The file with the authority's own certificate.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// The file with a certificate and its key.
    pub fn certificate(&self, name: &str) -> &Path {
        &self.certificates.iter().find(|(known, _)| *known == name).expect("one that there is").1
    }
}
