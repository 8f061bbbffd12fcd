//! A map as `ceph osd dump EPOCH -f json` has it: of each thing what we keep, under Ceph's names.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::osdmap::{
    CacheTier, Osd, OsdMap, Pool, SnapIntervals, StretchMode, osd_state, pool_flag,
};
use proto::types::{AddrType, EntityAddr, EntityAddrs, OsdId, PoolId, UTime};
use serde_json::{Map, Value, json};

/// The whole map.
pub(crate) fn dump(map: &OsdMap) -> Value {
    let ids = || (0..map.max_osd() as i32).map(OsdId).filter(|osd| map.exists(*osd));
    let unknown = Osd::default();
    let details = |osd: OsdId| map.osds.get(&osd).unwrap_or(&unknown);
    let osds: Vec<Value> = ids().map(|osd| dump_osd(map, osd, details(osd))).collect();
    let extra: Vec<Value> = ids().map(|osd| dump_extra(osd, details(osd))).collect();
    let pools: Vec<Value> = map.pools.iter().map(|(id, pool)| dump_pool(map, *id, pool)).collect();
    let StretchMode { bucket_count, degraded, recovering, bucket_type } =
        map.stretch.unwrap_or_default();
    json!({
        "epoch": map.epoch.0,
        "fsid": map.fsid.to_string(),
        "created": time(map.created),
        "modified": time(map.modified),
        "last_up_change": time(map.last_up_change),
        "last_in_change": time(map.last_in_change),
        "flags_num": map.flags,
        "crush_version": map.crush_version,
        "full_ratio": map.full_ratio,
        "backfillfull_ratio": map.backfillfull_ratio,
        "nearfull_ratio": map.nearfull_ratio,
        "cluster_snapshot": map.cluster_snapshot.1,
        "pool_max": map.pool_max.0,
        "max_osd": map.max_osd(),
        "require_min_compat_client": map.require_min_compat_client.to_string(),
        "require_osd_release": map.require_osd_release.to_string(),
        "allow_crimson": map.allow_crimson,
        "pools": pools,
        "osds": osds,
        "osd_xinfo": extra,
        "pg_upmap": list(&map.pg_upmap, |pg, osds| json!({ "pgid": pg.to_string(), "osds": numbers(osds) })),
        "pg_upmap_items": list(&map.pg_upmap_items, |pg, items| {
            let mapping = |(from, to): &(OsdId, OsdId)| json!({ "from": from.0, "to": to.0 });
            let mappings: Vec<Value> = items.iter().map(mapping).collect();
            json!({ "pgid": pg.to_string(), "mappings": mappings })
        }),
        "pg_upmap_primaries": list(&map.pg_upmap_primaries, |pg, osd| {
            json!({ "pgid": pg.to_string(), "primary_osd": osd.0 })
        }),
        "pg_temp": list(&map.pg_temp, |pg, osds| json!({ "pgid": pg.to_string(), "osds": numbers(osds) })),
        "primary_temp": list(&map.primary_temp, |pg, osd| json!({ "pgid": pg.to_string(), "osd": osd.0 })),
        "blocklist": blocklist(&map.blocklist),
        "range_blocklist": blocklist(&map.range_blocklist),
        "erasure_code_profiles": map.erasure_code_profiles,
        "removed_snaps_queue": snaps(&map.removed_snaps_queue),
        "new_removed_snaps": snaps(&map.new_removed_snaps),
        "new_purged_snaps": snaps(&map.new_purged_snaps),
        "crush_node_flags": node_flags(&map.crush_node_flags, |id| map.crush.item_names.get(&id)),
        "device_class_flags": node_flags(&map.device_class_flags, |id| map.crush.class_names.get(&id)),
        "stretch_mode": {
            "stretch_mode_enabled": map.stretch.is_some(),
            "stretch_bucket_count": bucket_count,
            "degraded_stretch_mode": degraded,
            "recovering_stretch_mode": recovering,
            "stretch_mode_bucket": bucket_type,
        },
    })
}

fn list<K, V>(map: &BTreeMap<K, V>, entry: impl Fn(&K, &V) -> Value) -> Vec<Value> {
    map.iter().map(|(key, value)| entry(key, value)).collect()
}

fn numbers(osds: &[OsdId]) -> Vec<i32> {
    osds.iter().map(|osd| osd.0).collect()
}

fn dump_osd(map: &OsdMap, osd: OsdId, details: &Osd) -> Value {
    let weight = map.weight(osd).unwrap_or(0);
    let info = &details.info;
    json!({
        "osd": osd.0,
        "uuid": details.uuid.to_string(),
        "up": u8::from(map.is_up(osd)),
        "in": u8::from(weight > 0),
        "weight": fraction(weight),
        "primary_affinity": fraction(map.primary_affinity(osd)),
        "last_clean_begin": info.last_clean_begin.0,
        "last_clean_end": info.last_clean_end.0,
        "up_from": info.up_from.0,
        "up_thru": info.up_thru.0,
        "down_at": info.down_at.0,
        "lost_at": info.lost_at.0,
        "public_addrs": addrs(&details.addrs),
        "cluster_addrs": addrs(&details.cluster_addrs),
        "heartbeat_back_addrs": addrs(&details.heartbeat_back_addrs),
        "heartbeat_front_addrs": addrs(&details.heartbeat_front_addrs),
        "state": states(map.state(osd)),
    })
}

fn dump_extra(osd: OsdId, details: &Osd) -> Value {
    let extra = &details.extra;
    json!({
        "osd": osd.0,
        "down_stamp": time(extra.down_stamp),
        "laggy_probability": f64::from(extra.laggy_probability) / f64::from(u32::MAX),
        "laggy_interval": extra.laggy_interval,
        "features": extra.features,
        "old_weight": fraction(extra.old_weight),
        "last_purged_snaps_scrub": time(extra.last_purged_snaps_scrub),
        "dead_epoch": extra.dead_epoch.0,
    })
}

fn dump_pool(map: &OsdMap, id: PoolId, pool: &Pool) -> Value {
    let merge = &pool.last_pg_merge;
    let version =
        |version: proto::types::EVersion| format!("{}'{}", version.epoch.0, version.version);
    let pool_id = |id: Option<PoolId>| id.map_or(-1, |id| id.0);
    let snap_mode = if pool.has(pool_flag::POOL_SNAPS) { "pool" } else { "selfmanaged" };
    let pool_snaps: Vec<Value> = (pool.snaps.values())
        .map(|snap| json!({ "snapid": snap.id.0, "stamp": time(snap.stamp), "name": snap.name }))
        .collect();
    let removed: Vec<String> =
        pool.removed_snaps.iter().map(|(id, len)| format!("{:x}~{len:x}", id.0)).collect();
    let autoscale = ["off", "warn", "on"].get(usize::from(pool.pg_autoscale_mode));
    let mut dumped = json!({
        "pool": id.0,
        "pool_name": map.pool_name(id),
        "create_time": time(pool.create_time),
        "flags": pool.flags,
        "type": if pool.is_erasure() { 3 } else { 1 },
        "size": pool.size,
        "min_size": pool.min_size,
        "crush_rule": pool.crush_rule,
        "object_hash": pool.object_hash,
        "pg_autoscale_mode": autoscale,
        "pg_num": pool.pg_num,
        "pg_placement_num": pool.pgp_num,
        "pg_placement_num_target": pool.pgp_num_target,
        "pg_num_target": pool.pg_num_target,
        "pg_num_pending": pool.pg_num_pending,
        "last_pg_merge_meta": {
            "source_pgid": merge.source.to_string(),
            "ready_epoch": merge.ready_epoch.0,
            "last_epoch_started": merge.last_epoch_started.0,
            "last_epoch_clean": merge.last_epoch_clean.0,
            "source_version": version(merge.source_version),
            "target_version": version(merge.target_version),
        },
        // These are words in Ceph's dump.
        "last_change": pool.last_change.to_string(),
        "last_force_op_resend": pool.last_force_op_resend.to_string(),
        "last_force_op_resend_prenautilus": pool.last_force_op_resend_prenautilus.to_string(),
        "last_force_op_resend_preluminous": pool.last_force_op_resend_preluminous.to_string(),
        "auid": pool.auid,
        "snap_mode": snap_mode,
        "snap_seq": pool.snap_seq.0,
        "snap_epoch": pool.snap_epoch.0,
        "pool_snaps": pool_snaps,
        "removed_snaps": format!("[{}]", removed.join(",")),
        "quota_max_bytes": pool.quota_max_bytes,
        "quota_max_objects": pool.quota_max_objects,
        "tiers": pool.tiers.iter().map(|tier| tier.0).collect::<Vec<_>>(),
        "tier_of": pool_id(pool.tier_of),
        "read_tier": pool_id(pool.read_tier),
        "write_tier": pool_id(pool.write_tier),
        "erasure_code_profile": pool.erasure_code_profile,
        "stripe_width": pool.stripe_width,
        "expected_num_objects": pool.expected_num_objects,
        "fast_read": pool.fast_read,
        "application_metadata": pool.applications,
    });
    if let (Value::Object(dumped), Value::Object(cache)) = (&mut dumped, dump_cache(&pool.cache)) {
        dumped.extend(cache);
    }
    if let (Some(stretch), Some(dumped)) = (&pool.stretch, dumped.as_object_mut()) {
        dumped.insert("peering_crush_bucket_count".into(), stretch.bucket_count.into());
        dumped.insert("peering_crush_bucket_target".into(), stretch.bucket_target.into());
        dumped.insert("peering_crush_bucket_barrier".into(), stretch.bucket_barrier.into());
        let mandatory = stretch.mandatory_member as i32;
        dumped.insert("peering_crush_bucket_mandatory_member".into(), mandatory.into());
    }
    dumped
}

/// What a cache tier adds to a pool.
fn dump_cache(cache: &CacheTier) -> Value {
    json!({
        "target_max_bytes": cache.target_max_bytes,
        "target_max_objects": cache.target_max_objects,
        "cache_target_dirty_ratio_micro": cache.target_dirty_ratio_micro,
        "cache_target_dirty_high_ratio_micro": cache.target_dirty_high_ratio_micro,
        "cache_target_full_ratio_micro": cache.target_full_ratio_micro,
        "cache_min_flush_age": cache.min_flush_age,
        "cache_min_evict_age": cache.min_evict_age,
        "hit_set_period": cache.hit_set_period,
        "hit_set_count": cache.hit_set_count,
        "use_gmt_hitset": cache.use_gmt_hitset,
        "min_read_recency_for_promote": cache.min_read_recency_for_promote,
        "min_write_recency_for_promote": cache.min_write_recency_for_promote,
        "hit_set_grade_decay_rate": cache.hit_set_grade_decay_rate,
        "hit_set_search_last_n": cache.hit_set_search_last_n,
    })
}

fn fraction(fixed: u32) -> f64 {
    f64::from(fixed) / 65536.0
}

fn addrs(addrs: &EntityAddrs) -> Value {
    let addr = |addr: &EntityAddr| {
        let kind = match addr.kind {
            AddrType::LEGACY => "v1",
            AddrType::MSGR2 => "v2",
            AddrType::ANY => "any",
            _ => "none",
        };
        let socket = addr
            .addr
            .map_or_else(|| "(unrecognized address family 0)".to_owned(), |a| a.to_string());
        json!({ "type": kind, "addr": socket, "nonce": addr.nonce })
    };
    json!({ "addrvec": addrs.0.iter().map(addr).collect::<Vec<_>>() })
}

fn blocklist(entries: &BTreeMap<EntityAddr, UTime>) -> Value {
    let named = entries.iter().filter_map(|(addr, until)| {
        let kind = if addr.kind == AddrType::CIDR { "cidr:" } else { "" };
        Some((format!("{kind}{}/{}", addr.addr?, addr.nonce), time(*until).into()))
    });
    Value::Object(named.collect::<Map<_, _>>())
}

fn snaps(pools: &BTreeMap<PoolId, SnapIntervals>) -> Vec<Value> {
    list(pools, |pool, snaps| {
        let interval = |(begin, length): (proto::types::SnapId, u64)| json!({ "begin": begin.0, "length": length });
        json!({ "pool": pool.0, "snaps": snaps.iter().map(interval).collect::<Vec<_>>() })
    })
}

fn node_flags<'a>(flags: &BTreeMap<i32, u32>, name: impl Fn(i32) -> Option<&'a String>) -> Value {
    let named = flags.iter().filter_map(|(id, flags)| Some((name(*id)?.clone(), states(*flags))));
    Value::Object(named.collect::<Map<_, _>>())
}

/// The names of an OSD's states, in alphabetical order.
fn states(state: u32) -> Value {
    let mut names: Vec<&str> = [
        (osd_state::EXISTS, "exists"),
        (osd_state::UP, "up"),
        (osd_state::AUTOOUT, "autoout"),
        (osd_state::NEW, "new"),
        (osd_state::FULL, "full"),
        (osd_state::NEARFULL, "nearfull"),
        (osd_state::BACKFILLFULL, "backfillfull"),
        (osd_state::DESTROYED, "destroyed"),
        (1 << 8, "noup"),
        (1 << 9, "nodown"),
        (1 << 10, "noin"),
        (1 << 11, "noout"),
        (osd_state::STOP, "stop"),
    ]
    .into_iter()
    .filter(|(bit, _)| state & bit != 0)
    .map(|(_, name)| name)
    .collect();
    names.sort_unstable();
    json!(names)
}

/// A point in time; a small one is a number of seconds to Ceph.
fn time(time: UTime) -> String {
    const TEN_YEARS: u32 = 60 * 60 * 24 * 365 * 10;
    if time.sec < TEN_YEARS {
        return format!("{}.{:06}", time.sec, time.nsec / 1000);
    }
    let stamp = Timestamp::new(time.sec.into(), time.nsec as i32).unwrap_or_default();
    stamp.strftime("%Y-%m-%dT%H:%M:%S.%6f+0000").to_string()
}
