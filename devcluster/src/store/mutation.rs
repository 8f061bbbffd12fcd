//! The changes that a transaction makes to one object. The journal is a list of them, and replaying it applies them
//! again, so there is one way only for an object to come to be what it is.

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use proto::types::SnapId;

use super::object::{Entry, Object};

/// One change of an object's content. Sizes and all else that is in [`ObjectInfo`](super::object::ObjectInfo) are set
/// once, at the end of the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Keeps the head as a clone, before it is changed.
    Clone(SnapId),
    /// Makes the head what a clone is.
    Rollback(SnapId),
    /// Clears the head: data, attributes, keys.
    Remove,
    /// Writes data.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Makes a hole.
    Zero {
        /// Where, in bytes.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Forgets all data from here on.
    Truncate(u64),
    /// Sets an attribute.
    SetXattr(String, Bytes),
    /// Removes an attribute.
    RemoveXattr(String),
    /// Sets keys.
    OmapSet(Vec<(Bytes, Bytes)>),
    /// Removes keys.
    OmapRemove(Vec<Bytes>),
    /// Removes keys from the first to before the last.
    OmapRemoveRange(Bytes, Bytes),
    /// Removes all keys and the header.
    OmapClear,
    /// Sets the header of the keys.
    OmapHeader(Bytes),
}

impl Mutation {
    /// Applies the change.
    pub fn apply(self, entry: &mut Entry) {
        let Entry { head, clones, .. } = entry;
        match self {
            Self::Clone(snap) => {
                let mut clone = head.clone();
                clone.info.watchers.clear();
                clones.insert(snap, clone);
            }
            Self::Rollback(snap) => {
                if let Some(clone) = clones.get(&snap) {
                    let info = std::mem::take(&mut head.info);
                    *head = Object { info, ..clone.clone() };
                }
            }
            Self::Remove => {
                let info = std::mem::take(&mut head.info);
                *head = Object { info, ..Default::default() };
            }
            Self::Write { offset, data } => head.data.write(offset, &data),
            Self::Zero { offset, len } => head.data.punch(offset, len),
            Self::Truncate(size) => head.data.truncate(size),
            Self::SetXattr(name, value) => {
                head.xattrs.insert(name, own(&value));
            }
            Self::RemoveXattr(name) => {
                head.xattrs.remove(&name);
            }
            Self::OmapSet(entries) => {
                head.omap.extend(entries.iter().map(|(key, value)| (own(key), own(value))));
            }
            Self::OmapRemove(keys) => keys.iter().for_each(|key| {
                head.omap.remove(key);
            }),
            Self::OmapRemoveRange(from, to) => {
                head.omap.retain(|key, _| *key < from || *key >= to);
            }
            Self::OmapClear => {
                head.omap.clear();
                head.omap_header = Bytes::new();
            }
            Self::OmapHeader(header) => head.omap_header = own(&header),
        }
    }
}

/// A copy: what came from a socket would keep the whole receive buffer alive.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl Encode for Mutation {
    fn encode(&self, w: &mut BytesMut) {
        match self {
            Self::Clone(snap) => {
                w.put_u8(0);
                w.put_value(snap);
            }
            Self::Rollback(snap) => {
                w.put_u8(1);
                w.put_value(snap);
            }
            Self::Remove => w.put_u8(2),
            Self::Write { offset, data } => {
                w.put_u8(3);
                w.put_u64_le(*offset);
                w.put_blob(data);
            }
            Self::Zero { offset, len } => {
                w.put_u8(4);
                w.put_u64_le(*offset);
                w.put_u64_le(*len);
            }
            Self::Truncate(size) => {
                w.put_u8(5);
                w.put_u64_le(*size);
            }
            Self::SetXattr(name, value) => {
                w.put_u8(6);
                w.put_str(name);
                w.put_blob(value);
            }
            Self::RemoveXattr(name) => {
                w.put_u8(7);
                w.put_str(name);
            }
            Self::OmapSet(entries) => {
                w.put_u8(8);
                w.put_count(entries.len());
                for (key, value) in entries {
                    w.put_blob(key);
                    w.put_blob(value);
                }
            }
            Self::OmapRemove(keys) => {
                w.put_u8(9);
                w.put_count(keys.len());
                keys.iter().for_each(|key| w.put_blob(key));
            }
            Self::OmapRemoveRange(from, to) => {
                w.put_u8(10);
                w.put_blob(from);
                w.put_blob(to);
            }
            Self::OmapClear => w.put_u8(11),
            Self::OmapHeader(header) => {
                w.put_u8(12);
                w.put_blob(header);
            }
        }
    }
}

impl Decode for Mutation {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let blob = |r: &mut Reader<'_>| r.blob().map(Bytes::copy_from_slice);
        Ok(match r.u8()? {
            0 => Self::Clone(r.get()?),
            1 => Self::Rollback(r.get()?),
            2 => Self::Remove,
            3 => Self::Write { offset: r.u64()?, data: blob(r)? },
            4 => Self::Zero { offset: r.u64()?, len: r.u64()? },
            5 => Self::Truncate(r.u64()?),
            6 => Self::SetXattr(r.string()?, blob(r)?),
            7 => Self::RemoveXattr(r.string()?),
            8 => Self::OmapSet(r.list(8, |r| Ok((blob(r)?, blob(r)?)))?),
            9 => Self::OmapRemove(r.list(4, blob)?),
            10 => Self::OmapRemoveRange(blob(r)?, blob(r)?),
            11 => Self::OmapClear,
            12 => Self::OmapHeader(blob(r)?),
            kind => {
                return Err(DecodeError::Invalid { what: "journal mutation", value: kind.into() });
            }
        })
    }
}
