//! What there is to say about a client: for admin sockets and metrics.

use std::time::Duration;

use proto::objecter::{SessionStatus, SlowOp, Stats, WatchStatus};
use proto::types::{EntityAddr, Epoch, Fsid};

use super::Cluster;
use super::state::{Peer, State};
use crate::error::Kind;

/// How many operations in flight are described, at most: the oldest.
const DESCRIBED: usize = 256;

/// A client at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The cluster.
    pub fsid: Fsid,
    /// Who we are: `client.admin`.
    pub entity: String,
    /// The number that the monitors gave this client.
    pub global_id: u64,
    /// This client's address, by which the cluster would fence it.
    pub addr: EntityAddr,
    /// The OSD map in use.
    pub epoch: Epoch,
    /// Whether the cluster has fenced this client off.
    pub fenced: bool,
    /// Why nothing works any more.
    pub failed: Option<(Kind, String)>,
    /// The monitors that there is a session with: one, except while another is looked for.
    pub monitors: Vec<EntityAddr>,
    /// Sessions with OSDs.
    pub sessions: Vec<Session>,
    /// Watches on objects.
    pub watches: Vec<WatchStatus>,
    /// Operations in flight.
    pub ops: usize,
    /// What these carry or ask for, in bytes.
    pub bytes: u64,
    /// The oldest of them.
    pub oldest: Vec<SlowOp>,
    /// What was counted.
    pub stats: Stats,
}

/// A session with an OSD.
#[derive(Clone, Debug)]
pub struct Session {
    /// As the table of operations sees it.
    pub table: SessionStatus,
    /// Bytes that wait to be sent.
    pub queued: usize,
    /// How often in a row it could not be reached.
    pub failures: u32,
}

impl Cluster {
    /// What there is to say about this client now.
    pub fn status(&self) -> Status {
        let now = self.0.shared.now();
        let state = self.0.shared.lock();
        let objecter = &state.objecter;
        let mut oldest = objecter.slow_ops(now, Duration::ZERO);
        oldest.truncate(DESCRIBED);
        Status {
            fsid: objecter.map().map(|map| map.fsid).unwrap_or_default(),
            entity: self.entity().to_owned(),
            global_id: state.mon.global_id(),
            addr: state.local,
            epoch: objecter.map().map_or(Epoch(0), |map| map.epoch),
            fenced: objecter.is_fenced(),
            failed: state.failed.clone(),
            monitors: state.monitors_connected().collect(),
            sessions: objecter.sessions().map(|table| state.session(table)).collect(),
            watches: objecter.watches(now).collect(),
            ops: objecter.in_flight(),
            bytes: objecter.bytes_in_flight(),
            oldest,
            stats: objecter.stats().clone(),
        }
    }
}

impl State {
    fn monitors_connected(&self) -> impl Iterator<Item = EntityAddr> + '_ {
        let links = self.links.iter().map(|(_, link)| link);
        links.filter(|link| link.ready && matches!(link.peer, Peer::Mon(_))).map(|link| link.addr)
    }

    fn session(&self, table: SessionStatus) -> Session {
        let state = self.osds.get(&table.osd);
        let link = state.and_then(|osd| self.links.get(osd.link?));
        Session {
            queued: link.map_or(0, |link| link.connection.queued()),
            failures: state.map_or(0, |osd| osd.failures),
            table,
        }
    }
}
