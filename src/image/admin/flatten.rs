//! Making a clone independent: what only its parent has is copied, then the tie is cut
//! (`librbd/operation/FlattenRequest.cc`).

use std::sync::Arc;

use proto::msg::op::Op;
use proto::rbd::cls::DetachParent;
use proto::rbd::names::{self, DataNames};
use proto::rbd::{Features, ObjectState};
use tokio::task::JoinSet;

use super::children::{detach_child, or_none};
use super::objects::Progress;
use super::snapshots::{announce, writable};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;
use crate::image::copyup::{copy_op, hint, snapshot_states};
use crate::image::object_map::update_at;
use crate::image::parent::{Parent, shows};

/// Copies what the image shows of its parent, and does without it from then on. It may be read and written meanwhile.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::Invalid`] if it is no clone.
pub async fn flatten(image: &Image, progress: Progress<'_>) -> Result<()> {
    writable(image)?;
    let doing = format!("image {}", image.spec());
    let live = image.0.current.get();
    let Some(link) = live.header.parent.clone() else {
        return Err(Error::new(Kind::Invalid, format!("{doing} is no clone")));
    };
    if live.parent.is_some() {
        let objects = live.header.layout.objects(link.overlap);
        copy_up(image, 0, objects, progress).await.context(&doing)?;
    }
    let deep = live.header.features.contains(Features::DEEP_FLATTEN);
    // Snapshots of an image that is not flattened deeply show the parent as before. What the parent is told comes
    // first: afterwards nothing says any more that it knows of a clone.
    if deep || live.header.snap_context.snaps.is_empty() {
        detach_child(image.pool(), image.id(), &link.parent).await.context(&doing)?;
    }
    let object = names::header(image.id());
    or_none(image.pool().call(&object, &DetachParent {}).await).context(&doing)?;
    progress(1, 1);
    announce(image).await.context(doing)
}

/// Makes those objects from `begin` to `end` of the parent that are not there, for the head and for every snapshot.
pub(super) async fn copy_up(
    image: &Image,
    begin: u64,
    end: u64,
    progress: Progress<'_>,
) -> Result<()> {
    let live = image.0.current.get();
    let Some(parent) = live.parent.clone() else { return Ok(()) };
    let window = image.cluster().config().rbd.concurrent_management_ops;
    let mut objects =
        (begin..end).filter(|object| shows(&live.header.layout, *object, live.overlap()));
    let mut in_flight = JoinSet::new();
    let mut failed: Option<Error> = None;
    let (mut done, total) = (0, end - begin);
    progress(0, total);
    loop {
        while failed.is_none() && (in_flight.len() as u64) < window {
            let Some(object) = objects.next() else { break };
            let (image, parent) = (image.clone(), Arc::clone(&parent));
            in_flight.spawn(async move { copy_up_one(&image, &parent, object).await });
        }
        match in_flight.join_next().await {
            None => return failed.map_or(Ok(()), Err),
            Some(Ok(Err(error))) => drop(failed.get_or_insert(error)),
            Some(Ok(Ok(()))) => {}
            Some(Err(error)) => {
                let ended = || Error::new(Kind::Closed, "a task ended").with_source(error);
                failed.get_or_insert_with(ended);
            }
        }
        done += 1;
        progress(done, total);
    }
}

async fn copy_up_one(image: &Image, parent: &Parent, object: u64) -> Result<()> {
    let live = image.0.current.get();
    let header = &live.header;
    let mut names = DataNames::new(&header.object_prefix);
    let name = String::from_utf8_lossy(names.of(object)).into_owned();
    let absent = live.map.as_ref().is_some_and(|map| map.is_absent(object));
    if !absent && or_none(image.data_pool().stat(&name).await)?.is_some() {
        return Ok(());
    }
    let (copy, something) = copy_op(parent.object(&header.layout, object).await?);
    // Zeros are what it reads as anyway without a parent.
    if !something {
        return Ok(());
    }
    let snaps = &live.snap_context;
    if header.features.contains(Features::OBJECT_MAP) {
        update_maps(image, object).await?;
    }
    // Before all snapshots, so that each of them has it.
    let under = match snaps.snaps.is_empty() {
        true => Arc::clone(snaps),
        false => Arc::default(),
    };
    let ops = vec![copy, hint(&header.layout)];
    image.data_pool().operate_write_with_snaps(&name, ops, under).await.map(drop)
}

/// No map says that an object is absent that is about to be made.
async fn update_maps(image: &Image, object: u64) -> Result<()> {
    let live = image.0.current.get();
    let fast_diff = live.header.features.contains(Features::FAST_DIFF);
    for (snap, state) in snapshot_states(&live.snap_context, fast_diff) {
        let map = names::object_map(image.id(), snap);
        let update: Vec<Op> = vec![update_at(object, state)];
        match image.pool().operate_write(&map, update).await {
            // A snapshot without a map, or with one of before the image grew.
            Err(error) if [Kind::NotFound, Kind::Invalid].contains(&error.kind()) => {}
            updated => drop(updated?),
        }
    }
    let Some(map) = &live.map else { return Ok(()) };
    let state = match fast_diff && !live.snap_context.snaps.is_empty() {
        true => ObjectState::Clean,
        false => ObjectState::Exists,
    };
    if map.state(object) == ObjectState::Absent {
        image.0.on_disk_map().update((object, object + 1), state, None).await?;
        map.set(object, state);
    }
    Ok(())
}
