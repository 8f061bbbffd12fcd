//! The parent of a clone: the snapshot that shows through where the clone has no object of its own.
//!
//! A parent is an image like any other, open for reading at that snapshot, and may be a clone itself: each [`Queue`] of
//! a clone has one of its parent, to which go the reads that its own objects do not answer.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use proto::rbd::layout::Layout;
use slab::Slab;

use super::header::ParentLink;
use super::{Completion, Extent, Image, Io, Outcome, Queue, Segment};
use crate::error::{Error, Kind, Result};

/// A parent, and how much of it shows.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) image: Image,
    pub(super) link: ParentLink,
}

/// Whether a parent of which `overlap` bytes show has something in the place of an object.
pub(super) fn shows(layout: &Layout, object: u64, overlap: u64) -> bool {
    // An object's first byte is its first in the image, too.
    overlap > 0 && layout.pieces(object, 0, 1).next().is_some_and(|first| first.image < overlap)
}

impl Parent {
    /// What the parent has in the place of an object.
    pub(super) async fn object(&self, layout: &Layout, object: u64) -> Result<Vec<Segment>> {
        let mut fetches = Fetches::new(&self.image);
        let whole = (object, 0, layout.object_size());
        if !fetches.begin(Purpose::CopyUp { object }, layout, whole, self.link.overlap) {
            return Ok(Vec::new());
        }
        self.image.cluster().kick();
        let mut fetched = Vec::new();
        while fetched.is_empty() {
            poll_fn(|cx| fetches.poll(cx, &mut fetched)).await;
            self.image.cluster().kick();
        }
        match fetched.remove(0).result? {
            Content::Bytes(segments) => Ok(segments),
            Content::Map(_) => Err(Error::new(Kind::Corrupt, "a read without content")),
        }
    }
}

/// What something is read of the parent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Part of a request that reads.
    Read { slot: usize, part: usize },
    /// Part of a request for extents.
    Extents { slot: usize, part: usize },
    /// To make an object of it.
    CopyUp { object: u64 },
}

/// What was read: an extent of an object, in the object's order.
#[derive(Debug)]
pub(super) enum Content {
    Bytes(Vec<Segment>),
    /// Which parts hold data.
    Map(Vec<Extent>),
}

/// A read that is done.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) purpose: Purpose,
    pub(super) result: Result<Content>,
}

/// The reads of one queue that are under way in its image's parent.
#[derive(Debug)]
pub(super) struct Fetches {
    queue: Queue,
    reads: Slab<Fetch>,
    done: Vec<Completion>,
}

#[derive(Debug)]
struct Fetch {
    purpose: Purpose,
    pieces: Vec<Piece>,
    pending: usize,
    failed: Option<Error>,
}

/// Part of the parent, which becomes part of an object.
#[derive(Debug)]
struct Piece {
    /// Where it begins in the image, and how much of it shows.
    image: u64,
    visible: u64,
    length: u64,
    bytes: Vec<Segment>,
    map: Vec<Extent>,
}

impl Fetches {
    pub(super) fn new(parent: &Image) -> Self {
        Self { queue: parent.queue(), reads: Slab::new(), done: Vec::new() }
    }

    /// Reads what the parent has in the place of an extent of an object: object, offset and length. False if it has
    /// nothing there.
    pub(super) fn begin(
        &mut self,
        purpose: Purpose,
        layout: &Layout,
        (object, offset, length): (u64, u64, u64),
        overlap: u64,
    ) -> bool {
        let pieces: Vec<_> = layout
            .pieces(object, offset, length)
            .map(|piece| Piece {
                image: piece.image,
                visible: overlap.saturating_sub(piece.image).min(piece.len),
                length: piece.len,
                bytes: Vec::new(),
                map: Vec::new(),
            })
            .collect();
        let pending = pieces.iter().filter(|piece| piece.visible > 0).count();
        if pending == 0 {
            return false;
        }
        let key = self.reads.insert(Fetch { purpose, pieces, pending, failed: None });
        for at in 0..self.reads[key].pieces.len() {
            if self.reads[key].pieces[at].visible > 0 {
                self.ask(key, at);
            }
        }
        true
    }

    /// Asks for what is not known yet of a piece.
    fn ask(&mut self, key: usize, at: usize) {
        let Fetch { purpose, pieces, .. } = &self.reads[key];
        let piece = &pieces[at];
        let known: u64 = piece.map.iter().map(|extent| extent.length).sum();
        let (offset, length) = (piece.image + known, piece.visible - known);
        let io = match purpose {
            Purpose::Extents { .. } => Io::Extents { offset, length },
            Purpose::Read { .. } | Purpose::CopyUp { .. } => Io::Read { offset, length },
        };
        self.queue.submit((key as u64) << 32 | at as u64, io);
    }

    /// Appends what was read. `Ready` if something happened, be it that more had to be asked for, which is to be sent.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, out: &mut Vec<Fetched>) -> Poll<()> {
        let mut done = std::mem::take(&mut self.done);
        let polled = self.queue.poll_completions(cx, &mut done);
        for completion in done.drain(..) {
            let (key, at) = ((completion.token >> 32) as usize, completion.token as u32 as usize);
            self.take(key, at, completion.result);
            if self.reads[key].pending == 0 {
                let fetch = self.reads.remove(key);
                out.push(Fetched { purpose: fetch.purpose, result: fetch.finish() });
            }
        }
        self.done = done;
        polled
    }

    fn take(&mut self, key: usize, at: usize, result: Result<Outcome>) {
        let fetch = &mut self.reads[key];
        let piece = &mut fetch.pieces[at];
        match result {
            Ok(Outcome::ReadWhole(data)) => piece.bytes.push(Segment::Data(data)),
            Ok(Outcome::Read(segments)) => piece.bytes.extend(segments),
            Ok(Outcome::Extents(extents)) if !extents.is_empty() => {
                piece.map.extend(extents);
                let known: u64 = piece.map.iter().map(|extent| extent.length).sum();
                // Of a large piece not all is told at once.
                if known < piece.visible {
                    return self.ask(key, at);
                }
            }
            Ok(_) => {
                let error = Error::new(Kind::Corrupt, "the parent does not say what was asked");
                fetch.failed.get_or_insert(error);
            }
            Err(error) => {
                let error = error.context("parent");
                fetch.failed.get_or_insert(error);
            }
        }
        fetch.pending -= 1;
    }
}

impl Fetch {
    fn finish(self) -> Result<Content> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        Ok(match self.purpose {
            Purpose::Extents { .. } => Content::Map(
                self.pieces
                    .into_iter()
                    .flat_map(|piece| {
                        let hidden = piece.length - piece.visible;
                        let hole = Extent { length: hidden, allocated: false };
                        piece.map.into_iter().chain((hidden > 0).then_some(hole))
                    })
                    .collect(),
            ),
            Purpose::Read { .. } | Purpose::CopyUp { .. } => Content::Bytes(
                self.pieces
                    .into_iter()
                    .flat_map(|piece| {
                        let hidden = piece.length - piece.visible;
                        piece.bytes.into_iter().chain((hidden > 0).then_some(Segment::Hole(hidden)))
                    })
                    .collect(),
            ),
        })
    }
}

/// A parent as it is shared by the versions of an open image.
pub(super) type Shared = Option<Arc<Parent>>;
