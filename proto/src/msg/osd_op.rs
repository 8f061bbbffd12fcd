//! `MOSDOp` and `MOSDOpReply`: a request of one or more operations on one object, and its answer.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::kind;
use super::object::{Locator, SnapContext, SpgId};
use super::op::{Op, OsdOp, RECORD_BYTES, code};
use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::msgr::{Header, Message, Outgoing};
use crate::types::{EVersion, EntityName, Epoch, PgId, SnapId, Tid, UTime};

/// Flags of a request and its reply (`CEPH_OSD_FLAG_*`).
pub mod flag {
    /// Acknowledge; of a reply: of something that changed nothing.
    pub const ACK: u32 = 0x0001;
    /// Acknowledge when it is on disk; of a reply: it is.
    pub const ONDISK: u32 = 0x0004;
    /// Sent before.
    pub const RETRY: u32 = 0x0008;
    /// May read.
    pub const READ: u32 = 0x0010;
    /// May write.
    pub const WRITE: u32 = 0x0020;
    /// `EOLDSNAPC` if the snap context is older than the object's.
    pub const ORDERSNAP: u32 = 0x0040;
    /// Any replica may answer.
    pub const BALANCE_READS: u32 = 0x0100;
    /// On a placement group, not an object.
    pub const PGOP: u32 = 0x0400;
    /// A near replica may answer.
    pub const LOCALIZE_READS: u32 = 0x2000;
    /// Reads are ordered behind writes before them.
    pub const RWORDERED: u32 = 0x4000;
    /// Not through a cache tier.
    pub const IGNORE_OVERLAY: u32 = 0x2_0000;
    /// Sent to where a reply redirected.
    pub const REDIRECTED: u32 = 0x20_0000;
    /// The sender knows about redirects.
    pub const KNOWN_REDIR: u32 = 0x40_0000;
    /// Fail with `ENOSPC` or `EDQUOT` rather than wait for space.
    pub const FULL_TRY: u32 = 0x80_0000;
    /// Ignore that the cluster is full: deletions.
    pub const FULL_FORCE: u32 = 0x100_0000;
    /// Results of every op of a write come back, not only the last error.
    pub const RETURNVEC: u32 = 0x400_0000;
    /// The sender takes `EIO` from a failed pool.
    pub const SUPPORTSPOOLEIO: u32 = 0x800_0000;
}

/// What a caller wants done to one object. It does not change while it is sent again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The object's name; empty for operations on a placement group.
    pub object: String,
    /// Its pool, key and namespace.
    pub locator: Locator,
    /// What to do, in this order.
    pub ops: Vec<OsdOp>,
    /// Which version of the object a read is of.
    pub snap: SnapId,
    /// What a write must preserve.
    pub snap_context: Arc<SnapContext>,
    /// Any of [`flag`] beyond those that follow from the ops.
    pub flags: u32,
    /// The time that a write gives the object.
    pub mtime: UTime,
}

impl Operation {
    /// Reads or writes the present of an object.
    pub fn new(locator: Locator, object: impl Into<String>, ops: Vec<OsdOp>) -> Self {
        Self {
            object: object.into(),
            locator,
            ops,
            snap: SnapId::HEAD,
            snap_context: Arc::default(),
            flags: 0,
            mtime: UTime::default(),
        }
    }

    /// The flags that the ops imply, and those that the caller set.
    pub fn all_flags(&self) -> u32 {
        let mut flags = self.flags | flag::KNOWN_REDIR | flag::SUPPORTSPOOLEIO;
        for op in &self.ops {
            let code = op.op.code();
            if code & code::MODE_WRITE != 0 {
                flags |= flag::WRITE | flag::ONDISK;
            }
            // A call counts as a read here; one that writes is marked by the caller with `flag::WRITE`.
            if code & code::MODE_READ != 0 {
                flags |= flag::READ;
            }
            if op.op.on_pg() {
                flags |= flag::PGOP;
            }
        }
        if flags & flag::WRITE != 0 { flags | flag::ONDISK } else { flags | flag::ACK }
    }

    /// The bytes that it carries or asks for.
    pub fn cost(&self) -> u64 {
        let cost = |op: &OsdOp| match &op.op {
            Op::Read { length, .. } | Op::SparseRead { length, .. } => *length,
            op => op.payload().map_or(0, |payload| payload.len() as u64),
        };
        self.ops.iter().map(cost).sum()
    }

    /// Whether it may change the object.
    pub fn writes(&self) -> bool {
        self.flags & flag::WRITE != 0 || self.ops.iter().any(|op| op.op.writes())
    }
}

/// A request's identity, the same however often it is sent: the OSD answers a repeated write instead of applying it
/// again (`osd_reqid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReqId {
    /// The client instance.
    pub client: EntityName,
    /// Its request.
    pub tid: Tid,
    /// The client's incarnation, 0 for those that never come back.
    pub incarnation: i32,
}

impl Decode for ReqId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("osd_reqid_t", 2, |_, r| {
            Ok(Self { client: r.get()?, tid: r.get()?, incarnation: r.i32()? })
        })
    }
}

impl Encode for ReqId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(2, 2, |w| {
            w.put_value(&self.client);
            w.put_value(&self.tid);
            w.put_i32_le(self.incarnation);
        });
    }
}

/// Where and how a request is sent this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The message's number, repeated by the reply.
    pub tid: Tid,
    /// Where the object is.
    pub pgid: SpgId,
    /// The hash of its name.
    pub hash: u32,
    /// The map by which it was found.
    pub epoch: Epoch,
    /// Any of [`flag`].
    pub flags: u32,
    /// The request's identity.
    pub reqid: ReqId,
    /// How often it was sent before.
    pub attempt: i32,
    /// The sender's features.
    pub features: u64,
}

/// A request as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// This time's route.
    pub routing: &'a Routing,
    /// What to do.
    pub operation: &'a Operation,
}

impl Outgoing for Request<'_> {
    fn header(&self) -> Header {
        Header {
            tid: self.routing.tid.0,
            kind: kind::OSD_OP,
            priority: kind::PRIORITY_DEFAULT,
            version: 8,
            compat: 3,
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        let Self { routing, operation } = self;
        w.reserve(220 + operation.object.len() + RECORD_BYTES * operation.ops.len());
        w.put_value(&routing.pgid);
        w.put_u32_le(routing.hash);
        w.put_value(&routing.epoch);
        w.put_u32_le(routing.flags);
        w.put_value(&routing.reqid);
        w.put_bytes(0, TRACE_BYTES);
        w.put_u32_le(routing.reqid.incarnation as u32);
        w.put_value(&operation.mtime);
        w.put_value(&operation.locator);
        w.put_str(&operation.object);
        w.put_u16_le(operation.ops.len() as u16);
        for op in &operation.ops {
            op.encode_record(w);
        }
        w.put_value(&operation.snap);
        w.put_value(&operation.snap_context.seq);
        w.put_count(operation.snap_context.snaps.len());
        for snap in &operation.snap_context.snaps {
            w.put_value(snap);
        }
        w.put_i32_le(routing.attempt);
        w.put_u64_le(routing.features);
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        for op in &self.operation.ops {
            match op.op.payload() {
                Some(payload) => piece(payload),
                None => {
                    let input = op.op.input();
                    if !input.is_empty() {
                        piece(&input);
                    }
                }
            }
        }
    }
}

/// An unused tracing id that stands in requests and replies (`blkin_trace_info`).
const TRACE_BYTES: usize = 24;

/// Reads a request (a server's side).
pub fn decode_request(message: &Message) -> Result<(Routing, Operation)> {
    let version = message.header.version;
    if version < 8 {
        return Err(DecodeError::Invalid { what: "MOSDOp version", value: version.into() });
    }
    let mut r = Reader::new(&message.front, "MOSDOp");
    let (pgid, hash, epoch, flags) = (r.get::<SpgId>()?, r.u32()?, r.get()?, r.u32()?);
    let mut reqid: ReqId = r.get()?;
    r.skip(TRACE_BYTES)?;
    // Version 9 (Squid) adds an OpenTelemetry context.
    if version >= 9 {
        r.envelope("jspan_context", u8::MAX, |_, _| Ok(()))?;
    }
    reqid.incarnation = r.u32()? as i32;
    let mtime = r.get()?;
    let mut locator: Locator = r.get()?;
    locator.pool = pgid.pg.pool;
    let object = r.string()?;
    let mut data = message.data.clone();
    let count = r.u16()?;
    let ops = (0..count).map(|_| OsdOp::decode(&mut r, &mut data)).collect::<Result<Vec<_>>>()?;
    let snap = r.get()?;
    let snap_context = Arc::new(SnapContext { seq: r.get()?, snaps: r.list(8, Reader::get)? });
    let tid = Tid(message.header.tid);
    let routing =
        Routing { tid, pgid, hash, epoch, flags, reqid, attempt: r.i32()?, features: r.u64()? };
    let operation = Operation { object, locator, ops, snap, snap_context, flags, mtime };
    Ok((routing, operation))
}

/// What became of one operation of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpReply {
    /// Its code, repeated.
    pub code: u16,
    /// 0 or more, or a negative errno.
    pub result: i32,
    /// What it returned.
    pub data: Bytes,
}

/// Where a reply sends the client instead (`request_redirect_t`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The other pool, key and namespace.
    pub locator: Locator,
    /// The other name, if it is not the same.
    pub object: String,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's number.
    pub tid: Tid,
    /// The object's name.
    pub object: Bytes,
    /// Its placement group.
    pub pgid: PgId,
    /// Any of [`flag`].
    pub flags: u32,
    /// 0 or more, or the negative errno of the first operation that failed.
    pub result: i32,
    /// The OSD's map.
    pub epoch: Epoch,
    /// Which attempt it answers, -1 if the OSD does not say.
    pub attempt: i32,
    /// Where in the PG's log the write is.
    pub version: EVersion,
    /// The object's version as users see it.
    pub user_version: u64,
    /// Each operation's outcome.
    pub ops: Vec<OpReply>,
    /// Somebody else has the object.
    pub redirect: Option<Redirect>,
}

impl Reply {
    /// Reads the body. Data are slices of the message's.
    pub fn decode(message: &Message) -> Result<Self> {
        let version = message.header.version;
        if version < 7 {
            return Err(DecodeError::Invalid {
                what: "MOSDOpReply version",
                value: version.into(),
            });
        }
        let mut r = Reader::new(&message.front, "MOSDOpReply");
        let object = message.front.slice_ref(r.blob()?);
        let pgid = r.get()?;
        let flags = r.u64()? as u32;
        let result = r.i32()?;
        r.skip(12)?; // the version as clients before Firefly read it
        let epoch = r.get()?;

        let count = r.count(RECORD_BYTES + 4)?;
        let mut records = r.sub(count * RECORD_BYTES, "MOSDOpReply ops")?;
        let attempt = r.i32()?;
        let mut data = message.data.clone();
        let mut ops = Vec::with_capacity(count);
        for _ in 0..count {
            let code = records.u16()?;
            records.skip(RECORD_BYTES - 6)?;
            let len = records.u32()? as usize;
            if len > data.len() {
                return Err(DecodeError::UnexpectedEnd {
                    what: "osd op output",
                    needed: len,
                    left: data.len(),
                });
            }
            ops.push(OpReply { code, result: r.i32()?, data: data.split_to(len) });
        }

        let version = r.get()?;
        let user_version = r.u64()?;
        let redirect = if r.bool()? { Some(decode_redirect(&mut r)?) } else { None };
        // What follows is tracing.
        Ok(Self {
            tid: Tid(message.header.tid),
            object,
            pgid,
            flags,
            result,
            epoch,
            attempt,
            version,
            user_version,
            ops,
            redirect,
        })
    }
}

fn decode_redirect(r: &mut Reader<'_>) -> Result<Redirect> {
    r.envelope("request_redirect_t", 1, |_, r| {
        let redirect = Redirect { locator: r.get()?, object: r.string()? };
        Ok(redirect)
    })
}

impl Outgoing for Reply {
    fn header(&self) -> Header {
        Header {
            tid: self.tid.0,
            kind: kind::OSD_OP_REPLY,
            priority: kind::PRIORITY_DEFAULT,
            version: 8,
            compat: 2,
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.reserve(130 + self.object.len() + (RECORD_BYTES + 4) * self.ops.len());
        w.put_blob(&self.object);
        w.put_value(&self.pgid);
        w.put_u64_le(self.flags.into());
        w.put_i32_le(self.result);
        // Clients before Firefly read the user version here.
        let legacy = match self.user_version {
            0 => self.version,
            version => EVersion { version, ..self.version },
        };
        w.put_value(&legacy);
        w.put_value(&self.epoch);
        w.put_count(self.ops.len());
        for op in &self.ops {
            w.put_u16_le(op.code);
            w.put_bytes(0, RECORD_BYTES - 6);
            w.put_u32_le(op.data.len() as u32);
        }
        w.put_i32_le(self.attempt);
        for op in &self.ops {
            w.put_i32_le(op.result);
        }
        w.put_value(&self.version);
        w.put_u64_le(self.user_version);
        w.put_bool(self.redirect.is_some());
        if let Some(redirect) = &self.redirect {
            w.put_envelope(1, 1, |w| {
                w.put_value(&redirect.locator);
                w.put_str(&redirect.object);
                w.put_count(0);
            });
        }
        w.put_bytes(0, TRACE_BYTES);
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        for op in &self.ops {
            if !op.data.is_empty() {
                piece(&op.data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::object::HObject;
    use crate::msg::op::{Op, WatchOp};
    use crate::types::{EntityType, PoolId};

    /// What a peer would receive.
    fn received(outgoing: &dyn Outgoing) -> Message {
        let mut front = BytesMut::new();
        outgoing.encode_front(&mut front);
        let mut data = BytesMut::new();
        outgoing.data(&mut |piece| data.extend_from_slice(piece));
        Message {
            header: outgoing.header(),
            front: front.freeze(),
            middle: Bytes::new(),
            data: data.freeze(),
        }
    }

    fn every_op() -> Vec<OsdOp> {
        let bytes = Bytes::from_static(b"payload");
        let text = || "name".to_owned();
        [
            Op::Read { offset: 1, length: 2 },
            Op::SparseRead { offset: 3, length: 4 },
            Op::Stat,
            Op::Write { offset: 5, data: bytes.clone() },
            Op::WriteFull { data: bytes.clone() },
            Op::Append { data: bytes.clone() },
            Op::WriteSame { offset: 6, length: 70, data: bytes.clone() },
            Op::Zero { offset: 7, length: 8 },
            Op::Truncate { size: 9 },
            Op::Delete,
            Op::Create { exclusive: true },
            Op::SetAllocHint { object_size: 10, write_size: 11, flags: 12 },
            Op::CompareExtent { offset: 13, data: bytes.clone() },
            Op::AssertVersion { version: 14 },
            Op::Rollback { snap: SnapId(15) },
            Op::call("rbd", "get_size", bytes.clone()),
            Op::GetXattr { name: text() },
            Op::GetXattrs,
            Op::SetXattr { name: text(), value: bytes.clone() },
            Op::RemoveXattr { name: text() },
            Op::CompareXattr { name: text(), value: bytes.clone(), operator: 1, mode: 1 },
            Op::OmapGetKeys { after: text(), max: 16 },
            Op::OmapGetValues { after: text(), max: 17, prefix: text() },
            Op::OmapGetHeader,
            Op::OmapGetValuesByKeys { keys: vec![text()] },
            Op::OmapCompare { assertions: vec![(text(), bytes.clone(), 1)] },
            Op::OmapSetValues { values: [(text(), bytes.clone())].into() },
            Op::OmapSetHeader { header: bytes.clone() },
            Op::OmapClear,
            Op::OmapRemoveKeys { keys: vec![text()] },
            Op::OmapRemoveRange { from: text(), to: "z".into() },
            Op::Watch { cookie: 18, op: WatchOp::Ping, generation: 19, timeout_seconds: 20 },
            Op::Notify { cookie: 21, input: bytes.clone() },
            Op::NotifyAck { input: bytes },
            Op::ListWatchers,
            Op::ListSnaps,
            Op::ListObjects {
                max: 22,
                start_epoch: Epoch(23),
                cursor: Box::new(HObject { pool: 1, name: text(), ..HObject::min() }),
            },
        ]
        .map(OsdOp::from)
        .into()
    }

    fn request() -> (Routing, Operation) {
        let mut locator = Locator::of_pool(PoolId(3));
        locator.namespace = "ns".into();
        let mut operation = Operation::new(locator, "rbd_data.abc", every_op());
        operation.mtime = UTime { sec: 1, nsec: 2 };
        operation.snap_context =
            Arc::new(SnapContext { seq: SnapId(7), snaps: vec![SnapId(7), SnapId(4)] });
        operation.flags = operation.all_flags();
        let client = EntityName { kind: EntityType::CLIENT, num: 4711 };
        let routing = Routing {
            tid: Tid(99),
            pgid: SpgId { pg: PgId { pool: PoolId(3), seed: 5 }, shard: SpgId::NO_SHARD },
            hash: 0xdead_beef,
            epoch: Epoch(12),
            flags: operation.flags,
            reqid: ReqId { client, tid: Tid(99), incarnation: 0 },
            attempt: 1,
            features: u64::MAX,
        };
        (routing, operation)
    }

    #[test]
    fn every_op_survives_the_wire() {
        let (routing, operation) = request();
        let message = received(&Request { routing: &routing, operation: &operation });
        assert_eq!(decode_request(&message), Ok((routing, operation)));
    }

    #[test]
    fn a_truncated_request_is_an_error_at_every_length() {
        let (routing, operation) = request();
        let whole = received(&Request { routing: &routing, operation: &operation });
        for len in 0..whole.front.len() {
            let torn = Message { front: whole.front.slice(..len), ..whole.clone() };
            assert!(decode_request(&torn).is_err(), "front of {len} bytes was enough");
        }
        for len in 0..whole.data.len() {
            let torn = Message { data: whole.data.slice(..len), ..whole.clone() };
            assert!(decode_request(&torn).is_err(), "data of {len} bytes was enough");
        }
    }

    #[test]
    fn a_reply_survives_the_wire() {
        let ops = vec![
            OpReply { code: code::STAT, result: 0, data: Bytes::from_static(b"0123") },
            OpReply { code: code::READ, result: -2, data: Bytes::new() },
        ];
        let version = EVersion { epoch: Epoch(9), version: 10 };
        let reply = Reply {
            tid: Tid(1),
            object: Bytes::from_static(b"o"),
            pgid: PgId { pool: PoolId(2), seed: 3 },
            flags: flag::ONDISK,
            result: -2,
            epoch: Epoch(12),
            attempt: 0,
            version,
            user_version: 10,
            ops,
            redirect: None,
        };
        let message = received(&reply);
        assert_eq!(Reply::decode(&message), Ok(reply));
        // All but the tracing at its end is needed.
        for len in 0..message.front.len() - TRACE_BYTES {
            let torn = Message { front: message.front.slice(..len), ..message.clone() };
            assert!(Reply::decode(&torn).is_err(), "front of {len} bytes was enough");
        }
    }
}
