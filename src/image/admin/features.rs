//! Switching features of an image.

use std::sync::Arc;

use proto::rbd::cls::{ResizeObjectMap, SetFeatures, SetFlags};
use proto::rbd::{Features, Flags, ObjectState, names};
use proto::types::SnapId;

use super::journal::{alone, make_journal, remove_journal};
use super::remove::is_mirrored;
use super::snapshots::notify_others;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::header;
use crate::image::live::Journal;
use crate::image::object_map::MAX_OBJECTS;
use crate::image::{Image, PAUSE};

/// What can be switched here: other features take more than a word in the header.
const ENABLED: Features = Features(
    Features::EXCLUSIVE_LOCK.0
        | Features::OBJECT_MAP.0
        | Features::FAST_DIFF.0
        | Features::JOURNALING.0,
);
const DISABLED: Features = Features(ENABLED.0 | Features::DEEP_FLATTEN.0);

const MAPS: Features = Features(Features::OBJECT_MAP.0 | Features::FAST_DIFF.0);

/// Object map and fast diff come and go together.
fn with_partner(features: Features) -> Features {
    if (features & MAPS).is_empty() { features } else { features | MAPS }
}

/// Switches features on or off. A new object map knows nothing yet: [`super::rebuild_object_map`] fills it.
///
/// Other clients that have the image open are told. The exclusive lock, if there is one, must be ours:
/// [`Image::maintain`] sees to that.
///
/// Not cancel-safe: dropped in between, features may be switched while their object maps are not there, and the open
/// image may have none that it keeps up. It must be closed and opened again, and the maps made anew.
///
/// # Errors
/// [`Kind::Invalid`] for features that are so already, cannot be switched, or need others;
/// [`Kind::Unsupported`] for those that are not built yet.
pub async fn update_features(image: &Image, features: Features, enable: bool) -> Result<()> {
    let doing = format!("image {}", image.spec());
    check(image, features, enable).context(&doing)?;
    let alone = alone(image).await.context(&doing)?;
    let maps = image.0.remaking.maps.write().await;
    let pause = image.0.current.pause(PAUSE).await.context(&doing)?;
    let switched = match enable {
        true => switch_on(image, features).await,
        false => switch_off(image, features).await,
    };
    // Also if that went wrong: of what it has switched by then, whoever writes has to know.
    let noted = take_note(image).await;
    drop((pause, maps, alone));
    let told = notify_others(image).await;
    switched.and(noted).and(told).context(doing)
}

/// Goes over to the features that the image has now.
async fn take_note(image: &Image) -> Result<()> {
    let refreshed = image.refresh().await;
    image.0.current.change(|live| {
        // It was not to be removed.
        if matches!(live.journal, Journal::Going) {
            live.journal = Journal::Closed(None);
        }
    });
    refreshed?;
    let header = image.header();
    let map = match image.0.lock.is_held() && header.features.contains(Features::OBJECT_MAP) {
        true => Some(image.0.on_disk_map().open(&header).await?.into()),
        false => None,
    };
    image.0.replace_map(map);
    // A journal is to be opened.
    image.0.lock.look();
    Ok(())
}

fn check(image: &Image, features: Features, enable: bool) -> Result<()> {
    let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
    let header = image.header();
    let has = header.features;
    let switchable = match enable {
        true => Features::MUTABLE,
        false => Features::MUTABLE | Features::DISABLE_ONLY,
    };
    if features.is_empty() || !(features - switchable).is_empty() {
        return invalid(format!("these features cannot be switched: {}", features - switchable));
    }
    let already = if enable { features & has } else { features - has };
    if !already.is_empty() {
        let state = if enable { "on" } else { "off" };
        return invalid(format!("these features are {state} already: {already}"));
    }
    let unbuilt = features - if enable { ENABLED } else { DISABLED };
    if !unbuilt.is_empty() {
        let what = format!("switching these features is not built yet: {unbuilt}");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let features = with_partner(features);
    let after = if enable { has | features } else { has - features };
    let needs_lock = MAPS | Features::JOURNALING;
    if !(after & needs_lock).is_empty() && !after.contains(Features::EXCLUSIVE_LOCK) {
        return invalid(format!("{} takes exclusive-lock", after & needs_lock));
    }
    let objects = header.layout.objects(header.size);
    if !(after & MAPS).is_empty() && objects > MAX_OBJECTS {
        return invalid(format!("{objects} objects are too many for an object map"));
    }
    Ok(())
}

/// The order is librbd's (`librbd/operation/EnableFeaturesRequest.cc`): nobody believes a map that is not there yet.
async fn switch_on(image: &Image, features: Features) -> Result<()> {
    let (pool, object, header) = (image.pool(), names::header(image.id()), image.header());
    let features = with_partner(features);
    let mut mask = features;
    if !(features & MAPS).is_empty() {
        mask |= Features::EXCLUSIVE_LOCK;
        set_flags(image, true).await?;
    }
    if features.contains(Features::JOURNALING) {
        mask |= Features::EXCLUSIVE_LOCK;
        make_journal(pool, image.id()).await?;
    }
    let set = SetFeatures { features: (header.features | features).0, mask: mask.0 };
    pool.call(&object, &set).await?;
    if (features - header.features).contains(Features::OBJECT_MAP) {
        for snap in versions(image) {
            let size = match snap {
                SnapId::HEAD => header.size,
                snap => header::snapshot(pool, image.id(), snap).await?.image_size,
            };
            let objects = header.layout.objects(size);
            let make = ResizeObjectMap { objects, state: ObjectState::Absent as u8 };
            pool.call(&names::object_map(image.id(), snap), &make).await?;
        }
    }
    Ok(())
}

/// As `librbd/operation/DisableFeaturesRequest.cc`, but that a journal goes last: an image that is to have one, and has
/// none, cannot be written to any more.
async fn switch_off(image: &Image, features: Features) -> Result<()> {
    let (pool, object, header) = (image.pool(), names::header(image.id()), image.header());
    let features = with_partner(features) & header.features;
    if features.contains(Features::JOURNALING) {
        if is_mirrored(pool, image.id()).await? {
            let what = "it is mirrored by its journal";
            return Err(Error::new(Kind::Busy, what).with_hint("`rbd mirror image disable`"));
        }
        let mut open = None;
        image.0.current.change(|live| {
            if let Journal::Open(journal) = &live.journal {
                open = Some(Arc::clone(journal));
                // Nobody opens it again.
                live.journal = Journal::Going;
            }
        });
        let busy = || Error::new(Kind::Busy, "its journal is just being opened");
        let journal = open.ok_or_else(busy)?;
        let closed = journal.close().await;
        journal.abandon();
        closed?;
    }
    let mut mask = features;
    if features.contains(Features::EXCLUSIVE_LOCK) {
        mask |= Features::OBJECT_MAP | Features::JOURNALING;
    }
    if features.contains(Features::OBJECT_MAP) {
        for snap in versions(image) {
            image.0.on_disk_map().remove(snap).await?;
        }
    }
    let set = SetFeatures { features: (header.features - features).0, mask: mask.0 };
    pool.call(&object, &set).await?;
    if features.contains(Features::OBJECT_MAP) {
        set_flags(image, false).await?;
    }
    if features.contains(Features::JOURNALING) {
        remove_journal(pool, image.id()).await?;
    }
    Ok(())
}

/// Says of the maps of the head and of all snapshots that they must, or need not, be doubted.
pub(super) async fn set_flags(image: &Image, invalid: bool) -> Result<()> {
    let mask = Flags::OBJECT_MAP_INVALID.0 | Flags::FAST_DIFF_INVALID.0;
    let flags = if invalid { mask } else { 0 };
    for snap in versions(image) {
        let set = SetFlags { flags, mask, snap };
        image.pool().call(&names::header(image.id()), &set).await?;
    }
    Ok(())
}

/// The head and all snapshots.
pub(super) fn versions(image: &Image) -> Vec<SnapId> {
    let mut versions = vec![SnapId::HEAD];
    versions.extend(&image.header().snap_context.snaps);
    versions
}
