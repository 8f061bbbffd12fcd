//! An image as a block device that others can use: the seam to NBD.

use std::task::{Context, Poll};
use std::time::Duration;

use nbd::device::{Allocation, Completion, Device, Errno, Extent, Geometry, Op, Outcome, ReadData};
use nbd::device::{Queue, Request, Segment};
use tokio::time::Instant;

use crate::error::{Error, Kind};
use crate::image::{self, Image, Io};

/// The longest read or write, in bytes: what NBD clients take for granted at most.
const MAXIMUM_TRANSFER: u32 = 32 << 20;

/// An image, offered to NBD clients.
#[derive(Clone, Debug)]
pub struct ImageDevice {
    image: Image,
}

impl ImageDevice {
    /// Offers an image as it was opened: one that was opened read-only stays so.
    pub fn new(image: Image) -> Self {
        Self { image }
    }
}

impl Device for ImageDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: self.image.is_read_only(),
            preferred_block: 4096,
            discard_granularity: u32::try_from(self.image.discard_granularity()).unwrap_or(4096),
            maximum_transfer: MAXIMUM_TRANSFER,
            ..Geometry::new(self.image.size())
        }
    }

    fn queue(&self) -> Box<dyn Queue> {
        Box::new(ImageQueue {
            queue: self.image.queue(),
            done: Vec::new(),
            refused: Vec::new(),
            complaints: Complaints::default(),
        })
    }
}

/// How often failed I/O is told of: whoever goes on in spite of it would fill the log.
const COMPLAIN: Duration = Duration::from_secs(5);

/// What was said about failed I/O.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn about(&mut self, error: &Error) {
        // That it will go on like this was said when it began.
        if error.kind() == Kind::Fenced || self.last.is_some_and(|last| last.elapsed() < COMPLAIN) {
            self.unsaid += 1;
            return tracing::debug!(%error, "I/O failed");
        }
        let before = std::mem::take(&mut self.unsaid);
        self.last = Some(Instant::now());
        match before {
            0 => tracing::error!(%error, "I/O failed"),
            before => tracing::error!(%error, before, "I/O failed, as that many before it did"),
        }
    }
}

struct ImageQueue {
    queue: image::Queue,
    done: Vec<image::Completion>,
    /// Requests that want something fast that is not.
    refused: Vec<u64>,
    complaints: Complaints,
}

impl Queue for ImageQueue {
    fn submit(&mut self, request: Request) {
        // Giving space back is fast, filling it with zeros is not.
        if let Op::WriteZeroes { may_discard: false, fast: true, .. } = request.op {
            return self.refused.push(request.token);
        }
        self.queue.submit(request.token, io(request.op));
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_room(cx)
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn poll_completions(&mut self, cx: &mut Context<'_>, out: &mut Vec<Completion>) -> Poll<()> {
        let refused = self.refused.drain(..);
        let before = out.len();
        out.extend(refused.map(|token| Completion { token, result: Err(Errno::ENOTSUP) }));
        if self.queue.poll_completions(cx, &mut self.done).is_pending() && out.len() == before {
            return Poll::Pending;
        }
        out.extend(self.done.drain(..).map(|done| {
            let result = done.result.map(outcome).map_err(|error| {
                self.complaints.about(&error);
                Errno::from_os(error.errno())
            });
            Completion { token: done.token, result }
        }));
        Poll::Ready(())
    }
}

/// A write is complete only when it is on stable storage of every replica: whether it was asked to be durable makes no
/// difference.
fn io(op: Op) -> Io {
    match op {
        Op::Read { offset, len } => Io::Read { offset, length: len.into() },
        Op::Write { offset, data, durable: _ } => Io::Write { offset, data },
        Op::Flush => Io::Flush,
        Op::Discard { offset, len, durable: _ } => Io::Discard { offset, length: len.into() },
        Op::WriteZeroes { offset, len, may_discard, fast: _, durable: _ } => {
            Io::WriteZeroes { offset, length: len.into(), may_free: may_discard }
        }
        Op::Extents { offset, len } => Io::Extents { offset, length: len.into() },
        // The OSDs cache for themselves; there is no cache here to fill.
        Op::Prefetch { .. } => Io::Flush,
    }
}

fn outcome(outcome: image::Outcome) -> Outcome {
    match outcome {
        image::Outcome::Done => Outcome::Done,
        image::Outcome::ReadWhole(data) => Outcome::Read(ReadData::Whole(data)),
        image::Outcome::Read(segments) => Outcome::Read(ReadData::Segments(
            segments
                .into_iter()
                .map(|segment| match segment {
                    image::Segment::Data(data) => Segment::Data(data),
                    // No request is longer than 32 MiB.
                    image::Segment::Hole(length) => Segment::Hole(length as u32),
                })
                .collect(),
        )),
        image::Outcome::Extents(extents) => Outcome::Extents(
            extents
                .into_iter()
                .map(|extent| Extent {
                    len: extent.length,
                    state: match extent.allocated {
                        true => Allocation::Data,
                        false => Allocation::Hole,
                    },
                })
                .collect(),
        ),
    }
}
