//! What clients and monitors say to each other.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::kind;
use crate::denc::{Encode, Put, Reader, Result};
use crate::msgr::{Header, Message, Outgoing};
use crate::types::{Epoch, Fsid, SnapId, Tid};

/// Builds the header of a monitor message.
fn header(kind: u16, version: u16, compat: u16, tid: Tid) -> Header {
    Header { tid: tid.0, kind, priority: kind::PRIORITY_DEFAULT, version, compat }
}

/// What every `PaxosServiceMessage` begins with: the version of the map that the sender has, and two fields that only
/// monitors use among themselves.
fn put_paxos(w: &mut BytesMut, version: u64) {
    w.put_u64_le(version);
    w.put_i16_le(-1);
    w.put_u64_le(0);
}

fn paxos(r: &mut Reader<'_>) -> Result<u64> {
    let version = r.u64()?;
    r.skip(10)?;
    Ok(version)
}

/// How one map is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The first version wanted.
    pub start: u64,
    /// One answer, and no news after it (`CEPH_SUBSCRIBE_ONETIME`).
    pub onetime: bool,
}

/// `MMonSubscribe`: asks for maps by name (`osdmap`, `monmap`, `config`, …).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscribe {
    /// The maps.
    pub what: BTreeMap<String, Subscription>,
    /// The client's host, for the monitor's logs.
    pub hostname: String,
}

impl Subscribe {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MMonSubscribe");
        let what = r.map(13, |r| {
            let name = r.string()?;
            let start = r.u64()?;
            Ok((name, Subscription { start, onetime: r.u8()? & 1 != 0 }))
        })?;
        let hostname = if message.header.version >= 3 { r.string()? } else { String::new() };
        Ok(Self { what, hostname })
    }
}

impl Outgoing for Subscribe {
    fn header(&self) -> Header {
        header(kind::MON_SUBSCRIBE, 3, 1, Tid(0))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_count(self.what.len());
        for (name, subscription) in &self.what {
            w.put_str(name);
            w.put_u64_le(subscription.start);
            w.put_bool(subscription.onetime);
        }
        w.put_str(&self.hostname);
    }
}

/// `MMonMap`: an encoded monitor map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonMap {
    /// The map's bytes, for [`crate::monmap`].
    pub map: Bytes,
}

impl MonMap {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let map = Reader::new(&message.front, "MMonMap").blob()?;
        Ok(Self { map: message.front.slice_ref(map) })
    }
}

impl Outgoing for MonMap {
    fn header(&self) -> Header {
        header(kind::MON_MAP, 1, 1, Tid(0))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_blob(&self.map);
    }
}

/// `MMonGetVersion`: asks which version of a map is the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetVersion {
    /// Repeated by the answer.
    pub handle: u64,
    /// The map's name.
    pub what: String,
}

impl GetVersion {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MMonGetVersion");
        Ok(Self { handle: r.u64()?, what: r.string()? })
    }
}

impl Outgoing for GetVersion {
    fn header(&self) -> Header {
        header(kind::MON_GET_VERSION, 1, 1, Tid(self.handle))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_u64_le(self.handle);
        w.put_str(&self.what);
    }
}

/// `MMonGetVersionReply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetVersionReply {
    /// The request's handle.
    pub handle: u64,
    /// The newest version.
    pub version: u64,
    /// The oldest version that can still be had.
    pub oldest: u64,
}

impl GetVersionReply {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MMonGetVersionReply");
        Ok(Self { handle: r.u64()?, version: r.u64()?, oldest: r.u64()? })
    }
}

impl Outgoing for GetVersionReply {
    fn header(&self) -> Header {
        header(kind::MON_GET_VERSION_REPLY, 2, 1, Tid(self.handle))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_u64_le(self.handle);
        w.put_u64_le(self.version);
        w.put_u64_le(self.oldest);
    }
}

/// `MMonCommand`: a command in JSON, one per element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Repeated by the answer.
    pub tid: Tid,
    /// The cluster it is for.
    pub fsid: Fsid,
    /// The command's JSON.
    pub command: Vec<String>,
    /// Data that goes with it.
    pub input: Bytes,
}

impl Command {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MMonCommand");
        paxos(&mut r)?;
        Ok(Self {
            tid: Tid(message.header.tid),
            fsid: r.get()?,
            command: r.list(4, Reader::string)?,
            input: message.data.clone(),
        })
    }
}

impl Outgoing for Command {
    fn header(&self) -> Header {
        header(kind::MON_COMMAND, 1, 1, self.tid)
    }

    fn encode_front(&self, w: &mut BytesMut) {
        put_paxos(w, 0);
        w.put_value(&self.fsid);
        w.put_count(self.command.len());
        for part in &self.command {
            w.put_str(part);
        }
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        if !self.input.is_empty() {
            piece(&self.input);
        }
    }
}

/// `MMonCommandAck`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAck {
    /// The command's number.
    pub tid: Tid,
    /// 0 or a negative errno.
    pub result: i32,
    /// What to tell a person.
    pub status: String,
    /// The command, repeated.
    pub command: Vec<String>,
    /// What it printed.
    pub output: Bytes,
}

impl CommandAck {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MMonCommandAck");
        paxos(&mut r)?;
        Ok(Self {
            tid: Tid(message.header.tid),
            result: r.i32()?,
            status: r.string()?,
            command: r.list(4, Reader::string)?,
            output: message.data.clone(),
        })
    }
}

impl Outgoing for CommandAck {
    fn header(&self) -> Header {
        header(kind::MON_COMMAND_ACK, 1, 1, self.tid)
    }

    fn encode_front(&self, w: &mut BytesMut) {
        put_paxos(w, 0);
        w.put_i32_le(self.result);
        w.put_str(&self.status);
        w.put_count(self.command.len());
        for part in &self.command {
            w.put_str(part);
        }
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        if !self.output.is_empty() {
            piece(&self.output);
        }
    }
}

/// `MAuth`: an authentication payload on an established session (ticket renewal).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The method, one of [`crate::msgr::auth::method`].
    pub protocol: u32,
    /// For the method to read.
    pub payload: Bytes,
    /// The monitor map that the client has.
    pub monmap_epoch: Epoch,
}

impl Auth {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MAuth");
        paxos(&mut r)?;
        let protocol = r.u32()?;
        let payload = message.front.slice_ref(r.blob()?);
        // Old clients leave the epoch out.
        let monmap_epoch = if r.is_empty() { Epoch(0) } else { r.get()? };
        Ok(Self { protocol, payload, monmap_epoch })
    }
}

impl Outgoing for Auth {
    fn header(&self) -> Header {
        header(kind::AUTH, 1, 1, Tid(0))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        put_paxos(w, 0);
        w.put_u32_le(self.protocol);
        w.put_blob(&self.payload);
        w.put_value(&self.monmap_epoch);
    }
}

/// `MAuthReply`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthReply {
    /// The method.
    pub protocol: u32,
    /// 0 or a negative errno.
    pub result: i32,
    /// The client's global id.
    pub global_id: u64,
    /// For the method to read.
    pub payload: Bytes,
    /// What to tell a person.
    pub status: String,
}

impl AuthReply {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MAuthReply");
        Ok(Self {
            protocol: r.u32()?,
            result: r.i32()?,
            global_id: r.u64()?,
            payload: message.front.slice_ref(r.blob()?),
            status: r.string()?,
        })
    }
}

impl Outgoing for AuthReply {
    fn header(&self) -> Header {
        header(kind::AUTH_REPLY, 1, 1, Tid(0))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_u32_le(self.protocol);
        w.put_i32_le(self.result);
        w.put_u64_le(self.global_id);
        w.put_blob(&self.payload);
        w.put_str(&self.status);
    }
}

/// `MConfig`: options from the monitors' database that apply to this client.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Option names (with underscores) and values.
    pub options: BTreeMap<String, String>,
}

/// Without values: passwords may be among them.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.options.keys()).finish()
    }
}

impl Config {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MConfig");
        Ok(Self { options: r.map(8, |r| Ok((r.string()?, r.string()?)))? })
    }
}

impl Outgoing for Config {
    fn header(&self) -> Header {
        header(kind::CONFIG, 1, 1, Tid(0))
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_count(self.options.len());
        for (name, value) in &self.options {
            w.put_str(name);
            w.put_str(value);
        }
    }
}

/// What [`PoolOp`] asks for (`POOL_OP_*`).
pub mod pool_op {
    /// Creates a pool.
    pub const CREATE: u32 = 0x01;
    /// Deletes a pool.
    pub const DELETE: u32 = 0x02;
    /// Takes a snapshot of the whole pool.
    pub const CREATE_SNAP: u32 = 0x11;
    /// Removes a pool snapshot.
    pub const DELETE_SNAP: u32 = 0x12;
    /// Reserves a self-managed snapshot id.
    pub const CREATE_UNMANAGED_SNAP: u32 = 0x21;
    /// Gives a self-managed snapshot up: the OSDs trim its clones.
    pub const DELETE_UNMANAGED_SNAP: u32 = 0x22;
}

/// `MPoolOp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOp {
    /// Repeated by the answer.
    pub tid: Tid,
    /// The cluster.
    pub fsid: Fsid,
    /// The pool (32 bits on the wire).
    pub pool: u32,
    /// One of [`pool_op`].
    pub op: u32,
    /// The snapshot, where one is meant.
    pub snap: SnapId,
    /// A pool's or snapshot's name, where one is meant.
    pub name: String,
}

impl PoolOp {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MPoolOp");
        paxos(&mut r)?;
        let (fsid, pool, op) = (r.get()?, r.u32()?, r.u32()?);
        r.skip(8)?; // the owner, unused since Mimic
        let tid = Tid(message.header.tid);
        Ok(Self { tid, fsid, pool, op, snap: r.get()?, name: r.string()? })
    }
}

impl Outgoing for PoolOp {
    fn header(&self) -> Header {
        header(kind::POOL_OP, 4, 2, self.tid)
    }

    fn encode_front(&self, w: &mut BytesMut) {
        put_paxos(w, 0);
        w.put_value(&self.fsid);
        w.put_u32_le(self.pool);
        w.put_u32_le(self.op);
        w.put_u64_le(0);
        w.put_value(&self.snap);
        w.put_str(&self.name);
        w.put_u8(0);
        w.put_i16_le(0);
    }
}

/// `MPoolOpReply`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOpReply {
    /// The request's number.
    pub tid: Tid,
    /// The cluster.
    pub fsid: Fsid,
    /// 0 or an errno (of either sign, by release).
    pub result: i32,
    /// The OSD map that shows the change.
    pub epoch: Epoch,
    /// For [`pool_op::CREATE_UNMANAGED_SNAP`]: the snapshot's id, encoded.
    pub data: Option<Bytes>,
}

impl PoolOpReply {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MPoolOpReply");
        paxos(&mut r)?;
        Ok(Self {
            tid: Tid(message.header.tid),
            fsid: r.get()?,
            result: r.i32()?,
            epoch: r.get()?,
            data: r.option(|r| r.blob().map(|data| message.front.slice_ref(data)))?,
        })
    }
}

impl Outgoing for PoolOpReply {
    fn header(&self) -> Header {
        header(kind::POOL_OP_REPLY, 1, 1, self.tid)
    }

    fn encode_front(&self, w: &mut BytesMut) {
        put_paxos(w, 0);
        w.put_value(&self.fsid);
        w.put_i32_le(self.result);
        w.put_value(&self.epoch);
        w.put_bool(self.data.is_some());
        if let Some(data) = &self.data {
            w.put_blob(data);
        }
    }
}

/// `MStatfs`: how big is the cluster, or one pool of it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Repeated by the answer.
    pub tid: Tid,
    /// The cluster.
    pub fsid: Fsid,
    /// The pool, or all of them.
    pub pool: Option<i64>,
}

impl Statfs {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MStatfs");
        paxos(&mut r)?;
        let fsid = r.get()?;
        let pool = if message.header.version >= 2 { r.option(Reader::i64)? } else { None };
        Ok(Self { tid: Tid(message.header.tid), fsid, pool })
    }
}

impl Outgoing for Statfs {
    fn header(&self) -> Header {
        header(kind::STATFS, 2, 1, self.tid)
    }

    fn encode_front(&self, w: &mut BytesMut) {
        put_paxos(w, 0);
        w.put_value(&self.fsid);
        w.put_bool(self.pool.is_some());
        if let Some(pool) = self.pool {
            w.put_i64_le(pool);
        }
    }
}

/// `MStatfsReply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatfsReply {
    /// The request's number.
    pub tid: Tid,
    /// The cluster.
    pub fsid: Fsid,
    /// All space, in KiB.
    pub total_kib: u64,
    /// Used space, in KiB.
    pub used_kib: u64,
    /// Space that can still be written, in KiB.
    pub available_kib: u64,
    /// Objects stored.
    pub objects: u64,
}

impl StatfsReply {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MStatfsReply");
        let fsid = r.get()?;
        r.skip(8)?; // the version of the statistics
        Ok(Self {
            tid: Tid(message.header.tid),
            fsid,
            total_kib: r.u64()?,
            used_kib: r.u64()?,
            available_kib: r.u64()?,
            objects: r.u64()?,
        })
    }
}

impl Outgoing for StatfsReply {
    fn header(&self) -> Header {
        header(kind::STATFS_REPLY, 1, 1, self.tid)
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_value(&self.fsid);
        w.put_u64_le(0);
        w.put_u64_le(self.total_kib);
        w.put_u64_le(self.used_kib);
        w.put_u64_le(self.available_kib);
        w.put_u64_le(self.objects);
    }
}

/// The encoded id in a [`PoolOpReply`] to [`pool_op::CREATE_UNMANAGED_SNAP`].
pub fn snap_id_data(snap: SnapId) -> Bytes {
    snap.to_bytes()
}
