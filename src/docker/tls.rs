//! TLS for sockets that other hosts can reach: both sides show a certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, Kind, Result};

/// Files in PEM, as the settings name them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Files {
    /// The plugin's certificate, and those between it and one that Docker trusts.
    cert: Option<PathBuf>,
    /// Its key.
    key: Option<PathBuf>,
    /// Who signs the certificates of those that may call.
    client_ca: Option<PathBuf>,
}

impl Files {
    /// What they say; `None` if there are none.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with the file; [`Kind::Unsupported`] on a processor that is too old.
    pub fn load(&self) -> Result<Option<Arc<ServerConfig>>> {
        let (cert, key, ca) = match (&self.cert, &self.key, &self.client_ca) {
            (None, None, None) => return Ok(None),
            (Some(cert), Some(key), Some(ca)) => (cert, key, ca),
            _ => {
                let what = "[tls]: cert, key and client-ca are for each other: all are needed";
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        if !graviola::util::is_cpu_supported() {
            let what = "[tls]: needs a processor with AES, AVX2, BMI2 and ADX, or AES of ARM's";
            return Err(Error::new(Kind::Unsupported, what));
        }
        let provider = Arc::new(rustls_graviola::default_provider());
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|error| wrong(ca, error))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| wrong(ca, error))?;
        let chain = certificates(cert)?;
        let own = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_client_cert_verifier(verifier).with_single_cert(chain, own))
            .map(|config| Some(Arc::new(config)))
            .map_err(|error| wrong(cert, error))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match all.map_err(|error| wrong(path, error))? {
        none if none.is_empty() => {
            Err(Error::new(Kind::Invalid, format!("{}: no certificate in there", path.display())))
        }
        all => Ok(all),
    }
}

fn wrong(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Invalid, path.display().to_string()).with_source(error)
}
