//! New maps: what is sent again, and what must not be.

use super::*;
use crate::msg::osd_op::flag;
use crate::osdmap::ApplyError;

use super::super::MapError;

#[test]
fn without_a_map_everything_waits() {
    let mut world = World::blank();
    assert_eq!(world.actions(), [Action::WantMap { start: Epoch(0) }]);
    world.read(1, &object_in(0));
    assert_eq!(world.actions(), []);
    world.give_full();
    assert_eq!(world.actions(), [open_action(0, 1)]);
}

#[test]
fn a_new_primary_gets_it() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let before = world.sent_one();
    world.acting(PG0, &[1, 0]);
    let after = world.sent_one();
    assert_eq!((before.osd, after.osd), (0, 1));
    assert_eq!((after.reqid, after.attempt, after.epoch), (before.reqid, 1, Epoch(2)));
    world.answer(&before, 0);
    assert_eq!(world.completed(), []);
    world.answer(&after, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn a_new_interval_of_the_same_primary_drops_it() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.write(2, &object_in(1));
    world.sent();
    world.acting(PG0, &[0, 2]);
    let again = world.sent_one();
    assert_eq!((again.osd, again.attempt, again.pgid.pg), (0, 1, PG0));
    assert_ne!(again.flags & flag::RETRY, 0);
}

#[test]
fn a_forced_resend_of_the_pool_is_heeded() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.sent();
    world.pool(|pool| pool.last_force_op_resend = Epoch(2));
    assert_eq!(world.sent_one().attempt, 1);
    // A merge that begins or is called off likewise.
    world.pool(|pool| pool.pg_num_pending = 2);
    assert_eq!(world.sent_one().attempt, 2);
}

#[test]
fn changes_elsewhere_move_nothing() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let sent = world.sent_one();
    world.acting(PG1, &[2, 1]);
    world.osd_down(2);
    world.osd_up(2, 2);
    world.change(|inc| inc.pools.insert(PoolId(2), Pool::new(PoolKind::Replicated)));
    world.pool(|pool| pool.snap_seq = crate::types::SnapId(3));
    world.sent_nothing();
    world.answer(&sent, 0);
    assert_eq!(world.completed(), [(1, Ok(0))]);
}

#[test]
fn a_change_and_its_reversal_in_one_message_count() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.sent();
    let there = world.make(|inc| inc.pg_temp.insert(PG0, osds(&[0, 2])));
    let back = world.make(|inc| inc.pg_temp.insert(PG0, osds(&[0, 1])));
    world.give([there, back].into(), BTreeMap::new()).unwrap();
    assert_eq!(world.sent_one().attempt, 1);
}

#[test]
fn after_skipped_epochs_everything_is_sent_again() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.write(2, &object_in(1));
    assert_eq!(world.sent().len(), 2);
    for _ in 0..3 {
        world.make(|_| ());
    }
    world.give_full();
    let again = world.sent();
    assert_eq!(again.iter().map(|sent| sent.attempt).collect::<Vec<_>>(), [1, 1]);
    assert!(again[0].tid < again[1].tid);
    assert_eq!(again[0].epoch, Epoch(4));
    // The next one as a whole skips nothing.
    world.make(|_| ());
    world.give_full();
    world.sent_nothing();
}

#[test]
fn missing_epochs_are_asked_for() {
    let mut world = World::connected();
    let second = world.make(|_| ());
    let third = world.make(|_| ());
    assert_eq!(world.give([third.clone()].into(), BTreeMap::new()), Ok(false));
    assert_eq!(world.actions(), [Action::WantMap { start: Epoch(2) }]);
    // Not again before something came.
    world.lose(0);
    world.read(1, &object_in(0));
    assert_eq!(world.actions(), [open_action(0, 1)]);
    assert_eq!(world.give([second, third].into(), BTreeMap::new()), Ok(true));
    assert_eq!(world.objecter.map().unwrap().epoch, Epoch(3));
    // What is old is not news.
    let old = [(Epoch(3), world.map.encode(features::SUPPORTED))].into();
    assert_eq!(world.give(BTreeMap::new(), old), Ok(false));
    assert_eq!(world.actions(), []);
}

#[test]
fn whoever_waits_for_an_osd_wants_every_map() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.sent();
    world.lose(0);
    assert!(world.actions().contains(&Action::WantMap { start: Epoch(2) }));
    // That one has nothing to say about it.
    world.acting(PG1, &[2, 1]);
    assert_eq!(world.actions(), [Action::WantMap { start: Epoch(3) }]);
    world.osd_up(0, 2);
    assert_eq!(world.actions(), [Action::Close { osd: OsdId(0) }, open_action(0, 2)]);
    world.open(0);
    world.sent_one();
    world.change(|_| ());
    assert_eq!(world.actions(), []);
}

#[test]
fn an_osd_that_is_gone_is_left_and_its_operations_wait() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    let before = world.sent_one();
    let both_down = |inc: &mut Incremental| {
        inc.state = [(OsdId(0), osd_state::UP), (OsdId(1), osd_state::UP)].into();
    };
    world.change(both_down);
    let actions = world.actions();
    assert!(actions.starts_with(&[
        Action::Close { osd: OsdId(0) },
        Action::Close { osd: OsdId(1) },
        Action::WantMap { start: Epoch(3) }
    ]));
    world.sent_nothing();
    world.answer(&before, 0);
    assert_eq!(world.completed(), [], "it may not have told its replica");
    // It comes back, at the same address but another instance.
    world.osd_up(0, 2);
    assert_eq!(world.actions(), [open_action(0, 2)]);
    world.open(0);
    assert_eq!(world.sent_one().attempt, 1);
}

#[test]
fn an_osd_at_another_address_is_another_osd() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.sent();
    world.osd_up(0, 2);
    assert_eq!(world.actions(), [Action::Close { osd: OsdId(0) }, open_action(0, 2)]);
    // The driver's news of the old connection's end may come late; it must not matter.
    world.sent_nothing();
    world.open(0);
    let again = world.sent_one();
    assert_eq!((again.osd, again.attempt), (0, 1));
}

#[test]
fn an_unknown_pool_is_looked_for_in_the_newest_map() {
    let mut world = World::new();
    let second = PoolId(2);
    let operation = Operation::new(Locator::of_pool(second), "o", vec![Op::Stat.into()]);
    world.objecter.submit(world.now, operation.clone(), 1);
    assert_eq!(world.actions(), [Action::WantNewestEpoch]);
    // It is asked once for all.
    world.objecter.submit(world.now, operation.clone(), 2);
    assert_eq!(world.actions(), []);
    // There is a newer map, so it may yet be there.
    world.objecter.handle_newest_epoch(world.now, Epoch(2));
    assert_eq!(world.actions(), [Action::WantMap { start: Epoch(2) }]);
    assert_eq!(world.completed(), []);
    world.change(|inc| {
        inc.pools.insert(second, Pool::new(PoolKind::Replicated));
        let pg = PgId { pool: second, seed: 0 };
        inc.pg_temp.insert(pg, osds(&[2]));
    });
    assert_eq!(world.actions(), [open_action(2, 1)]);
    world.open(2);
    assert_eq!(world.sent().len(), 2);
    // The pool goes: what is in flight ends, once it is sure that there is no newer map.
    world.change(|inc| inc.old_pools.insert(second));
    assert_eq!(world.completed(), []);
    assert!(world.actions().contains(&Action::WantNewestEpoch));
    world.objecter.handle_newest_epoch(world.now, Epoch(3));
    let gone = Err(OpError::NoPool(second));
    assert_eq!(world.completed(), [(1, gone), (2, gone)]);
    // Later ones learn it the same way.
    world.objecter.submit(world.now, operation, 3);
    assert_eq!(world.completed(), []);
    world.objecter.handle_newest_epoch(world.now, Epoch(3));
    assert_eq!(world.completed(), [(3, gone)]);
}

#[test]
fn a_blocklisted_client_never_sends_again() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.write(2, &object_in(1));
    world.sent();
    let entry = EntityAddr { kind: crate::types::AddrType::ANY, ..our_addr() };
    world.change(|inc| inc.blocklist.insert(entry, Default::default()));
    let fenced = Err(OpError::Blocklisted);
    assert_eq!(world.completed(), [(1, fenced), (2, fenced)]);
    world.write(3, &object_in(0));
    world.read(4, &object_in(0));
    assert_eq!(world.completed(), [(3, fenced), (4, fenced)]);
    // Not even when the entry expires.
    world.change(|inc| inc.old_blocklist.push(entry));
    world.write(5, &object_in(0));
    assert_eq!(world.completed(), [(5, fenced)]);
    world.sent_nothing();
    assert_eq!(world.objecter.in_flight(), 0);
}

#[test]
fn an_identity_that_is_blocklisted_already_is_found_out() {
    let mut world = World::blank();
    let ours = EntityAddr { nonce: 8, ..our_addr() };
    let entry = EntityAddr { kind: crate::types::AddrType::ANY, ..ours };
    world.make(|inc| inc.blocklist.insert(entry, Default::default()));
    world.give_full();
    world.write(1, &object_in(0));
    assert_eq!(world.completed(), []);
    world.objecter.set_identity(Instant::default(), CLIENT as u64, ours);
    assert_eq!(world.completed(), [(1, Err(OpError::Blocklisted))]);
}

#[test]
fn maps_that_lie_are_refused_and_the_old_one_is_kept() {
    let mut world = World::connected();
    world.write(1, &object_in(0));
    world.sent();
    let good = world.map.clone();
    // Not a map at all.
    let garbage = [(Epoch(2), Bytes::from_static(b"garbage"))];
    for (incremental, full) in
        [(garbage.clone().into(), BTreeMap::new()), (BTreeMap::new(), garbage.into())]
    {
        let refused = world.give(incremental, full);
        assert!(matches!(refused, Err(MapError::Decode { epoch: Epoch(2), .. })), "{refused:?}");
    }
    // A whole map of another epoch than announced: taken at its word, it would be applied for ever.
    let whole = good.encode(features::SUPPORTED);
    let refused = world.give(BTreeMap::new(), [(Epoch(9), whole.clone())].into());
    assert!(matches!(refused, Err(MapError::Mistaken { said: Epoch(9), is: Epoch(1), .. })));
    // The same inside a change.
    let mut inc = Incremental::after(&good);
    inc.full_map = whole;
    let bytes = inc.encode(features::SUPPORTED);
    let refused = world.give([(Epoch(2), bytes)].into(), BTreeMap::new());
    let gap = ApplyError::Gap { from: Epoch(1), to: Epoch(1) };
    assert_eq!(refused, Err(MapError::Apply(gap)));
    // A change to another epoch than announced.
    inc = Incremental { epoch: Epoch(5), ..Incremental::after(&good) };
    let bytes = inc.encode(features::SUPPORTED);
    let refused = world.give([(Epoch(2), bytes)].into(), BTreeMap::new());
    assert!(matches!(refused, Err(MapError::Apply(ApplyError::Gap { .. }))));
    // Another cluster's.
    let mut other = OsdMap::default();
    for _ in 0..3 {
        let inc = Incremental { fsid: Fsid([8; 16]), ..Incremental::after(&other) };
        other.apply(&inc).unwrap();
    }
    let whole = [(Epoch(3), other.encode(features::SUPPORTED))];
    let refused = world.give(BTreeMap::new(), whole.into());
    assert!(matches!(refused, Err(MapError::Mistaken { .. })), "{refused:?}");

    assert_eq!(*world.objecter.map().unwrap(), good);
    world.sent_nothing();
    world.acting(PG0, &[0, 2]);
    assert_eq!(world.sent_one().attempt, 1, "and goes on from there");
}

#[test]
fn the_last_epoch_of_all_is_no_loop() {
    let mut world = World::connected();
    let mut bytes = world.map.encode(features::SUPPORTED);
    for epoch in [u32::MAX - 1, u32::MAX] {
        let mut map = OsdMap::default();
        let inc = Incremental { full_map: bytes, ..Incremental::after(&map) };
        assert!(map.apply(&inc).is_ok(), "the test's own map");
        map = set_epoch(&map, epoch);
        bytes = map.encode(features::SUPPORTED);
        world.map = map;
        world.give(BTreeMap::new(), [(Epoch(epoch), bytes.clone())].into()).unwrap();
        bytes = first_map().encode(features::SUPPORTED);
    }
    world.read(1, &object_in(0));
    world.lose(0);
    assert!(world.actions().contains(&Action::WantMap { start: Epoch(u32::MAX) }));
}

/// The same map under another number: there is no other way than to write it into the bytes.
fn set_epoch(map: &OsdMap, epoch: u32) -> OsdMap {
    let mut bytes = map.encode(features::SUPPORTED).to_vec();
    // Wrapper (6), client section's envelope (6), fsid (16), epoch.
    bytes[28..32].copy_from_slice(&epoch.to_le_bytes());
    let Err(crate::denc::DecodeError::Checksum { computed, expected, .. }) = OsdMap::decode(&bytes)
    else {
        panic!("the checksum must not fit any more");
    };
    let at = bytes.windows(4).rposition(|w| w == expected.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&computed.to_le_bytes());
    OsdMap::decode(&bytes).unwrap()
}
