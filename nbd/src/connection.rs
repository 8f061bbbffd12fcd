//! One connection: the handshake, then requests in and replies out, all in one task.
//!
//! Each turn of [`Transmission::poll`] does everything that is ready: one read takes many requests, which go to the
//! device's queue as one batch; everything the queue has completed goes out with one vectored write. Payloads are
//! slices of the receive buffer on the way in and of the device's buffers on the way out.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::device::{Completion, Device, Errno, Outcome, Queue, Request};
use crate::exports::{Export, Exports};
use crate::limits;
use crate::negotiate::{Agreed, Negotiation, Step, Violation};
use crate::replies::{Replies, refusal};
use crate::request::{self, Pending, Refusal, Terms};
use crate::socket::Socket;
use crate::wire::{RequestHeader, command};

/// A socket: what the server needs of one.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What connections count.
#[derive(Default)]
pub(crate) struct Counters {
    /// Connections that reached the transmission phase.
    pub(crate) connections: AtomicU64,
    /// Requests answered, with errors too.
    pub(crate) requests: AtomicU64,
    /// Requests that were in flight when the server began to shut down, and were answered.
    pub(crate) drained: AtomicU64,
    /// Requests that were in flight when a connection ended, and could not be answered.
    pub(crate) abandoned: AtomicU64,
}

/// How far a server is with shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    /// Not at all.
    Serving,
    /// What is in flight is finished, nothing new is begun.
    Draining,
    /// The same, and connections of the kernel's are given to whoever serves them next.
    HandingOver,
    /// Everything ends at once.
    Ended,
}

/// Why a connection ended in disorder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] Violation),
    #[error("the client said nothing for {} s during the handshake", limits::HANDSHAKE_IDLE.as_secs())]
    HandshakeIdle,
    #[error("something stands where a request should begin")]
    RequestMagic,
}

/// Serves one client until it leaves or the server shuts down.
pub(crate) async fn serve(
    mut stream: impl Stream,
    exports: Exports,
    counters: &Counters,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), ConnectionError> {
    let mut input = BytesMut::new();
    let agreed = tokio::select! {
        agreed = shake_hands(&mut stream, exports, &mut input) => agreed?,
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => return Ok(()),
    };
    let Some(agreed) = agreed else { return Ok(()) };
    counters.connections.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(export = agreed.export.name, structured = agreed.structured, "connected");
    Transmission::new(stream, agreed, input, counters).run(phase).await
}

/// Serves the kernel, which was told everything that the handshake is for, until it leaves or the server shuts down.
///
/// It is left when nothing is in flight, or without an answer to what is: the kernel asks again whoever serves it next.
/// If it is to be handed over, what is returned is how.
pub(crate) async fn serve_kernel(
    mut stream: Socket,
    input: BytesMut,
    export: Export,
    counters: &Counters,
    phase: watch::Receiver<Phase>,
) -> Result<Option<(Socket, BytesMut)>, ConnectionError> {
    let agreed = Agreed { export, structured: false, extents: false };
    counters.connections.fetch_add(1, Ordering::Relaxed);
    let mut transmission = Transmission::new(&mut stream, agreed, input, counters);
    transmission.asked_again = true;
    transmission.run(phase).await?;
    let whole = transmission.stands_still() && transmission.is_idle() && !transmission.end_of_input;
    let input = std::mem::take(&mut transmission.input);
    drop(transmission);
    Ok(whole.then_some((stream, input)))
}

/// `None` if the client left without choosing an export. What follows the handshake stays in `input`.
async fn shake_hands(
    stream: &mut impl Stream,
    exports: Exports,
    input: &mut BytesMut,
) -> Result<Option<Agreed>, ConnectionError> {
    let mut out = BytesMut::new();
    let mut negotiation = Negotiation::new(exports, &mut out);
    let mut deadline = Instant::now() + limits::HANDSHAKE_IDLE;
    loop {
        if !out.is_empty() {
            let write = timeout_at(deadline, stream.write_all_buf(&mut out)).await;
            write.map_err(|_| ConnectionError::HandshakeIdle)??;
        }
        let step = negotiation.handle(input, &mut out)?;
        match step {
            Step::More => {
                let read = timeout_at(deadline, stream.read_buf(input)).await;
                if read.map_err(|_| ConnectionError::HandshakeIdle)?? == 0 {
                    return Ok(None);
                }
            }
            // The deadline moves only with whole options, not with every byte of a client that drips.
            Step::Answered => deadline = Instant::now() + limits::HANDSHAKE_IDLE,
            Step::Agreed(agreed) => {
                let write = timeout_at(deadline, stream.write_all_buf(&mut out)).await;
                write.map_err(|_| ConnectionError::HandshakeIdle)??;
                return Ok(Some(agreed));
            }
            Step::Aborted => {
                // Clients may leave without waiting for the acknowledgement.
                let _ = timeout_at(deadline, stream.write_all_buf(&mut out)).await;
                return Ok(None);
            }
        }
    }
}

/// The transmission phase of one connection.
struct Transmission<'a, S> {
    stream: S,
    device: Arc<dyn Device>,
    queue: Box<dyn Queue>,
    terms: Terms,
    counters: &'a Counters,
    input: BytesMut,
    /// How long the last request with a payload was, in bytes.
    last_frame: usize,
    reading: Reading,
    end_of_input: bool,
    /// The socket has no more to read, and wakes us when it has.
    dry: bool,
    /// The device has completed no more, and wakes us when it has.
    quiet: bool,
    /// Requests the device has; their keys are the tokens.
    pending: Slab<Pending>,
    /// What these may take, in bytes.
    pending_cost: u64,
    completions: Vec<Completion>,
    replies: Replies,
    /// The server shuts down: so many requests were in flight then.
    draining: Option<usize>,
    /// What is left unanswered is asked again, of whoever serves the client next.
    asked_again: bool,
    /// The socket is given to somebody else as soon as nothing is in flight.
    handed_over: bool,
}

/// What is to be read next.
enum Reading {
    /// A request.
    Request,
    /// The payload of a request that is refused, of which so many bytes are still to come. The reply waits for them:
    /// clients don't expect one before they have sent everything.
    Refused { cookie: u64, refusal: Refusal, left: usize },
    /// Nothing more: the client has said so, or cannot be understood.
    Nothing(Result<(), ConnectionError>),
}

impl<'a, S: Stream> Transmission<'a, S> {
    fn new(stream: S, agreed: Agreed, input: BytesMut, counters: &'a Counters) -> Self {
        let Agreed { export, structured, extents } = agreed;
        Self {
            stream,
            queue: export.device.queue(),
            terms: Terms { geometry: export.device.geometry(), structured, extents },
            device: export.device,
            counters,
            input,
            last_frame: RequestHeader::BYTES,
            reading: Reading::Request,
            end_of_input: false,
            dry: false,
            quiet: false,
            pending: Slab::with_capacity(64),
            pending_cost: 0,
            completions: Vec::with_capacity(64),
            replies: Replies::default(),
            draining: None,
            asked_again: false,
            handed_over: false,
        }
    }

    /// Until the client leaves, or what the server has come to ends it.
    async fn run(&mut self, mut phase: watch::Receiver<Phase>) -> Result<(), ConnectionError> {
        let mut ending = phase.clone();
        let mut drain = pin!(phase.wait_for(|phase| *phase > Phase::Serving));
        let mut ended = pin!(ending.wait_for(|phase| *phase == Phase::Ended));
        let end = poll_fn(|cx| {
            if self.draining.is_none()
                && let Poll::Ready(phase) = drain.as_mut().poll(cx)
            {
                self.draining = Some(self.pending.len());
                self.handed_over = phase.is_ok_and(|phase| *phase == Phase::HandingOver);
            }
            if self.draining.is_some() && ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            self.poll(cx).map(Some)
        })
        .await;
        match end {
            // A socket that failed has nothing to wait for.
            Some(end) => end?,
            None => return Ok(()),
        }
        if !self.asked_again {
            tokio::select! {
                _ = timeout(limits::LINGER, self.linger()) => {}
                _ = ended => {}
            }
        }
        match std::mem::replace(&mut self.reading, Reading::Request) {
            Reading::Nothing(reason) => reason,
            _ => Ok(()),
        }
    }

    /// Everything that can be done without waiting. Ready when the connection is over and all that was to be said has
    /// been said.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Who said in this turn that there is nothing yet wakes us when there is: that is not asked again.
        (self.dry, self.quiet) = (false, false);
        loop {
            let received = self.poll_receive(cx)?;
            let parsed = self.parse(cx);
            let completed = self.poll_complete(cx);
            let sent = self.poll_send(cx)?;
            // The kernel often asks for more as soon as it has a reply. Somebody else can be asked that if we leave.
            self.dry &= !(sent && self.asked_again && self.draining.is_none());
            if received || parsed || completed || sent {
                continue;
            }
            let idle = self.is_idle();
            if self.stands_still() && idle {
                return Poll::Ready(Ok(()));
            }
            // What comes from now on can be asked of whoever serves the client next: nothing has to be asked again.
            if self.asked_again && self.draining.is_some() && idle && self.input.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // Where there is room, what is left of the input is no whole request.
            if self.is_last_read() && idle && (self.input.is_empty() || self.has_room(cx)) {
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    }

    /// Whether all that was asked is answered.
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.replies.bytes() == 0
    }

    /// Whether what comes next is for somebody else: not in the middle of a request that is refused.
    fn stands_still(&self) -> bool {
        self.handed_over && self.asked_again && matches!(self.reading, Reading::Request)
    }

    /// Whether nothing more will be read from the socket.
    fn is_last_read(&self) -> bool {
        let leaves = self.draining.is_some() && (!self.asked_again || self.stands_still());
        self.end_of_input || leaves || matches!(self.reading, Reading::Nothing(_))
    }

    /// Whether one more request may be taken in. If not, this task is woken when it may: by the device, or as what is
    /// in flight is completed and sent.
    fn has_room(&mut self, cx: &mut Context<'_>) -> bool {
        self.pending.len() < limits::REQUESTS_IN_FLIGHT
            && self.pending_cost + self.replies.bytes() < limits::BYTES_IN_FLIGHT
            && self.queue.poll_room(cx).is_ready()
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        // What is whole already is taken off first: room for it may have come since it was looked at.
        if self.dry || self.is_last_read() || self.has_request() || !self.has_room(cx) {
            return Ok(false);
        }
        let most = self.make_room();
        match pin!(self.stream.read_buf(&mut (&mut self.input).limit(most))).poll(cx) {
            Poll::Pending => {
                self.dry = true;
                Ok(false)
            }
            Poll::Ready(Ok(0)) => {
                // Replies still go out: the client may have closed its half only.
                self.end_of_input = true;
                Ok(true)
            }
            Poll::Ready(read) => read.map(|_| true),
        }
    }

    /// Whether a request can be taken off the input without reading more: one that is longer than any may be is
    /// refused by its header.
    fn has_request(&self) -> bool {
        let Some(bytes) = self.input.first_chunk() else { return false };
        RequestHeader::decode(bytes).is_none_or(|header| {
            let payload = header.payload();
            payload > limits::TRANSFER_BYTES as usize
                || self.input.len() >= RequestHeader::BYTES + payload
        })
    }

    /// Makes room in the input for what is to be read next, and says how much that may be: a good read, or, of a long
    /// request, what is missing and little more. No whole request is there yet.
    fn make_room(&mut self) -> usize {
        let frame = match self.input.first_chunk().and_then(RequestHeader::decode) {
            Some(header) => RequestHeader::BYTES + header.payload(),
            // Probably it is like the last one.
            None => self.last_frame,
        };
        let spare = self.input.capacity() - self.input.len();
        let missing = frame.saturating_sub(self.input.len());
        let (capacity, least, most) = if frame > limits::LONG_REQUEST_BYTES {
            let most = missing + limits::BEHIND_LONG_BYTES;
            (frame + limits::BEHIND_LONG_BYTES, most, most)
        } else {
            (limits::RECEIVE_BYTES, missing.max(limits::RECEIVE_SPARE_BYTES), usize::MAX)
        };
        if spare < least && !self.input.try_reclaim(capacity - self.input.len()) {
            let mut fresh = BytesMut::with_capacity(capacity);
            fresh.extend_from_slice(&self.input);
            self.input = fresh;
        }
        most
    }

    /// Takes requests off the input and hands them to the device, as one batch.
    fn parse(&mut self, cx: &mut Context<'_>) -> bool {
        if self.input.is_empty() || self.stands_still() {
            return false;
        }
        let mut parsed = false;
        let mut submitted = false;
        self.terms.geometry = self.device.geometry();
        // A request that was refused is to be answered, though there be no more to read.
        while (!self.input.is_empty() || matches!(self.reading, Reading::Refused { .. }))
            && self.has_room(cx)
        {
            if let Reading::Refused { cookie, refusal, left } = self.reading {
                let now = left.min(self.input.len());
                self.input.advance(now);
                if now < left {
                    self.reading = Reading::Refused { cookie, refusal, left: left - now };
                    break;
                }
                self.reading = Reading::Request;
                self.answer_error(cookie, refusal);
                parsed = true;
            }
            if matches!(self.reading, Reading::Nothing(_)) || self.stands_still() {
                break;
            }
            let Some(bytes) = self.input.first_chunk() else { break };
            let Some(header) = RequestHeader::decode(bytes) else {
                self.reading = Reading::Nothing(Err(ConnectionError::RequestMagic));
                break;
            };
            parsed = true;
            if header.command == command::DISC {
                self.reading = Reading::Nothing(Ok(()));
                break;
            }
            let checked = match self.draining {
                Some(_) if !self.asked_again => {
                    Err((Errno::ESHUTDOWN, "the server is shutting down"))
                }
                _ => request::check(&header, &self.terms),
            };
            if let Err(refusal) = checked {
                self.input.advance(RequestHeader::BYTES);
                let (cookie, left) = (header.cookie, header.payload());
                self.reading = Reading::Refused { cookie, refusal, left };
                continue;
            }
            let Some(data) = self.take_payload(header.payload()) else {
                parsed = false;
                break;
            };
            let pending = Pending::new(&header);
            self.pending_cost += pending.cost();
            let token = self.pending.insert(pending) as u64;
            self.queue.submit(Request { token, op: request::operation(&header, data) });
            submitted = true;
        }
        if submitted {
            self.queue.kick();
            self.quiet = false;
        }
        parsed || submitted
    }

    /// Takes the header off the input, and so many bytes of payload; `None` if they are not all there.
    fn take_payload(&mut self, payload: usize) -> Option<Bytes> {
        if payload == 0 {
            self.input.advance(RequestHeader::BYTES);
            return Some(Bytes::new());
        }
        let frame = RequestHeader::BYTES + payload;
        if self.input.len() < frame {
            return None;
        }
        self.last_frame = frame;
        self.input.advance(RequestHeader::BYTES);
        let data = self.input.split_to(payload).freeze();
        if frame > limits::RECEIVE_BYTES {
            // A buffer made for this payload goes with it.
            self.input = BytesMut::from(&self.input[..]);
        }
        Some(data)
    }

    /// Turns what the device has completed into replies.
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> bool {
        if self.quiet || self.pending.is_empty() {
            return false;
        }
        let mut completions = std::mem::take(&mut self.completions);
        let ready = self.queue.poll_completions(cx, &mut completions).is_ready();
        for Completion { token, result } in completions.drain(..) {
            match self.pending.try_remove(token as usize) {
                Some(request) => {
                    self.pending_cost -= request.cost();
                    self.answer(&request, result);
                }
                None => tracing::error!(token, "the device completed a request it did not have"),
            }
        }
        self.completions = completions;
        self.quiet = !ready;
        ready
    }

    fn answer(&mut self, request: &Pending, result: Result<Outcome, Errno>) {
        let fits = match (&result, request.command) {
            (Ok(Outcome::Read(data)), command::READ) => data.len() == u64::from(request.len),
            (Ok(Outcome::Extents(extents)), command::BLOCK_STATUS) => {
                extents.first().is_some_and(|extent| extent.len > 0)
            }
            (Ok(Outcome::Done), command::READ | command::BLOCK_STATUS) => false,
            (Ok(Outcome::Done) | Err(_), _) => true,
            _ => false,
        };
        if !fits {
            tracing::error!(
                command = request.command,
                offset = request.offset,
                len = request.len,
                "the device's answer does not fit the request"
            );
            return self.answer_error(request.cookie, (Errno::EIO, Errno::EIO.message()));
        }
        match result {
            Ok(Outcome::Read(data)) => self.replies.read(request, data, self.terms.structured),
            Ok(Outcome::Extents(extents)) => self.replies.extents(request, &extents),
            Ok(Outcome::Done) => self.replies.done(request.cookie),
            Err(errno) => return self.answer_error(request.cookie, refusal(request, errno)),
        }
        self.count();
    }

    fn answer_error(&mut self, cookie: u64, refusal: Refusal) {
        self.replies.error(cookie, refusal, self.terms.structured);
        self.count();
    }

    fn count(&self) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends replies until there are none left, or the socket takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut sent = false;
        while self.replies.bytes() > 0 {
            // Room for many costs as much as the rest of this does for few.
            let (mut few, mut many) = ([IoSlice::new(&[]); limits::FEW_PIECES], None);
            let mut slices = &mut few[..];
            let mut filled = self.replies.fill(slices);
            if filled == limits::FEW_PIECES {
                slices = many.insert([IoSlice::new(&[]); limits::WRITE_PIECES]);
                filled = self.replies.fill(slices);
            }
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.replies.advance(written?),
            }
            sent = true;
        }
        Ok(sent)
    }

    /// Closes our half, and waits for the client to close its own.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        loop {
            self.input.clear();
            self.input.reserve(4096);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(());
            }
        }
    }
}

impl<S> Drop for Transmission<'_, S> {
    fn drop(&mut self) {
        let left = self.pending.len() as u64;
        self.counters.abandoned.fetch_add(left, Ordering::Relaxed);
        if let Some(in_flight) = self.draining {
            let drained = (in_flight as u64).saturating_sub(left);
            self.counters.drained.fetch_add(drained, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::ReadBuf;

    use super::*;
    use crate::device::Geometry;
    use crate::memory::MemoryDevice;

    /// What a connection ended with, when its client says `words` with pauses of `pause` seconds between them.
    async fn ended(words: &[&[u8]], pause: u64) -> (Result<(), ConnectionError>, u64) {
        let disk = Export::new("disk", MemoryDevice::new(Geometry::new(4096)));
        let (mut client, server) = tokio::io::duplex(4096);
        let (_phase, phase) = watch::channel(Phase::Serving);
        let counters = Counters::default();
        let began = Instant::now();
        let talk = async {
            for word in words {
                if client.write_all(word).await.is_err() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_secs(pause)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = serve(server, Exports::new(vec![disk]).unwrap(), &counters, phase) => {
                (end, began.elapsed().as_secs())
            }
            () = talk => unreachable!("it waits for ever"),
        }
    }

    /// A client that has said everything already, and how much of it was read, each time.
    struct Said {
        bytes: Vec<u8>,
        reads: Arc<Mutex<Vec<usize>>>,
    }

    impl AsyncRead for Said {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let count = self.bytes.len().min(buf.remaining());
            buf.put_slice(&self.bytes[..count]);
            self.bytes.drain(..count);
            self.reads.lock().unwrap().push(count);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Said {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// How much is read at a time of writes of these lengths.
    async fn reads_of(lens: &[usize]) -> Vec<usize> {
        let mut bytes = Vec::new();
        for len in lens {
            bytes.extend_from_slice(&0x2560_9513u32.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 1]);
            bytes.extend_from_slice(&[0; 16]);
            bytes.extend_from_slice(&(*len as u32).to_be_bytes());
            bytes.resize(bytes.len() + len, 7);
        }
        let device = MemoryDevice::new(Geometry::new(1 << 20));
        let export = Export::new("disk", device);
        let agreed = Agreed { export, structured: false, extents: false };
        let reads = Arc::new(Mutex::new(Vec::new()));
        let said = Said { bytes, reads: Arc::clone(&reads) };
        let counters = Counters::default();
        let (_phase, phase) = watch::channel(Phase::Serving);
        let mut served = Transmission::new(said, agreed, BytesMut::new(), &counters);
        served.run(phase).await.unwrap();
        assert_eq!(counters.requests.load(Ordering::Relaxed), lens.len() as u64);
        drop(served);
        let reads = reads.lock().unwrap();
        reads.iter().copied().filter(|read| *read > 0).collect()
    }

    #[tokio::test]
    async fn of_what_follows_a_long_request_little_has_to_be_moved() {
        const LEN: usize = 128 << 10;
        let reads = reads_of(&[LEN; 20]).await;
        // The first read cannot know what comes.
        let mut at = reads[0];
        for read in &reads[1..] {
            at += read;
            let behind = at % (RequestHeader::BYTES + LEN);
            assert!(behind <= limits::BEHIND_LONG_BYTES, "{behind} bytes behind a request");
        }
        assert!(reads.len() <= 21, "{} reads of 20 requests", reads.len());
    }

    #[tokio::test]
    async fn short_requests_are_read_together() {
        let reads = reads_of(&[4096; 620]).await;
        assert!(reads.len() <= 11, "{reads:?}");
    }

    /// A client that asks for something else as soon as it has a reply, and wakes nobody.
    struct Prompt {
        asks: bool,
        left: usize,
    }

    impl AsyncRead for Prompt {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.left == 0 || !std::mem::take(&mut self.asks) {
                return Poll::Pending;
            }
            self.left -= 1;
            buf.put_slice(&0x2560_9513u32.to_be_bytes());
            buf.put_slice(&[0; 22]);
            buf.put_slice(&512u16.to_be_bytes());
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Prompt {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.asks = true;
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn of_the_kernel_more_is_read_as_soon_as_it_has_a_reply_but_not_by_who_leaves() {
        for (draining, expected) in [(None, 3), (Some(0), 0)] {
            let counters = Counters::default();
            let export = Export::new("disk", MemoryDevice::new(Geometry::new(4096)));
            let agreed = Agreed { export, structured: false, extents: false };
            let prompt = Prompt { asks: false, left: 3 };
            let mut served = Transmission::new(prompt, agreed, BytesMut::new(), &counters);
            served.asked_again = true;
            served.draining = draining;
            // There is nothing to read before this is sent.
            served.replies.done(1);
            let once = poll_fn(|cx| Poll::Ready(served.poll(cx)));
            assert_eq!(once.await.is_ready(), draining.is_some());
            assert_eq!(counters.requests.load(Ordering::Relaxed), expected, "{draining:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_left() {
        let (end, seconds) = ended(&[], 0).await;
        assert!(matches!(end, Err(ConnectionError::HandshakeIdle)), "{end:?}");
        assert_eq!(seconds, limits::HANDSHAKE_IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn dripping_bytes_do_not_count_as_saying_something() {
        let words: Vec<&[u8]> = b"\0\0\0\x03IHAVEOPT\0\0\0\x03".chunks(1).collect();
        let (end, seconds) = ended(&words, limits::HANDSHAKE_IDLE.as_secs() / 4).await;
        assert!(matches!(end, Err(ConnectionError::HandshakeIdle)), "{end:?}");
        assert_eq!(seconds, limits::HANDSHAKE_IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn whole_options_do() {
        let list: &[u8] = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
        let pause = limits::HANDSHAKE_IDLE.as_secs() - 10;
        let (end, seconds) = ended(&[b"\0\0\0\x03", list, list, list], pause).await;
        assert!(matches!(end, Err(ConnectionError::HandshakeIdle)), "{end:?}");
        // The hello alone moves nothing, each of the three options after it does.
        assert_eq!(seconds, 3 * pause + limits::HANDSHAKE_IDLE.as_secs());
    }
}
