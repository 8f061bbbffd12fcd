//! A pool (`pg_pool_t`): how many placement groups it has, how objects hash to them, and what clients must know of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::codec::SnapIntervals;
use super::table::PgTable;
use crate::crush::hash;
use crate::types::{EVersion, Epoch, PgId, PoolId, SnapId, UTime};

/// Flags of a pool (`pg_pool_t::FLAG_*`).
pub mod flag {
    /// The pool's id goes into the hash that CRUSH gets, instead of being added to the placement seed.
    pub const HASHPSPOOL: u64 = 1 << 0;
    /// Writes wait, or fail with ENOSPC: the pool is full or above its quota.
    pub const FULL: u64 = 1 << 1;
    /// An erasure-coded pool whose objects may be overwritten in part.
    pub const EC_OVERWRITES: u64 = 1 << 2;
    /// Set beside [`FULL`] when it is the quota that is used up.
    pub const FULL_QUOTA: u64 = 1 << 10;
    /// Nearly full.
    pub const NEARFULL: u64 = 1 << 11;
    /// Too full to be backfilled.
    pub const BACKFILLFULL: u64 = 1 << 12;
    /// Snapshots are made by clients (RBD), not of the pool.
    pub const SELFMANAGED_SNAPS: u64 = 1 << 13;
    /// Snapshots are made of the whole pool.
    pub const POOL_SNAPS: u64 = 1 << 14;
    /// Its placement groups are still being created.
    pub const CREATING: u64 = 1 << 15;
    /// Every operation fails with EIO.
    pub const EIO: u64 = 1 << 16;
    /// "FastEC" (Tentacle): some shards may not be primary, and `pg_temp` lists those last.
    pub const EC_OPTIMIZATIONS: u64 = 1 << 19;
}

/// How a pool keeps several copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Whole copies: the first of the acting set is the primary.
    Replicated,
    /// Erasure-coded shards: positions matter, and a missing shard leaves a hole.
    Erasure,
}

impl PoolKind {
    /// Its number in encodings, and in the CRUSH rules made for it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Replicated => 1,
            Self::Erasure => 3,
        }
    }
}

/// A named snapshot of a pool (`pool_snap_info_t`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolSnap {
    /// Its id.
    pub id: SnapId,
    /// When it was made.
    pub stamp: UTime,
    /// What it is called.
    pub name: String,
}

/// A value of [`Pool::options`] (`pool_opts_t::value_t`).
#[derive(Clone, Debug, PartialEq)]
pub enum PoolOption {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A fraction.
    Float(f64),
}

/// What a stretch pool demands before its placement groups may serve (`peering_crush_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStretch {
    /// Buckets of the barrier's type that the acting set must span.
    pub bucket_count: u32,
    /// Buckets that it should span.
    pub bucket_target: u32,
    /// The bucket type that is counted.
    pub bucket_barrier: u32,
    /// A bucket that must be among them; 0x7fffffff for none.
    pub mandatory_member: u32,
}

/// The last merge of two placement groups (`pg_merge_meta_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PgMerge {
    /// The one that vanished.
    pub source: PgId,
    /// When both were ready.
    pub ready_epoch: Epoch,
    /// Their history.
    pub last_epoch_started: Epoch,
    /// Their history.
    pub last_epoch_clean: Epoch,
    /// Where the source's log ended.
    pub source_version: EVersion,
    /// Where the target's log ended.
    pub target_version: EVersion,
}

/// A cache tier's settings, deprecated since Reef; carried so that a map can be written as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are those of `ceph osd pool set`, and no client reads them"
)]
pub struct CacheTier {
    pub mode: u8,
    pub hit_set_params: Bytes,
    pub hit_set_period: u32,
    pub hit_set_count: u32,
    pub target_max_bytes: u64,
    pub target_max_objects: u64,
    pub target_dirty_ratio_micro: u32,
    pub target_dirty_high_ratio_micro: u32,
    pub target_full_ratio_micro: u32,
    pub min_flush_age: u32,
    pub min_evict_age: u32,
    pub min_read_recency_for_promote: u32,
    pub min_write_recency_for_promote: u32,
    pub use_gmt_hitset: bool,
    pub hit_set_grade_decay_rate: i32,
    pub hit_set_search_last_n: u32,
}

/// A pool, as in `ceph osd dump`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Replicated or erasure-coded.
    pub kind: PoolKind,
    /// Copies, or shards.
    pub size: u8,
    /// How few of them may be there for a placement group to serve.
    pub min_size: u8,
    /// The CRUSH rule.
    pub crush_rule: u8,
    /// How names are hashed (`CEPH_STR_HASH_*`).
    pub object_hash: u8,
    /// Placement groups; never 0.
    pub pg_num: u32,
    /// Placement groups that CRUSH tells apart; below `pg_num` after a split, until data may move. Never 0.
    pub pgp_num: u32,
    /// Where `pg_num` is going.
    pub pg_num_target: u32,
    /// Where `pgp_num` is going.
    pub pgp_num_target: u32,
    /// `pg_num` after the merge that is being prepared.
    pub pg_num_pending: u32,
    /// The last merge.
    pub last_pg_merge: PgMerge,
    /// Whether the manager tunes `pg_num`.
    pub pg_autoscale_mode: u8,
    /// The epoch that last changed this pool.
    pub last_change: Epoch,
    /// Ops sent under an older map must be sent again, even if the primary is the same.
    pub last_force_op_resend: Epoch,
    /// As above, for clients of before Nautilus.
    pub last_force_op_resend_prenautilus: Epoch,
    /// As above, for clients of before Luminous.
    pub last_force_op_resend_preluminous: Epoch,
    /// The newest snapshot's number.
    pub snap_seq: SnapId,
    /// The epoch of the newest snapshot.
    pub snap_epoch: Epoch,
    /// Snapshots of the whole pool, if those are what it has.
    pub snaps: BTreeMap<SnapId, PoolSnap>,
    /// Removed self-managed snapshots, as far as clients of before Octopus are told.
    pub removed_snaps: SnapIntervals,
    /// An owner; always 0 today.
    pub auid: u64,
    /// See [`flag`].
    pub flags: u64,
    /// Quota in bytes; 0 for none.
    pub quota_max_bytes: u64,
    /// Quota in objects; 0 for none.
    pub quota_max_objects: u64,
    /// Cache pools in front of this one.
    pub tiers: BTreeSet<PoolId>,
    /// The pool that this one caches.
    pub tier_of: Option<PoolId>,
    /// Where reads go instead.
    pub read_tier: Option<PoolId>,
    /// Where writes go instead.
    pub write_tier: Option<PoolId>,
    /// Settings of a cache tier.
    pub cache: CacheTier,
    /// Free-form properties; unused by Ceph.
    pub properties: BTreeMap<String, String>,
    /// Bytes of one stripe over all data shards of an erasure-coded pool.
    pub stripe_width: u32,
    /// The erasure-code profile's name.
    pub erasure_code_profile: String,
    /// A hint given when the pool was made.
    pub expected_num_objects: u64,
    /// Whether reads go to all shards at once.
    pub fast_read: bool,
    /// Options by number (`pool_opts_t::key_t`).
    pub options: BTreeMap<i32, PoolOption>,
    /// What it is used for (`rbd`, `rgw`, …), with keys and values of each.
    pub applications: BTreeMap<String, BTreeMap<String, String>>,
    /// When it was made.
    pub create_time: UTime,
    /// Set for stretch pools.
    pub stretch: Option<PoolStretch>,
    /// Shards that may not be primary, one bit each (FastEC).
    pub nonprimary_shards: u128,
    pub(super) table: PgTable,
}

impl Pool {
    /// An empty replicated pool of one placement group, to start from.
    pub fn new(kind: PoolKind) -> Self {
        Self {
            kind,
            size: 1,
            min_size: 1,
            crush_rule: 0,
            object_hash: hash_kind::RJENKINS,
            pg_num: 1,
            pgp_num: 1,
            pg_num_target: 1,
            pgp_num_target: 1,
            pg_num_pending: 1,
            last_pg_merge: PgMerge::default(),
            pg_autoscale_mode: 0,
            last_change: Epoch(0),
            last_force_op_resend: Epoch(0),
            last_force_op_resend_prenautilus: Epoch(0),
            last_force_op_resend_preluminous: Epoch(0),
            snap_seq: SnapId(0),
            snap_epoch: Epoch(0),
            snaps: BTreeMap::new(),
            removed_snaps: SnapIntervals::default(),
            auid: 0,
            flags: flag::HASHPSPOOL,
            quota_max_bytes: 0,
            quota_max_objects: 0,
            tiers: BTreeSet::new(),
            tier_of: None,
            read_tier: None,
            write_tier: None,
            cache: CacheTier {
                // What Ceph gives a new pool.
                hit_set_params: Bytes::from_static(&[1, 1, 1, 0, 0, 0, 0]),
                target_dirty_ratio_micro: 400_000,
                target_dirty_high_ratio_micro: 600_000,
                target_full_ratio_micro: 800_000,
                use_gmt_hitset: true,
                ..CacheTier::default()
            },
            properties: BTreeMap::new(),
            stripe_width: 0,
            erasure_code_profile: String::new(),
            expected_num_objects: 0,
            fast_read: false,
            options: BTreeMap::new(),
            applications: BTreeMap::new(),
            create_time: UTime::default(),
            stretch: None,
            nonprimary_shards: 0,
            table: PgTable::default(),
        }
    }

    /// Whether all of a [`flag`]'s bits are set.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag == flag
    }

    /// Whether it is erasure-coded.
    pub fn is_erasure(&self) -> bool {
        self.kind == PoolKind::Erasure
    }

    /// Whether a shard may not be primary (FastEC).
    pub fn is_nonprimary_shard(&self, shard: usize) -> bool {
        u32::try_from(shard)
            .is_ok_and(|n| self.nonprimary_shards.checked_shr(n).unwrap_or(0) & 1 != 0)
    }

    /// The 32-bit hash of an object: of its locator key if it has one, else of its name (`pg_pool_t::hash_key`).
    #[inline]
    pub fn hash_object(&self, namespace: &[u8], key_or_name: &[u8]) -> u32 {
        if namespace.is_empty() {
            return self.hash(key_or_name);
        }
        // The namespace, the byte 0x1f, the name. On the stack unless it is unusually long.
        let parts = [namespace, b"\x1f", key_or_name];
        let len = namespace.len() + 1 + key_or_name.len();
        let mut stack = [0; 256];
        let Some(joined) = stack.get_mut(..len) else { return self.hash(&parts.concat()) };
        let mut rest = &mut *joined;
        for part in parts {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        self.hash(joined)
    }

    #[inline]
    fn hash(&self, bytes: &[u8]) -> u32 {
        match self.object_hash {
            hash_kind::LINUX => hash::str_hash_linux(bytes),
            _ => hash::str_hash_rjenkins(bytes),
        }
    }

    /// Folds a hash to a placement group's number.
    #[inline]
    pub fn fold(&self, hash: u32) -> u32 {
        stable_mod(hash, self.pg_num)
    }

    /// What CRUSH gets for a placement group (`raw_pg_to_pps`).
    pub fn placement_seed(&self, pg: PgId) -> u32 {
        let seed = stable_mod(pg.seed, self.pgp_num);
        let pool = pg.pool.0 as u32;
        if self.has(flag::HASHPSPOOL) {
            hash::hash32_2(seed, pool)
        } else {
            seed.wrapping_add(pool)
        }
    }

    /// Whether placement groups of `other` lie where those of this one do, all else being equal.
    pub(super) fn places_like(&self, other: &Self) -> bool {
        let relevant = flag::HASHPSPOOL | flag::EC_OPTIMIZATIONS;
        self.kind == other.kind
            && self.size == other.size
            && self.crush_rule == other.crush_rule
            && self.pg_num == other.pg_num
            && self.pgp_num == other.pgp_num
            && self.flags & relevant == other.flags & relevant
            && self.nonprimary_shards == other.nonprimary_shards
    }
}

/// How names are hashed (`CEPH_STR_HASH_*`).
pub mod hash_kind {
    /// Of the Linux dcache.
    pub const LINUX: u8 = 1;
    /// Robert Jenkins'; the only one in use.
    pub const RJENKINS: u8 = 2;
}

/// `ceph_stable_mod`: `x` modulo `n`, so that growing `n` moves few: the next power of two's bits, or one bit less
/// where that is `n` or above.
#[inline]
fn stable_mod(x: u32, n: u32) -> u32 {
    let mask = u32::MAX.checked_shr(n.wrapping_sub(1).leading_zeros()).unwrap_or(0);
    if x & mask < n { x & mask } else { x & (mask >> 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_mod_splits_in_place() {
        // With 12 groups, 12..15 still lie with their parents 4..7.
        let folded: Vec<u32> = (0..16).map(|x| stable_mod(x, 12)).collect();
        assert_eq!(folded, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 4, 5, 6, 7]);
        assert_eq!(stable_mod(0xdead_beef, 1), 0);
        assert_eq!(stable_mod(0xdead_beef, 1 << 20), 0xdead_beef & 0xf_ffff);
    }

    #[test]
    fn namespace_hash_needs_no_heap_and_agrees_with_the_long_way() {
        let pool = Pool::new(PoolKind::Replicated);
        for len in [1, 200, 253, 254, 255, 256, 1000] {
            let name = vec![b'x'; len];
            let joined = [b"ns\x1f".as_slice(), &name].concat();
            assert_eq!(pool.hash_object(b"ns", &name), pool.hash_object(b"", &joined), "{len}");
        }
    }

    #[test]
    fn shards_beyond_the_mask_may_be_primary() {
        let mut pool = Pool::new(PoolKind::Erasure);
        pool.nonprimary_shards = 0b110 | 1 << 127;
        let not: Vec<usize> = (0..300).filter(|&n| pool.is_nonprimary_shard(n)).collect();
        assert_eq!(not, [1, 2, 127]);
    }
}
