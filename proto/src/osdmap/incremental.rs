//! What one epoch changes (`OSDMap::Incremental`), on the wire.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{self, SERVER_REEF, SnapIntervals, has};
use super::full::{open, seal};
use super::osd::OsdExtra;
use super::{OsdMap, Pool, Release, StretchMode, UpmapItem};
use crate::denc::{Decode, Put, Reader, Result};
use crate::types::{EntityAddr, EntityAddrs, Epoch, Fsid, OsdId, PgId, PoolId, UTime};

/// The difference between a map and the one of the epoch before. What is `None` or empty does not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Incremental {
    /// The cluster.
    pub fsid: Fsid,
    /// The version that this makes.
    pub epoch: Epoch,
    /// When it was made.
    pub modified: UTime,
    /// The highest id a pool ever had.
    pub pool_max: Option<PoolId>,
    /// Flags of the whole map, all of them.
    pub flags: Option<u32>,
    /// A whole map, encoded, instead of everything else; empty for none.
    pub full_map: Bytes,
    /// The CRUSH map, encoded; empty for none.
    pub crush: Bytes,
    /// One more than the highest id an OSD may have.
    pub max_osd: Option<u32>,
    /// Pools that are new or have changed.
    pub pools: BTreeMap<PoolId, Pool>,
    /// Their names, if those are new.
    pub pool_names: BTreeMap<PoolId, String>,
    /// Pools that are gone.
    pub old_pools: BTreeSet<PoolId>,
    /// OSDs that came up, and where clients reach them.
    pub up: BTreeMap<OsdId, EntityAddrs>,
    /// States that are toggled: all bits set here change. 0 stands for "up".
    pub state: BTreeMap<OsdId, u32>,
    /// Weights.
    pub weight: BTreeMap<OsdId, u32>,
    /// Stand-in acting sets; an empty one removes it.
    pub pg_temp: BTreeMap<PgId, Vec<OsdId>>,
    /// Stand-in primaries; -1 removes it.
    pub primary_temp: BTreeMap<PgId, OsdId>,
    /// Primary affinities.
    pub primary_affinity: BTreeMap<OsdId, u32>,
    /// Erasure-code profiles that are new or have changed.
    pub erasure_code_profiles: BTreeMap<String, BTreeMap<String, String>>,
    /// Erasure-code profiles that are gone.
    pub old_erasure_code_profiles: Vec<String>,
    /// Explicit placements.
    pub pg_upmap: BTreeMap<PgId, Vec<OsdId>>,
    /// Explicit placements that are gone.
    pub old_pg_upmap: BTreeSet<PgId>,
    /// Replacements.
    pub pg_upmap_items: BTreeMap<PgId, Vec<UpmapItem>>,
    /// Replacements that are gone.
    pub old_pg_upmap_items: BTreeSet<PgId>,
    /// Snapshots whose removal begins.
    pub removed_snaps: BTreeMap<PoolId, SnapIntervals>,
    /// Snapshots whose removal ends.
    pub purged_snaps: BTreeMap<PoolId, SnapIntervals>,
    /// When an OSD last went up or down; 0 if none did.
    pub last_up_change: UTime,
    /// When an OSD last went in or out; 0 if none did.
    pub last_in_change: UTime,
    /// Chosen primaries.
    pub pg_upmap_primaries: BTreeMap<PgId, OsdId>,
    /// Chosen primaries that are gone.
    pub old_pg_upmap_primaries: BTreeSet<PgId>,
    /// Addresses of OSDs that came up.
    pub heartbeat_back_up: BTreeMap<OsdId, EntityAddrs>,
    /// How long OSDs are known to have been up.
    pub up_thru: BTreeMap<OsdId, Epoch>,
    /// Intervals that ended in a clean shutdown.
    pub last_clean_interval: BTreeMap<OsdId, (Epoch, Epoch)>,
    /// OSDs whose data was declared lost.
    pub lost: BTreeMap<OsdId, Epoch>,
    /// Clients that are fenced, and until when.
    pub blocklist: BTreeMap<EntityAddr, UTime>,
    /// Clients that no longer are.
    pub old_blocklist: Vec<EntityAddr>,
    /// Addresses of OSDs that came up.
    pub cluster_up: BTreeMap<OsdId, EntityAddrs>,
    /// A snapshot of the whole cluster: never used.
    pub cluster_snapshot: String,
    /// Identities of OSDs.
    pub uuid: BTreeMap<OsdId, Fsid>,
    /// More of OSDs.
    pub extra: BTreeMap<OsdId, OsdExtra>,
    /// Addresses of OSDs that came up.
    pub heartbeat_front_up: BTreeMap<OsdId, EntityAddrs>,
    /// The features it was first encoded for.
    pub encode_features: u64,
    /// How full an OSD may be before health warns.
    pub nearfull_ratio: Option<f32>,
    /// How full an OSD may be before its pools refuse writes.
    pub full_ratio: Option<f32>,
    /// How full an OSD may be before it takes no backfill.
    pub backfillfull_ratio: Option<f32>,
    /// The oldest clients that are let in.
    pub require_min_compat_client: Option<Release>,
    /// The oldest OSDs that are let in.
    pub require_osd_release: Option<Release>,
    /// Flags by CRUSH node; 0 removes them.
    pub crush_node_flags: BTreeMap<i32, u32>,
    /// Flags by device class; 0 removes them.
    pub device_class_flags: BTreeMap<i32, u32>,
    /// Stretch mode, begun, changed or ended.
    pub stretch: Option<Option<StretchMode>>,
    /// Ranges of addresses that are fenced, and until when.
    pub range_blocklist: BTreeMap<EntityAddr, UTime>,
    /// Ranges that no longer are.
    pub old_range_blocklist: Vec<EntityAddr>,
    /// Whether Crimson OSDs are let in.
    pub allow_crimson: Option<bool>,
    /// The checksum of the full map that this makes, as the monitors encode it. A client that is sent another encoding
    /// (for its features) cannot compare it, so it is kept but not checked.
    pub full_crc: u32,
}

impl Incremental {
    /// Nothing, for the epoch after a map's.
    pub fn after(map: &OsdMap) -> Self {
        Self { fsid: map.fsid, epoch: Epoch(map.epoch.0.wrapping_add(1)), ..Self::default() }
    }

    /// Reads what a monitor sent.
    ///
    /// # Errors
    /// A wrong checksum, an encoding of before Nautilus, and anything else that is not an incremental map. What
    /// versions later than those known here append is skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut sections = open(bytes, "incremental OSD map")?;
        let mut inc = Self { full_crc: sections.tail.u32()?, ..Self::default() };
        let (version, mut r) = sections.client;
        inc.decode_client(version, &mut r)?;
        let (version, mut r) = sections.osd;
        inc.decode_osd(version, &mut r)?;
        Ok(inc)
    }

    fn decode_client(&mut self, version: u8, r: &mut Reader<'_>) -> Result<()> {
        self.fsid = r.get()?;
        self.epoch = r.get()?;
        self.modified = r.get()?;
        let pool_max: PoolId = r.get()?;
        self.pool_max = (pool_max != PoolId(-1)).then_some(pool_max);
        self.flags = u32::try_from(r.i32()?).ok();
        self.full_map = Bytes::copy_from_slice(r.blob()?);
        self.crush = Bytes::copy_from_slice(r.blob()?);
        self.max_osd = u32::try_from(r.i32()?).ok();
        self.pools = r.map(8 + 6, |r| Ok((r.get()?, r.get()?)))?;
        self.pool_names = r.map(8 + 4, |r| Ok((r.get()?, r.string()?)))?;
        self.old_pools = set(8, r)?;
        self.up = osd_map(5, r)?;
        self.state = osd_map(4, r)?;
        self.weight = osd_map(4, r)?;
        self.pg_temp = r.map(17 + 4, |r| Ok((r.get()?, codec::osds(r)?)))?;
        self.primary_temp = r.map(17 + 4, |r| Ok((r.get()?, r.get()?)))?;
        self.primary_affinity = osd_map(4, r)?;
        self.erasure_code_profiles = codec::nested_text_map(r)?;
        self.old_erasure_code_profiles = r.list(4, Reader::string)?;
        self.pg_upmap = r.map(17 + 4, |r| Ok((r.get()?, codec::osds(r)?)))?;
        self.old_pg_upmap = set(17, r)?;
        self.pg_upmap_items = r.map(17 + 4, |r| Ok((r.get()?, codec::items(r)?)))?;
        self.old_pg_upmap_items = set(17, r)?;
        self.removed_snaps = r.map(8 + 4, |r| Ok((r.get()?, r.get()?)))?;
        self.purged_snaps = r.map(8 + 4, |r| Ok((r.get()?, r.get()?)))?;
        self.last_up_change = r.get()?;
        self.last_in_change = r.get()?;
        if version >= 9 {
            self.pg_upmap_primaries = r.map(17 + 4, |r| Ok((r.get()?, r.get()?)))?;
            self.old_pg_upmap_primaries = set(17, r)?;
        }
        Ok(())
    }

    fn decode_osd(&mut self, version: u8, r: &mut Reader<'_>) -> Result<()> {
        self.heartbeat_back_up = osd_map(5, r)?;
        self.up_thru = osd_map(4, r)?;
        self.last_clean_interval = r.map(12, |r| Ok((r.get()?, (r.get()?, r.get()?))))?;
        self.lost = osd_map(4, r)?;
        self.blocklist = r.map(4 + 8, |r| Ok((r.get()?, r.get()?)))?;
        self.old_blocklist = r.list(4, EntityAddr::decode)?;
        self.cluster_up = osd_map(5, r)?;
        self.cluster_snapshot = r.string()?;
        self.uuid = osd_map(16, r)?;
        self.extra = osd_map(6, r)?;
        self.heartbeat_front_up = osd_map(5, r)?;
        self.encode_features = r.u64()?;
        self.nearfull_ratio = ratio(r)?;
        self.full_ratio = ratio(r)?;
        self.backfillfull_ratio = ratio(r)?;
        self.require_min_compat_client = release(r)?;
        self.require_osd_release = release(r)?;
        if version >= 8 {
            self.crush_node_flags = codec::int_map(r)?;
        }
        if version >= 9 {
            self.device_class_flags = codec::int_map(r)?;
        }
        if version >= 10 {
            let is_changed = r.bool()?;
            let stretch = StretchMode {
                bucket_count: r.u32()?,
                degraded: r.u32()?,
                recovering: r.u32()?,
                bucket_type: r.i32()?,
            };
            let is_enabled = r.bool()?;
            self.stretch = is_changed.then_some(is_enabled.then_some(stretch));
        }
        if version >= 11 {
            self.range_blocklist = r.map(4 + 8, |r| Ok((r.get()?, r.get()?)))?;
            self.old_range_blocklist = r.list(4, EntityAddr::decode)?;
        }
        if version >= 12 {
            self.allow_crimson = match r.u8()? {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            };
        }
        Ok(())
    }

    /// The incremental for a peer with these features, which must be those of Nautilus or later.
    pub fn encode(&self, features: u64) -> Bytes {
        seal(
            |w| {
                self.encode_client(w, features);
                self.encode_osd(w);
            },
            |w| w.put_u32_le(self.full_crc),
        )
    }

    fn encode_client(&self, w: &mut BytesMut, features: u64) {
        let version = if has(features, SERVER_REEF) { 9 } else { 8 };
        w.put_envelope(version, 1, |w| {
            w.put_value(&self.fsid);
            w.put_value(&self.epoch);
            w.put_value(&self.modified);
            w.put_value(&self.pool_max.unwrap_or(PoolId(-1)));
            w.put_i32_le(self.flags.map_or(-1, |flags| flags as i32));
            w.put_blob(&self.full_map);
            w.put_blob(&self.crush);
            w.put_i32_le(self.max_osd.map_or(-1, |max| max as i32));
            codec::put_map(w, &self.pools, |w, pool| pool.encode(w, features));
            codec::put_map(w, &self.pool_names, |w, name| w.put_str(name));
            codec::put_list(w, self.old_pools.iter(), |w, pool| w.put_value(pool));
            codec::put_map(w, &self.up, |w, addrs| w.put_value(addrs));
            codec::put_map(w, &self.state, |w, state| w.put_u32_le(*state));
            codec::put_map(w, &self.weight, |w, weight| w.put_u32_le(*weight));
            codec::put_map(w, &self.pg_temp, |w, osds| codec::put_osds(w, osds));
            codec::put_map(w, &self.primary_temp, |w, osd| w.put_value(osd));
            codec::put_map(w, &self.primary_affinity, |w, affinity| w.put_u32_le(*affinity));
            codec::put_nested_text_map(w, &self.erasure_code_profiles);
            codec::put_list(w, self.old_erasure_code_profiles.iter(), |w, name| w.put_str(name));
            codec::put_map(w, &self.pg_upmap, |w, osds| codec::put_osds(w, osds));
            codec::put_list(w, self.old_pg_upmap.iter(), |w, pg| w.put_value(pg));
            codec::put_map(w, &self.pg_upmap_items, |w, items| codec::put_items(w, items));
            codec::put_list(w, self.old_pg_upmap_items.iter(), |w, pg| w.put_value(pg));
            codec::put_map(w, &self.removed_snaps, |w, snaps| w.put_value(snaps));
            codec::put_map(w, &self.purged_snaps, |w, snaps| w.put_value(snaps));
            w.put_value(&self.last_up_change);
            w.put_value(&self.last_in_change);
            if version >= 9 {
                codec::put_map(w, &self.pg_upmap_primaries, |w, osd| w.put_value(osd));
                codec::put_list(w, self.old_pg_upmap_primaries.iter(), |w, pg| w.put_value(pg));
            }
        });
    }

    fn encode_osd(&self, w: &mut BytesMut) {
        let has_ranges = !self.range_blocklist.is_empty() || !self.old_range_blocklist.is_empty();
        let version = match () {
            () if self.allow_crimson.is_some() => 12,
            () if has_ranges => 11,
            () if self.stretch.is_some() => 10,
            () => 9,
        };
        w.put_envelope(version, 1, |w| {
            codec::put_map(w, &self.heartbeat_back_up, |w, addrs| w.put_value(addrs));
            codec::put_map(w, &self.up_thru, |w, epoch| w.put_value(epoch));
            codec::put_map(w, &self.last_clean_interval, |w, (begin, end)| {
                w.put_value(begin);
                w.put_value(end);
            });
            codec::put_map(w, &self.lost, |w, epoch| w.put_value(epoch));
            codec::put_addr_map(w, &self.blocklist, |w, until| w.put_value(until));
            codec::put_list(w, self.old_blocklist.iter(), |w, addr| w.put_value(addr));
            codec::put_map(w, &self.cluster_up, |w, addrs| w.put_value(addrs));
            w.put_str(&self.cluster_snapshot);
            codec::put_map(w, &self.uuid, |w, uuid| w.put_value(uuid));
            codec::put_map(w, &self.extra, |w, extra| w.put_value(extra));
            codec::put_map(w, &self.heartbeat_front_up, |w, addrs| w.put_value(addrs));
            w.put_u64_le(self.encode_features);
            w.put_f32_le(self.nearfull_ratio.unwrap_or(-1.0));
            w.put_f32_le(self.full_ratio.unwrap_or(-1.0));
            w.put_f32_le(self.backfillfull_ratio.unwrap_or(-1.0));
            w.put_u8(self.require_min_compat_client.map_or(0xff, |release| release.0));
            w.put_u8(self.require_osd_release.map_or(0xff, |release| release.0));
            codec::put_int_map(w, &self.crush_node_flags);
            codec::put_int_map(w, &self.device_class_flags);
            if version >= 10 {
                let stretch = self.stretch.flatten().unwrap_or_default();
                w.put_bool(self.stretch.is_some());
                w.put_u32_le(stretch.bucket_count);
                w.put_u32_le(stretch.degraded);
                w.put_u32_le(stretch.recovering);
                w.put_i32_le(stretch.bucket_type);
                w.put_bool(self.stretch.flatten().is_some());
            }
            if version >= 11 {
                codec::put_addr_map(w, &self.range_blocklist, |w, until| w.put_value(until));
                codec::put_list(w, self.old_range_blocklist.iter(), |w, addr| w.put_value(addr));
            }
            if version >= 12 {
                w.put_u8(match self.allow_crimson {
                    None => 0,
                    Some(true) => 1,
                    Some(false) => 2,
                });
            }
        });
    }
}

fn set<T: Decode + Ord>(min_bytes: usize, r: &mut Reader<'_>) -> Result<BTreeSet<T>> {
    Ok(r.list(min_bytes, T::decode)?.into_iter().collect())
}

fn osd_map<T: Decode>(min_bytes: usize, r: &mut Reader<'_>) -> Result<BTreeMap<OsdId, T>> {
    r.map(4 + min_bytes, |r| Ok((r.get()?, r.get()?)))
}

fn ratio(r: &mut Reader<'_>) -> Result<Option<f32>> {
    let ratio = f32::from_bits(r.u32()?);
    Ok((ratio >= 0.0).then_some(ratio))
}

/// A release, or -1 for no change.
fn release(r: &mut Reader<'_>) -> Result<Option<Release>> {
    let release = r.u8()?;
    Ok((release < 0x80).then_some(Release(release)))
}
