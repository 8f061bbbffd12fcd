//! What a list-snaps op answers: the versions of an object that are kept for snapshots (`obj_list_snap_response_t`).

use crate::denc::{Decode, Reader, Result};
use crate::types::SnapId;

/// The versions of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectSnaps {
    /// Oldest first; the head, if there is one, is the last.
    pub versions: Vec<ObjectVersion>,
    /// The newest snapshot that the head was written with.
    pub seq: SnapId,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    /// [`SnapId::HEAD`], or the newest snapshot that it was made for.
    pub id: SnapId,
    /// The snapshots that it is for, oldest first; none for the head.
    pub snaps: Vec<SnapId>,
    /// Which bytes it has in common with the next version: offset and length.
    pub overlap: Vec<(u64, u64)>,
    /// Its size in bytes.
    pub size: u64,
}

impl Decode for ObjectSnaps {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("obj_list_snap_response_t", 2, |version, r| {
            let mut versions = r.list(6, |r| {
                r.envelope("clone_info", 1, |_, r| {
                    let (id, mut snaps): (_, Vec<SnapId>) = (r.get()?, r.get()?);
                    snaps.sort_unstable();
                    let overlap = r.list(16, |r| Ok((r.u64()?, r.u64()?)))?;
                    Ok(ObjectVersion { id, snaps, overlap, size: r.u64()? })
                })
            })?;
            versions.sort_by_key(|version| version.id);
            let seq = if version >= 2 { r.get()? } else { SnapId(0) };
            Ok(Self { versions, seq })
        })
    }
}

impl ObjectSnaps {
    /// The version that is read at a snapshot or at [`SnapId::HEAD`], if there is one.
    pub fn at(&self, snap: SnapId) -> Option<&ObjectVersion> {
        self.versions.iter().find(|version| match version.id {
            // Written before the snapshot was taken, and not since.
            SnapId::HEAD => snap == SnapId::HEAD || snap > self.seq,
            _ => version.snaps.contains(&snap),
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::denc::{Put, decode};

    fn encoded(versions: &[(u64, &[u64])], seq: u64) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.put_envelope(2, 1, |w| {
            w.put_count(versions.len());
            for (id, snaps) in versions {
                w.put_envelope(1, 1, |w| {
                    w.put_u64_le(*id);
                    w.put_count(snaps.len());
                    snaps.iter().for_each(|snap| w.put_u64_le(*snap));
                    w.put_count(1);
                    w.put_u64_le(0);
                    w.put_u64_le(4096);
                    w.put_u64_le(8192);
                });
            }
            w.put_u64_le(seq);
        });
        bytes
    }

    #[test]
    fn a_snapshot_is_read_from_the_version_that_was_made_for_it() {
        // A clone for 3 and 5, and a head that was written after 5 was taken.
        let bytes = encoded(&[(5, &[5, 3]), (SnapId::HEAD.0, &[])], 5);
        let snaps: ObjectSnaps = decode(&bytes, "snaps").unwrap();
        let id = |snap| snaps.at(snap).map(|version| version.id);
        assert_eq!(id(SnapId(3)), Some(SnapId(5)));
        assert_eq!(id(SnapId(5)), Some(SnapId(5)));
        assert_eq!(id(SnapId(4)), None, "not there then, or that snapshot is gone");
        assert_eq!(id(SnapId(6)), Some(SnapId::HEAD), "unchanged since");
        assert_eq!(id(SnapId::HEAD), Some(SnapId::HEAD));
        assert_eq!(snaps.versions[0].overlap, [(0, 4096)]);
        for length in 0..bytes.len() {
            assert!(decode::<ObjectSnaps>(&bytes[..length], "snaps").is_err());
        }
        // One that was removed since.
        let snaps: ObjectSnaps = decode(&encoded(&[(5, &[5])], 7), "snaps").unwrap();
        assert_eq!((snaps.at(SnapId::HEAD), snaps.at(SnapId(8))), (None, None));
    }
}
