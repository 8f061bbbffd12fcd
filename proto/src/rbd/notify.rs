//! What clients of an image tell each other by notifying the watchers of its header (`src/librbd/WatchNotifyTypes.h`).

use bytes::{BufMut, Bytes, BytesMut};

use crate::denc::{Put, Reader, Result};

/// What a notification is about (`NotifyOp`). What else is in it matters only to the owner of the exclusive lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotifyOp(pub u32);

impl NotifyOp {
    /// Somebody has the exclusive lock now.
    pub const ACQUIRED_LOCK: Self = Self(0);
    /// Nobody has it any more.
    pub const RELEASED_LOCK: Self = Self(1);
    /// Somebody wants it.
    pub const REQUEST_LOCK: Self = Self(2);
    /// The header has changed.
    pub const HEADER_UPDATE: Self = Self(3);
    /// Somebody is about to take a snapshot and asks whether writers could pause.
    pub const QUIESCE: Self = Self(18);
    /// Writers need not pause any more.
    pub const UNQUIESCE: Self = Self(19);

    /// Reads a notification.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        // Clients from before there was anything else to say.
        if payload.is_empty() {
            return Ok(Self::HEADER_UPDATE);
        }
        let mut r = Reader::new(payload, "image notification");
        r.envelope("NotifyMessage", 7, |_, r| r.u32().map(Self))
    }
}

/// The notification that the header has changed.
pub fn header_update() -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_envelope(1, 1, |w| w.put_u32_le(NotifyOp::HEADER_UPDATE.0));
    payload.freeze()
}

/// What acknowledges a notification whose sender wants to know the outcome: 0 or a negative errno (`ResponseMessage`).
pub fn response(result: i32) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_envelope(1, 1, |w| w.put_i32_le(result));
    payload.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As librbd 16.2.15 sent them on `rbd resize`, `rbd snap create` and `rbd bench`, seen by `rados watch`.
    const CAPTURED: [(NotifyOp, &[u8]); 4] = [
        (NotifyOp::HEADER_UPDATE, &[7, 1, 4, 0, 0, 0, 3, 0, 0, 0]),
        (
            NotifyOp::QUIESCE,
            &[
                7, 1, 0x1c, 0, 0, 0, 0x12, 0, 0, 0, 0x35, 0x10, 0, 0, 0, 0, 0, 0, 0x20, 0x46, 0, 8,
                0xcd, 0x7f, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        (
            NotifyOp::ACQUIRED_LOCK,
            &[
                7, 1, 0x14, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 0, 0, 0, 0, 0, 0, 0xf0, 0x1e, 0, 0x38,
                0xee, 0x7f, 0, 0,
            ],
        ),
        (
            NotifyOp::RELEASED_LOCK,
            &[
                7, 1, 0x14, 0, 0, 0, 1, 0, 0, 0, 0x40, 0x10, 0, 0, 0, 0, 0, 0, 0xf0, 0x1e, 0, 0x38,
                0xee, 0x7f, 0, 0,
            ],
        ),
    ];

    #[test]
    fn what_librbd_sends_is_understood() {
        for (op, bytes) in CAPTURED {
            assert_eq!(NotifyOp::decode(bytes), Ok(op));
            for length in 1..bytes.len() {
                let torn = &bytes[..length];
                assert!(NotifyOp::decode(torn).is_err(), "{length} bytes of {op:?} were enough");
            }
        }
        assert_eq!(NotifyOp::decode(&[]), Ok(NotifyOp::HEADER_UPDATE));
        assert_eq!(NotifyOp::decode(&header_update()), Ok(NotifyOp::HEADER_UPDATE));
    }

    #[test]
    fn responses_are_an_enveloped_errno() {
        assert_eq!(&response(-95)[..], &[1, 1, 4, 0, 0, 0, 0xa1, 0xff, 0xff, 0xff]);
    }
}
