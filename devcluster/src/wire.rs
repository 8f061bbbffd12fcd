//! What the daemons of the cluster and whoever drives them say to each other.

use bytes::{Bytes, BytesMut};
use proto::msg::osd_op::Reply;
use proto::msgr::{Header, Outgoing};
use proto::types::{EntityAddr, EntityName, Instant, UTime};

/// A connection, by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What time it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// For timeouts.
    pub instant: Instant,
    /// For what is stored and shown.
    pub wall: UTime,
}

/// Who is on the other side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The client instance.
    pub name: EntityName,
    /// Where it says it is.
    pub addr: EntityAddr,
}

/// A message to send. Those that there are many of are not boxed.
pub enum ToPeer {
    /// The answer of an OSD.
    Reply(Reply),
    /// Anything else.
    Other(Box<dyn Outgoing>),
}

impl Outgoing for ToPeer {
    fn header(&self) -> Header {
        match self {
            Self::Reply(reply) => reply.header(),
            Self::Other(message) => message.header(),
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        match self {
            Self::Reply(reply) => reply.encode_front(w),
            Self::Other(message) => message.encode_front(w),
        }
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        match self {
            Self::Reply(reply) => reply.data(piece),
            Self::Other(message) => message.data(piece),
        }
    }
}

/// What a daemon wants done.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all of them are replies, which are to stay unboxed"
)]
pub enum Action {
    /// Send a message.
    Send(ConnId, ToPeer),
    /// End a connection.
    Close(ConnId),
}

/// What daemons want done, in order.
#[derive(Default)]
pub struct Actions(pub Vec<Action>);

impl Actions {
    /// Sends the answer of an OSD.
    pub fn reply(&mut self, to: ConnId, reply: Reply) {
        self.0.push(Action::Send(to, ToPeer::Reply(reply)));
    }

    /// Sends any message.
    pub fn send(&mut self, to: ConnId, message: impl Outgoing + 'static) {
        self.0.push(Action::Send(to, ToPeer::Other(Box::new(message))));
    }

    /// Ends a connection.
    pub fn close(&mut self, conn: ConnId) {
        self.0.push(Action::Close(conn));
    }
}
