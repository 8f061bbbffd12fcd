//! Encodings that the maps share: feature bits that decide between versions, sets of snapshot ids, maps of text.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::UpmapItem;
use crate::crush::{CrushMap, MsrTunables};
use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::types::{EntityAddr, OsdId, SnapId};

// A feature is its bit and, where the bit had an earlier life, the bits of its incarnation (`ceph_features.h`).
const INCARNATION_2: u64 = 1 << 57;
const INCARNATION_3: u64 = INCARNATION_2 | 1 << 28;

/// The peer knows `pg_upmap_primaries` (`SERVER_REEF`).
pub(super) const SERVER_REEF: u64 = 1 << 33 | INCARNATION_3;
/// The peer knows version 32 of a pool (`SERVER_TENTACLE`).
pub(super) const SERVER_TENTACLE: u64 = 1 << 50 | INCARNATION_2;

pub(super) fn has(features: u64, feature: u64) -> bool {
    features & feature == feature
}

/// A set of snapshot ids as sorted intervals (`interval_set<snapid_t>`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapIntervals(Vec<(SnapId, u64)>);

impl SnapIntervals {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The intervals: first id and length, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SnapId, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether a snapshot is in it.
    pub fn contains(&self, snap: SnapId) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= snap);
        let at = after.checked_sub(1).and_then(|i| self.0.get(i));
        at.is_some_and(|(start, len)| snap.0 - start.0 < *len)
    }

    /// Adds all of `other`.
    pub(super) fn insert_all(&mut self, other: &Self) {
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        self.0.clear();
        for (start, len) in all {
            match self.0.last_mut() {
                Some((first, so_far)) if start.0 <= first.0.saturating_add(*so_far) => {
                    let end = start.0.saturating_add(len).max(first.0.saturating_add(*so_far));
                    *so_far = end - first.0;
                }
                _ => self.0.push((start, len)),
            }
        }
    }

    /// Removes all of `other`.
    pub(super) fn remove_all(&mut self, other: &Self) {
        let mut left = Vec::new();
        let mut holes = other.0.iter().peekable();
        for &(start, len) in &self.0 {
            let (mut at, end) = (start.0, start.0.saturating_add(len));
            while let Some(&&(hole, hole_len)) = holes.peek() {
                let hole_end = hole.0.saturating_add(hole_len);
                if hole.0 >= end {
                    break;
                }
                if hole.0 > at {
                    left.push((SnapId(at), hole.0 - at));
                }
                at = at.max(hole_end);
                if hole_end > end {
                    break; // it reaches into the next interval
                }
                holes.next();
            }
            if at < end {
                left.push((SnapId(at), end - at));
            }
        }
        self.0 = left;
    }
}

impl FromIterator<(SnapId, u64)> for SnapIntervals {
    fn from_iter<I: IntoIterator<Item = (SnapId, u64)>>(intervals: I) -> Self {
        let mut set = Self::default();
        // Through a union, so that order and overlaps don't matter.
        set.insert_all(&Self(intervals.into_iter().filter(|(_, len)| *len > 0).collect()));
        set
    }
}

impl Decode for SnapIntervals {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(r.list(16, |r| Ok((r.get()?, r.u64()?)))?.into_iter().collect())
    }
}

impl Encode for SnapIntervals {
    fn encode(&self, w: &mut BytesMut) {
        w.put_count(self.0.len());
        for (start, len) in &self.0 {
            w.put_value(start);
            w.put_u64_le(*len);
        }
    }
}

/// The CRUSH map of a full or incremental map. What Ceph 20 writes of the tunables of multi-step-retry rules differs
/// between the two; where they are what they would be without, they are taken as not written.
pub(super) fn read_crush(bytes: &[u8]) -> Result<CrushMap> {
    let mut crush = CrushMap::from_bytes(bytes)?;
    crush.tunables.msr = crush.tunables.msr.filter(|msr| *msr != MsrTunables::default());
    Ok(crush)
}

/// Writes a counted map.
pub(super) fn put_map<K: Encode, V>(
    w: &mut BytesMut,
    map: &BTreeMap<K, V>,
    mut value: impl FnMut(&mut BytesMut, &V),
) {
    w.put_count(map.len());
    for (key, v) in map {
        w.put_value(key);
        value(w, v);
    }
}

/// Writes a counted list.
pub(super) fn put_list<'a, T: 'a>(
    w: &mut BytesMut,
    list: impl ExactSizeIterator<Item = &'a T>,
    mut value: impl FnMut(&mut BytesMut, &T),
) {
    w.put_count(list.len());
    list.for_each(|v| value(w, v));
}

/// Writes a map whose keys are addresses in the order that Ceph's `std::map` has: that of their bytes in memory, which
/// is the order of their encodings without the header.
pub(super) fn put_addr_map<V>(
    w: &mut BytesMut,
    map: &BTreeMap<EntityAddr, V>,
    mut value: impl FnMut(&mut BytesMut, &V),
) {
    const HEADER: usize = 1 + 6;
    let mut sorted: Vec<(Bytes, &V)> = map.iter().map(|(addr, v)| (addr.to_bytes(), v)).collect();
    sorted.sort_unstable_by(|(a, _), (b, _)| a.get(HEADER..).cmp(&b.get(HEADER..)));
    w.put_count(sorted.len());
    for (addr, v) in sorted {
        w.put_slice(&addr);
        value(w, v);
    }
}

/// A counted list of OSDs.
pub(super) fn osds(r: &mut Reader<'_>) -> Result<Vec<OsdId>> {
    r.list(4, OsdId::decode)
}

pub(super) fn put_osds(w: &mut BytesMut, osds: &[OsdId]) {
    put_list(w, osds.iter(), |w, osd| w.put_value(osd));
}

/// A counted list of pairs of OSDs.
pub(super) fn items(r: &mut Reader<'_>) -> Result<Vec<UpmapItem>> {
    r.list(8, |r| Ok((r.get()?, r.get()?)))
}

pub(super) fn put_items(w: &mut BytesMut, items: &[UpmapItem]) {
    put_list(w, items.iter(), |w, (from, to)| {
        w.put_value(from);
        w.put_value(to);
    });
}

/// Flags by number.
pub(super) fn int_map(r: &mut Reader<'_>) -> Result<BTreeMap<i32, u32>> {
    r.map(8, |r| Ok((r.i32()?, r.u32()?)))
}

pub(super) fn put_int_map(w: &mut BytesMut, map: &BTreeMap<i32, u32>) {
    w.put_count(map.len());
    for (key, value) in map {
        w.put_i32_le(*key);
        w.put_u32_le(*value);
    }
}

pub(super) fn text_map(r: &mut Reader<'_>) -> Result<BTreeMap<String, String>> {
    r.map(8, |r| Ok((r.string()?, r.string()?)))
}

pub(super) fn put_text_map(w: &mut BytesMut, map: &BTreeMap<String, String>) {
    w.put_count(map.len());
    for (key, value) in map {
        w.put_str(key);
        w.put_str(value);
    }
}

/// Text maps by name: erasure-code profiles, applications of a pool.
pub(super) type TextMaps = BTreeMap<String, BTreeMap<String, String>>;

pub(super) fn nested_text_map(r: &mut Reader<'_>) -> Result<TextMaps> {
    r.map(8, |r| Ok((r.string()?, text_map(r)?)))
}

pub(super) fn put_nested_text_map(w: &mut BytesMut, maps: &TextMaps) {
    w.put_count(maps.len());
    for (name, map) in maps {
        w.put_str(name);
        put_text_map(w, map);
    }
}

/// A whole versioned structure, header included, that is kept but not looked into.
pub(super) fn raw_envelope(r: &mut Reader<'_>) -> Result<Bytes> {
    let mut ahead = r.clone();
    ahead.skip(2)?;
    let len = 6 + ahead.u32()? as usize;
    r.bytes(len).map(Bytes::copy_from_slice)
}

/// A 64-bit number, seven bits a byte, least significant first (`denc_varint`).
pub(super) fn varint(r: &mut Reader<'_>) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = r.u8()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(value)
}

pub(super) fn put_varint(w: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        w.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    w.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(intervals: &[(u64, u64)]) -> SnapIntervals {
        intervals.iter().map(|&(start, len)| (SnapId(start), len)).collect()
    }

    #[test]
    fn snap_intervals_are_a_set() {
        // Against a plain set of numbers, for every pair of small interval sets.
        let plain =
            |s: &SnapIntervals| (0..40).filter(|&n| s.contains(SnapId(n))).collect::<Vec<_>>();
        let pieces: Vec<(u64, u64)> =
            (0..5).flat_map(|start| [(start * 7 % 11, 3), (start * 5, start)]).collect();
        for bits in 0..1u32 << pieces.len() {
            let pick = |bits: u32| {
                let mut set = SnapIntervals::default();
                for (i, &(start, len)) in pieces.iter().enumerate() {
                    if bits >> i & 1 != 0 && len > 0 {
                        set.insert_all(&[(SnapId(start), len)].into_iter().collect());
                    }
                }
                set
            };
            let (a, b) = (pick(bits), pick(bits.reverse_bits() >> 22 ^ 0x155));
            let (mut sum, mut rest) = (a.clone(), a.clone());
            sum.insert_all(&b);
            rest.remove_all(&b);
            let (in_a, in_b) = (plain(&a), plain(&b));
            let mut union: Vec<u64> = in_a.iter().chain(&in_b).copied().collect();
            union.sort_unstable();
            union.dedup();
            assert_eq!(plain(&sum), union);
            let left: Vec<u64> = in_a.into_iter().filter(|n| !in_b.contains(n)).collect();
            assert_eq!(plain(&rest), left, "{a:?} - {b:?}");
        }
        assert_eq!(set(&[(5, 2), (1, 4)]), set(&[(1, 6)]), "neighbours merge");
        assert_eq!(set(&[(1, u64::MAX), (5, u64::MAX)]), set(&[(1, u64::MAX - 1)]));
    }

    #[test]
    fn varints_round_trip() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX] {
            let mut w = BytesMut::new();
            put_varint(&mut w, value);
            assert_eq!(varint(&mut Reader::new(&w, "varint")), Ok(value));
        }
        let endless = [0xff; 20];
        assert!(varint(&mut Reader::new(&endless, "varint")).is_ok());
    }
}
