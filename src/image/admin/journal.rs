//! Making and removing the journal of an image, and having it know of what is done to the image as a whole.

use std::sync::Arc;
use std::time::Duration;

use proto::denc::Encode;
use proto::rbd::cls::{CreateJournal, GetMirrorMode, NEW_TAG_CLASS, RegisterJournalClient};
use proto::rbd::journal::{ClientData, Operation, TagData};
use proto::rbd::{Features, names};
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::children::or_none;
use crate::error::{Error, Kind, Result};
use crate::image::journal::{Journal, Place, WRITER};
use crate::image::live;
use crate::image::{Boxed, Image, PAUSE};
use crate::pool::Pool;

/// How large the objects of a new journal become, as a power of two, and how many are written to by turns (librbd's
/// `rbd_journal_order` and `rbd_journal_splay_width`).
const ORDER: u8 = 24;
const WIDTH: u8 = 4;

/// How long to wait before it is looked again whether a journal is open.
const AGAIN: Duration = Duration::from_millis(50);

/// All images of a pool that have a journal are mirrored.
const MIRROR_POOL: u32 = 2;

/// Makes the journal of an image that has none. What somebody left of one who died is removed.
///
/// # Errors
/// [`Kind::Unsupported`] where every image with a journal is to be mirrored.
pub(super) fn make_journal<'a>(pool: &'a Pool, id: &'a str) -> Boxed<'a, ()> {
    Box::pin(make(pool, id))
}

async fn make(pool: &Pool, id: &str) -> Result<()> {
    let mode = or_none(pool.call(names::MIRRORING, &GetMirrorMode {}).await)?;
    if mode == Some(MIRROR_POOL) {
        let what = format!("not built yet: pool {} mirrors all images with a journal", pool.name());
        return Err(Error::new(Kind::Unsupported, what).with_hint("`rbd` makes such images"));
    }
    remove_journal(pool, id).await?;
    let header = names::journal(id);
    pool.call(&header, &CreateJournal { order: ORDER, width: WIDTH, pool: -1 }).await?;
    let place = Place::find(pool, id).await?;
    place.make_tag(NEW_TAG_CLASS, &TagData::default()).await?;
    // The first class of a journal.
    let data = ClientData::Image { tag_class: 0, resync_requested: false };
    let register = RegisterJournalClient { id: WRITER.to_owned(), data: data.to_bytes() };
    pool.call(&header, &register).await.map(drop)
}

/// Removes the journal of an image, if there is one.
pub(super) async fn remove_journal(pool: &Pool, id: &str) -> Result<()> {
    let place = match Place::find(pool, id).await {
        // One that nobody finished has no objects.
        Err(error) if error.kind() == Kind::NotFound => None,
        place => Some(place?),
    };
    if let Some(place) = place {
        let (minimum, active) = place.sets().await?;
        // Its writer may have died before it could say that it had begun the next one.
        for set in minimum..=active + 1 {
            place.remove_set(set).await?;
        }
    }
    or_none(pool.remove(&names::journal(id)).await).map(drop)
}

/// The journal that an image is written to, if it has one.
pub(super) fn open_journal(image: &Image) -> Result<Option<Arc<Journal>>> {
    match &image.0.current.get().journal {
        live::Journal::Never => Ok(None),
        live::Journal::Open(journal) => Ok(Some(Arc::clone(journal))),
        live::Journal::Closed(_) | live::Journal::Going => {
            let what = "the exclusive lock, and the journal with it, has just been handed on";
            Err(Error::new(Kind::Busy, what))
        }
    }
}

/// Waits for others that are doing something to the image that its journal knows of before, and keeps them waiting. Of
/// an image without a journal they need not.
pub(super) async fn alone(image: &Image) -> Result<Option<MutexGuard<'_, ()>>> {
    if !image.header().features.contains(Features::JOURNALING) {
        return Ok(None);
    }
    let deadline = Instant::now() + PAUSE;
    loop {
        let alone = image.0.operations.lock().await;
        match open_journal(image) {
            // It is being opened.
            Err(_) if Instant::now() < deadline => drop(alone),
            opened => return opened.map(|_| Some(alone)),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Has the journal know of something that was done, of which nothing that is written depends.
pub(in crate::image) async fn note(image: &Image, what: Operation) {
    let noted = async {
        let _alone = alone(image).await?;
        match open_journal(image)? {
            Some(journal) => journal.note(what).await,
            None => Ok(()),
        }
    };
    if let Err(error) = noted.await {
        tracing::warn!(image = image.spec(), %error, "the journal does not know what was done");
    }
}

/// Does something to an image that what is written depends on: nothing is meanwhile, or nothing that it is about. If
/// the image has a journal, that knows before when it begins, and then how it went.
pub(super) async fn journaled<T>(
    image: &Image,
    what: impl FnOnce() -> Operation,
    doing: impl Future<Output = Result<T>>,
) -> Result<T> {
    let journal = open_journal(image)?;
    let begun = match &journal {
        Some(journal) => Some(journal.begin(what()).await?),
        None => None,
    };
    let done = doing.await;
    if let Some(begun) = begun
        && let Err(error) = begun.finish(done.as_ref().err()).await
    {
        // It has an end there, too, be it another one.
        tracing::warn!(image = image.spec(), %error, "the journal does not know what was done");
    }
    done
}
