//! Requests whose operations are in flight, and how the results of those become the request's.

use bytes::Bytes;
use proto::msg::op::{code, decode_sparse_read};
use proto::msg::osd_op::{OpReply, Reply};
use proto::rbd::layout::{self, Layout};

use super::copyup::Guarded;
use super::io::{Extent, Outcome, Segment};
use super::parent::Content;
use crate::error::{Error, Result};

const ENOENT: i32 = -2;
const EIO: i32 = -5;

/// A request that waits for operations.
#[derive(Debug)]
pub(super) struct InFlight {
    token: u64,
    pending: usize,
    error: Option<Error>,
    kind: Kind,
    /// How much of a parent shows where objects are missing.
    overlap: u64,
    /// Of a change, those parts that need their object to be there.
    guarded: Vec<Option<Guarded>>,
}

/// What is to be done where an object is missing that the parent may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// Reading what the parent has.
    Read(layout::Extent),
    /// Asking which parts of that hold data.
    Map(layout::Extent),
    /// Making the object.
    CopyUp(u64),
}

/// What the results make.
#[derive(Debug)]
pub(super) enum Kind {
    /// Content of one extent of an object: the common case.
    ReadOne { extent: layout::Extent, content: Option<Outcome> },
    /// Content of several.
    ReadMany { layout: Layout, parts: Vec<(layout::Extent, Vec<Segment>)> },
    /// Nothing but success.
    Write,
    /// Likewise, and what is not there need not be zeroed.
    Zero,
    /// Which bytes are there, of each extent.
    Extents { layout: Layout, parts: Vec<(layout::Extent, Vec<Extent>)> },
}

impl Kind {
    pub(super) fn read_one(extent: layout::Extent) -> Self {
        Self::ReadOne { extent, content: None }
    }

    pub(super) fn read_many(layout: Layout, parts: Vec<layout::Extent>) -> Self {
        let parts = parts.into_iter().map(|extent| (extent, Vec::new())).collect();
        Self::ReadMany { layout, parts }
    }

    pub(super) fn extents(layout: Layout, parts: Vec<layout::Extent>) -> Self {
        let parts = parts.into_iter().map(|extent| (extent, Vec::new())).collect();
        Self::Extents { layout, parts }
    }
}

impl InFlight {
    pub(super) fn new(token: u64, pending: usize, kind: Kind) -> Self {
        Self { token, pending, error: None, kind, overlap: 0, guarded: Vec::new() }
    }

    /// The same, of an image with a parent.
    pub(super) fn showing(self, overlap: u64) -> Self {
        Self { overlap, ..self }
    }

    /// The same, with parts that need their object to be there.
    pub(super) fn guarding(self, guarded: Vec<Option<Guarded>>) -> Self {
        Self { guarded, ..self }
    }

    /// How much of a parent shows where objects are missing.
    pub(super) fn overlap(&self) -> u64 {
        self.overlap
    }

    /// A part that needs its object to be there.
    pub(super) fn guarded(&self, part: usize) -> Option<&Guarded> {
        self.guarded.get(part)?.as_ref()
    }

    /// What is to be done if the object of a part is missing, and the parent may show something there.
    pub(super) fn instead(&self, part: usize) -> Option<Instead> {
        match &self.kind {
            Kind::ReadOne { extent, .. } => Some(Instead::Read(*extent)),
            Kind::ReadMany { parts, .. } => {
                parts.get(part).map(|(extent, _)| Instead::Read(*extent))
            }
            Kind::Extents { parts, .. } => parts.get(part).map(|(extent, _)| Instead::Map(*extent)),
            Kind::Write | Kind::Zero => {
                self.guarded(part).map(|guarded| Instead::CopyUp(guarded.extent.object))
            }
        }
    }

    /// Takes what the parent has in the place of a part's object.
    pub(super) fn keep_from_parent(&mut self, part: usize, content: Content) {
        match (&mut self.kind, content) {
            (Kind::ReadOne { content, .. }, Content::Bytes(mut segments)) => {
                *content = Some(match segments.as_mut_slice() {
                    [Segment::Data(data)] => Outcome::ReadWhole(std::mem::take(data)),
                    _ => Outcome::Read(segments),
                });
            }
            (Kind::ReadMany { parts, .. }, Content::Bytes(segments)) => {
                if let Some((_, kept)) = parts.get_mut(part) {
                    *kept = segments;
                }
            }
            (Kind::Extents { parts, .. }, Content::Map(extents)) => {
                if let Some((_, kept)) = parts.get_mut(part) {
                    *kept = extents;
                }
            }
            _ => {}
        }
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    /// Takes what an operation brought. The error is a negative errno.
    pub(super) fn keep(&mut self, part: usize, reply: Reply) -> std::result::Result<(), i32> {
        let missing = reply.result == ENOENT;
        if reply.result < 0 && !missing {
            return Err(reply.result);
        }
        let last = reply.ops.into_iter().next_back();
        let op = || match last {
            Some(op) if op.result >= 0 || missing => Ok(op),
            Some(op) => Err(op.result),
            None => Err(EIO),
        };
        match &mut self.kind {
            Kind::ReadOne { extent, content } => {
                let op = op()?;
                *content = Some(match is_whole(&op, extent) {
                    true => Outcome::ReadWhole(op.data),
                    false => Outcome::Read(segments(op, missing, extent)?),
                });
            }
            Kind::ReadMany { parts, .. } => {
                let (extent, content) = parts.get_mut(part).ok_or(EIO)?;
                *content = segments(op()?, missing, extent)?;
            }
            // A write creates what is not there: if it says that something is missing, it was not carried out.
            Kind::Write if missing => return Err(ENOENT),
            // What is to be zeroed and is not there is zero.
            Kind::Write | Kind::Zero => {}
            Kind::Extents { parts, .. } => {
                let (extent, found) = parts.get_mut(part).ok_or(EIO)?;
                let size: u64 = match missing {
                    true => 0,
                    false => proto::denc::decode(&op()?.data, "stat").map_err(|_| EIO)?,
                };
                let stored = size.saturating_sub(extent.offset).min(extent.len);
                *found = vec![
                    Extent { length: stored, allocated: true },
                    Extent { length: extent.len - stored, allocated: false },
                ];
            }
        }
        Ok(())
    }

    /// Counts a result. True if it was the last.
    pub(super) fn one_done(&mut self, result: Result<()>) -> bool {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
        self.pending -= 1;
        self.pending == 0
    }

    /// What the request brings back.
    pub(super) fn finish(self) -> Result<Outcome> {
        if let Some(error) = self.error {
            return Err(error);
        }
        Ok(match self.kind {
            Kind::ReadOne { content, .. } => content.unwrap_or(Outcome::Done),
            Kind::Write | Kind::Zero => Outcome::Done,
            Kind::ReadMany { layout, parts } => Outcome::Read(in_image_order(&layout, parts)),
            Kind::Extents { layout, parts } => Outcome::Extents(allocation(&layout, &parts)),
        })
    }
}

fn is_whole(op: &OpReply, extent: &layout::Extent) -> bool {
    op.code == code::READ && op.data.len() as u64 == extent.len
}

/// The content of an object's extent: what is behind the object's end, or was never written, is a hole.
fn segments(
    op: OpReply,
    missing: bool,
    extent: &layout::Extent,
) -> std::result::Result<Vec<Segment>, i32> {
    let mut segments = Vec::new();
    let mut at = extent.offset;
    let end = extent.offset + extent.len;
    let mut push = |segment: Segment| {
        if !segment.is_empty() {
            segments.push(segment);
        }
    };
    if missing {
        // Nothing is there.
    } else if op.code == code::SPARSE_READ {
        let (stored, mut data) = decode_sparse_read(&op.data).map_err(|_| EIO)?;
        for (offset, length) in stored {
            let stored_end = offset.checked_add(length).ok_or(EIO)?;
            if offset < at || stored_end > end {
                return Err(EIO);
            }
            push(Segment::Hole(offset - at));
            push(Segment::Data(data.split_to(length as usize)));
            at = stored_end;
        }
    } else if op.code == code::READ {
        at += op.data.len() as u64;
        if at > end {
            return Err(EIO);
        }
        push(Segment::Data(op.data));
    } else {
        // Taken for an empty answer, it would read as zeros.
        return Err(EIO);
    }
    push(Segment::Hole(end - at));
    Ok(segments)
}

/// Puts the contents of objects in the order of the image.
fn in_image_order(layout: &Layout, parts: Vec<(layout::Extent, Vec<Segment>)>) -> Vec<Segment> {
    let mut placed = Vec::new();
    for (extent, segments) in parts {
        let mut segments = segments.into_iter();
        let mut current: Option<Segment> = None;
        for piece in layout.pieces(extent.object, extent.offset, extent.len) {
            let mut at = piece.image;
            let end = piece.image + piece.len;
            while at < end {
                let Some(segment) = current.take().or_else(|| segments.next()) else { break };
                let (taken, rest) = split(segment, end - at);
                at += taken.len();
                placed.push((at, taken));
                current = rest;
            }
        }
    }
    placed.sort_by_key(|(end, _)| *end);
    placed.into_iter().map(|(_, segment)| segment).collect()
}

/// Cuts a segment after at most `length` bytes.
fn split(segment: Segment, length: u64) -> (Segment, Option<Segment>) {
    if segment.len() <= length {
        return (segment, None);
    }
    match segment {
        Segment::Hole(whole) => (Segment::Hole(length), Some(Segment::Hole(whole - length))),
        Segment::Data(mut data) => {
            let taken: Bytes = data.split_to(length as usize);
            (Segment::Data(taken), Some(Segment::Data(data)))
        }
    }
}

/// Which bytes of the image are there, from what is there of its objects.
fn allocation(layout: &Layout, parts: &[(layout::Extent, Vec<Extent>)]) -> Vec<Extent> {
    let mut placed: Vec<(u64, Extent)> = Vec::new();
    for (extent, found) in parts {
        let mut found = found.iter().copied();
        let mut current = Extent { length: 0, allocated: false };
        for piece in layout.pieces(extent.object, extent.offset, extent.len) {
            let mut at = piece.image;
            let end = piece.image + piece.len;
            while at < end {
                while current.length == 0 {
                    let Some(next) = found.next() else { break };
                    current = next;
                }
                // What is not told about is nothing.
                let length =
                    if current.length == 0 { end - at } else { current.length.min(end - at) };
                let allocated = current.allocated && current.length > 0;
                placed.push((at, Extent { length, allocated }));
                current.length = current.length.saturating_sub(length);
                at += length;
            }
        }
    }
    placed.sort_by_key(|(offset, _)| *offset);
    let mut extents: Vec<Extent> = Vec::new();
    for (_, extent) in placed {
        match extents.last_mut() {
            Some(last) if last.allocated == extent.allocated => last.length += extent.length,
            _ => extents.push(extent),
        }
    }
    extents
}
