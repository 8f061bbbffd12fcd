//! Takes Docker's calls: HTTP over Unix sockets, over TCP (beyond this host with TLS), or over sockets that systemd
//! hands over, so that a plugin that restarts costs its callers a pause and no error.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::AddressFamily;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::metrics::Metrics;
use super::protocol;
use super::tls::Tls;
use super::volumes::Volumes;
use crate::error::{Error, Kind, Result};

/// The largest request that is read. Docker's are below a kilobyte.
const MAX_REQUEST: usize = 64 << 10;

/// How many connections of a socket are served at a time; more wait, but nobody of another socket does.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long calls under way may go on when the plugin is told to end.
pub const GRACE: Duration = Duration::from_secs(8);

/// How long those may take that are answered from the journal anyway, and whoever has connected and said nothing yet.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A socket that calls come in on.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// TCP, which nobody but this host can reach.
    Tcp(TcpListener),
    /// TLS over TCP.
    Tls(TcpListener, Arc<Tls>),
}

/// What serves all sockets.
#[derive(Debug)]
pub struct Server {
    volumes: Arc<Volumes>,
    metrics: Metrics,
    /// Set when no connection is to take a further call. Each has a receiver for as long as it is there.
    ending: watch::Sender<bool>,
}

impl Listener {
    /// Listens on a path or on `tcp://ADDRESS:PORT`, there with TLS if there is a configuration.
    ///
    /// # Errors
    /// [`Kind::Busy`] if somebody else does already; [`Kind::Invalid`] without TLS for what others can reach.
    pub fn bind(text: &str, tls: Option<&Arc<Tls>>) -> Result<Self> {
        let failed = |error: io::Error| {
            let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
            Error::new(kind, format!("listening on {text}")).with_source(error)
        };
        if let Some(address) = text.strip_prefix("tcp://") {
            let address: SocketAddr = address.parse().map_err(|_| {
                Error::new(Kind::Invalid, format!("{text}: expected tcp://ADDRESS:PORT"))
            })?;
            if tls.is_none() && !address.ip().is_loopback() {
                let what = format!("{text}: other hosts could reach it, and mount what they like");
                return Err(Error::new(Kind::Invalid, what)
                    .with_hint("take a loopback address or a Unix socket, or say [tls]"));
            }
            let listener = std::net::TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let listener = TcpListener::from_std(listener).map_err(failed)?;
            return Ok(match tls {
                Some(tls) => Self::Tls(listener, Arc::clone(tls)),
                None => Self::Tcp(listener),
            });
        }
        let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        // A socket that nobody answers on is of a process that has ended.
        if path.exists() && StdUnixStream::connect(path).is_ok() {
            return Err(Error::new(Kind::Busy, format!("{text}: another plugin answers there")));
        }
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self::Unix(listener))
    }

    /// A listening Unix socket that was handed over.
    ///
    /// # Errors
    /// If it is no such thing: others could reach it, without TLS.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        if rustix::net::sockopt::socket_domain(&fd) != Ok(AddressFamily::UNIX) {
            let what = "the socket that was handed over is no Unix socket";
            return Err(Error::new(Kind::Invalid, what).with_hint("say tcp:// in the settings"));
        }
        let listener = std::os::unix::net::UnixListener::from(fd);
        let made = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        made.map(Self::Unix).map_err(|error| {
            Error::new(Kind::Invalid, "the socket that was handed over").with_source(error)
        })
    }

    /// The file of the socket, if there is one.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(listener) => listener.local_addr().ok()?.as_pathname().map(Path::to_owned),
            Self::Tcp(_) | Self::Tls(..) => None,
        }
    }
}

impl Server {
    /// A server of these volumes.
    pub fn new(volumes: Arc<Volumes>) -> Arc<Self> {
        let (metrics, ending) = (Metrics::default(), watch::Sender::new(false));
        Arc::new(Self { volumes, metrics, ending })
    }

    /// Serves a socket for ever.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let accepted = match &listener {
                Listener::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| self.clone().spawn(stream, permit))
                }
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| self.clone().spawn(stream, permit))
                }
                Listener::Tls(listener, tls) => listener.accept().await.map(|(stream, from)| {
                    tokio::spawn(self.clone().shake_hands(stream, from, tls.config(), permit));
                }),
            };
            if let Err(error) = accepted {
                // No more file descriptors, for instance: others end theirs.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Serves who has a certificate that we trust.
    async fn shake_hands(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        tls: Arc<ServerConfig>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        match tokio::time::timeout(HEAD_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => self.spawn(stream, permit),
            Ok(Err(error)) => tracing::warn!(%from, %error, "TLS: refused"),
            Err(_) => tracing::debug!(%from, "TLS: says nothing"),
        }
    }

    fn spawn<S>(self: Arc<Self>, stream: S, permit: tokio::sync::OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut ending = self.ending.subscribe();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let server = Arc::clone(&self);
                async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let mut served = tokio::select! {
                biased;
                served = &mut connection => Some(served),
                _ = ending.changed() => None,
            };
            if served.is_none() {
                // A call that is under way is answered, or whoever made it would take the plugin for dead.
                connection.as_mut().graceful_shutdown();
                served = Some(connection.await);
            }
            if let Some(Err(error)) = served {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if request.method() == Method::GET && path == "/metrics" {
            let text = self.metrics.text(&self.volumes);
            return respond(StatusCode::OK, "text/plain; version=0.0.4", text.into());
        }
        if request.method() != Method::POST {
            let what = format!("{} {path}: calls are made by POST", request.method());
            let refused = refusal(StatusCode::METHOD_NOT_ALLOWED, &Error::new(Kind::Invalid, what));
            return with_header(refused, ALLOW, HeaderValue::from_static("POST"));
        }
        let body = match Limited::new(request.into_body(), MAX_REQUEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                let what = format!("the request is larger than {MAX_REQUEST} bytes, or incomplete");
                let error = Error::new(Kind::Invalid, what).with_source(error);
                return refusal(StatusCode::PAYLOAD_TOO_LARGE, &error);
            }
        };
        let begun = Instant::now();
        let called = protocol::call(&self.volumes, &path, &body).await;
        if protocol::knows(&path) {
            self.metrics.count(&path, begun.elapsed(), called.is_err());
        }
        match called {
            Ok(answer) => json(StatusCode::OK, &answer),
            // What Docker takes for "not implemented".
            Err(error) if !protocol::knows(&path) => refusal(StatusCode::NOT_FOUND, &error),
            Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }

    /// Waits until no connection has a call under way, but no longer than [`GRACE`].
    pub async fn settle(&self) {
        self.ending.send_replace(true);
        let idle = async {
            self.volumes.idle().await;
            let _ = tokio::time::timeout(LAST_WORDS, self.ending.closed()).await;
        };
        if tokio::time::timeout(GRACE, idle).await.is_err() {
            tracing::warn!(
                "ending with calls under way: what they began is taken up at the next start"
            );
        }
    }
}

fn refusal(status: StatusCode, error: &Error) -> Response<Full<Bytes>> {
    json(status, &protocol::refusal(error))
}

fn json(status: StatusCode, answer: &Value) -> Response<Full<Bytes>> {
    respond(status, "application/vnd.docker.plugins.v1.2+json", answer.to_string().into())
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    with_header(response, CONTENT_TYPE, HeaderValue::from_static(kind))
}

fn with_header(
    mut response: Response<Full<Bytes>>,
    name: hyper::header::HeaderName,
    value: HeaderValue,
) -> Response<Full<Bytes>> {
    response.headers_mut().insert(name, value);
    response
}
