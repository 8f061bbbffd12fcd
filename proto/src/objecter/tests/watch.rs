//! Watches: registered, confirmed, registered again, and lost.

use super::*;
use crate::msg::op::WatchOp;
use crate::msg::osd_op::flag;
use crate::msg::watch::{WatchNotify, event};
use crate::objecter::{WatchError, WatchEvent};
use crate::types::UTime;

const TIMEOUT: Duration = Duration::from_secs(30);
const MTIME: UTime = UTime { sec: 9, nsec: 8 };
const ENOTCONN: i32 = -107;

impl World {
    fn watch(&mut self, object: &str) -> u64 {
        self.objecter.watch(self.now, Locator::of_pool(POOL), object, TIMEOUT, MTIME)
    }

    /// A watch that is in effect, with nothing left to do.
    fn watching() -> (Self, u64) {
        let mut world = Self::connected();
        let cookie = world.watch(&object_in(0));
        let sent = world.sent_one();
        world.answer(&sent, 0);
        assert_eq!(world.events(), [(cookie, WatchEvent::Registered)]);
        (world, cookie)
    }

    fn events(&mut self) -> Vec<(u64, WatchEvent)> {
        std::iter::from_fn(|| self.objecter.poll_watch_event()).collect()
    }

    /// Lets time pass, as a driver does: timer by timer.
    fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        for _ in 0..1000 {
            match self.objecter.poll_timeout().filter(|due| *due <= until) {
                Some(due) => {
                    self.now = self.now.max(due);
                    self.objecter.handle_timeout(self.now);
                }
                None => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("a busy timer");
    }

    /// The only thing that is to be sent: a request about a watch.
    #[track_caller]
    fn sent_watch(&mut self, cookie: u64, op: WatchOp, generation: u32) -> Sent {
        let sent = self.sent_one();
        let expected = Op::Watch { cookie, op, generation, timeout_seconds: 30 };
        assert_eq!(sent.ops, [expected]);
        assert_ne!(sent.flags & flag::WRITE, 0);
        sent
    }

    fn tell(&mut self, cookie: u64, event: u8) {
        self.objecter.handle_watch_notify(WatchNotify {
            event,
            cookie,
            version: 0,
            notify_id: 77,
            payload: Bytes::from_static(b"news"),
            result: 0,
            notifier: 5,
            replies: Bytes::new(),
        });
    }
}

fn lost(cookie: u64, why: WatchError) -> [(u64, WatchEvent); 1] {
    [(cookie, WatchEvent::Lost(why))]
}

#[test]
fn a_watch_is_registered_and_notified() {
    let mut world = World::new();
    let cookie = world.watch(&object_in(0));
    assert_eq!(world.actions(), [open_action(0, 1)]);
    world.open(0);
    let sent = world.sent_watch(cookie, WatchOp::Watch, 0);
    assert_eq!((sent.osd, sent.object.as_str()), (0, object_in(0).as_str()));
    assert_eq!(world.events(), []);
    world.answer(&sent, 0);
    assert_eq!(world.events(), [(cookie, WatchEvent::Registered)]);
    world.tell(cookie, event::NOTIFY);
    let payload = Bytes::from_static(b"news");
    let notify = WatchEvent::Notify { id: 77, notifier: 5, payload };
    assert_eq!(world.events(), [(cookie, notify)]);
    // What is not for it.
    world.tell(cookie + 1, event::NOTIFY);
    world.tell(cookie, event::NOTIFY_COMPLETE);
    world.tell(cookie, 200);
    assert_eq!(world.events(), []);
    assert_eq!(world.completed(), [], "its requests are nobody else's business");
}

#[test]
fn cookies_are_unique() {
    let mut world = World::connected();
    let first = world.watch(&object_in(0));
    world.objecter.forget_watch(first);
    assert_ne!(first, world.watch(&object_in(0)));
}

#[test]
fn a_watch_is_asked_after_every_few_seconds_and_kept_by_the_answers() {
    let (mut world, cookie) = World::watching();
    for round in 1..=20 {
        assert_eq!(world.objecter.poll_timeout(), Some(world.now + Duration::from_secs(5)));
        world.pass(5);
        let ping = world.sent_watch(cookie, WatchOp::Ping, 0);
        assert_eq!(ping.attempt, 0, "round {round}");
        world.answer(&ping, 0);
    }
    assert_eq!(world.events(), []);
}

#[test]
fn a_watch_that_is_not_confirmed_any_more_is_lost() {
    let (mut world, cookie) = World::watching();
    world.pass(5);
    let ping = world.sent_watch(cookie, WatchOp::Ping, 0);
    world.answer(&ping, 0);
    // From here on silence: one ping stays out, no second one is sent.
    world.pass(5);
    let unanswered = world.sent_watch(cookie, WatchOp::Ping, 0);
    world.pass(24);
    world.sent_nothing();
    assert_eq!(world.events(), []);
    world.pass(1);
    assert_eq!(world.events(), lost(cookie, WatchError::Expired(TIMEOUT)), "30 s after the ping");
    world.answer(&unanswered, 0);
    assert_eq!((world.events(), world.objecter.poll_timeout()), (vec![], None));
    assert_eq!(world.objecter.in_flight(), 0);
}

#[test]
fn the_first_registration_waits_as_long_as_it_takes() {
    let mut world = World::new();
    let cookie = world.watch(&object_in(0));
    assert_eq!(world.objecter.poll_timeout(), None);
    world.pass(1000);
    world.open(0);
    let sent = world.sent_watch(cookie, WatchOp::Watch, 0);
    world.answer(&sent, 0);
    world.pass(4);
    assert_eq!(world.events(), [(cookie, WatchEvent::Registered)], "and counts from its answer");
}

#[test]
fn after_a_lost_session_it_reconnects_by_a_new_request() {
    let (mut world, cookie) = World::watching();
    world.pass(5);
    let ping = world.sent_watch(cookie, WatchOp::Ping, 0);
    world.lose(0);
    assert_eq!(world.actions(), [open_action(0, 1), Action::WantMap { start: Epoch(2) }]);
    // Whoever cannot be reached is not asked either.
    world.pass(6);
    world.sent_nothing();
    world.open(0);
    let first = world.sent_watch(cookie, WatchOp::Reconnect, 1);
    assert_eq!(first.attempt, 0);
    world.lose(0);
    world.open(0);
    let second = world.sent_watch(cookie, WatchOp::Reconnect, 2);
    assert_ne!(first.reqid, second.reqid, "else it would be taken for a repetition");
    world.answer(&ping, ENOTCONN);
    world.answer(&first, ENOTCONN);
    assert_eq!(world.events(), [], "late answers");
    world.answer(&second, 0);
    world.pass(5);
    let ping = world.sent_watch(cookie, WatchOp::Ping, 2);
    world.answer(&ping, 0);
    assert_eq!(world.events(), []);
}

#[test]
fn what_was_never_confirmed_is_registered_anew_not_reconnected() {
    let mut world = World::connected();
    let cookie = world.watch(&object_in(0));
    let first = world.sent_watch(cookie, WatchOp::Watch, 0);
    world.lose(0);
    world.open(0);
    let second = world.sent_watch(cookie, WatchOp::Watch, 0);
    assert_ne!(first.reqid, second.reqid);
    assert_eq!(second.attempt, 0);
}

#[test]
fn an_unreachable_osd_costs_one_request_however_often_it_is_called() {
    let (mut world, cookie) = World::watching();
    for _ in 0..5 {
        world.lose(0);
        assert_eq!(world.objecter.in_flight(), 1);
    }
    world.open(0);
    world.sent_watch(cookie, WatchOp::Reconnect, 1);
}

#[test]
fn a_reconnection_in_vain_is_a_loss() {
    for errno in [ENOTCONN, -2] {
        let (mut world, cookie) = World::watching();
        world.lose(0);
        world.open(0);
        let sent = world.sent_watch(cookie, WatchOp::Reconnect, 1);
        world.answer(&sent, errno);
        assert_eq!(world.events(), lost(cookie, WatchError::Refused(errno)));
        assert_eq!(world.objecter.in_flight(), 0);
        world.lose(0);
        world.open(0);
        world.sent_nothing();
    }
}

#[test]
fn a_reconnection_that_takes_too_long_is_a_loss() {
    let (mut world, cookie) = World::watching();
    world.lose(0);
    world.pass(29);
    assert_eq!(world.events(), []);
    world.pass(1);
    assert_eq!(world.events(), lost(cookie, WatchError::Expired(TIMEOUT)));
    world.open(0);
    world.sent_nothing();
}

#[test]
fn a_registration_that_is_refused_is_a_loss() {
    let mut world = World::connected();
    let cookie = world.watch(&object_in(0));
    let sent = world.sent_one();
    world.answer(&sent, -2);
    assert_eq!(world.events(), lost(cookie, WatchError::Refused(-2)));
}

#[test]
fn an_osd_can_drop_a_watch_by_message_or_by_answer() {
    let (mut world, cookie) = World::watching();
    world.tell(cookie, event::DISCONNECT);
    assert_eq!(world.events(), lost(cookie, WatchError::Dropped));
    world.tell(cookie, event::DISCONNECT);
    assert_eq!((world.events(), world.objecter.poll_timeout()), (vec![], None));

    let (mut world, cookie) = World::watching();
    world.pass(5);
    let ping = world.sent_one();
    world.answer(&ping, ENOTCONN);
    assert_eq!(world.events(), lost(cookie, WatchError::Refused(ENOTCONN)));
}

#[test]
fn it_follows_its_group() {
    let (mut world, cookie) = World::watching();
    // To another primary.
    world.acting(PG0, &[1, 0]);
    let sent = world.sent_watch(cookie, WatchOp::Reconnect, 1);
    assert_eq!(sent.osd, 1);
    // And on, before that was answered.
    world.acting(PG0, &[0, 1]);
    let sent = world.sent_watch(cookie, WatchOp::Reconnect, 2);
    assert_eq!((sent.osd, sent.attempt), (0, 0));
    world.answer(&sent, 0);
    // The same primary in a new interval forgets who is connected.
    world.acting(PG0, &[0, 2]);
    let sent = world.sent_watch(cookie, WatchOp::Reconnect, 3);
    world.answer(&sent, 0);
    // So may it where epochs were skipped.
    for _ in 0..2 {
        world.make(|_| ());
    }
    world.give_full();
    let sent = world.sent_watch(cookie, WatchOp::Reconnect, 4);
    world.answer(&sent, 0);
    // Changes elsewhere do not matter.
    world.acting(PG1, &[2, 1]);
    world.osd_down(1);
    world.sent_nothing();
    assert_eq!(world.events(), []);
}

#[test]
fn it_waits_for_its_osd_to_come_back() {
    let (mut world, cookie) = World::watching();
    world.change(|inc| {
        inc.state = (0..3).map(|osd| (OsdId(osd), osd_state::UP)).collect();
    });
    world.sent_nothing();
    world.actions();
    world.pass(10);
    world.osd_up(0, 2);
    assert_eq!(world.actions()[0], open_action(0, 2));
    world.open(0);
    let sent = world.sent_watch(cookie, WatchOp::Reconnect, 1);
    world.answer(&sent, 0);
    // At another address it is another one, even if it was never seen down.
    world.osd_up(0, 3);
    world.open(0);
    world.sent_watch(cookie, WatchOp::Reconnect, 2);
}

#[test]
fn a_full_pool_does_not_end_watches() {
    let (mut world, cookie) = World::watching();
    world.pool(|pool| pool.flags |= crate::osdmap::pool_flag::FULL);
    world.pass(5);
    world.sent_watch(cookie, WatchOp::Ping, 0);
}

#[test]
fn it_ends_with_its_pool_and_with_its_client() {
    let (mut world, cookie) = World::watching();
    world.change(|inc| inc.old_pools.insert(POOL));
    assert!(world.actions().contains(&Action::WantNewestEpoch));
    world.objecter.handle_newest_epoch(world.now, Epoch(2));
    let gone = OpError::NoPool(POOL);
    assert_eq!(world.events(), lost(cookie, WatchError::Op(gone)));

    let (mut world, cookie) = World::watching();
    let entry = EntityAddr { kind: crate::types::AddrType::ANY, ..our_addr() };
    world.change(|inc| inc.blocklist.insert(entry, Default::default()));
    let fenced = WatchError::Op(OpError::Blocklisted);
    assert_eq!(world.events(), lost(cookie, fenced));
    let next = world.watch(&object_in(0));
    assert_eq!(world.events(), lost(next, fenced));
    assert_eq!(world.objecter.poll_timeout(), None);
}

#[test]
fn a_forgotten_watch_is_silent() {
    let (mut world, cookie) = World::watching();
    world.pass(5);
    let ping = world.sent_one();
    world.objecter.forget_watch(cookie);
    assert_eq!((world.objecter.in_flight(), world.objecter.poll_timeout()), (0, None));
    world.answer(&ping, ENOTCONN);
    world.tell(cookie, event::NOTIFY);
    world.acting(PG0, &[1, 0]);
    world.sent_nothing();
    assert_eq!(world.events(), []);
}

#[test]
fn operations_that_time_out_leave_a_watch_alone_but_not_its_registration() {
    let mut world = World::with_timeout(Some(Duration::from_secs(2)));
    world.give_full();
    let cookie = world.watch(&object_in(0));
    world.open(0);
    let sent = world.sent_one();
    world.answer(&sent, 0);
    world.events();
    world.pass(5);
    world.sent_watch(cookie, WatchOp::Ping, 0);
    world.pass(5);
    let ping = world.sent_watch(cookie, WatchOp::Ping, 0);
    world.answer(&ping, 0);
    assert_eq!(world.events(), [], "the first ping timed out, the second was answered");
    world.lose(0);
    world.pass(2);
    let timed_out = OpError::TimedOut(Duration::from_secs(2));
    assert_eq!(world.events(), lost(cookie, WatchError::Op(timed_out)));
}
