//! The OSD map: pools, OSDs, and where each object lives.
//!
//! A map comes from a monitor as a whole ([`OsdMap::decode`]) or as the difference to the epoch before
//! ([`Incremental`], [`OsdMap::apply`]). Nothing else changes it: its [`Contents`] can be read but not written. So the
//! table of placements that [`OsdMap::target`] fills and the hot path reads is always right.
//!
//! What is understood is what monitors of Nautilus and later send to a client with their features: the rules of
//! `doc/dev/osd_internals/osdmap_versions.txt`, and for placement those of `OSDMap::_pg_to_up_acting_osds`.

mod apply;
mod blocklist;
mod codec;
mod full;
mod incremental;
mod osd;
mod placement;
mod pool;
mod pool_codec;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

pub use apply::ApplyError;
pub use codec::SnapIntervals;
pub use incremental::Incremental;
pub use osd::{Osd, OsdExtra, OsdInfo, osd_state};
pub use placement::{NO_OSD, PgMapping, Target};
pub use pool::{
    CacheTier, PgMerge, Pool, PoolKind, PoolOption, PoolSnap, PoolStretch, flag as pool_flag,
    hash_kind,
};

use crate::crush::CrushMap;
use crate::types::{EntityAddr, EntityAddrs, Epoch, Fsid, OsdId, PgId, PoolId, UTime};

/// Flags of the whole map (`CEPH_OSDMAP_*`).
pub mod map_flag {
    /// The cluster is full (set by monitors of before Luminous; since then pools are).
    pub const FULL: u32 = 1 << 1;
    /// Reads wait.
    pub const PAUSERD: u32 = 1 << 2;
    /// Writes wait.
    pub const PAUSEWR: u32 = 1 << 3;
    /// Hash order of objects; always set today.
    pub const SORTBITWISE: u32 = 1 << 15;
    pub(super) const LEGACY_REQUIRE: u32 = 0b111 << 16;
    /// Deletes happen during recovery; set since Luminous.
    pub const RECOVERY_DELETES: u32 = 1 << 19;
    /// Snapshot directory objects are gone; set since Luminous.
    pub const PURGED_SNAPDIRS: u32 = 1 << 20;
    /// Logs of placement groups are bounded; set since Nautilus.
    pub const PGLOG_HARDLIMIT: u32 = 1 << 22;
}

/// The weight of an OSD that is in, and the largest primary affinity: 1.0 in 16.16 fixed point.
pub const WEIGHT_ONE: u32 = 0x10000;

/// A release, by its number: 16 is Pacific (`ceph_release_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release(pub u8);

impl Release {
    /// The first whose maps are understood here.
    pub const NAUTILUS: Self = Self(14);
    /// 15.
    pub const OCTOPUS: Self = Self(15);
    /// 16.
    pub const PACIFIC: Self = Self(16);
    /// 17.
    pub const QUINCY: Self = Self(17);
    const LUMINOUS: Self = Self(12);
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [
            "unknown",
            "argonaut",
            "bobtail",
            "cuttlefish",
            "dumpling",
            "emperor",
            "firefly",
            "giant",
            "hammer",
            "infernalis",
            "jewel",
            "kraken",
            "luminous",
            "mimic",
            "nautilus",
            "octopus",
            "pacific",
            "quincy",
            "reef",
            "squid",
            "tentacle",
            "umbrella",
        ];
        match known.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "release {}", self.0),
        }
    }
}

/// Two OSDs of a `pg_upmap_items` entry: the first is replaced by the second.
pub type UpmapItem = (OsdId, OsdId);

/// All fields of a map, to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// The cluster.
    pub fsid: Fsid,
    /// The version of this map.
    pub epoch: Epoch,
    /// When the cluster was made.
    pub created: UTime,
    /// When this version was made.
    pub modified: UTime,
    /// Pools by id.
    pub pools: BTreeMap<PoolId, Pool>,
    /// Their names.
    pub pool_names: BTreeMap<PoolId, String>,
    /// The highest id a pool ever had.
    pub pool_max: PoolId,
    /// See [`map_flag`].
    pub flags: u32,
    /// See [`osd_state`]; by OSD id.
    pub osd_state: Vec<u32>,
    /// How much of what CRUSH gives it an OSD takes: 0 is out, [`WEIGHT_ONE`] is in. By OSD id.
    pub osd_weight: Vec<u32>,
    /// How willingly an OSD is primary, up to [`WEIGHT_ONE`]; empty while all are that. By OSD id.
    pub osd_primary_affinity: Vec<u32>,
    /// What else is known of OSDs.
    pub osds: BTreeMap<OsdId, Osd>,
    /// Acting sets that stand in for the up set while it is backfilled.
    pub pg_temp: BTreeMap<PgId, Vec<OsdId>>,
    /// Primaries that stand in likewise.
    pub primary_temp: BTreeMap<PgId, OsdId>,
    /// Explicit placements instead of CRUSH's.
    pub pg_upmap: BTreeMap<PgId, Vec<OsdId>>,
    /// Replacements within CRUSH's placements.
    pub pg_upmap_items: BTreeMap<PgId, Vec<UpmapItem>>,
    /// Primaries chosen by the read balancer (Reef).
    pub pg_upmap_primaries: BTreeMap<PgId, OsdId>,
    /// The CRUSH map.
    pub crush: CrushMap,
    /// How often the CRUSH map has changed.
    pub crush_version: u32,
    /// Erasure-code profiles: keys and values by name.
    pub erasure_code_profiles: BTreeMap<String, BTreeMap<String, String>>,
    /// Snapshots whose removal this epoch began.
    pub new_removed_snaps: BTreeMap<PoolId, SnapIntervals>,
    /// Snapshots whose removal this epoch ended.
    pub new_purged_snaps: BTreeMap<PoolId, SnapIntervals>,
    /// When an OSD last went up or down.
    pub last_up_change: UTime,
    /// When an OSD last went in or out.
    pub last_in_change: UTime,
    /// Clients that may no longer do anything, and until when.
    pub blocklist: BTreeMap<EntityAddr, UTime>,
    /// The same for ranges of addresses: the nonce is the length of the prefix.
    pub range_blocklist: BTreeMap<EntityAddr, UTime>,
    /// A snapshot of the whole cluster: never used.
    pub cluster_snapshot: (Epoch, String),
    /// How full an OSD may be before health warns.
    pub nearfull_ratio: f32,
    /// How full an OSD may be before its pools refuse writes.
    pub full_ratio: f32,
    /// How full an OSD may be before it takes no backfill.
    pub backfillfull_ratio: f32,
    /// The oldest clients that are let in.
    pub require_min_compat_client: Release,
    /// The oldest OSDs that are let in; decides which features a map may use.
    pub require_osd_release: Release,
    /// Snapshots that are being removed.
    pub removed_snaps_queue: BTreeMap<PoolId, SnapIntervals>,
    /// Flags such as `noout` by CRUSH node.
    pub crush_node_flags: BTreeMap<i32, u32>,
    /// Flags such as `noout` by device class.
    pub device_class_flags: BTreeMap<i32, u32>,
    /// Set in stretch mode.
    pub stretch: Option<StretchMode>,
    /// Whether Crimson OSDs are let in.
    pub allow_crimson: bool,
}

/// The state of a stretch cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StretchMode {
    /// Sites.
    pub bucket_count: u32,
    /// Not 0 while a site is missing.
    pub degraded: u32,
    /// Not 0 while one comes back.
    pub recovering: u32,
    /// The CRUSH bucket type of a site.
    pub bucket_type: i32,
}

/// An OSD map.
///
/// Dereferences to its [`Contents`]. It is `Sync`: [`OsdMap::target`] takes `&self`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OsdMap(Contents);

impl Deref for OsdMap {
    type Target = Contents;

    fn deref(&self) -> &Contents {
        &self.0
    }
}

impl Contents {
    /// One more than the highest id an OSD may have.
    pub fn max_osd(&self) -> usize {
        self.osd_state.len()
    }

    /// A pool.
    #[inline]
    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(&id)
    }

    /// The pool of a name.
    pub fn pool_id(&self, name: &str) -> Option<PoolId> {
        self.pool_names.iter().find(|(_, n)| *n == name).map(|(id, _)| *id)
    }

    /// A pool's name.
    pub fn pool_name(&self, id: PoolId) -> Option<&str> {
        self.pool_names.get(&id).map(String::as_str)
    }

    /// An OSD's states; 0 for an id that is not in use.
    #[inline]
    pub fn state(&self, osd: OsdId) -> u32 {
        usize::try_from(osd.0).ok().and_then(|i| self.osd_state.get(i)).copied().unwrap_or(0)
    }

    /// Whether an OSD id is in use.
    #[inline]
    pub fn exists(&self, osd: OsdId) -> bool {
        self.state(osd) & osd_state::EXISTS != 0
    }

    /// Whether an OSD runs.
    #[inline]
    pub fn is_up(&self, osd: OsdId) -> bool {
        let up = osd_state::EXISTS | osd_state::UP;
        self.state(osd) & up == up
    }

    /// An OSD's weight; `None` if there can be no such OSD.
    pub fn weight(&self, osd: OsdId) -> Option<u32> {
        usize::try_from(osd.0).ok().and_then(|i| self.osd_weight.get(i)).copied()
    }

    /// An OSD's primary affinity.
    pub fn primary_affinity(&self, osd: OsdId) -> u32 {
        let affinity = usize::try_from(osd.0).ok().and_then(|i| self.osd_primary_affinity.get(i));
        affinity.copied().unwrap_or(WEIGHT_ONE)
    }

    /// Where clients reach an OSD that is up.
    pub fn addrs(&self, osd: OsdId) -> Option<&EntityAddrs> {
        self.is_up(osd).then(|| self.osds.get(&osd)).flatten().map(|osd| &osd.addrs)
    }

    /// Whether all of a [`map_flag`]'s bits are set.
    pub fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}
