//! Making a clone independent: what only its parent has is copied, then the tie is cut
//! (`librbd/operation/FlattenRequest.cc`).

use std::sync::Arc;
use std::time::Duration;

use proto::msg::object::SnapContext;
use proto::rbd::cls::DetachParent;
use proto::rbd::names::{self, DataNames};
use proto::rbd::{Features, ObjectState};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::children::{drop_hidden, leave_parent, or_none};
use super::object_map::Claim;
use super::objects::Progress;
use super::snapshots::{announce, writable};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;
use crate::image::copyup::{copy_op, hint, snapshot_states};
use crate::image::live::{Access, Live};
use crate::image::parent::shows;

/// How long flattening goes on, from the first object that it makes, although others want the exclusive lock: so that
/// it comes to an end even among clients that want it all the time.
const KEEP: Duration = Duration::from_secs(1);

/// How often it is looked whether writes may go out again.
const AGAIN: Duration = Duration::from_millis(2);

/// What an operation ends with that another owner of the lock has to begin anew.
pub(in crate::image) const ERESTART: i32 = 85;

/// Copies what the image shows of its parent, and does without it from then on. It may be read and written, snapshots
/// may be taken and its size changed meanwhile.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::Invalid`] if it is no clone; errno `ERESTART` if the exclusive lock is wanted by another client, which then
/// has to be asked ([`Image::maintain`] sees to that).
pub async fn flatten(image: &Image, progress: Progress<'_>) -> Result<()> {
    writable(image)?;
    let doing = format!("image {}", image.spec());
    let header = image.header();
    let Some(link) = header.parent.clone() else {
        return Err(Error::new(Kind::Invalid, format!("{doing} is no clone")));
    };
    let objects = header.layout.objects(link.overlap);
    copy_up(image, Copied::Shown, (0, objects), progress).await.context(&doing)?;
    let header = image.header();
    let deep = header.features.contains(Features::DEEP_FLATTEN);
    // Snapshots of an image that is not flattened deeply show the parent as before. What the parent is told comes
    // first: afterwards nothing says any more that it knows of a clone.
    let left = match deep || header.snap_context.snaps.is_empty() {
        true => leave_parent(image.pool(), image.id(), &link.parent).await.context(&doing)?,
        false => None,
    };
    let object = names::header(image.id());
    or_none(image.pool().call(&object, &DetachParent {}).await).context(&doing)?;
    progress(1, 1);
    announce(image).await.context(doing)?;
    // Last, as it takes long and may be cut short: a clone that still named a snapshot that is gone could not be
    // opened. What is left of the parent goes with that.
    if let Some(pool) = left
        && let Err(error) = drop_hidden(&pool, &link.parent).await
    {
        tracing::warn!(image = image.spec(), %error, "something of its parent is left");
    }
    Ok(())
}

/// Which objects are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// Those that the image shows: not those that are gone because it shrank.
    Shown,
    /// Those that it shows no longer, too, because its snapshots do.
    All,
}

/// Makes those objects from `begin` to `end` of the parent that are not there, for the head and for every snapshot.
pub(super) async fn copy_up(
    image: &Image,
    which: Copied,
    (begin, end): (u64, u64),
    progress: Progress<'_>,
) -> Result<()> {
    let window = image.cluster().config().rbd.concurrent_management_ops.max(1);
    let mut objects = begin..end;
    let mut in_flight = JoinSet::new();
    let mut failed: Option<Error> = None;
    let (mut done, total) = (0, end - begin);
    let mut made: Option<Instant> = None;
    progress(0, total);
    loop {
        let enough = made.is_some_and(|made| made.elapsed() >= KEEP);
        if which == Copied::Shown && enough && image.0.lock.is_wanted() {
            failed.get_or_insert_with(|| Error::from_errno(-ERESTART, "the lock is handed on"));
        }
        while failed.is_none() && (in_flight.len() as u64) < window {
            let Some(object) = objects.next() else { break };
            let image = image.clone();
            in_flight.spawn(async move { copy_up_one(&image, which, object).await });
        }
        match in_flight.join_next().await {
            None => return failed.map_or(Ok(()), Err),
            Some(Ok(Err(error))) => drop(failed.get_or_insert(error)),
            Some(Ok(Ok(true))) => drop(made.get_or_insert_with(Instant::now)),
            Some(Ok(Ok(false))) => {}
            Some(Err(error)) => {
                let ended = || Error::new(Kind::Closed, "a task ended").with_source(error);
                failed.get_or_insert_with(ended);
            }
        }
        done += 1;
        progress(done, total);
    }
}

/// Makes one of them, if it is not there. Whether it did.
async fn copy_up_one(image: &Image, which: Copied, object: u64) -> Result<bool> {
    // As long as it is held no snapshot is taken whose map would not know of the object, and no parent cut.
    let (live, held) = loop {
        let (live, held) = changing(image).await?;
        // What is being cut off is not known to go: that may fail. And until it is made for the snapshots they need the
        // parent, which is not to go before. There is none any more only when all objects had been made.
        let len = |size| live.header.layout.object_len(object, size);
        if which == Copied::All || live.parent.is_none() || len(live.size) == len(live.header.size)
        {
            break (live, held);
        }
        drop(held);
        tokio::time::sleep(AGAIN).await;
    };
    let header = &live.header;
    let gone = which == Copied::Shown && object >= header.layout.objects(header.size);
    let Some(parent) = &live.parent else { return Ok(false) };
    if gone || !shows(&header.layout, object, live.overlap()) {
        return Ok(false);
    }
    let names = DataNames::new(&header.object_prefix);
    let name = names.of(object);
    let absent = live.map.as_ref().is_some_and(|map| map.is_absent(object));
    if !absent && or_none(image.data_pool().stat(&name).await)?.is_some() {
        return Ok(false);
    }
    let (copy, something) = copy_op(parent.object(&header.layout, object).await?);
    // Zeros are what it reads as anyway without a parent.
    if !something {
        return Ok(false);
    }
    if header.features.contains(Features::OBJECT_MAP) {
        update_maps(image, &live, object).await?;
    }
    // Before all snapshots, so that each of them has it.
    let under = match held.snaps.is_empty() {
        true => Arc::clone(&held),
        false => Arc::default(),
    };
    let ops = vec![copy, hint(&header.layout)];
    image.data_pool().operate_write_with_snaps(&name, ops, under).await?;
    Ok(true)
}

/// The image as it is, once it may be written to, and what keeps changes of it waiting.
async fn changing(image: &Image) -> Result<(Arc<Live>, Arc<SnapContext>)> {
    let mut live = image.0.current.get();
    loop {
        let held = image.0.current.hold(&mut live);
        if let Some(refusal) = live.denied.as_ref().or(live.refusal.as_ref()) {
            return Err(Error::new(refusal.kind, refusal.why.clone()));
        }
        if !live.waits() {
            return Ok((live, held));
        }
        drop(held);
        if live.access == Access::Waiting && !image.0.lock.is_held() {
            return Err(Error::from_errno(-ERESTART, "the lock was handed on"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// No map says that an object is absent that is about to be made.
async fn update_maps(image: &Image, live: &Live, object: u64) -> Result<()> {
    let fast_diff = live.header.features.contains(Features::FAST_DIFF);
    image.0.remaking.makes(object);
    for (snap, state) in snapshot_states(&live.snap_context, fast_diff) {
        image.0.on_disk_map().update_snapshot(snap, object, state).await?;
    }
    let Some(map) = &live.map else { return Ok(()) };
    let state = match fast_diff && !live.snap_context.snaps.is_empty() {
        true => ObjectState::Clean,
        false => ObjectState::Exists,
    };
    // Whoever writes to it at the same time waits, or was first: then it has changed since the snapshots.
    let claim = Claim::take(image, map, object).await;
    if claim.state() == ObjectState::Absent {
        claim.set(state).await?;
    }
    Ok(())
}
