//! What the monitor client says to monitors.

use bytes::BytesMut;

use crate::msg::mon::{Auth, Command, GetVersion, PoolOp, Statfs, Subscribe};
use crate::msgr::{Header, Outgoing};

/// A message for a monitor, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Wants maps.
    Subscribe(Subscribe),
    /// Renews tickets.
    Auth(Auth),
    /// Runs a command.
    Command(Command),
    /// Asks for the newest version of a map.
    GetVersion(GetVersion),
    /// Works on a pool or on one of its snapshots.
    PoolOp(PoolOp),
    /// Asks how big the cluster or a pool is.
    Statfs(Statfs),
}

impl Request {
    fn body(&self) -> &dyn Outgoing {
        match self {
            Self::Subscribe(body) => body,
            Self::Auth(body) => body,
            Self::Command(body) => body,
            Self::GetVersion(body) => body,
            Self::PoolOp(body) => body,
            Self::Statfs(body) => body,
        }
    }
}

impl Outgoing for Request {
    fn header(&self) -> Header {
        self.body().header()
    }

    fn encode_front(&self, w: &mut BytesMut) {
        self.body().encode_front(w);
    }

    fn data(&self, piece: &mut dyn FnMut(&bytes::Bytes)) {
        self.body().data(piece);
    }
}
