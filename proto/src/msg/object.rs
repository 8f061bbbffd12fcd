//! How an object is addressed: locator, snapshot context, and its place in a PG's order.

use bytes::{BufMut, BytesMut};

use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::types::{PgId, PoolId, SnapId};

/// Where an object belongs (`object_locator_t`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locator {
    /// The pool.
    pub pool: PoolId,
    /// Placed as if this were its name, unless empty.
    pub key: String,
    /// The namespace; the default one is empty.
    pub namespace: String,
    /// Placed by this hash instead of a name: operations on a PG.
    pub hash: Option<u32>,
}

impl Locator {
    /// Of all namespaces, when listing (`LIBRADOS_ALL_NSPACES`).
    pub const ALL_NAMESPACES: &'static str = "\u{1}";

    /// An ordinary object of a pool.
    pub fn of_pool(pool: PoolId) -> Self {
        Self { pool, ..Self::default() }
    }
}

impl Decode for Locator {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("object_locator_t", 6, |version, r| {
            let pool = PoolId(r.i64()?);
            r.skip(4)?; // the preferred OSD, unused
            let key = r.string()?;
            let namespace = if version >= 5 { r.string()? } else { String::new() };
            let hash = if version >= 6 { r.i64()? } else { -1 };
            Ok(Self { pool, key, namespace, hash: u32::try_from(hash).ok() })
        })
    }
}

impl Encode for Locator {
    fn encode(&self, w: &mut BytesMut) {
        // A decoder that would ignore the hash must refuse it.
        let compat = if self.hash.is_some() { 6 } else { 3 };
        w.put_envelope(6, compat, |w| {
            w.put_i64_le(self.pool.0);
            w.put_i32_le(-1);
            w.put_str(&self.key);
            w.put_str(&self.namespace);
            w.put_i64_le(self.hash.map_or(-1, i64::from));
        });
    }
}

/// The snapshots a write must preserve: the newest first (`SnapContext`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapContext {
    /// The newest snapshot ever taken, of this image or pool.
    pub seq: SnapId,
    /// The snapshots that exist, descending.
    pub snaps: Vec<SnapId>,
}

/// A placement group or, in an erasure-coded pool, one shard of it (`spg_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpgId {
    /// The placement group.
    pub pg: PgId,
    /// The shard; [`SpgId::NO_SHARD`] in replicated pools.
    pub shard: i8,
}

impl SpgId {
    /// Not erasure-coded.
    pub const NO_SHARD: i8 = -1;
}

impl Decode for SpgId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("spg_t", 1, |_, r| Ok(Self { pg: r.get()?, shard: r.u8()? as i8 }))
    }
}

impl Encode for SpgId {
    #[inline]
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(1, 1, |w| {
            w.put_value(&self.pg);
            w.put_i8(self.shard);
        });
    }
}

/// An object's place in its pool's order (`hobject_t`), the order in which PGs list and back off.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HObject {
    /// Its name.
    pub name: String,
    /// Its locator key, empty if that is its name.
    pub key: String,
    /// Which version of it.
    pub snap: SnapId,
    /// The hash of its name.
    pub hash: u32,
    /// Behind every object.
    pub max: bool,
    /// Its namespace.
    pub namespace: String,
    /// Its pool; `i64::MIN` before every object.
    pub pool: i64,
}

impl HObject {
    /// Before every object.
    pub fn min() -> Self {
        Self {
            name: String::new(),
            key: String::new(),
            snap: SnapId(0),
            hash: 0,
            max: false,
            namespace: String::new(),
            pool: i64::MIN,
        }
    }

    /// Behind every object.
    pub fn max() -> Self {
        Self { max: true, ..Self::min() }
    }

    /// Ceph's order: pool, bit-reversed hash, namespace, key, name, snapshot (`hobject_t::operator<=>`).
    pub fn compare(&self, other: &Self) -> std::cmp::Ordering {
        fn effective_key(object: &HObject) -> &str {
            if object.key.is_empty() { &object.name } else { &object.key }
        }
        self.max
            .cmp(&other.max)
            .then_with(|| self.pool.cmp(&other.pool))
            .then_with(|| self.hash.reverse_bits().cmp(&other.hash.reverse_bits()))
            .then_with(|| self.namespace.cmp(&other.namespace))
            .then_with(|| effective_key(self).cmp(effective_key(other)))
            .then_with(|| self.name.cmp(&other.name))
            .then_with(|| self.snap.cmp(&other.snap))
    }
}

impl Decode for HObject {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("hobject_t", 4, |version, r| {
            let mut object = Self::min();
            object.key = r.string()?;
            object.name = r.string()?;
            object.snap = r.get()?;
            object.hash = r.u32()?;
            object.max = r.bool()?;
            if version >= 4 {
                object.namespace = r.string()?;
                object.pool = r.i64()?;
            }
            // Before Hammer the smallest object had pool -1.
            if object.pool == -1 && !object.max && object.hash == 0 && object.name.is_empty() {
                object.pool = i64::MIN;
            }
            Ok(object)
        })
    }
}

impl Encode for HObject {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(4, 3, |w| {
            w.put_str(&self.key);
            w.put_str(&self.name);
            w.put_value(&self.snap);
            w.put_u32_le(self.hash);
            w.put_bool(self.max);
            w.put_str(&self.namespace);
            w.put_i64_le(self.pool);
        });
    }
}
