//! The cluster's map: how it begins, and every change of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::crush::{Algorithm, Bucket, CrushMap, Op, Rule, RuleKind, Step};
use proto::denc::Encode;
use proto::osdmap::{
    Incremental, OsdMap, Pool, PoolKind, Release, WEIGHT_ONE, map_flag, osd_state, pool_flag,
};
use proto::types::{EntityAddr, EntityAddrs, Epoch, Fsid, OsdId, PgId, PoolId, SnapId, UTime};

use crate::errno::{EDQUOT, ENOSPC};
use crate::osd::map::{MapHistory, MapView, PoolView, Primary};

/// Maps are written for peers of Ceph 16: this is what its daemons say they can do.
pub const FEATURES: u64 = 0x3f01_cfbd_fffd_ffff;

/// How many old maps are kept (`mon_min_osdmap_epochs`).
const KEPT_EPOCHS: usize = 500;

/// The map, what OSDs need of it, and all maps before it.
pub struct ClusterMap {
    map: OsdMap,
    /// What OSDs look up.
    pub view: MapView,
    /// What clients are sent.
    pub history: MapHistory,
}

impl ClusterMap {
    /// The first map: OSDs that are not up yet, and no pools.
    pub fn first(fsid: Fsid, osds: u32, now: UTime) -> Self {
        let mut first = Incremental::after(&OsdMap::default());
        first.fsid = fsid;
        first.modified = now;
        first.max_osd = Some(osds);
        first.crush = crush(osds).to_bytes();
        first.flags = Some(
            map_flag::SORTBITWISE
                | map_flag::RECOVERY_DELETES
                | map_flag::PURGED_SNAPDIRS
                | map_flag::PGLOG_HARDLIMIT,
        );
        first.require_osd_release = Some(Release::PACIFIC);
        first.require_min_compat_client = Some(Release(12));
        (first.nearfull_ratio, first.backfillfull_ratio, first.full_ratio) =
            (Some(0.85), Some(0.9), Some(0.95));
        for osd in 0..osds as i32 {
            first.state.insert(OsdId(osd), osd_state::EXISTS);
            first.weight.insert(OsdId(osd), WEIGHT_ONE);
            first.uuid.insert(OsdId(osd), osd_uuid(fsid, osd));
        }
        let history = MapHistory { fsid, ..Default::default() };
        let mut this = Self { map: OsdMap::default(), view: MapView::default(), history };
        this.apply(first, now);
        this
    }

    /// Goes on from a map that was saved.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn load(bytes: &Bytes) -> proto::denc::Result<Self> {
        let map = OsdMap::decode(bytes)?;
        let mut history = MapHistory { fsid: map.fsid, ..Default::default() };
        history.full.insert(map.epoch, bytes.clone());
        let mut this = Self { map, view: MapView::default(), history };
        this.view = this.compute_view();
        Ok(this)
    }

    /// The map as it is to be saved.
    pub fn saved(&self) -> Bytes {
        self.history.full.last_key_value().map(|(_, map)| map.clone()).unwrap_or_default()
    }

    /// The present map.
    pub fn map(&self) -> &OsdMap {
        &self.map
    }

    /// The beginning of a change.
    pub fn change(&self) -> Incremental {
        Incremental::after(&self.map)
    }

    /// Makes a change: the map of the next epoch.
    pub fn apply(&mut self, mut change: Incremental, now: UTime) {
        change.modified = now;
        change.encode_features = FEATURES;
        let mut map = self.map.clone();
        if let Err(error) = map.apply(&change) {
            // Changes are made here only, one at a time.
            tracing::error!(%error, "a change does not fit the map it was made for");
            return;
        }
        self.map = map;
        let full = self.map.encode(FEATURES);
        // Clients compare the map that they make with the one that the monitor made.
        change.full_crc = checksum(&full);
        let epoch = self.map.epoch;
        self.history.incremental.insert(epoch, change.encode(FEATURES));
        self.history.full.insert(epoch, full);
        while self.history.full.len() > KEPT_EPOCHS {
            self.history.full.pop_first();
            self.history.incremental.pop_first();
        }
        self.view = self.compute_view();
    }

    fn compute_view(&self) -> MapView {
        let map = &self.map;
        let pools = map.pools.iter().map(|(&id, pool)| {
            let before = self.view.pools.get(&id);
            // Groups that split or are merged drop what they were sent before.
            let resized = before.is_some_and(|pg| pg.primaries.len() != pool.pg_num as usize);
            let primaries = (0..pool.pg_num).map(|seed| {
                let pg = PgId { pool: id, seed };
                let osd = map.mapping(pg).and_then(|mapping| mapping.acting_primary);
                let before = before.and_then(|pool| pool.primaries.get(seed as usize));
                let since = match before {
                    Some(primary) if primary.osd == osd && !resized => primary.since,
                    // Of a map that was loaded, nothing older is known.
                    None if self.view.epoch == Epoch(0) => Epoch(0),
                    _ => map.epoch,
                };
                Primary { osd, since: since.max(pool.last_force_op_resend) }
            });
            let full = pool
                .has(pool_flag::FULL)
                .then(|| if pool.has(pool_flag::FULL_QUOTA) { EDQUOT } else { ENOSPC });
            (id, PoolView { primaries: primaries.collect(), full })
        });
        MapView {
            epoch: map.epoch,
            pools: pools.collect(),
            blocklist: map.blocklist.keys().copied().collect(),
        }
    }

    /// A change that creates a pool. `None` if there is one of that name.
    pub fn create_pool(&self, new: &NewPool<'_>, now: UTime) -> Option<(PoolId, Incremental)> {
        if self.map.pool_id(new.name).is_some() {
            return None;
        }
        let mut change = self.change();
        let id = PoolId(self.map.pool_max.0.max(0) + 1);
        let mut pool = Pool::new(PoolKind::Replicated);
        pool.size = new.size;
        pool.min_size = new.size.div_ceil(2).max(1);
        for number in [
            &mut pool.pg_num,
            &mut pool.pgp_num,
            &mut pool.pg_num_target,
            &mut pool.pgp_num_target,
            &mut pool.pg_num_pending,
        ] {
            *number = new.pg_num.max(1);
        }
        pool.create_time = now;
        if let Some(application) = new.application {
            pool.applications.insert(application.to_owned(), BTreeMap::new());
        }
        change.pool_max = Some(id);
        change.pools.insert(id, pool);
        change.pool_names.insert(id, new.name.to_owned());
        Some((id, change))
    }

    /// A change of one pool.
    pub fn change_pool(&self, id: PoolId, set: impl FnOnce(&mut Pool)) -> Option<Incremental> {
        let mut pool = self.map.pool(id)?.clone();
        set(&mut pool);
        let mut change = self.change();
        change.pools.insert(id, pool);
        Some(change)
    }

    /// A change that takes a self-managed snapshot, and its number.
    pub fn create_snap(&self, pool: PoolId) -> Option<(SnapId, Incremental)> {
        // The first is 2, as in Ceph, where 1 once marked the kind of snapshots.
        let snap = SnapId(self.map.pool(pool)?.snap_seq.0.max(1) + 1);
        let change = self.change_pool(pool, |pool| {
            pool.snap_seq = snap;
            pool.flags |= pool_flag::SELFMANAGED_SNAPS;
        })?;
        Some((snap, change))
    }

    /// A change that brings an OSD up at an address.
    pub fn osd_up(&self, osd: OsdId, addrs: EntityAddrs) -> Incremental {
        let mut change = self.change();
        change.cluster_up.insert(osd, addrs.clone());
        // Ceph's clients look these up without checking that they are there (`OSDMap::apply_incremental`).
        change.heartbeat_back_up.insert(osd, addrs.clone());
        change.heartbeat_front_up.insert(osd, addrs.clone());
        change.up.insert(osd, addrs);
        change
    }

    /// A change that marks an OSD down, if it is up.
    pub fn osd_down(&self, osd: OsdId) -> Option<Incremental> {
        self.map.is_up(osd).then(|| {
            let mut change = self.change();
            change.state.insert(osd, osd_state::UP);
            change
        })
    }

    /// A change that marks an OSD in or out.
    pub fn osd_in(&self, osd: OsdId, is_in: bool) -> Incremental {
        let mut change = self.change();
        change.weight.insert(osd, if is_in { WEIGHT_ONE } else { 0 });
        change
    }

    /// A change that cuts an address off, or lets it in again.
    pub fn blocklist(&self, addr: EntityAddr, until: Option<UTime>) -> Incremental {
        let mut change = self.change();
        match until {
            Some(until) => {
                change.blocklist.insert(addr, until);
            }
            None => change.old_blocklist.push(addr),
        }
        change
    }
}

/// A pool that is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewPool<'a> {
    /// Its name.
    pub name: &'a str,
    /// Placement groups.
    pub pg_num: u32,
    /// Copies that it says it keeps.
    pub size: u8,
    /// What it is for (`rbd`).
    pub application: Option<&'a str>,
}

/// The checksum inside an encoded map, which also covers what follows it: it stands before the tail, which is empty.
fn checksum(full: &[u8]) -> u32 {
    full.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Every OSD has an identity of its own, made from the cluster's.
fn osd_uuid(fsid: Fsid, osd: i32) -> Fsid {
    let mut uuid = fsid.0;
    for (byte, osd) in uuid.iter_mut().rev().zip(osd.to_le_bytes()) {
        *byte ^= osd.wrapping_add(1);
    }
    Fsid(uuid)
}

/// One host that holds all OSDs, and one rule that spreads copies over OSDs.
fn crush(osds: u32) -> CrushMap {
    const ROOT_TYPE: u16 = 11;
    const HOST_TYPE: u16 = 1;
    let bucket = |id: i32, kind: u16, items: Vec<i32>, each: u32| Bucket {
        id,
        kind,
        hash: 0,
        weight: each * items.len() as u32,
        algorithm: Algorithm::Straw2 { item_weights: vec![each; items.len()] },
        items,
    };
    let devices: Vec<i32> = (0..osds as i32).collect();
    let host = bucket(-2, HOST_TYPE, devices.clone(), WEIGHT_ONE);
    let root = bucket(-1, ROOT_TYPE, vec![-2], host.weight);
    let names = |names: &[(i32, &str)]| -> BTreeMap<i32, String> {
        names.iter().map(|(id, name)| (*id, (*name).to_owned())).collect()
    };
    let mut item_names = names(&[(-1, "default"), (-2, "devcluster")]);
    item_names.extend(devices.iter().map(|osd| (*osd, format!("osd.{osd}"))));
    let step = |op, arg1, arg2| Step { op, arg1, arg2 };
    CrushMap {
        buckets: vec![Some(root), Some(host)],
        rules: vec![Some(Rule {
            kind: RuleKind::REPLICATED,
            min_size: 1,
            max_size: 10,
            steps: vec![step(Op::TAKE, -1, 0), step(Op::CHOOSE_FIRSTN, 0, 0), step(Op::EMIT, 0, 0)],
        })],
        max_devices: osds as i32,
        type_names: names(&[(0, "osd"), (1, "host"), (11, "root")]),
        item_names,
        rule_names: names(&[(0, "replicated_rule")]),
        ..CrushMap::default()
    }
}
