//! One operation on an object (`ceph_osd_op` in `src/include/rados.h`): a 38-byte record, plus input that travels in
//! the message's data.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::object::HObject;
use crate::denc::{DecodeError, Put, Reader, Result, decode};
use crate::types::{Epoch, SnapId};

/// The size of a record.
pub const RECORD_BYTES: usize = 38;

/// The part of a record that differs by operation.
const ARGUMENT_BYTES: usize = 28;

/// Operation codes (`CEPH_OSD_OP_*`).
#[allow(missing_docs, reason = "the names are Ceph's")]
pub mod code {
    pub const READ: u16 = 0x1201;
    pub const STAT: u16 = 0x1202;
    pub const SPARSE_READ: u16 = 0x1205;
    pub const NOTIFY: u16 = 0x1206;
    pub const NOTIFY_ACK: u16 = 0x1207;
    pub const ASSERT_VERSION: u16 = 0x1208;
    pub const LIST_WATCHERS: u16 = 0x1209;
    pub const LIST_SNAPS: u16 = 0x120a;
    pub const SYNC_READ: u16 = 0x120b;
    pub const OMAP_GET_KEYS: u16 = 0x1211;
    pub const OMAP_GET_VALUES: u16 = 0x1212;
    pub const OMAP_GET_HEADER: u16 = 0x1213;
    pub const OMAP_GET_VALUES_BY_KEYS: u16 = 0x1214;
    pub const OMAP_COMPARE: u16 = 0x1219;
    pub const COMPARE_EXTENT: u16 = 0x1220;
    pub const GET_XATTR: u16 = 0x1301;
    pub const GET_XATTRS: u16 = 0x1302;
    pub const COMPARE_XATTR: u16 = 0x1303;
    pub const CALL: u16 = 0x1401;
    pub const LIST_OBJECTS: u16 = 0x1505;
    pub const LIST_OBJECTS_FILTERED: u16 = 0x1506;

    pub const WRITE: u16 = 0x2201;
    pub const WRITE_FULL: u16 = 0x2202;
    pub const TRUNCATE: u16 = 0x2203;
    pub const ZERO: u16 = 0x2204;
    pub const DELETE: u16 = 0x2205;
    pub const APPEND: u16 = 0x2206;
    pub const CREATE: u16 = 0x220d;
    pub const ROLLBACK: u16 = 0x220e;
    pub const WATCH: u16 = 0x220f;
    pub const OMAP_SET_VALUES: u16 = 0x2215;
    pub const OMAP_SET_HEADER: u16 = 0x2216;
    pub const OMAP_CLEAR: u16 = 0x2217;
    pub const OMAP_REMOVE_KEYS: u16 = 0x2218;
    pub const SET_ALLOC_HINT: u16 = 0x2223;
    pub const WRITE_SAME: u16 = 0x2226;
    pub const OMAP_REMOVE_RANGE: u16 = 0x222c;
    pub const SET_XATTR: u16 = 0x2301;
    pub const REMOVE_XATTR: u16 = 0x2304;

    /// Set in the code of every operation that may change the object.
    pub const MODE_WRITE: u16 = 0x2000;
    /// Set in the code of every operation that reads, and in [`CALL`], which may do either.
    pub const MODE_READ: u16 = 0x1000;
    /// The bits that say what kind of thing is operated on.
    pub const TYPE_MASK: u16 = 0x0f00;
    /// Placement groups rather than objects.
    pub const TYPE_PG: u16 = 0x0500;
}

/// Flags of one operation (`CEPH_OSD_OP_FLAG_*`).
pub mod op_flag {
    /// A create fails if the object exists.
    pub const EXCLUSIVE: u32 = 0x1;
    /// Go on with the request although this operation failed.
    pub const FAIL_OK: u32 = 0x2;
    /// The data is not worth caching.
    pub const FADVISE_DONTNEED: u32 = 0x20;
    /// The data is accessed once.
    pub const FADVISE_NOCACHE: u32 = 0x40;
}

/// What a watch operation does (`CEPH_OSD_WATCH_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum WatchOp {
    Unwatch = 0,
    Watch = 3,
    Reconnect = 5,
    Ping = 7,
}

/// One operation.
///
/// Offsets and lengths are bytes of the object. The order of a request's operations is the order in which the OSD
/// applies them; if one fails, none of them happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields' names are the operation's own terms")]
pub enum Op {
    /// Bytes; fewer than asked for where the object ends.
    Read {
        offset: u64,
        length: u64,
    },
    /// Extents that hold data, then that data.
    SparseRead {
        offset: u64,
        length: u64,
    },
    /// Size in bytes and modification time.
    Stat,
    /// Bytes at an offset; what is between the object's end and the offset reads as zeros.
    Write {
        offset: u64,
        data: Bytes,
    },
    /// The whole object.
    WriteFull {
        data: Bytes,
    },
    /// At the end.
    Append {
        data: Bytes,
    },
    /// The same bytes again and again over an extent, whose length is a multiple of theirs.
    WriteSame {
        offset: u64,
        length: u64,
        data: Bytes,
    },
    /// Zeros; may give the space back.
    Zero {
        offset: u64,
        length: u64,
    },
    /// Cuts off or extends with zeros.
    Truncate {
        size: u64,
    },
    Delete,
    Create {
        exclusive: bool,
    },
    /// How the object will be written, so that the OSD can lay it out.
    SetAllocHint {
        object_size: u64,
        write_size: u64,
        flags: u32,
    },
    /// Fails with `ECANCELED`-like offsets if the bytes there differ.
    CompareExtent {
        offset: u64,
        data: Bytes,
    },
    /// Fails with `ERANGE` or `EOVERFLOW` unless the object has this version.
    AssertVersion {
        version: u64,
    },
    /// Brings the object back to what it was at a snapshot.
    Rollback {
        snap: SnapId,
    },
    /// Runs a class method on the OSD.
    Call {
        class: Cow<'static, str>,
        method: Cow<'static, str>,
        input: Bytes,
    },
    GetXattr {
        name: String,
    },
    GetXattrs,
    SetXattr {
        name: String,
        value: Bytes,
    },
    RemoveXattr {
        name: String,
    },
    /// Compares an attribute: `value op attribute`, by Ceph's codes for operator and mode (string or u64).
    CompareXattr {
        name: String,
        value: Bytes,
        operator: u8,
        mode: u8,
    },
    OmapGetKeys {
        after: String,
        max: u64,
    },
    OmapGetValues {
        after: String,
        max: u64,
        prefix: String,
    },
    OmapGetHeader,
    OmapGetValuesByKeys {
        keys: Vec<String>,
    },
    /// Compares values: key → (value, operator code).
    OmapCompare {
        assertions: Vec<(String, Bytes, i32)>,
    },
    OmapSetValues {
        values: BTreeMap<String, Bytes>,
    },
    OmapSetHeader {
        header: Bytes,
    },
    OmapClear,
    OmapRemoveKeys {
        keys: Vec<String>,
    },
    OmapRemoveRange {
        from: String,
        to: String,
    },
    Watch {
        cookie: u64,
        op: WatchOp,
        generation: u32,
        timeout_seconds: u32,
    },
    /// The input is a [`super::watch::NotifyInput`].
    Notify {
        cookie: u64,
        input: Bytes,
    },
    /// The input is a [`super::watch::NotifyAckInput`].
    NotifyAck {
        input: Bytes,
    },
    ListWatchers,
    ListSnaps,
    /// Objects of a placement group, from a cursor on.
    ListObjects {
        max: u64,
        start_epoch: Epoch,
        cursor: Box<HObject>,
    },
    /// Understood by nobody here: kept so that a server can refuse it by its code.
    Unknown {
        code: u16,
    },
}

/// An operation and its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsdOp {
    /// What to do.
    pub op: Op,
    /// Any of [`op_flag`].
    pub flags: u32,
}

impl From<Op> for OsdOp {
    fn from(op: Op) -> Self {
        let exclusive = matches!(op, Op::Create { exclusive: true });
        Self { op, flags: if exclusive { op_flag::EXCLUSIVE } else { 0 } }
    }
}

impl Op {
    /// Calls a class method.
    pub fn call(class: &'static str, method: &'static str, input: Bytes) -> Self {
        Self::Call { class: Cow::Borrowed(class), method: Cow::Borrowed(method), input }
    }

    /// The operation's code.
    pub fn code(&self) -> u16 {
        match self {
            Self::Read { .. } => code::READ,
            Self::SparseRead { .. } => code::SPARSE_READ,
            Self::Stat => code::STAT,
            Self::Write { .. } => code::WRITE,
            Self::WriteFull { .. } => code::WRITE_FULL,
            Self::Append { .. } => code::APPEND,
            Self::WriteSame { .. } => code::WRITE_SAME,
            Self::Zero { .. } => code::ZERO,
            Self::Truncate { .. } => code::TRUNCATE,
            Self::Delete => code::DELETE,
            Self::Create { .. } => code::CREATE,
            Self::SetAllocHint { .. } => code::SET_ALLOC_HINT,
            Self::CompareExtent { .. } => code::COMPARE_EXTENT,
            Self::AssertVersion { .. } => code::ASSERT_VERSION,
            Self::Rollback { .. } => code::ROLLBACK,
            Self::Call { .. } => code::CALL,
            Self::GetXattr { .. } => code::GET_XATTR,
            Self::GetXattrs => code::GET_XATTRS,
            Self::SetXattr { .. } => code::SET_XATTR,
            Self::RemoveXattr { .. } => code::REMOVE_XATTR,
            Self::CompareXattr { .. } => code::COMPARE_XATTR,
            Self::OmapGetKeys { .. } => code::OMAP_GET_KEYS,
            Self::OmapGetValues { .. } => code::OMAP_GET_VALUES,
            Self::OmapGetHeader => code::OMAP_GET_HEADER,
            Self::OmapGetValuesByKeys { .. } => code::OMAP_GET_VALUES_BY_KEYS,
            Self::OmapCompare { .. } => code::OMAP_COMPARE,
            Self::OmapSetValues { .. } => code::OMAP_SET_VALUES,
            Self::OmapSetHeader { .. } => code::OMAP_SET_HEADER,
            Self::OmapClear => code::OMAP_CLEAR,
            Self::OmapRemoveKeys { .. } => code::OMAP_REMOVE_KEYS,
            Self::OmapRemoveRange { .. } => code::OMAP_REMOVE_RANGE,
            Self::Watch { .. } => code::WATCH,
            Self::Notify { .. } => code::NOTIFY,
            Self::NotifyAck { .. } => code::NOTIFY_ACK,
            Self::ListWatchers => code::LIST_WATCHERS,
            Self::ListSnaps => code::LIST_SNAPS,
            Self::ListObjects { .. } => code::LIST_OBJECTS,
            Self::Unknown { code } => *code,
        }
    }

    /// Whether the operation can change the object. A class call may or may not: the caller says (see
    /// [`super::osd_op::Operation`]).
    pub fn writes(&self) -> bool {
        self.code() & code::MODE_WRITE != 0
    }

    /// Whether the operation is on a placement group rather than an object.
    pub fn on_pg(&self) -> bool {
        self.code() & code::TYPE_MASK == code::TYPE_PG
    }

    /// Bytes of data that the operation carries uncopied.
    pub fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Write { data, .. }
            | Self::WriteFull { data }
            | Self::Append { data }
            | Self::WriteSame { data, .. }
            | Self::CompareExtent { data, .. }
            | Self::OmapSetHeader { header: data }
            | Self::Notify { input: data, .. }
            | Self::NotifyAck { input: data } => Some(data),
            _ => None,
        }
    }

    /// The input of operations that don't carry it uncopied.
    fn encode_input(&self, w: &mut BytesMut) {
        match self {
            Self::Call { class, method, input } => {
                w.put_slice(class.as_bytes());
                w.put_slice(method.as_bytes());
                w.put_slice(input);
            }
            Self::GetXattr { name } | Self::RemoveXattr { name } => w.put_slice(name.as_bytes()),
            Self::SetXattr { name, value } | Self::CompareXattr { name, value, .. } => {
                w.put_slice(name.as_bytes());
                w.put_slice(value);
            }
            Self::OmapGetKeys { after, max } => {
                w.put_str(after);
                w.put_u64_le(*max);
            }
            Self::OmapGetValues { after, max, prefix } => {
                w.put_str(after);
                w.put_u64_le(*max);
                w.put_str(prefix);
            }
            Self::OmapGetValuesByKeys { keys } | Self::OmapRemoveKeys { keys } => {
                w.put_count(keys.len());
                for key in keys {
                    w.put_str(key);
                }
            }
            Self::OmapCompare { assertions } => {
                w.put_count(assertions.len());
                for (key, value, operator) in assertions {
                    w.put_str(key);
                    w.put_blob(value);
                    w.put_i32_le(*operator);
                }
            }
            Self::OmapSetValues { values } => {
                w.put_count(values.len());
                for (key, value) in values {
                    w.put_str(key);
                    w.put_blob(value);
                }
            }
            Self::OmapRemoveRange { from, to } => {
                w.put_str(from);
                w.put_str(to);
            }
            Self::ListObjects { cursor, .. } => w.put_value(&**cursor),
            _ => {}
        }
    }

    /// The input, as it travels in the message's data: shared where it is payload, encoded otherwise.
    pub fn input(&self) -> Bytes {
        if let Some(payload) = self.payload() {
            return payload.clone();
        }
        let mut w = BytesMut::new();
        self.encode_input(&mut w);
        w.freeze()
    }

    /// How long [`Op::input`] is.
    fn input_len(&self) -> usize {
        match self {
            Self::Call { class, method, input } => class.len() + method.len() + input.len(),
            Self::GetXattr { name } | Self::RemoveXattr { name } => name.len(),
            Self::SetXattr { name, value } | Self::CompareXattr { name, value, .. } => {
                name.len() + value.len()
            }
            op => op.payload().map_or_else(|| op.input().len(), Bytes::len),
        }
    }

    fn encode_argument(&self, w: &mut BytesMut) {
        match self {
            Self::Read { offset, length }
            | Self::SparseRead { offset, length }
            | Self::Zero { offset, length } => {
                w.put_u64_le(*offset);
                w.put_u64_le(*length);
            }
            Self::Write { offset, data } | Self::CompareExtent { offset, data } => {
                w.put_u64_le(*offset);
                w.put_u64_le(data.len() as u64);
            }
            Self::WriteFull { data } | Self::Append { data } => {
                w.put_u64_le(0);
                w.put_u64_le(data.len() as u64);
            }
            Self::WriteSame { offset, length, data } => {
                w.put_u64_le(*offset);
                w.put_u64_le(*length);
                w.put_u64_le(data.len() as u64);
            }
            Self::Truncate { size } => w.put_u64_le(*size),
            Self::SetAllocHint { object_size, write_size, flags } => {
                w.put_u64_le(*object_size);
                w.put_u64_le(*write_size);
                w.put_u32_le(*flags);
            }
            Self::AssertVersion { version } => {
                w.put_u64_le(0);
                w.put_u64_le(*version);
            }
            Self::Rollback { snap } => w.put_value(snap),
            Self::Call { class, method, input } => {
                w.put_u8(class.len() as u8);
                w.put_u8(method.len() as u8);
                w.put_u8(0);
                w.put_u32_le(input.len() as u32);
            }
            Self::GetXattr { name } | Self::RemoveXattr { name } => {
                w.put_u32_le(name.len() as u32);
            }
            Self::SetXattr { name, value } => {
                w.put_u32_le(name.len() as u32);
                w.put_u32_le(value.len() as u32);
            }
            Self::CompareXattr { name, value, operator, mode } => {
                w.put_u32_le(name.len() as u32);
                w.put_u32_le(value.len() as u32);
                w.put_u8(*operator);
                w.put_u8(*mode);
            }
            Self::Watch { cookie, op, generation, timeout_seconds } => {
                w.put_u64_le(*cookie);
                w.put_u64_le(0);
                w.put_u8(*op as u8);
                w.put_u32_le(*generation);
                w.put_u32_le(*timeout_seconds);
            }
            Self::Notify { cookie, .. } => w.put_u64_le(*cookie),
            Self::ListObjects { max, start_epoch, .. } => {
                w.put_u64_le(*max);
                w.put_value(start_epoch);
            }
            _ => {}
        }
    }
}

impl OsdOp {
    /// Appends the record.
    pub(super) fn encode_record(&self, w: &mut BytesMut) {
        w.put_u16_le(self.op.code());
        w.put_u32_le(self.flags);
        let at = w.len();
        self.op.encode_argument(w);
        w.resize(at + ARGUMENT_BYTES, 0);
        w.put_u32_le(self.op.input_len() as u32);
    }

    /// Reads one record, and takes its input off the front of the message's data.
    pub(super) fn decode(r: &mut Reader<'_>, data: &mut Bytes) -> Result<Self> {
        let code = r.u16()?;
        let flags = r.u32()?;
        let mut argument = r.sub(ARGUMENT_BYTES, "ceph_osd_op")?;
        let input_len = r.u32()? as usize;
        if input_len > data.len() {
            return Err(DecodeError::UnexpectedEnd {
                what: "osd op input",
                needed: input_len,
                left: data.len(),
            });
        }
        let input = data.split_to(input_len);
        let op = decode_op(code, flags, &mut argument, input)?;
        Ok(Self { op, flags })
    }
}

/// Splits input that is a name followed by a value.
fn name_and_value(input: &mut Bytes, name_len: usize) -> Result<(String, Bytes)> {
    let name = Reader::new(input, "xattr input").bytes(name_len)?;
    let name = String::from_utf8_lossy(name).into_owned();
    input.advance(name_len);
    Ok((name, std::mem::take(input)))
}

fn decode_keys(input: &[u8]) -> Result<Vec<String>> {
    Reader::new(input, "omap keys").list(4, Reader::string)
}

fn decode_op(op_code: u16, flags: u32, a: &mut Reader<'_>, mut input: Bytes) -> Result<Op> {
    Ok(match op_code {
        code::READ | code::SYNC_READ => Op::Read { offset: a.u64()?, length: a.u64()? },
        code::SPARSE_READ => Op::SparseRead { offset: a.u64()?, length: a.u64()? },
        code::STAT => Op::Stat,
        code::WRITE => Op::Write { offset: a.u64()?, data: input },
        code::WRITE_FULL => Op::WriteFull { data: input },
        code::APPEND => Op::Append { data: input },
        code::WRITE_SAME => Op::WriteSame { offset: a.u64()?, length: a.u64()?, data: input },
        code::ZERO => Op::Zero { offset: a.u64()?, length: a.u64()? },
        code::TRUNCATE => Op::Truncate { size: a.u64()? },
        code::DELETE => Op::Delete,
        code::CREATE => Op::Create { exclusive: flags & op_flag::EXCLUSIVE != 0 },
        code::SET_ALLOC_HINT => {
            Op::SetAllocHint { object_size: a.u64()?, write_size: a.u64()?, flags: a.u32()? }
        }
        code::COMPARE_EXTENT => Op::CompareExtent { offset: a.u64()?, data: input },
        code::ASSERT_VERSION => {
            a.skip(8)?;
            Op::AssertVersion { version: a.u64()? }
        }
        code::ROLLBACK => Op::Rollback { snap: a.get()? },
        code::CALL => {
            let (class_len, method_len) = (a.u8()?.into(), a.u8()?.into());
            let (class, mut rest) = name_and_value(&mut input, class_len)?;
            let (method, input) = name_and_value(&mut rest, method_len)?;
            Op::Call { class: class.into(), method: method.into(), input }
        }
        code::GET_XATTR => Op::GetXattr { name: name_and_value(&mut input, a.u32()? as usize)?.0 },
        code::GET_XATTRS => Op::GetXattrs,
        code::SET_XATTR => {
            let (name, value) = name_and_value(&mut input, a.u32()? as usize)?;
            Op::SetXattr { name, value }
        }
        code::REMOVE_XATTR => {
            Op::RemoveXattr { name: name_and_value(&mut input, a.u32()? as usize)?.0 }
        }
        code::COMPARE_XATTR => {
            let (name, value) = name_and_value(&mut input, a.u32()? as usize)?;
            a.skip(4)?;
            Op::CompareXattr { name, value, operator: a.u8()?, mode: a.u8()? }
        }
        code::OMAP_GET_KEYS => {
            let mut r = Reader::new(&input, "omap-get-keys");
            Op::OmapGetKeys { after: r.string()?, max: r.u64()? }
        }
        code::OMAP_GET_VALUES => {
            let mut r = Reader::new(&input, "omap-get-vals");
            Op::OmapGetValues { after: r.string()?, max: r.u64()?, prefix: r.string()? }
        }
        code::OMAP_GET_HEADER => Op::OmapGetHeader,
        code::OMAP_GET_VALUES_BY_KEYS => Op::OmapGetValuesByKeys { keys: decode_keys(&input)? },
        code::OMAP_COMPARE => {
            let mut r = Reader::new(&input, "omap-cmp");
            let assertions =
                r.list(12, |r| Ok((r.string()?, input.slice_ref(r.blob()?), r.i32()?)))?;
            Op::OmapCompare { assertions }
        }
        code::OMAP_SET_VALUES => {
            let mut r = Reader::new(&input, "omap-set-vals");
            let values = r.map(8, |r| Ok((r.string()?, input.slice_ref(r.blob()?))))?;
            Op::OmapSetValues { values }
        }
        code::OMAP_SET_HEADER => Op::OmapSetHeader { header: input },
        code::OMAP_CLEAR => Op::OmapClear,
        code::OMAP_REMOVE_KEYS => Op::OmapRemoveKeys { keys: decode_keys(&input)? },
        code::OMAP_REMOVE_RANGE => {
            let mut r = Reader::new(&input, "omap-rm-range");
            Op::OmapRemoveRange { from: r.string()?, to: r.string()? }
        }
        code::WATCH => {
            let cookie = a.u64()?;
            a.skip(8)?;
            let op = match a.u8()? {
                0 => WatchOp::Unwatch,
                // 1 is the watch of clients before Giant.
                1 | 3 => WatchOp::Watch,
                5 => WatchOp::Reconnect,
                7 => WatchOp::Ping,
                op => return Err(DecodeError::Invalid { what: "watch op", value: op.into() }),
            };
            Op::Watch { cookie, op, generation: a.u32()?, timeout_seconds: a.u32()? }
        }
        code::NOTIFY => Op::Notify { cookie: a.u64()?, input },
        code::NOTIFY_ACK => Op::NotifyAck { input },
        code::LIST_WATCHERS => Op::ListWatchers,
        code::LIST_SNAPS => Op::ListSnaps,
        code::LIST_OBJECTS => Op::ListObjects {
            max: a.u64()?,
            start_epoch: a.get()?,
            cursor: Box::new(decode(&input, "pgnls cursor")?),
        },
        code => Op::Unknown { code },
    })
}

/// One object as [`Op::ListObjects`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its locator key, empty if that is its name.
    pub locator: String,
}

/// The answer to [`Op::ListObjects`] (`pg_nls_response_t`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectList {
    /// Where to go on; [`HObject::max`] at the end.
    pub cursor: HObject,
    /// The objects before it.
    pub objects: Vec<ListedObject>,
}

impl ObjectList {
    /// Reads it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Reader::new(bytes, "pgnls").envelope("pg_nls_response_t", 1, |_, r| {
            Ok(Self {
                cursor: r.get()?,
                objects: r.list(12, |r| {
                    let (namespace, name, locator) = (r.string()?, r.string()?, r.string()?);
                    Ok(ListedObject { namespace, name, locator })
                })?,
            })
        })
    }

    /// Writes it.
    pub fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(1, 1, |w| {
            w.put_value(&self.cursor);
            w.put_count(self.objects.len());
            for object in &self.objects {
                w.put_str(&object.namespace);
                w.put_str(&object.name);
                w.put_str(&object.locator);
            }
        });
    }
}

/// Extents that hold data, in ascending order: (offset, length), and the data of all of them in a row. The answer to
/// [`Op::SparseRead`].
pub fn decode_sparse_read(bytes: &Bytes) -> Result<(Vec<(u64, u64)>, Bytes)> {
    let mut r = Reader::new(bytes, "sparse-read");
    let extents = r.list(16, |r| Ok((r.u64()?, r.u64()?)))?;
    // Of an object in an erasure-coded pool that ends before the offset, Ceph 18 says no more than that.
    if extents.is_empty() && r.is_empty() {
        return Ok((extents, Bytes::new()));
    }
    let data = bytes.slice_ref(r.blob()?);
    let total = extents.iter().fold(0u64, |sum, (_, length)| sum.saturating_add(*length));
    if total != data.len() as u64 {
        return Err(DecodeError::Invalid { what: "sparse-read length", value: total });
    }
    Ok((extents, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_reads_as_osds_answer_them() {
        let nothing = Bytes::from_static(&[0; 4]);
        assert_eq!(decode_sparse_read(&nothing), Ok((vec![], Bytes::new())), "erasure-coded, 18");
        let nothing = Bytes::from_static(&[0; 8]);
        assert_eq!(decode_sparse_read(&nothing), Ok((vec![], Bytes::new())), "replicated");
        // One byte at 300,000, as Ceph 18.2.7 sends it.
        let one = [1, 0, 0, 0, 224, 147, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7];
        let one = Bytes::copy_from_slice(&one);
        let data = Bytes::from_static(&[7]);
        assert_eq!(decode_sparse_read(&one), Ok((vec![(300_000, 1)], data)));
        for len in (0..one.len()).filter(|len| *len != 4) {
            assert!(decode_sparse_read(&one.slice(..len)).is_err(), "{len} bytes were enough");
        }
        let lies = Bytes::from_static(&[0, 0, 0, 0, 1, 0, 0, 0, 7]);
        assert!(decode_sparse_read(&lies).is_err(), "data without an extent");
    }
}
