//! Clones that are to be independent of their parents, as the cluster knows them: metadata say that it is still to be
//! done and how far it is, and a lock that ends by itself has one plugin do it.

use std::collections::BTreeMap;

use proto::msg::watch::{Watcher, decode_watchers};
use proto::rbd::cls::lock::{self, BreakLock};
use proto::rbd::cls::{GetMetadata, GetObjectPrefix, Method as _, SetMetadata};
use proto::rbd::names;
use proto::types::UTime;
use serde::{Deserialize, Serialize};

use super::{Found, Store, call, gone_is_fine, json};
use crate::error::{Context as _, Kind, Result};
use crate::image::admin;
use crate::pool::{Op, Pool};

/// The metadata about a clone that is to be independent.
pub(super) const FLATTEN: &str = "ceph-native.flatten";

/// The lock of the plugin that makes it so.
const LOCK: &str = "ceph-native.flatten";

/// How many seconds that lasts if it is not renewed: when a plugin has ended, another one goes on.
const LEASE: u32 = 60;

/// `LOCK_FLAG_MAY_RENEW` (`cls/lock/cls_lock_types.h`).
const MAY_RENEW: u8 = 1;

/// What becomes of such a clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flattening {
    /// Whether that is still to be done.
    pub wanted: bool,
    /// Who is at it, or was.
    pub host: String,
    /// How far it is.
    pub percent: u64,
}

/// Who has a volume open.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Who uses it.
    pub users: Vec<Watcher>,
    /// The host whose plugin only makes it independent.
    pub flattener: Option<String>,
}

impl Store {
    /// Who has the volume open. Whoever makes it independent has the lock for that for as long, so both are looked at
    /// in one operation.
    ///
    /// # Errors
    /// Whatever keeps it from being found out.
    pub async fn clients(&self, found: &Found) -> Result<Clients> {
        let pool = self.pool(&found.place).await?;
        let header = names::header(&found.id);
        let info = lock::GetInfo { name: LOCK.to_owned() };
        let replies = pool.operate(&header, vec![call(&info), Op::ListWatchers]).await?;
        let mut replies = replies.into_iter().map(|reply| reply.data);
        let state = lock::GetInfo::reply(&replies.next().unwrap_or_default()).context(&header)?;
        let users = decode_watchers(&replies.next().unwrap_or_default()).context(&header)?;
        let mut clients = Clients { users, flattener: None };
        for (locker, info) in state.lockers {
            let all = clients.users.len();
            clients.users.retain(|client| client.name != locker.client);
            if clients.users.len() < all {
                clients.flattener = Some(info.description);
            }
        }
        Ok(clients)
    }

    /// Takes the lock of whoever makes a clone independent, or renews it; says whether it is this host's.
    ///
    /// # Errors
    /// Whatever keeps it from being taken.
    pub async fn lease_flattening(&self, found: &Found, host_id: &str, host: &str) -> Result<bool> {
        let pool = self.pool(&found.place).await?;
        let lease = lock::Lock {
            name: LOCK.to_owned(),
            kind: lock::EXCLUSIVE,
            cookie: host_id.to_owned(),
            tag: String::new(),
            description: host.to_owned(),
            duration: UTime { sec: LEASE, nsec: 0 },
            flags: MAY_RENEW,
        };
        // A lock would make the header of an image anew that was just removed.
        let ops = vec![call(&GetObjectPrefix {}), call(&lease)];
        match pool.operate_write(&names::header(&found.id), ops).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::Busy => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends what an earlier life of this host's plugin has left of making a clone independent: its lock, and its watch,
    /// by which the image would seem to be in use for a while.
    ///
    /// # Errors
    /// Whatever keeps it from being ended.
    pub async fn end_earlier_flattening(&self, found: &Found, host_id: &str) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let header = names::header(&found.id);
        let info = lock::GetInfo { name: LOCK.to_owned() };
        let state = match pool.call(&header, &info).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            state => state?,
        };
        let own = pool.cluster().global_id();
        for (locker, info) in state.lockers {
            if locker.cookie != host_id || locker.client.num as u64 == own {
                continue;
            }
            let watchers = pool.watchers(&header).await?;
            if watchers.iter().any(|watcher| watcher.name == locker.client) {
                self.fence(&[admin::address_text(&info.addr)]).await?;
            }
            let (name, client, cookie) = (LOCK.to_owned(), locker.client, locker.cookie);
            gone_is_fine(pool.call(&header, &BreakLock { name, client, cookie }).await)?;
        }
        Ok(())
    }

    /// Gives the lock back of whoever makes a clone independent.
    ///
    /// # Errors
    /// Whatever keeps it from being given back; that it is not ours is none.
    pub async fn end_flattening(&self, found: &Found, host_id: &str) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let unlock = lock::Unlock { name: LOCK.to_owned(), cookie: host_id.to_owned() };
        gone_is_fine(pool.call(&names::header(&found.id), &unlock).await)
    }

    /// Writes down how far a clone is on the way to be independent.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    pub async fn note_flattening(&self, found: &Found, flattening: &Flattening) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let values = BTreeMap::from([(FLATTEN.to_owned(), json(flattening)?)]);
        pool.call(&names::header(&found.id), &SetMetadata { values }).await.map(drop)
    }
}

/// How far an image is on the way to be independent, if it is to be.
pub(super) async fn flattening_of(pool: &Pool, id: &str) -> Result<Option<Flattening>> {
    let get = GetMetadata { name: FLATTEN.to_owned() };
    match pool.call(&names::header(id), &get).await {
        // What cannot be read was not written by us.
        Ok(text) => {
            let flattening: Flattening = serde_json::from_slice(&text).unwrap_or_default();
            Ok(Some(flattening).filter(|flattening| flattening.wanted))
        }
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
