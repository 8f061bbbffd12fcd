//! What clients of an image tell each other by notifying the watchers of its header (`src/librbd/WatchNotifyTypes.h`).

use bytes::{BufMut, Bytes, BytesMut};

use super::cls::SnapshotNamespace;
use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::types::SnapId;

/// The version of `NotifyMessage` that is written, and the newest that is known.
const VERSION: u8 = 7;

/// A client of an image, as clients name each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    /// Its global id.
    pub gid: u64,
    /// The cookie of its watch on the header.
    pub handle: u64,
}

impl ClientId {
    /// Whether it names anybody.
    pub fn is_valid(self) -> bool {
        self != Self::default()
    }
}

/// A request to the owner of the exclusive lock. One that is sent again has the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Who asks.
    pub client: ClientId,
    /// Its number for it.
    pub number: u64,
}

/// What a client says to all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The sender has the exclusive lock now.
    AcquiredLock(ClientId),
    /// The sender has it no more.
    ReleasedLock(ClientId),
    /// The sender wants it.
    RequestLock {
        /// Who.
        client: ClientId,
        /// Even from an owner that would keep it.
        force: bool,
    },
    /// The header has changed.
    HeaderUpdate,
    /// How far the owner is with what it was asked to do.
    Progress {
        /// The request.
        id: RequestId,
        /// Of `total`.
        done: u64,
        /// Of what there is to do.
        total: u64,
    },
    /// What the owner was asked to do is done.
    Complete {
        /// The request.
        id: RequestId,
        /// 0 or a negative errno.
        result: i32,
    },
    /// The owner of the lock shall do something. Without an id, its answer says how that went; with one, the answer
    /// only says that it has begun.
    Request(Maintenance, Option<RequestId>),
    /// Somebody is about to take a snapshot and asks whether writers could pause.
    Quiesce(RequestId),
    /// Writers need not pause any more.
    Unquiesce(RequestId),
    /// Something that is not known here.
    Unknown(u32),
}

/// Flags of a request for a snapshot (`SNAP_CREATE_FLAG_*` of `src/librbd/Types.h`, not those of its interface).
pub mod snap_create {
    /// Do not have writers pause first.
    pub const SKIP_QUIESCE: u64 = 1 << 1;
    /// Go on if some of them cannot.
    pub const IGNORE_QUIESCE_ERROR: u64 = 1 << 2;
}

/// What only the owner of the exclusive lock may do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Maintenance {
    /// Copy from the parent what is not here yet, and do without it.
    Flatten,
    /// Give the image another size.
    Resize {
        /// In bytes.
        size: u64,
        /// Whether it may lose what is beyond.
        may_shrink: bool,
    },
    /// Take a snapshot.
    SnapCreate {
        /// What for.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
        /// See [`snap_create`].
        flags: u64,
    },
    /// Remove a snapshot.
    SnapRemove {
        /// What it is for.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// Give a snapshot another name.
    SnapRename {
        /// Which.
        snap: SnapId,
        /// The new name.
        name: String,
    },
    /// Keep a snapshot from being removed, so that it can have clones.
    SnapProtect {
        /// What it is for.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// Let it be removed again.
    SnapUnprotect {
        /// What it is for.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// Make the object map anew from the objects.
    RebuildObjectMap,
    /// Give the image another name.
    Rename {
        /// The new name.
        name: String,
    },
    /// Switch features.
    UpdateFeatures {
        /// Which.
        features: u64,
        /// On or off.
        enable: bool,
    },
    /// Move the image's data from where it is migrated from.
    Migrate,
    /// Give back the space of zeros.
    Sparsify {
        /// In pieces of so many bytes.
        size: u64,
    },
    /// Set or, without a value, remove a note of the users'.
    UpdateMetadata {
        /// Its name.
        key: String,
        /// What it says.
        value: Option<String>,
    },
}

/// Numbers of notices (`NotifyOp`).
mod op {
    pub(super) const ACQUIRED_LOCK: u32 = 0;
    pub(super) const RELEASED_LOCK: u32 = 1;
    pub(super) const REQUEST_LOCK: u32 = 2;
    pub(super) const HEADER_UPDATE: u32 = 3;
    pub(super) const ASYNC_PROGRESS: u32 = 4;
    pub(super) const ASYNC_COMPLETE: u32 = 5;
    pub(super) const FLATTEN: u32 = 6;
    pub(super) const RESIZE: u32 = 7;
    pub(super) const SNAP_CREATE: u32 = 8;
    pub(super) const SNAP_REMOVE: u32 = 9;
    pub(super) const REBUILD_OBJECT_MAP: u32 = 10;
    pub(super) const SNAP_RENAME: u32 = 11;
    pub(super) const SNAP_PROTECT: u32 = 12;
    pub(super) const SNAP_UNPROTECT: u32 = 13;
    pub(super) const RENAME: u32 = 14;
    pub(super) const UPDATE_FEATURES: u32 = 15;
    pub(super) const MIGRATE: u32 = 16;
    pub(super) const SPARSIFY: u32 = 17;
    pub(super) const QUIESCE: u32 = 18;
    pub(super) const UNQUIESCE: u32 = 19;
    pub(super) const METADATA_UPDATE: u32 = 20;
}

impl Notice {
    /// Reads a notification.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        // Clients from before there was anything else to say.
        if payload.is_empty() {
            return Ok(Self::HeaderUpdate);
        }
        let mut r = Reader::new(payload, "image notification");
        r.envelope("NotifyMessage", VERSION, |version, r| {
            let op = r.u32()?;
            Ok(match op {
                op::ACQUIRED_LOCK => Self::AcquiredLock(client(version, r)?),
                op::RELEASED_LOCK => Self::ReleasedLock(client(version, r)?),
                op::REQUEST_LOCK => Self::RequestLock {
                    client: client(version, r)?,
                    force: if version >= 3 { r.bool()? } else { false },
                },
                op::HEADER_UPDATE => Self::HeaderUpdate,
                op::ASYNC_PROGRESS => {
                    Self::Progress { id: r.get()?, done: r.u64()?, total: r.u64()? }
                }
                op::ASYNC_COMPLETE => Self::Complete { id: r.get()?, result: r.i32()? },
                op::QUIESCE => Self::Quiesce(r.get()?),
                op::UNQUIESCE => Self::Unquiesce(r.get()?),
                op => match maintenance(op, version, r)? {
                    Some((what, id)) => Self::Request(what, id),
                    None => Self::Unknown(op),
                },
            })
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Bytes {
        let mut payload = BytesMut::new();
        payload.put_envelope(VERSION, 1, |w| match self {
            Self::AcquiredLock(client) => put(w, op::ACQUIRED_LOCK, client),
            Self::ReleasedLock(client) => put(w, op::RELEASED_LOCK, client),
            Self::RequestLock { client, force } => {
                put(w, op::REQUEST_LOCK, client);
                w.put_bool(*force);
            }
            Self::HeaderUpdate => w.put_u32_le(op::HEADER_UPDATE),
            Self::Progress { id, done, total } => {
                put(w, op::ASYNC_PROGRESS, id);
                w.put_u64_le(*done);
                w.put_u64_le(*total);
            }
            Self::Complete { id, result } => {
                put(w, op::ASYNC_COMPLETE, id);
                w.put_i32_le(*result);
            }
            Self::Request(what, id) => put_maintenance(w, what, id.as_ref()),
            Self::Quiesce(id) => put(w, op::QUIESCE, id),
            Self::Unquiesce(id) => put(w, op::UNQUIESCE, id),
            Self::Unknown(op) => w.put_u32_le(*op),
        });
        payload.freeze()
    }
}

fn client(version: u8, r: &mut Reader<'_>) -> Result<ClientId> {
    if version >= 2 { r.get() } else { Ok(ClientId::default()) }
}

/// Requests have an id since there are ids, or since some later release: what is left tells.
fn id_if_any(r: &mut Reader<'_>) -> Result<Option<RequestId>> {
    if r.is_empty() { Ok(None) } else { r.get().map(Some) }
}

fn maintenance(
    op: u32,
    version: u8,
    r: &mut Reader<'_>,
) -> Result<Option<(Maintenance, Option<RequestId>)>> {
    let namespace = |r: &mut Reader<'_>| match version >= 6 {
        true => r.get(),
        false => Ok(SnapshotNamespace::User),
    };
    Ok(Some(match op {
        op::FLATTEN => (Maintenance::Flatten, Some(r.get()?)),
        op::RESIZE => {
            let (size, id) = (r.u64()?, r.get()?);
            let may_shrink = if version >= 4 { r.bool()? } else { true };
            (Maintenance::Resize { size, may_shrink }, Some(id))
        }
        op::SNAP_CREATE => {
            let name = r.string()?;
            let namespace = if version == 5 { r.get()? } else { namespace(r)? };
            let id = if version >= 7 { id_if_any(r)? } else { None };
            let flags = if r.is_empty() { 0 } else { r.u64()? };
            (Maintenance::SnapCreate { namespace, name, flags }, id)
        }
        op::SNAP_REMOVE => {
            let (name, namespace) = (r.string()?, namespace(r)?);
            (Maintenance::SnapRemove { namespace, name }, id_if_any(r)?)
        }
        op::SNAP_RENAME => {
            let (snap, name) = (r.get()?, r.string()?);
            let _namespace = namespace(r)?;
            (Maintenance::SnapRename { snap, name }, id_if_any(r)?)
        }
        op::SNAP_PROTECT => {
            let (name, namespace) = (r.string()?, namespace(r)?);
            (Maintenance::SnapProtect { namespace, name }, id_if_any(r)?)
        }
        op::SNAP_UNPROTECT => {
            let (name, namespace) = (r.string()?, namespace(r)?);
            (Maintenance::SnapUnprotect { namespace, name }, id_if_any(r)?)
        }
        op::REBUILD_OBJECT_MAP => (Maintenance::RebuildObjectMap, Some(r.get()?)),
        op::RENAME => (Maintenance::Rename { name: r.string()? }, id_if_any(r)?),
        op::UPDATE_FEATURES => {
            let what = Maintenance::UpdateFeatures { features: r.u64()?, enable: r.bool()? };
            (what, id_if_any(r)?)
        }
        op::MIGRATE => (Maintenance::Migrate, Some(r.get()?)),
        op::SPARSIFY => {
            let id = r.get()?;
            (Maintenance::Sparsify { size: r.u64()? }, Some(id))
        }
        op::METADATA_UPDATE => {
            let key = r.string()?;
            let value = r.option(Reader::string)?;
            (Maintenance::UpdateMetadata { key, value }, id_if_any(r)?)
        }
        _ => return Ok(None),
    }))
}

fn put(w: &mut BytesMut, op: u32, content: &impl Encode) {
    w.put_u32_le(op);
    w.put_value(content);
}

fn put_maintenance(w: &mut BytesMut, what: &Maintenance, id: Option<&RequestId>) {
    let put_id = |w: &mut BytesMut| {
        if let Some(id) = id {
            w.put_value(id);
        }
    };
    let put_snap = |w: &mut BytesMut, name: &str, namespace: &SnapshotNamespace| {
        w.put_str(name);
        w.put_value(namespace);
        put_id(w);
    };
    match what {
        Maintenance::Flatten => {
            w.put_u32_le(op::FLATTEN);
            put_id(w);
        }
        Maintenance::Resize { size, may_shrink } => {
            w.put_u32_le(op::RESIZE);
            w.put_u64_le(*size);
            put_id(w);
            w.put_bool(*may_shrink);
        }
        Maintenance::SnapCreate { namespace, name, flags } => {
            w.put_u32_le(op::SNAP_CREATE);
            put_snap(w, name, namespace);
            w.put_u64_le(*flags);
        }
        Maintenance::SnapRemove { namespace, name } => {
            w.put_u32_le(op::SNAP_REMOVE);
            put_snap(w, name, namespace);
        }
        Maintenance::SnapRename { snap, name } => {
            w.put_u32_le(op::SNAP_RENAME);
            w.put_value(snap);
            put_snap(w, name, &SnapshotNamespace::User);
        }
        Maintenance::SnapProtect { namespace, name } => {
            w.put_u32_le(op::SNAP_PROTECT);
            put_snap(w, name, namespace);
        }
        Maintenance::SnapUnprotect { namespace, name } => {
            w.put_u32_le(op::SNAP_UNPROTECT);
            put_snap(w, name, namespace);
        }
        Maintenance::RebuildObjectMap => {
            w.put_u32_le(op::REBUILD_OBJECT_MAP);
            put_id(w);
        }
        Maintenance::Rename { name } => {
            w.put_u32_le(op::RENAME);
            w.put_str(name);
            put_id(w);
        }
        Maintenance::UpdateFeatures { features, enable } => {
            w.put_u32_le(op::UPDATE_FEATURES);
            w.put_u64_le(*features);
            w.put_bool(*enable);
            put_id(w);
        }
        Maintenance::Migrate => {
            w.put_u32_le(op::MIGRATE);
            put_id(w);
        }
        Maintenance::Sparsify { size } => {
            w.put_u32_le(op::SPARSIFY);
            put_id(w);
            w.put_u64_le(*size);
        }
        Maintenance::UpdateMetadata { key, value } => {
            w.put_u32_le(op::METADATA_UPDATE);
            w.put_str(key);
            w.put_bool(value.is_some());
            if let Some(value) = value {
                w.put_str(value);
            }
            put_id(w);
        }
    }
}

impl Decode for ClientId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { gid: r.u64()?, handle: r.u64()? })
    }
}

impl Encode for ClientId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u64_le(self.gid);
        w.put_u64_le(self.handle);
    }
}

impl Decode for RequestId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { client: r.get()?, number: r.u64()? })
    }
}

impl Encode for RequestId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_value(&self.client);
        w.put_u64_le(self.number);
    }
}

/// The notification that the header has changed.
pub fn header_update() -> Bytes {
    Notice::HeaderUpdate.encode()
}

/// What acknowledges a notification whose sender wants to know the outcome: 0 or a negative errno (`ResponseMessage`).
pub fn response(result: i32) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_envelope(1, 1, |w| w.put_i32_le(result));
    payload.freeze()
}

/// Reads what acknowledges a notification; nothing if whoever acknowledged it has nothing to say.
///
/// # Errors
/// If it is something else.
pub fn decode_response(payload: &[u8]) -> Result<Option<i32>> {
    if payload.is_empty() {
        return Ok(None);
    }
    Reader::new(payload, "answer to an image notification").envelope(
        "ResponseMessage",
        1,
        |_, r| r.i32().map(Some),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIESCER: RequestId =
        RequestId { client: ClientId { gid: 0x1035, handle: 0x7fcd_0800_4620 }, number: 2 };
    const WRITER: ClientId = ClientId { gid: 0x1040, handle: 0x7fee_3800_1ef0 };

    /// As librbd 16.2.15 sent them on `rbd resize`, `rbd snap create` and `rbd bench`, seen by `rados watch`.
    const CAPTURED: [(Notice, &[u8]); 4] = [
        (Notice::HeaderUpdate, &[7, 1, 4, 0, 0, 0, 3, 0, 0, 0]),
        (
            Notice::Quiesce(QUIESCER),
            &[
                7, 1, 0x1c, 0, 0, 0, 0x12, 0, 0, 0, 0x35, 0x10, 0, 0, 0, 0, 0, 0, 0x20, 0x46, 0, 8,
                0xcd, 0x7f, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        (
            Notice::AcquiredLock(WRITER),
            &[
                7, 1, 0x14, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 0, 0, 0, 0, 0, 0, 0xf0, 0x1e, 0, 0x38,
                0xee, 0x7f, 0, 0,
            ],
        ),
        (
            Notice::ReleasedLock(WRITER),
            &[
                7, 1, 0x14, 0, 0, 0, 1, 0, 0, 0, 0x40, 0x10, 0, 0, 0, 0, 0, 0, 0xf0, 0x1e, 0, 0x38,
                0xee, 0x7f, 0, 0,
            ],
        ),
    ];

    #[test]
    fn what_librbd_sends_is_understood() {
        for (notice, bytes) in CAPTURED {
            assert_eq!(Notice::decode(bytes), Ok(notice.clone()));
            assert_eq!(&notice.encode()[..], bytes);
            for length in 1..bytes.len() {
                let torn = &bytes[..length];
                assert!(Notice::decode(torn).is_err(), "{length} bytes of {notice:?} were enough");
            }
        }
        assert_eq!(Notice::decode(&[]), Ok(Notice::HeaderUpdate));
        assert_eq!(Notice::decode(&header_update()), Ok(Notice::HeaderUpdate));
    }

    /// As librbd 20.2.4 asks an owner, on `rbd resize` and so on. 16.2.15 and 18.2.7 send the same.
    const ASKED: [(&str, &str); 7] = [
        (
            "Resize { size: 134217728, may_shrink: false }",
            "0701250000000700000000000008000000001710000000000000c04a00dc1d7f0000010000000000000000",
        ),
        (
            "SnapCreate { namespace: User, name: \"b\", flags: 0 }",
            "070133000000080000000100000062010104000000000000001910000000000000801c016c487f0\
             00001000000000000000000000000000000",
        ),
        (
            "Rename { name: \"q\" }",
            "0701210000000e0000000100000071231000000000000050f500d0097f00000100000000000000",
        ),
        (
            "UpdateMetadata { key: \"key\", value: Some(\"value\") }",
            "07012d00000014000000030000006b6579010500000076616c75652510000000000000f0f2008cd37f00000100000000000000",
        ),
        (
            "UpdateFeatures { features: 24, enable: false }",
            "0701250000000f0000001800000000000000002910000000000000b01b01fcf97f00000100000000000000",
        ),
        (
            "RebuildObjectMap",
            "07011c0000000a0000002d1000000000000090f2005c8f7f00000100000000000000",
        ),
        (
            "Sparsify { size: 4096 }",
            "070124000000110000002f10000000000000f0f200b0497f000001000000000000000010000000000000",
        ),
    ];

    #[test]
    fn what_librbd_asks_is_understood() {
        for (expected, hex) in ASKED {
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            let notice = Notice::decode(&bytes).unwrap();
            assert_eq!(&notice.encode()[..], &bytes[..], "{expected}");
            let Notice::Request(what, Some(id)) = notice else { panic!("{notice:?}") };
            assert_eq!((format!("{what:?}").as_str(), id.number), (expected, 1));
        }
    }

    #[test]
    fn every_request_survives_the_way() {
        let (namespace, name) = (SnapshotNamespace::User, "s".to_owned());
        for what in [
            Maintenance::Flatten,
            Maintenance::Resize { size: 1 << 40, may_shrink: true },
            Maintenance::SnapCreate { namespace: namespace.clone(), name: name.clone(), flags: 6 },
            Maintenance::SnapRemove { namespace: namespace.clone(), name: name.clone() },
            Maintenance::SnapRename { snap: SnapId(7), name: name.clone() },
            Maintenance::SnapProtect { namespace: namespace.clone(), name: name.clone() },
            Maintenance::SnapUnprotect { namespace, name: name.clone() },
            Maintenance::RebuildObjectMap,
            Maintenance::Rename { name: name.clone() },
            Maintenance::UpdateFeatures { features: 24, enable: false },
            Maintenance::Migrate,
            Maintenance::Sparsify { size: 4096 },
            Maintenance::UpdateMetadata { key: name.clone(), value: Some(name.clone()) },
            Maintenance::UpdateMetadata { key: name, value: None },
        ] {
            let notice = Notice::Request(what, Some(QUIESCER));
            assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
        }
        assert_eq!(Notice::decode(&Notice::Unknown(99).encode()), Ok(Notice::Unknown(99)));
    }

    /// Without ids in requests, as releases write them that answer when they are done.
    #[test]
    fn requests_without_an_id_are_understood() {
        let what = Maintenance::SnapRemove { namespace: SnapshotNamespace::User, name: "s".into() };
        let notice = Notice::Request(what, None);
        assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
        // A snapshot by name only, as before there were other kinds.
        let old = [4, 1, 9, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, b's'];
        let what = Maintenance::SnapRemove { namespace: SnapshotNamespace::User, name: "s".into() };
        assert_eq!(Notice::decode(&old), Ok(Notice::Request(what, None)));
    }

    #[test]
    fn responses_are_an_enveloped_errno() {
        assert_eq!(&response(-95)[..], &[1, 1, 4, 0, 0, 0, 0xa1, 0xff, 0xff, 0xff]);
        assert_eq!(decode_response(&response(-95)), Ok(Some(-95)));
        assert_eq!(decode_response(&[]), Ok(None));
        assert!(decode_response(&[1]).is_err());
    }
}
