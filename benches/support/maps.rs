//! Maps of clusters small and large, for benches and for tests of what they cost.

use std::net::SocketAddr;

use proto::crush::{Algorithm, Bucket, CrushMap, Op, Rule, RuleKind, Step};
use proto::msgr::features;
use proto::osdmap::{Incremental, OsdMap, Pool, PoolKind, Target, WEIGHT_ONE, osd_state};
use proto::types::{EntityAddr, EntityAddrs, OsdId, PgId, PoolId};

/// Pools of the largest cluster, and their placement groups.
const POOLS: i64 = 100;
const PGS: u32 = 2048;
/// Of each pool's groups, how many the balancer has moved.
const UPMAPS: u32 = 1000;

/// A CRUSH map of straw2 buckets with so many children on each level, from the root down to the OSDs, and a rule that
/// puts copies on different hosts.
fn crush_map(levels: &[u16]) -> CrushMap {
    let mut map = CrushMap::default();
    let kinds = levels.len() as u16;
    // The buckets of one level, as (id, weight); their parents come after them, so the root is last.
    let osds: u16 = levels.iter().product();
    let mut below: Vec<(i32, u32)> = (0..osds).map(|osd| (osd.into(), WEIGHT_ONE)).collect();
    for (kind, &children) in (1..=kinds).zip(levels.iter().rev()) {
        let bucket = |(i, items): (usize, &[(i32, u32)])| {
            let item_weights: Vec<u32> = items.iter().map(|(_, weight)| *weight).collect();
            Bucket {
                id: -1 - (map.buckets.len() + i) as i32,
                kind,
                hash: 0,
                weight: item_weights.iter().sum(),
                items: items.iter().map(|(id, _)| *id).collect(),
                algorithm: Algorithm::Straw2 { item_weights },
            }
        };
        let level: Vec<_> = below.chunks(children.into()).enumerate().map(bucket).collect();
        below = level.iter().map(|bucket| (bucket.id, bucket.weight)).collect();
        map.buckets.extend(level.into_iter().map(Some));
    }
    map.max_devices = osds.into();
    let root = -(map.buckets.len() as i32);
    let step = |op, arg1, arg2| Step { op, arg1, arg2 };
    let steps =
        vec![step(Op::TAKE, root, 0), step(Op::CHOOSELEAF_FIRSTN, 0, 1), step(Op::EMIT, 0, 0)];
    let rule = Rule { kind: RuleKind::REPLICATED, min_size: 1, max_size: 10, steps };
    map.rules.push(Some(rule));
    // Nothing here reads names, but crushtool does.
    map.type_names = (0..=i32::from(kinds)).map(|kind| (kind, format!("type{kind}"))).collect();
    map.item_names = (root..=-1).map(|id| (id, format!("bucket{}", -id))).collect();
    map.item_names.extend((0..map.max_devices).map(|osd| (osd, format!("osd.{osd}"))));
    map.rule_names = [(0, "rule".to_owned())].into();
    map
}

/// Three hosts of four OSDs.
pub(crate) fn small() -> CrushMap {
    crush_map(&[3, 4])
}

/// Five levels: rooms, rows, racks, hosts, OSDs; 10,000 of the last.
pub(crate) fn large() -> CrushMap {
    crush_map(&[5, 5, 10, 10, 4])
}

/// 10,000 OSDs, 100 pools of 2048 groups, 100,000 upmaps.
pub(crate) fn huge() -> OsdMap {
    let crush = large();
    let mut map = OsdMap::default();
    let mut change = Incremental::after(&map);
    change.encode_features = features::SUPPORTED;
    change.max_osd = Some(crush.max_devices as u32);
    change.crush = proto::denc::Encode::to_bytes(&crush);
    for osd in (0..crush.max_devices).map(OsdId) {
        change.state.insert(osd, osd_state::EXISTS);
        change.weight.insert(osd, WEIGHT_ONE);
        change.up.insert(osd, addrs());
    }
    for id in (1..=POOLS).map(PoolId) {
        let mut pool = Pool::new(PoolKind::Replicated);
        (pool.pg_num, pool.pgp_num) = (PGS, PGS);
        (pool.size, pool.min_size) = (3, 2);
        change.pools.insert(id, pool);
        change.pool_names.insert(id, format!("pool{id}"));
        for seed in 0..UPMAPS {
            upmap(&mut change, PgId { pool: id, seed }, seed);
        }
    }
    change.pool_max = Some(PoolId(POOLS));
    map.apply(&change).expect("a change that fits");
    map
}

/// The next epoch: an OSD goes down, and up again in the one after it; 100 upmaps.
pub(crate) fn change(map: &OsdMap, number: u32) -> Incremental {
    let mut change = Incremental::after(map);
    let osd = OsdId((number / 2 * 37 % 10_000) as i32);
    match map.is_up(osd) {
        true => drop(change.state.insert(osd, osd_state::UP)),
        false => drop(change.up.insert(osd, addrs())),
    }
    let pool = PoolId(i64::from(number) % POOLS + 1);
    for seed in 0..100 {
        upmap(&mut change, PgId { pool, seed: (seed * 7 + number) % PGS }, number + seed);
    }
    change
}

fn addrs() -> EntityAddrs {
    EntityAddrs(vec![EntityAddr::msgr2(SocketAddr::from(([10, 0, 0, 1], 6800)), 1)])
}

fn upmap(change: &mut Incremental, pg: PgId, number: u32) {
    let osd = |n: u32| OsdId((n % 10_000) as i32);
    change.pg_upmap_items.insert(pg, vec![(osd(number * 11), osd(number * 13 + 1))]);
}

/// Names of objects of many images in all pools.
pub(crate) struct Names(Vec<String>);

impl Default for Names {
    fn default() -> Self {
        let name = |object: u64| format!("rbd_data.1f2e3d4c5b6a.{object:016x}");
        Self((0..40_000).map(name).collect())
    }
}

impl Names {
    pub(crate) fn look_up(&self, map: &OsdMap, object: usize) -> Target {
        let name = &self.0[object % self.0.len()];
        let pool = PoolId(object as i64 / 7 % POOLS + 1);
        map.target(pool, b"", name.as_bytes()).expect("the pool is there")
    }
}
