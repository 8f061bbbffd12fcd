//! Who has the exclusive lock of an image, and keeping that one from writing.

use std::fmt;

use proto::rbd::cls::lock::{self, GetInfo, RBD_LOCK};
use proto::rbd::names;
use proto::rbd::notify::ClientId;
use proto::types::{EntityAddr, EntityName};

use super::{COOKIE, TAG};
use crate::cluster::Cluster;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::admin::address_text;
use crate::pool::Pool;

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The client.
    pub(crate) client: EntityName,
    /// The cookie of its lock.
    pub(crate) cookie: String,
    /// Where it is.
    pub(crate) addr: EntityAddr,
    /// The lock's kind and tag are those of a client that writes, not of `rbd lock add`.
    pub(super) automatic: bool,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.client, address_text(&self.addr))?;
        match self.automatic {
            true => Ok(()),
            false => write!(f, " (cookie {:?}, by `rbd lock add`)", self.cookie),
        }
    }
}

impl Owner {
    /// It is somebody who neither answers nor gives the lock back when asked.
    pub(in crate::image) fn refuses(&self, spec: &str) -> Option<Error> {
        let what = format!("image {spec} is locked by {self}");
        (!self.automatic).then(|| Error::new(Kind::ReadOnly, what).with_hint("`lock rm` ends that"))
    }

    /// The cookie of its watch.
    pub(super) fn watch(&self) -> Option<u64> {
        self.cookie.strip_prefix(COOKIE)?.trim().parse().ok()
    }

    /// As clients announce it.
    pub(super) fn id(&self) -> ClientId {
        ClientId { gid: self.client.num as u64, handle: self.watch().unwrap_or(0) }
    }
}

/// Who holds an image's lock.
pub(crate) async fn owner(pool: &Pool, id: &str) -> Result<Option<Owner>> {
    let get = GetInfo { name: RBD_LOCK.to_owned() };
    let state = pool.call(&names::header(id), &get).await?;
    let automatic = state.kind == lock::EXCLUSIVE && state.tag == TAG;
    Ok(state.lockers.into_iter().next().map(|(locker, info)| Owner {
        automatic: automatic && locker.cookie.starts_with(COOKIE),
        client: locker.client,
        cookie: locker.cookie,
        addr: info.addr,
    }))
}

/// Keeps the client with this address from writing anything more. It has another address when it is restarted.
pub(in crate::image) async fn fence_off(cluster: &Cluster, addr: &EntityAddr) -> Result<()> {
    let addr = address_text(addr);
    let command =
        format!(r#"{{"prefix": "osd blocklist", "blocklistop": "add", "addr": "{addr}"}}"#);
    cluster.command(command).await.context(format!("fencing off {addr}"))?;
    // Whatever is sent from now on makes the OSDs wait for this map.
    cluster.refresh_map().await
}
