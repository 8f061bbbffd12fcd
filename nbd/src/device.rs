//! The seam between a block device and whatever serves it: a queue of requests in, batches of completions out.
//!
//! It has the shape of io_uring and ublk: nothing is spawned, boxed or sent per request. A server takes everything that
//! is ready, [`submit`](Queue::submit)s each request, [`kick`](Queue::kick)s once, and takes completions in batches
//! with [`poll_completions`](Queue::poll_completions), in whatever order they come. [`memory`](crate::memory) is the
//! smallest complete example.

use std::fmt;
use std::io::IoSlice;
use std::task::{Context, Poll};

use bytes::Bytes;

/// A block device: a range of bytes that can be read and written through [`Queue`]s.
pub trait Device: Send + Sync + 'static {
    /// What the device looks like now. Asked before every batch of requests, so that a resize is seen at once: must be
    /// cheap and must not block. Only [`size`](Geometry::size) and [`read_only`](Geometry::read_only) may change.
    fn geometry(&self) -> Geometry;

    /// A new queue, for one connection.
    fn queue(&self) -> Box<dyn Queue>;
}

/// One user's way to a device. Queues of one device see each other's completed writes, and a flush on one of them
/// covers what was completed on any.
///
/// Dropping a queue drops its completions only: requests that were submitted still happen.
pub trait Queue: Send + 'static {
    /// Takes a request. Never blocks, never refuses, and need not send anything yet.
    ///
    /// The server has checked the range against the size and the block sizes of [`Device::geometry`]; a device that
    /// shrank in between answers [`Errno::EINVAL`]. How much one connection has in flight is bounded by the server, how
    /// much all of them have by [`Queue::poll_room`].
    fn submit(&mut self, request: Request);

    /// Ready if the device has room for another request; otherwise the task of `cx` is woken when it has. The server
    /// then leaves what comes where it is, in the socket. Asked before every request: must be cheap.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Ready(())
    }

    /// Everything submitted so far goes out now, as one batch. Never blocks.
    fn kick(&mut self);

    /// Appends all completions that are there to `out`. `Ready` if there was at least one; otherwise the task of `cx`
    /// is woken when there is. Every request is completed exactly once.
    ///
    /// A server relies on being woken: after `Pending` it need not ask again in the same turn of its task, whatever
    /// else it does in that, unless it has submitted something since.
    fn poll_completions(&mut self, cx: &mut Context<'_>, out: &mut Vec<Completion>) -> Poll<()>;
}

/// The properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Its size, in bytes.
    pub size: u64,
    /// Whether all changes are refused.
    pub read_only: bool,
    /// Offsets and lengths must be multiples of this many bytes. A power of two, at most 64 KiB.
    pub minimum_block: u32,
    /// Requests aligned to this many bytes are efficient. A power of two, at least 512 and the minimum block.
    pub preferred_block: u32,
    /// The longest read or write, in bytes. At least the preferred block.
    pub maximum_transfer: u32,
    /// Whether completed writes may still be volatile, so that [`Op::Flush`] has a meaning. If not, they never are.
    pub can_flush: bool,
    /// Whether a change can be asked to be durable on completion.
    pub can_be_durable: bool,
    /// Whether [`Op::Discard`] does anything.
    pub can_discard: bool,
    /// Discards of less than this many bytes, a power of two, or not aligned to it, free nothing. Clients of NBD cannot
    /// be told.
    pub discard_granularity: u32,
    /// Whether [`Op::WriteZeroes`] is there.
    pub can_write_zeroes: bool,
    /// Whether a flush on one queue covers what was completed on all queues, of this process and of others.
    pub coherent_queues: bool,
    /// Whether seeking costs.
    pub rotational: bool,
}

impl Geometry {
    /// A device of `size` bytes that can do everything, in blocks of one byte.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            read_only: false,
            minimum_block: 1,
            preferred_block: 4096,
            maximum_transfer: 32 << 20,
            can_flush: true,
            can_be_durable: true,
            can_discard: true,
            discard_granularity: 4096,
            can_write_zeroes: true,
            coherent_queues: true,
            rotational: false,
        }
    }
}

/// Something to be done, and the number under which its completion comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the submitter, unique among the requests in flight on one queue.
    pub token: u64,
    /// What is to be done.
    pub op: Op,
}

/// What can be done with a device. Offsets and lengths are in bytes; no length is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads; completes with [`Outcome::Read`].
    Read {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// Writes.
    Write {
        /// Where.
        offset: u64,
        /// What. Often a slice of a larger receive buffer, which it keeps alive.
        data: Bytes,
        /// Completes only when on stable storage.
        durable: bool,
    },
    /// Completes when every change completed before (on any queue) is on stable storage.
    Flush,
    /// The content is no longer needed: space may be freed. What is read afterwards is undefined.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
        /// Completes only when on stable storage.
        durable: bool,
    },
    /// The content becomes zeros.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
        /// Space may be freed; otherwise it stays (or becomes) allocated.
        may_discard: bool,
        /// Completes only when on stable storage.
        durable: bool,
        /// Fails at once with [`Errno::ENOTSUP`], changing nothing, unless it is faster than writing zeros.
        fast: bool,
    },
    /// Which parts are allocated; completes with [`Outcome::Extents`].
    Extents {
        /// Where.
        offset: u64,
        /// How much. The answer may cover less, if it covers something.
        len: u32,
    },
    /// The range will be read soon. Completes without waiting for anything.
    Prefetch {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
    },
}

/// A request that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's token.
    pub token: u64,
    /// How it went.
    pub result: Result<Outcome, Errno>,
}

/// What a request that succeeded brings back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing beyond success.
    Done,
    /// The content, exactly as long as was asked.
    Read(ReadData),
    /// Consecutive extents from the offset asked; at least one.
    Extents(Vec<Extent>),
}

impl From<Bytes> for Outcome {
    fn from(data: Bytes) -> Self {
        Self::Read(ReadData::Whole(data))
    }
}

/// Content that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadData {
    /// One piece: the common case.
    Whole(Bytes),
    /// Consecutive pieces, none of them empty.
    Segments(Vec<Segment>),
}

impl ReadData {
    /// The length of the content, in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Whole(data) => data.len() as u64,
            Self::Segments(segments) => segments.iter().map(Segment::len).sum(),
        }
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content in pieces to be written, holes as zeros.
    pub(crate) fn pieces(&self) -> Vec<IoSlice<'_>> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let segments = match self {
            Self::Whole(data) => return vec![IoSlice::new(data)],
            Self::Segments(segments) => segments,
        };
        let mut pieces = Vec::with_capacity(segments.len());
        for segment in segments {
            match segment {
                Segment::Data(data) => pieces.push(IoSlice::new(data)),
                Segment::Hole(len) => {
                    let mut left = *len as usize;
                    while left > 0 {
                        let now = left.min(ZEROES.len());
                        pieces.push(IoSlice::new(&ZEROES[..now]));
                        left -= now;
                    }
                }
            }
        }
        pieces
    }
}

/// A piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes.
    Data(Bytes),
    /// That many zeros which are not stored anywhere.
    Hole(u32),
}

impl Segment {
    /// The length of the piece, in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(len) => u64::from(*len),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A range of one allocation state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length, in bytes; not zero.
    pub len: u64,
    /// Its state.
    pub state: Allocation,
}

/// How a range is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Stored, or not known: always a safe answer.
    Data,
    /// Stored, and known to be zeros.
    Zeroes,
    /// Not stored: reads as zeros.
    Hole,
}

/// Why a request failed: the errors a block device's user can do something with, with Linux' numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u32);

impl Errno {
    /// Not permitted: a change of something read-only, or access was taken away.
    pub const EPERM: Self = Self(1);
    /// The device failed.
    pub const EIO: Self = Self(5);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// The request makes no sense, or leaves the device.
    pub const EINVAL: Self = Self(22);
    /// No space left, or a write beyond the end.
    pub const ENOSPC: Self = Self(28);
    /// Too large.
    pub const EOVERFLOW: Self = Self(75);
    /// Not supported (only for [`Op::WriteZeroes`] that has to be fast).
    pub const ENOTSUP: Self = Self(95);
    /// The server is shutting down.
    pub const ESHUTDOWN: Self = Self(108);

    /// The error for a number of Linux, which is mapped to the nearest one there is: quota and size limits are
    /// `ENOSPC`, refusals `EPERM`, everything else unknown `EIO`.
    pub fn from_os(number: i32) -> Self {
        match number.unsigned_abs() {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Self::EPERM,
            12 => Self::ENOMEM,
            22 => Self::EINVAL,
            // EFBIG, ENOSPC, EDQUOT
            27 | 28 | 122 => Self::ENOSPC,
            75 => Self::EOVERFLOW,
            95 => Self::ENOTSUP,
            108 => Self::ESHUTDOWN,
            _ => Self::EIO,
        }
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// What it says, for people.
    pub fn message(self) -> &'static str {
        match self {
            Self::EPERM => "operation not permitted",
            Self::ENOMEM => "out of memory",
            Self::EINVAL => "invalid request",
            Self::ENOSPC => "no space left on device",
            Self::EOVERFLOW => "request too large",
            Self::ENOTSUP => "operation not supported",
            Self::ESHUTDOWN => "shut down",
            _ => "input/output error",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::EPERM => "EPERM",
            Self::ENOMEM => "ENOMEM",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::ENOTSUP => "ENOTSUP",
            Self::ESHUTDOWN => "ESHUTDOWN",
            _ => "EIO",
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message(), self.name())
    }
}

impl std::error::Error for Errno {}
