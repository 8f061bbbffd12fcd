//! Answers that are none yet, newer maps that somebody knows of, reads of replicas, and the end by fencing.

use super::*;
use crate::msg::osd_op::flag;
use crate::osdmap::pool_flag;
use crate::types::AddrType;

const EAGAIN: i32 = -11;
const ENXIO: i32 = -6;
const SECOND: Duration = Duration::from_secs(1);

fn read_with(world: &mut World, user: u32, object: &str, flags: u32) -> Tid {
    world.submit(user, object, Op::Read { offset: 0, length: 1 }, flags)
}

#[test]
fn whoever_says_try_again_is_tried_again() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let first = world.sent_one();
    world.answer(&first, EAGAIN);
    let second = world.sent_one();
    assert_eq!((second.attempt, second.reqid), (1, first.reqid));
    world.answer(&first, 0);
    assert_eq!(world.completed(), [], "of an attempt that is over");
    world.answer(&second, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn an_osd_that_has_a_newer_map_is_believed_that_the_object_is_elsewhere() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let sent = world.sent_one();
    let (epoch, incremental) = world.make(|inc| inc.pg_temp.insert(PG0, osds(&[1, 0])));
    let mut reply = reply_to(&sent, ENXIO);
    reply.epoch = epoch;
    world.objecter.handle_reply(world.now, OsdId(0), reply);
    assert_eq!(world.completed(), []);
    world.sent_nothing();
    assert_eq!(world.actions(), [Action::WantMap { start: epoch }]);
    let slow = world.objecter.slow_ops(world.now, Duration::ZERO);
    assert_eq!(slow[0].waits_for, "a newer OSD map");
    world.give([(epoch, incremental)].into(), BTreeMap::new()).unwrap();
    assert_eq!(world.sent_one().osd, 1);
}

#[test]
fn an_osd_that_knows_no_better_has_spoken() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let sent = world.sent_one();
    world.answer(&sent, ENXIO);
    assert_eq!(world.completed(), [(1, Ok(ENXIO))]);
}

#[test]
fn nothing_is_sent_under_a_map_before_the_barrier() {
    let mut world = World::new();
    world.write(1, &object_in(0));
    let (epoch, incremental) = world.make(|_| ());
    world.objecter.set_barrier(epoch);
    assert!(world.actions().contains(&Action::WantMap { start: epoch }));
    world.open(0);
    world.write(2, &object_in(0));
    world.sent_nothing();
    world.give([(epoch, incremental)].into(), BTreeMap::new()).unwrap();
    let epochs: Vec<_> = world.sent().into_iter().map(|sent| sent.epoch).collect();
    assert_eq!(epochs, [epoch, epoch]);
    // One that has passed is none.
    world.objecter.set_barrier(Epoch(1));
    world.write(3, &object_in(0));
    assert_eq!(world.sent().len(), 1);
}

#[test]
fn balanced_reads_go_to_all_replicas_and_writes_to_the_primary() {
    let mut world = World::connected();
    let mut to = [0; 3];
    for user in 0..64 {
        read_with(&mut world, user, &object_in(0), flag::BALANCE_READS);
        world.open(0);
        world.open(1);
        for sent in world.sent() {
            to[sent.osd as usize] += 1;
            world.answer(&sent, 0);
        }
    }
    assert!(to[0] > 16 && to[1] > 16 && to[2] == 0, "{to:?}");
    let data = Bytes::from_static(b"x");
    for _ in 0..8 {
        let op = Op::Write { offset: 0, data: data.clone() };
        world.submit(1, &object_in(0), op, flag::BALANCE_READS);
        assert_eq!(world.sent_one().osd, 0);
    }
}

#[test]
fn a_balanced_read_stays_where_it_is_until_its_pg_changes() {
    let mut world = World::connected();
    let at = loop {
        read_with(&mut world, 1, &object_in(0), flag::BALANCE_READS);
        let sent = world.sent_one();
        if sent.osd == 1 {
            break sent;
        }
        world.answer(&sent, 0);
    };
    world.pool(|pool| pool.snap_seq = crate::types::SnapId(1));
    world.sent_nothing();
    world.acting(PG0, &[0, 2]);
    world.open(2);
    assert_eq!(world.sent_one().tid, at.tid);
}

#[test]
fn a_replica_that_cannot_answer_yet_leaves_it_to_the_primary() {
    let mut world = World::connected();
    loop {
        read_with(&mut world, 1, &object_in(0), flag::BALANCE_READS);
        let sent = world.sent_one();
        if sent.osd == 0 {
            world.answer(&sent, 0);
            continue;
        }
        assert_ne!(sent.flags & flag::BALANCE_READS, 0);
        world.answer(&sent, EAGAIN);
        let again = world.sent_one();
        assert_eq!((again.osd, again.flags & flag::BALANCE_READS), (0, 0));
        return;
    }
}

#[test]
fn a_localized_read_goes_to_the_nearest_replica() {
    use crate::crush::{Algorithm, Bucket, CrushMap};
    use crate::denc::Encode as _;

    let mut world = World::blank();
    let bucket = |id: i32, kind, items: Vec<i32>| {
        let item_weights = vec![0x1_0000; items.len()];
        let algorithm = Algorithm::Straw2 { item_weights };
        Some(Bucket { id, kind, hash: 0, weight: 0x1_0000 * items.len() as u32, items, algorithm })
    };
    let crush = CrushMap {
        buckets: vec![
            bucket(-1, 2, vec![-2, -3]),
            bucket(-2, 1, vec![0]),
            bucket(-3, 1, vec![1, 2]),
        ],
        max_devices: 3,
        type_names: [(0, "osd".into()), (1, "host".into()), (2, "root".into())].into(),
        item_names: [(-1, "default".into()), (-2, "a".into()), (-3, "b".into())].into(),
        ..CrushMap::default()
    };
    world.make(|inc| inc.crush = crush.to_bytes());
    let place = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    for (near, expected) in [
        (vec![place("host", "b")], 1),
        (vec![place("host", "a")], 0),
        (vec![place("host", "elsewhere"), place("root", "default")], 0),
        (vec![], 0),
    ] {
        world.objecter = Objecter::new(features::SUPPORTED);
        world.objecter.set_location(near.clone());
        world.give_full();
        read_with(&mut world, 1, &object_in(0), flag::LOCALIZE_READS);
        world.open(0);
        world.open(1);
        assert_eq!(world.sent_one().osd, expected, "{near:?}");
    }
    assert_eq!(crush.distances(&[place("host", "b"), place("root", "default")]), [2, 1, 1]);
    assert_eq!(crush.distances(&[place("rack", "b")]), [i32::MAX; 3]);
}

#[test]
fn before_octopus_replicas_are_not_asked() {
    let mut world = World::connected();
    world.change(|inc| inc.require_osd_release = Some(Release::NAUTILUS));
    for _ in 0..16 {
        read_with(&mut world, 1, &object_in(0), flag::BALANCE_READS);
        let sent = world.sent_one();
        assert_eq!(sent.osd, 0);
        world.answer(&sent, 0);
    }
}

#[test]
fn an_osd_that_knows_of_our_fencing_ends_everything_before_the_map_does() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.write(2, &object_in(1));
    let sent = world.sent();
    world.write(3, &object_in(0));
    world.answer(&sent[0], -108);
    let ended = (1..=3).map(|user| (user, Err(OpError::Blocklisted))).collect::<Vec<_>>();
    assert_eq!(world.completed(), ended);
    assert!(world.objecter.is_fenced());
    world.sent_nothing();
    world.write(4, &object_in(0));
    assert_eq!(world.completed(), [(4, Err(OpError::Blocklisted))]);
}

#[test]
fn fencing_closes_every_connection_so_that_no_queued_byte_leaves() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.sent_one();
    let entry = EntityAddr { kind: AddrType::ANY, ..our_addr() };
    world.change(|inc| inc.blocklist.insert(entry, Default::default()));
    let closes: Vec<_> = [0, 1].map(|osd| Action::Close { osd: OsdId(osd) }).into();
    assert_eq!(world.actions(), closes);
    assert_eq!(world.completed(), [(1, Err(OpError::Blocklisted))]);
    // Even if somebody still thinks that there is a session.
    world.open(0);
    world.sent_nothing();
}

#[test]
fn full_pools_end_writes_at_once_where_that_was_wanted() {
    let full = Err(OpError::Full(POOL));
    let mut world = World::connected();
    world.objecter.set_abort_on_full(true);
    world.write(1, &object_in(0));
    world.sent_one();
    world.read(2, &object_in(0));
    let read = world.sent_one();
    world.pool(|pool| pool.flags |= pool_flag::FULL);
    assert_eq!(world.completed(), [(1, full)], "the OSD may have dropped it");
    world.write(3, &object_in(0));
    assert_eq!(world.completed(), [(3, full)]);
    let start = Epoch(world.map.epoch.0 + 1);
    assert_eq!(world.actions(), [Action::WantMap { start }], "or nobody learns of space");
    world.submit(4, &object_in(0), Op::Delete, flag::FULL_FORCE);
    assert_eq!(world.sent_one().flags & flag::FULL_FORCE, flag::FULL_FORCE);
    world.answer(&read, 0);
    assert_eq!(world.completed(), [(2, Ok(0))]);
    world.pool(|pool| pool.flags &= !pool_flag::FULL);
    world.write(5, &object_in(0));
    assert_eq!(world.sent().len(), 1);
}

#[test]
fn an_answer_that_takes_long_makes_one_ask_for_newer_maps() {
    let mut world = World::connected();
    let start = Epoch(world.map.epoch.0 + 1);
    world.write(1, &object_in(0));
    let sent = world.sent_one();
    world.now = Instant(9 * SECOND);
    world.objecter.handle_tick(world.now);
    assert_eq!(world.actions(), []);
    world.now = Instant(11 * SECOND);
    world.objecter.handle_tick(world.now);
    assert_eq!(world.actions(), [Action::WantMap { start }]);
    // Once asked, the monitors send the next one when there is one.
    world.objecter.handle_tick(Instant(60 * SECOND));
    assert_eq!(world.actions(), []);
    world.answer(&sent, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn what_happened_is_counted() {
    let mut world = World::connected();
    let stats = world.objecter.stats().clone();
    world.write(1, &object_in(0));
    let first = world.sent_one();
    world.lose(0);
    world.open(0);
    let sent = world.sent_one();
    world.now = world.now + Duration::from_micros(700);
    world.answer(&first, 0);
    world.answer(&sent, -28);
    world.read(2, &object_in(0));
    let read = world.sent_one();
    world.answer(&read, -2);
    let tid = world.read(3, &object_in(0));
    world.objecter.cancel(tid);
    let now = world.objecter.stats();
    let (reads, writes) = (&now.reads, &now.writes);
    assert_eq!((writes.done, writes.failed, writes.bytes), (0, 1, 1));
    assert_eq!(writes.latency.buckets[10], 1);
    assert_eq!((reads.done - stats.reads.done, reads.failed), (1, 0), "no object is an answer");
    assert_eq!((now.resent, now.sessions_lost), (1, 1));
    assert_eq!(now.sessions_opened - stats.sessions_opened, 1);
}
