//! What is in the journal of an image: entries, the events that these carry, and what clients and tags say of
//! themselves (`src/journal/Entry.cc`, `src/librbd/journal/Types.cc`).
//!
//! Every change of a journaled image is an event in its journal first. The entries of one tag are numbered from 0, and
//! go by turns to the objects of a set; when one of those is full, the next set is begun.

use bytes::{BufMut, Bytes, BytesMut};

use crate::crc::crc32c;
use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::rbd::cls::SnapshotNamespace;
use crate::types::{SnapId, UTime};

/// What an entry begins with.
const PREAMBLE: u64 = 0x3141_5926_5358_9793;

/// The only version of entries that there is.
const VERSION: u8 = 1;

/// Preamble, version, number, tag, and the length of what it carries.
const HEAD: usize = 8 + 1 + 8 + 8 + 4;

/// How much longer an entry is than the event that it carries, in bytes.
pub const ENTRY_OVERHEAD: usize = HEAD + 4;

/// How much longer the event of a write is than what is written, in bytes.
pub const WRITE_OVERHEAD: usize = 6 + 4 + 8 + 8 + 4 + 6 + 8;

/// One event, as it is in an object of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub tag: u64,
    /// Its number under that tag.
    pub number: u64,
    /// An [`EventEntry`].
    pub event: Bytes,
}

impl Entry {
    /// Takes the next entry off an object's content; `None` if that ends before it does.
    ///
    /// # Errors
    /// It is not an entry, or damaged.
    pub fn take(input: &mut Bytes) -> Result<Option<Self>> {
        let Some(head) = input.get(..HEAD) else { return Ok(None) };
        let mut r = Reader::new(head, "journal entry");
        match (r.u64()?, r.u8()?) {
            (PREAMBLE, VERSION) => {}
            (PREAMBLE, version) => {
                return Err(DecodeError::Invalid { what: "entry version", value: version.into() });
            }
            (value, _) => return Err(DecodeError::Invalid { what: "entry preamble", value }),
        }
        let (number, tag, length) = (r.u64()?, r.u64()?, r.u32()? as usize);
        let Some((content, rest)) = input.split_at_checked(HEAD + length) else {
            return Ok(None);
        };
        let Some(crc) = rest.first_chunk() else { return Ok(None) };
        let (expected, computed) = (u32::from_le_bytes(*crc), crc32c(0, content));
        if computed != expected {
            return Err(DecodeError::Checksum { what: "journal entry", computed, expected });
        }
        let mut entry = input.split_to(ENTRY_OVERHEAD + length);
        entry.truncate(HEAD + length);
        Ok(Some(Self { tag, number, event: entry.split_off(HEAD) }))
    }
}

impl Encode for Entry {
    fn encode(&self, w: &mut BytesMut) {
        let begin = w.len();
        w.put_u64_le(PREAMBLE);
        w.put_u8(VERSION);
        w.put_u64_le(self.number);
        w.put_u64_le(self.tag);
        w.put_blob(&self.event);
        let crc = crc32c(0, w.get(begin..).unwrap_or_default());
        w.put_u32_le(crc);
    }
}

/// A change of an image. Offsets, lengths and sizes are bytes of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Space is given back.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// In whole grains of so many bytes of an object; with 0, what is left of a grain reads as zeros.
        granularity: u32,
    },
    /// Bytes are written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// The same bytes are written again and again.
    WriteSame {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// What.
        data: Bytes,
    },
    /// Bytes are written if others are there.
    CompareAndWrite {
        /// Where.
        offset: u64,
        /// What has to be there.
        compare: Bytes,
        /// What is written.
        data: Bytes,
    },
    /// Everything before it is written.
    Flush,
    /// An operation begins.
    Begin {
        /// Its number.
        op: u64,
        /// What it does.
        what: Operation,
    },
    /// It has ended.
    Finish {
        /// Its number.
        op: u64,
        /// 0 or a negative errno.
        result: i32,
    },
    /// Something that is of no consequence for the image's content, or not known: its type.
    Other(u32),
}

/// What is done to an image as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A snapshot is taken.
    SnapCreate(SnapshotNamespace, String),
    /// A snapshot is removed.
    SnapRemove(SnapshotNamespace, String),
    /// A snapshot gets another name.
    SnapRename {
        /// Which.
        snap: SnapId,
        /// The name it had.
        old: String,
        /// The name it gets.
        new: String,
    },
    /// A snapshot is protected.
    SnapProtect(SnapshotNamespace, String),
    /// It is not any more.
    SnapUnprotect(SnapshotNamespace, String),
    /// The image becomes what it was at a snapshot.
    SnapRollback(SnapshotNamespace, String),
    /// How many snapshots there may be.
    SnapLimit(u64),
    /// The image gets another name.
    Rename(String),
    /// It gets another size.
    Resize(u64),
    /// It becomes independent of its parent.
    Flatten,
    /// Features are switched on or off.
    UpdateFeatures(u64, bool),
    /// A note gets a value.
    MetadataSet(String, String),
    /// A note is removed.
    MetadataRemove(String),
}

impl Operation {
    fn kind(&self) -> u32 {
        match self {
            Self::SnapCreate(..) => 4,
            Self::SnapRemove(..) => 5,
            Self::SnapRename { .. } => 6,
            Self::SnapProtect(..) => 7,
            Self::SnapUnprotect(..) => 8,
            Self::SnapRollback(..) => 9,
            Self::Rename(_) => 10,
            Self::Resize(_) => 11,
            Self::Flatten => 12,
            Self::SnapLimit(_) => 14,
            Self::UpdateFeatures(..) => 15,
            Self::MetadataSet(..) => 16,
            Self::MetadataRemove(_) => 17,
        }
    }

    fn put(&self, w: &mut BytesMut) {
        match self {
            Self::SnapCreate(namespace, name)
            | Self::SnapRemove(namespace, name)
            | Self::SnapProtect(namespace, name)
            | Self::SnapUnprotect(namespace, name)
            | Self::SnapRollback(namespace, name) => {
                w.put_str(name);
                w.put_value(namespace);
            }
            Self::SnapRename { snap, old, new } => {
                w.put_str(new);
                w.put_value(snap);
                w.put_str(old);
            }
            Self::SnapLimit(number) | Self::Resize(number) => w.put_u64_le(*number),
            Self::Rename(text) | Self::MetadataRemove(text) => w.put_str(text),
            Self::Flatten => {}
            Self::UpdateFeatures(features, enable) => {
                w.put_u64_le(*features);
                w.put_bool(*enable);
            }
            Self::MetadataSet(key, value) => {
                w.put_str(key);
                w.put_str(value);
            }
        }
    }

    /// Nothing if an event of this type is none of an operation.
    fn get(kind: u32, version: u8, r: &mut Reader<'_>) -> Result<Option<Self>> {
        let snapshot = |r: &mut Reader<'_>| {
            let name = r.string()?;
            let namespace = if version >= 4 { r.get()? } else { SnapshotNamespace::User };
            Ok((namespace, name))
        };
        let of = |what: fn(SnapshotNamespace, String) -> Self, r: &mut Reader<'_>| {
            snapshot(r).map(|(namespace, name)| what(namespace, name))
        };
        Ok(Some(match kind {
            4 => of(Self::SnapCreate, r)?,
            5 => of(Self::SnapRemove, r)?,
            6 => {
                let (new, snap) = (r.string()?, r.get()?);
                let old = if version >= 2 { r.string()? } else { String::new() };
                Self::SnapRename { snap, old, new }
            }
            7 => of(Self::SnapProtect, r)?,
            8 => of(Self::SnapUnprotect, r)?,
            9 => of(Self::SnapRollback, r)?,
            10 => Self::Rename(r.string()?),
            11 => Self::Resize(r.u64()?),
            12 => Self::Flatten,
            14 => Self::SnapLimit(r.u64()?),
            15 => Self::UpdateFeatures(r.u64()?, r.bool()?),
            16 => Self::MetadataSet(r.string()?, r.string()?),
            17 => Self::MetadataRemove(r.string()?),
            _ => return Ok(None),
        }))
    }
}

impl Event {
    fn kind(&self) -> u32 {
        match self {
            Self::Discard { .. } => 0,
            Self::Write { .. } => 1,
            Self::Flush => 2,
            Self::Finish { .. } => 3,
            Self::Begin { what, .. } => what.kind(),
            Self::WriteSame { .. } => 18,
            Self::CompareAndWrite { .. } => 19,
            Self::Other(kind) => *kind,
        }
    }

    fn put(&self, w: &mut BytesMut) {
        match self {
            Self::Discard { offset, length, granularity } => {
                w.put_u64_le(*offset);
                w.put_u64_le(*length);
                // All that releases before Nautilus know of it.
                w.put_bool(*granularity > 0);
                w.put_u32_le(*granularity);
            }
            Self::Write { offset, data } => {
                w.put_u64_le(*offset);
                w.put_u64_le(data.len() as u64);
                w.put_blob(data);
            }
            Self::WriteSame { offset, length, data } => {
                w.put_u64_le(*offset);
                w.put_u64_le(*length);
                w.put_blob(data);
            }
            Self::CompareAndWrite { offset, compare, data } => {
                w.put_u64_le(*offset);
                w.put_u64_le(data.len() as u64);
                w.put_blob(compare);
                w.put_blob(data);
            }
            Self::Flush | Self::Other(_) => {}
            Self::Begin { op, what } => {
                w.put_u64_le(*op);
                what.put(w);
            }
            Self::Finish { op, result } => {
                w.put_u64_le(*op);
                // Once as every operation's, once as its own.
                w.put_u64_le(*op);
                w.put_i32_le(*result);
            }
        }
    }

    fn get(version: u8, r: &mut Reader<'_>) -> Result<Self> {
        Ok(match r.u32()? {
            0 => {
                let (offset, length) = (r.u64()?, r.u64()?);
                let in_grains = version >= 4 && r.bool()?;
                let granularity = match version {
                    // Whole objects.
                    0..=4 => {
                        if in_grains {
                            u32::MAX
                        } else {
                            0
                        }
                    }
                    _ => r.u32()?,
                };
                Self::Discard { offset, length, granularity }
            }
            1 => {
                let (offset, _) = (r.u64()?, r.u64()?);
                Self::Write { offset, data: r.get()? }
            }
            2 => Self::Flush,
            3 => {
                let (_, op) = (r.u64()?, r.u64()?);
                Self::Finish { op, result: r.i32()? }
            }
            18 => Self::WriteSame { offset: r.u64()?, length: r.u64()?, data: r.get()? },
            19 => {
                let (offset, _) = (r.u64()?, r.u64()?);
                Self::CompareAndWrite { offset, compare: r.get()?, data: r.get()? }
            }
            kind @ (4..=12 | 14..=17) => {
                let op = r.u64()?;
                match Operation::get(kind, version, r)? {
                    Some(what) => Self::Begin { op, what },
                    None => Self::Other(kind),
                }
            }
            kind => Self::Other(kind),
        })
    }
}

/// An event, and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventEntry {
    /// What.
    pub event: Event,
    /// When.
    pub time: UTime,
}

impl Encode for EventEntry {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(5, 1, |w| {
            w.put_u32_le(self.event.kind());
            self.event.put(w);
        });
        w.put_envelope(1, 1, |w| w.put_value(&self.time));
    }
}

impl Decode for EventEntry {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let (version, event) =
            r.envelope("journal event", 5, |version, r| Ok((version, Event::get(version, r)?)))?;
        let time = match version {
            0..=3 => UTime::default(),
            _ => r.envelope("journal event's time", 1, |_, r| r.get())?,
        };
        Ok(Self { event, time })
    }
}

/// What a client of a journal says of itself (`librbd::journal::ClientData`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientData {
    /// It writes the image.
    Image {
        /// The class of its tags.
        tag_class: u64,
        /// A mirror is to begin anew.
        resync_requested: bool,
    },
    /// It is something else: its type.
    Other(u32),
}

impl Encode for ClientData {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(1, 1, |w| match self {
            Self::Image { tag_class, resync_requested } => {
                w.put_u32_le(0);
                w.put_u64_le(*tag_class);
                w.put_bool(*resync_requested);
            }
            Self::Other(kind) => w.put_u32_le(*kind),
        });
    }
}

impl Decode for ClientData {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("journal client", 2, |_, r| {
            Ok(match r.u32()? {
                0 => Self::Image { tag_class: r.u64()?, resync_requested: r.bool()? },
                kind => Self::Other(kind),
            })
        })
    }
}

/// Whose entries a tag is for, and what came before them (`librbd::journal::TagData`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagData {
    /// The cluster in which the image is written to; empty for the one that the journal is in.
    pub mirror_uuid: String,
    /// The same of the tag before.
    pub before: String,
    /// Whether what follows says anything.
    pub is_committed: bool,
    /// The tag of the last entry before that has come into effect.
    pub tag: u64,
    /// Its number.
    pub entry: u64,
}

impl Encode for TagData {
    fn encode(&self, w: &mut BytesMut) {
        w.put_str(&self.mirror_uuid);
        w.put_str(&self.before);
        w.put_bool(self.is_committed);
        w.put_u64_le(self.tag);
        w.put_u64_le(self.entry);
    }
}

impl Decode for TagData {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            mirror_uuid: r.string()?,
            before: r.string()?,
            is_committed: r.bool()?,
            tag: r.u64()?,
            entry: r.u64()?,
        })
    }
}

#[cfg(test)]
mod tests;
