//! Snapshots of an image: one key each in its header object.

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Decode, Encode, Put, Reader, Result};
use proto::types::{SnapId, UTime};

use super::clones::read_parent;
use super::header::{require_feature, set_op_features};
use super::{feature, op_feature};
use crate::errno::{
    EBUSY, EDQUOT, EEXIST, EINVAL, EIO, ENOENT, EOPNOTSUPP, ERANGE, ESTALE, OpResult,
};
use crate::osd::cls::{arguments, find_key, get, remove, set};
use crate::osd::context::Context;

const PREFIX: &[u8] = b"snapshot_";

/// `RBD_PROTECTION_STATUS_*`: whether clones of the first format may hang on a snapshot.
const UNPROTECTED: u8 = 0;
const PROTECTION_LAST: u8 = 3;

/// Why a snapshot was taken (`cls::rbd::SnapshotNamespace`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    kind: u32,
    /// What else the kind says, as the client wrote it.
    body: Bytes,
}

impl Namespace {
    const USER: u32 = 0;
    pub(super) const TRASH: u32 = 2;
    const MIRROR: u32 = 3;

    pub(super) fn is_trash(&self) -> bool {
        self.kind == Self::TRASH
    }
}

impl Encode for Namespace {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(1, 1, |w| {
            w.put_u32_le(self.kind);
            w.put_slice(&self.body);
        });
    }
}

impl Decode for Namespace {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("SnapshotNamespace", 1, |_, r| {
            Ok(Self { kind: r.u32()?, body: Bytes::copy_from_slice(r.rest()) })
        })
    }
}

/// A snapshot's record (`cls_rbd_snap`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snap {
    pub(super) id: SnapId,
    pub(super) name: String,
    pub(super) image_size: u64,
    pub(super) protection: u8,
    pub(super) flags: u64,
    pub(super) namespace: Namespace,
    pub(super) timestamp: UTime,
    /// Clones of the second format that hang on it.
    pub(super) children: u32,
    /// How much of the parent it shows, if the image is a clone.
    pub(super) parent_overlap: Option<u64>,
}

impl Encode for Snap {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(8, 8, |w| {
            w.put_value(&self.id);
            w.put_str(&self.name);
            w.put_u64_le(self.image_size);
            w.put_u8(self.protection);
            w.put_u64_le(self.flags);
            w.put_value(&self.namespace);
            w.put_value(&self.timestamp);
            w.put_u32_le(self.children);
            w.put_bool(self.parent_overlap.is_some());
            if let Some(overlap) = self.parent_overlap {
                w.put_u64_le(overlap);
            }
        });
    }
}

impl Decode for Snap {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("cls_rbd_snap", 8, |_, r| {
            Ok(Self {
                id: r.get()?,
                name: r.string()?,
                image_size: r.u64()?,
                protection: r.u8()?,
                flags: r.u64()?,
                namespace: r.get()?,
                timestamp: r.get()?,
                children: r.u32()?,
                parent_overlap: r.option(Reader::u64)?,
            })
        })
    }
}

fn key(snap: SnapId) -> String {
    format!("snapshot_{:016x}", snap.0)
}

pub(super) fn read_snap(context: &Context<'_>, snap: SnapId) -> OpResult<Snap> {
    get(context, &key(snap), |r| r.get())
}

pub(super) fn write_snap(context: &mut Context<'_>, snap: &Snap) {
    set(context, &key(snap.id), |w| w.put_value(snap));
}

/// All snapshots, oldest first.
pub(super) fn all_snaps(context: &Context<'_>) -> OpResult<Vec<Snap>> {
    (context.omap_all(PREFIX))
        .map(|(_, value)| proto::denc::decode(value, "cls_rbd_snap").map_err(|_| EIO))
        .collect()
}

/// The snapshot of an argument, which must not be the present.
fn snap_argument(input: &Bytes) -> OpResult<SnapId> {
    match arguments(input, |r| r.get())? {
        SnapId::HEAD => Err(EINVAL),
        snap => Ok(snap),
    }
}

pub(super) fn get_snapcontext(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let seq = get(context, "snap_seq", Reader::u64)?;
    let snaps = all_snaps(context)?;
    out.put_u64_le(seq);
    out.put_count(snaps.len());
    snaps.iter().rev().for_each(|snap| out.put_value(&snap.id));
    Ok(())
}

pub(super) fn get_snapshot_name(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_str(&read_snap(context, snap_argument(input)?)?.name);
    Ok(())
}

pub(super) fn get_snapshot_timestamp(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_value(&read_snap(context, snap_argument(input)?)?.timestamp);
    Ok(())
}

/// Answers with a `cls::rbd::SnapshotInfo`.
pub(super) fn snapshot_get(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let snap = read_snap(context, snap_argument(input)?)?;
    out.put_envelope(1, 1, |w| {
        w.put_value(&snap.id);
        w.put_value(&snap.namespace);
        w.put_str(&snap.name);
        w.put_u64_le(snap.image_size);
        w.put_value(&snap.timestamp);
        w.put_u32_le(snap.children);
    });
    Ok(())
}

pub(super) fn snapshot_add(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (name, id, namespace) = arguments(input, |r| {
        let (name, id) = (r.string()?, r.get::<SnapId>()?);
        Ok((name, id, if r.is_empty() { Namespace::default() } else { r.get()? }))
    })?;
    if namespace.kind > Namespace::MIRROR || id >= SnapId::HEAD {
        return Err(EINVAL);
    }
    // Somebody else took a newer snapshot in the meantime.
    if id.0 < get(context, "snap_seq", Reader::u64)? {
        return Err(ESTALE);
    }
    let image_size = get(context, "size", Reader::u64)?;
    let flags = find_key(context, "flags", Reader::u64)?.unwrap_or(0);
    let limit = find_key(context, "snap_limit", Reader::u64)?.unwrap_or(u64::MAX);
    for (count, snap) in (1..).zip(all_snaps(context)?) {
        if count >= limit {
            return Err(EDQUOT);
        }
        if snap.id == id || (snap.name == name && snap.namespace == namespace) {
            return Err(EEXIST);
        }
    }
    let parent_overlap = read_parent(context)?.and_then(|parent| parent.overlap);
    if namespace.is_trash() {
        set_op_features(context, op_feature::SNAP_TRASH, op_feature::SNAP_TRASH)?;
    }
    set(context, "snap_seq", |w| w.put_value(&id));
    let timestamp = context.requester.now;
    let new = Snap {
        id,
        name,
        image_size,
        protection: UNPROTECTED,
        flags,
        namespace,
        timestamp,
        children: 0,
        parent_overlap,
    };
    write_snap(context, &new);
    Ok(())
}

pub(super) fn snapshot_rename(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (id, name) = arguments(input, |r| Ok((r.get()?, r.string()?)))?;
    let taken = |snap: &Snap| snap.namespace.kind == Namespace::USER && snap.name == name;
    if all_snaps(context)?.iter().any(taken) {
        return Err(EEXIST);
    }
    let snap = read_snap(context, id)?;
    if snap.namespace.kind != Namespace::USER {
        return Err(EINVAL);
    }
    write_snap(context, &Snap { name, ..snap });
    Ok(())
}

pub(super) fn snapshot_remove(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let id = arguments(input, |r| r.get())?;
    let snap = read_snap(context, id)?;
    if snap.protection != UNPROTECTED || snap.children > 0 {
        return Err(EBUSY);
    }
    remove(context, &key(id))?;
    let others: Vec<Snap> =
        all_snaps(context)?.into_iter().filter(|other| other.id != id).collect();
    let has_child_snaps = others.iter().any(|snap| snap.parent_overlap.is_some());
    let has_trash_snaps = others.iter().any(|snap| snap.namespace.is_trash());
    let parent = read_parent(context)?.filter(|parent| parent.exists());
    let is_head_child = parent.as_ref().is_some_and(|parent| parent.overlap.is_some());
    if parent.is_some() && !is_head_child && !has_child_snaps {
        remove(context, "parent")?;
    }
    let mut over = 0;
    if !has_child_snaps && !is_head_child {
        over |= op_feature::CLONE_CHILD;
    }
    if !has_trash_snaps {
        over |= op_feature::SNAP_TRASH;
    }
    set_op_features(context, 0, over)
}

/// Hides a snapshot that clones still hang on: it gets a random name.
pub(super) fn snapshot_trash_add(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let snap = read_snap(context, arguments(input, |r| r.get())?)?;
    if snap.protection != UNPROTECTED {
        return Err(EBUSY);
    }
    if snap.namespace.is_trash() {
        return Err(EEXIST);
    }
    set_op_features(context, op_feature::SNAP_TRASH, op_feature::SNAP_TRASH)?;
    let mut body = BytesMut::new();
    body.put_str(&snap.name);
    body.put_u32_le(snap.namespace.kind);
    let namespace = Namespace { kind: Namespace::TRASH, body: body.freeze() };
    let mut uuid = [0; 16];
    context.entropy.fill(&mut uuid);
    let name = proto::types::Fsid(uuid).to_string();
    write_snap(context, &Snap { name, namespace, ..snap });
    Ok(())
}

pub(super) fn snapshot_get_limit(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_u64_le(find_key(context, "snap_limit", Reader::u64)?.unwrap_or(u64::MAX));
    Ok(())
}

pub(super) fn snapshot_set_limit(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let limit = arguments(input, Reader::u64)?;
    if limit == u64::MAX {
        return remove(context, "snap_limit");
    }
    if limit < all_snaps(context)?.len() as u64 {
        return Err(ERANGE);
    }
    set(context, "snap_limit", |w| w.put_u64_le(limit));
    Ok(())
}

pub(super) fn get_protection_status(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    context.check_exists()?;
    out.put_u8(read_snap(context, snap_argument(input)?)?.protection);
    Ok(())
}

pub(super) fn set_protection_status(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (id, protection) = arguments(input, |r| Ok((r.get()?, r.u8()?)))?;
    context.check_exists()?;
    require_feature(context, feature::LAYERING)?;
    if id == SnapId::HEAD || protection >= PROTECTION_LAST {
        return Err(EINVAL);
    }
    let snap = read_snap(context, id)?;
    write_snap(context, &Snap { protection, ..snap });
    Ok(())
}

/// Fails unless a writer's snapshot context is newer than the object's, or unless it is not.
pub(super) fn assert_snapc_seq(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (seq, state) = arguments(input, |r| Ok((r.u64()?, r.u8()?)))?;
    let there = context.exists && !(context.info().whiteout && context.snapset().clones.is_empty());
    let newer = !there || seq > context.snapset().seq;
    match (state, newer) {
        (0, true) | (1, false) => Ok(()),
        (0 | 1, _) => Err(ERANGE),
        _ => Err(EOPNOTSUPP),
    }
}

/// Whether the snapshot is there for new clones.
pub(super) fn attachable(snap: &Snap) -> OpResult {
    if snap.namespace.is_trash() { Err(ENOENT) } else { Ok(()) }
}
