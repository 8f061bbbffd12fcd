//! Namespaces of a pool, each with a directory of images of its own.

use proto::msg::op::Op;
use proto::rbd::cls::{
    AddNamespace, DIRECTORY_ADD_DISABLED, DIRECTORY_READY, ListNamespaces, ListTrash, Method,
    RemoveNamespace, SetDirectoryState,
};
use proto::rbd::names;

use super::children::or_none;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::Pool;

/// Names that are asked for at a time.
const PAGE: u64 = 1024;

/// What a namespace has besides images.
const OBJECTS: [&str; 7] = [
    names::CHILDREN,
    names::GROUPS,
    names::INFO,
    names::MIRRORING,
    "rbd_task",
    names::TRASH,
    names::DIRECTORY,
];

/// Makes a namespace in a pool.
///
/// # Errors
/// [`Kind::Exists`]; [`Kind::Invalid`] without a name.
pub async fn create_namespace(pool: &Pool, name: &str) -> Result<()> {
    let doing = format!("namespace {}/{name}", pool.name());
    if name.is_empty() {
        return Err(Error::new(Kind::Invalid, "namespace name was not specified"));
    }
    let (pool, within) = (pool.with_namespace(""), pool.with_namespace(name));
    match pool.call(names::NAMESPACES, &AddNamespace { name: name.to_owned() }).await {
        Err(error) if error.kind() == Kind::Exists && !is_ready(&within).await? => {
            tracing::info!(namespace = name, "finishing what somebody began");
        }
        Err(error) if error.kind() == Kind::Exists => {
            return Err(Error::new(Kind::Exists, format!("{doing} exists already")));
        }
        made => drop(made.context(&doing)?),
    }
    within.operate(names::TRASH, vec![Op::Create { exclusive: false }]).await.context(&doing)?;
    let ready = SetDirectoryState { state: DIRECTORY_READY };
    within.call(names::DIRECTORY, &ready).await.context(doing).map(drop)
}

async fn is_ready(pool: &Pool) -> Result<bool> {
    let ready = proto::rbd::cls::AssertDirectoryState { state: DIRECTORY_READY };
    or_none(pool.call(names::DIRECTORY, &ready).await).map(|ready| ready.is_some())
}

/// Removes an empty namespace.
///
/// Cancel-safe: what was begun is finished by doing it again.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Busy`] if it has images, be it in the trash.
pub async fn remove_namespace(pool: &Pool, name: &str) -> Result<()> {
    let doing = format!("namespace {}/{name}", pool.name());
    if name.is_empty() {
        return Err(Error::new(Kind::Invalid, "namespace name was not specified"));
    }
    let (pool, within) = (pool.with_namespace(""), pool.with_namespace(name));
    let full = || Error::new(Kind::Busy, format!("{doing} has images, maybe in its trash"));
    let close = SetDirectoryState { state: DIRECTORY_ADD_DISABLED };
    let close = Op::call(SetDirectoryState::CLASS, SetDirectoryState::NAME, close.input());
    match within.operate_write(names::DIRECTORY, vec![close, Op::Delete]).await {
        Err(error) if error.kind() == Kind::Busy => return Err(full()),
        closed => drop(or_none(closed).context(&doing)?),
    }
    let trash = ListTrash { after: String::new(), max: 1 };
    let trash = or_none(within.call(names::TRASH, &trash).await).context(&doing)?;
    if trash.is_some_and(|images| !images.is_empty()) {
        let open = SetDirectoryState { state: DIRECTORY_READY };
        within.call(names::DIRECTORY, &open).await.context(&doing)?;
        return Err(full());
    }
    for object in OBJECTS {
        or_none(within.remove(object).await).context(&doing)?;
    }
    let remove = RemoveNamespace { name: name.to_owned() };
    match pool.call(names::NAMESPACES, &remove).await {
        Err(error) if error.kind() == Kind::NotFound => {
            Err(Error::new(Kind::NotFound, format!("there is no {doing}")))
        }
        removed => removed.context(doing).map(drop),
    }
}

/// The namespaces of a pool, in order.
///
/// # Errors
/// Whatever keeps them from being read.
pub async fn list_namespaces(pool: &Pool) -> Result<Vec<String>> {
    let pool = pool.with_namespace("");
    let mut all: Vec<String> = Vec::new();
    loop {
        let page = ListNamespaces { after: all.last().cloned().unwrap_or_default(), max: PAGE };
        let page = or_none(pool.call(names::NAMESPACES, &page).await)?.unwrap_or_default();
        let last = (page.len() as u64) < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}
