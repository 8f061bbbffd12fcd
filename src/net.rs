//! Drives one session over one TCP stream: the only file that touches a socket of Ceph's.
//!
//! One task per connection. Each turn it writes everything that is queued with as few system calls as it takes, then
//! reads everything that is there and hands it over at once, so that the cost of waking and of system calls is shared
//! by all requests that are ready.

use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use proto::msgr;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::net::TcpStream;

/// How much is read at once, at most, in bytes: replies to a few dozen small reads.
const READ_CHUNK: usize = 256 << 10;

/// Below this much free space a new receive buffer is begun, in bytes.
const READ_MIN: usize = 32 << 10;

/// How many chunks are handled before other tasks get their turn.
const READS_PER_TURN: usize = 4;

/// How many pieces one vectored write takes (the kernel's `UIO_MAXIOV` is 1024; more than this gains nothing).
pub(crate) const WRITE_PIECES: usize = 64;

/// How long a TCP connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum Lost {
    /// It could not be made in time.
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// The socket says so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The protocol says so.
    #[error(transparent)]
    Protocol(#[from] msgr::Error),
    /// We wanted it so.
    #[error("closed on this side")]
    Unwanted,
}

/// A vectored write that does not block.
pub(crate) type TryWrite<'a> =
    &'a mut dyn FnMut(&mut Context<'_>, &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

/// Whose session it is.
pub(crate) trait Owner {
    /// Writes what is queued until nothing is left or `write` is pending, and keeps `cx`'s waker for what is queued
    /// later.
    fn transmit(&self, cx: &mut Context<'_>, write: TryWrite<'_>) -> Result<(), Lost>;

    /// Takes whole frames from the front of `input`. Returns how many bytes it takes to complete the next one.
    fn receive(&self, input: &mut BytesMut) -> Result<usize, Lost>;
}

/// Connects to a daemon.
pub(crate) async fn connect(addr: SocketAddr) -> Result<TcpStream, Lost> {
    let connecting = TcpStream::connect(addr);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| Lost::ConnectTimeout)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Moves bytes between the stream and its owner until one of them has had enough. Always ends with a reason.
pub(crate) async fn drive(mut stream: TcpStream, owner: &impl Owner) -> Lost {
    let mut input = BytesMut::with_capacity(READ_CHUNK);
    poll_fn(|cx| {
        for _ in 0..READS_PER_TURN {
            let write = &mut |cx: &mut Context<'_>, pieces: &[IoSlice<'_>]| {
                Pin::new(&mut stream).poll_write_vectored(cx, pieces)
            };
            if let Err(lost) = owner.transmit(cx, write) {
                return Poll::Ready(lost);
            }
            match pin!(stream.read_buf(&mut input)).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Ready(Ok(0)) => return Poll::Ready(Lost::Closed),
                Poll::Ready(Ok(_)) => {}
            }
            match owner.receive(&mut input) {
                Ok(wanted) => make_room(&mut input, wanted),
                Err(lost) => return Poll::Ready(lost),
            }
        }
        // There may be more to read; others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Makes room for the rest of a frame, or for whatever comes next. Payload that was handed over keeps the old buffer
/// alive; without any, the buffer is used again.
fn make_room(input: &mut BytesMut, wanted: usize) {
    let free = input.capacity() - input.len();
    if wanted > free || free < READ_MIN {
        input.reserve(wanted.max(READ_CHUNK));
    }
}
