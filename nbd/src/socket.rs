//! Our end of a connection with the kernel's NBD client.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

/// A Unix socket that wakes us when there is something to read, and for room to write only where there was none.
///
/// Tokio's own asks for both at all times, and a Unix socket tells of room whenever its peer has read something: that
/// is one more wake-up per request, for nothing (`unix_write_space` in the kernel's `net/unix/af_unix.c`). What Tokio
/// has for the ends of a pipe asks for one of both.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: UnixStream,
    input: pipe::Receiver,
    /// While it is full.
    output: Option<pipe::Sender>,
}

impl Socket {
    /// Must be called in a tokio runtime.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let input = pipe::Receiver::from_owned_fd_unchecked(stream.try_clone()?.into())?;
        Ok(Self { stream, input, output: None })
    }

    pub(crate) fn into_inner(self) -> UnixStream {
        self.stream
    }
}

/// As `writev` does, but as a socket: the kernel does not ask what it asks of files each time.
fn send(stream: &UnixStream, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let sent = match pieces {
        [piece] => rustix::net::send(stream, piece, SendFlags::NOSIGNAL),
        _ => sendmsg(stream, pieces, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL),
    };
    Ok(sent?)
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.output.is_none() {
            match send(&self.stream, pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
        let mut output = match self.output.take() {
            Some(output) => output,
            None => pipe::Sender::from_owned_fd_unchecked(self.stream.try_clone()?.into())?,
        };
        let written = Pin::new(&mut output).poll_write_vectored(cx, pieces);
        if written.is_pending() {
            self.output = Some(output);
        }
        Poll::Ready(ready!(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}
