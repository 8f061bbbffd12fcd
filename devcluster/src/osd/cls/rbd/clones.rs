//! Clones: where an image's missing data comes from, which images hang on a snapshot, and copying data up.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Decode, Encode, Put, Reader, Result};
use proto::types::SnapId;

use super::header::{features, require_feature, set_op_features};
use super::snapshots::{Snap, all_snaps, attachable, read_snap, write_snap};
use super::{feature, op_feature};
use crate::errno::{EEXIST, EINVAL, ENOENT, ENOEXEC, EXDEV, OpResult};
use crate::osd::cls::{arguments, find_key, get, remove, set};
use crate::osd::context::Context;

/// The image that a clone shows where it has no data of its own (`cls_rbd_parent`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) pool: i64,
    pub(super) namespace: String,
    pub(super) image: String,
    pub(super) snap: SnapId,
    /// How much of it the head shows; `None` if only snapshots do.
    pub(super) overlap: Option<u64>,
}

impl Parent {
    fn none() -> Self {
        Self {
            pool: -1,
            namespace: String::new(),
            image: String::new(),
            snap: SnapId::HEAD,
            overlap: None,
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.pool >= 0 && !self.image.is_empty() && self.snap != SnapId::HEAD
    }

    /// Without the overlap, as clients know it (`cls::rbd::ParentImageSpec`).
    fn put_spec(&self, w: &mut BytesMut) {
        w.put_envelope(1, 1, |w| {
            w.put_i64_le(self.pool);
            w.put_str(&self.namespace);
            w.put_str(&self.image);
            w.put_value(&self.snap);
        });
    }

    fn decode_spec(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("ParentImageSpec", 1, |_, r| {
            Ok(Self {
                pool: r.i64()?,
                namespace: r.string()?,
                image: r.string()?,
                snap: r.get()?,
                overlap: None,
            })
        })
    }
}

pub(super) fn read_parent(context: &Context<'_>) -> OpResult<Option<Parent>> {
    find_key(context, "parent", |r| {
        r.envelope("cls_rbd_parent", 2, |_, r| {
            Ok(Parent {
                pool: r.i64()?,
                namespace: r.string()?,
                image: r.string()?,
                snap: r.get()?,
                overlap: r.option(Reader::u64)?,
            })
        })
    })
}

pub(super) fn put_parent(context: &mut Context<'_>, parent: &Parent) {
    set(context, "parent", |w| {
        w.put_envelope(2, 2, |w| {
            w.put_i64_le(parent.pool);
            w.put_str(&parent.namespace);
            w.put_str(&parent.image);
            w.put_value(&parent.snap);
            w.put_bool(parent.overlap.is_some());
            if let Some(overlap) = parent.overlap {
                w.put_u64_le(overlap);
            }
        });
    });
}

fn attach(context: &mut Context<'_>, parent: Parent, reattach: bool) -> OpResult {
    context.check_exists()?;
    require_feature(context, feature::LAYERING)?;
    let overlap = parent.overlap.unwrap_or(0);
    if !parent.exists() || overlap == 0 {
        return Err(EINVAL);
    }
    if let Some(known) = read_parent(context)?
        && !reattach
        && (known.overlap.is_some() || known != (Parent { overlap: None, ..parent.clone() }))
    {
        return Err(EEXIST);
    }
    let size = get(context, "size", Reader::u64)?;
    put_parent(context, &Parent { overlap: Some(overlap.min(size)), ..parent });
    Ok(())
}

fn detach(context: &mut Context<'_>, legacy: bool) -> OpResult {
    context.check_exists()?;
    let features = match features(context) {
        Ok(features) if features & feature::LAYERING != 0 => features,
        Ok(_) | Err(ENOENT) => return Err(ENOEXEC),
        Err(errno) => return Err(errno),
    };
    let parent = read_parent(context)?.ok_or(ENOENT)?;
    if legacy && !parent.namespace.is_empty() {
        return Err(EXDEV);
    }
    if parent.overlap.is_none() {
        return Err(ENOENT);
    }
    let children: Vec<Snap> =
        all_snaps(context)?.into_iter().filter(|snap| snap.parent_overlap.is_some()).collect();
    if features & feature::DEEP_FLATTEN != 0 {
        for snap in &children {
            write_snap(context, &Snap { parent_overlap: None, ..snap.clone() });
        }
    } else if !children.is_empty() {
        put_parent(context, &Parent { overlap: None, ..parent });
        return Ok(());
    }
    remove(context, "parent")?;
    set_op_features(context, 0, op_feature::CLONE_CHILD)
}

pub(super) fn get_parent(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let snap: SnapId = arguments(input, |r| r.get())?;
    context.check_exists()?;
    let mut parent = Parent::none();
    if require_feature(context, feature::LAYERING).is_ok() {
        parent = read_parent(context)?.unwrap_or(parent);
        if !parent.namespace.is_empty() {
            return Err(EXDEV);
        }
        if snap != SnapId::HEAD {
            let overlap = match read_snap(context, snap) {
                Err(ENOENT) => None,
                snap => snap?.parent_overlap,
            };
            parent = match overlap {
                Some(_) if !parent.exists() => return Err(EINVAL),
                Some(_) => Parent { overlap, ..parent },
                None => Parent::none(),
            };
        }
    }
    out.put_i64_le(parent.pool);
    out.put_str(&parent.image);
    out.put_value(&parent.snap);
    out.put_u64_le(parent.overlap.unwrap_or(0));
    Ok(())
}

pub(super) fn set_parent(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let parent = arguments(input, |r| {
        Ok(Parent {
            pool: r.i64()?,
            namespace: String::new(),
            image: r.string()?,
            snap: r.get()?,
            overlap: Some(r.u64()?),
        })
    })?;
    attach(context, parent, false)
}

pub(super) fn remove_parent(
    context: &mut Context<'_>,
    _input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    detach(context, true)
}

pub(super) fn parent_get(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    context.check_exists()?;
    let parent = match require_feature(context, feature::LAYERING) {
        Ok(()) => read_parent(context)?,
        Err(_) => None,
    };
    parent.unwrap_or_else(Parent::none).put_spec(out);
    Ok(())
}

pub(super) fn parent_overlap_get(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let snap: SnapId = arguments(input, |r| r.get())?;
    let overlap = match (require_feature(context, feature::LAYERING), snap) {
        (Err(_), _) => None,
        (Ok(()), SnapId::HEAD) => read_parent(context)?.and_then(|parent| parent.overlap),
        (Ok(()), snap) => read_snap(context, snap)?.parent_overlap,
    };
    out.put_bool(overlap.is_some());
    if let Some(overlap) = overlap {
        out.put_u64_le(overlap);
    }
    Ok(())
}

pub(super) fn parent_attach(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (parent, reattach) = arguments(input, |r| {
        let parent = Parent::decode_spec(r)?;
        let parent = Parent { overlap: Some(r.u64()?), ..parent };
        Ok((parent, if r.is_empty() { false } else { r.bool()? }))
    })?;
    attach(context, parent, reattach)
}

pub(super) fn parent_detach(
    context: &mut Context<'_>,
    _input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    detach(context, false)
}

/// A clone of the second format, as its parent knows it (`cls::rbd::ChildImageSpec`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Child {
    pool: i64,
    namespace: String,
    image: String,
}

impl Encode for Child {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(2, 1, |w| {
            w.put_i64_le(self.pool);
            w.put_str(&self.image);
            w.put_str(&self.namespace);
        });
    }
}

impl Decode for Child {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("ChildImageSpec", 2, |version, r| {
            let (pool, image) = (r.i64()?, r.string()?);
            let namespace = if version >= 2 { r.string()? } else { String::new() };
            Ok(Self { pool, namespace, image })
        })
    }
}

fn children_key(snap: SnapId) -> String {
    format!("snap_children_{:016x}", snap.0)
}

fn put_all(w: &mut BytesMut, children: &BTreeSet<Child>) {
    w.put_count(children.len());
    children.iter().for_each(|child| w.put_value(child));
}

fn read_children(context: &Context<'_>, snap: SnapId) -> OpResult<Option<BTreeSet<Child>>> {
    find_key(context, &children_key(snap), |r| Ok(r.list(6, Child::decode)?.into_iter().collect()))
}

pub(super) fn child_attach(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (id, child) = arguments(input, |r| Ok((r.get()?, r.get::<Child>()?)))?;
    let mut snap = read_snap(context, id)?;
    attachable(&snap)?;
    let mut children = read_children(context, id)?.unwrap_or_default();
    if !children.insert(child) {
        return Err(EEXIST);
    }
    set(context, &children_key(id), |w| put_all(w, &children));
    snap.children += 1;
    write_snap(context, &snap);
    set_op_features(context, op_feature::CLONE_PARENT, op_feature::CLONE_PARENT)
}

pub(super) fn child_detach(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (id, child) = arguments(input, |r| Ok((r.get()?, r.get::<Child>()?)))?;
    let mut snap = read_snap(context, id)?;
    let mut children = read_children(context, id)?.unwrap_or_default();
    if children.len() as u32 != snap.children {
        return Err(EINVAL);
    }
    if !children.remove(&child) {
        return Err(ENOENT);
    }
    if children.is_empty() {
        remove(context, &children_key(id))?;
    } else {
        set(context, &children_key(id), |w| put_all(w, &children));
    }
    snap.children -= 1;
    write_snap(context, &snap);
    let in_use = |other: &Snap| other.id != id && other.children > 0;
    if snap.children == 0 && !all_snaps(context)?.iter().any(in_use) {
        set_op_features(context, 0, op_feature::CLONE_PARENT)?;
    }
    Ok(())
}

pub(super) fn children_list(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let id = arguments(input, |r| r.get())?;
    read_snap(context, id)?;
    put_all(out, &read_children(context, id)?.ok_or(ENOENT)?);
    Ok(())
}

/// The key of a parent in `rbd_children`, where clones of the first format are listed: binary.
fn legacy_key(r: &mut Reader<'_>) -> Result<Bytes> {
    let (pool, image, snap) = (r.u64()?, r.string()?, r.u64()?);
    let mut key = BytesMut::new();
    key.put_u64_le(pool);
    key.put_str(&image);
    key.put_u64_le(snap);
    Ok(key.freeze())
}

fn legacy_children(context: &Context<'_>, key: &Bytes) -> OpResult<BTreeSet<String>> {
    let value = context.omap_value(key)?;
    let names = Reader::new(value, "rbd_children").list(4, Reader::string).map_err(|_| EINVAL)?;
    Ok(names.into_iter().collect())
}

fn put_names(w: &mut BytesMut, names: &BTreeSet<String>) {
    w.put_count(names.len());
    names.iter().for_each(|name| w.put_str(name));
}

fn set_legacy(context: &mut Context<'_>, key: Bytes, names: &BTreeSet<String>) {
    let mut w = BytesMut::new();
    put_names(&mut w, names);
    context.omap_set(vec![(key, w.freeze())]);
}

pub(super) fn add_child(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (key, child) = arguments(input, |r| Ok((legacy_key(r)?, r.string()?)))?;
    let mut names = match legacy_children(context, &key) {
        Err(ENOENT) => BTreeSet::new(),
        names => names?,
    };
    if !names.insert(child) {
        return Err(EEXIST);
    }
    set_legacy(context, key, &names);
    Ok(())
}

pub(super) fn remove_child(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (key, child) = arguments(input, |r| Ok((legacy_key(r)?, r.string()?)))?;
    let mut names = legacy_children(context, &key)?;
    if !names.remove(&child) {
        return Err(ENOENT);
    }
    if names.is_empty() {
        return context.omap_remove(vec![key]);
    }
    set_legacy(context, key, &names);
    Ok(())
}

pub(super) fn get_children(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let key = arguments(input, legacy_key)?;
    put_names(out, &legacy_children(context, &key)?);
    Ok(())
}

/// Writes the parent's data, unless the object has come to be in the meantime.
pub(super) fn copyup(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    if context.visible() { Ok(()) } else { context.write(0, input.clone()) }
}

/// The same, from extents.
pub(super) fn sparse_copyup(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (extents, data) = arguments(input, |r| {
        let extents = r.list(16, |r| Ok((r.u64()?, r.u64()?)))?;
        Ok((extents, input.slice_ref(r.blob()?)))
    })?;
    if context.visible() {
        return Ok(());
    }
    if extents.is_empty() {
        return context.create(true);
    }
    let mut at = 0usize;
    for (offset, len) in extents {
        let end = at.checked_add(len as usize).filter(|end| *end <= data.len()).ok_or(EINVAL)?;
        context.write(offset, data.slice(at..end))?;
        at = end;
    }
    Ok(())
}

/// Makes holes of blocks that hold zeros.
pub(super) fn sparsify(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (block, remove_empty) = arguments(input, |r| Ok((r.u64()?, r.bool()?)))?;
    context.check_exists()?;
    if block == 0 {
        return Err(EINVAL);
    }
    let data = context.read(0, 0);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if is_zero(&data) {
        return match remove_empty {
            true => context.delete(),
            false => context.truncate(0),
        };
    }
    context.truncate(0)?;
    let mut at = 0;
    for piece in data.chunks(block as usize) {
        if !is_zero(piece) {
            context.write(at, Bytes::copy_from_slice(piece))?;
        }
        at += piece.len() as u64;
    }
    Ok(())
}
