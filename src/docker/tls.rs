//! TLS for sockets that other hosts can reach: both sides show a certificate.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::files::failed;
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

/// What is shown to callers, and asked of them: what the files say now, as certificates are renewed under a plugin
/// that runs.
#[derive(Debug)]
pub struct Tls {
    files: [PathBuf; 3],
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    config: Arc<ServerConfig>,
    /// What the files were like.
    stamps: Stamps,
}

/// By what a file is known to be another one: device, inode, size, and time of its last change.
type Stamps = [Option<(u64, u64, u64, i64, i64)>; 3];

impl Files {
    /// What they say; `None` if there are none.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with the file; whatever keeps it from being read; [`Kind::Unsupported`] on a processor that
    /// is too old.
    pub fn load(&self) -> Result<Option<Arc<Tls>>> {
        let files = match (&self.cert, &self.key, &self.client_ca) {
            (None, None, None) => return Ok(None),
            (Some(cert), Some(key), Some(ca)) => [cert.clone(), key.clone(), ca.clone()],
            _ => {
                let what = "[tls]: cert, key and client-ca are for each other: all are needed";
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        let read = Mutex::new(Read::of(&files)?);
        Ok(Some(Arc::new(Tls { files, read })))
    }
}

impl Tls {
    /// What holds for a connection that begins now. Files that make no sense, or are just being replaced, leave it as
    /// it was.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != read.stamps {
            match Read::of(&self.files) {
                Ok(new) => {
                    tracing::info!("TLS: certificates were read again");
                    *read = new;
                }
                Err(error) => {
                    tracing::warn!(%error, "TLS: certificates have changed, and are not taken");
                    // Not said again before they change again. What could not be read may be readable the next time.
                    if error.kind() == Kind::Invalid {
                        read.stamps = stamps;
                    }
                }
            }
        }
        Arc::clone(&read.config)
    }
}

fn stamps(files: &[PathBuf; 3]) -> Stamps {
    files.each_ref().map(|file| {
        let it = std::fs::metadata(file).ok()?;
        Some((it.dev(), it.ino(), it.size(), it.mtime(), it.mtime_nsec()))
    })
}

impl Read {
    fn of(files: &[PathBuf; 3]) -> Result<Self> {
        // Before they are read: what changes in between is seen by the next to ask.
        let stamps = stamps(files);
        let [cert, key, ca] = files;
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
        let own = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(key, error))?;
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_client_cert_verifier(verifier).with_single_cert(chain, own))
            .map(|config| Self { config: Arc::new(config), stamps })
            .map_err(|error| wrong(cert, error))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<std::result::Result<Vec<_>, _>>();
    match all.map_err(|error| wrong(path, error))? {
        none if none.is_empty() => {
            Err(Error::new(Kind::Invalid, format!("{}: no certificate in there", path.display())))
        }
        all => Ok(all),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| failed(path, error))
}

fn wrong(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Invalid, path.display().to_string()).with_source(error)
}
