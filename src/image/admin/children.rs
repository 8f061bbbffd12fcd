//! Who hangs on whom: clones of snapshots, told by both sides.
//!
//! Clones of the second version are written down with the snapshot that they are of, those of the first in the
//! `rbd_children` of their own pool.

use std::collections::BTreeSet;

use proto::rbd::cls::{
    Child, DetachChild, GetChildren, GetNameOfId, GetOpFeatures, GetTrash, ListChildren, Parent,
    RemoveChild, SnapshotInfo, SnapshotNamespace,
};
use proto::rbd::{OpFeatures, names};
use proto::types::SnapId;

use super::snapshots::remove_snapshot;
use super::trash::remove_kept_parent;
use crate::error::{Context as _, Kind, Result};
use crate::image::{Image, OpenOptions, header};
use crate::pool::Pool;

/// A clone of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildImage {
    /// Its pool.
    pub pool: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name, or the one it had before it was moved to the trash.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Whether it is in the trash.
    pub in_trash: bool,
}

/// The clones of one snapshot of an image, or of all of them.
///
/// # Errors
/// Whatever keeps them from being found.
pub async fn children(pool: &Pool, id: &str, snaps: &[SnapId]) -> Result<Vec<ChildImage>> {
    let cluster = pool.cluster();
    cluster.refresh_map().await?;
    let mut found = BTreeSet::new();
    for snap in snaps {
        for other in cluster.pools() {
            let other = other.with_namespace(pool.namespace());
            let get = GetChildren { pool: pool.id(), image_id: id.to_owned(), snap: *snap };
            for child in or_none(other.call(names::CHILDREN, &get).await)?.unwrap_or_default() {
                found.insert(named(&other, child).await?);
            }
        }
        let list = ListChildren { snap: *snap };
        for child in or_none(pool.call(&names::header(id), &list).await)?.unwrap_or_default() {
            let other = cluster.pool_by_id(child.pool).await?.with_namespace(&child.namespace);
            found.insert(named(&other, child.image_id).await?);
        }
    }
    Ok(found.into_iter().collect())
}

async fn named(pool: &Pool, id: String) -> Result<ChildImage> {
    let trashed = or_none(pool.call(names::TRASH, &GetTrash { id: id.clone() }).await)?;
    let in_trash = trashed.is_some();
    let name = match trashed {
        Some(image) => image.name,
        None => pool.call(names::DIRECTORY, &GetNameOfId { id: id.clone() }).await?,
    };
    let (pool, namespace) = (pool.name().to_owned(), pool.namespace().to_owned());
    Ok(ChildImage { pool, namespace, name, id, in_trash })
}

/// Tells the parent of a clone that it is one no longer, and removes what of the parent only this clone needed.
pub(super) async fn detach_child(pool: &Pool, id: &str, parent: &Parent) -> Result<()> {
    match leave_parent(pool, id, parent).await? {
        Some(in_pool) => drop_hidden(&in_pool, parent).await,
        None => Ok(()),
    }
}

/// Tells the parent of a clone that it is one no longer. That the parent does not know it is as good. The parent's
/// pool, if its snapshot may have been kept for this clone ([`drop_hidden`]).
pub(super) async fn leave_parent(pool: &Pool, id: &str, parent: &Parent) -> Result<Option<Pool>> {
    let get = GetOpFeatures {};
    let operations = OpFeatures(pool.call(&names::header(id), &get).await?);
    if !operations.names().any(|name| name == "clone-child") {
        let remove = RemoveChild {
            pool: parent.pool,
            image_id: parent.image_id.clone(),
            snap: parent.snap,
            child_id: id.to_owned(),
        };
        or_none(pool.call(names::CHILDREN, &remove).await)?;
        return Ok(None);
    }
    let in_pool = pool.cluster().pool_by_id(parent.pool).await?.with_namespace(&parent.namespace);
    let object = names::header(&parent.image_id);
    let (namespace, image_id) = (pool.namespace().to_owned(), id.to_owned());
    let child = Child { pool: pool.id(), namespace, image_id };
    or_none(in_pool.call(&object, &DetachChild { snap: parent.snap, child }).await)?;
    Ok(Some(in_pool))
}

/// Removes a snapshot for good that was hidden when it was removed, if its last clone is gone. Where this is cut short,
/// the snapshot goes with its image ([`super::remove()`]).
pub(super) async fn drop_hidden(pool: &Pool, parent: &Parent) -> Result<()> {
    drop_hidden_snapshot(pool, &parent.image_id, parent.snap).await.context("the clone's parent")
}

async fn drop_hidden_snapshot(pool: &Pool, id: &str, snap: SnapId) -> Result<()> {
    let Some(info) = or_none(header::snapshot(pool, id, snap).await)? else { return Ok(()) };
    if !is_left(&info) {
        return Ok(());
    }
    let image = Image::open_by_id(pool, id, &OpenOptions::default()).await?;
    // It may be a clone itself, of a snapshot that is hidden, and so on.
    let removed = Box::pin(remove_snapshot(&image, snap)).await;
    image.close().await;
    removed?;
    // Of the clone nothing depends on that: it can be removed later.
    if let Err(error) = Box::pin(remove_kept_parent(pool, id)).await {
        tracing::warn!(%error, "an image that was kept for its clones stays in the trash");
    }
    Ok(())
}

/// Whether nothing needs the snapshot any more: it was removed, and the clones that it was kept for are gone.
pub(super) fn is_left(info: &SnapshotInfo) -> bool {
    info.child_count == 0 && matches!(info.namespace, SnapshotNamespace::Trash { .. })
}

/// What is not there is nothing.
pub(super) fn or_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
