//! The whole cluster as one state machine: a monitor, OSDs, what they share, and which connection belongs to whom.
//!
//! Still without sockets: [`crate::net`] drives it over TCP, and a simulator can drive it over anything else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use proto::cephx::server::{KeyServer, MonServerAuth, MonSession, ServiceServerAuth};
use proto::msgr::auth::{ConnectionMode, ServerAuth};
use proto::msgr::{Message, Session};
use proto::osdmap::Incremental;
use proto::types::{
    EntityAddr, EntityAddrs, EntityName, EntityType, Entropy, Epoch, Instant, OsdId, PoolId,
};

use crate::disk::Disk;
use crate::mon::{self, Monitor};
use crate::osd::{self, Osd};
use crate::store::Store;
use crate::wire::{Actions, ConnId, Now, Peer};

/// A daemon of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// The monitor.
    Monitor,
    /// An OSD.
    Osd(OsdId),
}

impl Daemon {
    /// Its name on the wire.
    pub fn name(self) -> EntityName {
        match self {
            Self::Monitor => EntityName { kind: EntityType::MON, num: 0 },
            Self::Osd(osd) => EntityName { kind: EntityType::OSD, num: osd.0.into() },
        }
    }
}

/// The cluster.
pub struct Cluster {
    /// The monitor.
    pub monitor: Monitor,
    /// OSDs that run.
    pub osds: BTreeMap<OsdId, Osd>,
    /// The objects.
    pub store: Store,
    /// What the daemons want done.
    pub actions: Actions,
    /// Where everything lasts, if it does.
    pub disk: Option<Disk>,
    keys: Arc<Mutex<KeyServer>>,
    entropy: Box<dyn Entropy>,
    conns: BTreeMap<ConnId, Daemon>,
    next_conn: u64,
    /// The map that OSDs were last told of, and that was last saved.
    told: Epoch,
    /// Placement groups of the pools in that map.
    pg_nums: BTreeMap<PoolId, u32>,
}

/// What a client turns out to be once it has authenticated.
pub enum Login {
    /// To the monitor.
    Monitor(Arc<OnceLock<MonSession>>),
    /// To an OSD.
    Osd(Arc<OnceLock<proto::cephx::server::Peer>>),
}

impl Cluster {
    /// A cluster whose OSDs do not run yet.
    pub fn new(
        monitor: Monitor,
        store: Store,
        disk: Option<Disk>,
        keys: Arc<Mutex<KeyServer>>,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        Self {
            monitor,
            osds: BTreeMap::new(),
            store,
            actions: Actions::default(),
            disk,
            keys,
            entropy,
            conns: BTreeMap::new(),
            next_conn: 1,
            told: Epoch(0),
            pg_nums: BTreeMap::new(),
        }
    }

    /// A client is dialling a daemon: how it will have to authenticate, and where that will be seen.
    pub fn authenticate(
        &self,
        daemon: Daemon,
        modes: Vec<ConnectionMode>,
    ) -> (Box<dyn ServerAuth>, Login) {
        let keys = Arc::clone(&self.keys);
        match daemon {
            Daemon::Monitor => {
                let (auth, login) = MonServerAuth::new(keys, modes);
                (Box::new(auth), Login::Monitor(login))
            }
            Daemon::Osd(_) => {
                let (auth, login) = ServiceServerAuth::new(keys, EntityType::OSD, modes);
                (Box::new(auth), Login::Osd(login))
            }
        }
    }

    /// A number for a new connection.
    pub fn new_conn(&mut self) -> ConnId {
        self.next_conn += 1;
        ConnId(self.next_conn)
    }

    /// A handshake is done.
    pub fn connected(&mut self, conn: ConnId, daemon: Daemon, session: &Session, login: &Login) {
        let addr = session.peer_addrs.msgr2().or_else(|| session.peer_addrs.0.first().copied());
        let peer = Peer { name: session.peer, addr: addr.unwrap_or_default() };
        match (daemon, login) {
            (Daemon::Monitor, Login::Monitor(login)) => {
                if let Some(session) = login.get() {
                    self.monitor.connected(conn, session.clone(), &mut self.actions);
                }
            }
            (Daemon::Osd(osd), _) => {
                if let Some(osd) = self.osds.get_mut(&osd) {
                    osd.connected(conn, peer);
                }
            }
            (Daemon::Monitor, Login::Osd(_)) => {}
        }
        self.conns.insert(conn, daemon);
    }

    /// A connection is gone.
    pub fn closed(&mut self, conn: ConnId) {
        match self.conns.remove(&conn) {
            Some(Daemon::Monitor) => self.monitor.closed(conn),
            Some(Daemon::Osd(osd)) => {
                if let Some(osd) = self.osds.get_mut(&osd) {
                    osd.closed(conn);
                }
            }
            None => {}
        }
    }

    /// A client has sent a message.
    pub fn handle_message(&mut self, now: Now, conn: ConnId, message: &Message) {
        match self.conns.get(&conn) {
            Some(Daemon::Monitor) => {
                let mut shared = mon::Shared { store: &mut self.store, actions: &mut self.actions };
                self.monitor.handle_message(now, conn, message, &mut shared);
                self.tell_osds(now);
            }
            Some(Daemon::Osd(id)) => {
                let id = *id;
                self.with_osd(id, |osd, shared| osd.handle_message(now, conn, message, shared));
            }
            None => {}
        }
    }

    /// Makes a change of the map.
    pub fn commit(&mut self, now: Now, change: Incremental) {
        self.monitor.commit(change, now, &mut self.actions);
        self.tell_osds(now);
    }

    /// An OSD starts at an address, or elsewhere than before.
    pub fn start_osd(&mut self, now: Now, osd: OsdId, addr: EntityAddr) {
        self.osds.insert(osd, Osd::new(osd));
        let change = self.monitor.map.osd_up(osd, EntityAddrs(vec![addr]));
        self.commit(now, change);
    }

    /// An OSD stops. Nobody notices before it is marked down or its connections are closed.
    pub fn stop_osd(&mut self, osd: OsdId) {
        self.osds.remove(&osd);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.osds.values().filter_map(Osd::poll_timeout).min()
    }

    /// What is due: watches that are over, keys to be rotated.
    pub fn handle_timeout(&mut self, now: Now) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).tick(now.wall);
        let due = |osd: &Osd| osd.poll_timeout().is_some_and(|due| due <= now.instant);
        let ids: Vec<OsdId> =
            self.osds.iter().filter(|(_, osd)| due(osd)).map(|(id, _)| *id).collect();
        for id in ids {
            self.with_osd(id, |osd, shared| osd.handle_timeout(now, shared));
        }
        let map = self.monitor.map.map();
        let over: Vec<EntityAddr> = (map.blocklist.iter())
            .filter(|(_, until)| **until <= now.wall)
            .map(|(addr, _)| *addr)
            .collect();
        if !over.is_empty() {
            let mut change = self.monitor.map.change();
            change.old_blocklist = over;
            self.commit(now, change);
        }
    }

    /// Makes everything last that has happened. Before this has succeeded, nothing may be sent.
    ///
    /// # Errors
    /// If it cannot be written. Then nothing may ever be sent again.
    pub fn persist(&mut self) -> io::Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        if let Some(records) = self.store.take_journal() {
            disk.append(&records, &self.store)?;
        }
        Ok(())
    }

    fn with_osd(&mut self, id: OsdId, work: impl FnOnce(&mut Osd, &mut osd::Shared<'_>)) {
        let Some(osd) = self.osds.get_mut(&id) else { return };
        let mut shared = osd::Shared {
            map: &self.monitor.map.view,
            history: &self.monitor.map.history,
            store: &mut self.store,
            entropy: &mut *self.entropy,
            actions: &mut self.actions,
        };
        work(osd, &mut shared);
    }

    /// OSDs know of every map at once.
    fn tell_osds(&mut self, now: Now) {
        let newest = self.monitor.map.view.epoch;
        if newest == self.told {
            return;
        }
        self.told = newest;
        let pools = &self.monitor.map.map().pools;
        let pg_nums: BTreeMap<_, _> = pools.iter().map(|(id, pool)| (*id, pool.pg_num)).collect();
        for (pool, after) in &pg_nums {
            match self.pg_nums.get(pool) {
                Some(before) if before != after => self.store.resize(*pool, *before, *after),
                _ => {}
            }
        }
        self.pg_nums = pg_nums;
        if let Some(disk) = &self.disk {
            let map: Bytes = self.monitor.map.saved();
            // If the map is lost, the journal cannot be written either: that ends the cluster.
            if let Err(error) = disk.save("osdmap", &map) {
                tracing::error!(%error, "the map cannot be saved");
            }
        }
        let ids: Vec<OsdId> = self.osds.keys().copied().collect();
        for id in ids {
            self.with_osd(id, |osd, shared| osd.handle_map(now, shared));
        }
    }
}
