//! Methods on an object map, of an image or of one of its snapshots.

use super::{Empty, methods};
use crate::rbd::ObjectStates;

methods! { "rbd";
    /// All of it. `ENOENT` if there is none, `EINVAL` if it is damaged.
    reads LoadObjectMap("object_map_load") {} -> ObjectStates;

    /// Replaces it.
    writes SaveObjectMap("object_map_save") {
        /// By these.
        states: ObjectStates,
    } -> Empty;

    /// Makes it longer or shorter, or makes one.
    writes ResizeObjectMap("object_map_resize") {
        /// How many objects it is for.
        objects: u64,
        /// The state of new ones.
        state: u8,
    } -> Empty;

    /// Changes the states of some objects.
    writes UpdateObjectMap("object_map_update") {
        /// The first of them.
        begin: u64,
        /// The one behind the last.
        end: u64,
        /// The new state.
        state: u8,
        /// Only of those in this one. Existing includes what has not changed since a snapshot.
        only: Option<u8>,
    } -> Empty;

    /// A snapshot was taken: whatever exists has not changed since.
    writes AddSnapshotToObjectMap("object_map_snap_add") {} -> Empty;

    /// A snapshot goes: what has not changed since, but had before it, has changed since the snapshot before it.
    writes RemoveSnapshotFromObjectMap("object_map_snap_remove") {
        /// The snapshot's map.
        states: ObjectStates,
    } -> Empty;
}
