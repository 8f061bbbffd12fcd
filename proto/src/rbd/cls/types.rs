//! What the methods of the `rbd` class give back.

use bytes::{BufMut, BytesMut};

use super::record;
use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::msg::object::SnapContext;
use crate::types::{PoolId, SnapId, UTime};

record! {
    /// The answer to `get_size`.
    SizeAndOrder {
        /// The size of an object as a power of two.
        order: u8,
        /// The size of the image in bytes.
        size: u64,
    }
}

record! {
    /// The answer to `get_features`.
    FeatureSets {
        /// What the image has.
        features: u64,
        /// Of that, what a client must know to do what it said it would.
        incompatible: u64,
    }
}

record! {
    /// The answer to `get_stripe_unit_count`.
    StripeUnitCount {
        /// In bytes.
        unit: u64,
        /// In objects.
        count: u64,
    }
}

record! {
    /// The snapshot that a clone was made of (`cls::rbd::ParentImageSpec`).
    Parent [1, 1] {
        /// Its pool; -1 if there is no parent.
        pool: PoolId,
        /// Its namespace in the pool.
        namespace: String,
        /// The id of its image.
        image_id: String,
        /// Which snapshot.
        snap: SnapId,
    }
}

record! {
    /// The answer to `get_parent`.
    ParentAndOverlap {
        /// The parent's pool; -1 if there is none.
        pool: PoolId,
        /// The id of its image.
        image_id: String,
        /// Which snapshot.
        snap: SnapId,
        /// How many bytes of it show through.
        overlap: u64,
    }
}

record! {
    /// A snapshot (`cls::rbd::SnapshotInfo`).
    SnapshotInfo [1, 1] {
        /// Its number.
        id: SnapId,
        /// What it is for.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
        /// The image's size then, in bytes.
        image_size: u64,
        /// When it was taken.
        timestamp: UTime,
        /// Clones of the second version.
        child_count: u32,
    }
}

record! {
    /// How an image is mirrored (`cls::rbd::MirrorImage`).
    MirrorImage [1, 1] {
        /// What it is called in all clusters that have it.
        global_id: String,
        /// 0 while that ends, 1 while it lasts, 2 not at all.
        state: u8,
    }
}

/// What a snapshot was taken for (`cls::rbd::SnapshotNamespace`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotNamespace {
    /// A user asked for it.
    User,
    /// It is part of a snapshot of a group of images.
    Group {
        /// The group's pool.
        pool: PoolId,
        /// The group.
        group_id: String,
        /// The group's snapshot.
        snapshot_id: String,
    },
    /// Its user removed it, but it has clones yet.
    Trash {
        /// Its name before.
        original_name: String,
    },
    /// It is for mirroring, or for what newer releases need.
    Other {
        /// Ceph's number.
        kind: u32,
    },
}

impl Decode for SnapshotNamespace {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("SnapshotNamespace", 2, |_, r| {
            Ok(match r.u32()? {
                0 => Self::User,
                1 => {
                    Self::Group { pool: r.get()?, group_id: r.string()?, snapshot_id: r.string()? }
                }
                2 => Self::Trash { original_name: r.string()? },
                kind => Self::Other { kind },
            })
        })
    }
}

impl Encode for SnapshotNamespace {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(1, 1, |w| match self {
            Self::User => w.put_u32_le(0),
            Self::Group { pool, group_id, snapshot_id } => {
                w.put_u32_le(1);
                w.put_value(pool);
                w.put_str(group_id);
                w.put_str(snapshot_id);
            }
            Self::Trash { original_name } => {
                w.put_u32_le(2);
                w.put_str(original_name);
            }
            Self::Other { kind } => w.put_u32_le(*kind),
        });
    }
}

impl Decode for SnapContext {
    /// Refuses one that no OSD would take: snapshots out of order, or newer than the newest.
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let context = Self { seq: r.get()?, snaps: r.get()? };
        let descending = context.snaps.is_sorted_by(|a, b| a > b);
        match context.snaps.first() {
            Some(newest) if *newest > context.seq || !descending => {
                Err(DecodeError::Invalid { what: "snap context", value: newest.0 })
            }
            _ => Ok(context),
        }
    }
}

impl Encode for SnapContext {
    fn encode(&self, w: &mut BytesMut) {
        w.put_value(&self.seq);
        w.put_value(&self.snaps);
    }
}
