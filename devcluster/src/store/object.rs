//! What the store keeps of one object: its name, its head, its clones.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Decode, Encode, Put, Reader, Result};
use proto::types::{EVersion, EntityAddr, EntityName, SnapId, UTime};

use super::extents::Extents;
use super::intervals::Intervals;

/// An object's name within its pool. Sorts as Ceph lists objects (`hobject_t`): by the bits of the hash in reverse, so
/// that each placement group is one run; then by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectId {
    /// The placement hash, which the client computed.
    pub hash: u32,
    /// The namespace.
    pub nspace: String,
    /// The locator key that was hashed instead of the name, if any.
    pub key: String,
    /// The name.
    pub name: String,
}

impl ObjectId {
    fn effective_key(&self) -> &str {
        if self.key.is_empty() { &self.name } else { &self.key }
    }
}

impl Ord for ObjectId {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.hash.reverse_bits().cmp(&other.hash.reverse_bits()))
            .then_with(|| self.nspace.cmp(&other.nspace))
            .then_with(|| self.effective_key().cmp(other.effective_key()))
            .then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ObjectId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Encode for ObjectId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(self.hash);
        w.put_str(&self.nspace);
        w.put_str(&self.key);
        w.put_str(&self.name);
    }
}

impl Decode for ObjectId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { hash: r.u32()?, nspace: r.string()?, key: r.string()?, name: r.string()? })
    }
}

/// Somebody who watches an object. Kept with the object, so that a watch survives the OSD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// Seconds without a sign of life after which the watch is dropped.
    pub timeout: u32,
    /// Where the watcher connected from.
    pub addr: EntityAddr,
}

/// The part of an object that is not its data (`object_info_t`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectInfo {
    /// In bytes.
    pub size: u64,
    /// When it was last written, by the client's clock.
    pub mtime: UTime,
    /// The log entry that wrote it.
    pub version: EVersion,
    /// The version that clients see and compare with.
    pub user_version: u64,
    /// The newest truncation (of CephFS) that it saw.
    pub truncate_seq: u32,
    /// The size that truncation left.
    pub truncate_size: u64,
    /// Deleted, but still there to hold its clones.
    pub whiteout: bool,
    /// Whether it has (had) keys or a header.
    pub has_omap: bool,
    /// The size that the client expects of it, of its writes, and hints on how they are laid out.
    pub alloc_hint: (u64, u64, u32),
    /// Who watches it, by cookie and name.
    pub watchers: BTreeMap<(u64, EntityName), Watcher>,
}

impl Encode for ObjectInfo {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.size);
        w.put_value(&self.mtime);
        w.put_value(&self.version);
        w.put_u64_le(self.user_version);
        w.put_u32_le(self.truncate_seq);
        w.put_u64_le(self.truncate_size);
        w.put_bool(self.whiteout);
        w.put_bool(self.has_omap);
        w.put_u64_le(self.alloc_hint.0);
        w.put_u64_le(self.alloc_hint.1);
        w.put_u32_le(self.alloc_hint.2);
        w.put_count(self.watchers.len());
        for ((cookie, name), watcher) in &self.watchers {
            w.put_u64_le(*cookie);
            w.put_value(name);
            w.put_u32_le(watcher.timeout);
            w.put_value(&watcher.addr);
        }
    }
}

impl Decode for ObjectInfo {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            size: r.u64()?,
            mtime: r.get()?,
            version: r.get()?,
            user_version: r.u64()?,
            truncate_seq: r.u32()?,
            truncate_size: r.u64()?,
            whiteout: r.bool()?,
            has_omap: r.bool()?,
            alloc_hint: (r.u64()?, r.u64()?, r.u32()?),
            watchers: r.map(28, |r| {
                let key = (r.u64()?, r.get()?);
                Ok((key, Watcher { timeout: r.u32()?, addr: r.get()? }))
            })?,
        })
    }
}

/// The content of one object, or of one clone of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Everything that is not below.
    pub info: ObjectInfo,
    /// The bytes.
    pub data: Extents,
    /// Extended attributes, without the `_` that Ceph puts before them on disk.
    pub xattrs: BTreeMap<String, Bytes>,
    /// Keys and values. Keys are bytes: Ceph's strings need not be UTF-8.
    pub omap: BTreeMap<Bytes, Bytes>,
    /// The header of the keys.
    pub omap_header: Bytes,
}

/// One clone: the object as it was when a snapshot was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloneInfo {
    /// The snapshots that see it, newest first.
    pub snaps: Vec<SnapId>,
    /// In bytes.
    pub size: u64,
    /// What it has in common with the next newer clone, or with the head.
    pub overlap: Intervals,
}

/// What an object knows of its snapshots (`SnapSet`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapSet {
    /// The newest snapshot context that it was written with.
    pub seq: u64,
    /// Its clones, by the newest snapshot at the time.
    pub clones: BTreeMap<SnapId, CloneInfo>,
}

impl SnapSet {
    /// Which clone shows the object as of `snap`: `Ok(None)` is the head, `Err` is nothing.
    pub fn resolve(&self, snap: SnapId) -> std::result::Result<Option<SnapId>, NotThen> {
        if snap.0 > self.seq {
            return Ok(None);
        }
        let (&id, clone) = self.clones.range(snap..).next().ok_or(NotThen)?;
        match clone.snaps.last() {
            Some(oldest) if *oldest <= snap => Ok(Some(id)),
            _ => Err(NotThen),
        }
    }
}

/// The object did not exist when the snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotThen;

impl Encode for SnapSet {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.seq);
        w.put_count(self.clones.len());
        for (id, clone) in &self.clones {
            w.put_value(id);
            w.put_count(clone.snaps.len());
            clone.snaps.iter().for_each(|snap| w.put_value(snap));
            w.put_u64_le(clone.size);
            w.put_value(&clone.overlap);
        }
    }
}

impl Decode for SnapSet {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let seq = r.u64()?;
        let clones = r.map(24, |r| {
            let id = r.get()?;
            let snaps = r.list(8, |r| r.get())?;
            Ok((id, CloneInfo { snaps, size: r.u64()?, overlap: r.get()? }))
        })?;
        Ok(Self { seq, clones })
    }
}

/// An object with its past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The present; a whiteout if only clones are left.
    pub head: Object,
    /// Which clones there are.
    pub snapset: SnapSet,
    /// Their content.
    pub clones: BTreeMap<SnapId, Object>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_sort_by_reversed_hash() {
        let id = |hash, name: &str| ObjectId { hash, name: name.into(), ..Default::default() };
        // 0x8000_0000 reversed is 1, 1 reversed is 0x8000_0000.
        assert!(id(0x8000_0000, "z") < id(1, "a"));
        assert!(id(1, "a") < id(1, "b"));
    }

    #[test]
    fn a_snapshot_finds_its_clone() {
        let clone = |snaps: &[u64]| CloneInfo {
            snaps: snaps.iter().map(|snap| SnapId(*snap)).collect(),
            ..Default::default()
        };
        let snapset = SnapSet {
            seq: 9,
            clones: BTreeMap::from([(SnapId(4), clone(&[4, 3])), (SnapId(8), clone(&[8]))]),
        };
        assert_eq!(snapset.resolve(SnapId(10)), Ok(None));
        assert_eq!(snapset.resolve(SnapId(9)), Err(NotThen));
        assert_eq!(snapset.resolve(SnapId(8)), Ok(Some(SnapId(8))));
        assert_eq!(snapset.resolve(SnapId(6)), Err(NotThen));
        assert_eq!(snapset.resolve(SnapId(3)), Ok(Some(SnapId(4))));
        assert_eq!(snapset.resolve(SnapId(2)), Err(NotThen));
        assert_eq!(snapset.resolve(SnapId::HEAD), Ok(None));
    }
}
