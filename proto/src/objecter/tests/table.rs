//! The table itself: timeouts, cancelling, slots.

use super::*;
use crate::limits;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_operation_ends_after_its_time() {
    let mut world = World::with_timeout(Some(5 * SECOND));
    world.give_full();
    assert_eq!(world.objecter.poll_timeout(), None);
    world.write(1, &object_in(0));
    world.now = world.now + 2 * SECOND;
    world.write(2, &object_in(0));
    world.open(0);
    let sent = world.sent();
    let at = |seconds| Instant(seconds * SECOND);
    assert_eq!(world.objecter.poll_timeout(), Some(at(5)));
    world.objecter.handle_timeout(at(4));
    assert_eq!(world.completed(), []);
    world.objecter.handle_timeout(at(5));
    let timed_out = Err(OpError::TimedOut(5 * SECOND));
    assert_eq!(world.completed(), [(1, timed_out)]);
    world.answer(&sent[0], 0);
    assert_eq!(world.completed(), [], "its answer comes too late");
    assert_eq!(world.objecter.poll_timeout(), Some(at(7)));
    world.answer(&sent[1], 0);
    assert_eq!(world.completed(), [(2, Ok(0))]);
    world.objecter.handle_timeout(at(7));
    assert_eq!((world.completed(), world.objecter.poll_timeout()), (vec![], None));
}

#[test]
fn without_a_timeout_there_is_no_timer() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    assert_eq!(world.objecter.poll_timeout(), None);
    world.objecter.handle_timeout(Instant(1_000_000 * SECOND));
    assert_eq!(world.completed(), []);
}

#[test]
fn a_timeout_holds_for_what_is_under_way() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let at = |seconds| Some(Instant(seconds * SECOND));
    for (timeout, due) in [(Some(9 * SECOND), at(9)), (Some(5 * SECOND), at(5)), (None, None)] {
        world.objecter.set_timeout(timeout);
        assert_eq!(world.objecter.poll_timeout(), due);
    }
    world.objecter.handle_timeout(Instant(6 * SECOND));
    assert_eq!(world.completed(), []);
    world.objecter.set_timeout(Some(5 * SECOND));
    world.objecter.handle_timeout(Instant(6 * SECOND));
    assert_eq!(world.completed(), [(1, Err(OpError::TimedOut(5 * SECOND)))]);
}

#[test]
fn a_cancelled_operation_is_neither_sent_nor_answered() {
    let mut world = World::connected();
    let queued = world.write(1, &object_in(0));
    assert_eq!(world.objecter.cancel(queued), Some(1));
    world.sent_nothing();
    let tid = world.write(2, &object_in(0));
    let sent = world.sent_one();
    assert_eq!(world.objecter.cancel(queued), None, "that slot is somebody else's now");
    assert_eq!(world.objecter.cancel(tid), Some(2));
    assert_eq!(world.objecter.cancel(tid), None);
    world.answer(&sent, 0);
    world.lose(0);
    world.open(0);
    world.sent_nothing();
    assert_eq!((world.completed(), world.objecter.in_flight()), (vec![], 0));
}

#[test]
fn slots_come_back_and_tids_ascend_past_the_slots_bits() {
    let mut world = World::connected();
    let mut last = Tid(0);
    for _ in 0..5000 {
        let tid = world.read(1, &object_in(0));
        assert!(tid > last);
        last = tid;
        let sent = world.sent_one();
        world.answer(&sent, 0);
        assert_eq!(world.completed(), [(1, Ok(0))]);
    }
    assert!(last.0 > 5000 << 20, "{last}");
}

#[test]
fn the_table_is_bounded() {
    let mut world = World::blank();
    let mut tids = std::collections::BTreeSet::new();
    for _ in 0..limits::OPS_IN_FLIGHT {
        tids.insert(world.read(1, ""));
    }
    assert_eq!(tids.len(), limits::OPS_IN_FLIGHT);
    assert_eq!(world.completed(), []);
    let refused = world.read(2, "");
    assert_eq!(world.completed(), [(2, Err(OpError::TooMany))]);
    assert_eq!(world.objecter.cancel(refused), None);
    let some = *tids.iter().nth(4711).unwrap();
    assert_eq!(world.objecter.cancel(some), Some(1));
    let accepted = world.read(3, "");
    assert_eq!(world.objecter.cancel(accepted), Some(3));
    assert_eq!(world.completed(), []);
}

#[test]
fn slow_operations_are_told_oldest_first_with_what_they_wait_for() {
    let mut world = World::new();
    world.read(1, &object_in(1));
    world.now = world.now + SECOND;
    world.read(2, &object_in(0));
    world.open(0);
    world.sent();
    let report = |world: &World, age| -> Vec<_> {
        let slow = world.objecter.slow_ops(world.now, age);
        slow.into_iter().map(|op| (op.osd.map(|osd| osd.0), op.age, op.waits_for)).collect()
    };
    let connection = (Some(1), SECOND, "a connection to the OSD");
    assert_eq!(
        report(&world, Duration::ZERO),
        [connection, (Some(0), Duration::ZERO, "the OSD's answer")]
    );
    assert_eq!(report(&world, SECOND), [connection]);
    world.osd_down(1);
    assert_eq!(report(&world, SECOND)[0].0, Some(2));
    world.osd_down(2);
    assert_eq!(report(&world, SECOND), [(None, SECOND, "the PG to have a primary OSD")]);
}
