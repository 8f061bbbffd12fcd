//! The payloads of control frames (`doc/dev/msgr2.rst`) and the header of messages.

use bytes::{BufMut, Bytes, BytesMut};

use super::auth::{AuthRequest, ConnectionMode};
use super::message::Header;
use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::types::{EntityAddr, EntityAddrs, EntityType, UTime};

/// What opens both directions, before any frame.
pub(super) const BANNER: &[u8; 8] = b"ceph v2\n";
/// What opens messenger v1.
pub(super) const BANNER_V1: &[u8; 8] = b"ceph v02";
/// The messenger feature of frames as in 2.1. Bit 1, compression, is not offered, so nothing is ever compressed.
pub(super) const REVISION_1: u64 = 1;

/// A session that ends with its connection: nothing is acknowledged, kept or resent by the messenger
/// (`CEPH_MSG_CONNECT_LOSSY`).
pub(super) const LOSSY: u64 = 1;

/// The banner's payload: what the sender can do and what it insists on.
pub(super) struct Banner {
    pub(super) supported: u64,
    pub(super) required: u64,
}

impl Banner {
    /// Ours, as bytes, with magic and length.
    pub(super) fn ours() -> [u8; 26] {
        let mut bytes = [0; 26];
        let mut w = bytes.as_mut_slice();
        w.put_slice(BANNER);
        w.put_u16_le(16);
        w.put_u64_le(REVISION_1);
        w.put_u64_le(0);
        bytes
    }
}

impl Decode for Banner {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { supported: r.u64()?, required: r.u64()? })
    }
}

/// `HELLO`: what the sender is, and the address it sees its peer at.
pub(super) struct Hello {
    pub(super) kind: EntityType,
    pub(super) peer_addr: EntityAddr,
}

impl Decode for Hello {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { kind: EntityType(r.u8()?), peer_addr: r.get()? })
    }
}

impl Encode for Hello {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(self.kind.0);
        w.put_value(&self.peer_addr);
    }
}

impl Decode for AuthRequest {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let method = r.u32()?;
        let modes = r.list(4, Reader::u32)?;
        Ok(Self {
            method,
            modes: modes.into_iter().filter_map(ConnectionMode::from_code).collect(),
            payload: Bytes::copy_from_slice(r.blob()?),
        })
    }
}

impl Encode for AuthRequest {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(self.method);
        put_list(w, self.modes.iter().map(|mode| mode.code()));
        w.put_blob(&self.payload);
    }
}

fn put_list(w: &mut BytesMut, codes: impl ExactSizeIterator<Item = u32>) {
    w.put_count(codes.len());
    codes.for_each(|code| w.put_u32_le(code));
}

/// `AUTH_BAD_METHOD`: the server takes neither the method nor, perhaps, the modes.
pub(super) struct AuthBadMethod {
    pub(super) method: u32,
    pub(super) result: i32,
    pub(super) methods: Vec<u32>,
    pub(super) modes: Vec<u32>,
}

impl Decode for AuthBadMethod {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            method: r.u32()?,
            result: r.i32()?,
            methods: r.list(4, Reader::u32)?,
            modes: r.list(4, Reader::u32)?,
        })
    }
}

impl Encode for AuthBadMethod {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(self.method);
        w.put_i32_le(self.result);
        put_list(w, self.methods.iter().copied());
        put_list(w, self.modes.iter().copied());
    }
}

/// `AUTH_DONE`: the client is who it says.
pub(super) struct AuthDone<'a> {
    pub(super) global_id: u64,
    pub(super) mode: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> AuthDone<'a> {
    pub(super) fn decode(r: &mut Reader<'a>) -> Result<Self> {
        Ok(Self { global_id: r.u64()?, mode: r.u32()?, payload: r.blob()? })
    }
}

impl Encode for AuthDone<'_> {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.global_id);
        w.put_u32_le(self.mode);
        w.put_blob(self.payload);
    }
}

/// `CLIENT_IDENT`: a new session.
pub(super) struct ClientIdent {
    pub(super) addrs: EntityAddrs,
    pub(super) target: EntityAddr,
    pub(super) num: i64,
    pub(super) global_seq: u64,
    pub(super) supported: u64,
    pub(super) required: u64,
    pub(super) flags: u64,
    pub(super) cookie: u64,
}

impl Decode for ClientIdent {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            addrs: r.get()?,
            target: r.get()?,
            num: r.i64()?,
            global_seq: r.u64()?,
            supported: r.u64()?,
            required: r.u64()?,
            flags: r.u64()?,
            cookie: r.u64()?,
        })
    }
}

impl Encode for ClientIdent {
    fn encode(&self, w: &mut BytesMut) {
        w.put_value(&self.addrs);
        w.put_value(&self.target);
        w.put_i64_le(self.num);
        w.put_u64_le(self.global_seq);
        w.put_u64_le(self.supported);
        w.put_u64_le(self.required);
        w.put_u64_le(self.flags);
        w.put_u64_le(self.cookie);
    }
}

/// `SERVER_IDENT`: the session is there.
pub(super) struct ServerIdent {
    pub(super) addrs: EntityAddrs,
    pub(super) num: i64,
    pub(super) global_seq: u64,
    pub(super) supported: u64,
    pub(super) required: u64,
    pub(super) flags: u64,
    pub(super) cookie: u64,
}

impl Decode for ServerIdent {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            addrs: r.get()?,
            num: r.i64()?,
            global_seq: r.u64()?,
            supported: r.u64()?,
            required: r.u64()?,
            flags: r.u64()?,
            cookie: r.u64()?,
        })
    }
}

impl Encode for ServerIdent {
    fn encode(&self, w: &mut BytesMut) {
        w.put_value(&self.addrs);
        w.put_i64_le(self.num);
        w.put_u64_le(self.global_seq);
        w.put_u64_le(self.supported);
        w.put_u64_le(self.required);
        w.put_u64_le(self.flags);
        w.put_u64_le(self.cookie);
    }
}

/// `AUTH_REPLY_MORE`, `AUTH_REQUEST_MORE`: bytes for the method of authentication.
pub(super) struct Blob<'a>(pub(super) &'a [u8]);

impl Encode for Blob<'_> {
    fn encode(&self, w: &mut BytesMut) {
        w.put_blob(self.0);
    }
}

/// `SESSION_RESET`: whether the client shall forget all of its session, or only the server's part.
pub(super) struct Reset(pub(super) bool);

impl Encode for Reset {
    fn encode(&self, w: &mut BytesMut) {
        w.put_bool(self.0);
    }
}

/// `IDENT_MISSING_FEATURES`, and `ACK`: the last message received.
pub(super) struct Word(pub(super) u64);

impl Encode for Word {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.0);
    }
}

/// `KEEPALIVE2` and its answer, which repeats it.
pub(super) struct Keepalive(pub(super) UTime);

impl Decode for Keepalive {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.get().map(Self)
    }
}

impl Encode for Keepalive {
    fn encode(&self, w: &mut BytesMut) {
        self.0.encode(w);
    }
}

/// `ceph_msg_header2` on the wire.
pub(super) const MESSAGE_HEADER_LEN: usize = 41;

/// Flags of messenger v1's footer: complete, without a checksum. Nobody reads them; librados sends these.
const FOOTER_FLAGS: u8 = 3;

/// What the messenger adds to a message's [`Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageHeader {
    /// The number of the message on its connection, from 1.
    pub(super) seq: u64,
    /// The last message that the sender has received.
    pub(super) ack_seq: u64,
    pub(super) header: Header,
}

impl MessageHeader {
    pub(super) fn encode(&self) -> [u8; MESSAGE_HEADER_LEN] {
        let mut bytes = [0; MESSAGE_HEADER_LEN];
        let mut w = bytes.as_mut_slice();
        let Self { seq, ack_seq, header } = self;
        w.put_u64_le(*seq);
        w.put_u64_le(header.tid);
        w.put_u16_le(header.kind);
        w.put_u16_le(header.priority);
        w.put_u16_le(header.version);
        // The padding before the data and the data's offset in its object are hints for an aligned receive buffer.
        w.put_u32_le(0);
        w.put_u16_le(0);
        w.put_u64_le(*ack_seq);
        w.put_u8(FOOTER_FLAGS);
        w.put_u16_le(header.compat);
        bytes
    }
}

impl Decode for MessageHeader {
    #[inline]
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let seq = r.u64()?;
        let tid = r.u64()?;
        let (kind, priority, version) = (r.u16()?, r.u16()?, r.u16()?);
        r.skip(4 + 2)?;
        let ack_seq = r.u64()?;
        r.skip(1)?;
        let compat = r.u16()?;
        r.skip(2)?;
        Ok(Self { seq, ack_seq, header: Header { tid, kind, priority, version, compat } })
    }
}
