//! Making an object map anew from the objects that there are, and comparing one with them
//! (`librbd/operation/RebuildObjectMapRequest.cc`, `ObjectMapIterate.cc`).

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::msg::snaps::ObjectSnaps;
use proto::rbd::names::DataNames;
use proto::rbd::{Features, ObjectState, ObjectStates};
use proto::types::SnapId;
use tokio::task::JoinSet;

use super::features::{set_flags, versions};
use super::flatten::ERESTART;
use super::objects::Progress;
use super::snapshots::{announce, notify_others};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::copyup::snapshot_states;
use crate::image::object_map::{ObjectMap, OnDisk};
use crate::image::{Image, PAUSE, header};
use crate::pool::Pool;

/// How often it is begun anew when the image is resized, or snapshots come or go, meanwhile.
const ATTEMPTS: u32 = 10;

/// Makes the object maps of an image and of all its snapshots anew, while it is written to.
///
/// Other clients that have the image open are told. The exclusive lock must be ours: [`Image::maintain`] sees to that.
///
/// # Errors
/// [`Kind::Invalid`] if the image has no object map; whatever keeps its objects from being looked at.
pub async fn rebuild_object_map(image: &Image, progress: Progress<'_>) -> Result<()> {
    let doing = format!("image {}", image.spec());
    for _ in 0..ATTEMPTS {
        check_feature(image).context(&doing)?;
        let map = image.0.current.get().map.clone();
        let map = map.ok_or_else(|| {
            Error::new(Kind::Busy, format!("{doing}: the exclusive lock has just been handed on"))
        })?;
        if remake(image, &map, progress).await.context(&doing)? {
            return announce(image).await.context(doing);
        }
    }
    let what = format!("{doing}: it is resized, or snapshots are taken or removed, all the time");
    Err(Error::new(Kind::Busy, what))
}

/// Makes the maps anew. False if what there was in the beginning is no longer what there is, so that none is as it
/// should be.
async fn remake(image: &Image, map: &Arc<ObjectMap>, progress: Progress<'_>) -> Result<bool> {
    let remaking = &image.0.remaking;
    let watch = remaking.watch();
    // What is being made already was not noted. It keeps drains waiting until it is there, so that it is seen.
    drop(image.0.current.pause(PAUSE).await?);
    let invalidations = map.invalidations();
    let maps = {
        // No snapshot goes meanwhile.
        let _maps = remaking.maps.read().await;
        Maps::of(image).await?
    };
    let Some(snapshots) = maps.look(image, Some(map), progress).await? else { return Ok(false) };
    let _alone = remaking.maps.write().await;
    if !maps.are_current(image, map) {
        return Ok(false);
    }
    let disk = image.0.on_disk_map();
    let if_made: BTreeMap<_, _> =
        snapshot_states(&image.header().snap_context, maps.fast_diff).into_iter().collect();
    for (snap, mut states) in snapshots {
        let Some(state) = if_made.get(&snap) else { continue };
        let made = watch.made();
        for object in &made {
            states.set(*object, *state);
        }
        disk.save(snap, states).await?;
        // Another thread may have changed it in between.
        for object in watch.made().difference(&made) {
            disk.update_snapshot(snap, *object, *state).await?;
        }
    }
    // What a write could not change in a map it says in the header, which is not to be wiped out: none is under way.
    let pause = image.0.current.pause(PAUSE).await?;
    if map.invalidations() != invalidations {
        return Ok(false);
    }
    set_flags(image, false).await?;
    map.trust();
    drop(pause);
    Ok(true)
}

/// Compares the object maps of an image and of all its snapshots with its objects. One that is wrong is marked as
/// invalid. Returns whether all are right.
///
/// # Errors
/// As [`rebuild_object_map`].
pub async fn check_object_map(image: &Image, progress: Progress<'_>) -> Result<bool> {
    let doing = format!("image {}", image.spec());
    check_feature(image).context(&doing)?;
    let maps = Maps::of(image).await.context(&doing)?;
    let disk = image.0.on_disk_map();
    let mut right = true;
    let found = maps.look(image, None, progress).await.context(&doing)?;
    for (snap, found) in found.unwrap_or_default() {
        let claimed = match disk.load(snap).await {
            Ok(claimed) => Some(claimed),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Invalid) => None,
            Err(error) => return Err(error.context(doing)),
        };
        // What is being removed may be gone already.
        let agree = claimed.is_some_and(|claimed| {
            claimed.len() == found.len()
                && claimed.iter().zip(found.iter()).all(|(claimed, found)| {
                    claimed == found
                        || (claimed, found) == (ObjectState::Pending, ObjectState::Absent)
                })
        });
        if !agree {
            disk.invalidate(snap).await.context(&doing)?;
            right = false;
        }
    }
    if !right {
        notify_others(image).await.context(doing)?;
    }
    Ok(right)
}

/// The states of the head's objects, by what the OSDs say. Nothing must be written meanwhile.
pub(super) async fn head_states(image: &Image) -> Result<ObjectStates> {
    let maps = Maps::of(image).await?;
    let head = maps.look(image, None, &mut |_, _| {}).await?.and_then(|mut all| all.pop());
    Ok(head.map(|(_, states)| states).unwrap_or_default())
}

fn check_feature(image: &Image) -> Result<()> {
    match image.header().features.contains(Features::OBJECT_MAP) {
        true => Ok(()),
        false => Err(Error::new(Kind::Invalid, "it has no object map")),
    }
}

/// What maps an image has, oldest snapshot first, the head last.
struct Maps {
    /// Each with the number of its objects.
    versions: Vec<(SnapId, u64)>,
    fast_diff: bool,
}

impl Maps {
    async fn of(image: &Image) -> Result<Arc<Self>> {
        let header = image.header();
        let mut sizes = Vec::new();
        for snap in versions(image).into_iter().rev() {
            let size = match snap {
                SnapId::HEAD => header.size,
                snap => header::snapshot(image.pool(), image.id(), snap).await?.image_size,
            };
            sizes.push((snap, header.layout.objects(size)));
        }
        let fast_diff = header.features.contains(Features::FAST_DIFF);
        Ok(Arc::new(Self { versions: sizes, fast_diff }))
    }

    /// Whether the image still has these, and `head` is the one that writes heed.
    fn are_current(&self, image: &Image, head: &Arc<ObjectMap>) -> bool {
        let heeded = image.0.current.get().map.clone();
        heeded.is_some_and(|heeded| Arc::ptr_eq(&heeded, head))
            && self.versions.iter().rev().map(|(snap, _)| *snap).eq(versions(image))
    }

    /// The states that an object has, by what the OSD says.
    fn states(&self, snaps: &ObjectSnaps) -> Vec<ObjectState> {
        let mut before = None;
        let mut states = Vec::with_capacity(self.versions.len());
        for (at, (snap, _)) in self.versions.iter().enumerate() {
            let version = snaps.at(*snap).map(|version| version.id);
            states.push(match version {
                None => ObjectState::Absent,
                // The same version as at the snapshot before.
                Some(_) if self.fast_diff && at > 0 && version == before => ObjectState::Clean,
                Some(_) => ObjectState::Exists,
            });
            before = version;
        }
        states
    }

    /// Looks at all objects. The head's states go into its map, if that is given, while it is in use; otherwise they
    /// come back with the snapshots'. Nothing does if another map took its place, or snapshots came or went.
    async fn look(
        self: &Arc<Self>,
        image: &Image,
        head: Option<&Arc<ObjectMap>>,
        progress: Progress<'_>,
    ) -> Result<Option<Vec<(SnapId, ObjectStates)>>> {
        let mut maps: Vec<_> = (self.versions.iter())
            .map(|(snap, objects)| (*snap, ObjectStates::new(*objects, ObjectState::Absent)))
            .collect();
        let total = self.versions.iter().map(|(_, objects)| *objects).max().unwrap_or(0);
        let names = DataNames::new(&image.header().object_prefix);
        let window = image.cluster().config().rbd.concurrent_management_ops.max(1) as usize;
        let (mut next, mut done, mut under_way) = (0, 0, JoinSet::new());
        progress(0, total);
        while done < total {
            while next < total && under_way.len() < window {
                let name = names.of(next);
                let (pool, object) = (image.data_pool().clone(), next);
                let (this, image, head) = (Arc::clone(self), image.clone(), head.cloned());
                under_way.spawn(async move {
                    let Some(map) = &head else {
                        return Ok(Some((object, list_snaps(&pool, &name).await?)));
                    };
                    let _maps = image.0.remaking.maps.read().await;
                    // Before it is looked at: whoever writes to it from now on waits, and nobody relies on what it is.
                    let claim = Claim::take(&image, map, object).await;
                    if !this.are_current(&image, map) {
                        return Ok(None);
                    }
                    map.set(object, ObjectState::Pending);
                    let snaps = list_snaps(&pool, &name).await?;
                    // Not if the lock was lost, and taken anew with another map.
                    if !this.are_current(&image, map) {
                        return Ok(None);
                    }
                    if let Some(state) = this.states(&snaps).last()
                        && object < image.layout().objects(image.size())
                    {
                        claim.set(*state).await?;
                    }
                    Ok::<_, Error>(Some((object, snaps)))
                });
                next += 1;
            }
            let Some(looked) = under_way.join_next().await else { break };
            if image.0.lock.is_closing() {
                return Err(Error::from_errno(-ERESTART, "the image is closed"));
            }
            let looked = looked
                .map_err(|error| Error::new(Kind::Closed, "a task ended").with_source(error))?;
            let Some((object, snaps)) = looked? else { return Ok(None) };
            for ((_, map), state) in maps.iter_mut().zip(self.states(&snaps)) {
                map.set(object, state);
            }
            done += 1;
            progress(done, total);
        }
        if head.is_some() {
            maps.pop();
        }
        Ok(Some(maps))
    }
}

/// The sole right to change the state of an object in the head's map.
pub(super) struct Claim {
    image: Image,
    map: Arc<ObjectMap>,
    object: u64,
}

impl Claim {
    /// Waits until nobody else has it.
    pub(super) async fn take(image: &Image, map: &Arc<ObjectMap>, object: u64) -> Self {
        while !map.begin(object) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        Self { image: image.clone(), map: Arc::clone(map), object }
    }

    pub(super) fn state(&self) -> ObjectState {
        self.map.state(self.object)
    }

    /// Changes it, on disk first.
    pub(super) async fn set(&self, state: ObjectState) -> Result<()> {
        let disk: OnDisk<'_> = self.image.0.on_disk_map();
        disk.update((self.object, self.object + 1), state, None).await?;
        self.map.set(self.object, state);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.map.end(self.object) {
            self.image.0.current.nudge();
        }
    }
}

pub(super) async fn list_snaps(pool: &Pool, object: &str) -> Result<ObjectSnaps> {
    match pool.list_snaps(object).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(ObjectSnaps::default()),
        snaps => snaps,
    }
}
