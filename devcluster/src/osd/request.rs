//! One request, from the checks before it to the answer (`do_op` and `execute_ctx` in Ceph's `PrimaryLogPG`).

use std::time::Duration;

use bytes::Bytes;
use proto::msg::op::{Op, OsdOp, WatchOp};
use proto::msg::osd_op::{OpReply, Operation, Reply, Routing, flag};
use proto::types::{EVersion, PgId, SnapId};

use super::context::{Context, Effect, Requester, nothing};
use super::watch::{NewNotify, Target};
use super::{Osd, Shared, cls, list, ops, snaps};
use crate::errno::{
    EBLOCKLISTED, EINVAL, EMSGSIZE, ENAMETOOLONG, ENOENT, EOLDSNAPC, EOPNOTSUPP, OpResult,
};
use crate::store::{Answer, ObjectId, ReqId, Transaction};
use crate::wire::{ConnId, Now, Peer};

/// `osd_max_object_name_len`, `osd_max_object_namespace_len`, `osd_max_write_size`.
const MAX_NAME_BYTES: usize = 2048;
const MAX_NAMESPACE_BYTES: usize = 256;
const MAX_WRITE_BYTES: usize = 90 << 20;

/// How much a write may return (`osd_max_write_op_reply_len`).
const MAX_WRITE_REPLY_BYTES: usize = 64;

/// A request that this OSD answers.
struct Request {
    routing: Routing,
    pg: PgId,
    operation: Operation,
    object: ObjectId,
    writes: bool,
}

impl Osd {
    pub(super) fn request(
        &mut self,
        now: Now,
        conn: ConnId,
        mut routing: Routing,
        operation: Operation,
        shared: &mut Shared<'_>,
    ) {
        let pg = routing.pgid.pg;
        self.share_map(conn, routing.epoch, shared);
        // Whoever asks the wrong OSD, or by an outdated map, will find out by the newer map and ask again.
        let primary = shared.map.primary(pg);
        if !primary
            .is_some_and(|primary| primary.osd == Some(self.id) && routing.epoch >= primary.since)
        {
            tracing::debug!(osd = %self.id, %pg, "request dropped: not the primary, or an old map");
            return;
        }
        let Some(peer) = self.sessions.get(&conn).map(|session| session.peer) else { return };
        // Ceph's clients leave the request's identity to be made from who sends it (`MOSDOp::get_reqid`).
        if routing.reqid.client.kind.0 == 0 && routing.reqid.tid.0 == 0 {
            routing.reqid.client = peer.name;
            routing.reqid.tid = routing.tid;
        }
        let mut request = Request {
            pg,
            writes: false,
            object: ObjectId {
                hash: routing.hash,
                nspace: operation.locator.namespace.clone(),
                key: operation.locator.key.clone(),
                name: operation.object.clone(),
            },
            routing,
            operation,
        };
        let reply = match request.check(peer, shared) {
            Err(errno) => request.refusal(-errno, shared),
            Ok(Known::Answered(answer)) => request.again(answer, shared),
            Ok(Known::New) if request.operation.ops.iter().any(|op| op.op.on_pg()) => {
                let pg_num = shared.map.pools[&pg.pool].primaries.len() as u32;
                let Operation { locator, snap, ops, .. } = &request.operation;
                let (result, ops) = list::run(shared.store, pg, pg_num, locator, *snap, ops);
                request.reply(result, ops, (EVersion::default(), 0), shared)
            }
            Ok(Known::New) => self.execute(now, conn, peer, &request, shared),
        };
        shared.actions.reply(conn, reply);
    }

    fn execute(
        &mut self,
        now: Now,
        conn: ConnId,
        peer: Peer,
        request: &Request,
        shared: &mut Shared<'_>,
    ) -> Reply {
        let Request { pg, operation, object: id, .. } = request;
        let target: Target = (*pg, id.clone());
        let last = shared.store.pg(*pg);
        let (last_version, last_user_version) = (last.version, last.user_version);
        let entry = shared.store.get(pg.pool, id);
        let object = entry.and_then(|entry| snaps::object_at(entry, operation.snap));
        let seen =
            object.is_some_and(|object| !object.info.whiteout || operation.snap == SnapId::DIR);
        if !request.writes && !seen {
            return request.refusal(-ENOENT, shared);
        }
        let snap_context = &*operation.snap_context;
        let known = entry.map_or(0, |entry| entry.snapset.seq);
        if !snaps::is_valid(snap_context) {
            return self.fail(request, -EINVAL, Vec::new(), shared);
        }
        let ordered = request.routing.flags & flag::ORDERSNAP != 0;
        if request.writes && ordered && snap_context.seq.0 < known {
            return self.fail(request, -EOLDSNAPC, Vec::new(), shared);
        }

        let requester =
            Requester { name: request.routing.reqid.client, addr: peer.addr, now: now.wall };
        let watches = &self.watches;
        let connected = |cookie| watches.is_connected(&target, (cookie, requester.name));
        let nothing = nothing();
        let mut context = Context::new(
            requester,
            snap_context,
            &mut *shared.entropy,
            &connected,
            (entry, object),
            &nothing,
        );
        context.next_notify = (u64::from(shared.map.epoch.0) << 32) | self.next;
        let (mut result, mut replies) = ops::run(&mut context, &operation.ops);
        self.next = context.next_notify & 0xffff_ffff;
        if result < 0 && request.writes {
            return self.fail(request, result, replies, shared);
        }
        let changes = request.writes && context.changes();
        let user_version = context.info().user_version;
        let effects = std::mem::take(&mut context.effects);
        if !changes {
            drop(context);
            if result >= 0 {
                self.apply(&target, conn, requester, user_version, effects, now, shared);
            }
            if request.writes {
                return self.answer(request, result, replies, Default::default(), shared);
            }
            return request.reply(result, replies, (EVersion::default(), user_version), shared);
        }

        let cloned = snaps::make_writeable(&mut context);
        let version = EVersion {
            epoch: shared.map.epoch,
            version: last_version.version + 1 + u64::from(cloned),
        };
        let mut user_version = user_version;
        if context.user_modify {
            user_version = (last_user_version.max(user_version) + 1).max(version.version);
        }
        let (mut info, snapset) = context.after();
        info.version = version;
        info.user_version = user_version;
        if operation.mtime != Default::default() {
            info.mtime = operation.mtime;
        }
        let after = context.exists.then_some((info, snapset));
        let mutations = std::mem::take(&mut context.mutations);
        drop(context);

        if request.routing.flags & flag::RETURNVEC == 0 {
            // Old clients get no results of writes.
            result = 0;
            replies.iter_mut().for_each(|reply| reply.data = Bytes::new());
        } else if replies.iter().any(|reply| reply.data.len() > MAX_WRITE_REPLY_BYTES) {
            result = -crate::errno::EOVERFLOW;
            for reply in replies.iter_mut().filter(|r| r.data.len() > MAX_WRITE_REPLY_BYTES) {
                reply.result = result;
                reply.data = Bytes::new();
            }
        }
        let transaction = Transaction { pg: *pg, object: id.clone(), mutations, after };
        let answer = request.to_answer(result, &replies, (version, user_version));
        shared.store.commit(transaction, request.reqid(), answer);
        self.apply(&target, conn, requester, user_version, effects, now, shared);
        request.reply(result, replies, (version, user_version), shared)
    }

    /// A write that failed: that is remembered as well, so that it fails again if it is sent again.
    fn fail(
        &self,
        request: &Request,
        result: i32,
        replies: Vec<OpReply>,
        shared: &mut Shared<'_>,
    ) -> Reply {
        let last = shared.store.pg(request.pg);
        let versions = match result {
            result if result == -ENOENT => (last.version, last.user_version),
            _ => Default::default(),
        };
        let replies = match replies {
            replies if replies.is_empty() => request.no_results(),
            replies => replies,
        };
        if !request.writes {
            return request.reply(result, replies, versions, shared);
        }
        self.answer(request, result, replies, versions, shared)
    }

    /// Answers a write that changed nothing, and remembers it.
    fn answer(
        &self,
        request: &Request,
        result: i32,
        replies: Vec<OpReply>,
        versions: (EVersion, u64),
        shared: &mut Shared<'_>,
    ) -> Reply {
        let answer = request.to_answer(result, &replies, versions);
        shared.store.remember(request.pg, request.reqid(), answer);
        request.reply(result, replies, versions, shared)
    }

    /// What happens to watches and notifies once the request is through.
    #[allow(clippy::too_many_arguments, reason = "all of them are what one request is about")]
    fn apply(
        &mut self,
        target: &Target,
        conn: ConnId,
        requester: Requester,
        user_version: u64,
        effects: Vec<Effect>,
        now: Now,
        shared: &mut Shared<'_>,
    ) {
        let (now, name) = (now.instant, requester.name);
        let actions = &mut *shared.actions;
        for effect in effects {
            match effect {
                Effect::Disconnect { cookie, name, tell } => {
                    self.watches.disconnect(target, (cookie, name), tell, actions);
                }
                Effect::Connect { cookie, timeout } => {
                    let timeout = Duration::from_secs(timeout.into());
                    self.watches.connect(target, (cookie, name), conn, timeout, now, actions);
                }
                Effect::Ping { cookie } => self.watches.ping(target, (cookie, name), now),
                Effect::Notify { id, cookie, timeout, payload } => {
                    let new = NewNotify {
                        target,
                        conn,
                        cookie,
                        notifier: name.num as u64,
                        user_version,
                        payload,
                        timeout: Duration::from_secs(timeout.into()),
                    };
                    self.watches.notify(id, new, now, actions);
                }
                Effect::Ack { id, cookie, reply } => {
                    self.watches.ack(id, name, cookie, &reply, actions);
                }
            }
        }
    }
}

/// Whether a request has come before.
enum Known {
    New,
    Answered(Answer),
}

impl Request {
    /// Whether the request may run, and whether it has run already.
    fn check(&mut self, peer: Peer, shared: &mut Shared<'_>) -> OpResult<Known> {
        let Operation { ops, object, locator, snap, .. } = &self.operation;
        self.writes = writes(ops)?;
        if ops.iter().any(|op| op.op.on_pg()) {
            return Ok(Known::New);
        }
        if object.len() > MAX_NAME_BYTES
            || locator.key.len() > MAX_NAME_BYTES
            || locator.namespace.len() > MAX_NAMESPACE_BYTES
        {
            return Err(ENAMETOOLONG);
        }
        if object.is_empty() || ops.is_empty() {
            return Err(EINVAL);
        }
        if shared.map.is_blocklisted(&peer.addr) {
            return Err(EBLOCKLISTED);
        }
        if self.writes {
            if *snap != SnapId::HEAD {
                return Err(EINVAL);
            }
            let payload = ops.iter().filter_map(|op| op.op.payload()).map(Bytes::len);
            if payload.sum::<usize>() > MAX_WRITE_BYTES {
                return Err(EMSGSIZE);
            }
            if let Some(answer) = shared.store.pg(self.pg).answered(&self.reqid()) {
                return Ok(Known::Answered(answer.clone()));
            }
        }
        let on_snapdir = *snap == SnapId::DIR;
        if ops.iter().any(|op| matches!(op.op, Op::ListSnaps) != on_snapdir) {
            return Err(EINVAL);
        }
        let takes_space = ops.iter().any(|op| {
            let op = &op.op;
            matches!(op, Op::Create { .. }) || op.writes() && op.payload().is_some()
        });
        if takes_space
            && let Some(errno) = shared.map.pools.get(&self.pg.pool).and_then(|pool| pool.full)
            && self.routing.flags & flag::FULL_TRY != 0
            && self.routing.flags & flag::FULL_FORCE == 0
        {
            return Err(errno);
        }
        Ok(Known::New)
    }

    fn reqid(&self) -> ReqId {
        let proto::msg::osd_op::ReqId { client, tid, incarnation } = self.routing.reqid;
        ReqId { name: client, inc: incarnation, tid: tid.0 }
    }

    /// What is remembered of an answer.
    fn to_answer(
        &self,
        result: i32,
        replies: &[OpReply],
        (version, user_version): (EVersion, u64),
    ) -> Answer {
        let keeps = self.routing.flags & flag::RETURNVEC != 0;
        let ops = replies.iter().filter(|_| keeps);
        let ops = ops.map(|reply| (reply.result, Bytes::copy_from_slice(&reply.data))).collect();
        Answer { result, version, user_version, ops }
    }

    /// The answer that was given before.
    fn again(&self, answer: Answer, shared: &Shared<'_>) -> Reply {
        let mut replies = self.no_results();
        for (reply, (result, data)) in replies.iter_mut().zip(answer.ops) {
            reply.result = result;
            reply.data = data;
        }
        self.reply(answer.result, replies, (answer.version, answer.user_version), shared)
    }

    fn refusal(&self, result: i32, shared: &Shared<'_>) -> Reply {
        self.reply(result, self.no_results(), Default::default(), shared)
    }

    fn no_results(&self) -> Vec<OpReply> {
        let empty = |op: &OsdOp| OpReply { code: op.op.code(), ..Default::default() };
        self.operation.ops.iter().map(empty).collect()
    }

    fn reply(
        &self,
        result: i32,
        ops: Vec<OpReply>,
        (version, user_version): (EVersion, u64),
        shared: &Shared<'_>,
    ) -> Reply {
        Reply {
            tid: self.routing.tid,
            object: Bytes::copy_from_slice(self.operation.object.as_bytes()),
            pgid: self.pg,
            flags: self.routing.flags | flag::ACK | flag::ONDISK,
            result,
            epoch: shared.map.epoch,
            attempt: self.routing.attempt,
            version,
            user_version,
            ops,
            redirect: None,
        }
    }
}

/// Whether operations may change an object. `EOPNOTSUPP` if one calls a method that there is not.
fn writes(ops: &[OsdOp]) -> OpResult<bool> {
    let mut writes = false;
    for op in ops {
        writes |= match &op.op {
            Op::Call { class, method, .. } => cls::find(class, method).ok_or(EOPNOTSUPP)?.writes,
            // Somebody who says that it is alive changes nothing.
            Op::Watch { op: WatchOp::Ping, .. } => false,
            op => op.writes(),
        };
    }
    Ok(writes)
}
