//! A small client: enough to use an export from the same program, in tests, benches and the demo. Simple replies only,
//! many requests in flight, any stream.
//!
//! ```no_run
//! use nbd::client::Client;
//! use nbd::device::{Op, Request};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = tokio::net::UnixStream::connect("/run/disk.sock").await?;
//! let mut client = Client::connect(stream, "disk").await?;
//! client.submit(Request { token: 1, op: Op::Read { offset: 0, len: 4096 } });
//! let mut done = Vec::new();
//! client.completions(&mut done).await?;
//! client.disconnect().await?;
//! # Ok(())
//! # }
//! ```

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use slab::Slab;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::device::{Completion, Errno, Op, Outcome, Request};
use crate::limits;
use crate::wire::{self, Fields, RequestHeader, command, command_flag, handshake, info, option};
use crate::wire::{reply, transmission};

/// Why a client can go no further. Errors of single requests are in their completions.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the NBD server closed the connection")]
    Closed,
    /// The server refuses the export, in its own words.
    #[error("the NBD server refuses export {export:?}: {message}")]
    Refused {
        /// What was asked for.
        export: String,
        /// What the server says to that.
        message: String,
    },
    /// The server does not follow the protocol, or is none of NBD's.
    #[error("the NBD server misbehaved: {0}")]
    Misbehaved(&'static str),
}

/// A connection to one export.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    size: u64,
    flags: u16,
    input: BytesMut,
    output: BytesMut,
    /// Requests that are not answered; their keys are the cookies.
    in_flight: Slab<InFlight>,
    /// What was refused before it was sent.
    refused: Vec<u64>,
}

#[derive(Debug)]
struct InFlight {
    token: u64,
    /// How many bytes of content follow the reply if it is a success; `None` if it is no read.
    content: Option<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Shakes hands, and chooses an export. Waits for as long as the server takes.
    ///
    /// # Errors
    /// The stream fails, the server has no such export, or does not speak fixed newstyle.
    pub async fn connect(stream: S, export: &str) -> Result<Self, ClientError> {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        let (in_flight, refused) = (Slab::new(), Vec::new());
        let mut client = Self { stream, size: 0, flags: 0, input, output, in_flight, refused };
        client.shake_hands(export).await?;
        Ok(client)
    }

    /// The export's size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether all changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.flags & transmission::READ_ONLY != 0
    }

    /// Requests whose completions have not come out yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.refused.len()
    }

    /// Takes a request, to be sent while completions are waited for. The server judges it; only [`Op::Extents`], which
    /// simple replies cannot answer, is completed with [`Errno::ENOTSUP`] right here. How much is in flight is up to
    /// the caller.
    pub fn submit(&mut self, request: Request) {
        let Request { token, op } = request;
        let fua = |durable| if durable { command_flag::FUA } else { 0 };
        let (command, flags, offset, len) = match &op {
            Op::Read { offset, len } => (command::READ, 0, *offset, *len),
            Op::Write { offset, data, durable } => {
                (command::WRITE, fua(*durable), *offset, data.len() as u32)
            }
            Op::Flush => (command::FLUSH, 0, 0, 0),
            Op::Discard { offset, len, durable } => (command::TRIM, fua(*durable), *offset, *len),
            Op::WriteZeroes { offset, len, may_discard, durable, fast } => {
                let keep = if *may_discard { 0 } else { command_flag::NO_HOLE };
                let fast = if *fast { command_flag::FAST_ZERO } else { 0 };
                (command::WRITE_ZEROES, fua(*durable) | keep | fast, *offset, *len)
            }
            Op::Prefetch { offset, len } => (command::CACHE, 0, *offset, *len),
            Op::Extents { .. } => return self.refused.push(token),
        };
        let content = matches!(op, Op::Read { .. }).then_some(len as usize);
        let cookie = self.in_flight.insert(InFlight { token, content }) as u64;
        let header = RequestHeader { flags, command, cookie, offset, len };
        self.output.put_slice(&header.encode());
        if let Op::Write { data, .. } = op {
            self.output.put_slice(&data);
        }
    }

    /// Sends what was submitted, and waits for at least one completion. Returns at once if nothing is in flight.
    ///
    /// Cancel-safe: no completion is lost when the future is dropped.
    ///
    /// # Errors
    /// The connection is of no use any more; what became of the requests in flight is unknown.
    pub async fn completions(&mut self, out: &mut Vec<Completion>) -> Result<(), ClientError> {
        poll_fn(|cx| self.poll_completions(cx, out)).await
    }

    /// As [`Client::completions`], to be polled.
    pub fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Completion>,
    ) -> Poll<Result<(), ClientError>> {
        let before = out.len();
        let refused = self.refused.drain(..);
        out.extend(refused.map(|token| Completion { token, result: Err(Errno::ENOTSUP) }));
        loop {
            // Both in every turn: a server may stop reading until its replies are read.
            if let Poll::Ready(sent) = self.poll_send(cx) {
                sent?;
            }
            while let Some(completion) = self.take_reply()? {
                out.push(completion);
            }
            if out.len() > before || self.in_flight.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_receive(cx) {
                Poll::Ready(received) => received?,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Says goodbye. What is in flight should be waited for before.
    ///
    /// # Errors
    /// The stream fails.
    pub async fn disconnect(mut self) -> io::Result<()> {
        let header =
            RequestHeader { flags: 0, command: command::DISC, cookie: 0, offset: 0, len: 0 };
        self.output.put_slice(&header.encode());
        self.stream.write_all_buf(&mut self.output).await?;
        self.stream.shutdown().await
    }

    /// Writes until nothing is left, or the stream takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => self.output.advance(written?),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        if self.input.capacity() - self.input.len() < limits::RECEIVE_SPARE_BYTES {
            self.input.reserve(limits::RECEIVE_BYTES);
        }
        match pin!(self.stream.read_buf(&mut self.input)).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0)) => Poll::Ready(Err(ClientError::Closed)),
            Poll::Ready(read) => Poll::Ready(read.map(drop).map_err(ClientError::from)),
        }
    }

    /// Takes a whole reply off the input.
    fn take_reply(&mut self) -> Result<Option<Completion>, ClientError> {
        let mut fields = Fields(&self.input);
        let (Some(magic), Some(errno), Some(cookie)) = (fields.u32(), fields.u32(), fields.u64())
        else {
            return Ok(None);
        };
        if magic != wire::SIMPLE_REPLY_MAGIC {
            return Err(ClientError::Misbehaved("something stands where a reply should begin"));
        }
        let request = usize::try_from(cookie).ok().and_then(|cookie| self.in_flight.get(cookie));
        let Some(InFlight { content, .. }) = request else {
            return Err(ClientError::Misbehaved("a reply to nothing that was asked"));
        };
        let content = if errno == 0 { *content } else { None };
        if fields.0.len() < content.unwrap_or_default() {
            return Ok(None);
        }
        self.input.advance(SIMPLE_REPLY_BYTES);
        let outcome = content.map(|len| Outcome::from(self.input.split_to(len).freeze()));
        let result = match i32::try_from(errno) {
            Ok(0) => Ok(outcome.unwrap_or(Outcome::Done)),
            Ok(errno) => Err(Errno::from_os(errno)),
            Err(_) => Err(Errno::EIO),
        };
        let token = self.in_flight.remove(cookie as usize).token;
        Ok(Some(Completion { token, result }))
    }
}

/// The handshake.
impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn shake_hands(&mut self, export: &str) -> Result<(), ClientError> {
        let greeting = self.take(18).await?;
        let mut fields = Fields(&greeting);
        if (fields.u64(), fields.u64()) != (Some(wire::INIT_MAGIC), Some(wire::OPTION_MAGIC)) {
            return Err(ClientError::Misbehaved("its greeting is not NBD's newstyle"));
        }
        let flags = fields.u16().unwrap_or_default();
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(ClientError::Misbehaved("it does not speak fixed newstyle"));
        }
        self.output.put_u32(u32::from(flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES)));
        self.output.put_u64(wire::OPTION_MAGIC);
        self.output.put_u32(option::GO);
        self.output.put_u32(export.len() as u32 + 6);
        self.output.put_u32(export.len() as u32);
        self.output.put_slice(export.as_bytes());
        self.output.put_u16(0); // no information beyond what always comes
        self.stream.write_all_buf(&mut self.output).await?;
        while let Some(item) = self.option_reply(export).await? {
            let mut fields = Fields(&item);
            if fields.u16() == Some(info::EXPORT) {
                let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) else {
                    return Err(ClientError::Misbehaved("what it says of the export is too short"));
                };
                (self.size, self.flags) = (size, flags);
            }
        }
        match self.flags & transmission::HAS_FLAGS {
            0 => Err(ClientError::Misbehaved("it says nothing of the export")),
            _ => Ok(()),
        }
    }

    /// The next information about the export; `None` when the export is ours.
    async fn option_reply(&mut self, export: &str) -> Result<Option<Bytes>, ClientError> {
        let head = self.take(20).await?;
        let mut fields = Fields(&head);
        let (magic, option) = (fields.u64(), fields.u32());
        let (kind, len) = (fields.u32().unwrap_or_default(), fields.u32().unwrap_or_default());
        if magic != Some(wire::OPTION_REPLY_MAGIC) || option != Some(option::GO) {
            return Err(ClientError::Misbehaved("something else than the reply to GO"));
        }
        if len as usize > limits::OPTION_BYTES {
            return Err(ClientError::Misbehaved("a reply to GO that is too long"));
        }
        let data = self.take(len as usize).await?;
        match kind {
            reply::ACK => Ok(None),
            reply::INFO => Ok(Some(data)),
            kind if kind >> 31 == 0 => Ok(Some(Bytes::new())),
            kind => Err(ClientError::Refused {
                export: export.to_owned(),
                message: match (data.is_empty(), kind) {
                    (false, _) => String::from_utf8_lossy(&data).into_owned(),
                    (true, reply::ERR_UNKNOWN) => "there is no such export".to_owned(),
                    (true, kind) => format!("error {:#x}", kind & !(1 << 31)),
                },
            }),
        }
    }

    /// So many bytes.
    async fn take(&mut self, len: usize) -> Result<Bytes, ClientError> {
        while self.input.len() < len {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
        Ok(self.input.split_to(len).freeze())
    }
}

/// A simple reply, before the content of a read.
const SIMPLE_REPLY_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::DuplexStream;
    use tokio::time::timeout;

    use super::*;
    use crate::connection::{Counters, Phase, serve};
    use crate::device::Geometry;
    use crate::exports::{Export, Exports};
    use crate::memory::MemoryDevice;

    const SIZE: u64 = 1 << 20;

    /// A client of a server whose socket buffers hold so many bytes.
    async fn connect(buffer: usize, geometry: Geometry) -> Client<DuplexStream> {
        let (client, server) = tokio::io::duplex(buffer);
        let exports = Exports::new(vec![Export::new("disk", MemoryDevice::new(geometry))]).unwrap();
        tokio::spawn(async move {
            let (_phase, phase) = tokio::sync::watch::channel(Phase::Serving);
            serve(server, exports, &Counters::default(), phase).await.unwrap();
        });
        Client::connect(client, "disk").await.unwrap()
    }

    /// What a client says to a server that says `words`, whatever it is asked.
    async fn told(words: &[u8], request: Op) -> Result<Vec<Completion>, ClientError> {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        server.write_all(words).await.unwrap();
        server.shutdown().await.unwrap();
        let mut client = Client::connect(client, "disk").await?;
        client.submit(Request { token: 7, op: request });
        let mut out = Vec::new();
        let limit = Duration::from_secs(5);
        timeout(limit, client.completions(&mut out)).await.expect("no hang").map(|()| out)
    }

    /// How qemu-nbd 10.0.2 greets, and answers GO for a file of 64 KiB.
    const HELLO: &[u8] = b"NBDMAGICIHAVEOPT\0\x03\
        \0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0e\
        \0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0\
        \0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\
        \0\0\0\0\0\0\0\x01\0\0\x0c\x6d\
        \0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";

    /// How it answers a read of 4 bytes, and one beyond the end.
    const CONTENT: &[u8] = b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    const BEYOND: &[u8] = b"\x67\x44\x66\x98\0\0\0\x16\0\0\0\0\0\0\0\0";

    const READ: Op = Op::Read { offset: 0, len: 4 };

    #[tokio::test]
    async fn many_requests_are_in_flight_through_a_narrow_pipe() {
        let mut client = connect(1000, Geometry::new(SIZE)).await;
        assert_eq!((client.size(), client.is_read_only()), (SIZE, false));
        let block = |i: u64| Bytes::from(vec![i as u8 + 1; 4096]);
        for token in 0..64 {
            let (offset, data) = (token * 4096, block(token));
            client.submit(Request { token, op: Op::Write { offset, data, durable: true } });
        }
        let mut done = Vec::new();
        while client.in_flight() > 0 {
            client.completions(&mut done).await.unwrap();
        }
        assert_eq!(done.len(), 64);
        assert!(done.iter().all(|completion| completion.result == Ok(Outcome::Done)), "{done:?}");
        done.clear();
        for token in 0..64 {
            client.submit(Request { token, op: Op::Read { offset: token * 4096, len: 4096 } });
        }
        while client.in_flight() > 0 {
            client.completions(&mut done).await.unwrap();
        }
        done.sort_by_key(|completion| completion.token);
        for (i, completion) in (0..).zip(&done) {
            assert_eq!(completion.token, i);
            assert_eq!(completion.result, Ok(Outcome::from(block(i))));
        }
        client.completions(&mut done).await.unwrap();
        client.disconnect().await.unwrap();
    }

    #[tokio::test]
    async fn every_kind_of_request_arrives_as_it_was_meant() {
        let mut client = connect(1 << 16, Geometry::new(SIZE)).await;
        let data = Bytes::from(vec![9; 512]);
        let (may_discard, durable, fast) = (true, true, true);
        let ops = [
            (Op::Write { offset: 0, data, durable: false }, Ok(Outcome::Done)),
            (
                Op::WriteZeroes { offset: 256, len: 256, may_discard, durable, fast },
                Ok(Outcome::Done),
            ),
            (Op::Discard { offset: 128, len: 128, durable }, Ok(Outcome::Done)),
            (Op::Prefetch { offset: 0, len: 512 }, Ok(Outcome::Done)),
            (Op::Flush, Ok(Outcome::Done)),
            (Op::Read { offset: 256, len: 3 }, Ok(Bytes::from_static(&[0; 3]).into())),
            (Op::Read { offset: 0, len: 3 }, Ok(Bytes::from_static(&[9; 3]).into())),
            (Op::Extents { offset: 0, len: 512 }, Err(Errno::ENOTSUP)),
            (Op::Read { offset: SIZE, len: 1 }, Err(Errno::EINVAL)),
            (
                Op::Write { offset: SIZE, data: Bytes::from_static(b"x"), durable },
                Err(Errno::ENOSPC),
            ),
        ];
        for (op, expected) in ops {
            client.submit(Request { token: 3, op: op.clone() });
            let mut done = Vec::new();
            client.completions(&mut done).await.unwrap();
            assert_eq!(done, [Completion { token: 3, result: expected }], "{op:?}");
        }
    }

    #[tokio::test]
    async fn a_read_only_export_says_so() {
        let geometry = Geometry { read_only: true, ..Geometry::new(SIZE) };
        assert!(connect(1 << 16, geometry).await.is_read_only());
    }

    #[tokio::test]
    async fn an_export_that_is_not_there_is_an_error_in_the_servers_words() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let disk = Export::new("disk", MemoryDevice::new(Geometry::new(SIZE)));
        let exports = Exports::new(vec![disk]).unwrap();
        let (_phase, phase) = tokio::sync::watch::channel(Phase::Serving);
        let counters = Counters::default();
        let error = tokio::select! {
            _ = serve(server, exports, &counters, phase) => panic!("the server ended first"),
            client = Client::connect(client, "other") => client.unwrap_err(),
        };
        let told = "the NBD server refuses export \"other\": there is no such export";
        assert_eq!(error.to_string(), told);
    }

    #[tokio::test]
    async fn a_recorded_server_is_understood() {
        let read = Completion { token: 7, result: Ok(Bytes::from_static(&[0; 4]).into()) };
        assert_eq!(told(&[HELLO, CONTENT].concat(), READ).await.unwrap(), [read]);
        let refused = Completion { token: 7, result: Err(Errno::EINVAL) };
        assert_eq!(told(&[HELLO, BEYOND].concat(), READ).await.unwrap(), [refused]);
    }

    #[tokio::test]
    async fn a_server_cut_off_anywhere_is_closed() {
        let whole = [HELLO, CONTENT].concat();
        for len in 0..whole.len() {
            let end = told(&whole[..len], READ).await;
            assert!(matches!(end, Err(ClientError::Closed)), "{len}: {end:?}");
        }
    }

    #[tokio::test]
    async fn a_misbehaving_server_is_left() {
        let mut greeting = HELLO.to_vec();
        greeting[0] ^= 1;
        let mut not_fixed = HELLO.to_vec();
        not_fixed[17] = 0;
        let mut long = HELLO.to_vec();
        long[34] = 0xff;
        let cases: [&[u8]; 5] = [
            &greeting,
            &not_fixed,
            &long,
            &[HELLO, b"\x67\x44\x66\x99\0\0\0\0\0\0\0\0\0\0\0\0abcd"].concat(),
            &[HELLO, b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01abcd"].concat(),
        ];
        for (i, words) in cases.into_iter().enumerate() {
            let end = told(words, READ).await;
            assert!(matches!(end, Err(ClientError::Misbehaved(_))), "{i}: {end:?}");
        }
    }
}
