//! The lock of an image as users see it, be it a client's that writes or their own: what `rbd lock` does.

use proto::rbd::cls::lock::{self, BreakLock, GetInfo, Lock, RBD_LOCK};
use proto::rbd::{names, notify};
use proto::types::{EntityAddr, EntityName, EntityType, UTime};

use crate::error::{Context as _, Error, Kind, Result};
use crate::image::lock::fence_off;
use crate::pool::Pool;

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locker {
    /// The client.
    pub client: EntityName,
    /// Tells several locks of one client apart.
    pub cookie: String,
    /// Where the client is.
    pub addr: EntityAddr,
}

/// The lock of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locks {
    /// Who holds it.
    pub lockers: Vec<Locker>,
    /// What they agree on, if they share it.
    pub shared: Option<String>,
}

/// Who has locked the image with this id.
///
/// # Errors
/// Whatever keeps that from being read.
pub async fn locks(pool: &Pool, id: &str) -> Result<Locks> {
    let get = GetInfo { name: RBD_LOCK.to_owned() };
    let state = pool.call(&names::header(id), &get).await?;
    let lockers = state.lockers.into_iter().map(|(locker, info)| Locker {
        client: locker.client,
        cookie: locker.cookie,
        addr: info.addr,
    });
    Ok(Locks {
        lockers: lockers.collect(),
        shared: (state.kind == lock::SHARED).then_some(state.tag),
    })
}

/// Locks an image for its user, alone or with others who name the same tag. Nobody who writes to it is kept from that,
/// but clients of an image with the exclusive-lock feature wait until the lock is removed.
///
/// # Errors
/// [`Kind::Busy`] if somebody else holds it, [`Kind::Exists`] if we do.
pub async fn add_lock(pool: &Pool, id: &str, cookie: &str, shared: Option<&str>) -> Result<()> {
    let lock = Lock {
        name: RBD_LOCK.to_owned(),
        kind: if shared.is_some() { lock::SHARED } else { lock::EXCLUSIVE },
        cookie: cookie.to_owned(),
        tag: shared.unwrap_or_default().to_owned(),
        description: String::new(),
        duration: UTime::default(),
        flags: 0,
    };
    let header = names::header(id);
    pool.call(&header, &lock).await.context("locking the image")?;
    pool.notify(&header, notify::header_update()).await.map(drop)
}

/// Takes a lock away from whoever holds it, as [`locks`] names it: `client.NUMBER`. That client is fenced off first, as
/// it may not know.
///
/// # Errors
/// [`Kind::NotFound`] if it does not hold it.
pub async fn remove_lock(pool: &Pool, id: &str, cookie: &str, locker: &str) -> Result<()> {
    // As librbd, which opens the image for writing: who may not do that must not fence anybody off.
    let watch = pool.watch(&names::header(id)).await.context("removing a lock")?;
    let removed = remove_held(pool, id, cookie, locker).await;
    if let Err(error) = watch.close().await {
        tracing::debug!(%error, "ending a watch");
    }
    removed?;
    // Only now: nobody acknowledges anything for that watch.
    pool.notify(&names::header(id), notify::header_update()).await.map(drop)
}

async fn remove_held(pool: &Pool, id: &str, cookie: &str, locker: &str) -> Result<()> {
    let client = parse_client(locker)?;
    let held = locks(pool, id).await?.lockers;
    let held = held.iter().find(|held| held.client == client && held.cookie == cookie);
    let Some(held) = held else {
        let what = format!("{client} does not hold the lock {cookie:?}");
        return Err(Error::new(Kind::NotFound, what));
    };
    fence_off(pool.cluster(), &held.addr).await?;
    let (name, cookie) = (RBD_LOCK.to_owned(), cookie.to_owned());
    pool.call(&names::header(id), &BreakLock { name, client, cookie }).await.map(drop)
}

fn parse_client(text: &str) -> Result<EntityName> {
    let number = text.strip_prefix("client.").and_then(|number| number.parse().ok());
    number.map(|num| EntityName { kind: EntityType::CLIENT, num }).ok_or_else(|| {
        Error::new(Kind::Invalid, format!("{text:?} is no locker: it is like client.4123"))
    })
}
