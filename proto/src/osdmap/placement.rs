//! From an object to a placement group, and from there to OSDs (`OSDMap::_pg_to_up_acting_osds`).
//!
//! CRUSH gives the raw set; upmaps change it; OSDs that are down leave it, which gives the *up* set; primary affinity
//! chooses who leads. While data moves, `pg_temp` and `primary_temp` stand in: that is the *acting* set. Its primary
//! is where operations go.

use super::pool::flag;
use super::{Contents, OsdMap, Pool, Release, WEIGHT_ONE};
use crate::crush::{Scratch, hash};
use crate::msg::object::SpgId;
use crate::types::{OsdId, PgId, PoolId};

/// A hole in a set of OSDs (`CRUSH_ITEM_NONE`): a shard that nobody has.
pub const NO_OSD: OsdId = OsdId(0x7fff_ffff);

/// Where a placement group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgMapping {
    /// Where it belongs, leader first; in erasure-coded pools by shard, with [`NO_OSD`] for holes.
    pub up: Box<[OsdId]>,
    /// Who leads that.
    pub up_primary: Option<OsdId>,
    /// Who serves it now.
    pub acting: Box<[OsdId]>,
    /// Who leads that, and gets all requests; `None` while nobody can.
    pub acting_primary: Option<OsdId>,
    /// The primary's shard; [`SpgId::NO_SHARD`] in replicated pools.
    pub primary_shard: i8,
    // What the above was made from: whoever is in here may come up, and change it.
    raw: Box<[OsdId]>,
    temp: Box<[OsdId]>,
}

impl PgMapping {
    /// All OSDs on whose state this placement depends.
    pub(super) fn candidates(&self) -> impl Iterator<Item = OsdId> + '_ {
        self.raw.iter().chain(&self.temp).copied()
    }
}

/// Where requests for an object go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The object's 32-bit hash, which requests carry.
    pub hash: u32,
    /// Its placement group, and the primary's shard.
    pub spg: SpgId,
    /// The OSD; `None` while nobody serves the group.
    pub primary: Option<OsdId>,
}

impl OsdMap {
    /// Where requests for an object go; `None` if there is no such pool.
    ///
    /// `key_or_name` is the locator key if the object has one, else its name. Costs a hash and two look-ups, and no
    /// allocation, once any object of the same placement group has been asked for since its placement changed.
    #[inline]
    pub fn target(&self, pool: PoolId, namespace: &[u8], key_or_name: &[u8]) -> Option<Target> {
        let hash = self.pool(pool)?.hash_object(namespace, key_or_name);
        self.target_of_hash(pool, hash)
    }

    /// Where requests for a hash go, as listing objects needs it.
    #[inline]
    pub fn target_of_hash(&self, pool: PoolId, hash: u32) -> Option<Target> {
        let pg = PgId { pool, seed: self.pool(pool)?.fold(hash) };
        let mapping = self.mapping(pg)?;
        let spg = SpgId { pg, shard: mapping.primary_shard };
        Some(Target { hash, spg, primary: mapping.acting_primary })
    }

    /// Where a placement group is; `None` if there is none of that number.
    #[inline]
    pub fn mapping(&self, pg: PgId) -> Option<&PgMapping> {
        let pool = self.pool(pg.pool)?;
        pool.table.get(pool.pg_num, pg.seed, || self.work_out(pool, pg))
    }

    fn work_out(&self, pool: &Pool, pg: PgId) -> PgMapping {
        let mut raw = self.raw_osds(pool, pg);
        self.apply_upmap(pg, &mut raw);
        let mut up = raw.clone();
        self.hide_if(pool, &mut up, |osd| !self.is_up(osd));
        let mut up_primary = first_primary(&up);
        self.apply_primary_affinity(pool, pg, &mut up, &mut up_primary);

        let temp = self.pg_temp.get(&pg).cloned().unwrap_or_default();
        let mut acting = temp.clone();
        self.hide_if(pool, &mut acting, |osd| !self.is_up(osd));
        let temp_primary = self.primary_temp.get(&pg).copied().or_else(|| first_primary(&acting));
        let acting_primary = match acting.is_empty() {
            true => temp_primary.or(up_primary),
            false => temp_primary,
        };
        if acting.is_empty() {
            acting.clone_from(&up);
        }
        // In the order in which a primary is looked for, an OSD that has two shards leads the first of them.
        let mut position = None;
        if pool.is_erasure() {
            position = acting.iter().position(|osd| Some(*osd) == acting_primary);
        }
        if !temp.is_empty() && pool.has(flag::EC_OPTIMIZATIONS) {
            let order = primary_first(pool);
            // A pg_temp of another length would be a mistake of the monitor's: then it is taken as it is.
            if order.len() == acting.len() {
                let mut by_shard = acting.clone();
                for (osd, &shard) in acting.iter().zip(&order) {
                    if let Some(place) = by_shard.get_mut(shard) {
                        *place = *osd;
                    }
                }
                acting = by_shard;
                position = position.and_then(|i| order.get(i)).copied();
            }
        }
        let primary_shard = position.and_then(|i| i8::try_from(i).ok()).unwrap_or(SpgId::NO_SHARD);
        PgMapping {
            up: up.into(),
            up_primary,
            acting: acting.into(),
            acting_primary,
            primary_shard,
            raw: raw.into(),
            temp: temp.into(),
        }
    }
}

impl Contents {
    /// What CRUSH says, without OSDs that don't exist (`_pg_to_raw_osds`). `ceph osd map` and clients need more than
    /// this: see [`OsdMap::mapping`].
    pub fn raw_osds(&self, pool: &Pool, pg: PgId) -> Vec<OsdId> {
        let rule = u32::from(pool.crush_rule);
        let size = u32::from(pool.size);
        // Up to Pacific a rule had sizes and a type that it applied to.
        let rule = match self.require_osd_release < Release::QUINCY {
            true => self.crush.find_rule(rule, pool.kind.number(), size),
            false => Some(rule),
        };
        let Some(rule) = rule else { return Vec::new() };
        let mut scratch = Scratch::default();
        let placed = self.crush.do_rule(
            rule,
            pool.placement_seed(pg),
            usize::from(pool.size),
            &self.osd_weight,
            self.crush.choose_args_for_pool(pg.pool.0),
            &mut scratch,
        );
        let mut raw = placed.iter().copied().map(OsdId).collect();
        self.hide_if(pool, &mut raw, |osd| !self.exists(osd));
        raw
    }

    /// Takes OSDs out of a set: replicas move up, shards leave holes.
    fn hide_if(&self, pool: &Pool, osds: &mut Vec<OsdId>, hide: impl Fn(OsdId) -> bool) {
        match pool.is_erasure() {
            true => osds.iter_mut().filter(|osd| hide(**osd)).for_each(|osd| *osd = NO_OSD),
            false => osds.retain(|osd| !hide(*osd)),
        }
    }

    /// `pg_upmap`, `pg_upmap_items` and `pg_upmap_primaries`, each ignored where it names an OSD that is out.
    fn apply_upmap(&self, pg: PgId, raw: &mut Vec<OsdId>) {
        let is_out = |osd| self.weight(osd) == Some(0);
        if let Some(explicit) = self.pg_upmap.get(&pg) {
            if explicit.iter().any(|osd| is_out(*osd)) {
                return; // and nothing else is applied either: so do Ceph's OSDs and clients
            }
            raw.clone_from(explicit);
        }
        for &(from, to) in self.pg_upmap_items.get(&pg).into_iter().flatten() {
            if raw.contains(&to) || is_out(to) {
                continue;
            }
            if let Some(place) = raw.iter_mut().find(|osd| **osd == from) {
                *place = to;
            }
        }
        if let Some(&primary) = self.pg_upmap_primaries.get(&pg)
            && self.weight(primary).is_some_and(|weight| weight > 0)
            && let Some(position) = raw.iter().position(|osd| *osd == primary)
        {
            raw.swap(0, position);
        }
    }

    /// Passes over a share of an OSD's groups that its affinity says, chosen by hash (`_apply_primary_affinity`).
    fn apply_primary_affinity(
        &self,
        pool: &Pool,
        pg: PgId,
        osds: &mut [OsdId],
        primary: &mut Option<OsdId>,
    ) {
        let there = |osd: &OsdId| *osd != NO_OSD;
        if !osds
            .iter()
            .filter(|osd| there(osd))
            .any(|osd| self.primary_affinity(*osd) != WEIGHT_ONE)
        {
            return;
        }
        let seed = pool.placement_seed(pg);
        let accepts = |osd: OsdId| {
            let affinity = self.primary_affinity(osd);
            affinity >= WEIGHT_ONE || hash::hash32_2(seed, osd.0 as u32) >> 16 < affinity
        };
        let willing = osds.iter().position(|osd| there(osd) && accepts(*osd));
        let Some(position) = willing.or_else(|| osds.iter().position(there)) else { return };
        *primary = osds.get(position).copied();
        if !pool.is_erasure()
            && let Some(ahead) = osds.get_mut(..=position)
        {
            ahead.rotate_right(1);
        }
    }
}

fn first_primary(osds: &[OsdId]) -> Option<OsdId> {
    osds.iter().copied().find(|osd| *osd != NO_OSD)
}

/// The shards in the order in which FastEC's `pg_temp` lists them: those that may be primary first
/// (`OSDMap::pgtemp_primaryfirst`).
fn primary_first(pool: &Pool) -> Vec<usize> {
    let size = usize::from(pool.size);
    let (mut first, last): (Vec<_>, Vec<_>) =
        (0..size).partition(|shard| !pool.is_nonprimary_shard(*shard));
    first.extend(last);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::osdmap::{Incremental, PoolKind, osd_state, pool_flag};

    const PG: PgId = PgId { pool: PoolId(1), seed: 0 };

    /// OSDs 0 to 10, all up, and a pool of 8 groups that CRUSH puts nowhere.
    fn map(kind: PoolKind, size: u8) -> OsdMap {
        let mut pool = Pool::new(kind);
        (pool.size, pool.pg_num, pool.pgp_num) = (size, 8, 8);
        let state = osd_state::EXISTS | osd_state::UP;
        OsdMap(Contents {
            osd_state: vec![state; 11],
            osd_weight: vec![WEIGHT_ONE; 11],
            pools: [(PG.pool, pool)].into(),
            ..Contents::default()
        })
    }

    fn osds(ids: &[i32]) -> Vec<OsdId> {
        ids.iter().map(|id| OsdId(*id)).collect()
    }

    /// The example of `OSDMap::pgtemp_primaryfirst`: 4+2, where shards 1, 2 and 3 may not lead.
    #[test]
    fn fast_ec_lists_shards_that_may_lead_first() {
        let mut map = map(PoolKind::Erasure, 6);
        let pool = map.0.pools.get_mut(&PG.pool).unwrap();
        pool.flags |= pool_flag::EC_OPTIMIZATIONS;
        pool.nonprimary_shards = 0b1110;
        map.0.pg_temp.insert(PG, osds(&[NO_OSD.0, 9, 10, 6, 7, 8]));
        let placed = map.mapping(PG).unwrap();
        assert_eq!(*placed.acting, osds(&[NO_OSD.0, 6, 7, 8, 9, 10]));
        assert_eq!((placed.acting_primary, placed.primary_shard), (Some(OsdId(9)), 4));
        // An OSD with two shards leads the one that may lead.
        map.0.pools.get_mut(&PG.pool).unwrap().table.clear();
        map.0.pg_temp.insert(PG, osds(&[NO_OSD.0, 9, 10, 9, 7, 8]));
        let placed = map.mapping(PG).unwrap();
        assert_eq!(*placed.acting, osds(&[NO_OSD.0, 9, 7, 8, 9, 10]));
        assert_eq!((placed.acting_primary, placed.primary_shard), (Some(OsdId(9)), 4));
    }

    #[test]
    fn a_stand_in_of_the_wrong_length_is_taken_as_it_is() {
        let mut map = map(PoolKind::Erasure, 6);
        map.0.pools.get_mut(&PG.pool).unwrap().flags |= pool_flag::EC_OPTIMIZATIONS;
        map.0.pg_temp.insert(PG, osds(&[1, 2]));
        let placed = map.mapping(PG).unwrap();
        assert_eq!((&*placed.acting, placed.primary_shard), (osds(&[1, 2]).as_slice(), 0));
    }

    #[test]
    fn a_change_of_one_group_leaves_the_others_in_the_table() {
        let mut map = map(PoolKind::Replicated, 3);
        map.0.pg_temp.insert(PG, osds(&[1, 2, 3]));
        let other = PgId { seed: 5, ..PG };
        map.0.pg_temp.insert(other, osds(&[4, 5, 6]));
        let address = |map: &OsdMap, pg| std::ptr::from_ref(map.mapping(pg).unwrap()).addr();
        map.mapping(PG).unwrap();
        let kept = address(&map, other);

        let mut change = Incremental::after(&map);
        change.pg_temp.insert(PG, osds(&[3, 2, 1]));
        map.apply(&change).unwrap();
        assert_eq!(map.mapping(PG).unwrap().acting_primary, Some(OsdId(3)));
        assert_eq!(address(&map, other), kept);

        // osd.2 goes down and comes up: only the group that it is in is worked out anew.
        for (state, acting) in [(osd_state::UP, vec![3, 1]), (0, vec![3, 2, 1])] {
            let mut change = Incremental::after(&map);
            change.state.insert(OsdId(2), state);
            map.apply(&change).unwrap();
            assert_eq!(*map.mapping(PG).unwrap().acting, osds(&acting));
            assert_eq!(address(&map, other), kept);
        }
    }

    /// How many groups are placed anew after each kind of change: those that it can move.
    #[test]
    fn only_what_can_have_moved_is_placed_anew() {
        let mut map = map(PoolKind::Replicated, 3);
        let other = PoolId(2);
        let mut pool = map.0.pools.get(&PG.pool).unwrap().clone();
        (pool.pg_num, pool.pgp_num) = (100, 100);
        map.0.pools.insert(PG.pool, pool.clone());
        map.0.pools.insert(other, pool);
        // Ten groups have each OSD first, as many have it second, and third.
        let groups = |pool| (0..100).map(move |seed| PgId { pool, seed });
        let three = |seed: u32| [0, 1, 2].map(|next| OsdId((seed as i32 + next) % 10)).to_vec();
        for pg in groups(PG.pool).chain(groups(other)) {
            map.0.pg_upmap.insert(pg, three(pg.seed));
        }
        // Places everything, applies a change, and says how many groups of each pool are to be placed anew.
        let mut anew = |change: &dyn Fn(&mut Incremental)| {
            groups(PG.pool).chain(groups(other)).for_each(|pg| {
                map.mapping(pg).unwrap();
            });
            let mut inc = Incremental::after(&map);
            change(&mut inc);
            map.apply(&inc).unwrap();
            [PG.pool, other].map(|id| 100 - map.pools[&id].table.known())
        };
        let all = [100, 100];
        assert_eq!(anew(&|_| {}), [0, 0]);
        assert_eq!(anew(&|inc| inc.state.extend([(OsdId(3), osd_state::UP)])), [30, 30], "down");
        assert_eq!(anew(&|inc| inc.up.extend([(OsdId(3), Default::default())])), [30, 30], "up");
        assert_eq!(anew(&|inc| inc.state.extend([(OsdId(10), osd_state::UP)])), [0, 0], "unused");
        assert_eq!(anew(&|inc| inc.primary_affinity.extend([(OsdId(3), 0)])), [30, 30]);
        for seed in 0..5 {
            let pg = PgId { pool: other, seed };
            let items = vec![(OsdId(0), OsdId(9))];
            assert_eq!(anew(&|inc| inc.pg_temp.extend([(pg, three(7))])), [0, 1]);
            assert_eq!(anew(&|inc| inc.primary_temp.extend([(pg, OsdId(8))])), [0, 1]);
            assert_eq!(anew(&|inc| inc.pg_upmap_items.extend([(pg, items.clone())])), [0, 1]);
            assert_eq!(anew(&|inc| inc.old_pg_upmap_items.extend([pg])), [0, 1]);
            assert_eq!(anew(&|inc| inc.pg_upmap.extend([(pg, three(2))])), [0, 1]);
            assert_eq!(anew(&|inc| inc.old_pg_upmap.extend([pg])), [0, 1]);
            assert_eq!(anew(&|inc| inc.pg_upmap_primaries.extend([(pg, OsdId(9))])), [0, 1]);
        }
        let mut pool = Pool::new(PoolKind::Replicated);
        (pool.size, pool.pg_num, pool.pgp_num) = (3, 100, 100);
        pool.quota_max_bytes = 1;
        assert_eq!(anew(&|inc| inc.pools.extend([(other, pool.clone())])), [0, 0], "a quota");
        pool.pgp_num = 50;
        assert_eq!(anew(&|inc| inc.pools.extend([(other, pool.clone())])), [0, 100], "reshaped");
        let blocked = crate::types::EntityAddr::default();
        assert_eq!(anew(&|inc| inc.blocklist.extend([(blocked, Default::default())])), [0, 0]);
        // CRUSH may put anything elsewhere.
        assert_eq!(anew(&|inc| inc.weight.extend([(OsdId(3), 0x8000)])), all);
        assert_eq!(anew(&|inc| inc.max_osd = Some(12)), all);
    }

    #[test]
    fn a_pool_made_again_from_an_old_copy_has_no_old_placements() {
        let mut map = map(PoolKind::Replicated, 3);
        map.0.pg_temp.insert(PG, osds(&[1, 2, 3]));
        map.mapping(PG).unwrap();
        let copy = map.pool(PG.pool).unwrap().clone();
        let mut change = Incremental::after(&map);
        change.old_pools.insert(PG.pool);
        change.pg_temp.insert(PG, Vec::new());
        map.apply(&change).unwrap();
        assert_eq!(map.mapping(PG), None);
        let mut change = Incremental::after(&map);
        change.pools.insert(PG.pool, copy);
        map.apply(&change).unwrap();
        assert_eq!(map.mapping(PG).unwrap().acting_primary, None);
    }
}
