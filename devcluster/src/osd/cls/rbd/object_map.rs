//! Object maps: two bits for each object of an image, with checksums (`BitVector<2>` in Ceph's `src/common`).

use bytes::{BufMut, Bytes, BytesMut};
use proto::crc::crc32c;
use proto::denc::{DecodeError, Put, Reader, Result};

use crate::errno::{EINVAL, ENOENT, ERANGE, ESTALE, OpResult};
use crate::osd::cls::arguments;
use crate::osd::context::Context;

/// `OBJECT_*`: what is known of an object.
const EXISTS: u8 = 1;
const EXISTS_CLEAN: u8 = 3;

/// The largest map (`MAX_OBJECT_MAP_OBJECT_COUNT`).
const MAX_OBJECTS: u64 = 256_000_000;

/// Bytes with one checksum.
const BLOCK_BYTES: usize = 4096;

#[derive(Default)]
struct ObjectMap {
    objects: u64,
    /// Four objects in a byte, the first in the highest bits.
    bits: Vec<u8>,
}

impl ObjectMap {
    fn shift(object: u64) -> u32 {
        (3 - (object % 4) as u32) * 2
    }

    fn get(&self, object: u64) -> u8 {
        self.bits.get((object / 4) as usize).map_or(0, |byte| byte >> Self::shift(object) & 3)
    }

    fn set(&mut self, object: u64, state: u8) {
        if let Some(byte) = self.bits.get_mut((object / 4) as usize) {
            let shift = Self::shift(object);
            *byte = *byte & !(3 << shift) | (state & 3) << shift;
        }
    }

    fn resize(&mut self, objects: u64) {
        self.objects = objects;
        self.bits.resize(objects.div_ceil(4) as usize, 0);
    }

    fn encode(&self, checksums: bool, w: &mut BytesMut) {
        let mut header = BytesMut::new();
        header.put_envelope(1, 1, |w| w.put_u64_le(self.objects));
        w.put_blob(&header);
        w.put_slice(&self.bits);
        w.put_sized(|w| {
            if checksums {
                w.put_u32_le(crc32c(0, &header));
                w.put_count(self.bits.len().div_ceil(BLOCK_BYTES));
                for block in self.bits.chunks(BLOCK_BYTES) {
                    w.put_u32_le(crc32c(0, block));
                }
            }
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let header = r.blob()?;
        let objects =
            Reader::new(header, "object map header")
                .envelope("BitVector header", 1, |_, r| r.u64())?;
        let bits = r.bytes(usize::try_from(objects.div_ceil(4)).unwrap_or(usize::MAX))?;
        let mut footer = Reader::new(r.blob()?, "object map footer");
        if !footer.is_empty() {
            check("object map header", footer.u32()?, header)?;
            let count = footer.count(4)?;
            let blocks = bits.chunks(BLOCK_BYTES);
            if blocks.len() != count {
                let what = "object map checksums";
                return Err(DecodeError::Invalid { what, value: count as u64 });
            }
            blocks
                .into_iter()
                .try_for_each(|block| check("object map block", footer.u32()?, block))?;
        }
        Ok(Self { objects, bits: bits.to_vec() })
    }
}

fn check(what: &'static str, expected: u32, bytes: &[u8]) -> Result<()> {
    let computed = crc32c(0, bytes);
    if computed == expected {
        Ok(())
    } else {
        Err(DecodeError::Checksum { what, computed, expected })
    }
}

fn read(context: &Context<'_>) -> OpResult<ObjectMap> {
    if context.stat()?.0 == 0 {
        return Err(ENOENT);
    }
    let stored = context.read(0, 0);
    ObjectMap::decode(&mut Reader::new(&stored, "object map")).map_err(|_| EINVAL)
}

fn write(context: &mut Context<'_>, map: &ObjectMap) -> OpResult {
    let mut w = BytesMut::new();
    map.encode(true, &mut w);
    context.write_full(w.freeze())
}

pub(super) fn object_map_load(
    context: &mut Context<'_>,
    _input: &Bytes,
    out: &mut BytesMut,
) -> OpResult {
    read(context)?.encode(false, out);
    Ok(())
}

pub(super) fn object_map_save(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let map = arguments(input, ObjectMap::decode)?;
    write(context, &map)
}

pub(super) fn object_map_resize(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (objects, state) = arguments(input, |r| Ok((r.u64()?, r.u8()?)))?;
    if objects > MAX_OBJECTS {
        return Err(EINVAL);
    }
    let mut map = match read(context) {
        Err(ENOENT) => ObjectMap::default(),
        map => map?,
    };
    let before = map.objects;
    if (objects..before).any(|object| map.get(object) != state) {
        return Err(ESTALE);
    }
    map.resize(objects);
    (before..objects).for_each(|object| map.set(object, state));
    write(context, &map)
}

pub(super) fn object_map_update(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let (start, end, new, current) =
        arguments(input, |r| Ok((r.u64()?, r.u64()?, r.u8()?, r.option(Reader::u8)?)))?;
    context.stat()?;
    let mut map = match read(context) {
        Err(ENOENT) => return Err(EINVAL),
        map => map?,
    };
    if start >= end || end > map.objects {
        return Err(ERANGE);
    }
    let mut updated = false;
    for object in start..end {
        let state = map.get(object);
        let expected = current
            .is_none_or(|current| state == current || (current == EXISTS && state == EXISTS_CLEAN));
        if expected && state != new {
            map.set(object, new);
            updated = true;
        }
    }
    if updated { write(context, &map) } else { Ok(()) }
}

/// After a snapshot, nothing that exists differs from it.
pub(super) fn object_map_snap_add(
    context: &mut Context<'_>,
    _input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let mut map = read(context)?;
    let dirty: Vec<u64> = (0..map.objects).filter(|object| map.get(*object) == EXISTS).collect();
    dirty.iter().for_each(|object| map.set(*object, EXISTS_CLEAN));
    if dirty.is_empty() { Ok(()) } else { write(context, &map) }
}

/// Without a snapshot, what differed from it differs from the one before.
pub(super) fn object_map_snap_remove(
    context: &mut Context<'_>,
    input: &Bytes,
    _out: &mut BytesMut,
) -> OpResult {
    let gone = arguments(input, ObjectMap::decode)?;
    let mut map = read(context)?;
    let dirty: Vec<u64> = (0..map.objects)
        .filter(|object| {
            map.get(*object) == EXISTS_CLEAN
                && (*object >= gone.objects || gone.get(*object) == EXISTS)
        })
        .collect();
    dirty.iter().for_each(|object| map.set(*object, EXISTS));
    if dirty.is_empty() { Ok(()) } else { write(context, &map) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_ceph_s() {
        // Five objects: exists, does not, pending, clean, exists.
        let mut map = ObjectMap::default();
        map.resize(5);
        for (object, state) in [1, 0, 2, 3, 1].into_iter().enumerate() {
            map.set(object as u64, state);
        }
        assert_eq!(map.bits, [0b01_00_10_11, 0b01_00_00_00]);
        let mut w = BytesMut::new();
        map.encode(true, &mut w);
        assert_eq!(&w[..18], b"\x0e\0\0\0\x01\x01\x08\0\0\0\x05\0\0\0\0\0\0\0");
        let again = ObjectMap::decode(&mut Reader::new(&w, "map")).unwrap();
        assert_eq!((again.objects, &again.bits), (5, &map.bits));
        for len in 0..w.len() {
            assert!(ObjectMap::decode(&mut Reader::new(&w[..len], "map")).is_err());
        }
        w[18] ^= 1;
        assert!(ObjectMap::decode(&mut Reader::new(&w, "map")).is_err());
    }
}
