//! A whole map on the wire (`OSDMap::encode`, `doc/dev/osd_internals/osdmap_versions.txt`): a wrapper with a checksum
//! around two sections, one that clients need and one that once only OSDs did.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{self, SERVER_REEF, has};
use super::osd::{Osd, OsdExtra, OsdInfo};
use super::{Contents, OsdMap, Release, StretchMode, map_flag};
use crate::crc::crc32c;
use crate::denc::{Decode, DecodeError, Put, Reader, Result};
use crate::limits;
use crate::types::{EntityAddrs, OsdId, PoolId};

/// The sections of a full or incremental map, once its checksum is found right.
pub(super) struct Sections<'a> {
    pub(super) client: (u8, Reader<'a>),
    pub(super) osd: (u8, Reader<'a>),
    /// What follows the checksum.
    pub(super) tail: Reader<'a>,
}

/// Opens the wrapper of a full or incremental map and verifies the checksum, which covers everything but itself.
pub(super) fn open<'a>(bytes: &'a [u8], what: &'static str) -> Result<Sections<'a>> {
    let mut r = Reader::new(bytes, what);
    // Before Firefly there was no wrapper, and a 16-bit version stood here.
    if let Some(&version) = bytes.first()
        && version < 8
    {
        return Err(too_old(version));
    }
    let mut body = r.envelope(what, 8, |_, body| Ok(body.clone()))?;
    let client = body.envelope("client section", 10, |version, r| Ok((version, r.clone())))?;
    let osd = body.envelope("OSD section", 12, |version, r| Ok((version, r.clone())))?;
    let whole = bytes.len() - r.remaining();
    let covered = whole - body.remaining();
    let expected = body.u32()?;
    let front = bytes.get(..covered).unwrap_or_default();
    let computed = crc32c(crc32c(!0, front), body.peek());
    if computed != expected {
        return Err(DecodeError::Checksum { what, computed, expected });
    }
    // What Nautilus sends to a client with its features.
    for (version, oldest) in [(client.0, 8), (osd.0, 6)] {
        if version < oldest {
            return Err(too_old(version));
        }
    }
    Ok(Sections { client, osd, tail: body })
}

fn too_old(version: u8) -> DecodeError {
    DecodeError::Invalid {
        what: "version of an OSD map's encoding (from a cluster older than Nautilus)",
        value: version.into(),
    }
}

/// Writes the wrapper of a full or incremental map, with its checksum. `content` writes the sections, `tail` what
/// follows the checksum.
pub(super) fn seal(content: impl FnOnce(&mut BytesMut), tail: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut w = BytesMut::new();
    let mut checksum_at = 0;
    w.put_envelope(8, 7, |w| {
        content(w);
        checksum_at = w.len();
        w.put_u32_le(0);
        tail(w);
    });
    if let Some((front, rest)) = w.split_at_mut_checked(checksum_at)
        && let Some((place, tail)) = rest.split_first_chunk_mut::<4>()
    {
        *place = crc32c(crc32c(!0, front), tail).to_le_bytes();
    }
    w.freeze()
}

impl OsdMap {
    /// Reads a whole map.
    ///
    /// # Errors
    /// A wrong checksum, a map of before Nautilus, and anything else that is not a map. What versions later than
    /// those known here append is skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let sections = open(bytes, "OSD map")?;
        let mut map = Contents::default();
        let (version, mut r) = sections.client;
        decode_client(&mut map, version, &mut r)?;
        let (version, mut r) = sections.osd;
        decode_osd(&mut map, version, &mut r)?;
        if map.require_osd_release >= Release::LUMINOUS {
            map.flags &= !map_flag::LEGACY_REQUIRE;
            map.flags |= map_flag::RECOVERY_DELETES;
        }
        if map.require_osd_release >= Release::NAUTILUS {
            map.flags |= map_flag::PGLOG_HARDLIMIT;
        }
        Ok(Self(map))
    }

    /// The whole map for a peer with these features, which must be those of Nautilus or later.
    pub fn encode(&self, features: u64) -> Bytes {
        seal(
            |w| {
                self.encode_client(w, features);
                self.encode_osd(w);
            },
            |_| {},
        )
    }
}

fn decode_client(map: &mut Contents, version: u8, r: &mut Reader<'_>) -> Result<()> {
    map.fsid = r.get()?;
    map.epoch = r.get()?;
    map.created = r.get()?;
    map.modified = r.get()?;
    map.pools = r.map(8 + 6, |r| Ok((r.get()?, r.get()?)))?;
    map.pool_names = r.map(8 + 4, |r| Ok((r.get()?, r.string()?)))?;
    map.pool_max = PoolId(r.i32()?.into()); // 64 bits in incrementals
    map.flags = r.u32()?;
    let max_osd = osd_count(r.i32()?)?;
    map.osd_state = by_osd(max_osd, r.list(4, Reader::u32)?)?;
    map.osd_weight = by_osd(max_osd, r.list(4, Reader::u32)?)?;
    each_osd(map, r, 5, EntityAddrs::decode, |osd| &mut osd.addrs)?;
    map.pg_temp = r.map(17 + 4, |r| Ok((r.get()?, codec::osds(r)?)))?;
    map.primary_temp = r.map(17 + 4, |r| Ok((r.get()?, r.get()?)))?;
    map.osd_primary_affinity = r.list(4, Reader::u32)?;
    if !map.osd_primary_affinity.is_empty() {
        check_len(max_osd, map.osd_primary_affinity.len())?;
        map.osd_primary_affinity.resize(max_osd, super::WEIGHT_ONE);
    }
    map.crush = codec::read_crush(r.blob()?)?;
    map.erasure_code_profiles = codec::nested_text_map(r)?;
    map.pg_upmap = r.map(17 + 4, |r| Ok((r.get()?, codec::osds(r)?)))?;
    map.pg_upmap_items = r.map(17 + 4, |r| Ok((r.get()?, codec::items(r)?)))?;
    map.crush_version = r.u32()?;
    map.new_removed_snaps = r.map(8 + 4, |r| Ok((r.get()?, r.get()?)))?;
    map.new_purged_snaps = r.map(8 + 4, |r| Ok((r.get()?, r.get()?)))?;
    if version >= 9 {
        map.last_up_change = r.get()?;
        map.last_in_change = r.get()?;
    }
    if version >= 10 {
        map.pg_upmap_primaries = r.map(17 + 4, |r| Ok((r.get()?, r.get()?)))?;
    }
    Ok(())
}

fn decode_osd(map: &mut Contents, version: u8, r: &mut Reader<'_>) -> Result<()> {
    each_osd(map, r, 5, EntityAddrs::decode, |osd| &mut osd.heartbeat_back_addrs)?;
    each_osd(map, r, 25, OsdInfo::decode, |osd| &mut osd.info)?;
    map.blocklist = r.map(4 + 8, |r| Ok((r.get()?, r.get()?)))?;
    each_osd(map, r, 5, EntityAddrs::decode, |osd| &mut osd.cluster_addrs)?;
    map.cluster_snapshot = (r.get()?, r.string()?);
    each_osd(map, r, 16, Decode::decode, |osd| &mut osd.uuid)?;
    each_osd(map, r, 6, OsdExtra::decode, |osd| &mut osd.extra)?;
    each_osd(map, r, 5, EntityAddrs::decode, |osd| &mut osd.heartbeat_front_addrs)?;
    map.nearfull_ratio = f32::from_bits(r.u32()?);
    map.full_ratio = f32::from_bits(r.u32()?);
    map.backfillfull_ratio = f32::from_bits(r.u32()?);
    map.require_min_compat_client = Release(r.u8()?);
    map.require_osd_release = Release(r.u8()?);
    map.removed_snaps_queue = r.map(8 + 4, |r| Ok((r.get()?, r.get()?)))?;
    if version >= 8 {
        map.crush_node_flags = codec::int_map(r)?;
    }
    if version >= 9 {
        map.device_class_flags = codec::int_map(r)?;
    }
    if version >= 10 {
        let is_enabled = r.bool()?;
        let stretch = StretchMode {
            bucket_count: r.u32()?,
            degraded: r.u32()?,
            recovering: r.u32()?,
            bucket_type: r.i32()?,
        };
        map.stretch = is_enabled.then_some(stretch);
    }
    if version >= 11 {
        map.range_blocklist = r.map(4 + 8, |r| Ok((r.get()?, r.get()?)))?;
    }
    if version >= 12 {
        map.allow_crimson = r.bool()?;
    }
    Ok(())
}

/// Checks `max_osd`.
pub(super) fn osd_count(max_osd: i32) -> Result<usize> {
    let count = usize::try_from(max_osd).unwrap_or(usize::MAX);
    if count > limits::OSDS {
        return Err(DecodeError::TooMany {
            what: "OSDs",
            count: count as u64,
            limit: limits::OSDS as u64,
        });
    }
    Ok(count)
}

/// A list by OSD id, which Ceph writes `max_osd` long: what the map says of OSDs takes no more memory than bytes.
fn by_osd(max_osd: usize, list: Vec<u32>) -> Result<Vec<u32>> {
    check_len(max_osd, list.len())?;
    if list.len() < max_osd {
        return Err(DecodeError::Invalid { what: "max_osd", value: max_osd as u64 });
    }
    Ok(list)
}

fn check_len(max_osd: usize, len: usize) -> Result<()> {
    match len <= max_osd {
        true => Ok(()),
        false => Err(DecodeError::TooMany {
            what: "list by OSD",
            count: len as u64,
            limit: max_osd as u64,
        }),
    }
}

/// Reads one field of all OSDs. OSDs for which nothing but defaults is known take no memory.
fn each_osd<'a, T: Default + PartialEq>(
    map: &mut Contents,
    r: &mut Reader<'a>,
    min_bytes: usize,
    mut read: impl FnMut(&mut Reader<'a>) -> Result<T>,
    mut field: impl FnMut(&mut Osd) -> &mut T,
) -> Result<()> {
    let count = r.count(min_bytes)?;
    check_len(map.max_osd(), count)?;
    for id in 0..count as i32 {
        let value = read(r)?;
        if value != T::default() {
            *field(map.osds.entry(OsdId(id)).or_default()) = value;
        }
    }
    Ok(())
}

impl Contents {
    fn encode_client(&self, w: &mut BytesMut, features: u64) {
        let version = if has(features, SERVER_REEF) { 10 } else { 9 };
        w.put_envelope(version, 1, |w| {
            w.put_value(&self.fsid);
            w.put_value(&self.epoch);
            w.put_value(&self.created);
            w.put_value(&self.modified);
            codec::put_map(w, &self.pools, |w, pool| pool.encode(w, features));
            codec::put_map(w, &self.pool_names, |w, name| w.put_str(name));
            w.put_i32_le(self.pool_max.0 as i32);
            w.put_u32_le(self.flags);
            w.put_u32_le(self.max_osd() as u32);
            codec::put_list(w, self.osd_state.iter(), |w, state| w.put_u32_le(*state));
            codec::put_list(w, self.osd_weight.iter(), |w, weight| w.put_u32_le(*weight));
            self.put_each_osd(w, |w, osd| w.put_value(&osd.addrs));
            codec::put_map(w, &self.pg_temp, |w, osds| codec::put_osds(w, osds));
            codec::put_map(w, &self.primary_temp, |w, osd| w.put_value(osd));
            codec::put_list(w, self.osd_primary_affinity.iter(), |w, a| w.put_u32_le(*a));
            w.put_sized(|w| w.put_value(&self.crush));
            codec::put_nested_text_map(w, &self.erasure_code_profiles);
            codec::put_map(w, &self.pg_upmap, |w, osds| codec::put_osds(w, osds));
            codec::put_map(w, &self.pg_upmap_items, |w, items| codec::put_items(w, items));
            w.put_u32_le(self.crush_version);
            codec::put_map(w, &self.new_removed_snaps, |w, snaps| w.put_value(snaps));
            codec::put_map(w, &self.new_purged_snaps, |w, snaps| w.put_value(snaps));
            w.put_value(&self.last_up_change);
            w.put_value(&self.last_in_change);
            if version >= 10 {
                codec::put_map(w, &self.pg_upmap_primaries, |w, osd| w.put_value(osd));
            }
        });
    }

    fn encode_osd(&self, w: &mut BytesMut) {
        // Sent only as high as needed, so that older peers see what they know.
        let version = match () {
            () if self.allow_crimson => 12,
            () if !self.range_blocklist.is_empty() => 11,
            () if self.stretch.is_some() => 10,
            () => 9,
        };
        w.put_envelope(version, 1, |w| {
            self.put_each_osd(w, |w, osd| w.put_value(&osd.heartbeat_back_addrs));
            self.put_each_osd(w, |w, osd| w.put_value(&osd.info));
            codec::put_addr_map(w, &self.blocklist, |w, until| w.put_value(until));
            self.put_each_osd(w, |w, osd| w.put_value(&osd.cluster_addrs));
            w.put_value(&self.cluster_snapshot.0);
            w.put_str(&self.cluster_snapshot.1);
            self.put_each_osd(w, |w, osd| w.put_value(&osd.uuid));
            self.put_each_osd(w, |w, osd| w.put_value(&osd.extra));
            self.put_each_osd(w, |w, osd| w.put_value(&osd.heartbeat_front_addrs));
            w.put_f32_le(self.nearfull_ratio);
            w.put_f32_le(self.full_ratio);
            w.put_f32_le(self.backfillfull_ratio);
            w.put_u8(self.require_min_compat_client.0);
            w.put_u8(self.require_osd_release.0);
            codec::put_map(w, &self.removed_snaps_queue, |w, snaps| w.put_value(snaps));
            codec::put_int_map(w, &self.crush_node_flags);
            codec::put_int_map(w, &self.device_class_flags);
            if version >= 10 {
                let stretch = self.stretch.unwrap_or_default();
                w.put_bool(self.stretch.is_some());
                w.put_u32_le(stretch.bucket_count);
                w.put_u32_le(stretch.degraded);
                w.put_u32_le(stretch.recovering);
                w.put_i32_le(stretch.bucket_type);
            }
            if version >= 11 {
                codec::put_addr_map(w, &self.range_blocklist, |w, until| w.put_value(until));
            }
            if version >= 12 {
                w.put_bool(self.allow_crimson);
            }
        });
    }

    fn put_each_osd(&self, w: &mut BytesMut, mut put: impl FnMut(&mut BytesMut, &Osd)) {
        let unknown = Osd::default();
        w.put_count(self.max_osd());
        for id in 0..self.max_osd() as i32 {
            put(w, self.osds.get(&OsdId(id)).unwrap_or(&unknown));
        }
    }
}
