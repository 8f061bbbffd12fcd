//! Our end of a connection with the kernel's NBD client.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::task::coop;

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
    /// Nothing was read since something was sent.
    sent: bool,
}

impl Socket {
    /// Must be called in a tokio runtime.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let input = pipe::Receiver::from_owned_fd_unchecked(stream.try_clone()?.into())?;
        Ok(Self { stream, input, output: None, sent: false })
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

/// Reads what is there.
fn receive(stream: &UnixStream, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    // SAFETY: `recv` makes no byte uninitialised, and has written as many as it says, from the first one on.
    #[expect(unsafe_code, reason = "the bytes that are read into are not initialised")]
    unsafe {
        let (_, count) = recv(stream, buf.unfilled_mut(), RecvFlags::empty())?;
        buf.assume_init(count);
        buf.advance(count);
    }
    Ok(())
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Who waits for a reply is often so quick to ask for more that this is there before we could be told of it.
        if std::mem::take(&mut self.sent) {
            // Others get their turn even so.
            let turn = ready!(coop::poll_proceed(cx));
            match receive(&self.stream, buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => {
                    turn.made_progress();
                    return Poll::Ready(received);
                }
            }
        }
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
                written => {
                    self.sent = true;
                    return Poll::Ready(written);
                }
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends to a peer that answers at once, and reads what that said. All in one turn: nobody tells that it is there.
    fn exchange(
        socket: &mut Socket,
        peer: &mut UnixStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Vec<u8>>> {
        let sent = Pin::new(&mut *socket).poll_write(cx, b"reply")?;
        assert_eq!(sent, Poll::Ready(5));
        peer.write_all(b"request")?;
        let mut room = [0; 64];
        let mut room = ReadBuf::new(&mut room);
        ready!(Pin::new(socket).poll_read(cx, &mut room))?;
        Poll::Ready(Ok(room.filled().to_vec()))
    }

    #[tokio::test]
    async fn what_answers_a_reply_is_found_without_waiting_for_it() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(ours).unwrap();
        let once = |cx: &mut Context<'_>| Poll::Ready(exchange(&mut socket, &mut peer, cx));
        let Poll::Ready(said) = poll_fn(once).await else { panic!("it was not looked for") };
        assert_eq!(said.unwrap(), b"request");
        // Where there is nothing yet, it is waited for as ever.
        socket.write_all(b"reply").await.unwrap();
        let later = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(20));
            peer.write_all(b"later").map(|()| peer)
        });
        let mut room = [0; 64];
        let count = socket.read(&mut room).await.unwrap();
        assert_eq!(&room[..count], b"later");
        later.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_always_answers_at_once_leaves_others_their_turn() {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(ours).unwrap();
        let turns = |cx: &mut Context<'_>| {
            let at_once = (0..1000).take_while(|_| exchange(&mut socket, &mut peer, cx).is_ready());
            Poll::Ready(at_once.count())
        };
        let count = poll_fn(turns).await;
        assert!((1..1000).contains(&count), "{count} in a row");
    }
}
