//! How much is in flight, and what each OSD has of it.

use super::*;
use crate::limits;
use crate::types::AddrType;

const MIB: usize = 1 << 20;

fn write_of(world: &mut World, user: u32, object: &str, bytes: usize) -> Tid {
    let data = Bytes::from(vec![0; bytes]);
    world.submit(user, object, Op::Write { offset: 0, data }, 0)
}

fn session(world: &World, osd: i32) -> super::super::SessionStatus {
    world.objecter.sessions().find(|session| session.osd == OsdId(osd)).unwrap()
}

#[test]
fn there_is_room_until_there_are_as_many_operations_or_bytes_as_the_limits_say() {
    let mut world = World::connected();
    world.objecter.set_limits(3, 10_000_000);
    for user in 0..3 {
        assert!(world.objecter.has_room());
        world.read(user, &object_in(0));
    }
    assert!(!world.objecter.has_room());
    // Nothing is refused that is submitted nevertheless.
    world.read(3, &object_in(0));
    let sent = world.sent();
    assert_eq!(sent.len(), 4);
    world.answer(&sent[0], 0);
    assert!(!world.objecter.has_room());
    world.answer(&sent[1], 0);
    assert!(world.objecter.has_room());

    world.objecter.set_limits(1000, 5000);
    write_of(&mut world, 4, &object_in(1), 4998);
    assert_eq!(world.objecter.bytes_in_flight(), 5000);
    assert!(!world.objecter.has_room());
    let write = world.sent_one();
    world.answer(&write, -28);
    assert_eq!(world.objecter.bytes_in_flight(), 2);
    assert!(world.objecter.has_room());
}

#[test]
fn every_way_out_of_the_table_makes_room() {
    type End = fn(&mut World, Tid);
    let ends: [End; 5] = [
        |world, tid| assert!(world.objecter.cancel(tid).is_some()),
        |world, _| world.objecter.handle_timeout(Instant(Duration::from_secs(5))),
        |world, _| {
            world.change(|inc| inc.old_pools.insert(POOL));
            world.objecter.handle_newest_epoch(world.now, world.map.epoch);
        },
        |world, _| {
            let entry = EntityAddr { kind: AddrType::ANY, ..our_addr() };
            world.change(|inc| inc.blocklist.insert(entry, Default::default()));
        },
        |world, _| {
            let sent = world.sent_one();
            world.answer(&sent, 0);
        },
    ];
    for (i, end) in ends.into_iter().enumerate() {
        let mut world = World::with_timeout(Some(Duration::from_secs(5)));
        world.give_full();
        let tid = write_of(&mut world, 1, &object_in(0), 100);
        world.open(0);
        assert_eq!(world.objecter.bytes_in_flight(), 100);
        end(&mut world, tid);
        assert_eq!((world.objecter.in_flight(), world.objecter.bytes_in_flight()), (0, 0), "{i}");
    }
}

#[test]
fn an_osd_has_so_many_bytes_at_once_and_the_rest_in_order() {
    let mut world = World::connected();
    let tids: Vec<_> = (0..40).map(|user| write_of(&mut world, user, &object_in(0), MIB)).collect();
    // Another OSD does not wait for it.
    let other = write_of(&mut world, 99, &object_in(1), MIB);
    let mut sent = world.sent();
    let at = |sent: &[Sent], osd| -> Vec<_> {
        sent.iter().filter(|sent| sent.osd == osd).map(|sent| sent.tid).collect()
    };
    assert_eq!(at(&sent, 0), tids[..16]);
    assert_eq!(at(&sent, 1), [other]);
    let status = session(&world, 0);
    assert_eq!((status.ops, status.bytes, status.waiting), (16, limits::SESSION_BYTES, 24));
    let slow = world.objecter.slow_ops(world.now, Duration::ZERO);
    assert_eq!(slow[20].waits_for, "the OSD to take more");
    // What comes later on the same object stays behind.
    let late = world.read(100, &object_in(0));
    world.sent_nothing();
    let mut order = at(&sent, 0);
    while let Some(one) = sent.pop() {
        world.answer(&one, 0);
        let more = world.sent();
        order.extend(at(&more, 0));
        assert!(session(&world, 0).bytes <= limits::SESSION_BYTES);
        sent.extend(more);
    }
    assert_eq!(order, [tids, vec![late]].concat());
    assert_eq!((world.objecter.in_flight(), session(&world, 0).bytes), (0, 0));
}

#[test]
fn one_operation_of_any_size_goes() {
    let mut world = World::connected();
    let size = 2 * limits::SESSION_BYTES as usize;
    let first = write_of(&mut world, 1, &object_in(0), size);
    let second = write_of(&mut world, 2, &object_in(0), 1);
    let sent = world.sent_one();
    assert_eq!(sent.tid, first);
    world.answer(&sent, 0);
    assert_eq!(world.sent_one().tid, second);
}

#[test]
fn what_waits_survives_a_lost_session_and_a_move() {
    let mut world = World::connected();
    let tids: Vec<_> = (0..20).map(|user| write_of(&mut world, user, &object_in(0), MIB)).collect();
    assert_eq!(world.sent().len(), 16);
    world.lose(0);
    world.open(0);
    let again: Vec<_> = world.sent().into_iter().map(|sent| (sent.tid, sent.attempt)).collect();
    assert_eq!(again, tids[..16].iter().map(|tid| (*tid, 1)).collect::<Vec<_>>());
    assert_eq!(session(&world, 0).waiting, 4);
    // All of it goes elsewhere, from the first on.
    world.acting(PG0, &[1, 0]);
    let moved: Vec<_> = world.sent().into_iter().map(|sent| (sent.osd, sent.tid)).collect();
    assert_eq!(moved, tids[..16].iter().map(|tid| (1, *tid)).collect::<Vec<_>>());
    // What was counted there is not forgotten here.
    assert_eq!((session(&world, 0).ops, session(&world, 0).bytes), (0, 0));
    assert_eq!(session(&world, 1).waiting, 4);
}

#[test]
fn what_waits_heeds_a_backoff_that_comes_meanwhile() {
    use crate::msg::backoff::{Backoff, BackoffOp};
    use crate::msg::object::HObject;

    let mut world = World::connected();
    let tids: Vec<_> = (0..17).map(|user| write_of(&mut world, user, &object_in(0), MIB)).collect();
    let sent = world.sent();
    let backoff = Backoff {
        op: BackoffOp::Block,
        pgid: sent[0].pgid,
        epoch: world.map.epoch,
        id: 1,
        begin: HObject::min(),
        end: HObject::max(),
    };
    world.objecter.handle_backoff(OsdId(0), backoff.clone());
    world.answer(&sent[0], 0);
    world.sent_nothing();
    world.objecter.handle_backoff(OsdId(0), Backoff { op: BackoffOp::Unblock, ..backoff });
    let after: Vec<_> = world.sent().into_iter().map(|sent| sent.tid).collect();
    assert_eq!(after, tids[1..], "all of them, in order");
}

#[test]
fn a_session_that_nobody_uses_is_closed_and_one_that_is_used_is_not() {
    let mut world = World::connected();
    let minutes = |n: u64| Instant(Duration::from_secs(60 * n));
    let closes = |world: &mut World, now| -> Vec<_> {
        world.now = now;
        world.objecter.handle_tick(now);
        world
            .actions()
            .into_iter()
            .filter(|action| matches!(action, Action::Close { .. }))
            .collect()
    };
    assert_eq!(closes(&mut world, minutes(1)), [], "used since the beginning");
    // One that waits for an answer is in use, however long it takes.
    world.read(1, &object_in(0));
    let sent = world.sent_one();
    let close = |osd| Action::Close { osd: OsdId(osd) };
    assert_eq!(closes(&mut world, minutes(2)), [close(1)]);
    assert_eq!(closes(&mut world, minutes(3)), []);
    world.answer(&sent, 0);
    assert_eq!(closes(&mut world, minutes(4)), [close(0)]);
    assert_eq!(world.objecter.poll_tick(), None, "and then there is no timer left");
    // The next operation opens one again.
    world.write(2, &object_in(0));
    assert_eq!(world.actions(), [open_action(0, 1)]);
    world.open(0);
    assert_eq!(world.sent().len(), 1);
}
