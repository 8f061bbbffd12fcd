//! A server: listens, gives each connection a task, and shuts down in good order.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::connection::{self, ConnectionError, Counters, Phase, Stream};
use crate::device::{Device, Errno, Op, Request};
use crate::exports::{Export, Exports};
use crate::limits;
use crate::socket::Socket;

/// Serves exports on any number of sockets. Runs on the tokio runtime it is used in; a current-thread one is best for
/// devices that live on the same thread.
///
/// Dropping it ends everything at once; [`shutdown`](Server::shutdown) is the polite way.
pub struct Server {
    exports: Exports,
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    sockets: Mutex<Vec<SocketFile>>,
}

#[derive(Default)]
struct Shared {
    counters: Counters,
    open: AtomicUsize,
    /// A connection is open no more.
    left: Notify,
    /// Connections of the kernel's that are ready for whoever serves them next, and what was read of them already.
    handed: Mutex<Vec<(UnixStream, BytesMut)>>,
}

impl Server {
    /// A server that does not listen yet.
    pub fn new(exports: Exports) -> Self {
        Self {
            exports,
            shared: Arc::default(),
            phase: watch::Sender::new(Phase::Serving),
            sockets: Mutex::default(),
        }
    }

    /// Listens on a Unix socket at `path`, with the permission bits `mode` (such as `0o600`). A socket file that
    /// nobody listens on any more is replaced. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If somebody listens there, something else than a socket is there, or the system refuses.
    pub fn listen_unix(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        let file = SocketFile::of(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        tokio::spawn(accept(self.acceptor(), async move || {
            listener.accept().await.map(|(stream, _)| stream)
        }));
        Ok(())
    }

    /// Listens on TCP, and says where (which matters for port 0). Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen_tcp(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = bind_tcp(address)?;
        let bound = listener.local_addr()?;
        tokio::spawn(accept(self.acceptor(), async move || {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }));
        Ok(bound)
    }

    /// Serves the default export to the kernel's client on the other end of `stream`. There is no handshake: the
    /// kernel was told what the export is like when it was given its end. Must be called in a tokio runtime.
    ///
    /// `input` is what was read of it already, by whoever has served it before.
    ///
    /// # Errors
    /// The system's, if it has no more descriptors.
    pub fn adopt(&self, stream: UnixStream, input: BytesMut) -> io::Result<()> {
        if let Some(export) = self.exports.iter().next() {
            self.acceptor().adopt(Socket::new(stream)?, input, export.clone());
        }
        Ok(())
    }

    /// Returns when no connection is open.
    pub async fn idle(&self) {
        loop {
            let left = self.shared.left.notified();
            if self.shared.open.load(Ordering::Relaxed) == 0 {
                return;
            }
            left.await;
        }
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor {
            exports: self.exports.clone(),
            shared: self.shared.clone(),
            phase: self.phase.subscribe(),
        }
    }

    /// Stops reading, answers what is in flight, and gives up the kernel's connections, each with what was read of it
    /// already. Those of which something is in flight after `grace` are not among them: they are closed.
    pub async fn hand_over(self, grace: Duration) -> Vec<(UnixStream, BytesMut)> {
        self.phase.send_replace(Phase::HandingOver);
        if timeout_at(Instant::now() + grace, self.phase.closed()).await.is_err() {
            self.phase.send_replace(Phase::Ended);
            self.phase.closed().await;
        }
        let mut handed = self.shared.handed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *handed)
    }

    /// Stops accepting and reading, answers what is in flight, flushes the devices and closes everything. What is not
    /// done within `grace` is cut off.
    pub async fn shutdown(self, grace: Duration) -> Report {
        let deadline = Instant::now() + grace;
        self.phase.send_replace(Phase::Draining);
        if timeout_at(deadline, self.phase.closed()).await.is_err() {
            self.phase.send_replace(Phase::Ended);
            self.phase.closed().await;
        }
        let mut unflushed = Vec::new();
        for export in self.exports.iter() {
            // One try at least, however long draining took.
            let deadline = deadline.max(Instant::now() + limits::LINGER);
            match timeout_at(deadline, flush(&*export.device)).await {
                Ok(Ok(())) => {}
                Ok(Err(errno)) => unflushed.push(format!("{}: {errno}", export.name)),
                Err(_) => unflushed.push(format!("{}: not flushed in time", export.name)),
            }
        }
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { connections, requests, drained, abandoned } = &self.shared.counters;
        Report {
            connections: count(connections),
            requests: count(requests),
            drained: count(drained),
            abandoned: count(abandoned),
            unflushed,
        }
    }
}

/// What a server did in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Connections that chose an export.
    pub connections: u64,
    /// Requests answered.
    pub requests: u64,
    /// Of these, answered after the shutdown began.
    pub drained: u64,
    /// Requests whose connection ended before they were answered. Their writes may have happened or not.
    pub abandoned: u64,
    /// Exports that could not be flushed, and why.
    pub unflushed: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, requests, drained, abandoned, unflushed } = self;
        write!(f, "served {requests} requests on {connections} connections; ")?;
        write!(f, "{drained} were in flight and finished, {abandoned} left unanswered; ")?;
        match unflushed.as_slice() {
            [] => write!(f, "everything is flushed"),
            _ => write!(f, "NOT FLUSHED: {}", unflushed.join(", ")),
        }
    }
}

/// What connections are made from.
#[derive(Clone)]
struct Acceptor {
    exports: Exports,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
}

async fn accept<S: Stream + 'static>(acceptor: Acceptor, next: impl AsyncFn() -> io::Result<S>) {
    let mut phase = acceptor.phase.clone();
    loop {
        let accepted = tokio::select! {
            accepted = next() => accepted,
            _ = phase.wait_for(|phase| *phase > Phase::Serving) => return,
        };
        match accepted {
            Ok(stream) => acceptor.start(stream),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Acceptor {
    fn start(&self, stream: impl Stream + 'static) {
        let open = Open(self.shared.clone());
        if open.0.open.fetch_add(1, Ordering::Relaxed) >= limits::CONNECTIONS {
            tracing::warn!("a connection was refused: {} are open", limits::CONNECTIONS);
            return;
        }
        let Self { exports, phase, .. } = self.clone();
        tokio::spawn(async move {
            match connection::serve(stream, exports, &open.0.counters, phase).await {
                Ok(()) => tracing::debug!("disconnected"),
                Err(ConnectionError::Io(error)) => tracing::debug!(%error, "connection lost"),
                Err(error) => tracing::info!(%error, "connection closed"),
            }
        });
    }
}

impl Acceptor {
    fn adopt(&self, stream: Socket, input: BytesMut, export: Export) {
        let open = Open(self.shared.clone());
        open.0.open.fetch_add(1, Ordering::Relaxed);
        let (phase, kept) = (self.phase.clone(), self.phase.clone());
        tokio::spawn(async move {
            match connection::serve_kernel(stream, input, export, &open.0.counters, phase).await {
                Ok(None) => tracing::debug!("the kernel has disconnected"),
                Ok(Some((stream, input))) => {
                    let mut handed = open.0.handed.lock().unwrap_or_else(PoisonError::into_inner);
                    handed.push((stream.into_inner(), input));
                }
                Err(error) => tracing::warn!(%error, "a connection of the kernel's"),
            }
            // Whoever waits for all to be over finds what was handed over.
            drop(kept);
        });
    }
}

/// Counts as an open connection while it lives.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.left.notify_waiters();
    }
}

/// A TCP listener whose connections notice dead peers, if only after hours (`SO_KEEPALIVE` is inherited).
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Removes the socket file of a server that is gone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        let text = format!("{} is there and is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => {
            let text = format!("a server is listening on {} already", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
    }
}

/// The file of a socket; removed with it, unless another server has replaced it.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes everything completed so far durable.
async fn flush(device: &dyn Device) -> Result<(), Errno> {
    let geometry = device.geometry();
    if geometry.read_only || !geometry.can_flush {
        return Ok(());
    }
    let mut queue = device.queue();
    queue.submit(Request { token: 0, op: Op::Flush });
    queue.kick();
    let mut completions = Vec::new();
    poll_fn(|cx| queue.poll_completions(cx, &mut completions)).await;
    match completions.pop() {
        Some(completion) => completion.result.map(drop),
        None => Err(Errno::EIO),
    }
}
