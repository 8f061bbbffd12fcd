//! What an OSD needs to know of the cluster's map, computed once per epoch.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::msg::osd_map::OsdMaps;
use proto::types::{EntityAddr, Epoch, Fsid, OsdId, PgId, PoolId};

/// How many maps are sent in one message (`osd_map_message_max`).
const MAPS_PER_MESSAGE: usize = 40;

/// A placement group's primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// Who it is; `None` if all its OSDs are down.
    pub osd: Option<OsdId>,
    /// The map that made it so. Requests that were sent before will be sent again.
    pub since: Epoch,
}

/// One pool.
#[derive(Clone, Debug, Default)]
pub struct PoolView {
    /// Its placement groups' primaries, by number.
    pub primaries: Vec<Primary>,
    /// `ENOSPC` or `EDQUOT` for whoever wants to write rather than wait.
    pub full: Option<i32>,
}

/// The map of one epoch.
#[derive(Clone, Debug, Default)]
pub struct MapView {
    /// The epoch.
    pub epoch: Epoch,
    /// The pools.
    pub pools: BTreeMap<PoolId, PoolView>,
    /// Addresses that are cut off.
    pub blocklist: Vec<EntityAddr>,
}

impl MapView {
    /// The primary of a placement group, if there is such a group.
    pub fn primary(&self, pg: PgId) -> Option<Primary> {
        self.pools.get(&pg.pool)?.primaries.get(pg.seed as usize).copied()
    }

    /// Whether an instance is cut off: its whole host, or just itself.
    pub fn is_blocklisted(&self, addr: &EntityAddr) -> bool {
        self.blocklist.iter().any(|entry| {
            entry.addr.map(|addr| addr.ip()) == addr.addr.map(|addr| addr.ip())
                && (entry.addr == addr.addr || entry.addr.is_some_and(|addr| addr.port() == 0))
                && (entry.nonce == addr.nonce || entry.nonce == 0)
        })
    }
}

/// Every map that there was, encoded.
#[derive(Clone, Debug, Default)]
pub struct MapHistory {
    /// The cluster.
    pub fsid: Fsid,
    /// Whole maps.
    pub full: BTreeMap<Epoch, Bytes>,
    /// Changes, by the epoch that they lead to.
    pub incremental: BTreeMap<Epoch, Bytes>,
}

impl MapHistory {
    /// The newest epoch.
    pub fn newest(&self) -> Epoch {
        self.full.last_key_value().map_or(Epoch(0), |(epoch, _)| *epoch)
    }

    /// What brings somebody who wants maps from `start` on up to date: changes where there are some, a whole map
    /// otherwise. `start` 0 is somebody who has none.
    pub fn since(&self, start: Epoch) -> OsdMaps {
        let newest = self.newest();
        let oldest = self.full.first_key_value().map_or(Epoch(0), |(epoch, _)| *epoch);
        let mut maps = OsdMaps { fsid: self.fsid, oldest, newest, ..Default::default() };
        let changes = self.incremental.range(start..).take(MAPS_PER_MESSAGE);
        if start > Epoch(0) && self.incremental.contains_key(&start) {
            maps.incremental = changes.map(|(epoch, map)| (*epoch, map.clone())).collect();
        } else if let Some((epoch, map)) = self.full.last_key_value() {
            maps.full.insert(*epoch, map.clone());
        }
        maps
    }
}
