//! Sessions that open and break, and answers that come too late.

use super::*;
use crate::msg::osd_op::{Redirect, flag};

#[test]
fn an_operation_goes_to_the_primary_and_its_answer_comes_back() {
    let mut world = World::new();
    let tid = world.write(5, &object_in(1));
    assert_eq!(world.actions(), [open_action(1, 1)]);
    world.sent_nothing();
    world.open(1);
    let sent = world.sent_one();
    assert_eq!((sent.osd, sent.tid, sent.attempt), (1, tid, 0));
    assert_eq!((sent.pgid.pg, sent.epoch), (PG1, Epoch(1)));
    assert_eq!(sent.reqid, ReqId { client: client(), tid, incarnation: 0 });
    assert_eq!(sent.flags & (flag::WRITE | flag::RETRY), flag::WRITE);
    world.sent_nothing();
    world.answer(&sent, -17);
    assert_eq!(world.completed(), [(5, Ok(-17))]);
    assert_eq!(world.objecter.in_flight(), 0);
    // The session stays; there is nothing more to do.
    assert_eq!(world.actions(), []);
    world.write(6, &object_in(1));
    assert_eq!(world.sent_one().attempt, 0);
}

#[test]
fn a_session_is_asked_for_once() {
    let mut world = World::new();
    for user in 0..3 {
        world.read(user, &object_in(0));
    }
    assert_eq!(world.actions(), [open_action(0, 1)]);
}

#[test]
fn what_a_lost_session_had_is_sent_again_in_order_under_the_same_ids() {
    let mut world = World::connected();
    // Slots are reused from behind, so that order of slots is not order of submission.
    let mut names = objects_in(0);
    let first: Vec<_> = (0..4).map(|user| world.read(user, &names.next().unwrap())).collect();
    for tid in first {
        world.objecter.cancel(tid);
    }
    let users: Vec<_> = (10..15).collect();
    let tids: Vec<_> = users.iter().map(|user| world.write(*user, &object_in(0))).collect();
    let other = world.write(20, &object_in(1));
    let before = world.sent();
    assert_eq!(before.len(), 6);

    world.lose(0);
    assert_eq!(world.actions(), [open_action(0, 1), Action::WantMap { start: Epoch(2) }]);
    world.sent_nothing();
    let late = world.write(30, &object_in(0));
    world.sent_nothing();
    world.open(0);
    let after = world.sent();
    let order: Vec<_> = after.iter().map(|sent| sent.tid).collect();
    assert_eq!(order, [tids, vec![late]].concat(), "submission order, and nobody else's");
    assert!(!order.contains(&other));
    for (before, after) in before.iter().zip(&after).take(5) {
        assert_eq!((before.reqid, before.attempt, after.attempt), (after.reqid, 0, 1));
        assert_eq!(after.flags, before.flags | flag::RETRY);
    }
    let late = after.last().unwrap();
    assert_eq!((late.attempt, late.flags & flag::RETRY), (0, 0), "its first time");
}

#[test]
fn a_lost_session_that_nobody_needs_is_not_asked_for() {
    let mut world = World::connected();
    world.lose(0);
    assert_eq!(world.actions(), []);
    // The next operation asks.
    world.read(1, &object_in(0));
    assert_eq!(world.actions(), [open_action(0, 1)]);
}

#[test]
fn stale_answers_are_ignored() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let first = world.sent_one();
    world.lose(0);
    // While it waits for a session.
    world.answer(&first, 0);
    world.open(0);
    let second = world.sent_one();
    // To the first attempt.
    world.answer(&first, 0);
    // From somebody else.
    world.answer(&Sent { osd: 1, ..second.clone() }, 0);
    // To nothing that was ever sent.
    world.answer(&Sent { tid: Tid(first.tid.0 + (1 << 20)), ..second.clone() }, 0);
    world.answer(&Sent { tid: Tid(u64::MAX), ..second.clone() }, 0);
    assert_eq!(world.completed(), []);
    world.answer(&second, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
    // Twice.
    world.answer(&second, 0);
    assert_eq!(world.completed(), []);
}

#[test]
fn an_answer_to_the_slots_former_owner_is_ignored() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let former = world.sent_one();
    assert_eq!(world.objecter.cancel(former.tid), Some(1));
    world.write(2, &object_in(0));
    let present = world.sent_one();
    assert_eq!(former.tid.0 & 0xf_ffff, present.tid.0 & 0xf_ffff, "the same slot");
    assert!(former.tid < present.tid);
    world.answer(&former, 0);
    assert_eq!(world.completed(), []);
    world.answer(&present, 0);
    assert_eq!(world.completed(), [(2, Ok(0))]);
}

#[test]
fn answers_of_osds_that_do_not_say_the_attempt_count() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let sent = world.sent_one();
    world.answer(&Sent { attempt: -1, ..sent }, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn a_redirected_operation_goes_where_it_was_told() {
    let mut world = World::connected();
    world.read(1, &object_in(0));
    let sent = world.sent_one();
    let redirect = Redirect { locator: Locator::of_pool(POOL), object: object_in(1) };
    let reply = Reply { redirect: Some(redirect), ..reply_to(&sent, -2) };
    world.objecter.handle_reply(world.now, OsdId(0), reply);
    assert_eq!(world.completed(), []);
    let again = world.sent_one();
    assert_eq!((again.osd, again.object.as_str()), (1, object_in(1).as_str()));
    let expected = flag::REDIRECTED | flag::IGNORE_OVERLAY;
    assert_eq!(again.flags & expected, expected);
    world.answer(&again, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn a_replica_that_cannot_answer_yet_is_not_asked_again() {
    let mut world = World::connected();
    let read = Op::Read { offset: 0, length: 1 };
    world.submit(1, &object_in(0), read, flag::BALANCE_READS);
    let sent = world.sent_one();
    assert_ne!(sent.flags & flag::BALANCE_READS, 0);
    world.answer(&sent, -11);
    assert_eq!(world.completed(), []);
    let again = world.sent_one();
    assert_eq!(again.flags & flag::BALANCE_READS, 0);
    // The primary is asked until it answers, as librados does.
    world.answer(&again, -11);
    assert_eq!(world.completed(), []);
    let last = world.sent_one();
    assert_eq!((last.osd, last.attempt), (0, 2));
    world.answer(&last, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}
