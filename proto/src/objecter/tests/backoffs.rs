//! OSDs that hold operations back.

use super::*;
use crate::msg::backoff::{Backoff, BackoffOp};
use crate::msg::object::HObject;
use crate::types::SnapId;

fn spg(pg: PgId) -> SpgId {
    SpgId { pg, shard: SpgId::NO_SHARD }
}

fn hobject(name: &str) -> HObject {
    let hash = first_map().target(POOL, b"", name.as_bytes()).unwrap().hash;
    HObject { name: name.into(), hash, snap: SnapId::HEAD, pool: POOL.0, ..HObject::min() }
}

/// All of a placement group.
fn all_of(pg: PgId, id: u64) -> Backoff {
    let (begin, end) = (HObject::min(), HObject::max());
    Backoff { pgid: spg(pg), epoch: Epoch(1), op: BackoffOp::Block, id, begin, end }
}

fn just(name: &str, id: u64) -> Backoff {
    let object = hobject(name);
    Backoff { begin: object.clone(), end: object, ..all_of(PG0, id) }
}

impl World {
    fn backoff(&mut self, osd: i32, backoff: &Backoff, op: BackoffOp) {
        self.objecter.handle_backoff(OsdId(osd), Backoff { op, ..backoff.clone() });
    }
}

#[test]
fn a_group_is_held_back_until_it_is_let_go() {
    let mut world = World::connected();
    let mut names = objects_in(0);
    let (a, b) = (names.next().unwrap(), names.next().unwrap());
    world.write(1, &a);
    let first = world.sent_one();
    let block = all_of(PG0, 1);
    world.backoff(0, &block, BackoffOp::Block);
    let message = Backoff { op: BackoffOp::AckBlock, ..block.clone() };
    assert_eq!(world.actions(), [Action::AckBackoff { osd: OsdId(0), message }]);
    world.write(2, &b);
    world.sent_nothing();
    let slow = world.objecter.slow_ops(world.now, Duration::ZERO);
    assert_eq!(slow[1].waits_for, "the PG to end its backoff");
    // Somebody else's is not.
    world.write(3, &object_in(1));
    assert_eq!(world.sent_one().osd, 1);
    world.backoff(0, &block, BackoffOp::Unblock);
    let sent = world.sent();
    assert_eq!(sent.iter().map(|sent| &sent.object).collect::<Vec<_>>(), [&a, &b]);
    assert_eq!((sent[0].attempt, sent[1].attempt), (1, 0), "the first was dropped by the OSD");
    world.answer(&first, 0);
    assert_eq!(world.completed(), []);
}

#[test]
fn one_object_is_held_back_in_all_its_versions() {
    let mut world = World::connected();
    let mut names = objects_in(0);
    let (held, free) = (names.next().unwrap(), names.next().unwrap());
    let block = just(&held, 1);
    world.backoff(0, &block, BackoffOp::Block);
    world.write(1, &held);
    world.write(2, &free);
    let mut snapshot = Operation::new(Locator::of_pool(POOL), held.clone(), vec![Op::Stat.into()]);
    snapshot.snap = SnapId(4);
    world.objecter.submit(world.now, snapshot, 3);
    assert_eq!(world.sent_one().object, free);
    world.backoff(0, &block, BackoffOp::Unblock);
    assert_eq!(world.sent().len(), 2, "also the read of a snapshot");
}

#[test]
fn a_range_ends_before_its_end() {
    let mut world = World::connected();
    let mut three: Vec<_> = objects_in(0).take(3).map(|name| hobject(&name)).collect();
    three.sort_by(HObject::compare);
    let range = Backoff { begin: three[0].clone(), end: three[2].clone(), ..all_of(PG0, 1) };
    world.backoff(0, &range, BackoffOp::Block);
    for object in &three {
        world.write(1, &object.name);
    }
    assert_eq!(world.sent_one().object, three[2].name);
}

#[test]
fn overlapping_backoffs_all_have_to_end() {
    let mut world = World::connected();
    let name = object_in(0);
    let (group, object) = (all_of(PG0, 1), just(&name, 2));
    world.backoff(0, &group, BackoffOp::Block);
    world.backoff(0, &object, BackoffOp::Block);
    world.write(1, &name);
    world.backoff(0, &group, BackoffOp::Unblock);
    world.sent_nothing();
    world.backoff(0, &object, BackoffOp::Unblock);
    assert_eq!(world.sent_one().attempt, 0);
}

#[test]
fn a_repeated_block_is_one_block() {
    let mut world = World::connected();
    let block = all_of(PG0, 1);
    world.backoff(0, &block, BackoffOp::Block);
    world.backoff(0, &block, BackoffOp::Block);
    world.backoff(0, &block, BackoffOp::Unblock);
    world.write(1, &object_in(0));
    world.sent_one();
}

#[test]
fn backoffs_end_with_their_session_and_with_their_interval() {
    let mut world = World::connected();
    world.backoff(0, &all_of(PG0, 1), BackoffOp::Block);
    world.write(1, &object_in(0));
    world.sent_nothing();
    world.lose(0);
    world.open(0);
    assert_eq!(world.sent_one().attempt, 0);
    world.backoff(0, &all_of(PG0, 2), BackoffOp::Block);
    // The group goes elsewhere, where nobody holds it back.
    world.acting(PG0, &[1, 0]);
    assert_eq!(world.sent_one().osd, 1);
}
