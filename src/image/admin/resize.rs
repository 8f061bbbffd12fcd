//! Growing and shrinking an image.

use std::sync::Arc;

use proto::msg::op::Op;
use proto::rbd::ObjectState;
use proto::rbd::cls::SetSize;
use proto::rbd::journal::Operation;
use proto::rbd::names::{self, DataNames};

use super::flatten::{Copied, copy_up};
use super::journal::{alone, journaled, open_journal};
use super::objects::{Progress, change};
use super::snapshots::notify_others;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::object_map::{MAX_OBJECTS, ObjectMap};
use crate::image::{Image, PAUSE};

/// Gives an image another size. When it shrinks, what is beyond the new end goes first, then the size
/// (`librbd/operation/ResizeRequest.cc`): whoever dies in between leaves an image that reads zeros there.
///
/// Other clients that have the image open are told. The exclusive lock, if there is one, must be ours:
/// [`Image::maintain`] sees to that.
///
/// # Errors
/// [`Kind::ReadOnly`] if the image was opened so; [`Kind::Invalid`] if it would shrink and may not.
pub async fn resize(
    image: &Image,
    size: u64,
    may_shrink: bool,
    progress: Progress<'_>,
) -> Result<()> {
    let _alone = alone(image).await.context(image.spec())?;
    resize_alone(image, size, may_shrink, progress).await
}

/// The same, for those who keep others from it.
pub(super) async fn resize_alone(
    image: &Image,
    size: u64,
    may_shrink: bool,
    progress: Progress<'_>,
) -> Result<()> {
    let resizing = format!("image {}", image.spec());
    if image.is_read_only() {
        let what = format!("{resizing} is open for reading only");
        return Err(Error::new(Kind::ReadOnly, what));
    }
    let before = image.header().size;
    if size == before {
        let what = format!("{resizing}: the new size is the one it has");
        return Err(Error::new(Kind::Invalid, what));
    }
    let map = image.0.current.get().map.clone();
    let objects = image.layout().objects(size);
    if map.is_some() && objects > MAX_OBJECTS {
        let what = format!("{resizing}: {objects} objects are too many for an object map");
        return Err(Error::new(Kind::Invalid, what));
    }
    if size > before {
        // Whoever replays it makes it larger at its end: nothing is written behind the old one before.
        let _pause = match open_journal(image)? {
            Some(_) => Some(image.0.current.pause(PAUSE).await.context(&resizing)?),
            None => None,
        };
        let grown = set_size(image, size, map.as_deref());
        journaled(image, || Operation::Resize(size), grown).await.context(&resizing)?;
    } else {
        if !may_shrink {
            let what = format!("{resizing}: it would shrink, and lose what is beyond the new end");
            return Err(Error::new(Kind::Invalid, what).with_hint("allow it with --allow-shrink"));
        }
        // Nothing is written any more where objects go.
        image.0.current.change(|live| live.shrink_to(Some(size)));
        let shrunk = async {
            image.0.current.drained(PAUSE).await?;
            let cut = async {
                keep_for_snapshots(image, size).await?;
                trim(image, size, map.as_deref(), progress).await?;
                set_size(image, size, map.as_deref()).await
            };
            journaled(image, || Operation::Resize(size), cut).await
        };
        let shrunk = shrunk.await;
        image.0.current.change(|live| live.shrink_to(None));
        shrunk.context(&resizing)?;
    }
    progress(1, 1);
    Ok(())
}

/// Writes the new size down, and tells others of it. The object map is never too small for it.
async fn set_size(image: &Image, size: u64, map: Option<&ObjectMap>) -> Result<()> {
    let header = names::header(image.id());
    let objects = image.layout().objects(size);
    let grows = size > image.header().size;
    let maps = image.0.remaking.maps.write().await;
    let pause = image.0.current.pause(PAUSE).await?;
    let resized = map.map(|map| Arc::new(map.resized(objects)));
    if resized.is_some() && grows {
        image.0.on_disk_map().resize(objects).await?;
    }
    image.pool().call(&header, &SetSize { size }).await?;
    // It is there: whatever goes wrong from here on, whoever has the image open has to know of it.
    let cut = match resized.is_some() && !grows {
        true => image.0.on_disk_map().resize(objects).await,
        false => Ok(()),
    };
    if resized.is_some() {
        image.0.replace_map(resized);
    }
    let refreshed = image.refresh().await;
    drop((pause, maps));
    let told = notify_others(image).await;
    cut.and(refreshed).and(told)
}

/// What snapshots show of the parent beyond the new end has to be theirs before it goes: nothing of the parent shows
/// there afterwards, should the image come back to them.
async fn keep_for_snapshots(image: &Image, size: u64) -> Result<()> {
    let header = image.header();
    let (Some(link), false) = (&header.parent, header.snap_context.snaps.is_empty()) else {
        return Ok(());
    };
    let layout = header.layout;
    let set = layout.object_size() * layout.stripe_count();
    let begin = size / set * layout.stripe_count();
    let end = layout.objects(link.overlap).max(begin);
    copy_up(image, Copied::All, (begin, end), &mut |_, _| {}).await
}

/// Removes objects that are beyond the new end, and cuts those that are across it.
async fn trim(
    image: &Image,
    size: u64,
    map: Option<&ObjectMap>,
    progress: Progress<'_>,
) -> Result<()> {
    let header = image.header();
    let layout = header.layout;
    let end = layout.objects(header.size);
    // Of the set of objects that the new end is in, some may keep something.
    let set = layout.object_size() * layout.stripe_count();
    let begin = size / set * layout.stripe_count();
    let next_set = end.min(begin + layout.stripe_count());
    // Which objects go: behind that set all of them.
    let goes = |object: u64| layout.object_len(object, size) == 0;
    let mut gone: Vec<_> = (begin..next_set).filter(|o| goes(*o)).map(|o| (o, o + 1)).collect();
    gone.push((next_set, end));
    let cut = (begin..next_set).filter(|object| {
        !goes(*object) && layout.object_len(*object, size) < layout.object_len(*object, header.size)
    });

    let disk = image.0.on_disk_map();
    if let Some(map) = map {
        for object in cut.filter(|object| !map.is_absent(*object)) {
            disk.update((object, object + 1), ObjectState::Exists, None).await?;
            map.set(object, ObjectState::Exists);
        }
        for range in &gone {
            disk.update(*range, ObjectState::Pending, Some(ObjectState::Exists)).await?;
        }
    }
    let names = DataNames::new(&header.object_prefix);
    let there = |object: &u64| map.is_none_or(|map| !map.is_absent(*object));
    let changes = (begin..end).filter(there).filter_map(|object| {
        let (len, was) = (layout.object_len(object, size), layout.object_len(object, header.size));
        let op = match len {
            0 => Op::Delete,
            len if len >= was => return None,
            len if was == layout.object_size() => Op::Truncate { size: len },
            // To cut an object that is shorter makes it longer; to zero it to its end cuts it, or does nothing.
            len => Op::Zero { offset: len, length: was - len },
        };
        Some((names.of(object), op))
    });
    let window = image.cluster().config().rbd.concurrent_management_ops;
    let snaps = Arc::new(header.snap_context.clone());
    let (mut done, total) = (0, end - begin);
    progress(0, total);
    change(image.data_pool(), &snaps, window, changes, || {
        done += 1;
        progress(done, total);
    })
    .await?;
    if map.is_some() {
        for range in gone {
            disk.update(range, ObjectState::Absent, Some(ObjectState::Pending)).await?;
        }
    }
    Ok(())
}
