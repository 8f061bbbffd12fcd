//! OSD maps, full and incremental, and what an incremental makes of a map whose placements are known.

use std::sync::OnceLock;

use proto::crc::crc32c;
use proto::crush::Scratch;
use proto::osdmap::{Incremental, OsdMap};
use proto::types::{Epoch, PgId};

use super::Pieces;

/// What the first byte of an input says.
pub(crate) mod how {
    /// A full map.
    pub(crate) const FULL: u8 = 0;
    /// An incremental one.
    pub(crate) const INCREMENTAL: u8 = 1;
}

/// What Ceph 20 can do.
pub(crate) const FEATURES: u64 = 0x3f07_ffff_fffd_ffff;
/// The map that incrementals are applied to: nothing is missing there, and it is still small.
const BASE: usize = 250;
/// How many placements are compared, and how much work each may be.
const PLACEMENTS: usize = 24;

pub(super) fn run(input: &[u8]) {
    let mut pieces = Pieces(input);
    let how = pieces.byte() % 2;
    let bytes = sealed(pieces.0, if how == how::FULL { 0 } else { 4 });
    if how == how::FULL {
        if let Ok(map) = OsdMap::decode(&bytes) {
            let written = map.encode(FEATURES);
            let again = OsdMap::decode(&written).expect("what was written can be read");
            assert_eq!(again.encode(FEATURES), written);
            place(&map, 4);
        }
    } else if let Ok(mut inc) = Incremental::decode(&bytes) {
        let written = inc.encode(FEATURES);
        let again = Incremental::decode(&written).expect("what was written can be read");
        assert_eq!(again.encode(FEATURES), written);
        apply(&mut inc);
    }
}

/// Applies a change to a map whose placements are known: those that are left must be the right ones.
fn apply(inc: &mut Incremental) {
    let base = base();
    (inc.fsid, inc.epoch) = (base.fsid, Epoch(base.epoch.0 + 1));
    let mut map = base.clone();
    if map.apply(inc).is_err() {
        assert!(map == *base, "an incremental that was refused has changed the map");
        return;
    }
    if map.max_osd() > 4096 {
        return; // which takes a while to write
    }
    let anew = OsdMap::decode(&map.encode(FEATURES)).expect("what was written can be read");
    let groups = |map: &OsdMap| -> Vec<PgId> {
        let pools = map.pools.iter().filter(|(_, pool)| pool.pg_num <= 4096);
        pools
            .flat_map(|(id, pool)| (0..pool.pg_num.min(64)).map(|seed| PgId { pool: *id, seed }))
            .collect()
    };
    // Those that the change names first.
    let named = inc.pg_temp.keys().chain(inc.pg_upmap.keys()).chain(inc.pg_upmap_items.keys());
    let named: Vec<PgId> = named.chain(inc.primary_temp.keys()).copied().collect();
    let all = groups(&map);
    let some = all.iter().step_by(all.len() / PLACEMENTS + 1);
    for pg in named.iter().take(PLACEMENTS).chain(some) {
        if map.pool(pg.pool).is_some_and(|pool| pool.pg_num <= 4096) && is_cheap(&anew, *pg) {
            assert_eq!(map.mapping(*pg), anew.mapping(*pg), "{pg}");
        }
    }
}

/// Asks a map where things are.
fn place(map: &OsdMap, count: u32) {
    for (id, pool) in map.pools.iter().filter(|(_, pool)| pool.pg_num <= 4096).take(2) {
        let groups = (0..pool.pg_num.min(count)).map(|seed| PgId { pool: *id, seed });
        for pg in groups.filter(|pg| is_cheap(map, *pg)) {
            assert!(map.mapping(pg).is_some());
        }
        let pg = PgId { pool: *id, seed: pool.fold(pool.hash_object(b"ns", b"name")) };
        assert!(!is_cheap(map, pg) || map.target(*id, b"ns", b"name").is_some());
    }
}

/// Whether a group is placed soon, which a CRUSH map can see to that it is not: that is for its own target.
fn is_cheap(map: &OsdMap, pg: PgId) -> bool {
    let Some(pool) = map.pool(pg.pool) else { return false };
    let mut scratch = Scratch::bounded(1 << 14);
    let (rule, seed) = (pool.crush_rule.into(), pool.placement_seed(pg));
    let args = map.crush.choose_args_for_pool(pg.pool.0);
    map.crush.do_rule(rule, seed, pool.size.into(), &map.osd_weight, args, &mut scratch);
    !scratch.is_exhausted()
}

/// A map of Ceph 20 with something of everything, all of whose placements are known.
fn base() -> &'static OsdMap {
    static BASE_MAP: OnceLock<OsdMap> = OnceLock::new();
    BASE_MAP.get_or_init(|| {
        let mut map = OsdMap::default();
        for bytes in incrementals(HISTORY).take(BASE) {
            map.apply(&Incremental::decode(bytes).unwrap()).unwrap();
        }
        place(&map, u32::MAX);
        map
    })
}

const HISTORY: &[u8] = include_bytes!("../../../fixtures/osdmap/ceph-20.2.4.incrementals");

/// The maps of a history in `fixtures/osdmap`.
pub(crate) fn incrementals(mut history: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = history.split_first_chunk::<4>()?;
        let (one, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        history = rest;
        Some(one)
    })
}

/// With the right checksum, where the envelopes say that it is.
fn sealed(bytes: &[u8], tail: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let section = |at: usize| {
        let len = bytes.get(at + 2..at + 6)?.first_chunk().copied()?;
        at.checked_add(6)?.checked_add(u32::from_le_bytes(len) as usize)
    };
    let whole = section(0).unwrap_or(0).min(bytes.len());
    let at = section(6).and_then(section).filter(|at| at + 4 + tail <= whole);
    if let Some(at) = at {
        let crc = crc32c(crc32c(!0, &bytes[..at]), &bytes[at + 4..whole]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}
