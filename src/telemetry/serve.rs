//! One question, one answer: what the admin socket and the metrics have in common.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Clients that are answered at the same time; others wait in the listener's queue.
const CLIENTS: usize = 16;

/// How long a client may take, from being accepted to having read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest question, in bytes: Ceph's admin socket takes 1 KiB, HTTP servers 8 KiB.
const QUESTION: u64 = 8 << 10;

/// How long nothing is accepted after accepting failed, usually for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where clients come from.
pub(super) trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Stream>>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        self.poll_accept(cx).map_ok(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        self.poll_accept(cx).map_ok(|(stream, _)| stream)
    }
}

/// Answers clients for ever. `ends` says whether a question is complete, `answer` answers it.
pub(super) async fn serve(
    listener: impl Listener,
    ends: fn(&[u8]) -> bool,
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match poll_fn(|cx| listener.poll_accept(cx)).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let talk = talk(stream, ends, &*answer);
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, talk).await {
                tracing::debug!(%error, "answering a question");
            }
            drop(place);
        });
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ends: fn(&[u8]) -> bool,
    answer: &(impl Fn(&[u8]) -> Vec<u8> + ?Sized),
) -> io::Result<()> {
    let mut question = Vec::new();
    let mut stream = stream.take(QUESTION);
    while !ends(&question) {
        if stream.read_buf(&mut question).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut stream = stream.into_inner();
    stream.write_all(&answer(&question)).await?;
    stream.shutdown().await
}
