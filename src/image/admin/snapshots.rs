//! Snapshots: taking, naming, protecting and removing them, and going back to one.
//!
//! The orders are librbd's (`librbd/operation/Snapshot*Request.cc`), so that whoever dies in between leaves what librbd
//! knows how to finish, too.

use std::sync::Arc;

use proto::msg::op::Op;
use proto::rbd::cls::{
    AddSnapshot, GetChildren, GetProtectionStatus, GetSnapshotLimit, PROTECTED, RemoveSnapshot,
    RenameSnapshot, SetProtectionStatus, SetSnapshotLimit, SnapshotInfo, SnapshotNamespace,
    TrashSnapshot, UNPROTECTED, UNPROTECTING,
};
use proto::rbd::journal::Operation;
use proto::rbd::names::{self, DataNames};
use proto::rbd::{Features, ObjectState, ObjectStates, notify};
use proto::types::SnapId;

use super::children::detach_child;
use super::journal::{alone, journaled, note};
use super::object_map::head_states;
use super::objects::{Progress, change};
use super::resize::resize_alone;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::object_map::{ObjectMap, after_snapshot};
use crate::image::{Image, PAUSE, header};
use crate::pool::Pool;

/// How often a snapshot is tried to be taken while others take some, too.
const ATTEMPTS: u32 = 10;

const ENOSYS: i32 = 38;
const EDQUOT: i32 = 122;
const ESTALE: i32 = 116;

/// Takes a snapshot. When this returns, it is on disk, and every client that writes to the image preserves it.
///
/// Not cancel-safe: dropped in between, the snapshot may or may not be there.
///
/// # Errors
/// [`Kind::Exists`] if there is one of that name; errno `EDQUOT` if there are as many as there may be.
pub async fn create_snapshot(
    image: &Image,
    namespace: &SnapshotNamespace,
    name: &str,
) -> Result<SnapId> {
    let doing = format!("snapshot {}@{name}", image.spec());
    writable(image)?;
    if name.is_empty() || name.contains(['/', '@']) {
        let what = format!("{doing}: a name must not be empty nor contain / or @");
        return Err(Error::new(Kind::Invalid, what));
    }
    let _alone = alone(image).await.context(&doing)?;
    let maps = image.0.remaking.maps.write().await;
    // What is written before is in it, what comes after is not.
    let pause = image.0.current.pause(PAUSE).await.context(&doing)?;
    let taken = async {
        let (snap, noted) = add_snapshot(image, namespace, name, &doing).await?;
        drop((pause, maps));
        let told = notify_others(image).await;
        noted.and(told).context(&doing)?;
        Ok(snap)
    };
    let operation = || Operation::SnapCreate(namespace.clone(), name.to_owned());
    journaled(image, operation, taken).await
}

/// Adds a snapshot that nothing is written meanwhile. Besides, whether we could take note of it.
async fn add_snapshot(
    image: &Image,
    namespace: &SnapshotNamespace,
    name: &str,
    doing: &str,
) -> Result<(SnapId, Result<()>)> {
    for _ in 0..ATTEMPTS {
        let data_pool = image.data_pool().id();
        let snap = image.cluster().allocate_snap(data_pool).await.context(doing)?;
        let add = AddSnapshot { name: name.to_owned(), snap, namespace: namespace.clone() };
        let Err(error) = image.pool().call(&names::header(image.id()), &add).await else {
            // It is there: whatever goes wrong from here on, whoever writes has to know of it.
            let mapped = map_snapshot(image, snap).await;
            let refreshed = image.refresh().await;
            return Ok((snap, mapped.and(refreshed)));
        };
        if let Err(error) = image.cluster().release_snap(data_pool, snap).await {
            tracing::warn!(%error, "the number of a snapshot that was not taken is lost");
        }
        match error.kind() {
            // Somebody else took one with a newer number.
            Kind::Os(ESTALE) => image.refresh().await.context(doing)?,
            Kind::Exists => {
                return Err(Error::new(Kind::Exists, format!("{doing} exists already")));
            }
            Kind::Full => {
                let limit = GetSnapshotLimit {};
                let limit = image.pool().call(&names::header(image.id()), &limit).await?;
                let what = format!("{doing}: there may be no more than {limit}");
                return Err(Error::new(Kind::Os(EDQUOT), what)
                    .with_hint("`snap limit set` or `snap limit clear` changes that"));
            }
            _ => return Err(error.context(doing)),
        }
    }
    Err(Error::new(Kind::Busy, format!("{doing}: others take snapshots all the time")))
}

/// Removes a snapshot. If it has clones of the second version, it is only hidden, and goes with the last of them.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Busy`] if it is protected, or hidden already and still has clones.
pub async fn remove_snapshot(image: &Image, snap: SnapId) -> Result<()> {
    writable(image)?;
    let pool = image.pool();
    let object = names::header(image.id());
    let info = header::snapshot(pool, image.id(), snap).await?;
    let doing = format!("snapshot {}@{}", image.spec(), info.name);
    let was_hidden = matches!(info.namespace, SnapshotNamespace::Trash { .. });
    if !was_hidden {
        match pool.call(&object, &TrashSnapshot { snap }).await {
            Err(error) if error.kind() == Kind::Busy => {
                return Err(Error::new(Kind::Busy, format!("{doing} is protected"))
                    .with_hint("`snap unprotect` comes first"));
            }
            Err(error) if error.kind() != Kind::Exists => return Err(error.context(doing)),
            _ => {}
        }
    }
    let info = header::snapshot(pool, image.id(), snap).await.context(&doing)?;
    if info.child_count > 0 {
        if was_hidden {
            let what = format!("{doing} has {} clones", info.child_count);
            return Err(Error::new(Kind::Busy, what).with_hint("remove or flatten them first"));
        }
        return announce(image).await.context(doing);
    }
    forget_parent_of(image, snap).await.context(&doing)?;
    let maps = image.0.remaking.maps.write().await;
    if image.header().features.contains(Features::OBJECT_MAP) {
        image.0.on_disk_map().remove_snapshot(snap, &image.header()).await.context(&doing)?;
    }
    let released = image.cluster().release_snap(image.data_pool().id(), snap).await;
    if let Err(error) = released
        && error.kind() != Kind::NotFound
    {
        return Err(error.context(doing));
    }
    pool.call(&object, &RemoveSnapshot { snap }).await.context(&doing)?;
    let refreshed = image.refresh().await;
    drop(maps);
    let told = notify_others(image).await;
    refreshed.and(told).context(doing)
}

/// If the snapshot is the last thing of the image that knows a parent, the parent is told that it is no more.
async fn forget_parent_of(image: &Image, snap: SnapId) -> Result<()> {
    let (pool, id) = (image.pool(), image.id());
    let Some(link) = header::parent(pool, id, snap).await? else { return Ok(()) };
    let mut others = vec![SnapId::HEAD];
    others.extend(image.header().snap_context.snaps.iter().filter(|other| **other != snap));
    for other in others {
        if header::parent(pool, id, other).await?.is_some() {
            return Ok(());
        }
    }
    detach_child(pool, id, &link.parent).await
}

/// Gives a user's snapshot another name.
///
/// # Errors
/// [`Kind::Exists`] if that is taken; [`Kind::NotFound`].
pub async fn rename_snapshot(image: &Image, snap: SnapId, new_name: &str) -> Result<()> {
    writable(image)?;
    let doing = format!("snapshot {snap} of image {}", image.spec());
    if new_name.is_empty() || new_name.contains(['/', '@']) {
        let what = format!("{doing}: a name must not be empty nor contain / or @");
        return Err(Error::new(Kind::Invalid, what));
    }
    let rename = RenameSnapshot { snap, name: new_name.to_owned() };
    match image.pool().call(&names::header(image.id()), &rename).await {
        Ok(_) => announce(image).await.context(doing),
        Err(error) if error.kind() == Kind::Exists => {
            let what = format!("snapshot {}@{new_name} exists already", image.spec());
            Err(Error::new(Kind::Exists, what))
        }
        Err(error) => Err(error.context(doing)),
    }
}

/// Keeps a snapshot from being removed, and lets clones of the first version be made of it.
///
/// # Errors
/// [`Kind::Busy`] if it is protected already; errno `ENOSYS` if the image cannot have clones.
pub async fn protect_snapshot(image: &Image, name: &str) -> Result<()> {
    let (snap, doing) = protectable(image, name).await?;
    if protection(image, snap).await? == PROTECTED {
        return Err(Error::new(Kind::Busy, format!("{doing} is protected already")));
    }
    set_protection(image, snap, PROTECTED).await.context(&doing)?;
    announce(image).await.context(doing)
}

/// Ends the protection of a snapshot, unless it has clones of the first version.
///
/// # Errors
/// [`Kind::Invalid`] if it is not protected; [`Kind::Busy`] if it has clones.
pub async fn unprotect_snapshot(image: &Image, name: &str) -> Result<()> {
    let (snap, doing) = protectable(image, name).await?;
    if protection(image, snap).await? == UNPROTECTED {
        return Err(Error::new(Kind::Invalid, format!("{doing} is not protected")));
    }
    // From now on no clone is made of it that the search could miss.
    set_protection(image, snap, UNPROTECTING).await.context(&doing)?;
    let result = match find_child(image, snap).await {
        Ok(None) => set_protection(image, snap, UNPROTECTED).await,
        Ok(Some((pool, id))) => {
            let what = format!("the image with the id {id} in pool {pool} is a clone of it");
            Err(Error::new(Kind::Busy, what).with_hint("remove or flatten it first"))
        }
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        if let Err(error) = set_protection(image, snap, PROTECTED).await {
            tracing::warn!(%error, snapshot = doing, "is left between protected and not");
        }
        return Err(error.context(doing));
    }
    announce(image).await.context(doing)
}

async fn protectable(image: &Image, name: &str) -> Result<(SnapId, String)> {
    writable(image)?;
    let doing = format!("snapshot {}@{name}", image.spec());
    if !image.header().features.contains(Features::LAYERING) {
        let what = format!("{doing}: the image has not the feature layering");
        return Err(Error::new(Kind::Os(ENOSYS), what));
    }
    Ok((user_snapshot(image, name).await?.id, doing))
}

async fn protection(image: &Image, snap: SnapId) -> Result<u8> {
    image.pool().call(&names::header(image.id()), &GetProtectionStatus { snap }).await
}

async fn set_protection(image: &Image, snap: SnapId, status: u8) -> Result<()> {
    let set = SetProtectionStatus { snap, status };
    image.pool().call(&names::header(image.id()), &set).await.map(drop)
}

/// A clone of the first version: its pool and id.
async fn find_child(image: &Image, snap: SnapId) -> Result<Option<(String, String)>> {
    let parent = image.pool();
    parent.cluster().refresh_map().await?;
    for pool in parent.cluster().pools() {
        let children = children_in(&pool.with_namespace(parent.namespace()), image, snap).await?;
        if let Some(id) = children.into_iter().next() {
            return Ok(Some((pool.name().to_owned(), id)));
        }
    }
    Ok(None)
}

async fn children_in(pool: &Pool, image: &Image, snap: SnapId) -> Result<Vec<String>> {
    let image_id = image.id().to_owned();
    let children = GetChildren { pool: image.pool().id(), image_id, snap };
    match pool.call(names::CHILDREN, &children).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
        children => children,
    }
}

/// Limits how many snapshots the image may have; `None` for as many as you like.
///
/// # Errors
/// errno `ERANGE` if it has more.
pub async fn set_snapshot_limit(image: &Image, limit: Option<u64>) -> Result<()> {
    writable(image)?;
    let limit = limit.unwrap_or(u64::MAX);
    // Only who has the lock writes to the journal.
    let _usage = match image.header().features.contains(Features::JOURNALING) {
        true => Some(image.0.inner.demand_lock().await.context(image.spec())?),
        false => None,
    };
    let header = names::header(image.id());
    image.pool().call(&header, &SetSnapshotLimit { limit }).await.context(image.spec())?;
    announce(image).await.context(image.spec())?;
    note(image, Operation::SnapLimit(limit)).await;
    Ok(())
}

/// Brings the image back to what it was at a snapshot: its size, then every object.
///
/// Writes wait until it is done. Cancel-safe in this sense: doing it again finishes it.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such snapshot.
pub async fn rollback(image: &Image, name: &str, progress: Progress<'_>) -> Result<()> {
    writable(image)?;
    let snapshot = user_snapshot(image, name).await?;
    let doing = format!("rolling back to snapshot {}@{name}", image.spec());
    let _usage = image.0.inner.demand_lock().await.context(&doing)?;
    let _alone = alone(image).await.context(&doing)?;
    // Shrinking makes what snapshots need of the parent, which waits as every write does: it comes before the pause.
    let (_pause, maps) = loop {
        if snapshot.image_size != image.header().size {
            let mut quiet = |_, _| {};
            let resized = resize_alone(image, snapshot.image_size, true, &mut quiet);
            resized.await.context(&doing)?;
        }
        let pause = image.0.current.pause(PAUSE).await.context(&doing)?;
        // Whoever makes the maps anew says nothing of what comes back from here on.
        let maps = image.0.remaking.maps.write().await;
        // Somebody else may have changed its size once more.
        if snapshot.image_size == image.header().size {
            break (pause, maps);
        }
    };
    let operation = || Operation::SnapRollback(SnapshotNamespace::User, name.to_owned());
    let back = async {
        bring_back(image, snapshot.id, progress).await?;
        drop(maps);
        announce(image).await
    };
    journaled(image, operation, back).await.context(doing)
}

/// Brings every object back to what it was at a snapshot, which the image is as large as.
async fn bring_back(image: &Image, snap: SnapId, progress: Progress<'_>) -> Result<()> {
    let header = image.header();
    let map = map_of(image)?;
    if map.is_some() {
        // Until it is known which there are.
        let all = ObjectStates::new(header.layout.objects(header.size), ObjectState::Exists);
        image.0.on_disk_map().save(SnapId::HEAD, all).await?;
    }
    let names = DataNames::new(&header.object_prefix);
    let total = header.layout.objects(header.size);
    let changes = (0..total).map(|object| (names.of(object), Op::Rollback { snap }));
    let window = image.cluster().config().rbd.concurrent_management_ops;
    let snaps = Arc::new(header.snap_context.clone());
    let mut done = 0;
    progress(0, total);
    change(image.data_pool(), &snaps, window, changes, || {
        done += 1;
        progress(done, total);
    })
    .await?;
    if let Some(map) = map {
        // By OSDs, all that was brought back has changed since. librbd takes the snapshot's map, which then fails its
        // own check.
        let states = head_states(image).await?;
        image.0.on_disk_map().save(SnapId::HEAD, states.clone()).await?;
        image.0.replace_map(Some(Arc::new(ObjectMap::new(&states, map.is_trusted()))));
    }
    Ok(())
}

/// The object map that has to be kept up, if there is one.
fn map_of(image: &Image) -> Result<Option<Arc<ObjectMap>>> {
    if !image.header().features.contains(Features::OBJECT_MAP) {
        return Ok(None);
    }
    let map = image.0.current.get().map.clone();
    let lost = || Error::new(Kind::Busy, "the exclusive lock has just been handed on");
    map.ok_or_else(lost).map(Some)
}

/// Gives a snapshot that was just taken its object map. Nothing is written meanwhile.
async fn map_snapshot(image: &Image, snap: SnapId) -> Result<()> {
    let Some(map) = map_of(image)? else { return Ok(()) };
    let disk = image.0.on_disk_map();
    let fast_diff = image.header().features.contains(Features::FAST_DIFF);
    let mut states = map.states();
    if let Err(error) = disk.add_snapshot(snap, states.clone(), fast_diff).await {
        tracing::error!(image = image.spec(), %error, "the object map becomes invalid");
        disk.invalidate(snap).await?;
        disk.invalidate(SnapId::HEAD).await?;
        map.distrust();
        return Ok(());
    }
    if fast_diff {
        after_snapshot(&mut states);
        image.0.replace_map(Some(Arc::new(ObjectMap::new(&states, map.is_trusted()))));
    }
    Ok(())
}

/// A user's snapshot of the image, by its name.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub async fn user_snapshot(image: &Image, name: &str) -> Result<SnapshotInfo> {
    find_snapshot(image, &SnapshotNamespace::User, name).await
}

/// A snapshot of the image, by what it is for and its name.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub async fn find_snapshot(
    image: &Image,
    namespace: &SnapshotNamespace,
    name: &str,
) -> Result<SnapshotInfo> {
    for snap in &image.header().snap_context.snaps {
        let info = header::snapshot(image.pool(), image.id(), *snap).await?;
        if info.namespace == *namespace && info.name == name {
            return Ok(info);
        }
    }
    let what = format!("image {} has no snapshot {name}", image.spec());
    Err(Error::new(Kind::NotFound, what))
}

/// Refuses to change an image that is open for reading only.
pub(super) fn writable(image: &Image) -> Result<()> {
    match image.is_read_only() {
        false => Ok(()),
        true => {
            let what = format!("image {} is open for reading only", image.spec());
            Err(Error::new(Kind::ReadOnly, what))
        }
    }
}

/// Takes note of a change of the header, and tells everybody else who has the image open: that it was made they have to
/// know whether we could take note of it or not.
pub(in crate::image) async fn announce(image: &Image) -> Result<()> {
    let refreshed = image.refresh().await;
    let told = notify_others(image).await;
    refreshed.and(told)
}

pub(super) async fn notify_others(image: &Image) -> Result<()> {
    // Whoever does not answer will find out by itself, or is dead.
    image.pool().notify(&names::header(image.id()), notify::header_update()).await.map(drop)
}
