//! Requests and their answers, bounded in time and size.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, Url, redirect};
use serde_json::Value;

use super::LATE;
use super::answer::Answer;
use super::clouds::Cloud;
use super::secret::Secret;
use crate::error::{Error, Kind, Result};

/// The largest answer that is read: a page of 1,000 volumes has 1.5 MB.
const MAX_ANSWER: usize = 16 << 20;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a connection that nobody uses is kept. Servers close theirs after a minute or more.
const IDLE: Duration = Duration::from_secs(30);

/// Sends requests to the services of one cloud.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: Client,
    timeout: Duration,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// GET, POST, PUT or DELETE.
    pub(crate) method: Method,
    /// Where to.
    pub(crate) url: Url,
    /// Who asks.
    pub(crate) token: Option<&'a Secret>,
    /// Cinder's version to speak: `3.54`.
    pub(crate) version: Option<&'a str>,
    /// What is sent.
    pub(crate) body: Option<&'a Value>,
}

impl Http {
    /// A client that trusts whom the cloud's settings say.
    ///
    /// # Errors
    /// Certificates that cannot be read; [`Kind::Unsupported`] for TLS on a processor that is too old.
    pub(crate) fn new(cloud: &Cloud) -> Result<Self> {
        let wrong = |error: reqwest::Error| Error::new(Kind::Invalid, "TLS").with_source(error);
        // One for the process, as is asked for; that there is one already is fine.
        let _ = rustls_graviola::default_provider().install_default();
        // Who answers is who was asked: a token is shown to nobody that an answer names.
        let builder = || {
            Client::builder()
                .redirect(redirect::Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT.min(cloud.timeout))
                .timeout(cloud.timeout)
                .pool_idle_timeout(IDLE)
                .danger_accept_invalid_certs(!cloud.verify)
                .user_agent(concat!("ceph-native/", env!("CARGO_PKG_VERSION")))
        };
        let client = match &cloud.cacert {
            Some(path) => builder().tls_certs_only(certificates(path)?).build(),
            None => builder().build().or_else(|error| match is_tls(&cloud.auth_url) {
                true => Err(error),
                // A host without any certificates can do without.
                false => builder().tls_certs_only([]).build(),
            }),
        };
        Ok(Self { client: client.map_err(wrong)?, timeout: cloud.timeout })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] if nobody was there to take it; [`Kind::TimedOut`] or [`Kind::Closed`] if what became of
    /// it is unknown; [`Kind::Corrupt`] if the answer is too large.
    pub(crate) async fn send(&self, request: Request<'_>) -> Result<Answer> {
        if is_tls(request.url.as_str()) && !graviola::util::is_cpu_supported() {
            let what =
                "TLS needs a processor with AES, AVX2, BMI2 and ADX (x86-64) or AES (aarch64)";
            return Err(Error::new(Kind::Unsupported, what));
        }
        let path = request.url.path();
        let what = format!("{} {}", request.method, path.get(..160).unwrap_or(path));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = request.token {
            headers.insert(HeaderName::from_static("x-auth-token"), header(token.reveal(), true)?);
        }
        if let Some(version) = request.version {
            let name = HeaderName::from_static("openstack-api-version");
            headers.insert(name, header(&format!("volume {version}"), false)?);
        }
        let mut sending = self.client.request(request.method, request.url).headers(headers);
        if let Some(body) = request.body {
            sending = sending.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let failed = |error| self.failed(&what, error);
        let mut response = sending.send().await.map_err(failed)?;
        let token = response.headers().get("x-subject-token").and_then(|token| token.to_str().ok());
        let token = token.map(Secret::new);
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let what = format!("{what}: the answer has more than {MAX_ANSWER} bytes");
                return Err(Error::new(Kind::Corrupt, what));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { what, status, token, body })
    }

    fn failed(&self, what: &str, error: reqwest::Error) -> Error {
        // Its own text has the address, and that may have a name and a password.
        let error = error.without_url();
        match (error.is_connect(), error.is_timeout()) {
            (true, _) => {
                let what = format!("{what}: {}", innermost(&error));
                Error::new(Kind::Unreachable, what).with_hint(LATE)
            }
            (_, true) => {
                let what = format!("{what}: no answer within {:?}", self.timeout);
                Error::new(Kind::TimedOut, what).with_hint(LATE)
            }
            _ => Error::new(Kind::Closed, format!("{what}: {}", innermost(&error))),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>> {
    let named = || format!("certificates {}", path.display());
    let text =
        fs::read(path).map_err(|error| Error::new(Kind::NotFound, named()).with_source(error))?;
    match Certificate::from_pem_bundle(&text) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::new(Kind::Invalid, format!("{}: there are none", named()))),
        Err(error) => Err(Error::new(Kind::Invalid, named()).with_source(error)),
    }
}

fn is_tls(url: &str) -> bool {
    url.starts_with("https:")
}

fn header(text: &str, secret: bool) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::new(Kind::Invalid, "a token or version that is no text of HTTP"))?;
    value.set_sensitive(secret);
    Ok(value)
}

/// The reason at the bottom, which is the one that says something.
fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}
