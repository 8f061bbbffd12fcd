//! One OSD and some clients, message by message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::msg::object::{Locator, SnapContext, SpgId};
use proto::msg::op::{Op, OsdOp, WatchOp, op_flag};
use proto::msg::osd_op::{Operation, Reply, ReqId, Request, Routing, flag};
use proto::msg::watch::{NotifyAckInput, NotifyInput, WatchNotify, event};
use proto::msgr::Outgoing;
use proto::types::{AddrType, EntityAddr, PgId, PoolId, SnapId, Tid, UTime};

use super::map::{PoolView, Primary};
use super::*;
use crate::errno::*;
use crate::wire::{Action, ToPeer};

const POOL: PoolId = PoolId(1);

struct Zeros;

impl Entropy for Zeros {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

/// One OSD, the only one of a pool, and clients that talk to it.
struct Lab {
    osd: Osd,
    store: Store,
    map: MapView,
    history: MapHistory,
    actions: Actions,
    now: Now,
    tid: u64,
    /// The snapshots that writes preserve.
    snaps: SnapContext,
}

fn client(num: u64) -> Peer {
    let addr: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    let addr = EntityAddr { kind: AddrType::MSGR2, nonce: num as u32, addr: Some(addr) };
    Peer { name: EntityName { kind: EntityType::CLIENT, num: num as i64 }, addr }
}

fn lab() -> Lab {
    let mut osd = Osd::new(OsdId(0));
    for conn in 1..=3 {
        osd.connected(ConnId(conn), client(conn));
    }
    let primaries = vec![Primary { osd: Some(OsdId(0)), since: Epoch(1) }; 8];
    let pools = BTreeMap::from([(POOL, PoolView { primaries, full: None })]);
    Lab {
        osd,
        store: Store::new(false),
        map: MapView { epoch: Epoch(5), pools, blocklist: Vec::new() },
        history: MapHistory::default(),
        actions: Actions::default(),
        now: Now { instant: Instant::default(), wall: UTime { sec: 1000, nsec: 0 } },
        tid: 0,
        snaps: SnapContext::default(),
    }
}

fn encoded(outgoing: &dyn Outgoing) -> Message {
    let (mut front, mut data) = (BytesMut::new(), BytesMut::new());
    outgoing.encode_front(&mut front);
    outgoing.data(&mut |piece| data.extend_from_slice(piece));
    let (front, data) = (front.freeze(), data.freeze());
    Message { header: outgoing.header(), front, middle: Bytes::new(), data }
}

impl Lab {
    fn request(
        &self,
        object: &str,
        ops: Vec<Op>,
        snap: SnapId,
        flags: u32,
    ) -> (Routing, Operation) {
        let ops = ops.into_iter().map(OsdOp::from).collect();
        let mut operation = Operation::new(Locator::of_pool(POOL), object, ops);
        operation.snap = snap;
        operation.snap_context = Arc::new(self.snaps.clone());
        operation.mtime = UTime { sec: 77, nsec: 0 };
        operation.flags = flags;
        let routing = Routing {
            tid: Tid(self.tid),
            pgid: SpgId { pg: PgId { pool: POOL, seed: 3 }, shard: SpgId::NO_SHARD },
            hash: 0x1003,
            epoch: Epoch(5),
            flags: operation.all_flags(),
            reqid: ReqId {
                client: EntityName { kind: EntityType(0), num: 0 },
                tid: Tid(0),
                incarnation: 0,
            },
            attempt: 0,
            features: 0,
        };
        (routing, operation)
    }

    /// Sends what a client sends and returns what the OSD sends, and to whom.
    fn send(&mut self, conn: u64, routing: &Routing, operation: &Operation) -> Vec<(u64, Message)> {
        let message = encoded(&Request { routing, operation });
        let mut header = message.header;
        header.tid = routing.tid.0;
        let message = Message { header, ..message };
        self.act(|osd, now, shared| osd.handle_message(now, ConnId(conn), &message, shared))
    }

    fn act(&mut self, work: impl FnOnce(&mut Osd, Now, &mut Shared<'_>)) -> Vec<(u64, Message)> {
        let mut shared = Shared {
            map: &self.map,
            history: &self.history,
            store: &mut self.store,
            entropy: &mut Zeros,
            actions: &mut self.actions,
        };
        work(&mut self.osd, self.now, &mut shared);
        let sent = self.actions.0.drain(..).map(|action| match action {
            Action::Send(conn, ToPeer::Reply(reply)) => (conn.0, encoded(&reply)),
            Action::Send(conn, ToPeer::Other(message)) => (conn.0, encoded(&*message)),
            Action::Close(conn) => panic!("connection {conn:?} closed"),
        });
        sent.collect()
    }

    fn full(&mut self, conn: u64, object: &str, ops: Vec<Op>, snap: SnapId, flags: u32) -> Reply {
        self.tid += 1;
        let (routing, operation) = self.request(object, ops, snap, flags);
        let sent = self.send(conn, &routing, &operation);
        let reply = sent.iter().find(|(_, m)| m.header.kind == kind::OSD_OP_REPLY);
        Reply::decode(&reply.expect("a reply").1).unwrap()
    }

    fn run(&mut self, object: &str, ops: Vec<Op>) -> Reply {
        self.full(1, object, ops, SnapId::HEAD, 0)
    }

    fn result(&mut self, object: &str, ops: Vec<Op>) -> i32 {
        self.run(object, ops).result
    }

    fn read(&mut self, object: &str, snap: SnapId) -> Result<Bytes, i32> {
        let reply = self.full(1, object, vec![read(0, 0)], snap, 0);
        if reply.result < 0 { Err(-reply.result) } else { Ok(reply.ops[0].data.clone()) }
    }

    fn head(&mut self, object: &str) -> Result<Bytes, i32> {
        self.read(object, SnapId::HEAD)
    }
}

fn read(offset: u64, length: u64) -> Op {
    Op::Read { offset, length }
}

fn write(offset: u64, data: &'static str) -> Op {
    Op::Write { offset, data: data.into() }
}

fn set(key: &str, value: &'static str) -> Op {
    Op::OmapSetValues { values: BTreeMap::from([(key.to_owned(), value.into())]) }
}

#[test]
fn data_reads_back() {
    let mut lab = lab();
    assert_eq!(lab.head("o"), Err(ENOENT));
    assert_eq!(lab.result("o", vec![write(3, "abc")]), 0);
    assert_eq!(lab.head("o").unwrap(), "\0\0\0abc");
    assert_eq!(lab.result("o", vec![Op::Append { data: "de".into() }]), 0);
    assert_eq!(lab.result("o", vec![Op::Zero { offset: 4, length: 1 }]), 0);
    assert_eq!(lab.head("o").unwrap(), "\0\0\0a\0cde");
    assert_eq!(lab.result("o", vec![Op::Zero { offset: 6, length: 100 }]), 0);
    assert_eq!(lab.head("o").unwrap(), "\0\0\0a\0c", "zeros at the end make it shorter");
    assert_eq!(lab.result("o", vec![Op::Truncate { size: 8 }]), 0);
    let same = Op::WriteSame { offset: 8, length: 4, data: "xy".into() };
    assert_eq!(lab.result("o", vec![same]), 0);
    assert_eq!(lab.head("o").unwrap(), "\0\0\0a\0c\0\0xyxy");
    let sparse = lab.run("o", vec![Op::SparseRead { offset: 0, length: 100 }]);
    let (extents, data) = proto::msg::op::decode_sparse_read(&sparse.ops[0].data).unwrap();
    assert_eq!((extents, data), (vec![(3, 1), (5, 1), (8, 4)], Bytes::from("acxyxy")));
    assert_eq!(lab.result("o", vec![Op::WriteFull { data: "new".into() }]), 0);
    let stat = lab.run("o", vec![Op::Stat]);
    assert_eq!(stat.ops[0].data, &b"\x03\0\0\0\0\0\0\0\x4d\0\0\0\0\0\0\0"[..]);
    assert_eq!(lab.result("o", vec![Op::Delete]), 0);
    assert_eq!(lab.result("o", vec![Op::Delete]), -ENOENT);
    assert_eq!(lab.result("o", vec![write(MAX - 1, "ab")]), -EFBIG);
}

const MAX: u64 = context::MAX_OBJECT_BYTES;

#[test]
fn a_request_that_fails_changes_nothing() {
    let mut lab = lab();
    lab.run("o", vec![write(0, "old"), set("k", "v")]);
    let compare = Op::CompareExtent { offset: 0, data: "oLd".into() };
    let reply = lab.run("o", vec![write(0, "new"), set("k", "w"), compare.clone()]);
    assert_eq!(reply.result, -(MAX_ERRNO + 1));
    assert_eq!(reply.ops[2].result, -(MAX_ERRNO + 1));
    assert_eq!(lab.head("o").unwrap(), "old");
    let get = Op::OmapGetValuesByKeys { keys: vec!["k".into()] };
    assert_eq!(lab.run("o", vec![get]).ops[0].data, &b"\x01\0\0\0\x01\0\0\0k\x01\0\0\0v"[..]);

    // Unless the failure was said to be all right.
    let (routing, mut operation) =
        lab.request("o", vec![compare, write(0, "new")], SnapId::HEAD, 0);
    operation.ops[0].flags = op_flag::FAIL_OK;
    lab.tid += 1;
    let routing = Routing { tid: Tid(lab.tid), ..routing };
    let reply = Reply::decode(&lab.send(1, &routing, &operation)[0].1).unwrap();
    assert_eq!((reply.result, reply.ops[0].result), (0, -(MAX_ERRNO + 1)));
    assert_eq!(lab.head("o").unwrap(), "new");
}

#[test]
fn preconditions() {
    let mut lab = lab();
    assert_eq!(lab.result("o", vec![Op::Create { exclusive: true }]), 0);
    assert_eq!(lab.result("o", vec![Op::Create { exclusive: true }]), -EEXIST);
    assert_eq!(lab.result("o", vec![Op::Create { exclusive: false }]), 0);
    let version = lab.run("o", vec![write(0, "a")]).user_version;
    let assert = |version| vec![Op::AssertVersion { version }, write(0, "b")];
    assert_eq!(lab.result("o", assert(version - 1)), -ERANGE);
    assert_eq!(lab.result("o", assert(version + 1)), -EOVERFLOW);
    assert_eq!(lab.result("o", assert(version)), 0);
    assert_eq!(lab.run("o", vec![read(0, 1)]).user_version, version + 1);

    let name = || "x".to_owned();
    assert_eq!(lab.result("o", vec![Op::GetXattr { name: name() }]), -ENODATA);
    lab.run("o", vec![Op::SetXattr { name: name(), value: "7".into() }]);
    let compare = |value: &'static [u8], operator, mode| {
        vec![Op::CompareXattr { name: name(), value: value.into(), operator, mode }]
    };
    assert_eq!(lab.result("o", compare(b"7", 1, 1)), 1);
    assert_eq!(lab.result("o", compare(b"8", 1, 1)), -ECANCELED);
    assert_eq!(lab.result("o", compare(b"8", 3, 1)), 1, "8 > 7");
    assert_eq!(lab.result("o", compare(b"\x07\0\0\0\0\0\0\0", 1, 2)), 1);
    assert_eq!(lab.result("o", compare(b"\x06\0\0\0\0\0\0\0", 3, 2)), -ECANCELED);
    assert_eq!(lab.result("o", vec![Op::call("nothing", "such", Bytes::new())]), -EOPNOTSUPP);
    assert_eq!(lab.result("o", vec![Op::Unknown { code: 0x2299 }]), -EOPNOTSUPP);
    assert_eq!(lab.result("", vec![write(0, "a")]), -EINVAL);
    assert_eq!(lab.result(&"n".repeat(3000), vec![write(0, "a")]), -ENAMETOOLONG);
    lab.map.blocklist = vec![EntityAddr { kind: AddrType::ANY, ..client(1).addr }];
    assert_eq!(lab.result("o", vec![read(0, 0)]), -EBLOCKLISTED);
}

#[test]
fn keys_are_listed_in_pages() {
    let mut lab = lab();
    for key in ["a1", "b1", "b2", "b3", "c"] {
        lab.run("o", vec![set(key, "v")]);
    }
    let list = |after: &str, max, prefix: &str| {
        vec![Op::OmapGetValues { after: after.into(), max, prefix: prefix.into() }]
    };
    let keys = |reply: &Reply| {
        let mut r = proto::denc::Reader::new(&reply.ops[0].data, "values");
        let keys = r.list(8, |r| Ok((r.string()?, r.blob()?.len()))).unwrap();
        (keys.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), r.bool().unwrap())
    };
    assert_eq!(keys(&lab.run("o", list("", 2, "b"))), (vec!["b1".into(), "b2".into()], true));
    assert_eq!(keys(&lab.run("o", list("b2", 2, "b"))), (vec!["b3".into()], false));
    assert_eq!(keys(&lab.run("o", list("b2", 9, ""))), (vec!["b3".into(), "c".into()], false));
    let (from, to) = ("b".to_owned(), "b3".to_owned());
    lab.run("o", vec![Op::OmapRemoveRange { from, to }]);
    assert_eq!(keys(&lab.run("o", list("", 9, ""))).0, ["a1", "b3", "c"]);
    lab.run("o", vec![Op::OmapClear]);
    assert_eq!(keys(&lab.run("o", list("", 9, ""))), (vec![], false));
}

#[test]
fn a_resent_write_is_answered_but_not_applied_again() {
    let mut lab = lab();
    lab.tid = 1;
    let (routing, operation) =
        lab.request("o", vec![Op::Append { data: "x".into() }], SnapId::HEAD, 0);
    let first = Reply::decode(&lab.send(1, &routing, &operation)[0].1).unwrap();
    let again = Reply::decode(&lab.send(1, &routing, &operation)[0].1).unwrap();
    assert_eq!((again.result, again.user_version), (0, first.user_version));
    assert_eq!(again.version, first.version);
    // The same number from another client is another request.
    lab.send(2, &routing, &operation);
    assert_eq!(lab.head("o").unwrap(), "xx");

    // A failure is remembered too, although it would succeed by now.
    lab.tid = 50;
    let exclusive = vec![Op::Create { exclusive: true }];
    let (routing, operation) = lab.request("o", exclusive, SnapId::HEAD, 0);
    let results = |sent: Vec<(u64, Message)>| Reply::decode(&sent[0].1).unwrap().result;
    assert_eq!(results(lab.send(1, &routing, &operation)), -EEXIST);
    lab.run("o", vec![Op::Delete]);
    assert_eq!(results(lab.send(1, &routing, &operation)), -EEXIST);
}

#[test]
fn results_of_a_write_come_back_only_if_asked_for() {
    let mut lab = lab();
    lab.run("o", vec![write(0, "abc")]);
    let ops = || vec![read(0, 0), write(0, "x")];
    let reply = lab.full(1, "o", ops(), SnapId::HEAD, 0);
    assert!(reply.ops[0].data.is_empty());
    let reply = lab.full(1, "o", ops(), SnapId::HEAD, flag::RETURNVEC);
    assert_eq!(reply.ops[0].data, "xbc");
    assert_ne!(reply.flags & flag::ONDISK, 0);
}

#[test]
fn snapshots_keep_what_was() {
    let mut lab = lab();
    lab.run("o", vec![write(0, "one"), set("k", "1")]);
    lab.snaps = SnapContext { seq: SnapId(2), snaps: vec![SnapId(2)] };
    lab.run("o", vec![write(0, "two")]);
    lab.snaps = SnapContext { seq: SnapId(4), snaps: vec![SnapId(4), SnapId(3), SnapId(2)] };
    lab.run("o", vec![Op::Delete]);
    lab.run("late", vec![write(0, "late")]);
    assert_eq!(lab.head("o"), Err(ENOENT));
    assert_eq!(lab.read("o", SnapId(2)).unwrap(), "one");
    assert_eq!(lab.read("o", SnapId(3)).unwrap(), "two");
    assert_eq!(lab.read("o", SnapId(4)).unwrap(), "two");
    assert_eq!(lab.read("late", SnapId(4)), Err(ENOENT));

    let reply = lab.full(1, "o", vec![Op::ListSnaps], SnapId::DIR, 0);
    let mut r = proto::denc::Reader::new(&reply.ops[0].data, "snaps");
    let clones = r.envelope("obj_list_snap_response_t", 2, |_, r| {
        r.list(1, |r| {
            r.envelope("clone_info", 1, |_, r| {
                let id: SnapId = r.get()?;
                let snaps = r.list(8, |r| r.u64())?;
                let overlap = r.list(16, |r| Ok((r.u64()?, r.u64()?)))?;
                Ok((id.0, snaps, overlap, r.u64()?))
            })
        })
    });
    assert_eq!(clones, Ok(vec![(2, vec![2], vec![], 3), (4, vec![3, 4], vec![], 3)]));

    // Back to the first, keys and all.
    assert_eq!(lab.result("o", vec![Op::Rollback { snap: SnapId(2) }]), 0);
    assert_eq!(lab.head("o").unwrap(), "one");
    let get = Op::OmapGetKeys { after: String::new(), max: 9 };
    assert_eq!(lab.run("o", vec![get]).ops[0].data, &b"\x01\0\0\0\x01\0\0\0k\0"[..]);
    assert_eq!(lab.read("o", SnapId(3)).unwrap(), "two");
    assert_eq!(lab.result("late", vec![Op::Rollback { snap: SnapId(2) }]), 0);
    assert_eq!(lab.head("late"), Err(ENOENT), "it was not there then");

    lab.store.trim(POOL, SnapId(2));
    assert_eq!(lab.read("o", SnapId(2)), Err(ENOENT));
    // Writing to a snapshot, or with a context that is none, is refused.
    assert_eq!(lab.full(1, "o", vec![write(0, "x")], SnapId(3), 0).result, -EINVAL);
    lab.snaps = SnapContext { seq: SnapId(4), snaps: vec![SnapId(3), SnapId(4)] };
    assert_eq!(lab.result("o", vec![write(0, "x")]), -EINVAL);
    lab.snaps = SnapContext { seq: SnapId(3), snaps: vec![SnapId(3)] };
    let reply = lab.full(1, "o", vec![write(0, "x")], SnapId::HEAD, flag::ORDERSNAP);
    assert_eq!(reply.result, -EOLDSNAPC);
}

fn watch(cookie: u64, op: WatchOp) -> Op {
    Op::Watch { cookie, op, generation: 0, timeout_seconds: 10 }
}

fn notify(cookie: u64) -> Op {
    let mut w = BytesMut::new();
    NotifyInput { timeout_seconds: 5, payload: "hear!".into() }.encode(&mut w);
    Op::Notify { cookie, input: w.freeze() }
}

#[test]
fn watchers_are_told_and_their_answers_come_back() {
    let mut lab = lab();
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Watch)]), -ENOENT);
    lab.run("o", vec![Op::Create { exclusive: false }]);
    assert_eq!(lab.full(1, "o", vec![watch(7, WatchOp::Watch)], SnapId::HEAD, 0).result, 0);
    assert_eq!(lab.full(2, "o", vec![watch(8, WatchOp::Watch)], SnapId::HEAD, 0).result, 0);
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Ping)]), 0);
    assert_eq!(lab.result("o", vec![watch(9, WatchOp::Ping)]), -ENOTCONN);
    let list = lab.run("o", vec![Op::ListWatchers]);
    let watchers = proto::msg::watch::decode_watchers(&list.ops[0].data).unwrap();
    assert_eq!(watchers.iter().map(|watcher| watcher.cookie).collect::<Vec<_>>(), [7, 8]);

    lab.tid += 1;
    let (routing, operation) = lab.request("o", vec![notify(99)], SnapId::HEAD, 0);
    let sent = lab.send(3, &routing, &operation);
    let told = |sent: &[(u64, Message)]| -> Vec<(u64, WatchNotify)> {
        (sent.iter())
            .filter(|(_, message)| message.header.kind == kind::WATCH_NOTIFY)
            .map(|(conn, message)| (*conn, WatchNotify::decode(message).unwrap()))
            .collect()
    };
    let notifies = told(&sent);
    assert_eq!(
        notifies.iter().map(|(conn, n)| (*conn, n.cookie)).collect::<Vec<_>>(),
        [(1, 7), (2, 8)]
    );
    assert_eq!(notifies[0].1.payload, "hear!");
    let id = notifies[0].1.notify_id;

    // One answers; then the other one's time is up.
    let mut w = BytesMut::new();
    NotifyAckInput { notify_id: id, cookie: 7, reply: "yes".into() }.encode(&mut w);
    lab.tid += 1;
    let (routing, operation) =
        lab.request("o", vec![Op::NotifyAck { input: w.freeze() }], SnapId::HEAD, 0);
    assert_eq!(told(&lab.send(1, &routing, &operation)), []);
    lab.now.instant = lab.now.instant + Duration::from_secs(5);
    let sent = lab.act(|osd, now, shared| osd.handle_timeout(now, shared));
    let (conn, complete) = told(&sent).remove(0);
    assert_eq!((conn, complete.event, complete.cookie), (3, event::NOTIFY_COMPLETE, 99));
    assert_eq!((complete.notify_id, complete.result), (id, -ETIMEDOUT));
    let mut r = proto::denc::Reader::new(&sent[0].1.data, "completion");
    let answers = r.list(20, |r| Ok((r.u64()?, r.u64()?, r.string()?))).unwrap();
    assert_eq!(answers, [(1, 7, "yes".to_owned())]);
    assert_eq!(r.list(16, |r| Ok((r.u64()?, r.u64()?))).unwrap(), [(2, 8)]);

    // A watcher that is silent for too long is dropped, and told so.
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Ping)]), 0);
    lab.now.instant = lab.now.instant + Duration::from_secs(6);
    let sent = lab.act(|osd, now, shared| osd.handle_timeout(now, shared));
    let (conn, gone) = told(&sent).remove(0);
    assert_eq!((conn, gone.event, gone.cookie), (2, event::DISCONNECT, 8));
    assert_eq!(lab.full(2, "o", vec![watch(8, WatchOp::Ping)], SnapId::HEAD, 0).result, -ENOTCONN);

    // One whose connection is gone has to come back.
    lab.osd.closed(ConnId(1));
    lab.osd.connected(ConnId(1), client(1));
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Ping)]), -ETIMEDOUT);
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Reconnect)]), 0);
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Ping)]), 0);
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Unwatch)]), 0);
    assert_eq!(lab.result("o", vec![watch(7, WatchOp::Reconnect)]), -ENOTCONN);
}

#[test]
fn what_is_for_another_osd_is_dropped() {
    let mut lab = lab();
    let (routing, operation) = lab.request("o", vec![write(0, "x")], SnapId::HEAD, 0);
    let pgs = &mut lab.map.pools.get_mut(&POOL).unwrap().primaries;
    pgs[3] = Primary { osd: Some(OsdId(1)), since: Epoch(5) };
    assert!(lab.send(1, &routing, &operation).is_empty());
    // It was primary before and is again: what was sent in between will be sent again.
    lab.map.pools.get_mut(&POOL).unwrap().primaries[3] =
        Primary { osd: Some(OsdId(0)), since: Epoch(6) };
    lab.map.epoch = Epoch(6);
    assert!(lab.send(1, &routing, &operation).iter().all(|(_, m)| m.header.kind == kind::OSD_MAP));
    assert_eq!(lab.store.usage(POOL).objects, 0);
}
