//! `MOSDBackoff`: an OSD asks a client to hold back ops of a range of objects (`doc/dev/osd_internals/backoff.rst`).

use bytes::{BufMut, BytesMut};

use super::kind;
use super::object::{HObject, SpgId};
use crate::denc::{DecodeError, Put, Reader, Result};
use crate::msgr::{Header, Message, Outgoing};
use crate::types::Epoch;

/// What a [`Backoff`] says (`CEPH_OSD_BACKOFF_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackoffOp {
    /// From the OSD: send nothing more in the range.
    Block,
    /// From the client: understood.
    AckBlock,
    /// From the OSD: send again.
    Unblock,
}

/// The message, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The placement group.
    pub pgid: SpgId,
    /// The OSD's map.
    pub epoch: Epoch,
    /// Which step.
    pub op: BackoffOp,
    /// Which backoff of this session.
    pub id: u64,
    /// The first object held back.
    pub begin: HObject,
    /// The first object after it; if it equals `begin`, just that object.
    pub end: HObject,
}

impl Backoff {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MOSDBackoff");
        let (pgid, epoch) = (r.get()?, r.get()?);
        let op = match r.u8()? {
            1 => BackoffOp::Block,
            2 => BackoffOp::AckBlock,
            3 => BackoffOp::Unblock,
            op => return Err(DecodeError::Invalid { what: "backoff op", value: op.into() }),
        };
        Ok(Self { pgid, epoch, op, id: r.u64()?, begin: r.get()?, end: r.get()? })
    }

    /// Whether an object is held back.
    pub fn covers(&self, object: &HObject) -> bool {
        if self.begin == self.end {
            return *object == self.begin;
        }
        self.begin.compare(object).is_le() && object.compare(&self.end).is_lt()
    }
}

impl Outgoing for Backoff {
    fn header(&self) -> Header {
        Header {
            tid: 0,
            kind: kind::OSD_BACKOFF,
            priority: kind::PRIORITY_HIGH,
            version: 1,
            compat: 1,
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_value(&self.pgid);
        w.put_value(&self.epoch);
        w.put_u8(match self.op {
            BackoffOp::Block => 1,
            BackoffOp::AckBlock => 2,
            BackoffOp::Unblock => 3,
        });
        w.put_u64_le(self.id);
        w.put_value(&self.begin);
        w.put_value(&self.end);
    }
}
