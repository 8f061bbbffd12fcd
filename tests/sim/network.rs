//! The network as clients see it: streams whose other end is the simulated world ([`crate::world`]), which decides what
//! arrives, when, and how a stream ends.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BytesMut};
use ceph_native::cluster::{Connecting, Stream, Surroundings};
use proto::types::Entropy;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::random::SharedRandom;

/// A stream, from the moment it is dialled. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LineId(pub(crate) u64);

/// How a stream ends for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed it.
    Closed,
    /// It was reset.
    Reset,
}

/// A client has asked for a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialled {
    pub(crate) line: LineId,
    pub(crate) client: usize,
    pub(crate) addr: SocketAddr,
}

/// All streams.
pub(crate) struct Network {
    /// What a client may have written that its peer has not read, in bytes: a socket's buffers.
    window: usize,
    lines: Mutex<Lines>,
    /// A client has done something.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Lines {
    all: BTreeMap<LineId, Line>,
    last: u64,
    dialled: Vec<Dialled>,
    dropped: Vec<(LineId, BytesMut)>,
}

#[derive(Default)]
struct Line {
    connected: Option<io::Result<()>>,
    /// Written by the client and not taken by the world.
    written: BytesMut,
    /// Written by the client and not read by its peer, wherever it is.
    unread: usize,
    /// Arrived, and not read by the client.
    arrived: BytesMut,
    end: Option<End>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Line {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// The world's side.
impl Network {
    pub(crate) fn new(window: usize) -> Self {
        Self { window, lines: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_dialled(&self) -> Vec<Dialled> {
        std::mem::take(&mut self.lock().dialled)
    }

    /// Streams that clients have let go of, and what they had written last.
    pub(crate) fn take_dropped(&self) -> Vec<(LineId, BytesMut)> {
        std::mem::take(&mut self.lock().dropped)
    }

    /// What clients have written.
    pub(crate) fn take_written(&self) -> Vec<(LineId, BytesMut)> {
        let mut lines = self.lock();
        let written = lines.all.iter_mut().filter(|(_, line)| !line.written.is_empty());
        written.map(|(id, line)| (*id, line.written.split())).collect()
    }

    /// Says how dialling went.
    pub(crate) fn connected(&self, id: LineId, how: io::Result<()>) {
        if let Some(line) = self.lock().all.get_mut(&id) {
            line.connected = Some(how);
            line.wake();
        }
    }

    /// Bytes reach the client.
    pub(crate) fn deliver(&self, id: LineId, bytes: &[u8]) {
        if let Some(line) = self.lock().all.get_mut(&id) {
            line.arrived.extend_from_slice(bytes);
            line.wake();
        }
    }

    /// The peer has read so much of what the client wrote.
    pub(crate) fn read_by_peer(&self, id: LineId, bytes: usize) {
        if let Some(line) = self.lock().all.get_mut(&id) {
            line.unread -= bytes;
            line.wake();
        }
    }

    /// The stream ends for the client.
    pub(crate) fn end(&self, id: LineId, how: End) {
        if let Some(line) = self.lock().all.get_mut(&id) {
            line.end.get_or_insert(how);
            line.wake();
        }
    }

    /// How many streams clients have or are waiting for.
    pub(crate) fn open(&self) -> usize {
        self.lock().all.len()
    }
}

/// What one client finds around it.
pub(crate) struct Host {
    network: Arc<Network>,
    client: usize,
    random: SharedRandom,
}

impl Host {
    pub(crate) fn new(network: Arc<Network>, client: usize, random: SharedRandom) -> Self {
        Self { network, client, random }
    }
}

impl Surroundings for Host {
    fn connect(&self, addr: SocketAddr) -> Connecting {
        let line = {
            let mut lines = self.network.lock();
            lines.last += 1;
            let line = LineId(lines.last);
            lines.all.insert(line, Line::default());
            lines.dialled.push(Dialled { line, client: self.client, addr });
            line
        };
        self.network.changed.notify_one();
        let socket = Socket { network: Arc::clone(&self.network), id: line };
        Box::pin(async move {
            std::future::poll_fn(|cx| socket.poll_connected(cx)).await?;
            Ok(Box::new(socket) as Box<dyn Stream>)
        })
    }

    fn entropy(&self) -> Box<dyn Entropy> {
        Box::new(self.random.clone())
    }
}

/// The client's end of a stream.
struct Socket {
    network: Arc<Network>,
    id: LineId,
}

impl Socket {
    fn with<T>(&self, work: impl FnOnce(&mut Line) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.network.lock().all.get_mut(&self.id) {
            Some(line) => work(line),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_connected(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.with(|line| match line.connected.take() {
            Some(how) => Poll::Ready(how),
            None => {
                line.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        })
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|line| {
            let count = line.arrived.len().min(buffer.remaining());
            if count > 0 {
                buffer.put_slice(&line.arrived[..count]);
                line.arrived.advance(count);
                return Poll::Ready(Ok(()));
            }
            match line.end {
                Some(End::Closed) => Poll::Ready(Ok(())),
                Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    line.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.with(|line| {
            if line.end.is_some() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let count = bytes.len().min(self.network.window - line.unread);
            if count == 0 {
                line.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            line.written.extend_from_slice(&bytes[..count]);
            line.unread += count;
            Poll::Ready(Ok(count))
        });
        self.network.changed.notify_one();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut lines = self.network.lock();
        let line = lines.all.remove(&self.id).unwrap_or_default();
        lines.dropped.push((self.id, line.written));
        drop(lines);
        self.network.changed.notify_one();
    }
}
