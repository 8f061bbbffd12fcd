//! The object map of an image: two bits for each of its objects that say whether there is one at all
//! (`src/include/rbd/object_map_types.h`, `src/common/bit_vector.hpp`).
//!
//! It may claim too much, never too little: an object that it calls absent reads as zeros without being asked.

use bytes::{BufMut, BytesMut};

use crate::crc::crc32c;
use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};

/// What is known about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectState {
    /// It is not there.
    Absent = 0,
    /// It may be there, and may have changed since the last snapshot.
    Exists = 1,
    /// It is being removed, and may be there.
    Pending = 2,
    /// It may be there, and is as it was when the last snapshot was taken.
    Clean = 3,
}

impl ObjectState {
    /// From two bits.
    pub fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Absent,
            1 => Self::Exists,
            2 => Self::Pending,
            _ => Self::Clean,
        }
    }
}

/// The states of an image's objects, four to a byte, the first in the highest bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectStates {
    bytes: Vec<u8>,
    len: u64,
}

/// Objects that share a byte.
const PER_BYTE: u64 = 4;
/// Bytes that share a checksum.
const BLOCK: usize = 4096;

/// Where in its byte an object's bits are.
fn shift(object: u64) -> u32 {
    ((PER_BYTE - 1 - object % PER_BYTE) * 2) as u32
}

impl ObjectStates {
    /// So many objects, all in one state.
    pub fn new(len: u64, state: ObjectState) -> Self {
        let mut states = Self::default();
        states.resize(len, state);
        states
    }

    /// How many objects there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The state of an object; one behind the end is absent.
    pub fn get(&self, object: u64) -> ObjectState {
        if object >= self.len {
            return ObjectState::Absent;
        }
        let byte = self.bytes.get((object / PER_BYTE) as usize).copied().unwrap_or(0);
        ObjectState::from_bits(byte >> shift(object))
    }

    /// Changes the state of an object; there is nothing to change behind the end.
    pub fn set(&mut self, object: u64, state: ObjectState) {
        if object >= self.len {
            return;
        }
        if let Some(byte) = self.bytes.get_mut((object / PER_BYTE) as usize) {
            let shift = shift(object);
            *byte = *byte & !(3 << shift) | (state as u8) << shift;
        }
    }

    /// Makes it longer or shorter. New objects are in `state`.
    pub fn resize(&mut self, len: u64, state: ObjectState) {
        let old = self.len;
        self.bytes.resize(len.div_ceil(PER_BYTE) as usize, (state as u8) * 0x55);
        self.len = len;
        // Those that share a byte with what was there before.
        for object in old..len.min(old.next_multiple_of(PER_BYTE)) {
            self.set(object, state);
        }
        // Bits behind the end are zeros.
        for object in len..len.next_multiple_of(PER_BYTE) {
            if let Some(byte) = self.bytes.get_mut((object / PER_BYTE) as usize) {
                *byte &= !(3 << shift(object));
            }
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = ObjectState> + '_ {
        (0..self.len).map(|object| self.get(object))
    }
}

impl Decode for ObjectStates {
    /// Refuses one whose checksums are wrong, if it has any.
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let header = r.blob()?;
        let len = Reader::new(header, "object map").envelope("object map", 1, |_, r| r.u64())?;
        let bytes = usize::try_from(len.div_ceil(PER_BYTE))
            .map_err(|_| DecodeError::Invalid { what: "objects in an object map", value: len })?;
        let bytes = r.bytes(bytes)?.to_vec();
        let footer = r.blob()?;
        if !footer.is_empty() {
            let mut r = Reader::new(footer, "object map checksums");
            let wrong = |value| DecodeError::Invalid { what: "object map checksum", value };
            let crc = r.u32()?;
            if crc != crc32c(0, header) {
                return Err(wrong(crc.into()));
            }
            let crcs = r.list(4, Reader::u32)?;
            if crcs.len() != bytes.len().div_ceil(BLOCK) {
                return Err(wrong(crcs.len() as u64));
            }
            for (block, crc) in bytes.chunks(BLOCK).zip(crcs) {
                if crc != crc32c(0, block) {
                    return Err(wrong(crc.into()));
                }
            }
        }
        Ok(Self { bytes, len })
    }
}

impl Encode for ObjectStates {
    /// Without checksums, as clients send it: the OSD adds them.
    fn encode(&self, w: &mut BytesMut) {
        w.put_sized(|w| w.put_envelope(1, 1, |w| w.put_u64_le(self.len)));
        w.put_slice(&self.bytes);
        w.put_blob(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denc::decode;

    #[test]
    fn objects_are_where_ceph_puts_them() {
        use ObjectState::{Absent, Clean, Exists, Pending};
        let mut states = ObjectStates::new(6, Absent);
        states.set(0, Exists);
        states.set(3, Clean);
        states.set(5, Pending);
        states.set(6, Exists);
        assert_eq!(states.bytes, [0b0100_0011, 0b0010_0000]);
        let all: Vec<_> = states.iter().collect();
        assert_eq!(all, [Exists, Absent, Absent, Clean, Absent, Pending]);
        assert_eq!(states.get(6), Absent);
        assert_eq!(decode::<ObjectStates>(&states.to_bytes(), "map"), Ok(states));
    }

    #[test]
    fn growing_keeps_what_was_and_leaves_no_bits_behind_the_end() {
        let mut states = ObjectStates::new(2, ObjectState::Clean);
        assert_eq!(states.bytes, [0b1111_0000]);
        states.resize(9, ObjectState::Exists);
        assert_eq!(states.bytes, [0b1111_0101, 0b0101_0101, 0b0100_0000]);
        states.resize(1, ObjectState::Absent);
        assert_eq!((states.bytes.as_slice(), states.len()), (&[0b1100_0000][..], 1));
        states.resize(0, ObjectState::Absent);
        assert!(states.is_empty() && states.bytes.is_empty());
    }

    #[test]
    fn a_wrong_checksum_is_noticed() {
        let mut states = ObjectStates::new(20_000, ObjectState::Exists);
        states.set(17, ObjectState::Absent);
        let mut bytes = BytesMut::new();
        let plain = states.to_bytes();
        let data = plain.len() - 4;
        bytes.extend_from_slice(&plain[..data]);
        bytes.put_sized(|w| {
            w.put_u32_le(crc32c(0, &plain[4..18]));
            w.put_count(2);
            for block in states.bytes.chunks(BLOCK) {
                w.put_u32_le(crc32c(0, block));
            }
        });
        assert_eq!(decode::<ObjectStates>(&bytes, "map"), Ok(states));
        for at in [6, 30, data - 1, data + 5, bytes.len() - 1] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(decode::<ObjectStates>(&bytes, "map").is_err(), "byte {at}");
        }
        assert!(decode::<ObjectStates>(&bytes[..100], "map").is_err());
    }
}
