//! What RBD images are kept with (Ceph's `src/cls/rbd`): headers, ids, the directory, object maps, all as keys of
//! objects whose layout only these methods know.

mod clones;
mod directory;
mod header;
mod object_map;
mod pool;
mod snapshots;

use super::Method;

/// Image features (`RBD_FEATURE_*`).
mod feature {
    pub(super) const LAYERING: u64 = 1;
    pub(super) const STRIPING: u64 = 2;
    pub(super) const EXCLUSIVE_LOCK: u64 = 4;
    pub(super) const OBJECT_MAP: u64 = 8;
    pub(super) const FAST_DIFF: u64 = 16;
    pub(super) const DEEP_FLATTEN: u64 = 32;
    pub(super) const JOURNALING: u64 = 64;
    pub(super) const DATA_POOL: u64 = 128;
    pub(super) const OPERATIONS: u64 = 256;
    pub(super) const MIGRATING: u64 = 512;
    pub(super) const NON_PRIMARY: u64 = 1024;
    pub(super) const DIRTY_CACHE: u64 = 2048;

    /// All that Ceph 16 knows.
    pub(super) const ALL: u64 = 4095;
    /// A client that does not know one of these cannot read.
    pub(super) const INCOMPATIBLE: u64 = LAYERING | STRIPING | DATA_POOL | DIRTY_CACHE;
    /// A client that does not know one of these cannot write.
    pub(super) const RW_INCOMPATIBLE: u64 = INCOMPATIBLE
        | EXCLUSIVE_LOCK
        | OBJECT_MAP
        | FAST_DIFF
        | DEEP_FLATTEN
        | JOURNALING
        | OPERATIONS
        | MIGRATING
        | NON_PRIMARY;
    /// Can be switched on and off.
    pub(super) const MUTABLE: u64 =
        EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF | JOURNALING | NON_PRIMARY | DIRTY_CACHE;
    /// Can be switched off.
    pub(super) const DISABLE_ONLY: u64 = DEEP_FLATTEN;
    /// Switched by methods only.
    pub(super) const INTERNAL: u64 = OPERATIONS | MIGRATING;
}

/// What an image takes part in (`RBD_OPERATION_FEATURE_*`).
mod op_feature {
    pub(super) const CLONE_PARENT: u64 = 1;
    pub(super) const CLONE_CHILD: u64 = 2;
    pub(super) const SNAP_TRASH: u64 = 8;
    pub(super) const ALL: u64 = 15;
}

macro_rules! methods {
    ($($kind:ident $module:ident::$name:ident,)*) => {
        &[$(Method::$kind("rbd", stringify!($name), $module::$name),)*]
    };
}

pub(super) const METHODS: &[Method] = methods![
    writes header::create,
    reads header::get_features,
    writes header::set_features,
    reads header::get_size,
    writes header::set_size,
    reads header::get_stripe_unit_count,
    writes header::set_stripe_unit_count,
    reads header::get_create_timestamp,
    reads header::get_access_timestamp,
    reads header::get_modify_timestamp,
    writes header::set_access_timestamp,
    writes header::set_modify_timestamp,
    reads header::get_flags,
    writes header::set_flags,
    reads header::op_features_get,
    writes header::op_features_set,
    reads header::get_object_prefix,
    reads header::get_data_pool,
    reads header::get_all_features,
    reads header::metadata_list,
    writes header::metadata_set,
    writes header::metadata_remove,
    reads header::metadata_get,
    reads header::image_group_get,
    reads header::migration_get,
    reads snapshots::get_snapcontext,
    reads snapshots::get_snapshot_name,
    reads snapshots::get_snapshot_timestamp,
    reads snapshots::snapshot_get,
    writes snapshots::snapshot_add,
    writes snapshots::snapshot_rename,
    writes snapshots::snapshot_remove,
    writes snapshots::snapshot_trash_add,
    reads snapshots::snapshot_get_limit,
    writes snapshots::snapshot_set_limit,
    reads snapshots::get_protection_status,
    writes snapshots::set_protection_status,
    reads snapshots::assert_snapc_seq,
    reads clones::get_parent,
    writes clones::set_parent,
    writes clones::remove_parent,
    reads clones::parent_get,
    reads clones::parent_overlap_get,
    writes clones::parent_attach,
    writes clones::parent_detach,
    writes clones::child_attach,
    writes clones::child_detach,
    reads clones::children_list,
    writes clones::add_child,
    writes clones::remove_child,
    reads clones::get_children,
    writes clones::copyup,
    writes clones::sparse_copyup,
    writes clones::sparsify,
    reads directory::get_id,
    writes directory::set_id,
    reads directory::dir_get_id,
    reads directory::dir_get_name,
    reads directory::dir_list,
    writes directory::dir_add_image,
    writes directory::dir_remove_image,
    writes directory::dir_rename_image,
    reads directory::dir_state_assert,
    writes directory::dir_state_set,
    reads object_map::object_map_load,
    writes object_map::object_map_save,
    writes object_map::object_map_resize,
    writes object_map::object_map_update,
    writes object_map::object_map_snap_add,
    writes object_map::object_map_snap_remove,
    writes pool::trash_add,
    writes pool::trash_remove,
    reads pool::trash_list,
    reads pool::trash_get,
    writes pool::trash_state_set,
    writes pool::namespace_add,
    writes pool::namespace_remove,
    reads pool::namespace_list,
    reads pool::group_dir_list,
    reads pool::mirror_uuid_get,
    reads pool::mirror_mode_get,
    reads pool::mirror_peer_list,
    reads pool::mirror_image_list,
    reads pool::mirror_image_get_image_id,
    reads pool::mirror_image_get,
    writes pool::mirror_image_remove,
    writes pool::mirror_image_status_remove,
    reads pool::mirror_image_status_get,
];
