//! The header object: what an image is. One key per property.

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Put, Reader};
use proto::types::{SnapId, UTime};

use super::clones::{Parent, put_parent, read_parent};
use super::snapshots::{read_snap, write_snap};
use super::{feature, op_feature};
use crate::errno::{EEXIST, EINVAL, ENOENT, ENOEXEC, OpResult};
use crate::osd::cls::{arguments, find_key, get, remove, set};
use crate::osd::context::{Context, put_entries};

/// `ENOSYS`: features that no OSD of this release knows.
const ENOSYS: i32 = 38;

pub(super) fn features(context: &Context<'_>) -> OpResult<u64> {
    get(context, "features", Reader::u64)
}

/// Fails unless the image has the feature. Images of the first format have none.
pub(super) fn require_feature(context: &Context<'_>, need: u64) -> OpResult {
    match features(context) {
        Ok(features) if features & need == need => Ok(()),
        Ok(_) | Err(ENOENT) => Err(ENOEXEC),
        Err(errno) => Err(errno),
    }
}

/// Says what the image takes part in; the feature that stands for all of it follows.
pub(super) fn set_op_features(context: &mut Context<'_>, value: u64, mask: u64) -> OpResult {
    let before = features(context)?;
    let op_before = find_key(context, "op_features", Reader::u64)?.unwrap_or(0);
    let op_features = (op_before & !mask) | (value & mask);
    if op_features == op_before {
        return Ok(());
    }
    let after = if op_features == 0 {
        remove(context, "op_features")?;
        before & !feature::OPERATIONS
    } else {
        set(context, "op_features", |w| w.put_u64_le(op_features));
        before | feature::OPERATIONS
    };
    if after != before {
        set(context, "features", |w| w.put_u64_le(after));
    }
    Ok(())
}

pub(super) fn create(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (size, order, features, prefix, data_pool) = arguments(input, |r| {
        let head = (r.u64()?, r.u8()?, r.u64()?, r.string()?);
        let data_pool = if r.is_empty() { -1 } else { r.i64()? };
        Ok((head.0, head.1, head.2, head.3, data_pool))
    })?;
    if features & !feature::ALL != 0 {
        return Err(ENOSYS);
    }
    if prefix.is_empty() {
        return Err(EINVAL);
    }
    if context.omap_value(b"object_prefix") != Err(ENOENT) {
        return Err(EEXIST);
    }
    let wants_data_pool = features & feature::DATA_POOL != 0;
    if features & feature::OPERATIONS != 0 || wants_data_pool != (data_pool != -1) {
        return Err(EINVAL);
    }
    let now = context.requester.now;
    set(context, "size", |w| w.put_u64_le(size));
    set(context, "order", |w| w.put_u8(order));
    set(context, "features", |w| w.put_u64_le(features));
    set(context, "object_prefix", |w| w.put_str(&prefix));
    set(context, "snap_seq", |w| w.put_u64_le(0));
    for key in ["create_timestamp", "access_timestamp", "modify_timestamp"] {
        set(context, key, |w| w.put_value(&now));
    }
    if wants_data_pool {
        set(context, "data_pool_id", |w| w.put_i64_le(data_pool));
    }
    Ok(())
}

pub(super) fn get_features(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let read_only = arguments(input, |r| {
        r.u64()?;
        if r.is_empty() { Ok(false) } else { r.bool() }
    })?;
    let features = features(context)?;
    let incompatible =
        if read_only { feature::INCOMPATIBLE } else { feature::RW_INCOMPATIBLE } & features;
    out.put_u64_le(features);
    out.put_u64_le(incompatible);
    Ok(())
}

pub(super) fn set_features(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (features, mask) = arguments(input, |r| Ok((r.u64()?, r.u64()?)))?;
    let before = find_key(context, "features", Reader::u64)?.unwrap_or(0);
    if mask & feature::INTERNAL != 0 {
        return Err(EINVAL);
    }
    // Newer clients may want to clear what is not known here.
    let mask = mask & feature::ALL;
    let enabled = features & mask;
    let disabled = !features & mask;
    if enabled & !feature::MUTABLE != 0
        || disabled & !(feature::MUTABLE | feature::DISABLE_ONLY) != 0
    {
        return Err(EINVAL);
    }
    set(context, "features", |w| w.put_u64_le((before & !mask) | enabled));
    Ok(())
}

pub(super) fn get_size(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let snap: SnapId = arguments(input, |r| r.get())?;
    let order = get(context, "order", Reader::u8)?;
    let size = match snap {
        SnapId::HEAD => get(context, "size", Reader::u64)?,
        snap => read_snap(context, snap)?.image_size,
    };
    out.put_u8(order);
    out.put_u64_le(size);
    Ok(())
}

pub(super) fn set_size(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let size = arguments(input, Reader::u64)?;
    let before = get(context, "size", Reader::u64)?;
    set(context, "size", |w| w.put_u64_le(size));
    // What a shorter image cannot show, it does not take from its parent any more.
    if size < before
        && let Some(parent) = read_parent(context)?
        && parent.exists()
        && parent.overlap.unwrap_or(0) > size
    {
        put_parent(context, &Parent { overlap: Some(size), ..parent });
    }
    Ok(())
}

pub(super) fn get_stripe_unit_count(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    context.check_exists()?;
    require_feature(context, feature::STRIPING)?;
    let unit = match find_key(context, "stripe_unit", Reader::u64)? {
        Some(unit) => unit,
        None => 1u64.checked_shl(get(context, "order", Reader::u8)?.into()).ok_or(EINVAL)?,
    };
    let count = find_key(context, "stripe_count", Reader::u64)?.unwrap_or(1);
    out.put_u64_le(unit);
    out.put_u64_le(count);
    Ok(())
}

pub(super) fn set_stripe_unit_count(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (unit, count) = arguments(input, |r| Ok((r.u64()?, r.u64()?)))?;
    if unit == 0 || count == 0 {
        return Err(EINVAL);
    }
    context.check_exists()?;
    require_feature(context, feature::STRIPING)?;
    let order = get(context, "order", Reader::u8)?;
    let object_size = 1u64.checked_shl(order.into()).ok_or(EINVAL)?;
    if !object_size.is_multiple_of(unit) {
        return Err(EINVAL);
    }
    set(context, "stripe_unit", |w| w.put_u64_le(unit));
    set(context, "stripe_count", |w| w.put_u64_le(count));
    Ok(())
}

fn get_timestamp(context: &Context<'_>, key: &str, out: &mut BytesMut) -> OpResult {
    let time: UTime = find_key(context, key, |r| r.get())?.unwrap_or_default();
    out.put_value(&time);
    Ok(())
}

pub(super) fn get_create_timestamp(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    get_timestamp(context, "create_timestamp", out)
}

pub(super) fn get_access_timestamp(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    get_timestamp(context, "access_timestamp", out)
}

pub(super) fn get_modify_timestamp(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    get_timestamp(context, "modify_timestamp", out)
}

fn set_timestamp(context: &mut Context<'_>, key: &str) -> OpResult {
    context.check_exists()?;
    let now = context.requester.now;
    set(context, key, |w| w.put_value(&now));
    Ok(())
}

pub(super) fn set_access_timestamp(
    context: &mut Context<'_>,
    _input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    set_timestamp(context, "access_timestamp")
}

pub(super) fn set_modify_timestamp(
    context: &mut Context<'_>,
    _input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    set_timestamp(context, "modify_timestamp")
}

pub(super) fn get_flags(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let flags = match arguments(input, |r| r.get())? {
        SnapId::HEAD => find_key(context, "flags", Reader::u64)?.unwrap_or(0),
        snap => read_snap(context, snap)?.flags,
    };
    out.put_u64_le(flags);
    Ok(())
}

pub(super) fn set_flags(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (flags, mask, snap) = arguments(input, |r| {
        let (flags, mask) = (r.u64()?, r.u64()?);
        Ok((flags, mask, if r.is_empty() { SnapId::HEAD } else { r.get()? }))
    })?;
    let merge = |before: u64| (before & !mask) | (flags & mask);
    if snap == SnapId::HEAD {
        let before = find_key(context, "flags", Reader::u64)?.unwrap_or(0);
        set(context, "flags", |w| w.put_u64_le(merge(before)));
    } else {
        let mut record = read_snap(context, snap)?;
        record.flags = merge(record.flags);
        write_snap(context, &record);
    }
    Ok(())
}

pub(super) fn op_features_get(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_u64_le(find_key(context, "op_features", Reader::u64)?.unwrap_or(0));
    Ok(())
}

pub(super) fn op_features_set(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (value, mask) = arguments(input, |r| Ok((r.u64()?, r.u64()?)))?;
    if mask & !op_feature::ALL != 0 {
        return Err(EINVAL);
    }
    set_op_features(context, value, mask)
}

pub(super) fn get_object_prefix(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_str(&get(context, "object_prefix", Reader::string)?);
    Ok(())
}

pub(super) fn get_data_pool(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_i64_le(find_key(context, "data_pool_id", Reader::i64)?.unwrap_or(-1));
    Ok(())
}

pub(super) fn get_all_features(
    _context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    out.put_u64_le(feature::ALL);
    Ok(())
}

/// What the keys of user metadata begin with.
const METADATA: &[u8] = b"metadata_";

fn metadata_key(name: &[u8]) -> Bytes {
    [METADATA, name].concat().into()
}

pub(super) fn metadata_list(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let (after, max) = arguments(input, |r| Ok((r.blob()?.to_vec(), r.u64()?)))?;
    let after = metadata_key(&after);
    let max = if max == 0 { 64 } else { max as usize };
    let found: Vec<_> = (context.omap_all(METADATA))
        .filter(|(key, _)| **key > after)
        .take(max)
        .map(|(key, value)| (&key[METADATA.len()..], value))
        .collect();
    put_entries(out, found.into_iter());
    Ok(())
}

pub(super) fn metadata_set(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let values = arguments(input, |r| {
        r.list(8, |r| Ok((metadata_key(r.blob()?), Bytes::copy_from_slice(r.blob()?))))
    })?;
    context.omap_set(values);
    Ok(())
}

pub(super) fn metadata_remove(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let key = arguments(input, |r| r.blob().map(metadata_key))?;
    context.omap_remove(vec![key])
}

pub(super) fn metadata_get(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let key = arguments(input, |r| r.blob().map(metadata_key))?;
    out.put_blob(context.omap_value(&key)?);
    Ok(())
}

/// The group that the image is in: none.
pub(super) fn image_group_get(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    match context.omap_value(b"rbd_group_ref") {
        Ok(group) => out.put_slice(group),
        Err(ENOENT) => out.put_envelope(1, 1, |w| {
            w.put_i64_le(-1);
            w.put_str("");
        }),
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// No image is ever migrating.
pub(super) fn migration_get(
    context: &mut Context<'_>,
    _input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    features(context)?;
    Err(EINVAL)
}
