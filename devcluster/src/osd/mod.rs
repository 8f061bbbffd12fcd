//! An OSD as a state machine: messages in, messages out. The objects are in the [`Store`] that all OSDs share.

mod cls;
pub mod context;
mod list;
pub mod map;
mod ops;
mod request;
mod snaps;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use proto::msg::{kind, osd_op};
use proto::msgr::Message;
use proto::types::{EVersion, EntityName, EntityType, Entropy, Epoch, Instant, OsdId, PgId};

use crate::store::{Answer, ReqId, Store, Transaction};
use crate::wire::{Actions, ConnId, Now, Peer};
use map::{MapHistory, MapView};
use watch::{Target, WatchId, Watches};

/// One OSD.
pub struct Osd {
    id: OsdId,
    sessions: BTreeMap<ConnId, Session>,
    watches: Watches,
    /// The next number for what this OSD makes up itself: notifies, and log entries of its own.
    next: u64,
}

/// One client's connection.
struct Session {
    peer: Peer,
    /// The newest map that it was sent from here.
    sent: Epoch,
}

/// What an OSD shares with the rest of the cluster.
pub struct Shared<'a> {
    /// The present map.
    pub map: &'a MapView,
    /// All maps.
    pub history: &'a MapHistory,
    /// The objects.
    pub store: &'a mut Store,
    /// Random bytes.
    pub entropy: &'a mut dyn Entropy,
    /// What to do afterwards.
    pub actions: &'a mut Actions,
}

impl Osd {
    /// An OSD that has just started.
    pub fn new(id: OsdId) -> Self {
        Self { id, sessions: BTreeMap::new(), watches: Watches::default(), next: 1 }
    }

    /// A client has connected.
    pub fn connected(&mut self, conn: ConnId, peer: Peer) {
        self.sessions.insert(conn, Session { peer, sent: Epoch(0) });
    }

    /// A connection is gone.
    pub fn closed(&mut self, conn: ConnId) {
        self.sessions.remove(&conn);
        self.watches.closed(conn);
    }

    /// A client has sent a message.
    pub fn handle_message(
        &mut self,
        now: Now,
        conn: ConnId,
        message: &Message,
        shared: &mut Shared<'_>,
    ) {
        // Clients acknowledge backoffs, of which there are none; nothing else comes here.
        if message.header.kind != kind::OSD_OP {
            return;
        }
        match osd_op::decode_request(message) {
            Ok((routing, operation)) => self.request(now, conn, routing, operation, shared),
            // As a real OSD's messenger does with what it cannot read.
            Err(error) => {
                tracing::warn!(osd = %self.id, %error, "unreadable request");
                shared.actions.close(conn);
            }
        }
    }

    /// A new map is there.
    pub fn handle_map(&mut self, now: Now, shared: &mut Shared<'_>) {
        let serves = |pg| shared.map.primary(pg).is_some_and(|pg| pg.osd == Some(self.id));
        self.watches.retain(serves);
        let mut cut_off: Vec<(Target, WatchId)> = Vec::new();
        for (&pool, view) in &shared.map.pools {
            for (id, info) in shared.store.watched(pool) {
                let pg = PgId { pool, seed: fold(id.hash, view.primaries.len() as u32) };
                let target = (pg, id.clone());
                for (watch, watcher) in info.watchers.iter().filter(|_| serves(pg)) {
                    // Those who watch objects that came to this OSD have some time to come as well.
                    let timeout = Duration::from_secs(watcher.timeout.into());
                    self.watches.expect(&target, *watch, timeout, now.instant);
                    if shared.map.is_blocklisted(&watcher.addr) {
                        cut_off.push((target.clone(), *watch));
                    }
                }
            }
        }
        for (target, watch) in cut_off {
            self.drop_watch(&target, watch, shared);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.watches.poll_timeout()
    }

    /// Looks whether watchers have been silent for too long.
    pub fn handle_timeout(&mut self, now: Now, shared: &mut Shared<'_>) {
        for (target, watch) in self.watches.handle_timeout(now.instant, shared.actions) {
            self.drop_watch(&target, watch, shared);
        }
    }

    /// Ends a watch without its owner's doing.
    fn drop_watch(&mut self, target: &Target, watch: WatchId, shared: &mut Shared<'_>) {
        self.watches.disconnect(target, watch, true, shared.actions);
        let (pg, object) = target;
        let Some(entry) = shared.store.get(pg.pool, object) else { return };
        let mut info = entry.head.info.clone();
        if info.watchers.remove(&watch).is_none() {
            return;
        }
        let snapset = entry.snapset.clone();
        let last = shared.store.pg(*pg);
        let version = EVersion { epoch: shared.map.epoch, version: last.version.version + 1 };
        let answer = Answer { version, user_version: last.user_version, ..Default::default() };
        info.version = version;
        let name = EntityName { kind: EntityType::OSD, num: self.id.0.into() };
        let reqid = ReqId { name, inc: 0, tid: self.next };
        self.next += 1;
        let transaction = Transaction {
            pg: *pg,
            object: object.clone(),
            mutations: Vec::new(),
            after: Some((info, snapset)),
        };
        shared.store.commit(transaction, reqid, answer);
    }

    /// Sends newer maps to a client that has an older one than this OSD.
    fn share_map(&mut self, conn: ConnId, has: Epoch, shared: &mut Shared<'_>) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let has = has.max(session.sent);
        if has < shared.map.epoch && has > Epoch(0) {
            session.sent = shared.map.epoch;
            shared.actions.send(conn, shared.history.since(Epoch(has.0 + 1)));
        }
    }
}

/// Which placement group a hash belongs to (`ceph_stable_mod`).
pub(crate) fn fold(hash: u32, pg_num: u32) -> u32 {
    let mask = pg_num.max(1).next_power_of_two() - 1;
    if hash & mask < pg_num { hash & mask } else { hash & (mask >> 1) }
}

#[cfg(test)]
mod tests;
