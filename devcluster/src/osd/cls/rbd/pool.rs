//! What a pool keeps besides images: the trash, namespaces, and no groups and no mirroring.

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Decode, Encode, Put, Reader, Result};
use proto::types::UTime;

use super::directory::{has, is_valid_id, list_after, put_listed};
use crate::errno::{EEXIST, EINVAL, ENOENT, ESTALE, OpResult};
use crate::osd::cls::{arguments, get, remove, set};
use crate::osd::context::Context;

const TRASH: &str = "id_";
const NAMESPACE: &str = "name_";

/// An image in the trash (`cls::rbd::TrashImageSpec`).
struct TrashImage {
    source: u8,
    name: String,
    deleted: UTime,
    deferred_until: UTime,
    state: u8,
}

impl Encode for TrashImage {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(2, 1, |w| {
            w.put_u8(self.source);
            w.put_str(&self.name);
            w.put_value(&self.deleted);
            w.put_value(&self.deferred_until);
            w.put_u8(self.state);
        });
    }
}

impl Decode for TrashImage {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("TrashImageSpec", 2, |version, r| {
            Ok(Self {
                source: r.u8()?,
                name: r.string()?,
                deleted: r.get()?,
                deferred_until: r.get()?,
                state: if version >= 2 { r.u8()? } else { 0 },
            })
        })
    }
}

pub(super) fn trash_add(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    context.create(false)?;
    let (id, image) = arguments(input, |r| Ok((r.string()?, r.get::<TrashImage>()?)))?;
    if !is_valid_id(&id) {
        return Err(EINVAL);
    }
    let key = format!("{TRASH}{id}");
    if has(context, &key)? {
        return Err(EEXIST);
    }
    set(context, &key, |w| w.put_value(&image));
    Ok(())
}

pub(super) fn trash_remove(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let key = format!("{TRASH}{}", arguments(input, Reader::string)?);
    context.omap_value(key.as_bytes())?;
    remove(context, &key)
}

pub(super) fn trash_list(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let (after, max) = arguments(input, |r| Ok((r.string()?, r.u64()?)))?;
    put_listed(out, &list_after(context, TRASH, &after, max));
    Ok(())
}

pub(super) fn trash_get(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let key = format!("{TRASH}{}", arguments(input, Reader::string)?);
    out.put_slice(context.omap_value(key.as_bytes())?);
    Ok(())
}

pub(super) fn trash_state_set(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (id, state, expected) = arguments(input, |r| Ok((r.string()?, r.u8()?, r.u8()?)))?;
    let key = format!("{TRASH}{id}");
    let image: TrashImage = get(context, &key, |r| r.get())?;
    if image.state == expected {
        set(context, &key, |w| w.put_value(&TrashImage { state, ..image }));
    } else if image.state != state {
        return Err(ESTALE);
    }
    Ok(())
}

pub(super) fn namespace_add(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let key = format!("{NAMESPACE}{}", arguments(input, Reader::string)?);
    if has(context, &key)? {
        return Err(EEXIST);
    }
    set(context, &key, |_| {});
    Ok(())
}

pub(super) fn namespace_remove(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let key = format!("{NAMESPACE}{}", arguments(input, Reader::string)?);
    context.omap_value(key.as_bytes())?;
    remove(context, &key)
}

pub(super) fn namespace_list(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let (after, max) = arguments(input, |r| Ok((r.string()?, r.u64()?)))?;
    let listed = list_after(context, NAMESPACE, &after, max);
    out.put_count(listed.len());
    listed.iter().for_each(|(name, _)| out.put_blob(name));
    Ok(())
}

macro_rules! nothing_there {
    ($($name:ident,)*) => {$(
        /// Nobody groups or mirrors images here: there is never any.
        pub(super) fn $name(
            _context: &mut Context<'_>,
            _input: &Bytes,
            _out: &mut BytesMut,
        ) -> OpResult {
            Err(ENOENT)
        }
    )*};
}

nothing_there![
    group_dir_list,
    mirror_uuid_get,
    mirror_mode_get,
    mirror_peer_list,
    mirror_image_list,
    mirror_image_get_image_id,
    mirror_image_get,
    mirror_image_remove,
    mirror_image_status_remove,
    mirror_image_status_get,
];
