//! One request at work on one object.
//!
//! As in a real OSD, all changes are collected and made at the end: what an operation reads is the object as it was
//! before the request, while whether it exists and how large it is are known as of the operations before (`OpContext`
//! in Ceph's `PrimaryLogPG`). A request that fails is dropped, and nothing has to be undone.

use std::ops::Bound;

use bytes::{Bytes, BytesMut};
use proto::denc::Put;
use proto::msg::object::SnapContext;
use proto::types::{EntityAddr, EntityName, Entropy, SnapId, UTime};

use crate::errno::{
    EEXIST, EFBIG, EINVAL, ENAMETOOLONG, ENODATA, ENOENT, EOVERFLOW, ERANGE, OpResult,
};
use crate::store::intervals::Intervals;
use crate::store::{Entry, Mutation, Object, ObjectInfo, SnapSet};

/// The largest object, in bytes (`osd_max_object_size`).
pub const MAX_OBJECT_BYTES: u64 = 128 << 20;

/// The longest name of an attribute, in bytes (`osd_max_attr_name_len`).
const MAX_XATTR_NAME_BYTES: usize = 100;

/// How many keys one operation returns (`osd_max_omap_entries_per_request`).
const MAX_OMAP_ENTRIES: u64 = 1024;

/// What happens besides changes of the object, once they are made.
#[derive(Debug)]
pub enum Effect {
    /// The requester watches from its present connection.
    Connect {
        /// The watch.
        cookie: u64,
        /// Seconds without a ping after which it is dropped.
        timeout: u32,
    },
    /// A watch is over. Its owner is told if it did not ask for it.
    Disconnect {
        /// The watch.
        cookie: u64,
        /// Its owner.
        name: EntityName,
        /// Whether to tell it.
        tell: bool,
    },
    /// The requester is alive.
    Ping {
        /// The watch.
        cookie: u64,
    },
    /// The watchers are notified.
    Notify {
        /// The notify.
        id: u64,
        /// The requester's number for it.
        cookie: u64,
        /// Seconds after which it completes without the silent.
        timeout: u32,
        /// What they are told.
        payload: Bytes,
    },
    /// The requester answers a notify.
    Ack {
        /// The notify.
        id: u64,
        /// The watch; any of the requester's if it does not say.
        cookie: Option<u64>,
        /// The answer.
        reply: Bytes,
    },
}

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Requester {
    /// The client instance.
    pub name: EntityName,
    /// Where it connected from.
    pub addr: EntityAddr,
    /// The wall clock.
    pub now: UTime,
}

/// The state of a request's object while its operations run.
pub struct Context<'a> {
    /// Who asks.
    pub requester: Requester,
    /// The snapshots that a write preserves.
    pub snap_context: &'a SnapContext,
    /// Random bytes for classes that make up names.
    pub entropy: &'a mut dyn Entropy,
    /// The number that a notify gets.
    pub next_notify: u64,
    /// Which of the requester's watches on this object are connected.
    pub connected: &'a dyn Fn(u64) -> bool,
    /// What happens afterwards.
    pub effects: Vec<Effect>,
    /// Changes so far.
    pub mutations: Vec<Mutation>,
    /// Bytes that differ from before.
    pub modified: Intervals,
    /// Whether something is changed although no content is.
    pub touched: bool,
    /// Whether users see a new version.
    pub user_modify: bool,
    /// Whether the object exists, as of the operations so far.
    pub exists: bool,
    entry: Option<&'a Entry>,
    object: Option<&'a Object>,
    info: Option<ObjectInfo>,
    snapset: Option<SnapSet>,
    nothing: &'a (ObjectInfo, SnapSet),
}

/// What there is of an object that is not there.
pub fn nothing() -> (ObjectInfo, SnapSet) {
    Default::default()
}

impl<'a> Context<'a> {
    /// At work on `object`, which is the head of `entry` or one of its clones.
    pub fn new(
        requester: Requester,
        snap_context: &'a SnapContext,
        entropy: &'a mut dyn Entropy,
        connected: &'a dyn Fn(u64) -> bool,
        (entry, object): (Option<&'a Entry>, Option<&'a Object>),
        nothing: &'a (ObjectInfo, SnapSet),
    ) -> Self {
        Self {
            requester,
            snap_context,
            entropy,
            next_notify: 0,
            connected,
            effects: Vec::new(),
            mutations: Vec::new(),
            modified: Intervals::default(),
            touched: false,
            user_modify: false,
            exists: object.is_some(),
            entry,
            object,
            info: None,
            snapset: None,
            nothing,
        }
    }

    /// What the object is besides its content, as of the operations so far.
    pub fn info(&self) -> &ObjectInfo {
        let before = || self.object.map(|object| &object.info);
        self.info.as_ref().or_else(before).unwrap_or(&self.nothing.0)
    }

    /// The same, to be changed.
    pub fn info_mut(&mut self) -> &mut ObjectInfo {
        if self.info.is_none() {
            self.info = Some(self.info().clone());
        }
        self.info.get_or_insert_default()
    }

    /// The object's snapshots, as of the operations so far.
    pub fn snapset(&self) -> &SnapSet {
        (self.snapset.as_ref())
            .or_else(|| self.entry.map(|entry| &entry.snapset))
            .unwrap_or(&self.nothing.1)
    }

    /// The same, to be changed.
    pub fn snapset_mut(&mut self) -> &mut SnapSet {
        if self.snapset.is_none() {
            self.snapset = Some(self.snapset().clone());
        }
        self.snapset.get_or_insert_default()
    }

    /// The object as it was before the request.
    pub fn before(&self) -> Option<&'a Object> {
        self.object
    }

    /// One of its clones.
    pub fn clone_of(&self, snap: SnapId) -> Option<&'a Object> {
        self.entry?.clones.get(&snap)
    }

    /// Whether users see the object.
    pub fn visible(&self) -> bool {
        self.exists && !self.info().whiteout
    }

    /// Fails unless users see the object.
    pub fn check_exists(&self) -> OpResult {
        if self.visible() { Ok(()) } else { Err(ENOENT) }
    }

    /// Size in bytes, and modification time.
    pub fn stat(&self) -> OpResult<(u64, UTime)> {
        self.check_exists()?;
        Ok((self.info().size, self.info().mtime))
    }

    /// Bytes of the object; fewer than asked for where it ends. A length of 0 is all of it.
    pub fn read(&self, offset: u64, length: u64) -> Bytes {
        let length = self.clip(offset, length);
        let Some(object) = self.object.filter(|_| length > 0) else { return Bytes::new() };
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        object.data.read(offset, length, |piece| {
            if piece.len() as u64 == length {
                first = piece;
            } else {
                joined.reserve(length as usize);
                joined.extend_from_slice(&piece);
            }
        });
        if first.is_empty() { joined.freeze() } else { first }
    }

    /// How much of the range is within the object.
    pub fn clip(&self, offset: u64, length: u64) -> u64 {
        let size = self.info().size;
        let length = if length == 0 { size } else { length };
        length.min(size.saturating_sub(offset))
    }

    /// Writes. What is between the object's end and the offset becomes a hole.
    pub fn write(&mut self, offset: u64, data: Bytes) -> OpResult {
        check_extent(offset, data.len() as u64)?;
        self.create_if_missing();
        let end = offset + data.len() as u64;
        self.modified.insert(offset, data.len() as u64);
        let size = self.info().size;
        // Writing nothing beyond the end still makes the object longer.
        if end > size {
            self.info_mut().size = end;
        }
        if !data.is_empty() {
            self.mutations.push(Mutation::Write { offset, data });
        }
        Ok(())
    }

    /// Replaces the whole content.
    pub fn write_full(&mut self, data: Bytes) -> OpResult {
        let len = data.len() as u64;
        check_extent(0, len)?;
        self.create_if_missing();
        let size = self.info().size;
        self.modified.insert(0, size);
        if len < size {
            self.mutations.push(Mutation::Truncate(len));
        }
        self.info_mut().size = len;
        if len > 0 {
            self.mutations.push(Mutation::Write { offset: 0, data });
        }
        Ok(())
    }

    /// Makes a hole; at the object's end it gets shorter instead.
    pub fn zero(&mut self, offset: u64, length: u64) -> OpResult {
        if length > 0 && self.exists && offset.saturating_add(length) >= self.info().size {
            let in_range = offset < MAX_OBJECT_BYTES && length <= MAX_OBJECT_BYTES;
            if in_range && offset >= self.info().size {
                return Ok(());
            }
            if in_range {
                return self.truncate(offset);
            }
        }
        check_extent(offset, length)?;
        if length == 0 {
            return Err(EINVAL);
        }
        if self.visible() {
            self.modified.insert(offset, length);
            self.touched = true;
            self.mutations.push(Mutation::Zero { offset, len: length });
        }
        Ok(())
    }

    /// Cuts off, or extends with a hole. Nothing happens to an object that does not exist.
    pub fn truncate(&mut self, size: u64) -> OpResult {
        if !self.visible() {
            return Ok(());
        }
        check_extent(size, 0)?;
        let before = self.info().size;
        self.modified.insert(size, before.saturating_sub(size));
        self.info_mut().size = size;
        self.mutations.push(Mutation::Truncate(size));
        Ok(())
    }

    /// Creates an empty object.
    pub fn create(&mut self, exclusive: bool) -> OpResult {
        if exclusive && self.visible() {
            return Err(EEXIST);
        }
        self.create_if_missing();
        Ok(())
    }

    /// What every write does first.
    pub fn create_if_missing(&mut self) {
        self.touched = true;
        self.exists = true;
        if self.info().whiteout {
            self.info_mut().whiteout = false;
        }
    }

    /// Deletes the object. With clones, or about to have one, it stays as a whiteout.
    pub fn delete(&mut self) -> OpResult {
        let newest = self.snap_context.snaps.first().map_or(0, |snap| snap.0);
        let keep = !self.snapset().clones.is_empty() || newest > self.snapset().seq;
        if !self.exists || (self.info().whiteout && keep) {
            return Err(ENOENT);
        }
        let size = self.info().size;
        self.modified.insert(0, size);
        self.mutations.push(Mutation::Remove);
        let info = self.info_mut();
        let watchers = std::mem::take(&mut info.watchers);
        info.size = 0;
        info.has_omap = false;
        info.whiteout = keep;
        self.exists = keep;
        let gone = watchers.into_keys();
        self.effects.extend(gone.map(|(cookie, name)| Effect::Disconnect {
            cookie,
            name,
            tell: true,
        }));
        Ok(())
    }

    /// One attribute.
    pub fn xattr(&self, name: &str) -> OpResult<Bytes> {
        self.object.ok_or(ENOENT)?.xattrs.get(name).cloned().ok_or(ENODATA)
    }

    /// Sets an attribute.
    pub fn set_xattr(&mut self, name: &str, value: Bytes) -> OpResult {
        if name.len() > MAX_XATTR_NAME_BYTES {
            return Err(ENAMETOOLONG);
        }
        self.create_if_missing();
        self.mutations.push(Mutation::SetXattr(name.to_owned(), value));
        Ok(())
    }

    /// Removes an attribute, if it is there.
    pub fn remove_xattr(&mut self, name: &str) -> OpResult {
        self.check_exists()?;
        self.mutations.push(Mutation::RemoveXattr(name.to_owned()));
        Ok(())
    }

    /// One key's value.
    pub fn omap_value(&self, key: &[u8]) -> OpResult<&'a Bytes> {
        let omap = &self.object.filter(|_| self.info().has_omap).ok_or(ENOENT)?.omap;
        omap.get(key).ok_or(ENOENT)
    }

    /// Keys and values after `after` that begin with `prefix`, and whether there are more.
    pub fn omap_range(
        &self,
        after: &[u8],
        prefix: &[u8],
        max: u64,
    ) -> (Vec<(&'a Bytes, &'a Bytes)>, bool) {
        let Some(object) = self.object.filter(|_| self.info().has_omap) else {
            return (Vec::new(), false);
        };
        let from = if prefix > after { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let mut range = (object.omap.range::<[u8], _>((from, Bound::Unbounded)))
            .take_while(|(key, _)| key.starts_with(prefix));
        let found = range.by_ref().take(max.min(MAX_OMAP_ENTRIES) as usize).collect();
        (found, range.next().is_some())
    }

    /// All keys and values that begin with `prefix`.
    pub fn omap_all(&self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> + 'a {
        (self.object.filter(|_| self.info().has_omap).into_iter())
            .flat_map(move |object| {
                object.omap.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            })
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Sets keys.
    pub fn omap_set(&mut self, values: Vec<(Bytes, Bytes)>) {
        self.create_if_missing();
        self.info_mut().has_omap = true;
        self.mutations.push(Mutation::OmapSet(values));
    }

    /// Removes keys; those that are not there as well.
    pub fn omap_remove(&mut self, keys: Vec<Bytes>) -> OpResult {
        self.check_exists()?;
        self.touched = true;
        self.mutations.push(Mutation::OmapRemove(keys));
        Ok(())
    }

    /// Whether the object has a certain version.
    pub fn assert_version(&self, version: u64) -> OpResult {
        match version.cmp(&self.info().user_version) {
            _ if version == 0 => Err(EINVAL),
            std::cmp::Ordering::Less => Err(ERANGE),
            std::cmp::Ordering::Greater => Err(EOVERFLOW),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// Whether the request changes anything.
    pub fn changes(&self) -> bool {
        self.touched || !self.mutations.is_empty() || self.info.is_some() || self.snapset.is_some()
    }

    /// Hands over what the object is to be.
    pub fn after(&mut self) -> (ObjectInfo, SnapSet) {
        (self.info().clone(), self.snapset().clone())
    }
}

/// Whether an extent is within the largest object there may be.
pub fn check_extent(offset: u64, length: u64) -> OpResult {
    let end = offset.checked_add(length).ok_or(EFBIG)?;
    if offset >= MAX_OBJECT_BYTES || end > MAX_OBJECT_BYTES { Err(EFBIG) } else { Ok(()) }
}

/// Keys and values as Ceph writes a `map<string, bufferlist>`.
pub fn put_entries<'k>(
    w: &mut BytesMut,
    entries: impl ExactSizeIterator<Item = (&'k [u8], &'k Bytes)>,
) {
    w.put_count(entries.len());
    for (key, value) in entries {
        w.put_blob(key);
        w.put_blob(value);
    }
}
