//! The data path: requests on an image become operations on its objects, and their results become completions.
//!
//! A [`Queue`] is what one user of an image has: requests go in one by one, [`Queue::kick`] sends them as one batch,
//! and completions come out in batches. Nothing is spawned, boxed or sent through a channel per request, and payload is
//! never copied: what is written is sent from where it is, and what is read is a slice of the receive buffer.

mod journaled;
mod layered;
mod staged;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use proto::msg::op::{Op, OsdOp};
use proto::msg::osd_op::Operation;
use proto::objecter::OpResult;
use proto::rbd::layout::{self, Layout};
use proto::rbd::names::DataNames;
use slab::Slab;

use self::journaled::Journaling;
use self::layered::{COPY_UP, guard};
use self::staged::{Change, Staged};
use super::Image;
use super::copyup::CopyUps;
use super::live::{Journal, Live};
use super::parent::{Fetches, shows};
use super::pending::{InFlight, Kind};
use crate::cluster::{Inbox, op_error, wall_clock};
use crate::error::Result;

/// Reads of at least this many bytes of an object ask which parts of it exist at all (librbd's
/// `rbd_sparse_read_threshold_bytes`): for smaller ones the answer costs more than the zeros.
const SPARSE_READ_BYTES: u64 = 64 << 10;

/// How many objects one question for allocated extents looks at; the answer then covers less than was asked.
const EXTENT_OBJECTS: usize = 256;

/// What a zeroed extent that must stay allocated is filled with, again and again.
static ZEROS: [u8; 4096] = [0; 4096];

/// Something to be done with an image. Offsets and lengths are bytes of the image.
#[derive(Clone, Debug)]
pub enum Io {
    /// Reads.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Writes. Complete when every replica has it on stable storage.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Gives space back where that is possible; what is read afterwards is undefined, in practice zeros or the old
    /// bytes.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Makes it read as zeros.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Whether the space may be given back.
        may_free: bool,
    },
    /// Complete when everything that was completed before is on stable storage: always, since a write is only complete
    /// then.
    Flush,
    /// Which parts hold data.
    Extents {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
}

impl Io {
    /// The bytes that it carries or asks for.
    fn cost(&self) -> u64 {
        match self {
            Self::Read { length, .. } => *length,
            Self::Write { data, .. } => data.len() as u64,
            Self::Discard { .. }
            | Self::WriteZeroes { .. }
            | Self::Flush
            | Self::Extents { .. } => 0,
        }
    }

    /// Whether it changes the image.
    fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. })
    }
}

/// A consecutive part of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes.
    Data(Bytes),
    /// That many zeros, which are not stored.
    Hole(u64),
}

impl Segment {
    /// Its length, in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(length) => *length,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A part of an image that holds data, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long, in bytes.
    pub length: u64,
    /// Whether it may hold something else than zeros.
    pub allocated: bool,
}

/// What a request that succeeded brings back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more.
    Done,
    /// The content, exactly as long as was asked, in consecutive segments.
    Read(Vec<Segment>),
    /// The content in one piece: the common case.
    ReadWhole(Bytes),
    /// Consecutive extents from the offset asked. They may cover less than was asked.
    Extents(Vec<Extent>),
}

/// A request that is done.
#[derive(Debug)]
pub struct Completion {
    /// The number that was given to [`Queue::submit`].
    pub token: u64,
    /// How it went.
    pub result: Result<Outcome>,
}

/// One user's way to an image. Dropping it drops completions: what was submitted still happens.
#[derive(Debug)]
pub struct Queue {
    image: Image,
    /// The image as it was when it was last looked.
    live: Arc<Live>,
    names: DataNames,
    inbox: Arc<Inbox>,
    requests: Slab<InFlight>,
    /// What each of these takes of the image's budget, in bytes.
    costs: Vec<u64>,
    done: Vec<Completion>,
    results: Vec<(u64, OpResult)>,
    /// Results that nobody had to be asked for.
    answered: Vec<(u64, OpResult)>,
    /// Changes that wait for the exclusive lock.
    parked: VecDeque<(u64, Io)>,
    /// Operations for which the object map is changed, by their tokens.
    staged: BTreeMap<u64, Staged>,
    last_staged: u64,
    /// How many of those wait for others to be done with their object.
    blocked: usize,
    /// Changes that are in the image's journal.
    journaling: Journaling,
    /// Of a clone: what is being read of the parent, and which objects are being made of that.
    parent: Option<Box<Fetches>>,
    copy_ups: CopyUps,
    /// Something was submitted that nobody has sent yet.
    unsent: bool,
}

impl Drop for Queue {
    fn drop(&mut self) {
        for (slot, _) in &self.requests {
            self.image.0.budget.give(1, self.costs[slot]);
        }
        self.abandon();
        self.leave_journal();
    }
}

impl Queue {
    pub(super) fn new(image: Image) -> Self {
        let inbox = Arc::default();
        image.0.current.tell(&inbox);
        let live = image.0.current.get();
        Self {
            names: DataNames::new(image.object_prefix()),
            parent: live.parent.as_ref().map(|parent| Box::new(Fetches::new(&parent.image))),
            copy_ups: CopyUps::default(),
            unsent: false,
            live,
            image,
            inbox,
            requests: Slab::new(),
            costs: Vec::new(),
            done: Vec::new(),
            results: Vec::new(),
            answered: Vec::new(),
            parked: VecDeque::new(),
            staged: BTreeMap::new(),
            last_staged: 0,
            blocked: 0,
            journaling: Journaling::default(),
        }
    }

    /// Ready if there is room for another request, of this image and of the whole process; otherwise the task of `cx`
    /// is woken when there is. What is submitted without asking is taken nevertheless.
    #[inline]
    pub fn poll_room(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.image.0.budget.poll_room(cx).is_pending() {
            return Poll::Pending;
        }
        self.image.cluster().poll_room(cx)
    }

    /// Takes a request, to be sent with the next [`Queue::kick`]. Its completion has this token.
    pub fn submit(&mut self, token: u64, io: Io) {
        // Whatever becomes one gets this slot.
        let (slot, cost) = (self.requests.vacant_key(), io.cost());
        self.begin(token, io);
        self.account(slot, cost);
    }

    /// Counts what became a request in flight.
    fn account(&mut self, slot: usize, cost: u64) {
        if self.requests.contains(slot) {
            self.costs.resize(self.costs.len().max(slot + 1), 0);
            self.costs[slot] = cost;
            self.image.0.budget.take(1, cost);
        }
    }

    fn begin(&mut self, token: u64, io: Io) {
        // Whatever changes the image waits for what is begun now, as long as this is held.
        let held = self.image.0.current.hold(&mut self.live);
        if let Err(error) = self.image.check(&self.live, &io) {
            return self.done.push(Completion { token, result: Err(error) });
        }
        if !io.changes() {
            // What is replayed is older, for a moment, than what was read before.
            if self.live.replays() && !self.journaling.replays {
                return self.park(token, io);
            }
        } else if !self.journaling.replays {
            if self.live.waits() {
                return self.park(token, io);
            }
            if let Journal::Open(journal) = &self.live.journal {
                let journal = Arc::clone(journal);
                return self.record(journal, token, io, held);
            }
        }
        self.perform(token, io);
    }

    /// Does it to the objects.
    fn perform(&mut self, token: u64, io: Io) {
        let layout = *self.image.layout();
        match io {
            Io::Flush => self.done.push(Completion { token, result: Ok(Outcome::Done) }),
            Io::Read { offset, length } => self.read(token, offset, length),
            Io::Extents { offset, length } => self.extents(token, offset, length),
            Io::Write { offset, data } => {
                let range = (offset, data.len() as u64);
                self.change(token, range, Kind::Write, |extent, _| {
                    write_ops(&layout, extent, gather(&layout, extent, offset, &data))
                });
            }
            Io::Discard { offset, length } => {
                let granularity = self.granularity();
                self.change(token, (offset, length), Kind::Zero, |extent, deletable| {
                    let op = discard_op(&layout, extent, granularity, deletable);
                    op.into_iter().map(OsdOp::from).collect()
                });
            }
            Io::WriteZeroes { offset, length, may_free: true } => {
                self.change(token, (offset, length), Kind::Zero, |extent, deletable| {
                    vec![zero_op(&layout, extent, deletable).into()]
                });
            }
            Io::WriteZeroes { offset, length, may_free: false } => {
                let range = (offset, length);
                self.change(token, range, Kind::Write, |extent, _| fill_ops(&layout, extent));
            }
        }
    }

    /// Sends everything that was submitted.
    pub fn kick(&mut self) {
        self.image.cluster().kick();
    }

    /// Appends completions. `Ready` if there was at least one.
    pub fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Completion>,
    ) -> Poll<()> {
        let before = out.len();
        out.append(&mut self.done);
        let mut results = std::mem::take(&mut self.results);
        while out.len() == before {
            self.resume();
            for (token, result) in std::mem::take(&mut self.answered) {
                self.handle_result(token, result, out);
            }
            out.append(&mut self.done);
            let fetched = self.poll_parent(cx, out);
            if out.len() > before {
                break;
            }
            let polled = self.inbox.poll_take(cx, &mut results);
            for (token, result) in results.drain(..) {
                self.handle_result(token, result, out);
            }
            if polled.is_pending() && fetched.is_pending() {
                break;
            }
        }
        self.results = results;
        if std::mem::take(&mut self.unsent) {
            self.image.cluster().kick();
        }
        if out.len() == before { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Takes what comes from the parent. `Ready` if something did.
    fn poll_parent(&mut self, cx: &mut Context<'_>, out: &mut Vec<Completion>) -> Poll<()> {
        let Some(parent) = &mut self.parent else { return Poll::Pending };
        let mut fetched = Vec::new();
        let polled = parent.poll(cx, &mut fetched);
        self.unsent |= polled.is_ready();
        for fetched in fetched {
            self.handle_fetched(fetched, out);
        }
        polled
    }

    fn read(&mut self, token: u64, offset: u64, length: u64) {
        let layout = *self.image.layout();
        let mut extents = layout.extents(offset, length);
        let Some(first) = extents.next() else {
            let result = Ok(Outcome::ReadWhole(Bytes::new()));
            return self.done.push(Completion { token, result });
        };
        let slot = self.requests.vacant_key();
        if first.len == length && !layout.is_striped() {
            let request = InFlight::new(token, 1, Kind::read_one(first));
            self.requests.insert(request.showing(self.live.overlap()));
            return self.read_object(&first, read_op(&first), piece_token(slot, 0));
        }
        let mut parts = vec![first];
        parts.extend(extents);
        for (i, extent) in parts.iter().enumerate() {
            self.read_object(extent, read_op(extent), piece_token(slot, i));
        }
        let count = parts.len();
        let request = InFlight::new(token, count, Kind::read_many(layout, parts));
        self.requests.insert(request.showing(self.live.overlap()));
    }

    /// Changes every extent of a range by the operations that `ops` gives for it, told whether removing an object
    /// makes it read as zeros.
    fn change(
        &mut self,
        token: u64,
        (offset, length): (u64, u64),
        kind: Kind,
        mut ops: impl FnMut(&layout::Extent, bool) -> Vec<OsdOp>,
    ) {
        let layout = *self.image.layout();
        let overlap = self.live.overlap();
        let slot = self.requests.vacant_key();
        let mut guarded = Vec::new();
        let mut count = 0;
        for extent in layout.extents(offset, length) {
            let shown = shows(&layout, extent.object, overlap);
            // What is not there is zero already.
            let object = extent.object;
            let absent = self.is_absent(object) && !self.is_staged(object);
            if matches!(kind, Kind::Zero) && !shown && absent {
                continue;
            }
            let mut ops = ops(&extent, !shown);
            if ops.is_empty() {
                continue;
            }
            if shown {
                let guard = guard(&layout, &extent, &mut ops, &self.live.snap_context);
                if let Some(guard) = &guard {
                    ops = guard.ops();
                }
                guarded.resize(count, None);
                guarded.push(guard);
            }
            self.write_object(&extent, ops, piece_token(slot, count));
            count += 1;
        }
        if count == 0 {
            return self.done.push(Completion { token, result: Ok(Outcome::Done) });
        }
        let request = InFlight::new(token, count, kind);
        self.requests.insert(request.showing(overlap).guarding(guarded));
    }

    fn extents(&mut self, token: u64, offset: u64, length: u64) {
        let layout = *self.image.layout();
        // Of a striped image only whole sets of objects can be told apart from what was left out.
        let set = (EXTENT_OBJECTS as u64) << layout.order();
        let length = length.min(set - offset % set);
        let slot = self.requests.vacant_key();
        let parts: Vec<_> = layout.extents(offset, length).collect();
        for (i, extent) in parts.iter().enumerate() {
            self.read_object(extent, Op::Stat, piece_token(slot, i));
        }
        if parts.is_empty() {
            let result = Ok(Outcome::Extents(Vec::new()));
            return self.done.push(Completion { token, result });
        }
        let count = parts.len();
        let request = InFlight::new(token, count, Kind::extents(layout, parts));
        self.requests.insert(request.showing(self.live.overlap()));
    }

    fn operation(&self, object: u64, ops: Vec<OsdOp>) -> Operation {
        let name = self.names.of(object);
        Operation::new(self.image.data_pool().locator(), name, ops)
    }

    fn is_absent(&self, object: u64) -> bool {
        self.live.map.as_ref().is_some_and(|map| map.is_absent(object))
    }

    fn read_object(&mut self, extent: &layout::Extent, op: Op, token: u64) {
        if self.is_absent(extent.object) {
            return self.answer_absent(op.code(), token);
        }
        let mut operation = self.operation(extent.object, vec![op.into()]);
        operation.snap = self.image.read_snap();
        let settings = &self.live.settings;
        operation.flags |= settings.read_flags.unwrap_or_else(|| self.image.cluster().read_flags());
        self.image.cluster().submit(operation, &self.inbox, token);
    }

    fn write_object(&mut self, extent: &layout::Extent, ops: Vec<OsdOp>, token: u64) {
        let change = match ops.last() {
            Some(OsdOp { op: Op::Delete, .. }) => Change::Remove,
            _ => Change::Write,
        };
        let snaps = Arc::clone(&self.live.snap_context);
        let mut operation = self.operation(extent.object, ops);
        operation.snap_context = snaps;
        operation.mtime = wall_clock();
        self.change_object(extent.object, change, operation, token);
    }

    /// Takes the result of one operation, and completes its request if it was the last.
    fn handle_result(&mut self, token: u64, result: OpResult, out: &mut Vec<Completion>) {
        let Some((token, result)) = self.take_staged(token, result) else { return };
        let (slot, piece) = ((token >> 32) as usize, token as u32 as usize);
        if slot == COPY_UP {
            return self.handle_copied_up(token as u32, result, out);
        }
        let Some(request) = self.requests.get_mut(slot) else { return };
        if request.overlap() > 0
            && result.as_ref().is_ok_and(|reply| reply.result == ENOENT)
            && self.ask_parent(slot, piece)
        {
            return;
        }
        let Some(request) = self.requests.get_mut(slot) else { return };
        let kept = match result {
            Ok(reply) => {
                let object = reply.object.clone();
                let kept = request.keep(piece, reply);
                kept.map_err(|errno| self.image.object_error(&object, errno))
            }
            Err(error) => Err(op_error(error).context(self.image.spec())),
        };
        self.part_done(slot, kept, out);
    }

    /// Counts a part of a request as done.
    fn part_done(&mut self, slot: usize, kept: Result<()>, out: &mut Vec<Completion>) {
        let Some(request) = self.requests.get_mut(slot) else { return };
        if request.one_done(kept) {
            let request = self.requests.remove(slot);
            self.image.0.budget.give(1, self.costs[slot]);
            self.done_of_journal(slot);
            out.push(Completion { token: request.token(), result: request.finish() });
        }
    }
}

const ENOENT: i32 = -2;

/// Names an operation: its request's slot, and which part of the request it is.
fn piece_token(slot: usize, piece: usize) -> u64 {
    (slot as u64) << 32 | piece as u64
}

fn read_op(extent: &layout::Extent) -> Op {
    let (offset, length) = (extent.offset, extent.len);
    match length < SPARSE_READ_BYTES {
        true => Op::Read { offset, length },
        false => Op::SparseRead { offset, length },
    }
}

/// What a write brings to one object: a slice of it, or, in a striped image, several slices in a row.
fn gather(layout: &Layout, extent: &layout::Extent, offset: u64, data: &Bytes) -> Bytes {
    let slice = |piece: &layout::Piece| {
        let at = (piece.image - offset) as usize;
        data.slice(at..at + piece.len as usize)
    };
    let mut pieces = layout.pieces(extent.object, extent.offset, extent.len);
    match pieces.next() {
        Some(only) if only.len == extent.len => slice(&only),
        first => {
            let mut gathered = BytesMut::with_capacity(extent.len as usize);
            for piece in first.into_iter().chain(pieces) {
                gathered.extend_from_slice(&slice(&piece));
            }
            gathered.freeze()
        }
    }
}

/// Writes, and tells the OSD how large the object will be, so that it lays it out for that.
fn write_ops(layout: &Layout, extent: &layout::Extent, data: Bytes) -> Vec<OsdOp> {
    let object_size = layout.object_size();
    let hint = Op::SetAllocHint { object_size, write_size: object_size, flags: 0 };
    let write = match extent.len == object_size {
        true => Op::WriteFull { data },
        false => Op::Write { offset: extent.offset, data },
    };
    vec![hint.into(), write.into()]
}

/// Makes an extent read as zeros and gives its space back. An object that is not there stays so.
fn zero_op(layout: &Layout, extent: &layout::Extent, deletable: bool) -> Op {
    let to_the_end = extent.offset + extent.len == layout.object_size();
    match (extent.offset, to_the_end) {
        (0, true) if deletable => Op::Delete,
        (offset, true) => Op::Truncate { size: offset },
        (offset, false) => Op::Zero { offset, length: extent.len },
    }
}

/// Gives back what is worth it of an extent; nothing if that is nothing.
fn discard_op(
    layout: &Layout,
    extent: &layout::Extent,
    granularity: u64,
    deletable: bool,
) -> Option<Op> {
    // Where grains are whole objects, cutting off an object's end is worth it (as librbd has it).
    let to_the_end = extent.offset + extent.len == layout.object_size();
    let as_it_is = to_the_end && (extent.offset == 0 || granularity == layout.object_size());
    let extent = if as_it_is { *extent } else { shrink(extent, granularity)? };
    Some(zero_op(layout, &extent, deletable))
}

/// Fills an extent with zeros that are stored.
fn fill_ops(layout: &Layout, extent: &layout::Extent) -> Vec<OsdOp> {
    let whole = extent.len - extent.len % ZEROS.len() as u64;
    let object_size = layout.object_size();
    let mut ops = vec![Op::SetAllocHint { object_size, write_size: object_size, flags: 0 }.into()];
    if whole > 0 {
        let data = Bytes::from_static(&ZEROS);
        ops.push(Op::WriteSame { offset: extent.offset, length: whole, data }.into());
    }
    let rest = (extent.len - whole) as usize;
    if rest > 0 {
        let data = Bytes::from_static(&ZEROS).slice(..rest);
        ops.push(Op::Write { offset: extent.offset + whole, data }.into());
    }
    ops
}

/// The part of an extent that consists of whole grains; nothing if there is none.
fn shrink(extent: &layout::Extent, grain: u64) -> Option<layout::Extent> {
    let begin = extent.offset.next_multiple_of(grain);
    let end = extent.offset + extent.len;
    let end = end - end % grain;
    (begin < end).then(|| layout::Extent { offset: begin, len: end - begin, ..*extent })
}
