//! Where operations belong, by the current map.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use crate::msg::object::{Locator, SpgId};
use crate::msg::osd_op::flag;
use crate::osdmap::{
    ApplyError, Incremental, OsdMap, PgMapping, Pool, PoolKind, Release, map_flag, pool_flag,
};
use crate::types::{EntityAddr, OsdId, PgId, PoolId, Tid};

/// Where an operation belongs. If any of it changes with a map, the OSD that had the operation has dropped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The placement group, and the shard of it that the primary has.
    pub(super) pgid: SpgId,
    /// The hash of the object's name.
    pub(super) hash: u32,
    /// Who serves it; `None` while nobody does.
    pub(super) primary: Option<OsdId>,
    /// A fingerprint of everything whose change begins a new interval of the PG (`PastIntervals::is_new_interval`), and
    /// of the epochs from which on the pool's operations must be sent again.
    interval: u64,
}

impl Default for Location {
    fn default() -> Self {
        let pgid = SpgId { pg: PgId::default(), shard: SpgId::NO_SHARD };
        Self { pgid, hash: 0, primary: None, interval: 0 }
    }
}

/// Where a client is: names of bucket types and of buckets, such as `rack` and `r3` (`crush_location`).
pub type CrushLocation = Vec<(String, String)>;

/// Who may serve an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Only the primary.
    Primary,
    /// Any replica: which one depends on the operation alone, so that it is the same each time one looks.
    Any(Tid),
    /// The replica that is nearest to this client.
    Nearest,
}

/// The current map.
#[derive(Debug)]
pub(super) struct Placement {
    map: OsdMap,
    near: CrushLocation,
    /// How far each OSD is from `near`, once somebody asked.
    distances: OnceLock<Vec<i32>>,
}

impl Placement {
    pub(super) fn new(map: OsdMap, near: CrushLocation) -> Self {
        Self { map, near, distances: OnceLock::new() }
    }

    pub(super) fn map(&self) -> &OsdMap {
        &self.map
    }

    /// Goes on to the next epoch.
    pub(super) fn apply(&mut self, incremental: &Incremental) -> Result<(), ApplyError> {
        self.distances.take();
        self.map.apply(incremental)
    }

    /// Where clients reach an OSD that is up.
    pub(super) fn addr(&self, osd: OsdId) -> Option<EntityAddr> {
        self.map.addrs(osd)?.msgr2()
    }

    /// Where an object belongs; `None` if its pool does not exist. [`Location::primary`] is whoever serves `reader`.
    pub(super) fn locate(
        &self,
        locator: &Locator,
        object: &str,
        reader: Reader,
    ) -> Option<Location> {
        let pool = self.map.pool(locator.pool)?;
        let target = match locator.hash {
            Some(hash) => self.map.target_of_hash(locator.pool, hash)?,
            None => {
                let name = if locator.key.is_empty() { object } else { &locator.key };
                self.map.target(locator.pool, locator.namespace.as_bytes(), name.as_bytes())?
            }
        };
        let mapping = self.map.mapping(target.spg.pg)?;
        let replica = match reader {
            Reader::Primary => None,
            _ => self.replica(pool, mapping, reader),
        };
        Some(Location {
            pgid: target.spg,
            hash: target.hash,
            primary: replica.or(target.primary),
            interval: interval(pool, mapping),
        })
    }

    /// The replica that is to serve a read, if it need not be the primary. Only since Octopus does a replica know what
    /// it must not answer yet; shards of erasure-coded pools never answer for the whole.
    fn replica(&self, pool: &Pool, mapping: &PgMapping, reader: Reader) -> Option<OsdId> {
        let able = mapping.acting_primary.is_some()
            && mapping.acting.len() > 1
            && pool.kind == PoolKind::Replicated
            && self.map.require_osd_release >= Release::OCTOPUS;
        match reader {
            _ if !able => None,
            Reader::Primary => None,
            Reader::Any(tid) => {
                // Neighbouring slots of the table go to different replicas.
                let spread = tid.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                mapping.acting.get((spread % mapping.acting.len() as u64) as usize).copied()
            }
            Reader::Nearest => mapping.acting.iter().copied().min_by_key(|osd| self.distance(*osd)),
        }
    }

    /// The lowest type of bucket that an OSD and this client are both in; `i32::MAX` if there is none.
    fn distance(&self, osd: OsdId) -> i32 {
        let distances = self.distances.get_or_init(|| self.map.crush.distances(&self.near));
        distances.get(osd.0 as usize).copied().unwrap_or(i32::MAX)
    }

    /// Whether operations with these flags wait (`Objecter::target_should_be_paused`).
    pub(super) fn paused(&self, flags: u32, pool: PoolId) -> bool {
        let reads_paused = self.map.has_flag(map_flag::PAUSERD);
        let writes_paused = self.map.has_flag(map_flag::PAUSEWR);
        (flags & flag::READ != 0 && reads_paused)
            || (flags & flag::WRITE != 0 && writes_paused)
            || (respects_full(flags) && self.is_full(pool))
    }

    /// Whether a pool has no space left, or no quota.
    pub(super) fn is_full(&self, pool: PoolId) -> bool {
        self.map.has_flag(map_flag::FULL)
            || self.map.pool(pool).is_some_and(|pool| pool.has(pool_flag::FULL))
    }

    /// All pools of which that is true.
    pub(super) fn full_pools(&self) -> BTreeSet<PoolId> {
        self.map.pools.keys().copied().filter(|pool| self.is_full(*pool)).collect()
    }
}

/// Whether operations with these flags wait for space.
pub(super) fn respects_full(flags: u32) -> bool {
    flags & (flag::WRITE | flag::RWORDERED) != 0 && flags & (flag::FULL_TRY | flag::FULL_FORCE) == 0
}

fn interval(pool: &Pool, mapping: &PgMapping) -> u64 {
    let mut fingerprint = 0xcbf2_9ce4_8422_2325_u64;
    let mut mix = |value: u32| {
        fingerprint = (fingerprint ^ u64::from(value)).wrapping_mul(0x0000_0100_0000_01b3);
        fingerprint ^= fingerprint >> 29;
    };
    for set in [&mapping.up, &mapping.acting] {
        mix(set.len() as u32);
        for osd in set {
            mix(osd.0 as u32);
        }
    }
    for primary in [mapping.up_primary, mapping.acting_primary] {
        mix(primary.map_or(u32::MAX, |osd| osd.0 as u32));
    }
    for value in [pool.size.into(), pool.min_size.into(), pool.pg_num, pool.pg_num_pending] {
        mix(value);
    }
    for epoch in [pool.last_force_op_resend, pool.last_force_op_resend_prenautilus] {
        mix(epoch.0);
    }
    fingerprint
}
