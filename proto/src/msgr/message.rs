//! What the messenger carries, without knowing what it means.

use bytes::{Bytes, BytesMut};

/// The fields of `ceph_msg_header2` that belong to the body; the messenger itself fills in sequence numbers and
/// lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The request's number, which its reply repeats.
    pub tid: u64,
    /// Which message it is (`CEPH_MSG_*`).
    pub kind: u16,
    /// Which message gets ahead of which in the peer's queues; 127 is the default.
    pub priority: u16,
    /// The version of the body's encoding.
    pub version: u16,
    /// The oldest version whose decoder can read it.
    pub compat: u16,
}

/// A message as it was received. The parts are slices of the receive buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub header: Header,
    /// The body.
    pub front: Bytes,
    /// Rarely used: attributes of CephFS messages.
    pub middle: Bytes,
    /// The payload, which starts at an offset of its own and is never copied.
    pub data: Bytes,
}

/// A message that can be sent. It is encoded straight into the connection's send buffer; its payload is sent from
/// where it is.
pub trait Outgoing {
    /// What it is.
    fn header(&self) -> Header;

    /// Appends the body.
    fn encode_front(&self, w: &mut BytesMut);

    /// Hands over the payload, piece by piece.
    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        let _ = piece;
    }
}

impl Outgoing for Message {
    fn header(&self) -> Header {
        self.header
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.extend_from_slice(&self.front);
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        if !self.data.is_empty() {
            piece(&self.data);
        }
    }
}
