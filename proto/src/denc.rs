//! Ceph's binary encoding (`doc/dev/encoding.rst`): little-endian integers, length-prefixed collections, and
//! versioned envelopes whose unknown tail is skipped.
//!
//! [`Reader`] is the only way bytes from a peer are decoded. It is bounded by the slice it was given, never panics, and
//! a count never allocates more than the bytes that are left could hold.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::limits;

/// Why bytes could not be decoded. `what` names the field or structure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end in the middle of a value.
    #[error("{what}: {needed} bytes needed, {left} left")]
    UnexpectedEnd {
        /// The structure or field being read.
        what: &'static str,
        /// Bytes that the value takes.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// The encoder says that only a newer decoder than this may read the structure.
    #[error("{what}: needs a decoder of version {compat}, this one knows {known}")]
    TooNew {
        /// The structure being read.
        what: &'static str,
        /// The lowest version that may read it.
        compat: u8,
        /// The version known here.
        known: u8,
    },
    /// A value that the protocol does not allow.
    #[error("{what}: invalid value {value:#x}")]
    Invalid {
        /// The field being read.
        what: &'static str,
        /// What stood there.
        value: u64,
    },
    /// A count above what is sane (see [`limits`]).
    #[error("{what}: {count} is above the limit of {limit}")]
    TooMany {
        /// The collection being read.
        what: &'static str,
        /// Its count.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// A checksum that does not match.
    #[error("{what}: checksum is {computed:#010x}, should be {expected:#010x}")]
    Checksum {
        /// What was checked.
        what: &'static str,
        /// The checksum of the bytes.
        computed: u32,
        /// The checksum that came with them.
        expected: u32,
    },
}

/// Shorthand for what every decoder returns.
pub type Result<T> = std::result::Result<T, DecodeError>;

/// A value that can be read from Ceph's encoding.
pub trait Decode: Sized {
    /// Reads one value and leaves the reader after it.
    fn decode(r: &mut Reader<'_>) -> Result<Self>;
}

/// A value that can be written in Ceph's encoding.
pub trait Encode {
    /// Appends the value.
    fn encode(&self, w: &mut BytesMut);

    /// The value as bytes of its own.
    fn to_bytes(&self) -> Bytes {
        let mut w = BytesMut::new();
        self.encode(&mut w);
        w.freeze()
    }
}

/// A cursor over bytes from a peer.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`; `what` names the structure in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is left, without taking it.
    pub fn peek(&self) -> &'a [u8] {
        self.bytes
    }

    /// Takes what is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Takes `len` bytes.
    #[inline]
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.bytes.split_at_checked(len) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => Err(DecodeError::UnexpectedEnd {
                what: self.what,
                needed: len,
                left: self.bytes.len(),
            }),
        }
    }

    /// Takes a fixed number of bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(*taken)
            }
            None => Err(DecodeError::UnexpectedEnd {
                what: self.what,
                needed: N,
                left: self.bytes.len(),
            }),
        }
    }

    /// Skips `len` bytes.
    pub fn skip(&mut self, len: usize) -> Result<()> {
        self.bytes(len).map(|_| ())
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A byte that is 0 or not.
    #[inline]
    pub fn bool(&mut self) -> Result<bool> {
        self.u8().map(|byte| byte != 0)
    }

    /// A little-endian 16-bit number.
    #[inline]
    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// A little-endian 32-bit number.
    #[inline]
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A little-endian 64-bit number.
    #[inline]
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A little-endian signed 32-bit number.
    #[inline]
    pub fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_le_bytes)
    }

    /// A little-endian signed 64-bit number.
    #[inline]
    pub fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A length-prefixed run of bytes (`bufferlist`).
    pub fn blob(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(len as usize)
    }

    /// A length-prefixed string. Ceph's strings are bytes; what is not UTF-8 is replaced.
    pub fn string(&mut self) -> Result<String> {
        let len = self.u32()?;
        if len as usize > limits::STRING_BYTES {
            return Err(DecodeError::TooMany {
                what: self.what,
                count: u64::from(len),
                limit: limits::STRING_BYTES as u64,
            });
        }
        self.bytes(len as usize).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// A 32-bit count of elements, each of which takes at least `min_bytes` bytes. A count that the rest of the bytes
    /// cannot hold is refused before anything is allocated for it.
    pub fn count(&mut self, min_bytes: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        let needed = count.saturating_mul(min_bytes.max(1));
        if needed > self.bytes.len() {
            return Err(DecodeError::UnexpectedEnd {
                what: self.what,
                needed,
                left: self.bytes.len(),
            });
        }
        Ok(count)
    }

    /// A counted list (`std::vector`, `std::list`, `std::set`).
    pub fn list<T>(
        &mut self,
        min_bytes: usize,
        mut element: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(min_bytes)?;
        (0..count).map(|_| element(self)).collect()
    }

    /// A counted map (`std::map`).
    pub fn map<K: Ord, V>(
        &mut self,
        min_bytes: usize,
        mut entry: impl FnMut(&mut Self) -> Result<(K, V)>,
    ) -> Result<BTreeMap<K, V>> {
        let count = self.count(min_bytes)?;
        (0..count).map(|_| entry(self)).collect()
    }

    /// An optional value (`std::optional`, `boost::optional`): a byte, then the value if that is not 0.
    pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.bool()? { value(self).map(Some) } else { Ok(None) }
    }

    /// Any value that knows how to decode itself.
    #[inline]
    pub fn get<T: Decode>(&mut self) -> Result<T> {
        T::decode(self)
    }

    /// A reader over the next `len` bytes, which this one skips.
    pub fn sub(&mut self, len: usize, what: &'static str) -> Result<Self> {
        self.bytes(len).map(|bytes| Reader { bytes, what })
    }

    /// A versioned structure (`ENCODE_START` / `DECODE_START`): version, compat version, length, content. `content`
    /// gets the version and a reader that ends where the structure ends; what it leaves there, a newer peer's
    /// additions, is skipped. `known` is the highest version this decoder knows.
    pub fn envelope<T>(
        &mut self,
        what: &'static str,
        known: u8,
        content: impl FnOnce(u8, &mut Self) -> Result<T>,
    ) -> Result<T> {
        let version = self.u8()?;
        let compat = self.u8()?;
        let len = self.u32()?;
        if compat > known {
            return Err(DecodeError::TooNew { what, compat, known });
        }
        let mut inner = self.sub(len as usize, what)?;
        content(version, &mut inner)
    }
}

/// What [`BytesMut`] lacks to write Ceph's encoding. Integers are written with [`BufMut`]'s `put_*_le`.
pub trait Put {
    /// A length-prefixed run of bytes.
    fn put_blob(&mut self, bytes: &[u8]);
    /// A length-prefixed string.
    fn put_str(&mut self, text: &str) {
        self.put_blob(text.as_bytes());
    }
    /// A byte that is 0 or 1.
    fn put_bool(&mut self, value: bool);
    /// A 32-bit count. More than 2^32 elements are never encoded.
    fn put_count(&mut self, count: usize);
    /// A versioned structure: see [`Reader::envelope`].
    fn put_envelope(&mut self, version: u8, compat: u8, content: impl FnOnce(&mut Self));
    /// Anything length-prefixed that is easier written than measured.
    fn put_sized(&mut self, content: impl FnOnce(&mut Self));
    /// Any value that knows how to encode itself.
    fn put_value(&mut self, value: &impl Encode);
}

impl Put for BytesMut {
    #[inline]
    fn put_blob(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.put_slice(bytes);
    }

    #[inline]
    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    #[inline]
    fn put_count(&mut self, count: usize) {
        debug_assert!(u32::try_from(count).is_ok());
        self.put_u32_le(count as u32);
    }

    #[inline]
    fn put_envelope(&mut self, version: u8, compat: u8, content: impl FnOnce(&mut Self)) {
        self.put_u8(version);
        self.put_u8(compat);
        self.put_sized(content);
    }

    #[inline]
    fn put_sized(&mut self, content: impl FnOnce(&mut Self)) {
        let at = self.len();
        self.put_u32_le(0);
        content(self);
        let len = (self.len() - at - 4) as u32;
        if let Some(field) = self.get_mut(at..at + 4) {
            field.copy_from_slice(&len.to_le_bytes());
        }
    }

    #[inline]
    fn put_value(&mut self, value: &impl Encode) {
        value.encode(self);
    }
}

/// Decodes a whole buffer as one value. A tail is allowed: a newer peer may append to it.
pub fn decode<T: Decode>(bytes: &[u8], what: &'static str) -> Result<T> {
    T::decode(&mut Reader::new(bytes, what))
}

macro_rules! integers {
    ($($integer:ident $put:ident;)*) => {$(
        impl Decode for $integer {
            #[inline]
            fn decode(r: &mut Reader<'_>) -> Result<Self> {
                r.$integer()
            }
        }

        impl Encode for $integer {
            #[inline]
            fn encode(&self, w: &mut BytesMut) {
                w.$put(*self);
            }
        }
    )*};
}

integers! {
    bool put_bool;
    u8 put_u8;
    u16 put_u16_le;
    u32 put_u32_le;
    u64 put_u64_le;
    i32 put_i32_le;
    i64 put_i64_le;
}

impl Decode for String {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.string()
    }
}

impl Encode for String {
    fn encode(&self, w: &mut BytesMut) {
        w.put_str(self);
    }
}

impl Decode for Bytes {
    /// A length-prefixed run of bytes, copied.
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.blob().map(Self::copy_from_slice)
    }
}

impl Encode for Bytes {
    fn encode(&self, w: &mut BytesMut) {
        w.put_blob(self);
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.option(T::decode)
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, w: &mut BytesMut) {
        w.put_bool(self.is_some());
        if let Some(value) = self {
            w.put_value(value);
        }
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.list(1, T::decode)
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, w: &mut BytesMut) {
        w.put_count(self.len());
        for element in self {
            w.put_value(element);
        }
    }
}

impl<K: Decode + Ord, V: Decode> Decode for BTreeMap<K, V> {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.map(1, |r| Ok((K::decode(r)?, V::decode(r)?)))
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, w: &mut BytesMut) {
        w.put_count(self.len());
        for (key, value) in self {
            w.put_value(key);
            w.put_value(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelope_skips_what_a_newer_peer_appends() {
        let mut w = BytesMut::new();
        w.put_envelope(9, 1, |w| {
            w.put_u32_le(7);
            w.put_slice(b"appended by version 9");
        });
        w.put_u8(42);
        let mut r = Reader::new(&w, "test");
        let value = r.envelope("thing", 1, |version, r| Ok((version, r.u32()?)));
        assert_eq!(value, Ok((9, 7)));
        assert_eq!(r.u8(), Ok(42));
    }

    #[test]
    fn envelope_refuses_what_it_may_not_read() {
        let mut w = BytesMut::new();
        w.put_envelope(9, 8, |w| w.put_u32_le(7));
        let refused = Reader::new(&w, "test").envelope("thing", 7, |_, r| r.u32());
        assert_eq!(refused, Err(DecodeError::TooNew { what: "thing", compat: 8, known: 7 }));
    }

    #[test]
    fn hostile_count_allocates_nothing() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        let refused = Reader::new(&bytes, "list").list(1, |r| r.u8());
        assert!(matches!(refused, Err(DecodeError::UnexpectedEnd { needed: 0xffff_ffff, .. })));
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let mut w = BytesMut::new();
        w.put_envelope(1, 1, |w| {
            w.put_str("name");
            w.put_u64_le(1);
        });
        for len in 0..w.len() {
            let read = Reader::new(&w[..len], "test")
                .envelope("thing", 1, |_, r| Ok((r.string()?, r.u64()?)));
            assert!(read.is_err(), "{len} bytes were enough");
        }
    }
}
