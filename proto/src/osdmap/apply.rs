//! From one epoch to the next (`OSDMap::apply_incremental`).

use thiserror::Error;

use super::codec;
use super::full::osd_count;
use super::table::PgTable;
use super::{Contents, Incremental, OsdMap, Release, WEIGHT_ONE, map_flag, osd_state};
use crate::denc::DecodeError;
use crate::types::{Epoch, Fsid, OsdId, UTime};

/// Why an incremental does not fit a map. The map is as it was; a full one is needed to go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// It is another cluster's.
    #[error("the incremental OSD map is of cluster {theirs}, not of {ours}")]
    WrongCluster {
        /// The map's cluster.
        ours: Fsid,
        /// The incremental's.
        theirs: Fsid,
    },
    /// It does not follow.
    #[error("the incremental to OSD map {to} does not follow map {from}")]
    Gap {
        /// The map's epoch.
        from: Epoch,
        /// The epoch that the incremental makes.
        to: Epoch,
    },
    /// It changes an OSD that there cannot be.
    #[error("the incremental OSD map changes osd.{osd}, beyond max_osd {max_osd}")]
    NoSuchOsd {
        /// The OSD.
        osd: OsdId,
        /// One more than the highest id.
        max_osd: usize,
    },
    /// A map inside it cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl OsdMap {
    /// Makes this the map of the next epoch.
    ///
    /// Placements that were worked out stay, except those that the change can touch: all of them where the CRUSH map
    /// or a weight changed or an OSD id came or went; a pool's, where the pool's shape did; a group's, where its
    /// upmaps or stand-ins did, or an OSD that it could be on went up or down or changed its affinity.
    ///
    /// # Errors
    /// If it doesn't fit. Nothing has changed then.
    pub fn apply(&mut self, inc: &Incremental) -> Result<(), ApplyError> {
        // The first map of a cluster decides which cluster it is.
        if inc.fsid != self.fsid && inc.epoch != Epoch(1) {
            return Err(ApplyError::WrongCluster { ours: self.fsid, theirs: inc.fsid });
        }
        if self.epoch.0.checked_add(1) != Some(inc.epoch.0) {
            return Err(ApplyError::Gap { from: self.epoch, to: inc.epoch });
        }
        if !inc.full_map.is_empty() {
            let map = Self::decode(&inc.full_map)?;
            if map.epoch != inc.epoch {
                return Err(ApplyError::Gap { from: self.epoch, to: map.epoch });
            }
            *self = map;
            return Ok(());
        }
        let max_osd = match inc.max_osd {
            Some(max_osd) => osd_count(i32::try_from(max_osd).unwrap_or(-1))?,
            None => self.max_osd(),
        };
        check_osds(inc, max_osd)?;
        let crush = match inc.crush.is_empty() {
            true => None,
            false => Some(codec::read_crush(&inc.crush)?),
        };

        self.forget_touched(inc, max_osd);
        let map = &mut self.0;
        map.fsid = inc.fsid;
        map.epoch = inc.epoch;
        map.modified = inc.modified;
        if let Some(flags) = inc.flags {
            map.flags = flags;
        }
        map.set_max_osd(max_osd);
        map.apply_pools(inc);
        map.apply_snaps(inc);
        map.apply_osds(inc);
        map.apply_placements(inc);
        map.apply_blocklists(inc);
        map.apply_settings(inc);
        if let Some(crush) = crush {
            map.crush = crush;
            map.crush_version = map.crush_version.wrapping_add(1);
            let classes = &map.crush.class_names;
            map.device_class_flags.retain(|class, _| classes.contains_key(class));
        }
        Ok(())
    }

    /// Drops from the tables what the change can touch.
    fn forget_touched(&mut self, inc: &Incremental, max_osd: usize) {
        let old = &self.0;
        let comes_or_goes =
            |(osd, state): (&OsdId, &u32)| state & osd_state::EXISTS != 0 || !old.exists(*osd);
        let touches_all = !inc.crush.is_empty()
            || !inc.weight.is_empty()
            || max_osd != old.max_osd()
            || inc.require_osd_release.is_some()
            || inc.state.iter().any(comes_or_goes)
            || inc.up.keys().any(|osd| !old.exists(*osd));
        let mut touched = vec![false; if touches_all { 0 } else { max_osd }];
        let toggled =
            inc.state.iter().filter(|(_, state)| **state == 0 || **state & osd_state::UP != 0);
        for osd in
            toggled.map(|(osd, _)| osd).chain(inc.up.keys()).chain(inc.primary_affinity.keys())
        {
            if let Some(touched) = usize::try_from(osd.0).ok().and_then(|i| touched.get_mut(i)) {
                *touched = true;
            }
        }
        let is_touched =
            |osd: OsdId| usize::try_from(osd.0).ok().and_then(|i| touched.get(i)) == Some(&true);
        let touches_osds = touched.contains(&true);
        for (id, pool) in &mut self.0.pools {
            let reshaped = inc.pools.get(id).is_some_and(|new| !new.places_like(pool));
            if touches_all || reshaped {
                pool.table.clear();
            } else if touches_osds {
                pool.table.forget_those_with(is_touched);
            }
        }
        let pgs = inc.pg_temp.keys();
        let pgs = pgs.chain(inc.primary_temp.keys());
        let pgs = pgs.chain(inc.pg_upmap.keys()).chain(&inc.old_pg_upmap);
        let pgs = pgs.chain(inc.pg_upmap_items.keys()).chain(&inc.old_pg_upmap_items);
        let pgs = pgs.chain(inc.pg_upmap_primaries.keys()).chain(&inc.old_pg_upmap_primaries);
        for pg in pgs {
            if let Some(pool) = self.0.pools.get_mut(&pg.pool) {
                pool.table.forget(pg.seed);
            }
        }
    }
}

/// That all OSDs that are changed can be there.
fn check_osds(inc: &Incremental, max_osd: usize) -> Result<(), ApplyError> {
    let osds = inc.up.keys().chain(inc.state.keys()).chain(inc.weight.keys());
    let osds = osds.chain(inc.primary_affinity.keys()).chain(inc.heartbeat_back_up.keys());
    let osds = osds.chain(inc.up_thru.keys()).chain(inc.last_clean_interval.keys());
    let osds = osds.chain(inc.lost.keys()).chain(inc.cluster_up.keys()).chain(inc.uuid.keys());
    let mut osds = osds.chain(inc.extra.keys()).chain(inc.heartbeat_front_up.keys());
    let beyond = osds.find(|osd| usize::try_from(osd.0).map_or(true, |i| i >= max_osd));
    beyond.map_or(Ok(()), |osd| Err(ApplyError::NoSuchOsd { osd: *osd, max_osd }))
}

impl Contents {
    fn set_max_osd(&mut self, max_osd: usize) {
        self.osd_state.resize(max_osd, 0);
        self.osd_weight.resize(max_osd, 0);
        if !self.osd_primary_affinity.is_empty() {
            self.osd_primary_affinity.resize(max_osd, WEIGHT_ONE);
        }
        self.osds.retain(|osd, _| (osd.0 as usize) < max_osd);
    }

    fn apply_pools(&mut self, inc: &Incremental) {
        if let Some(pool_max) = inc.pool_max {
            self.pool_max = pool_max;
        }
        for (id, new) in &inc.pools {
            let mut new = new.clone();
            // What the incremental's own copy may have worked out is of another map.
            new.table = match self.pools.get_mut(id) {
                Some(old) => std::mem::take(&mut old.table),
                None => PgTable::default(),
            };
            new.last_change = inc.epoch;
            self.pools.insert(*id, new);
        }
        self.pool_names.extend(inc.pool_names.iter().map(|(id, name)| (*id, name.clone())));
        for id in &inc.old_pools {
            self.pools.remove(id);
            self.pool_names.remove(id);
        }
        for name in &inc.old_erasure_code_profiles {
            self.erasure_code_profiles.remove(name);
        }
        let profiles = inc.erasure_code_profiles.iter();
        self.erasure_code_profiles.extend(profiles.map(|(name, p)| (name.clone(), p.clone())));
    }

    fn apply_snaps(&mut self, inc: &Incremental) {
        self.new_removed_snaps.clone_from(&inc.removed_snaps);
        self.new_purged_snaps.clone_from(&inc.purged_snaps);
        for (pool, snaps) in &inc.removed_snaps {
            self.removed_snaps_queue.entry(*pool).or_default().insert_all(snaps);
        }
        for (pool, snaps) in &inc.purged_snaps {
            if let Some(queue) = self.removed_snaps_queue.get_mut(pool) {
                queue.remove_all(snaps);
                if queue.is_empty() {
                    self.removed_snaps_queue.remove(pool);
                }
            }
        }
    }

    fn apply_osds(&mut self, inc: &Incremental) {
        if inc.last_up_change != UTime::default() {
            self.last_up_change = inc.last_up_change;
        }
        if inc.last_in_change != UTime::default() {
            self.last_in_change = inc.last_in_change;
        }
        for (&osd, &weight) in &inc.weight {
            if let Some(place) = self.osd_weight.get_mut(osd.0 as usize) {
                *place = weight;
            }
            if weight != 0 {
                // It is in: why and from what it was marked out no longer matters.
                self.change_state(osd, |state| {
                    (state | osd_state::EXISTS) & !(osd_state::AUTOOUT | osd_state::NEW)
                });
                self.osds.entry(osd).or_default().extra.old_weight = 0;
            }
        }
        for (osd, affinity) in &inc.primary_affinity {
            self.set_primary_affinity(*osd, *affinity);
        }
        for (&osd, &toggled) in &inc.state {
            let toggled = if toggled == 0 { osd_state::UP } else { toggled };
            let was = self.state(osd);
            if was & toggled & osd_state::UP != 0 {
                let details = self.osds.entry(osd).or_default();
                details.info.down_at = inc.epoch;
                details.extra.down_stamp = inc.modified;
            }
            if was & toggled & osd_state::EXISTS != 0 {
                self.osds.remove(&osd);
                self.set_primary_affinity(osd, WEIGHT_ONE);
                self.change_state(osd, |_| 0);
            } else {
                self.change_state(osd, |state| state ^ toggled);
            }
        }
        for (&osd, addrs) in &inc.up {
            self.change_state(osd, |state| {
                (state | osd_state::EXISTS | osd_state::UP) & !osd_state::STOP
            });
            let details = self.osds.entry(osd).or_default();
            details.addrs.clone_from(addrs);
            details.heartbeat_back_addrs =
                inc.heartbeat_back_up.get(&osd).cloned().unwrap_or_default();
            details.heartbeat_front_addrs =
                inc.heartbeat_front_up.get(&osd).cloned().unwrap_or_default();
            details.info.up_from = inc.epoch;
        }
        for (osd, addrs) in &inc.cluster_up {
            self.osds.entry(*osd).or_default().cluster_addrs.clone_from(addrs);
        }
        for (osd, epoch) in &inc.up_thru {
            self.osds.entry(*osd).or_default().info.up_thru = *epoch;
        }
        for (osd, (begin, end)) in &inc.last_clean_interval {
            let info = &mut self.osds.entry(*osd).or_default().info;
            (info.last_clean_begin, info.last_clean_end) = (*begin, *end);
        }
        for (osd, epoch) in &inc.lost {
            self.osds.entry(*osd).or_default().info.lost_at = *epoch;
        }
        for (osd, extra) in &inc.extra {
            self.osds.entry(*osd).or_default().extra = *extra;
        }
        for (osd, uuid) in &inc.uuid {
            self.osds.entry(*osd).or_default().uuid = *uuid;
        }
        // As decoding leaves it: OSDs of which nothing is known take no memory.
        self.osds.retain(|_, osd| !osd.is_blank());
    }

    fn change_state(&mut self, osd: OsdId, change: impl FnOnce(u32) -> u32) {
        if let Some(state) = self.osd_state.get_mut(osd.0 as usize) {
            *state = change(*state);
        }
    }

    fn set_primary_affinity(&mut self, osd: OsdId, affinity: u32) {
        self.osd_primary_affinity.resize(self.osd_state.len(), WEIGHT_ONE);
        if let Some(place) = self.osd_primary_affinity.get_mut(osd.0 as usize) {
            *place = affinity;
        }
    }

    fn apply_placements(&mut self, inc: &Incremental) {
        for (pg, osds) in &inc.pg_temp {
            match osds.is_empty() {
                true => self.pg_temp.remove(pg),
                false => self.pg_temp.insert(*pg, osds.clone()),
            };
        }
        for (pg, osd) in &inc.primary_temp {
            match osd.0 {
                -1 => self.primary_temp.remove(pg),
                _ => self.primary_temp.insert(*pg, *osd),
            };
        }
        self.pg_upmap.extend(inc.pg_upmap.iter().map(|(pg, osds)| (*pg, osds.clone())));
        for pg in &inc.old_pg_upmap {
            self.pg_upmap.remove(pg);
        }
        let items = inc.pg_upmap_items.iter();
        self.pg_upmap_items.extend(items.map(|(pg, items)| (*pg, items.clone())));
        for pg in &inc.old_pg_upmap_items {
            self.pg_upmap_items.remove(pg);
        }
        self.pg_upmap_primaries.extend(&inc.pg_upmap_primaries);
        for pg in &inc.old_pg_upmap_primaries {
            self.pg_upmap_primaries.remove(pg);
        }
    }

    fn apply_blocklists(&mut self, inc: &Incremental) {
        // One that is blocklisted already stays so for as long as it was: Ceph inserts, and does not replace.
        for (addr, until) in &inc.blocklist {
            self.blocklist.entry(*addr).or_insert(*until);
        }
        for addr in &inc.old_blocklist {
            self.blocklist.remove(addr);
        }
        for (range, until) in &inc.range_blocklist {
            self.range_blocklist.entry(*range).or_insert(*until);
        }
        for range in &inc.old_range_blocklist {
            self.range_blocklist.remove(range);
        }
    }

    fn apply_settings(&mut self, inc: &Incremental) {
        for (node, flags) in &inc.crush_node_flags {
            match flags {
                0 => self.crush_node_flags.remove(node),
                _ => self.crush_node_flags.insert(*node, *flags),
            };
        }
        for (class, flags) in &inc.device_class_flags {
            match flags {
                0 => self.device_class_flags.remove(class),
                _ => self.device_class_flags.insert(*class, *flags),
            };
        }
        self.cluster_snapshot = match inc.cluster_snapshot.is_empty() {
            true => Default::default(),
            false => (inc.epoch, inc.cluster_snapshot.clone()),
        };
        self.nearfull_ratio = inc.nearfull_ratio.unwrap_or(self.nearfull_ratio);
        self.full_ratio = inc.full_ratio.unwrap_or(self.full_ratio);
        self.backfillfull_ratio = inc.backfillfull_ratio.unwrap_or(self.backfillfull_ratio);
        if let Some(release) = inc.require_min_compat_client.filter(|r| *r > Release::default()) {
            self.require_min_compat_client = release;
        }
        if let Some(release) = inc.require_osd_release {
            self.require_osd_release = release;
            if release >= Release::LUMINOUS {
                self.flags &= !map_flag::LEGACY_REQUIRE;
                self.flags |= map_flag::RECOVERY_DELETES;
            }
            if release >= Release::NAUTILUS {
                self.flags |= map_flag::PGLOG_HARDLIMIT;
            }
        }
        if let Some(stretch) = inc.stretch {
            self.stretch = stretch;
        }
        if let Some(allowed) = inc.allow_crimson {
            self.allow_crimson = allowed;
        }
    }
}
