//! Drives one session over one TCP stream: the only file that touches a socket of Ceph's.
//!
//! What a client finds around it, the network and randomness, comes through [`Surroundings`], so that a simulator
//! (`tests/sim`) can put something else in their place.
//!
//! One task per connection. Each turn it writes everything that is queued with as few system calls as it takes, then
//! reads everything that is there and hands it over at once, so that the cost of waking and of system calls is shared
//! by all requests that are ready. Whoever has queued something may write it without waiting for that task ([`Wire`]).

use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use proto::msgr;
use proto::types::Entropy;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;

/// How much is read at once, at most, in bytes: replies to a few dozen small reads.
const READ_CHUNK: usize = 256 << 10;

/// Below this much free space a new receive buffer is begun, in bytes.
const READ_MIN: usize = 32 << 10;

/// From which length on what is missing of a frame is read by itself, in bytes: what came with it of the next one would
/// have to be moved to a buffer where all of that has room.
const LONG: usize = 64 << 10;

/// How much is read behind a long frame nevertheless, in bytes: enough to know how long the next one is.
const BEHIND_LONG: usize = 4 << 10;

/// How many chunks are handled before other tasks get their turn.
const READS_PER_TURN: usize = 4;

/// How many pieces one vectored write takes (the kernel's `UIO_MAXIOV` is 1024; more than this gains nothing).
pub(crate) const WRITE_PIECES: usize = 64;

/// How many pieces there usually are when few requests are in flight: a frame, and the payload of a write.
pub(crate) const FEW_PIECES: usize = 4;

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

/// The way out of a stream. Whoever writes holds the lock of the session, so that its bytes stay in order.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Mutex<Box<dyn Stream>>>);

impl Wire {
    fn stream(&self) -> MutexGuard<'_, Box<dyn Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vectored write that does not block.
    pub(crate) fn write(
        &self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.stream();
        // One piece goes by `send`, which asks the kernel for less than `writev`.
        match pieces {
            [piece] => Pin::new(&mut *stream).poll_write(cx, piece),
            _ => Pin::new(&mut *stream).poll_write_vectored(cx, pieces),
        }
    }
}

/// Whose session it is.
pub(crate) trait Owner {
    /// Writes what is queued until nothing is left or a write is pending, and keeps `cx`'s waker and `wire` for what is
    /// queued later.
    fn transmit(&self, cx: &mut Context<'_>, wire: &Wire) -> Result<(), Lost>;

    /// Takes whole frames from the front of `input`. Returns how many bytes it takes to complete the next one.
    fn receive(&self, input: &mut BytesMut) -> Result<usize, Lost>;
}

/// Bytes in order, in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// What a client finds around it. Time is the tokio runtime's.
pub trait Surroundings: Send + Sync {
    /// Begins to connect to a daemon.
    fn connect(&self, addr: SocketAddr) -> Connecting;

    /// Random bytes.
    fn entropy(&self) -> Box<dyn Entropy>;
}

/// The machine that this runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine;

impl Surroundings for Machine {
    fn connect(&self, addr: SocketAddr) -> Connecting {
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn entropy(&self) -> Box<dyn Entropy> {
        Box::new(OsEntropy)
    }
}

/// Random bytes from the operating system.
struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        // Only fails on systems without a random source, on which nothing could be kept secret.
        getrandom::fill(bytes).unwrap_or_else(|error| panic!("no random bytes: {error}"));
    }
}

/// Connects to a daemon.
pub(crate) async fn connect(
    surroundings: &dyn Surroundings,
    addr: SocketAddr,
) -> Result<Box<dyn Stream>, Lost> {
    tokio::time::timeout(CONNECT_TIMEOUT, surroundings.connect(addr))
        .await
        .map_err(|_| Lost::ConnectTimeout)?
        .map_err(Lost::Io)
}

/// Moves bytes between the stream and its owner until one of them has had enough. Always ends with a reason.
pub(crate) async fn drive(stream: Box<dyn Stream>, owner: &impl Owner) -> Lost {
    let wire = Wire(Arc::new(Mutex::new(stream)));
    let mut input = BytesMut::with_capacity(READ_CHUNK);
    let (mut last, mut most) = (READ_CHUNK, READ_CHUNK);
    poll_fn(|cx| {
        for _ in 0..READS_PER_TURN {
            if let Err(lost) = owner.transmit(cx, &wire) {
                return Poll::Ready(lost);
            }
            let read = pin!(wire.stream().read_buf(&mut (&mut input).limit(most))).poll(cx);
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Ready(Ok(0)) => return Poll::Ready(Lost::Closed),
                Poll::Ready(Ok(_)) => {}
            }
            match owner.receive(&mut input) {
                Ok(wanted) => most = make_room(&mut input, wanted, &mut last),
                Err(lost) => return Poll::Ready(lost),
            }
        }
        // There may be more to read; others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Makes room for the rest of a frame, or for whatever comes next, and says how much of it to read. Payload that was
/// handed over keeps the old buffer alive; without any, the buffer is used again.
///
/// `last` is how long the last long frame was: the next is probably like it.
fn make_room(input: &mut BytesMut, wanted: usize, last: &mut usize) -> usize {
    let frame = input.len() + wanted;
    let (least, most) = match frame {
        LONG.. => {
            *last = frame;
            (wanted + BEHIND_LONG, wanted + BEHIND_LONG)
        }
        _ => (wanted.max(READ_MIN), READ_CHUNK.min(*last + BEHIND_LONG)),
    };
    if input.capacity() - input.len() < least {
        input.reserve(most.max(least));
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_follows_a_long_frame_little_is_read() {
        let (mut input, mut last) = (BytesMut::with_capacity(READ_CHUNK), READ_CHUNK);
        assert_eq!(make_room(&mut input, 32, &mut last), READ_CHUNK, "short ones come together");
        input.resize(100_000, 0);
        let most = make_room(&mut input, 32_000, &mut last);
        assert_eq!(most, 32_000 + BEHIND_LONG, "the end of a long one");
        assert_eq!(input.capacity(), READ_CHUNK, "there was room");
        input.clear();
        let most = make_room(&mut input, 32, &mut last);
        assert_eq!(most, 132_000 + BEHIND_LONG, "the next is probably as long");
        let _payload = input.split_off(READ_CHUNK - 1000);
        input.resize(READ_CHUNK - 1000, 0);
        assert_eq!(make_room(&mut input, 32_000, &mut last), 32_000 + BEHIND_LONG);
        assert!(input.capacity() - input.len() >= 32_000 + BEHIND_LONG, "room for all of it");
    }
}
