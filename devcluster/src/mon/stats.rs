//! How much pools hold, as `rados df` asks (`MGetPoolStats` and its reply).

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use proto::denc::{Put, Reader, Result};
use proto::msg::kind::PRIORITY_DEFAULT;
use proto::msgr::{Header, Message, Outgoing};
use proto::types::Fsid;

use crate::store::Usage;

/// The request's number (`MSG_GETPOOLSTATS`).
pub(super) const GET_POOL_STATS: u16 = 58;
/// The answer's.
const GET_POOL_STATS_REPLY: u16 = 59;

/// The pools that are asked for.
pub(super) fn decode(message: &Message) -> Result<(Fsid, Vec<String>)> {
    let mut r = Reader::new(&message.front, "MGetPoolStats");
    r.skip(18)?; // what monitors use among themselves
    Ok((r.get()?, r.list(4, |r| r.string())?))
}

/// The answer.
pub(super) struct PoolStats {
    pub(super) tid: u64,
    pub(super) fsid: Fsid,
    pub(super) pools: BTreeMap<String, Usage>,
}

impl Outgoing for PoolStats {
    fn header(&self) -> Header {
        Header {
            tid: self.tid,
            kind: GET_POOL_STATS_REPLY,
            priority: PRIORITY_DEFAULT,
            version: 2,
            compat: 1,
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_u64_le(0);
        w.put_i16_le(-1);
        w.put_u64_le(0);
        w.put_value(&self.fsid);
        w.put_count(self.pools.len());
        for (name, usage) in &self.pools {
            w.put_str(name);
            w.put_envelope(7, 5, |w| put_pool(w, usage));
        }
        w.put_bool(true); // used bytes are known for each pool
    }
}

/// `pool_stat_t`.
fn put_pool(w: &mut BytesMut, usage: &Usage) {
    w.put_envelope(2, 2, |w| {
        // `object_stat_sum_t`: bytes, objects, clones, copies, and 36 counts of what never happens here, of which
        // four are short.
        w.put_envelope(20, 14, |w| {
            for count in [usage.bytes, usage.objects, usage.clones, usage.objects] {
                w.put_u64_le(count);
            }
            w.put_bytes(0, 24 * 8 + 4 * 4 + 8 * 8);
        });
        w.put_count(0);
    });
    w.put_bytes(0, 8 + 8 + 4 + 4); // logs, OSDs up and acting
    // `store_statfs_t`: total, available, reserved, allocated, stored, and five more.
    w.put_envelope(1, 1, |w| {
        for bytes in [0, 0, 0, usage.bytes, usage.bytes] {
            w.put_u64_le(bytes);
        }
        w.put_bytes(0, 5 * 8);
    });
    w.put_u32_le(1);
}
