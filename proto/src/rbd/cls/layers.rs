//! Methods that change snapshots, and that tie clones to what they were made of.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::types::{Parent, SnapshotNamespace};
use super::{Empty, methods, record};
use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::types::{PoolId, SnapId};

/// A snapshot that may have no clones of the first version.
pub const UNPROTECTED: u8 = 0;
/// A snapshot that is about to lose its protection: it takes no new clones.
pub const UNPROTECTING: u8 = 1;
/// A snapshot that may have clones of the first version.
pub const PROTECTED: u8 = 2;

/// A clone of the second version, as its parent knows it (`cls::rbd::ChildImageSpec`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    /// Its pool.
    pub pool: PoolId,
    /// Its namespace in the pool.
    pub namespace: String,
    /// Its id.
    pub image_id: String,
}

impl Decode for Child {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("ChildImageSpec", 2, |version, r| {
            let (pool, image_id) = (r.get()?, r.string()?);
            // Parents in namespaces came with the second version.
            let namespace = if version >= 2 { r.string()? } else { String::new() };
            Ok(Self { pool, namespace, image_id })
        })
    }
}

impl Encode for Child {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(2, 1, |w| {
            w.put_value(&self.pool);
            w.put_str(&self.image_id);
            w.put_str(&self.namespace);
        });
    }
}

record! {
    /// A snapshot of a group of images (`cls::rbd::GroupSnapshot`), as far as it is read here.
    GroupSnapshot [1, 1] {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    }
}

record! {
    /// A group of images (`cls::rbd::GroupSpec`).
    Group [1, 1] {
        /// Its pool; -1 if there is no group.
        pool: PoolId,
        /// Its id.
        id: String,
    }
}

methods! { "rbd";
    /// The group that an image belongs to.
    reads GetGroup("image_group_get") {} -> Group;

    /// A snapshot of a group, from the group's header.
    reads GetGroupSnapshot("group_snap_get_by_id") {
        /// Its id.
        id: String,
    } -> GroupSnapshot;

    /// Writes a new snapshot down. `EEXIST` if there is one of that name, `ESTALE` if there is a newer one, `EDQUOT` if
    /// there are as many as there may be.
    writes AddSnapshot("snapshot_add") {
        /// Its name.
        name: String,
        /// Its number, fresh from the monitors.
        snap: SnapId,
        /// What it is for.
        namespace: SnapshotNamespace,
    } -> Empty;

    /// Forgets a snapshot. `EBUSY` if it is protected or has clones.
    writes RemoveSnapshot("snapshot_remove") {
        /// Which.
        snap: SnapId,
    } -> Empty;

    /// Gives a user's snapshot another name. `EEXIST` if that is taken.
    writes RenameSnapshot("snapshot_rename") {
        /// Which.
        snap: SnapId,
        /// Its new name.
        name: String,
    } -> Empty;

    /// Hides a snapshot that is being removed. `EBUSY` if it is protected, `EEXIST` if it is hidden.
    writes TrashSnapshot("snapshot_trash_add") {
        /// Which.
        snap: SnapId,
    } -> Empty;

    /// How many snapshots there may be; [`u64::MAX`] for as many as you like. `ERANGE` if there are more.
    writes SetSnapshotLimit("snapshot_set_limit") {
        /// That many.
        limit: u64,
    } -> Empty;

    /// Protects a snapshot, or no longer.
    writes SetProtectionStatus("set_protection_status") {
        /// Which.
        snap: SnapId,
        /// [`UNPROTECTED`], [`UNPROTECTING`] or [`PROTECTED`].
        status: u8,
    } -> Empty;

    /// Changes those [`crate::rbd::OpFeatures`] that are in `mask`.
    writes SetOpFeatures("op_features_set") {
        /// Which to have.
        op_features: u64,
        /// Which to change.
        mask: u64,
    } -> Empty;

    /// Makes an image a clone. `EEXIST` if it is one.
    writes AttachParent("parent_attach") {
        /// Of what.
        parent: Parent,
        /// How many bytes of it show through.
        overlap: u64,
        /// Whether it may be one already.
        reattach: bool,
    } -> Empty;

    /// Makes it one no longer; its snapshots stay clones, unless it has [`crate::rbd::Features::DEEP_FLATTEN`].
    writes DetachParent("parent_detach") {} -> Empty;

    /// Tells a snapshot that it has a clone. `EEXIST` if it knows.
    writes AttachChild("child_attach") {
        /// Which snapshot.
        snap: SnapId,
        /// The clone.
        child: Child,
    } -> Empty;

    /// Tells a snapshot that it has not. `ENOENT` if it knows.
    writes DetachChild("child_detach") {
        /// Which snapshot.
        snap: SnapId,
        /// The clone.
        child: Child,
    } -> Empty;

    /// The clones of a snapshot that are of the second version. `ENOENT` if there are none.
    reads ListChildren("children_list") {
        /// Which snapshot.
        snap: SnapId,
    } -> Vec<Child>;

    /// Writes a clone of the first version down, in the `rbd_children` of its own pool.
    writes AddChild("add_child") {
        /// The parent's pool.
        pool: PoolId,
        /// The parent's id.
        image_id: String,
        /// The parent's snapshot.
        snap: SnapId,
        /// The clone's id.
        child_id: String,
    } -> Empty;

    /// Takes it away. `ENOENT` if it is not there.
    writes RemoveChild("remove_child") {
        /// The parent's pool.
        pool: PoolId,
        /// The parent's id.
        image_id: String,
        /// The parent's snapshot.
        snap: SnapId,
        /// The clone's id.
        child_id: String,
    } -> Empty;

    /// The ids of a snapshot's clones of the first version that are in this pool. `ENOENT` if there are none.
    reads GetChildren("get_children") {
        /// The parent's pool.
        pool: PoolId,
        /// The parent's id.
        image_id: String,
        /// The parent's snapshot.
        snap: SnapId,
    } -> Vec<String>;

    /// Makes a clone's object of what its parent has in its place, unless the object has come to be in the meantime.
    writes CopyUp("sparse_copyup") {
        /// Lengths by offsets; the rest is zeros.
        extents: BTreeMap<u64, u64>,
        /// The contents of all of them, one after the other.
        data: Bytes,
    } -> Empty;
}
