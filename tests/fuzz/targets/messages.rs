//! The bodies of messages, of every family and in both directions, and what answers to operations carry.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use proto::denc::{Encode, Result, decode};
use proto::msg::backoff::Backoff;
use proto::msg::kind;
use proto::msg::mon::{
    Auth, AuthReply, Command, CommandAck, Config, GetVersion, GetVersionReply, MonMap, PoolOp,
    PoolOpReply, Statfs, StatfsReply, Subscribe,
};
use proto::msg::object::SnapContext;
use proto::msg::op::{ObjectList, decode_sparse_read};
use proto::msg::osd_map::OsdMaps;
use proto::msg::osd_op::{Reply, decode_request};
use proto::msg::watch::{NotifyAckInput, NotifyInput, WatchNotify, decode_watchers};
use proto::msgr::{Header, Message, Outgoing};

use super::Pieces;

/// The messages that can be read, and after them what is no message: the answers to some operations.
pub(crate) const KINDS: &[u16] = &[
    kind::MON_MAP,
    kind::STATFS,
    kind::STATFS_REPLY,
    kind::MON_SUBSCRIBE,
    kind::AUTH,
    kind::AUTH_REPLY,
    kind::MON_GET_VERSION,
    kind::MON_GET_VERSION_REPLY,
    kind::OSD_MAP,
    kind::OSD_OP,
    kind::OSD_OP_REPLY,
    kind::WATCH_NOTIFY,
    kind::POOL_OP,
    kind::POOL_OP_REPLY,
    kind::MON_COMMAND,
    kind::MON_COMMAND_ACK,
    kind::OSD_BACKOFF,
    kind::CONFIG,
];

/// An input is which kind, the version, and the front with its length; the rest is data.
pub(super) fn run(input: &[u8]) {
    let mut pieces = Pieces(input);
    let which = usize::from(pieces.byte());
    let Some(kind) = KINDS.get(which).copied() else {
        answers(which - KINDS.len(), pieces.0);
        return;
    };
    let version = pieces.byte().into();
    let front = Bytes::copy_from_slice(pieces.piece());
    let header = Header { tid: 5, kind, priority: 127, version, compat: 1 };
    let data = Bytes::copy_from_slice(pieces.0);
    let message = &Message { header, front, middle: Bytes::new(), data };
    match kind {
        kind::MON_MAP => again(message, MonMap::decode),
        kind::STATFS => again(message, Statfs::decode),
        kind::STATFS_REPLY => again(message, StatfsReply::decode),
        kind::MON_SUBSCRIBE => again(message, Subscribe::decode),
        kind::AUTH => again(message, Auth::decode),
        kind::AUTH_REPLY => again(message, AuthReply::decode),
        kind::MON_GET_VERSION => again(message, GetVersion::decode),
        kind::MON_GET_VERSION_REPLY => again(message, GetVersionReply::decode),
        kind::OSD_MAP => again(message, OsdMaps::decode),
        // A name that is no UTF-8 is not written as it was.
        kind::OSD_OP => drop(decode_request(message)),
        kind::OSD_OP_REPLY => again(message, Reply::decode),
        kind::WATCH_NOTIFY => again(message, WatchNotify::decode),
        kind::POOL_OP => again(message, PoolOp::decode),
        kind::POOL_OP_REPLY => again(message, PoolOpReply::decode),
        kind::MON_COMMAND => again(message, Command::decode),
        kind::MON_COMMAND_ACK => again(message, CommandAck::decode),
        kind::OSD_BACKOFF => again(message, Backoff::decode),
        kind::CONFIG => again(message, Config::decode),
        _ => unreachable!("{kind} is not in KINDS"),
    }
}

/// What can be read is written and read again.
fn again<T: Outgoing + Debug + PartialEq>(message: &Message, read: fn(&Message) -> Result<T>) {
    let Ok(value) = read(message) else { return };
    let mut front = BytesMut::new();
    value.encode_front(&mut front);
    let mut data = Vec::new();
    value.data(&mut |piece| data.extend_from_slice(piece));
    // The number is the connection's to give, where the body does not know it.
    let header = Header { tid: message.header.tid, ..value.header() };
    let written =
        Message { header, front: front.freeze(), data: data.into(), ..Message::default() };
    assert_eq!(read(&written), Ok(value));
}

fn answers(which: usize, bytes: &[u8]) {
    let owned = Bytes::copy_from_slice(bytes);
    match which {
        0 => {
            if let Ok(list) = ObjectList::decode(bytes) {
                let mut w = BytesMut::new();
                list.encode(&mut w);
                assert_eq!(ObjectList::decode(&w), Ok(list));
            }
        }
        1 => {
            if let Ok((extents, data)) = decode_sparse_read(&owned) {
                let total: u64 = extents.iter().map(|(_, len)| len).sum();
                assert_eq!(total, data.len() as u64);
            }
        }
        2 => drop(decode_watchers(bytes)),
        3 => drop(NotifyInput::decode(&owned)),
        4 => drop(NotifyAckInput::decode(&owned)),
        _ => {
            if let Ok(context) = decode::<SnapContext>(bytes, "snap context") {
                assert_eq!(decode(&context.to_bytes(), "snap context"), Ok(context));
            }
        }
    }
}
