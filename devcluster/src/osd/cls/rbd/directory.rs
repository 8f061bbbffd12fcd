//! Names and ids of images: the `rbd_id.NAME` objects, and `rbd_directory`, which maps both ways.

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Put, Reader};

use crate::errno::{EBADF, EBUSY, EEXIST, EINVAL, EIO, ENOENT, ESTALE, OpResult};
use crate::osd::cls::{arguments, find_key, get, remove, set};
use crate::osd::context::Context;

const NAME: &str = "name_";
const ID: &str = "id_";

pub(super) fn is_valid_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

pub(super) fn get_id(context: &mut Context<'_>, _input: &Bytes, out: &mut BytesMut) -> OpResult {
    if context.stat()?.0 == 0 {
        return Err(ENOENT);
    }
    let stored = context.read(0, 0);
    out.put_str(&Reader::new(&stored, "image id").string().map_err(|_| EIO)?);
    Ok(())
}

pub(super) fn set_id(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    context.check_exists()?;
    let id = arguments(input, Reader::string)?;
    if !is_valid_id(&id) {
        return Err(EINVAL);
    }
    if context.stat()?.0 != 0 {
        return Err(EEXIST);
    }
    let mut w = BytesMut::new();
    w.put_str(&id);
    context.write(0, w.freeze())
}

pub(super) fn dir_get_id(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let name = arguments(input, Reader::string)?;
    out.put_str(&get(context, &format!("{NAME}{name}"), Reader::string)?);
    Ok(())
}

pub(super) fn dir_get_name(
    context: &mut Context<'_>,
    input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    let id = arguments(input, Reader::string)?;
    out.put_str(&get(context, &format!("{ID}{id}"), Reader::string)?);
    Ok(())
}

pub(super) fn dir_list(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let (after, max) = arguments(input, |r| Ok((r.string()?, r.u64()?)))?;
    put_listed(out, &list_after(context, NAME, &after, max));
    Ok(())
}

fn add(context: &mut Context<'_>, name: &str, id: &str, unique_id: bool) -> OpResult {
    if name.is_empty() || !is_valid_id(id) {
        return Err(EINVAL);
    }
    let name_key = format!("{NAME}{name}");
    let id_key = format!("{ID}{id}");
    if context.omap_value(name_key.as_bytes()) != Err(ENOENT) {
        return Err(EEXIST);
    }
    if unique_id && context.omap_value(id_key.as_bytes()) != Err(ENOENT) {
        return Err(EBADF);
    }
    set(context, &name_key, |w| w.put_str(id));
    set(context, &id_key, |w| w.put_str(name));
    Ok(())
}

fn take(context: &mut Context<'_>, name: &str, id: &str) -> OpResult {
    let name_key = format!("{NAME}{name}");
    let id_key = format!("{ID}{id}");
    let stored_id = get(context, &name_key, Reader::string)?;
    let stored_name = get(context, &id_key, Reader::string)?;
    // Somebody else renamed it in the meantime.
    if stored_name != name || stored_id != id {
        return Err(ESTALE);
    }
    remove(context, &name_key)?;
    remove(context, &id_key)
}

pub(super) fn dir_add_image(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    context.create(false)?;
    let (name, id) = arguments(input, |r| Ok((r.string()?, r.string()?)))?;
    add(context, &name, &id, true)
}

pub(super) fn dir_remove_image(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (name, id) = arguments(input, |r| Ok((r.string()?, r.string()?)))?;
    take(context, &name, &id)
}

pub(super) fn dir_rename_image(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (from, to, id) = arguments(input, |r| Ok((r.string()?, r.string()?, r.string()?)))?;
    take(context, &from, &id)?;
    // What was just removed is still to be seen.
    add(context, &to, &id, false)
}

/// `DIRECTORY_STATE_*`: whether images may be added.
const READY: u8 = 0;
const ADD_DISABLED: u8 = 1;

pub(super) fn dir_state_assert(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let state = arguments(input, Reader::u8)?;
    if get(context, "state", Reader::u8)? == state { Ok(()) } else { Err(ENOENT) }
}

pub(super) fn dir_state_set(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    match arguments(input, Reader::u8)? {
        READY => {}
        ADD_DISABLED => {
            context.check_exists()?;
            if context.omap_all(NAME.as_bytes()).next().is_some() {
                return Err(EBUSY);
            }
        }
        _ => return Err(EINVAL),
    }
    let state = arguments(input, Reader::u8)?;
    set(context, "state", |w| w.put_u8(state));
    Ok(())
}

/// Keys of a simple directory after a name, without their prefix (`rbd_trash`, `rbd_namespace`, …).
pub(super) fn list_after<'a>(
    context: &Context<'a>,
    prefix: &'static str,
    after: &str,
    max: u64,
) -> Vec<(&'a [u8], &'a Bytes)> {
    let after = format!("{prefix}{after}");
    (context.omap_all(prefix.as_bytes()))
        .filter(|(key, _)| key[..] > *after.as_bytes())
        .take(max as usize)
        .map(|(key, value)| (&key[prefix.len()..], value))
        .collect()
}

/// The same, as a `map<string, bufferlist>`-like answer whose values are encoded already.
pub(super) fn put_listed(out: &mut BytesMut, listed: &[(&[u8], &Bytes)]) {
    out.put_count(listed.len());
    for (name, value) in listed {
        out.put_blob(name);
        out.put_slice(value);
    }
}

/// Whether a directory has a key.
pub(super) fn has(context: &Context<'_>, key: &str) -> OpResult<bool> {
    Ok(find_key(context, key, |_| Ok(()))?.is_some())
}
