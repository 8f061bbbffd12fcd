//! A pool on the wire.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use super::codec::{self, has};
use super::pool::{PgMerge, Pool, PoolKind, PoolOption, PoolSnap, PoolStretch, flag, hash_kind};
use crate::denc::{Decode, DecodeError, Put, Reader, Result};
use crate::limits;
use crate::types::{PoolId, SnapId};

const NO_POOL: PoolId = PoolId(-1);

impl Pool {
    /// Appends the encoding for a peer with these features.
    pub(super) fn encode(&self, w: &mut BytesMut, features: u64) {
        let version = match () {
            () if has(features, codec::SERVER_TENTACLE) => 32,
            () if self.stretch.is_some() => 30,
            () => 29,
        };
        w.put_envelope(version, 5, |w| self.encode_content(w, version));
    }

    fn encode_content(&self, w: &mut BytesMut, version: u8) {
        w.put_u8(self.kind.number());
        w.put_u8(self.size);
        w.put_u8(self.crush_rule);
        w.put_u8(self.object_hash);
        w.put_u32_le(self.pg_num);
        w.put_u32_le(self.pgp_num);
        w.put_u64_le(0); // localized placement groups, long gone
        w.put_value(&self.last_change);
        w.put_value(&self.snap_seq);
        w.put_value(&self.snap_epoch);
        codec::put_map(w, &self.snaps, |w, snap| {
            w.put_envelope(2, 2, |w| {
                w.put_value(&snap.id);
                w.put_value(&snap.stamp);
                w.put_str(&snap.name);
            });
        });
        w.put_value(&self.removed_snaps);
        w.put_u64_le(self.auid);
        w.put_u64_le(self.flags);
        w.put_u32_le(0); // crash_replay_interval
        w.put_u8(self.min_size);
        w.put_u64_le(self.quota_max_bytes);
        w.put_u64_le(self.quota_max_objects);
        w.put_count(self.tiers.len());
        for tier in &self.tiers {
            w.put_value(tier);
        }
        w.put_value(&self.tier_of.unwrap_or(NO_POOL));
        w.put_u8(self.cache.mode);
        w.put_value(&self.read_tier.unwrap_or(NO_POOL));
        w.put_value(&self.write_tier.unwrap_or(NO_POOL));
        codec::put_text_map(w, &self.properties);
        w.put_slice(&self.cache.hit_set_params);
        w.put_u32_le(self.cache.hit_set_period);
        w.put_u32_le(self.cache.hit_set_count);
        w.put_u32_le(self.stripe_width);
        w.put_u64_le(self.cache.target_max_bytes);
        w.put_u64_le(self.cache.target_max_objects);
        w.put_u32_le(self.cache.target_dirty_ratio_micro);
        w.put_u32_le(self.cache.target_full_ratio_micro);
        w.put_u32_le(self.cache.min_flush_age);
        w.put_u32_le(self.cache.min_evict_age);
        w.put_str(&self.erasure_code_profile);
        w.put_value(&self.last_force_op_resend_preluminous);
        w.put_u32_le(self.cache.min_read_recency_for_promote);
        w.put_u64_le(self.expected_num_objects);
        w.put_u32_le(self.cache.target_dirty_high_ratio_micro);
        w.put_u32_le(self.cache.min_write_recency_for_promote);
        w.put_bool(self.cache.use_gmt_hitset);
        w.put_bool(self.fast_read);
        w.put_i32_le(self.cache.hit_set_grade_decay_rate);
        w.put_u32_le(self.cache.hit_set_search_last_n);
        w.put_envelope(2, 1, |w| self.encode_options(w));
        w.put_value(&self.last_force_op_resend_prenautilus);
        codec::put_nested_text_map(w, &self.applications);
        w.put_value(&self.create_time);
        w.put_u32_le(self.pg_num_target);
        w.put_u32_le(self.pgp_num_target);
        w.put_u32_le(self.pg_num_pending);
        w.put_u64_le(0); // two epochs of Nautilus' release candidates
        w.put_value(&self.last_force_op_resend);
        w.put_u8(self.pg_autoscale_mode);
        w.put_envelope(1, 1, |w| {
            let merge = &self.last_pg_merge;
            w.put_value(&merge.source);
            w.put_value(&merge.ready_epoch);
            w.put_value(&merge.last_epoch_started);
            w.put_value(&merge.last_epoch_clean);
            w.put_value(&merge.source_version);
            w.put_value(&merge.target_version);
        });
        if version > 30 {
            w.put_bool(self.stretch.is_some());
        }
        if let Some(stretch) = &self.stretch {
            w.put_u32_le(stretch.bucket_count);
            w.put_u32_le(stretch.bucket_target);
            w.put_u32_le(stretch.bucket_barrier);
            w.put_u32_le(stretch.mandatory_member);
        }
        if version >= 32 {
            codec::put_varint(w, self.nonprimary_shards as u64);
            codec::put_varint(w, (self.nonprimary_shards >> 64) as u64);
        }
    }

    fn encode_options(&self, w: &mut BytesMut) {
        w.put_count(self.options.len());
        for (key, value) in &self.options {
            w.put_i32_le(*key);
            match value {
                PoolOption::Text(text) => {
                    w.put_i32_le(0);
                    w.put_str(text);
                }
                PoolOption::Int(int) => {
                    w.put_i32_le(1);
                    w.put_i64_le(*int);
                }
                PoolOption::Float(float) => {
                    w.put_i32_le(2);
                    w.put_f64_le(*float);
                }
            }
        }
    }
}

impl Decode for Pool {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("pg_pool_t", 32, decode_content)
    }
}

fn decode_content(version: u8, r: &mut Reader<'_>) -> Result<Pool> {
    // 24 is the last of before Luminous.
    if version < 24 {
        return Err(DecodeError::Invalid {
            what: "version of a pool's encoding (older than Luminous)",
            value: version.into(),
        });
    }
    let kind = match r.u8()? {
        1 => PoolKind::Replicated,
        3 => PoolKind::Erasure,
        kind => return Err(DecodeError::Invalid { what: "pool type", value: kind.into() }),
    };
    let mut pool = Pool::new(kind);
    pool.size = r.u8()?;
    pool.crush_rule = r.u8()?;
    pool.object_hash = r.u8()?;
    if !matches!(pool.object_hash, hash_kind::LINUX | hash_kind::RJENKINS) {
        let value = pool.object_hash.into();
        return Err(DecodeError::Invalid { what: "object hash", value });
    }
    pool.pg_num = pg_count(r.u32()?)?;
    pool.pgp_num = pg_count(r.u32()?)?;
    r.skip(8)?; // localized placement groups, long gone
    pool.last_change = r.get()?;
    pool.snap_seq = r.get()?;
    pool.snap_epoch = r.get()?;
    pool.snaps = r.map(8 + 6, |r| Ok((r.get()?, decode_snap(r)?)))?;
    pool.removed_snaps = r.get()?;
    pool.auid = r.u64()?;
    pool.flags = r.u64()?;
    r.skip(4)?; // crash_replay_interval
    if pool.snap_seq > SnapId(0) && pool.flags & (flag::SELFMANAGED_SNAPS | flag::POOL_SNAPS) == 0 {
        // Before Mimic the flag was not kept; only self-managed snapshots leave removed ones behind.
        pool.flags |= match pool.removed_snaps.is_empty() {
            true => flag::POOL_SNAPS,
            false => flag::SELFMANAGED_SNAPS,
        };
    }
    pool.min_size = r.u8()?;
    pool.quota_max_bytes = r.u64()?;
    pool.quota_max_objects = r.u64()?;
    pool.tiers = r.list(8, PoolId::decode)?.into_iter().collect();
    pool.tier_of = some_pool(r.get()?);
    pool.cache.mode = r.u8()?;
    pool.read_tier = some_pool(r.get()?);
    pool.write_tier = some_pool(r.get()?);
    pool.properties = codec::text_map(r)?;
    pool.cache.hit_set_params = codec::raw_envelope(r)?;
    pool.cache.hit_set_period = r.u32()?;
    pool.cache.hit_set_count = r.u32()?;
    pool.stripe_width = r.u32()?;
    pool.cache.target_max_bytes = r.u64()?;
    pool.cache.target_max_objects = r.u64()?;
    pool.cache.target_dirty_ratio_micro = r.u32()?;
    pool.cache.target_full_ratio_micro = r.u32()?;
    pool.cache.min_flush_age = r.u32()?;
    pool.cache.min_evict_age = r.u32()?;
    pool.erasure_code_profile = r.string()?;
    pool.last_force_op_resend_preluminous = r.get()?;
    pool.cache.min_read_recency_for_promote = r.u32()?;
    pool.expected_num_objects = r.u64()?;
    pool.cache.target_dirty_high_ratio_micro = r.u32()?;
    pool.cache.min_write_recency_for_promote = r.u32()?;
    pool.cache.use_gmt_hitset = r.bool()?;
    pool.fast_read = r.bool()?;
    pool.cache.hit_set_grade_decay_rate = r.i32()?;
    pool.cache.hit_set_search_last_n = r.u32()?;
    pool.options = r.envelope("pool_opts_t", 2, decode_options)?;
    pool.last_force_op_resend_prenautilus = match version {
        25.. => r.get()?,
        _ => pool.last_force_op_resend_preluminous,
    };
    if version >= 26 {
        pool.applications = codec::nested_text_map(r)?;
    }
    if version >= 27 {
        pool.create_time = r.get()?;
    }
    if version < 28 {
        pool.pg_num_target = pool.pg_num;
        pool.pgp_num_target = pool.pgp_num;
        pool.pg_num_pending = pool.pg_num;
        pool.last_force_op_resend = pool.last_force_op_resend_prenautilus;
        return Ok(pool);
    }
    pool.pg_num_target = r.u32()?;
    pool.pgp_num_target = r.u32()?;
    pool.pg_num_pending = r.u32()?;
    r.skip(8)?; // two epochs of Nautilus' release candidates
    pool.last_force_op_resend = r.get()?;
    pool.pg_autoscale_mode = r.u8()?;
    if version >= 29 {
        pool.last_pg_merge = r.envelope("pg_merge_meta_t", 1, decode_merge)?;
    }
    pool.stretch = match version {
        30 => Some(decode_stretch(r)?),
        31.. => r.option(decode_stretch)?,
        _ => None,
    };
    if version >= 32 {
        let low = codec::varint(r)?;
        pool.nonprimary_shards = u128::from(codec::varint(r)?) << 64 | u128::from(low);
    }
    Ok(pool)
}

fn pg_count(count: u32) -> Result<u32> {
    match count {
        0 => Err(DecodeError::Invalid { what: "number of placement groups", value: 0 }),
        1..=limits::PGS_PER_POOL => Ok(count),
        _ => Err(DecodeError::TooMany {
            what: "placement groups of a pool",
            count: count.into(),
            limit: limits::PGS_PER_POOL.into(),
        }),
    }
}

fn some_pool(id: PoolId) -> Option<PoolId> {
    (id.0 >= 0).then_some(id)
}

fn decode_snap(r: &mut Reader<'_>) -> Result<PoolSnap> {
    r.envelope("pool_snap_info_t", 2, |_, r| {
        Ok(PoolSnap { id: r.get()?, stamp: r.get()?, name: r.string()? })
    })
}

fn decode_options(version: u8, r: &mut Reader<'_>) -> Result<BTreeMap<i32, PoolOption>> {
    r.map(12, |r| {
        let key = r.i32()?;
        let value = match r.i32()? {
            0 => PoolOption::Text(r.string()?),
            1 if version >= 2 => PoolOption::Int(r.i64()?),
            1 => PoolOption::Int(r.i32()?.into()),
            2 => PoolOption::Float(f64::from_bits(r.u64()?)),
            kind => {
                let value = u64::from(kind as u32);
                return Err(DecodeError::Invalid { what: "type of a pool option", value });
            }
        };
        Ok((key, value))
    })
}

fn decode_merge(_: u8, r: &mut Reader<'_>) -> Result<PgMerge> {
    Ok(PgMerge {
        source: r.get()?,
        ready_epoch: r.get()?,
        last_epoch_started: r.get()?,
        last_epoch_clean: r.get()?,
        source_version: r.get()?,
        target_version: r.get()?,
    })
}

fn decode_stretch(r: &mut Reader<'_>) -> Result<PoolStretch> {
    Ok(PoolStretch {
        bucket_count: r.u32()?,
        bucket_target: r.u32()?,
        bucket_barrier: r.u32()?,
        mandatory_member: r.u32()?,
    })
}
