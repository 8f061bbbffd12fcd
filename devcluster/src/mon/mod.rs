//! The monitor as a state machine: messages in, messages out. There is one, so it is always in quorum.

mod commands;
pub mod map;
mod stats;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proto::cephx::server::MonSession;
use proto::denc::Encode;
use proto::monmap::{Mon, MonMap};
use proto::msg::kind;
use proto::msg::mon::{
    Auth, AuthReply, Command, CommandAck, Config, GetVersion, GetVersionReply, MonMap as MonMapMsg,
    PoolOp, PoolOpReply, Statfs, StatfsReply, Subscribe, pool_op, snap_id_data,
};
use proto::msgr::Message;
use proto::osdmap::Incremental;
use proto::types::{EntityAddrs, Epoch, PoolId};

use crate::errno::{EEXIST, EINVAL, ENOENT, EOPNOTSUPP};
use crate::store::Store;
use crate::wire::{Actions, ConnId, Now};
use map::{ClusterMap, NewPool};

/// The space that the cluster says it has, in KiB: 1 TiB.
const TOTAL_KIB: u64 = 1 << 30;

/// The monitor.
pub struct Monitor {
    /// The map of the cluster.
    pub map: ClusterMap,
    monmap: Bytes,
    sessions: BTreeMap<ConnId, Session>,
    /// Options that clients are told to set (`ceph config`).
    pub config: BTreeMap<String, String>,
}

/// One client's session.
struct Session {
    auth: MonSession,
    /// The first map that it has not been sent yet, if it wants it, and whether that is all it wants.
    osdmap: Option<(Epoch, bool)>,
}

/// What the monitor shares with the rest of the cluster.
pub struct Shared<'a> {
    /// The objects, to be counted and trimmed.
    pub store: &'a mut Store,
    /// What to do afterwards.
    pub actions: &'a mut Actions,
}

impl Monitor {
    /// A monitor at these addresses: each is another one to clients.
    pub fn new(map: ClusterMap, addrs: &[EntityAddrs]) -> Self {
        let cluster = map.map();
        let named = ('a'..='z').zip(addrs);
        let mons = named.map(|(name, addrs)| Mon {
            name: name.to_string(),
            addrs: addrs.clone(),
            priority: 0,
            weight: 0,
        });
        let monmap = MonMap {
            epoch: Epoch(1),
            fsid: cluster.fsid,
            last_changed: cluster.created,
            created: cluster.created,
            // Kraken to Pacific.
            persistent_features: 0b11_1111,
            optional_features: 0,
            mons: mons.collect(),
            min_release: 16,
            auth: None,
        };
        Self { map, monmap: monmap.to_bytes(), sessions: BTreeMap::new(), config: BTreeMap::new() }
    }

    /// A client has connected.
    pub fn connected(&mut self, conn: ConnId, auth: MonSession, actions: &mut Actions) {
        self.sessions.insert(conn, Session { auth, osdmap: None });
        // Clients wait for the map of the monitors before anything else.
        actions.send(conn, MonMapMsg { map: self.monmap.clone() });
    }

    /// A connection is gone.
    pub fn closed(&mut self, conn: ConnId) {
        self.sessions.remove(&conn);
    }

    /// Makes a change of the map and tells those who want to know.
    pub fn commit(&mut self, change: Incremental, now: Now, actions: &mut Actions) {
        self.map.apply(change, now.wall);
        let newest = self.map.view.epoch;
        for (conn, session) in &mut self.sessions {
            if let Some((start, once)) = session.osdmap.filter(|(start, _)| *start <= newest) {
                actions.send(*conn, self.map.history.since(start));
                session.osdmap = (!once).then_some((Epoch(newest.0 + 1), false));
            }
        }
    }

    /// A client has sent a message.
    pub fn handle_message(
        &mut self,
        now: Now,
        conn: ConnId,
        message: &Message,
        shared: &mut Shared<'_>,
    ) {
        let handled = match message.header.kind {
            kind::MON_SUBSCRIBE => {
                Subscribe::decode(message).map(|m| self.subscribe(conn, m, shared))
            }
            kind::MON_GET_VERSION => {
                GetVersion::decode(message).map(|m| self.get_version(conn, &m, shared))
            }
            kind::MON_GET_MAP => {
                shared.actions.send(conn, MonMapMsg { map: self.monmap.clone() });
                Ok(())
            }
            kind::MON_COMMAND => {
                Command::decode(message).map(|m| self.command(now, conn, m, shared))
            }
            kind::POOL_OP => PoolOp::decode(message).map(|m| self.pool_op(now, conn, &m, shared)),
            kind::STATFS => Statfs::decode(message).map(|m| self.statfs(conn, m, shared)),
            stats::GET_POOL_STATS => stats::decode(message).map(|(fsid, names)| {
                let tid = message.header.tid;
                let map = self.map.map();
                let pools = names.into_iter().filter_map(|name| {
                    let usage = shared.store.usage(map.pool_id(&name)?);
                    Some((name, usage))
                });
                let pools = pools.collect();
                shared.actions.send(conn, stats::PoolStats { tid, fsid, pools });
            }),
            kind::AUTH => Auth::decode(message).map(|m| self.auth(conn, &m, shared)),
            // Logs, reports and the like: nobody reads them here.
            kind => {
                tracing::debug!(kind, "the monitor ignores a message");
                Ok(())
            }
        };
        if let Err(error) = handled {
            tracing::warn!(%error, "unreadable message to the monitor");
            shared.actions.close(conn);
        }
    }

    fn subscribe(&mut self, conn: ConnId, message: Subscribe, shared: &mut Shared<'_>) {
        for (what, subscription) in message.what {
            match what.as_str() {
                "osdmap" => {
                    let newest = self.map.view.epoch;
                    let once = subscription.onetime;
                    let mut wanted = Some((Epoch(subscription.start as u32), once));
                    if let Some((start, _)) = wanted.filter(|(start, _)| *start <= newest) {
                        shared.actions.send(conn, self.map.history.since(start));
                        wanted = (!once).then_some((Epoch(newest.0 + 1), false));
                    }
                    if let Some(session) = self.sessions.get_mut(&conn) {
                        session.osdmap = wanted;
                    }
                }
                "monmap" if subscription.start <= 1 => {
                    shared.actions.send(conn, MonMapMsg { map: self.monmap.clone() });
                }
                // Clients wait for this one, even if it is empty.
                "config" => shared.actions.send(conn, Config { options: self.config.clone() }),
                // There is no manager, and no second map of monitors.
                _ => {}
            }
        }
    }

    fn get_version(&self, conn: ConnId, message: &GetVersion, shared: &mut Shared<'_>) {
        let (version, oldest) = match message.what.as_str() {
            "osdmap" => {
                let oldest = self.map.history.full.keys().next().map_or(0, |epoch| epoch.0);
                (u64::from(self.map.view.epoch.0), u64::from(oldest))
            }
            "monmap" => (1, 1),
            _ => (0, 0),
        };
        shared.actions.send(conn, GetVersionReply { handle: message.handle, version, oldest });
    }

    fn command(&mut self, now: Now, conn: ConnId, message: Command, shared: &mut Shared<'_>) {
        let line = message.command.concat();
        let (result, status, output) = match commands::run(self, now, &line, shared) {
            Ok(done) => (0, done.status, done.output),
            Err((errno, why)) => (-errno, why, Bytes::new()),
        };
        let Command { tid, command, .. } = message;
        shared.actions.send(conn, CommandAck { tid, result, status, command, output });
    }

    fn pool_op(&mut self, now: Now, conn: ConnId, message: &PoolOp, shared: &mut Shared<'_>) {
        let pool = PoolId(message.pool.into());
        let (result, data) = match message.op {
            pool_op::CREATE => {
                let new = NewPool { name: &message.name, pg_num: 8, size: 1, application: None };
                match self.map.create_pool(&new, now.wall) {
                    Some((_, change)) => {
                        self.commit(change, now, shared.actions);
                        (0, None)
                    }
                    None => (-EEXIST, None),
                }
            }
            _ if self.map.map().pool(pool).is_none() => (-ENOENT, None),
            pool_op::DELETE => {
                self.remove_pool(pool, now, shared);
                (0, None)
            }
            pool_op::CREATE_UNMANAGED_SNAP => match self.map.create_snap(pool) {
                Some((snap, change)) => {
                    self.commit(change, now, shared.actions);
                    (0, Some(snap_id_data(snap)))
                }
                None => (-ENOENT, None),
            },
            pool_op::DELETE_UNMANAGED_SNAP => {
                let known = self.map.map().pool(pool).is_some_and(|p| message.snap <= p.snap_seq);
                if known {
                    // Clients see that the pool has changed; its clones are gone at once.
                    if let Some(change) = self.map.change_pool(pool, |_| {}) {
                        self.commit(change, now, shared.actions);
                    }
                    shared.store.trim(pool, message.snap);
                }
                (if known { 0 } else { -ENOENT }, None)
            }
            // Snapshots of whole pools do not go together with those of images.
            pool_op::CREATE_SNAP | pool_op::DELETE_SNAP => (-EOPNOTSUPP, None),
            _ => (-EINVAL, None),
        };
        let (tid, fsid) = (message.tid, message.fsid);
        let epoch = self.map.view.epoch;
        shared.actions.send(conn, PoolOpReply { tid, fsid, result, epoch, data });
    }

    fn remove_pool(&mut self, pool: PoolId, now: Now, shared: &mut Shared<'_>) {
        let mut change = self.map.change();
        change.old_pools.insert(pool);
        self.commit(change, now, shared.actions);
        shared.store.remove_pool(pool);
    }

    fn statfs(&self, conn: ConnId, message: Statfs, shared: &mut Shared<'_>) {
        let pools = self.map.map().pools.keys().copied();
        let counted = pools.filter(|pool| message.pool.is_none_or(|only| only == pool.0));
        let (mut used_kib, mut objects) = (0, 0);
        for pool in counted {
            let usage = shared.store.usage(pool);
            used_kib += usage.bytes.div_ceil(1024);
            objects += usage.objects;
        }
        shared.actions.send(
            conn,
            StatfsReply {
                tid: message.tid,
                fsid: message.fsid,
                total_kib: TOTAL_KIB,
                used_kib,
                available_kib: TOTAL_KIB.saturating_sub(used_kib),
                objects,
            },
        );
    }

    fn auth(&self, conn: ConnId, message: &Auth, shared: &mut Shared<'_>) {
        let Some(session) = self.sessions.get(&conn) else { return };
        let (result, payload) = session.auth.renew(&message.payload);
        shared.actions.send(
            conn,
            AuthReply {
                protocol: message.protocol,
                result,
                global_id: session.auth.peer.global_id,
                payload,
                status: String::new(),
            },
        );
    }
}

/// What a command came to.
struct Done {
    status: String,
    output: Bytes,
}

impl Done {
    fn text(output: impl Into<String>) -> Self {
        let mut output: String = output.into();
        if !output.is_empty() && !output.ends_with('\n') {
            output.push('\n');
        }
        Self { status: String::new(), output: BytesMut::from(output.as_bytes()).freeze() }
    }

    fn status(status: impl Into<String>) -> Self {
        Self { status: status.into(), output: Bytes::new() }
    }
}
