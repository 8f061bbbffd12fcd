//! Methods on an image's header object.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::types::{Parent, ParentAndOverlap, SizeAndOrder, SnapshotInfo, StripeUnitCount};
use super::{Empty, FeatureSets, methods};
use crate::msg::object::SnapContext;
use crate::types::{PoolId, SnapId, UTime};

methods! { "rbd";
    /// Makes the header of a new image. Fails with `EEXIST` if there is one.
    writes Create("create") {
        /// The size of the image in bytes.
        size: u64,
        /// The size of its objects as a power of two.
        order: u8,
        /// Its features, without those that nobody sets.
        features: u64,
        /// What names of data objects begin with.
        object_prefix: String,
        /// Where they are, with the feature for it; -1 without.
        data_pool: PoolId,
    } -> Empty;

    /// The size of an image or of a snapshot.
    reads GetSize("get_size") {
        /// [`SnapId::HEAD`] or a snapshot.
        snap: SnapId,
    } -> SizeAndOrder;

    /// Changes the size. Objects beyond it are the caller's to remove.
    writes SetSize("set_size") {
        /// In bytes.
        size: u64,
    } -> Empty;

    /// What the image has, and what its clients must know.
    reads GetFeatures("get_features") {
        /// [`SnapId::HEAD`] or a snapshot.
        snap: SnapId,
        /// Whether only reading is wanted: that takes less knowledge.
        read_only: bool,
    } -> FeatureSets;

    /// Switches those features in `mask` that can be switched.
    writes SetFeatures("set_features") {
        /// Which to have.
        features: u64,
        /// Which to change.
        mask: u64,
    } -> Empty;

    /// Every feature that the OSD's class knows.
    reads GetAllFeatures("get_all_features") {} -> u64;

    /// What names of data objects begin with.
    reads GetObjectPrefix("get_object_prefix") {} -> String;

    /// The pool of the data objects; -1 if it is the header's.
    reads GetDataPool("get_data_pool") {} -> PoolId;

    /// How the image is striped. Fails with `ENOEXEC` without the feature.
    reads GetStripeUnitCount("get_stripe_unit_count") {} -> StripeUnitCount;

    /// Stripes a new image. Fails with `ENOEXEC` without the feature.
    writes SetStripeUnitCount("set_stripe_unit_count") {
        /// In bytes.
        unit: u64,
        /// In objects.
        count: u64,
    } -> Empty;

    /// The snapshots that writes must preserve.
    reads GetSnapContext("get_snapcontext") {} -> SnapContext;

    /// What there is to know about a snapshot. `ENOENT` if there is none.
    reads GetSnapshot("snapshot_get") {
        /// Which.
        snap: SnapId,
    } -> SnapshotInfo;

    /// How many snapshots there may be; [`u64::MAX`] if that was never limited.
    reads GetSnapshotLimit("snapshot_get_limit") {} -> u64;

    /// Whether a snapshot may have clones, or still has.
    reads GetProtectionStatus("get_protection_status") {
        /// Which.
        snap: SnapId,
    } -> u8;

    /// The parent of a clone, as releases before Nautilus tell it.
    reads GetParentOld("get_parent") {
        /// [`SnapId::HEAD`] or a snapshot.
        snap: SnapId,
    } -> ParentAndOverlap;

    /// The parent of a clone; its pool is -1 if there is none.
    reads GetParent("parent_get") {} -> Parent;

    /// How many bytes of the parent show through; nothing if there is no parent.
    reads GetParentOverlap("parent_overlap_get") {
        /// [`SnapId::HEAD`] or a snapshot.
        snap: SnapId,
    } -> Option<u64>;

    /// [`crate::rbd::Flags`].
    reads GetFlags("get_flags") {
        /// [`SnapId::HEAD`] or a snapshot.
        snap: SnapId,
    } -> u64;

    /// Changes those flags that are in `mask`.
    writes SetFlags("set_flags") {
        /// Which to have.
        flags: u64,
        /// Which to change.
        mask: u64,
        /// [`SnapId::HEAD`] or a snapshot.
        snap: SnapId,
    } -> Empty;

    /// [`crate::rbd::OpFeatures`].
    reads GetOpFeatures("op_features_get") {} -> u64;

    /// When the image was made.
    reads GetCreateTimestamp("get_create_timestamp") {} -> UTime;

    /// When the image was last read, about.
    reads GetAccessTimestamp("get_access_timestamp") {} -> UTime;

    /// When the image was last written, about.
    reads GetModifyTimestamp("get_modify_timestamp") {} -> UTime;

    /// The image is being read.
    writes SetAccessTimestamp("set_access_timestamp") {} -> Empty;

    /// The image is being written.
    writes SetModifyTimestamp("set_modify_timestamp") {} -> Empty;

    /// Users' notes and settings of the image, by name.
    reads ListMetadata("metadata_list") {
        /// Names after this one.
        after: String,
        /// How many; 0 means all.
        max: u64,
    } -> BTreeMap<String, Bytes>;

    /// One of them. `ENOENT` if there is none.
    reads GetMetadata("metadata_get") {
        /// Its name.
        name: String,
    } -> Bytes;

    /// Adds or replaces.
    writes SetMetadata("metadata_set") {
        /// By name.
        values: BTreeMap<String, Bytes>,
    } -> Empty;

    /// Takes one away.
    writes RemoveMetadata("metadata_remove") {
        /// Its name.
        name: String,
    } -> Empty;
}
