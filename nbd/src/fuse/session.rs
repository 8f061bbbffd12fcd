//! Serving the file: requests of the kernel to a device's queue, and completions back, all in one task.
//!
//! As a connection of NBD's does it, but that `/dev/fuse` gives one request per read and takes one answer per write.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno as Os;
use slab::Slab;
use tokio::io::unix::AsyncFd;

use super::wire::{self, Body, Message};
use crate::device::{Completion, Device, Errno, Op, Outcome, Queue, ReadData, Request};
use crate::limits;

/// The room that a message needs at most. The kernel refuses to be read from with less.
const MESSAGE_BYTES: usize = wire::HEADERS_BYTES + wire::TRANSFER_BYTES as usize;

/// Payloads of at least this many bytes keep the buffer they arrived in; shorter ones are copied out of it.
const KEEP_BYTES: u32 = 128 << 10;

/// The longest range that is zeroed by one request of the device.
const ZERO_BYTES: u64 = 1 << 30;

/// Pieces of one answer, at most: what `writev` takes. Content in more of them is copied together.
const PIECES: usize = 1000;

const ENOSYS: u32 = 38;
const EPROTO: u32 = 71;

/// Serves a device to the kernel's end of a file system, until that is gone.
///
/// Dropping the future drops the kernel's end: whoever uses the file gets errors from then on.
///
/// # Errors
/// The kernel's end failed, other than by the file system's end.
pub async fn serve(kernel: OwnedFd, device: Arc<dyn Device>) -> io::Result<()> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
    #[expect(unsafe_code, reason = "tokio cannot know that of just any type")]
    let kernel = unsafe { AsyncFd::register(kernel) }?;
    let mut session = Session {
        kernel,
        queue: device.queue(),
        device,
        buffer: Vec::new(),
        pending: Slab::new(),
        pending_bytes: 0,
        completions: Vec::new(),
    };
    poll_fn(|cx| session.poll(cx)).await
}

struct Session {
    kernel: AsyncFd<OwnedFd>,
    device: Arc<dyn Device>,
    queue: Box<dyn Queue>,
    /// What the next message is read into.
    buffer: Vec<u8>,
    /// Requests the device has; their keys are the tokens.
    pending: Slab<Pending>,
    pending_bytes: u64,
    completions: Vec<Completion>,
}

struct Pending {
    unique: u64,
    /// What a read or write is about, in bytes; what a long zeroing still has to do.
    len: u64,
    offset: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero { may_free: bool },
    Fsync,
}

impl Session {
    /// Everything that can be done without waiting. Ready when the file system is gone.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let received = match self.poll_receive(cx) {
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(false)) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => false,
            };
            if !self.poll_complete(cx)? && !received {
                return Poll::Pending;
            }
        }
    }

    /// Takes all messages that are there and hands them to the device, as one batch. Ready with whether it was the
    /// last.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut submitted = false;
        let end = loop {
            let full = self.pending.len() >= limits::REQUESTS_IN_FLIGHT
                || self.pending_bytes >= limits::BYTES_IN_FLIGHT
                || self.queue.poll_room(cx).is_pending();
            if full {
                // Completions, or room in the device, go on with it.
                break Poll::Pending;
            }
            let Poll::Ready(mut guard) = self.kernel.poll_read_ready(cx)? else {
                break Poll::Pending;
            };
            self.buffer.clear();
            self.buffer.reserve_exact(MESSAGE_BYTES);
            match rustix::io::read(self.kernel.get_ref(), spare_capacity(&mut self.buffer)) {
                Ok(_) => {}
                Err(Os::AGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                // A request that was taken back before it was read.
                Err(Os::INTR | Os::NOENT) => continue,
                Err(Os::NODEV) => break Poll::Ready(Ok(true)),
                Err(error) => break Poll::Ready(Err(error.into())),
            }
            submitted |= self.handle()?;
        };
        if submitted {
            self.queue.kick();
            return match end {
                Poll::Pending => Poll::Ready(Ok(false)),
                end => end,
            };
        }
        end
    }

    /// Handles the message in the buffer. True if the device has got something to do.
    fn handle(&mut self) -> io::Result<bool> {
        let Some((Message { unique, body }, at)) = wire::decode(&self.buffer) else {
            tracing::error!(bytes = self.buffer.len(), "FUSE says something that makes no sense");
            return Ok(false);
        };
        let geometry = self.device.geometry();
        match body {
            Body::Init { major, readahead, flags } => {
                let answer = match wire::is_spoken(major) {
                    true => wire::init(readahead, flags),
                    false if major < 7 => {
                        self.send(&wire::error(unique, EPROTO), &[])?;
                        return Ok(false);
                    }
                    false => wire::version(),
                };
                self.answer(unique, &answer)?;
            }
            Body::GetAttr => self.answer(unique, &wire::attributes(&geometry))?,
            Body::Open => self.answer(unique, &wire::opened())?,
            Body::StatFs => self.answer(unique, &wire::file_system(&geometry))?,
            Body::Release => self.answer(unique, &[])?,
            Body::Silent => {}
            Body::Unknown => self.send(&wire::error(unique, ENOSYS), &[])?,
            Body::Fsync => {
                self.submit(Pending { unique, len: 0, offset: 0, kind: Kind::Fsync }, Op::Flush);
                return Ok(true);
            }
            Body::Read { offset, len } => {
                // What is behind the end is not there to be read.
                let len = u64::from(len).min(geometry.size.saturating_sub(offset)) as u32;
                if len == 0 {
                    self.answer(unique, &[])?;
                    return Ok(false);
                }
                let pending = Pending { unique, len: len.into(), offset, kind: Kind::Read };
                self.submit(pending, Op::Read { offset, len });
                return Ok(true);
            }
            Body::Write { .. } | Body::Zero { .. } if geometry.read_only => {
                self.refuse(unique, Errno::EPERM)?;
            }
            Body::Write { len: 0, .. } => self.answer(unique, &wire::written(0))?,
            Body::Write { offset, len } => {
                if ends_behind(offset, len.into(), geometry.size) {
                    self.refuse(unique, Errno::ENOSPC)?;
                    return Ok(false);
                }
                let data = self.take_payload(at, len);
                let pending = Pending { unique, len: len.into(), offset, kind: Kind::Write };
                self.submit(pending, Op::Write { offset, data, durable: false });
                return Ok(true);
            }
            Body::Zero { offset, len, may_free } => {
                if len == 0 || ends_behind(offset, len, geometry.size) {
                    self.refuse(unique, Errno::EINVAL)?;
                    return Ok(false);
                }
                self.zero(Pending { unique, len, offset, kind: Kind::Zero { may_free } });
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take_payload(&mut self, at: usize, len: u32) -> Bytes {
        if len < KEEP_BYTES {
            return Bytes::copy_from_slice(&self.buffer[at..]);
        }
        Bytes::from(std::mem::take(&mut self.buffer)).slice(at..)
    }

    fn submit(&mut self, pending: Pending, op: Op) {
        self.pending_bytes += pending.cost();
        let token = self.pending.insert(pending) as u64;
        self.queue.submit(Request { token, op });
    }

    /// Zeroes the first part of what is left.
    fn zero(&mut self, mut pending: Pending) {
        let Kind::Zero { may_free } = pending.kind else { return };
        let (offset, now) = (pending.offset, pending.len.min(ZERO_BYTES));
        pending.offset += now;
        pending.len -= now;
        let op = Op::WriteZeroes {
            offset,
            len: now as u32,
            may_discard: may_free,
            durable: false,
            fast: false,
        };
        self.submit(pending, op);
    }

    /// Answers what the device has completed. True if there was something.
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let mut completions = std::mem::take(&mut self.completions);
        let ready = self.queue.poll_completions(cx, &mut completions).is_ready();
        let mut submitted = false;
        for Completion { token, result } in completions.drain(..) {
            let Some(pending) = self.pending.try_remove(token as usize) else {
                tracing::error!(token, "the device completed a request it did not have");
                continue;
            };
            self.pending_bytes -= pending.cost();
            let more = matches!(pending.kind, Kind::Zero { .. }) && pending.len > 0;
            if more && result.is_ok() {
                self.zero(pending);
                submitted = true;
                continue;
            }
            self.complete(&pending, result)?;
        }
        self.completions = completions;
        if submitted {
            self.queue.kick();
        }
        Ok(ready)
    }

    fn complete(&self, pending: &Pending, result: Result<Outcome, Errno>) -> io::Result<()> {
        let unique = pending.unique;
        match (result, pending.kind) {
            (Ok(Outcome::Read(data)), Kind::Read) if data.len() == pending.len => {
                self.answer_read(unique, &data)
            }
            (Ok(Outcome::Done), Kind::Write) => {
                self.answer(unique, &wire::written(pending.len as u32))
            }
            (Ok(Outcome::Done), Kind::Zero { .. } | Kind::Fsync) => self.answer(unique, &[]),
            (Ok(_), _) => {
                tracing::error!("the device's answer does not fit the request");
                self.refuse(unique, Errno::EIO)
            }
            (Err(errno), _) => self.refuse(unique, errno),
        }
    }

    fn answer_read(&self, unique: u64, data: &ReadData) -> io::Result<()> {
        let pieces = data.pieces();
        let header = wire::header(unique, data.len() as usize);
        if pieces.len() < PIECES {
            return self.send(&header, &pieces);
        }
        let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.send(&header, &[IoSlice::new(&whole)])
    }

    fn answer(&self, unique: u64, payload: &[u8]) -> io::Result<()> {
        self.send(&wire::header(unique, payload.len()), &[IoSlice::new(payload)])
    }

    fn refuse(&self, unique: u64, errno: Errno) -> io::Result<()> {
        self.send(&wire::error(unique, errno.number()), &[])
    }

    /// Writing an answer never waits.
    fn send(&self, header: &[u8; 16], payload: &[IoSlice<'_>]) -> io::Result<()> {
        let mut slices = Vec::with_capacity(1 + payload.len());
        slices.push(IoSlice::new(header));
        slices.extend(payload.iter().filter(|slice| !slice.is_empty()));
        loop {
            match rustix::io::writev(self.kernel.get_ref(), &slices) {
                Ok(_) => return Ok(()),
                Err(Os::INTR) => {}
                // Whoever asked has gone, or all of it has: then reading says so.
                Err(Os::NOENT | Os::NODEV | Os::CONNABORTED) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Pending {
    /// The memory it may take until it is answered, in bytes.
    fn cost(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => self.len,
            _ => 0,
        }
    }
}

fn ends_behind(offset: u64, len: u64, size: u64) -> bool {
    offset.checked_add(len).is_none_or(|end| end > size)
}
