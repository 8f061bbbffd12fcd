//! A cluster on paper: three OSDs and a pool of two placement groups, whose acting sets `pg_temp` says outright.

mod answers;
mod backoffs;
mod bounds;
mod maps;
mod pauses;
mod sessions;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::{Action, Objecter, OpError, OpResult};
use crate::msg::object::{Locator, SpgId};
use crate::msg::op::Op;
use crate::msg::osd_map::OsdMaps;
use crate::msg::osd_op::{OpReply, Operation, Reply, ReqId};
use crate::msgr::features;
use crate::osdmap::{Incremental, OsdMap, Pool, PoolKind, Release, WEIGHT_ONE, osd_state};
use crate::types::{
    EVersion, EntityAddr, EntityAddrs, EntityName, EntityType, Epoch, Fsid, Instant, OsdId, PgId,
    PoolId, Tid,
};

const POOL: PoolId = PoolId(1);
const PG0: PgId = PgId { pool: POOL, seed: 0 };
const PG1: PgId = PgId { pool: POOL, seed: 1 };
const CLIENT: i64 = 4711;

/// What was sent, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    osd: i32,
    object: String,
    tid: Tid,
    attempt: i32,
    reqid: ReqId,
    flags: u32,
    pgid: SpgId,
    epoch: Epoch,
    ops: Vec<Op>,
}

struct World {
    map: OsdMap,
    objecter: Objecter<u32>,
    now: Instant,
}

fn addr(osd: i32, nonce: u32) -> EntityAddr {
    EntityAddr::msgr2(([10, 0, 0, osd as u8 + 1], 6800).into(), nonce)
}

fn our_addr() -> EntityAddr {
    EntityAddr::msgr2(([10, 0, 0, 99], 0).into(), 7)
}

fn addrs(osd: i32, nonce: u32) -> EntityAddrs {
    EntityAddrs(vec![addr(osd, nonce)])
}

fn osds(list: &[i32]) -> Vec<OsdId> {
    list.iter().copied().map(OsdId).collect()
}

/// The map that every test begins with, epoch 1.
fn first_map() -> OsdMap {
    let mut map = OsdMap::default();
    let mut inc = Incremental::after(&map);
    inc.fsid = Fsid([7; 16]);
    inc.max_osd = Some(3);
    inc.require_osd_release = Some(Release::PACIFIC);
    for osd in 0..3 {
        inc.state.insert(OsdId(osd), osd_state::EXISTS);
        inc.weight.insert(OsdId(osd), WEIGHT_ONE);
        inc.up.insert(OsdId(osd), addrs(osd, 1));
    }
    let mut pool = Pool::new(PoolKind::Replicated);
    (pool.size, pool.pg_num, pool.pgp_num) = (2, 2, 2);
    inc.pools.insert(POOL, pool);
    inc.pool_names.insert(POOL, "rbd".into());
    inc.pool_max = Some(POOL);
    inc.pg_temp = [(PG0, osds(&[0, 1])), (PG1, osds(&[1, 2]))].into();
    map.apply(&inc).unwrap();
    map
}

impl World {
    /// Without a map.
    fn blank() -> Self {
        Self::with_timeout(None)
    }

    fn with_timeout(timeout: Option<Duration>) -> Self {
        let mut objecter = Objecter::new(features::SUPPORTED);
        objecter.set_timeout(timeout);
        objecter.set_identity(Instant::default(), CLIENT as u64, our_addr());
        Self { map: first_map(), objecter, now: Instant::default() }
    }

    /// With the first map, and nothing asked for.
    fn new() -> Self {
        let mut world = Self::blank();
        world.give_full();
        world.actions();
        world
    }

    /// As [`World::new`], and with sessions to all OSDs.
    fn connected() -> Self {
        let mut world = Self::new();
        for object in [object_in(0), object_in(1)] {
            world.read(0, &object);
        }
        world.open(0);
        world.open(1);
        for sent in world.sent() {
            world.answer(&sent, 0);
        }
        world.completed();
        world.actions();
        world
    }

    /// Hands over the present map as a whole.
    fn give_full(&mut self) {
        let full = [(self.map.epoch, self.map.encode(features::SUPPORTED))].into();
        self.give(BTreeMap::new(), full).unwrap();
    }

    fn give(
        &mut self,
        incremental: BTreeMap<Epoch, Bytes>,
        full: BTreeMap<Epoch, Bytes>,
    ) -> Result<bool, super::MapError> {
        let maps = OsdMaps {
            fsid: self.map.fsid,
            incremental,
            full,
            oldest: Epoch(1),
            newest: self.map.epoch,
        };
        self.objecter.handle_maps(self.now, &maps)
    }

    /// Makes the next epoch without telling the client; returns what would tell it.
    fn make<R>(&mut self, change: impl FnOnce(&mut Incremental) -> R) -> (Epoch, Bytes) {
        let mut inc = Incremental::after(&self.map);
        change(&mut inc);
        self.map.apply(&inc).unwrap();
        (inc.epoch, inc.encode(features::SUPPORTED))
    }

    /// Makes the next epoch and hands it over.
    fn change<R>(&mut self, change: impl FnOnce(&mut Incremental) -> R) {
        let incremental = self.make(change);
        self.give([incremental].into(), BTreeMap::new()).unwrap();
    }

    fn osd_down(&mut self, osd: i32) {
        self.change(|inc| inc.state.insert(OsdId(osd), osd_state::UP));
    }

    fn osd_up(&mut self, osd: i32, nonce: u32) {
        self.change(|inc| inc.up.insert(OsdId(osd), addrs(osd, nonce)));
    }

    fn acting(&mut self, pg: PgId, acting: &[i32]) {
        self.change(|inc| inc.pg_temp.insert(pg, osds(acting)));
    }

    /// Changes the pool.
    fn pool(&mut self, change: impl FnOnce(&mut Pool)) {
        let mut pool = self.map.pool(POOL).unwrap().clone();
        change(&mut pool);
        self.change(|inc| inc.pools.insert(POOL, pool));
    }

    fn submit(&mut self, user: u32, object: &str, op: Op, flags: u32) -> Tid {
        let mut operation = Operation::new(Locator::of_pool(POOL), object, vec![op.into()]);
        operation.flags = flags;
        self.objecter.submit(self.now, operation, user)
    }

    fn read(&mut self, user: u32, object: &str) -> Tid {
        self.submit(user, object, Op::Read { offset: 0, length: 1 }, 0)
    }

    fn write(&mut self, user: u32, object: &str) -> Tid {
        self.submit(user, object, Op::Write { offset: 0, data: Bytes::from_static(b"x") }, 0)
    }

    fn open(&mut self, osd: i32) {
        self.objecter.handle_session_open(OsdId(osd));
    }

    fn lose(&mut self, osd: i32) {
        self.objecter.handle_session_lost(self.now, OsdId(osd));
    }

    /// Everything that is to be sent now.
    fn sent(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        while let Some((osd, request)) = self.objecter.poll_send() {
            let (routing, operation) = (request.routing, request.operation);
            all.push(Sent {
                osd: osd.0,
                object: operation.object.clone(),
                tid: routing.tid,
                attempt: routing.attempt,
                reqid: routing.reqid,
                flags: routing.flags,
                pgid: routing.pgid,
                epoch: routing.epoch,
                ops: operation.ops.iter().map(|op| op.op.clone()).collect(),
            });
        }
        all
    }

    /// The only thing that is to be sent now.
    #[track_caller]
    fn sent_one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    #[track_caller]
    fn sent_nothing(&mut self) {
        assert_eq!(self.sent(), []);
    }

    fn answer(&mut self, sent: &Sent, result: i32) {
        let osd = OsdId(sent.osd);
        self.objecter.handle_reply(self.now, osd, reply_to(sent, result));
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.objecter.poll_action()).collect()
    }

    /// Who is done, and how: the result's errno, or why there is none.
    fn completed(&mut self) -> Vec<(u32, Result<i32, OpError>)> {
        let result = |result: OpResult| result.map(|reply| reply.result);
        std::iter::from_fn(|| self.objecter.poll_completed())
            .map(|(user, done)| (user, result(done)))
            .collect()
    }
}

fn reply_to(sent: &Sent, result: i32) -> Reply {
    Reply {
        tid: sent.tid,
        object: Bytes::copy_from_slice(sent.object.as_bytes()),
        pgid: sent.pgid.pg,
        flags: 0,
        result,
        epoch: sent.epoch,
        attempt: sent.attempt,
        version: EVersion::default(),
        user_version: 0,
        ops: sent.ops.iter().map(|_| OpReply::default()).collect(),
        redirect: None,
    }
}

/// The name of an object in one of the pool's two placement groups.
fn object_in(seed: u32) -> String {
    objects_in(seed).next().unwrap()
}

fn objects_in(seed: u32) -> impl Iterator<Item = String> {
    let map = first_map();
    (0..)
        .map(|i| format!("object{i}"))
        .filter(move |name| map.target(POOL, b"", name.as_bytes()).unwrap().spg.pg.seed == seed)
}

fn open_action(osd: i32, nonce: u32) -> Action {
    Action::Open { osd: OsdId(osd), addr: addr(osd, nonce) }
}

fn client() -> EntityName {
    EntityName { kind: EntityType::CLIENT, num: CLIENT }
}
