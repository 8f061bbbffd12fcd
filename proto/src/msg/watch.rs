//! `MWatchNotify`: events on watched objects, and the payloads that watch and notify ops carry.

use bytes::{BufMut, Bytes, BytesMut};

use super::kind;
use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::msgr::{Header, Message, Outgoing};
use crate::types::{EntityAddr, EntityName};

/// What happened (`CEPH_WATCH_EVENT_*`).
pub mod event {
    /// Somebody notifies the watchers.
    pub const NOTIFY: u8 = 1;
    /// All watchers answered our notify, or timed out.
    pub const NOTIFY_COMPLETE: u8 = 2;
    /// The watch was removed.
    pub const DISCONNECT: u8 = 3;
}

/// The message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchNotify {
    /// One of [`event`].
    pub event: u8,
    /// The watch it is for, or for a completion the notifier's own cookie.
    pub cookie: u64,
    /// Unused, but on the wire.
    pub version: u64,
    /// The notify, for its acknowledgement.
    pub notify_id: u64,
    /// What the notifier says.
    pub payload: Bytes,
    /// For a completion: 0 or a negative errno (`-ETIMEDOUT` if a watcher did not answer).
    pub result: i32,
    /// The client that notifies.
    pub notifier: u64,
    /// For a completion: [`NotifyReplies`].
    pub replies: Bytes,
}

impl WatchNotify {
    /// Reads the body.
    pub fn decode(message: &Message) -> Result<Self> {
        let mut r = Reader::new(&message.front, "MWatchNotify");
        let _version = r.u8()?;
        let (event, cookie, version, notify_id) = (r.u8()?, r.u64()?, r.u64()?, r.u64()?);
        Ok(Self {
            event,
            cookie,
            version,
            notify_id,
            payload: message.front.slice_ref(r.blob()?),
            result: if message.header.version >= 2 { r.i32()? } else { 0 },
            notifier: if message.header.version >= 3 { r.u64()? } else { 0 },
            replies: message.data.clone(),
        })
    }
}

impl Outgoing for WatchNotify {
    fn header(&self) -> Header {
        Header {
            tid: 0,
            kind: kind::WATCH_NOTIFY,
            priority: kind::PRIORITY_DEFAULT,
            version: 3,
            compat: 1,
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_u8(self.event);
        w.put_u64_le(self.cookie);
        w.put_u64_le(self.version);
        w.put_u64_le(self.notify_id);
        w.put_blob(&self.payload);
        w.put_i32_le(self.result);
        w.put_u64_le(self.notifier);
    }

    fn data(&self, piece: &mut dyn FnMut(&Bytes)) {
        if !self.replies.is_empty() {
            piece(&self.replies);
        }
    }
}

/// One watcher of an object (`watch_item_t`), as a list-watchers op answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// Who watches.
    pub name: EntityName,
    /// Its number for the watch.
    pub cookie: u64,
    /// After how many silent seconds it is dropped.
    pub timeout_seconds: u32,
    /// Where it is.
    pub addr: EntityAddr,
}

/// Reads the answer to a list-watchers op (`obj_list_watch_response_t`).
pub fn decode_watchers(bytes: &[u8]) -> Result<Vec<Watcher>> {
    Reader::new(bytes, "list-watchers").envelope("obj_list_watch_response_t", 1, |_, r| {
        r.list(1, |r| {
            r.envelope("watch_item_t", 2, |version, r| {
                Ok(Watcher {
                    name: r.get()?,
                    cookie: r.u64()?,
                    timeout_seconds: r.u32()?,
                    addr: if version >= 2 { r.get()? } else { EntityAddr::default() },
                })
            })
        })
    })
}

/// Writes the answer to a list-watchers op.
pub fn encode_watchers(watchers: &[Watcher], w: &mut BytesMut) {
    w.put_envelope(1, 1, |w| {
        w.put_count(watchers.len());
        for watcher in watchers {
            w.put_envelope(2, 1, |w| {
                w.put_value(&watcher.name);
                w.put_u64_le(watcher.cookie);
                w.put_u32_le(watcher.timeout_seconds);
                w.put_value(&watcher.addr);
            });
        }
    });
}

/// The input of a notify op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyInput {
    /// After how many seconds the notify completes without the silent watchers.
    pub timeout_seconds: u32,
    /// What to tell the watchers.
    pub payload: Bytes,
}

impl NotifyInput {
    /// Writes it.
    pub fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(1); // the protocol's version
        w.put_u32_le(self.timeout_seconds);
        w.put_blob(&self.payload);
    }

    /// Reads it.
    pub fn decode(bytes: &Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "notify input");
        r.skip(4)?;
        Ok(Self { timeout_seconds: r.u32()?, payload: bytes.slice_ref(r.blob()?) })
    }
}

/// The input of a notify-ack op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyAckInput {
    /// The notify.
    pub notify_id: u64,
    /// The watch.
    pub cookie: u64,
    /// What to tell the notifier.
    pub reply: Bytes,
}

impl NotifyAckInput {
    /// Writes it.
    pub fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.notify_id);
        w.put_u64_le(self.cookie);
        w.put_blob(&self.reply);
    }

    /// Reads it.
    pub fn decode(bytes: &Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "notify-ack input");
        let (notify_id, cookie) = (r.u64()?, r.u64()?);
        // The reply is optional.
        let reply = if r.is_empty() { Bytes::new() } else { bytes.slice_ref(r.blob()?) };
        Ok(Self { notify_id, cookie, reply })
    }
}

/// What the watchers answered to a notify.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyReplies {
    /// Who answered, and what.
    pub answers: Vec<(WatchId, Bytes)>,
    /// Who did not.
    pub silent: Vec<WatchId>,
}

/// A watch, as the OSD tells all of an object's apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId {
    /// The client's global id.
    pub client: u64,
    /// The client's number for it.
    pub cookie: u64,
}

impl Decode for WatchId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { client: r.u64()?, cookie: r.u64()? })
    }
}

impl Encode for WatchId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.client);
        w.put_u64_le(self.cookie);
    }
}

impl NotifyReplies {
    /// Reads it.
    pub fn decode(bytes: &Bytes) -> Result<Self> {
        // An OSD that had nobody to ask may say nothing.
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut r = Reader::new(bytes, "answers to a notify");
        let answers = r.list(20, |r| Ok((r.get()?, bytes.slice_ref(r.blob()?))))?;
        Ok(Self { answers, silent: r.get()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_with_who_gave_them() {
        let (one, other) = (WatchId { client: 4, cookie: 1 }, WatchId { client: 5, cookie: 9 });
        let mut bytes = BytesMut::new();
        bytes.put_count(1);
        bytes.put_value(&one);
        bytes.put_str("yes");
        bytes.put_value(&vec![other]);
        let bytes = bytes.freeze();
        let replies = NotifyReplies::decode(&bytes).unwrap();
        assert_eq!(replies.answers, [(one, Bytes::from_static(b"yes"))]);
        assert_eq!(replies.silent, [other]);
        assert!(NotifyReplies::decode(&bytes.slice(..bytes.len() - 1)).is_err());
        assert_eq!(NotifyReplies::decode(&Bytes::new()), Ok(NotifyReplies::default()));
    }
}
