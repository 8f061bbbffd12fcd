//! Paused and full clusters.

use super::*;
use crate::msg::osd_op::flag;
use crate::osdmap::{map_flag, pool_flag};

fn flags(world: &mut World, flags: u32) {
    world.change(|inc| inc.flags = Some(flags));
}

/// Objects of what is sent, in order.
fn objects(world: &mut World) -> Vec<String> {
    world.sent().into_iter().map(|sent| sent.object).collect()
}

#[test]
fn paused_reads_and_writes_wait_for_their_flag() {
    for (paused, read_waits, write_waits) in [
        (map_flag::PAUSERD, true, false),
        (map_flag::PAUSEWR, false, true),
        (map_flag::PAUSERD | map_flag::PAUSEWR, true, true),
    ] {
        let mut world = World::connected();
        flags(&mut world, paused);
        let mut names = objects_in(0);
        let (read, write) = (names.next().unwrap(), names.next().unwrap());
        world.read(1, &read);
        world.write(2, &write);
        let mut at_once = Vec::new();
        let mut later = Vec::new();
        for (waits, name) in [(read_waits, read), (write_waits, write)] {
            if waits { later.push(name) } else { at_once.push(name) }
        }
        assert_eq!(objects(&mut world), at_once, "{paused:#x}");
        let slow = world.objecter.slow_ops(world.now, Duration::ZERO);
        assert!(slow.iter().any(|op| op.waits_for.contains("unpaused")), "{slow:?}");
        flags(&mut world, 0);
        assert_eq!(objects(&mut world), later, "{paused:#x}");
    }
}

#[test]
fn whatever_is_submitted_during_a_pause_wants_to_hear_of_its_end() {
    let mut world = World::connected();
    flags(&mut world, map_flag::PAUSEWR);
    world.read(1, &object_in(0));
    assert_eq!(world.actions(), []);
    world.write(2, &object_in(0));
    assert_eq!(world.actions(), [Action::WantMap { start: Epoch(3) }]);
}

#[test]
fn what_was_sent_before_a_pause_is_not_taken_back() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let sent = world.sent_one();
    flags(&mut world, map_flag::PAUSEWR);
    world.answer(&sent, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn what_was_queued_before_a_pause_waits() {
    let mut world = World::new();
    world.write(1, &object_in(0));
    flags(&mut world, map_flag::PAUSEWR);
    world.open(0);
    world.sent_nothing();
    flags(&mut world, 0);
    assert_eq!(world.sent_one().attempt, 0);
}

#[test]
fn a_held_write_is_sent_in_its_turn() {
    let mut world = World::connected();
    flags(&mut world, map_flag::PAUSEWR);
    let tids: Vec<_> = (0..3).map(|user| world.write(user, &object_in(0))).collect();
    flags(&mut world, 0);
    let later = world.write(9, &object_in(0));
    let sent: Vec<_> = world.sent().into_iter().map(|sent| sent.tid).collect();
    assert_eq!(sent, [tids, vec![later]].concat());
}

#[test]
fn a_full_pool_holds_writes_except_those_that_ask_to_fail_or_make_room() {
    type Change = fn(&mut World);
    let pool_full: Change = |world| world.pool(|pool| pool.flags |= pool_flag::FULL);
    let pool_free: Change = |world| world.pool(|pool| pool.flags &= !pool_flag::FULL);
    let map_full: Change = |world| flags(world, map_flag::FULL);
    let map_free: Change = |world| flags(world, 0);
    for (full, free) in [(pool_full, pool_free), (map_full, map_free)] {
        let mut world = World::connected();
        full(&mut world);
        let write = || Op::Write { offset: 0, data: Bytes::new() };
        let mut names = objects_in(0);
        let mut name = || names.next().unwrap();
        let (plain, ordered, tries, forces, read) = (name(), name(), name(), name(), name());
        world.submit(1, &plain, write(), 0);
        world.submit(2, &ordered, Op::Stat, flag::RWORDERED);
        world.submit(3, &tries, write(), flag::FULL_TRY);
        world.submit(4, &forces, Op::Delete, flag::FULL_FORCE);
        world.read(5, &read);
        assert_eq!(objects(&mut world), [tries, forces, read]);
        free(&mut world);
        assert_eq!(objects(&mut world), [plain, ordered]);
    }
}

#[test]
fn writes_that_were_under_way_when_the_pool_filled_up_are_sent_again_when_there_is_space() {
    let mut world = World::connected();
    let mut names = objects_in(0);
    let mut name = || names.next().unwrap();
    let (write, tries, read) = (name(), name(), name());
    world.write(1, &write);
    let data = Bytes::new();
    world.submit(2, &tries, Op::Write { offset: 0, data }, flag::FULL_TRY);
    world.read(3, &read);
    let first = world.sent().remove(0);
    world.pool(|pool| pool.flags |= pool_flag::FULL);
    // It may be on its way to be carried out, so its answer still counts ...
    world.sent_nothing();
    world.pool(|pool| pool.snap_seq = crate::types::SnapId(1));
    world.sent_nothing();
    // ... or the OSD dropped it.
    world.pool(|pool| pool.flags &= !pool_flag::FULL);
    let again = world.sent_one();
    assert_eq!((again.object, again.attempt), (write, 1));
    world.answer(&first, 0);
    assert_eq!(world.completed(), []);
}
