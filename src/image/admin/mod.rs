//! Administration of images: what `rbd create`, `ls`, `info`, `rm`, `resize` and `status` do.
//!
//! What only reads is cancel-safe. What changes something goes as far as it has got when its future is dropped, and
//! what was sent still happens: unless a function says otherwise, doing it again finishes it, as after a crash, or
//! fails because it was done: with [`Kind::Exists`] or [`Kind::NotFound`]; where a snapshot was to be protected, with
//! [`Kind::Busy`]; where its protection was to end, an image to be flattened, or features to be switched, with
//! [`Kind::Invalid`]. An image that was open meanwhile may not know what was done to it, nor do others who have it
//! open: it must be refreshed ([`Image::refresh`](crate::image::Image::refresh)) or opened again.

mod children;
mod clone;
mod copy;
mod create;
mod details;
mod diff;
mod features;
mod flatten;
mod journal;
mod locks;
mod metadata;
mod namespaces;
mod object_map;
mod objects;
mod ranges;
mod remove;
mod rename;
mod resize;
mod snapshots;
mod trash;

use std::collections::BTreeMap;

use proto::rbd::cls::{AssertDirectoryState, DIRECTORY_READY, ListImages};
use proto::rbd::names;
use proto::types::EntityAddr;

pub use self::children::{ChildImage, children};
pub use self::clone::{CloneFormat, clone, clone_like};
pub use self::copy::{copy, like};
pub use self::create::{CreateOptions, create, supported};
pub use self::details::{Details, LockKind, ParentName, Snapshot, group_names};
pub use self::diff::{DiffOptions, Difference, diff};
pub use self::features::update_features;
pub(super) use self::flatten::ERESTART;
pub use self::flatten::flatten;
pub(super) use self::journal::note;
pub use self::locks::{Locker, Locks, add_lock, locks, remove_lock};
pub use self::metadata::{CONFIG_PREFIX, Notes};
pub use self::namespaces::{create_namespace, list_namespaces, remove_namespace};
pub use self::object_map::{check_object_map, rebuild_object_map};
pub use self::objects::Progress;
pub use self::remove::remove;
pub use self::rename::rename;
pub use self::resize::resize;
pub(super) use self::snapshots::announce;
pub use self::snapshots::{
    create_snapshot, find_snapshot, protect_snapshot, remove_snapshot, rename_snapshot, rollback,
    set_snapshot_limit, unprotect_snapshot, user_snapshot,
};
pub use self::trash::{
    OnRemove, Purged, keep_for_clones, list_trash, move_to_trash, on_remove, purge_trash,
    remove_from_trash, restore_from_trash,
};
use crate::error::{Error, Kind, Result};
use crate::pool::Pool;

/// An address of a client as `rbd` prints it: without saying which messenger it is for.
pub fn address_text(addr: &EntityAddr) -> String {
    addr.bare()
}

/// Entries of a directory that are asked for at a time.
const PAGE: u64 = 1024;

/// The images of a pool or namespace: ids by names.
///
/// # Errors
/// Whatever keeps the directory from being read; a pool without one has no images.
pub async fn list(pool: &Pool) -> Result<BTreeMap<String, String>> {
    let mut images = BTreeMap::new();
    loop {
        let after = images.last_key_value().map(|(name, _): (&String, _)| name.clone());
        let page = ListImages { after: after.unwrap_or_default(), max: PAGE };
        match pool.call(names::DIRECTORY, &page).await {
            Ok(page) => {
                let last = (page.len() as u64) < PAGE;
                images.extend(page);
                if last {
                    return Ok(images);
                }
            }
            Err(error) if error.kind() == Kind::NotFound => return Ok(images),
            Err(error) => return Err(error),
        }
    }
}

/// Checks that the namespace exists, if the pool is narrowed to one.
///
/// # Errors
/// [`Kind::NotFound`] if it does not; [`Kind::Busy`] if it is being removed.
pub async fn check_namespace(pool: &Pool) -> Result<()> {
    if pool.namespace().is_empty() {
        return Ok(());
    }
    let ready = AssertDirectoryState { state: DIRECTORY_READY };
    match pool.call(names::DIRECTORY, &ready).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == Kind::NotFound => {
            let (pool, namespace) = (pool.name(), pool.namespace());
            Err(Error::new(
                Kind::NotFound,
                format!("there is no namespace {namespace} in pool {pool}"),
            ))
        }
        Err(error) => Err(error),
    }
}
