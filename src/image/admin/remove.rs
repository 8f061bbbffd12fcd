//! Removing an image.
//!
//! Data goes first, then the header, then what leads to it (`librbd/image/RemoveRequest.cc`): whoever dies in between
//! leaves an image that can be removed again.

use std::sync::Arc;

use proto::msg::op::Op;
use proto::msg::watch::Watcher;
use proto::rbd::cls::{GetIdOfName, GetMirrorMode, RemoveImage, SnapshotNamespace};
use proto::rbd::names::{self, DataNames};
use proto::rbd::{Features, OpFeatures};
use proto::types::SnapId;

use super::address_text;
use super::children::{detach_child, is_left, or_none};
use super::journal::remove_journal;
use super::objects::{Progress, change};
use super::snapshots::remove_snapshot;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::header::{self, Header, image_id, spec};
use crate::image::lock::Tried;
use crate::image::{Boxed, Image, WRITABLE};
use crate::pool::Pool;

const ENOTEMPTY: i32 = 39;
const EMLINK: i32 = 31;

/// Removes an image with all its data.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Busy`] while somebody has it open; errno `ENOTEMPTY` if it has snapshots;
/// [`Kind::Unsupported`] if more than objects must be removed, and how is not built yet.
pub async fn remove(pool: &Pool, name: &str, progress: Progress<'_>) -> Result<()> {
    let removing = format!("image {}", spec(pool, name));
    let id = match image_id(pool, name).await {
        Ok(id) => id,
        // A removal that was cut short, or a creation.
        Err(missing) if missing.kind() == Kind::NotFound => {
            let entry = GetIdOfName { name: name.to_owned() };
            pool.call(names::DIRECTORY, &entry).await.map_err(|_| missing)?
        }
        Err(error) => return Err(error),
    };
    remove_image(pool, &id, progress).await.context(&removing)?;
    or_none(pool.remove(&names::id_object(name)).await).context(&removing)?;
    let entry = RemoveImage { name: name.to_owned(), id };
    or_none(pool.call(names::DIRECTORY, &entry).await).context(removing)?;
    progress(1, 1);
    Ok(())
}

/// Removes all of an image but what leads to it; some of it may be gone already.
pub(super) fn remove_image<'a>(
    pool: &'a Pool,
    id: &'a str,
    progress: Progress<'a>,
) -> Boxed<'a, ()> {
    Box::pin(remove_header_last(pool, id, progress))
}

async fn remove_header_last(pool: &Pool, id: &str, progress: Progress<'_>) -> Result<()> {
    if let Some(header) = or_none(Header::read(pool, id).await)? {
        check(pool, id, &header).await?;
        let image = Image::open_to_remove(pool, id).await?;
        let removed = remove_content(&image, progress).await;
        image.close().await;
        removed?;
    }
    remove_journal(pool, id).await?;
    for object in [names::header(id), names::object_map(id, SnapId::HEAD)] {
        or_none(pool.remove(&object).await)?;
    }
    Ok(())
}

/// Removes its data, under its lock: nobody begins to write to it meanwhile, and an owner that died writes no more.
async fn remove_content(image: &Image, progress: Progress<'_>) -> Result<()> {
    let _usage = match image.header().features.contains(Features::EXCLUSIVE_LOCK) {
        true => match image.0.inner.try_lock().await? {
            Tried::Ours(usage) => Some(usage),
            Tried::Theirs(owner) => {
                let what = format!("it is locked by {owner}");
                // One that was locked by hand need not be open anywhere.
                let by_hand = owner.refuses(&image.spec()).is_some();
                let hint = if by_hand { "`lock rm` ends that" } else { "close or unmap it" };
                return Err(Error::new(Kind::Busy, what).with_hint(hint));
            }
        },
        false => None,
    };
    in_use(image).await?;
    // Whoever had the lock until now may have taken one since it was looked at.
    let header = Header::read(image.pool(), image.id()).await?;
    for snap in snapshots_left(image.pool(), image.id(), &header).await? {
        remove_snapshot(image, snap).await?;
    }
    remove_data(image, progress).await?;
    if let Some(link) = header::parent(image.pool(), image.id(), SnapId::HEAD).await? {
        detach_child(image.pool(), image.id(), &link.parent).await?;
    }
    Ok(())
}

/// Refuses what somebody still needs, and what is more than its objects.
async fn check(pool: &Pool, id: &str, header: &Header) -> Result<()> {
    let unsupported = header.features - WRITABLE;
    if !unsupported.is_empty() {
        let what = format!("cannot be removed yet with these features: {unsupported}");
        return Err(Error::new(Kind::Unsupported, what).with_hint("use `rbd rm`"));
    }
    snapshots_left(pool, id, header).await?;
    in_a_group(pool, id, header).await?;
    if is_mirrored(pool, id).await? {
        let what = "it is mirrored, and cannot be removed yet";
        return Err(Error::new(Kind::Unsupported, what).with_hint("use `rbd rm`"));
    }
    Ok(())
}

/// Refuses an image with snapshots, but for these: those that whoever flattened or removed their last clone did not get
/// to remove.
async fn snapshots_left(pool: &Pool, id: &str, header: &Header) -> Result<Vec<SnapId>> {
    let mut needed = None;
    for snap in &header.snap_context.snaps {
        let info = header::snapshot(pool, id, *snap).await?;
        if is_left(&info) {
            continue;
        }
        let removed = matches!(info.namespace, SnapshotNamespace::Trash { .. });
        // Those that can be removed are told first.
        needed = Some(removed && needed.unwrap_or(true));
    }
    let (what, hint) = match needed {
        None => return Ok(header.snap_context.snaps.clone()),
        Some(false) => ("image has snapshots", "remove them first: `snap purge`"),
        Some(true) => (
            "image has snapshots with linked clones",
            "they were removed, and go with their clones: remove or flatten those, `children --all` names them",
        ),
    };
    Err(Error::new(Kind::Os(ENOTEMPTY), what).with_hint(hint))
}

/// Refuses an image that is in a group.
pub(super) async fn in_a_group(pool: &Pool, id: &str, header: &Header) -> Result<()> {
    if !header.features.contains(Features::OPERATIONS) {
        return Ok(());
    }
    let get = proto::rbd::cls::GetOpFeatures {};
    let operations = OpFeatures(pool.call(&names::header(id), &get).await?);
    match operations.names().any(|name| name == "group") {
        true => Err(Error::new(Kind::Os(EMLINK), "it belongs to a group")
            .with_hint("take it out first: `rbd group image rm`")),
        false => Ok(()),
    }
}

/// Refuses an image that somebody else has open.
pub(super) async fn in_use(image: &Image) -> Result<()> {
    let watchers = image.pool().watchers(&names::header(image.id())).await?;
    let ours = image.0.client_id();
    let other =
        |watcher: &&Watcher| (watcher.name.num as u64, watcher.cookie) != (ours.gid, ours.handle);
    let Some(watcher) = watchers.iter().find(other) else { return Ok(()) };
    let what = format!("it is in use by {} at {}", watcher.name, address_text(&watcher.addr));
    Err(Error::new(Kind::Busy, what)
        .with_hint("close or unmap it; a client that crashed is forgotten after 30 s"))
}

/// Whether a mirror is kept of it.
pub(super) async fn is_mirrored(pool: &Pool, id: &str) -> Result<bool> {
    if or_none(pool.call(names::MIRRORING, &GetMirrorMode {}).await)?.unwrap_or(0) == 0 {
        return Ok(false);
    }
    let get = proto::rbd::cls::GetMirrorImage { id: id.to_owned() };
    Ok(or_none(pool.call(names::MIRRORING, &get).await)?.is_some())
}

async fn remove_data(image: &Image, progress: Progress<'_>) -> Result<()> {
    let live = image.0.current.get();
    let header = &live.header;
    let names = DataNames::new(&header.object_prefix);
    let total = header.layout.objects(header.size);
    let absent = |object: &u64| live.map.as_ref().is_some_and(|map| map.is_absent(*object));
    let mut done = (0..total).filter(absent).count() as u64;
    let objects =
        (0..total).filter(|object| !absent(object)).map(|object| (names.of(object), Op::Delete));
    let window = image.cluster().config().rbd.concurrent_management_ops;
    let snaps = Arc::new(header.snap_context.clone());
    progress(done, total);
    change(image.data_pool(), &snaps, window, objects, || {
        done += 1;
        progress(done, total);
    })
    .await
}
