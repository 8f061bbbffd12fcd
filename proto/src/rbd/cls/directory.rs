//! Methods on the objects that lead to an image: `rbd_id.NAME`, `rbd_directory`, `rbd_namespace`, `rbd_mirroring`.

use std::collections::BTreeMap;

use super::{Empty, MirrorImage, methods};

/// State of a directory in which images may be made.
pub const DIRECTORY_READY: u8 = 0;
/// State of the directory of a namespace that is being removed.
pub const DIRECTORY_ADD_DISABLED: u8 = 1;

methods! { "rbd";
    /// The id of an image, from its id object. `ENOENT` if there is no such image.
    reads GetId("get_id") {} -> String;

    /// Writes the id object of a new image. `EEXIST` if there is one.
    writes SetId("set_id") {
        /// The id.
        id: String,
    } -> Empty;

    /// The id of a name in the directory.
    reads GetIdOfName("dir_get_id") {
        /// The image's name.
        name: String,
    } -> String;

    /// The name of an id in the directory.
    reads GetNameOfId("dir_get_name") {
        /// The image's id.
        id: String,
    } -> String;

    /// Names and ids of images, in the order of their names.
    reads ListImages("dir_list") {
        /// Names after this one.
        after: String,
        /// How many, at most.
        max: u64,
    } -> BTreeMap<String, String>;

    /// Adds an image. `EEXIST` if name or id are there, `EBADF` if only in one direction.
    writes AddImage("dir_add_image") {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    } -> Empty;

    /// Takes an image away. `ESTALE` unless name and id belong together.
    writes RemoveImage("dir_remove_image") {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    } -> Empty;

    /// Gives an image another name. `ESTALE` unless name and id belong together, `EEXIST` if the new name is taken.
    writes RenameImage("dir_rename_image") {
        /// Its old name.
        name: String,
        /// Its new name.
        new_name: String,
        /// Its id.
        id: String,
    } -> Empty;

    /// Fails with `EBUSY` unless the directory is in this state.
    reads AssertDirectoryState("dir_state_assert") {
        /// [`DIRECTORY_READY`] or [`DIRECTORY_ADD_DISABLED`].
        state: u8,
    } -> Empty;

    /// Puts the directory into that state. Fails with `EBUSY` if it has images and shall take none.
    writes SetDirectoryState("dir_state_set") {
        /// [`DIRECTORY_READY`] or [`DIRECTORY_ADD_DISABLED`].
        state: u8,
    } -> Empty;

    /// The namespaces of a pool.
    reads ListNamespaces("namespace_list") {
        /// Names after this one.
        after: String,
        /// How many, at most.
        max: u64,
    } -> Vec<String>;

    /// Makes a namespace. `EEXIST` if there is one.
    writes AddNamespace("namespace_add") {
        /// Its name.
        name: String,
    } -> Empty;

    /// Takes a namespace away.
    writes RemoveNamespace("namespace_remove") {
        /// Its name.
        name: String,
    } -> Empty;

    /// How an image is mirrored. `ENOENT` if it is not.
    reads GetMirrorImage("mirror_image_get") {
        /// The image's id.
        id: String,
    } -> MirrorImage;

    /// How images of the pool are mirrored: 0 not at all, 1 those chosen, 2 all with a journal. `ENOENT` means 0.
    reads GetMirrorMode("mirror_mode_get") {} -> u32;
}
