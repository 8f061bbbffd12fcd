//! The trash of a pool: images that are out of sight, to be removed later or to come back.
//!
//! The orders are librbd's (`librbd/api/Trash.cc`, `librbd/trash/MoveRequest.cc`): each move can be finished by whoever
//! does it again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::Put;
use proto::msg::op::Op;
use proto::rbd::cls::{
    AddImage, AddToTrash, GetId, GetIdOfName, GetTrash, ListTrash, Method, RemoveFromTrash,
    RemoveImage, SetId, SetTrashState, SnapshotNamespace, TRASH_MOVING, TRASH_NORMAL,
    TRASH_REMOVING, TRASH_RESTORING, TrashImage, TrashSource,
};
use proto::rbd::{Features, names};
use proto::types::UTime;

use super::children::or_none;
use super::diff::{DiffOptions, Difference, diff};
use super::metadata::{CONFIG_PREFIX, Notes};
use super::objects::Progress;
use super::remove::{in_a_group, in_use, is_mirrored, remove_image};
use crate::cluster::wall_clock;
use crate::config::{count, truth};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;
use crate::image::header::{Header, snapshot, spec};
use crate::pool::Pool;

/// Entries that are asked for at a time.
const PAGE: u64 = 1024;

const EUCLEAN: i32 = 117;

/// What becomes of images that are to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnRemove {
    /// For how long they stay in the trash, if they are put there instead.
    pub keep: Option<Duration>,
    /// Whether those are put there whose clones hang on snapshots that were removed ([`keep_for_clones`]).
    pub keep_parents: bool,
}

/// What becomes of images of the pool that are to be removed: its own settings (`rbd config pool set`) count before all
/// others.
///
/// # Errors
/// [`Kind::Invalid`] if a setting of the pool cannot be understood; whatever keeps them from being read, but a lack of
/// permission: who lacks it does without, as with librbd.
pub async fn on_remove(pool: &Pool) -> Result<OnRemove> {
    let notes = match Notes::Pool.list(&pool.with_namespace("")).await {
        Err(error) if error.kind() == Kind::PermissionDenied => {
            tracing::warn!(%error, pool = pool.name(), "doing without settings of the pool");
            BTreeMap::new()
        }
        notes => notes?,
    };
    let config = pool.cluster().config();
    let rbd = &config.rbd;
    overridden(&notes, (rbd.trash, rbd.trash_expires, rbd.trash_parents))
        .map_err(|error| error.context(format!("settings of pool {}", pool.name())))
}

fn overridden(
    notes: &BTreeMap<String, Bytes>,
    (mut trash, mut expires, mut keep_parents): (bool, Duration, bool),
) -> Result<OnRemove> {
    for (key, value) in notes {
        let value = String::from_utf8_lossy(value);
        let understood = match key.strip_prefix(CONFIG_PREFIX) {
            Some("rbd_move_to_trash_on_remove") => truth(&value).map(|value| trash = value),
            Some("rbd_move_to_trash_on_remove_expire_seconds") => {
                count(&value).map(|value| expires = Duration::from_secs(value))
            }
            Some("rbd_move_parent_to_trash_on_remove") => {
                truth(&value).map(|value| keep_parents = value)
            }
            _ => Some(()),
        };
        understood.ok_or_else(|| Error::new(Kind::Invalid, format!("{key} = {value:?}")))?;
    }
    Ok(OnRemove { keep: trash.then_some(expires), keep_parents })
}

/// Moves an image to the trash of which nothing is needed but snapshots that were removed, and that clones hang on. It
/// goes with the last of these. False if it is no such image.
///
/// # Errors
/// As [`move_to_trash`]; [`Kind::Busy`] while somebody has it open.
pub async fn keep_for_clones(pool: &Pool, name: &str) -> Result<bool> {
    let doing = format!("image {}", spec(pool, name));
    let named = GetIdOfName { name: name.to_owned() };
    let Some(id) = or_none(pool.call(names::DIRECTORY, &named).await)? else {
        // Its way there may have been cut short.
        let begun = moving(pool, name, TrashSource::USER_PARENT).await?.is_some();
        if begun {
            move_as(pool, name, TrashSource::USER_PARENT, Duration::ZERO).await?;
        }
        return Ok(begun);
    };
    let Some(header) = or_none(Header::read(pool, &id).await)? else { return Ok(false) };
    if header.snap_context.snaps.is_empty() {
        return Ok(false);
    }
    for snap in &header.snap_context.snaps {
        let info = snapshot(pool, &id, *snap).await.context(&doing)?;
        if !matches!(info.namespace, SnapshotNamespace::Trash { .. }) || info.child_count == 0 {
            return Ok(false);
        }
    }
    let image = Image::open_to_remove(pool, &id).await.context(&doing)?;
    let unused = in_use(&image).await;
    image.close().await;
    unused.context(&doing)?;
    move_as(pool, name, TrashSource::USER_PARENT, Duration::ZERO).await?;
    Ok(true)
}

/// Removes an image that is in the trash only until its last clone is gone, once that is so.
pub(super) async fn remove_kept_parent(pool: &Pool, id: &str) -> Result<()> {
    let get = GetTrash { id: id.to_owned() };
    let Some(image) = or_none(pool.call(names::TRASH, &get).await)? else { return Ok(()) };
    let kept = image.source == TrashSource::USER_PARENT && image.state == TRASH_NORMAL;
    if !kept || wall_clock() < image.deferred_until {
        return Ok(());
    }
    match Header::read(pool, id).await {
        Ok(header) if !header.snap_context.snaps.is_empty() => Ok(()),
        _ => remove_from_trash(pool, id, true, &mut |_, _| {}).await,
    }
}

/// Moves an image to the trash. It is not removed before `delay` is over.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Busy`] while somebody holds its exclusive lock; errno `EMLINK` if it is in a group;
/// [`Kind::Unsupported`] if it is mirrored.
pub async fn move_to_trash(pool: &Pool, name: &str, delay: Duration) -> Result<()> {
    move_as(pool, name, TrashSource::USER, delay).await
}

async fn move_as(pool: &Pool, name: &str, source: TrashSource, delay: Duration) -> Result<()> {
    let doing = format!("image {}", spec(pool, name));
    let named = GetIdOfName { name: name.to_owned() };
    let id = match or_none(pool.call(names::DIRECTORY, &named).await)? {
        Some(id) => id,
        None => moving(pool, name, source)
            .await?
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no {doing}")))?,
    };
    if let Some(header) = or_none(Header::read(pool, &id).await)? {
        in_a_group(pool, &id, &header).await.context(&doing)?;
        if is_mirrored(pool, &id).await.context(&doing)? {
            let what = format!("{doing} is mirrored, and cannot be moved to the trash yet");
            return Err(Error::new(Kind::Unsupported, what).with_hint("use `rbd trash mv`"));
        }
        if header.features.contains(Features::EXCLUSIVE_LOCK) {
            let image = Image::open_to_remove(pool, &id).await.context(&doing)?;
            let locked = image.0.inner.demand_lock().await.map(drop);
            image.close().await;
            locked.map_err(|error| match error.kind() {
                Kind::ReadOnly => Error::new(Kind::Busy, error.to_string()),
                _ => error,
            })?;
        }
    }
    let deleted = wall_clock();
    let deferred_until = UTime::from(Duration::from(deleted).saturating_add(delay));
    let image =
        TrashImage { source, name: name.to_owned(), deleted, deferred_until, state: TRASH_MOVING };
    match pool.call(names::TRASH, &AddToTrash { id: id.clone(), image: image.clone() }).await {
        // By somebody who did not get further.
        Err(error) if error.kind() == Kind::Exists => {}
        added => drop(added.context(&doing)?),
    }
    or_none(pool.remove(&names::id_object(name)).await).context(&doing)?;
    let entry = RemoveImage { name: name.to_owned(), id: id.clone() };
    or_none(pool.call(names::DIRECTORY, &entry).await).context(&doing)?;
    set_state(pool, &id, TRASH_MOVING, TRASH_NORMAL).await.context(&doing)?;
    notify(pool, added(&id, &TrashImage { state: TRASH_NORMAL, ..image })).await;
    Ok(())
}

/// The id of an image whose way to the trash was cut short.
async fn moving(pool: &Pool, name: &str, source: TrashSource) -> Result<Option<String>> {
    let images = list_trash(pool).await?;
    let found = images.into_iter().find(|(_, image)| {
        image.source == source && image.state == TRASH_MOVING && image.name == name
    });
    Ok(found.map(|(id, _)| id))
}

/// Images in the trash by their ids, those that are being removed among them.
///
/// # Errors
/// Whatever keeps them from being read.
pub async fn list_trash(pool: &Pool) -> Result<BTreeMap<String, TrashImage>> {
    let mut all = BTreeMap::new();
    loop {
        let after = all.last_key_value().map(|(id, _): (&String, _)| id.clone());
        let page = ListTrash { after: after.unwrap_or_default(), max: PAGE };
        let page = or_none(pool.call(names::TRASH, &page).await)?.unwrap_or_default();
        let last = (page.len() as u64) < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

/// Brings an image back, under its old name or a new one.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Exists`] if the name is taken; [`Kind::Busy`] if it is being removed.
pub async fn restore_from_trash(pool: &Pool, id: &str, name: Option<&str>) -> Result<()> {
    let doing = format!("image {id} in the trash of pool {}", pool.name());
    let image = get(pool, id).await?;
    let sources = [TrashSource::USER, TrashSource::MIRRORING, TrashSource::USER_PARENT];
    if !sources.contains(&image.source) {
        let what = format!("{doing} is there because of {}", image.source.name());
        return Err(Error::new(Kind::Invalid, what));
    }
    if ![TRASH_NORMAL, TRASH_RESTORING].contains(&image.state) {
        return Err(Error::new(Kind::Busy, format!("{doing} is being moved or removed")));
    }
    set_state(pool, id, TRASH_NORMAL, TRASH_RESTORING).await.context(&doing)?;
    let name = name.unwrap_or(&image.name);
    let id_object = names::id_object(name);
    match or_none(pool.call(&id_object, &GetId {}).await).context(&doing)? {
        Some(other) if other != id => {
            set_state(pool, id, TRASH_RESTORING, TRASH_NORMAL).await.context(&doing)?;
            let what = format!("image {} exists already", spec(pool, name));
            return Err(Error::new(Kind::Exists, what).with_hint("give it a name with --image"));
        }
        Some(_) => {}
        None => {
            let set = SetId { id: id.to_owned() };
            let set = Op::call(SetId::CLASS, SetId::NAME, set.input());
            let reserve = vec![Op::Create { exclusive: true }, set];
            pool.operate(&id_object, reserve).await.context(&doing)?;
        }
    }
    let entry = AddImage { name: name.to_owned(), id: id.to_owned() };
    match pool.call(names::DIRECTORY, &entry).await {
        Err(error) if error.kind() == Kind::Exists => {}
        added => drop(added.context(&doing)?),
    }
    or_none(pool.call(names::TRASH, &RemoveFromTrash { id: id.to_owned() }).await)
        .context(&doing)?;
    notify(pool, removed(id)).await;
    Ok(())
}

/// Removes an image for good.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::PermissionDenied`] if its time has not come, unless `force`; as for
/// [`super::remove()`].
pub async fn remove_from_trash(
    pool: &Pool,
    id: &str,
    force: bool,
    progress: Progress<'_>,
) -> Result<()> {
    let doing = format!("image {id} in the trash of pool {}", pool.name());
    let image = get(pool, id).await?;
    if wall_clock() < image.deferred_until && !force {
        let what = format!("{doing}: Deferment time has not expired");
        return Err(
            Error::new(Kind::PermissionDenied, what).with_hint("--force removes it nevertheless")
        );
    }
    match image.state {
        TRASH_NORMAL | TRASH_REMOVING => {}
        TRASH_MOVING => {
            let what = format!("{doing} is not fully there");
            return Err(Error::new(Kind::Os(EUCLEAN), what).with_hint("finish `trash mv` first"));
        }
        _ => return Err(Error::new(Kind::Busy, format!("{doing} is being restored"))),
    }
    set_state(pool, id, TRASH_NORMAL, TRASH_REMOVING).await.context(&doing)?;
    if let Err(error) = remove_image(pool, id, progress).await {
        // What was not begun can still be restored.
        if let Err(error) = set_state(pool, id, TRASH_REMOVING, TRASH_NORMAL).await {
            tracing::warn!(%error, image = id, "stays in the trash as if it was being removed");
        }
        return Err(error.context(doing));
    }
    or_none(pool.call(names::TRASH, &RemoveFromTrash { id: id.to_owned() }).await)
        .context(&doing)?;
    notify(pool, removed(id)).await;
    progress(1, 1);
    Ok(())
}

/// Which images [`purge_trash`] removes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Purged {
    /// Those whose time came before.
    Expired(UTime),
    /// If a pool is used to a larger part than that (of 1): those that give enough of it back, whose time comes first;
    /// and all those whose time has come.
    Above(f64),
}

/// Removes some of the users' images in the trash: parents after their clones, as many as can be removed.
///
/// # Errors
/// What keeps the first one from being removed that was not.
pub async fn purge_trash(pool: &Pool, which: Purged, progress: Progress<'_>) -> Result<()> {
    let users = [TrashSource::USER, TrashSource::USER_PARENT];
    let mut images: Vec<_> = list_trash(pool)
        .await?
        .into_iter()
        .filter(|(_, image)| users.contains(&image.source))
        .collect();
    images.sort_by_key(|(_, image)| image.deferred_until);
    let (early, now) = match which {
        Purged::Expired(before) => (BTreeSet::new(), before),
        Purged::Above(part) => {
            let early = worth_removing(pool, &images, part).await?;
            if early.is_empty() {
                return Ok(());
            }
            (early, wall_clock())
        }
    };
    let mut left: Vec<String> = images
        .into_iter()
        .filter(|(id, image)| image.deferred_until.sec <= now.sec || early.contains(id))
        .map(|(id, _)| id)
        .collect();
    let total = left.len() as u64;
    loop {
        let before = left.len();
        let mut first = None;
        let mut stays = Vec::new();
        for id in left {
            match remove_from_trash(pool, &id, true, &mut |_, _| {}).await {
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    first.get_or_insert(error);
                    stays.push(id);
                    continue;
                }
                Ok(()) => {}
            }
            progress(total - stays.len() as u64, total);
        }
        left = stays;
        match first {
            None => return Ok(()),
            // Without a clone less there is nothing to be gained from another round.
            Some(error) if left.len() == before => return Err(error),
            Some(_) => {}
        }
    }
}

/// Which images have to go so that no pool with data of theirs is used to a larger part than `part`.
async fn worth_removing(
    pool: &Pool,
    images: &[(String, TrashImage)],
    part: f64,
) -> Result<BTreeSet<String>> {
    if !(0.0..=1.0).contains(&part) {
        let what = format!("threshold {part} is not between 0 and 1");
        return Err(Error::new(Kind::Invalid, what));
    }
    let asked = pool.cluster().command(r#"{"prefix": "df", "format": "json"}"#).await?;
    let wrong = |error| Error::new(Kind::Corrupt, "the monitors' df").with_source(error);
    let usage: Usage = serde_json::from_slice(&asked.output).map_err(wrong)?;
    let mut too_much: BTreeMap<String, f64> =
        usage.pools.into_iter().map(Used::above(part)).collect();
    let mut worth = BTreeSet::new();
    for (id, _) in images {
        let Some(header) = or_none(Header::read(pool, id).await)? else { continue };
        let name = match header.data_pool {
            Some(data) => pool.cluster().pool_by_id(data).await?.name().to_owned(),
            None => pool.name().to_owned(),
        };
        let Some(left) = too_much.get_mut(&name).filter(|left| **left > 0.0) else { continue };
        match used(pool, id).await {
            Ok(bytes) => *left -= bytes as f64,
            Err(error) => {
                tracing::warn!(%error, image = id, "nobody knows how much would be gained");
                continue;
            }
        }
        worth.insert(id.clone());
    }
    Ok(worth)
}

/// How many bytes of its own an image has, about.
async fn used(pool: &Pool, id: &str) -> Result<u64> {
    let image = Image::open_to_remove(pool, id).await?;
    let mut used = 0;
    let mut add = |found: Difference| {
        used += if found.exists { found.length } else { 0 };
        Ok(())
    };
    let options = DiffOptions { from: None, whole_objects: true, with_parent: false };
    let looked = diff(&image, options, &mut add).await;
    image.close().await;
    looked.map(|()| used)
}

/// What `ceph df` tells.
#[derive(serde::Deserialize)]
struct Usage {
    pools: Vec<Used>,
}

#[derive(serde::Deserialize)]
struct Used {
    name: String,
    stats: UsedBytes,
}

#[derive(serde::Deserialize)]
struct UsedBytes {
    percent_used: f64,
    bytes_used: u64,
    max_avail: u64,
}

impl Used {
    /// The pool's name, and how many bytes more than that part of it are used.
    fn above(part: f64) -> impl Fn(Self) -> (String, f64) {
        move |Self { name, stats }| {
            let total = stats.max_avail as f64 + stats.bytes_used as f64;
            (name, total * (stats.percent_used - part))
        }
    }
}

async fn get(pool: &Pool, id: &str) -> Result<TrashImage> {
    pool.call(names::TRASH, &GetTrash { id: id.to_owned() }).await.map_err(|error| {
        match error.kind() {
            Kind::NotFound => {
                let what = format!("there is no image {id} in the trash of pool {}", pool.name());
                Error::new(Kind::NotFound, what)
            }
            _ => error,
        }
    })
}

async fn set_state(pool: &Pool, id: &str, expected: u8, state: u8) -> Result<()> {
    let set = SetTrashState { id: id.to_owned(), state, expected };
    pool.call(names::TRASH, &set).await.map(drop)
}

/// Tells who watches the trash (the mirroring daemon does).
async fn notify(pool: &Pool, payload: Bytes) {
    if let Err(error) = pool.notify(names::TRASH, payload).await {
        tracing::warn!(%error, "telling watchers of the trash");
    }
}

/// `ImageAddedPayload` (`librbd/trash_watcher/Types.h`).
fn added(id: &str, image: &TrashImage) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_envelope(1, 1, |w| {
        w.put_u32_le(0);
        w.put_str(id);
        w.put_value(image);
    });
    payload.freeze()
}

/// `ImageRemovedPayload`.
fn removed(id: &str) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_envelope(1, 1, |w| {
        w.put_u32_le(1);
        w.put_str(id);
    });
    payload.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_says_before_all_others_what_is_kept() {
        let pool = |settings: &[(&str, &'static str)], (trash, expires)| {
            let notes = settings
                .iter()
                .map(|(key, value)| (format!("conf_rbd_move_{key}"), Bytes::from(*value)));
            let settings = overridden(&notes.collect(), (trash, expires, false));
            settings.map_err(|error| error.kind()).map(|settings| settings.keep)
        };
        let hour = Duration::from_secs(3600);
        let set = "to_trash_on_remove";
        assert_eq!(pool(&[], (false, hour)), Ok(None));
        assert_eq!(pool(&[], (true, hour)), Ok(Some(hour)));
        assert_eq!(pool(&[(set, "true")], (false, hour)), Ok(Some(hour)));
        assert_eq!(pool(&[(set, "false")], (true, hour)), Ok(None));
        let expires = ("to_trash_on_remove_expire_seconds", "60");
        assert_eq!(pool(&[expires], (false, hour)), Ok(None));
        assert_eq!(pool(&[expires], (true, hour)), Ok(Some(Duration::from_secs(60))));
        assert_eq!(pool(&[(set, "perhaps")], (false, hour)), Err(Kind::Invalid));
        let parents = ("conf_rbd_move_parent_to_trash_on_remove".to_owned(), Bytes::from("true"));
        let settings = overridden(&BTreeMap::from([parents]), (false, hour, false)).unwrap();
        assert_eq!(settings, OnRemove { keep: None, keep_parents: true });
    }
}
