//! The trash of a pool: images that are out of sight, to be removed later or to come back.
//!
//! The orders are librbd's (`librbd/api/Trash.cc`, `librbd/trash/MoveRequest.cc`): each move can be finished by whoever
//! does it again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::Put;
use proto::msg::op::Op;
use proto::rbd::cls::{
    AddImage, AddToTrash, GetId, GetIdOfName, GetTrash, ListTrash, Method, RemoveFromTrash,
    RemoveImage, SetId, SetTrashState, TRASH_MOVING, TRASH_NORMAL, TRASH_REMOVING, TRASH_RESTORING,
    TrashImage, TrashSource,
};
use proto::rbd::{Features, names};
use proto::types::UTime;

use super::children::or_none;
use super::metadata::{CONFIG_PREFIX, Notes};
use super::objects::Progress;
use super::remove::{in_a_group, is_mirrored, remove_image};
use crate::cluster::wall_clock;
use crate::config::{count, truth};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;
use crate::image::header::{Header, spec};
use crate::pool::Pool;

/// Entries that are asked for at a time.
const PAGE: u64 = 1024;

const EUCLEAN: i32 = 117;

/// For how long an image of the pool is put into the trash in place of being removed, if it is: the pool's own settings
/// (`rbd config pool set`) count before all others. What the monitors have (`ceph config set`) is not asked for.
///
/// # Errors
/// [`Kind::Invalid`] if a setting of the pool cannot be understood; whatever keeps them from being read, but a lack of
/// permission: who lacks it does without, as with librbd.
pub async fn trash_delay(pool: &Pool) -> Result<Option<Duration>> {
    let notes = match Notes::Pool.list(&pool.with_namespace("")).await {
        Err(error) if error.kind() == Kind::PermissionDenied => {
            tracing::warn!(%error, pool = pool.name(), "doing without settings of the pool");
            BTreeMap::new()
        }
        notes => notes?,
    };
    let rbd = &pool.cluster().config().rbd;
    delay(&notes, (rbd.trash, rbd.trash_expires))
        .map_err(|error| error.context(format!("settings of pool {}", pool.name())))
}

fn delay(
    notes: &BTreeMap<String, Bytes>,
    (mut trash, mut expires): (bool, Duration),
) -> Result<Option<Duration>> {
    for (key, value) in notes {
        let value = String::from_utf8_lossy(value);
        let understood = match key.strip_prefix(CONFIG_PREFIX) {
            Some("rbd_move_to_trash_on_remove") => truth(&value).map(|value| trash = value),
            Some("rbd_move_to_trash_on_remove_expire_seconds") => {
                count(&value).map(|value| expires = Duration::from_secs(value))
            }
            _ => Some(()),
        };
        understood.ok_or_else(|| Error::new(Kind::Invalid, format!("{key} = {value:?}")))?;
    }
    Ok(trash.then_some(expires))
}

/// Moves an image to the trash. It is not removed before `delay` is over.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Busy`] while somebody holds its exclusive lock; errno `EMLINK` if it is in a group;
/// [`Kind::Unsupported`] if it is mirrored.
pub async fn move_to_trash(pool: &Pool, name: &str, delay: Duration) -> Result<()> {
    let doing = format!("image {}", spec(pool, name));
    let named = GetIdOfName { name: name.to_owned() };
    let id = match or_none(pool.call(names::DIRECTORY, &named).await)? {
        Some(id) => id,
        None => moving(pool, name)
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
    let image = TrashImage {
        source: TrashSource::USER,
        name: name.to_owned(),
        deleted,
        deferred_until,
        state: TRASH_MOVING,
    };
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
async fn moving(pool: &Pool, name: &str) -> Result<Option<String>> {
    let images = list_trash(pool).await?;
    let found = images.into_iter().find(|(_, image)| {
        image.source == TrashSource::USER && image.state == TRASH_MOVING && image.name == name
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

/// Removes those of the users' images in the trash whose time came before `now`: parents after their clones, as many
/// as can be removed.
///
/// # Errors
/// What keeps the first one from being removed that was not.
pub async fn purge_trash(pool: &Pool, now: UTime, progress: Progress<'_>) -> Result<()> {
    let users = [TrashSource::USER, TrashSource::USER_PARENT];
    let mut left: Vec<String> = list_trash(pool)
        .await?
        .into_iter()
        .filter(|(_, image)| users.contains(&image.source))
        .filter(|(_, image)| image.deferred_until.sec <= now.sec)
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
        let pool = |settings: &[(&str, &'static str)], otherwise| {
            let notes = settings.iter().map(|(key, value)| {
                (format!("conf_rbd_move_to_trash_on_remove{key}"), Bytes::from(*value))
            });
            delay(&notes.collect(), otherwise).map_err(|error| error.kind())
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(pool(&[], (false, hour)), Ok(None));
        assert_eq!(pool(&[], (true, hour)), Ok(Some(hour)));
        assert_eq!(pool(&[("", "true")], (false, hour)), Ok(Some(hour)));
        assert_eq!(pool(&[("", "false")], (true, hour)), Ok(None));
        let expires = ("_expire_seconds", "60");
        assert_eq!(pool(&[expires], (false, hour)), Ok(None));
        assert_eq!(pool(&[expires], (true, hour)), Ok(Some(Duration::from_secs(60))));
        assert_eq!(pool(&[("", "perhaps")], (false, hour)), Err(Kind::Invalid));
    }
}
