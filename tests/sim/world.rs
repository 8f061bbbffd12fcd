//! The cluster and the network between it and its clients, in simulated time. What arrives where and when is in
//! [`crate::wires`], what OSDs make of it in [`crate::osds`], what goes wrong in [`crate::faults`].
//!
//! Monitors and OSDs are devcluster's state machines. What those leave out is done here: three monitors that need a
//! majority, OSDs that take their time and lose what they have not committed when they are killed, backoffs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devcluster::cluster::{self, Cluster};
use devcluster::mon::Monitor;
use devcluster::mon::map::{ClusterMap, NewPool};
use devcluster::store::Store;
use devcluster::wire::{ConnId, Now};
use proto::cephx::keyring::{Entry, Keyring};
use proto::cephx::server::{KeyServer, Policy};
use proto::cephx::{Entity, Key, KeyType};
use proto::msgr::Message;
use proto::msgr::auth::ConnectionMode;
use proto::osdmap::Incremental;
use proto::types::{
    EntityAddr, EntityAddrs, EntityName, EntityType, Epoch, Fsid, Instant, OsdId, PoolId, UTime,
};

use crate::bugs::{Bug, Planted};
use crate::faults::{Faults, Undo};
use crate::model::Model;
use crate::network::{Dialled, End, LineId, Network};
use crate::random::{Random, SharedRandom};
use crate::trace::Trace;
use crate::wires::Server;

pub(crate) const OSDS: u32 = 4;
pub(crate) const MONS: usize = 3;

/// The time of day when the simulation begins, in seconds.
const BEGIN: u64 = 1_700_000_000;

/// Daemons look at their timers this often, in milliseconds.
pub(crate) const TICK: u64 = 1000;

/// Milliseconds since the simulation began.
pub(crate) type Millis = u64;

/// A daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Mon(usize),
    Osd(OsdId),
}

impl Place {
    pub(crate) fn daemon(self) -> cluster::Daemon {
        match self {
            Self::Mon(_) => cluster::Daemon::Monitor,
            Self::Osd(osd) => cluster::Daemon::Osd(osd),
        }
    }

    pub(crate) fn name(self) -> EntityName {
        match self {
            Self::Mon(rank) => EntityName { kind: EntityType::MON, num: rank as i64 },
            Self::Osd(osd) => EntityName { kind: EntityType::OSD, num: osd.0.into() },
        }
    }

    pub(crate) fn addr(self) -> SocketAddr {
        match self {
            Self::Mon(rank) => SocketAddr::from(([10, 0, 0, rank as u8], 3300)),
            Self::Osd(osd) => SocketAddr::from(([10, 0, 1, osd.0 as u8], 6800)),
        }
    }

    pub(crate) fn at(addr: SocketAddr) -> Option<Self> {
        let mut all = all_places();
        all.find(|place| place.addr() == addr)
    }
}

fn all_places() -> impl Iterator<Item = Place> {
    let osds = (0..OSDS as i32).map(|osd| Place::Osd(OsdId(osd)));
    (0..MONS).map(Place::Mon).chain(osds)
}

/// An OSD's circumstances.
#[derive(Default)]
pub(crate) struct OsdState {
    pub(crate) runs: bool,
    pub(crate) instance: u32,
    pub(crate) busy: Millis,
    /// How long a request takes at most.
    pub(crate) takes: Millis,
}

/// A client that was fenced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    pub(crate) epoch: Epoch,
    /// When the map that says so reached it.
    pub(crate) known: Option<Millis>,
}

pub(crate) enum Event {
    Accept(Dialled),
    Up(LineId),
    Down(LineId),
    /// The daemon learns that its connection is over.
    Gone(LineId),
    /// The client does.
    Over(LineId, End),
    Execute {
        line: LineId,
        osd: OsdId,
        instance: u32,
        message: Box<Message>,
    },
    Tick,
    Fault,
    Undo(Undo),
}

/// Everything but the clients.
pub(crate) struct World {
    pub(crate) origin: tokio::time::Instant,
    pub(crate) random: Random,
    pub(crate) network: Arc<Network>,
    pub(crate) cluster: Cluster,
    pub(crate) keys: Arc<Mutex<KeyServer>>,
    pub(crate) modes: Vec<ConnectionMode>,
    pub(crate) events: BTreeMap<(Millis, u64), Event>,
    pub(crate) last_event: u64,
    pub(crate) servers: BTreeMap<LineId, Server>,
    pub(crate) conns: BTreeMap<ConnId, LineId>,
    pub(crate) osds: BTreeMap<OsdId, OsdState>,
    pub(crate) faults: Faults,
    pub(crate) fences: BTreeMap<usize, Fence>,
    pub(crate) addrs: BTreeMap<usize, EntityAddr>,
    pub(crate) last_backoff: u64,
    pub(crate) pool: PoolId,
    pub(crate) model: Option<Rc<RefCell<Model>>>,
    pub(crate) planted: Planted,
    pub(crate) trace: Trace,
    pub(crate) key: String,
}

impl World {
    /// A cluster that is up and healthy.
    pub(crate) fn new(seed: u64, bug: Option<Bug>, trace: Trace) -> Self {
        let mut random = Random::new(seed, 1);
        let mut entropy = SharedRandom::new(seed, 2);
        let now = UTime { sec: BEGIN as u32, nsec: 0 };
        let key = Key::generate(KeyType::Aes, now, &mut entropy);
        let caps = ["mon", "osd"].map(|service| (service.to_owned(), "allow *".to_owned()));
        let entry = Entry { key: key.clone(), caps: caps.into() };
        let keyring = Keyring { entries: [(Entity::client("admin"), entry)].into() };
        let policy = Policy {
            // Tickets are renewed, and secrets rotated, while the simulation runs.
            auth_ttl: Duration::from_secs(random.within(60..600)),
            service_ttl: Duration::from_secs(random.within(20..200)),
            ..Policy::default()
        };
        let keys = KeyServer::new(keyring, policy, 4096, now, Box::new(entropy.clone()));
        let keys = Arc::new(Mutex::new(keys));
        let map = ClusterMap::first(Fsid([7; 16]), OSDS, now);
        let mon_addr = |rank| EntityAddrs(vec![EntityAddr::msgr2(Place::Mon(rank).addr(), 0)]);
        let mon_addrs: Vec<_> = (0..MONS).map(mon_addr).collect();
        let monitor = Monitor::new(map, &mon_addrs);
        let store = Store::new(false);
        let cluster =
            Cluster::new(monitor, store, None, Arc::clone(&keys), Box::new(entropy.clone()));
        // Encrypting everything takes time, so most simulations do without.
        let modes = match random.one_in(8) {
            true => vec![ConnectionMode::Secure],
            false => vec![ConnectionMode::Crc],
        };
        let window = 1 << random.within(11..17);
        let mut world = Self {
            origin: tokio::time::Instant::now(),
            random,
            network: Arc::new(Network::new(window)),
            cluster,
            keys,
            modes,
            events: BTreeMap::new(),
            last_event: 0,
            servers: BTreeMap::new(),
            conns: BTreeMap::new(),
            osds: BTreeMap::new(),
            faults: Faults::default(),
            fences: BTreeMap::new(),
            addrs: BTreeMap::new(),
            last_backoff: 0,
            pool: PoolId(1),
            model: None,
            planted: Planted::new(bug),
            trace,
            key: key.to_base64(),
        };
        let new = NewPool { name: "rbd", pg_num: 4, size: 2, application: Some("rbd") };
        if let Some((pool, change)) = world.cluster.monitor.map.create_pool(&new, now) {
            world.pool = pool;
            world.commit(change);
        }
        for osd in (0..OSDS as i32).map(OsdId) {
            world.start_osd(osd);
        }
        world.after(TICK, Event::Tick);
        world
    }

    /// What a client's `ceph.conf` says.
    pub(crate) fn conf(&self) -> String {
        let mons: Vec<_> =
            (0..MONS).map(|rank| format!("v2:{}", Place::Mon(rank).addr())).collect();
        let modes = self.modes.iter().map(|mode| format!("{mode:?}").to_lowercase());
        let modes = modes.collect::<Vec<_>>().join(" ");
        format!(
            "[global]\nmon_host = {}\nkey = {}\nclient_mount_timeout = 3600\nms_client_mode = {modes}\n\
             ms_mon_client_mode = {modes}\n",
            mons.join(","),
            self.key
        )
    }

    pub(crate) fn millis(&self) -> Millis {
        self.origin.elapsed().as_millis() as u64
    }

    pub(crate) fn now(&self) -> Now {
        let instant = self.origin.elapsed();
        let wall = UTime::from(Duration::from_secs(BEGIN) + instant);
        Now { instant: Instant(instant), wall }
    }

    pub(crate) fn after(&mut self, millis: Millis, event: Event) {
        self.last_event += 1;
        self.events.insert((self.millis() + millis, self.last_event), event);
    }

    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        let now = self.millis();
        self.trace.note(now, what);
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.note(format_args!("WRONG: {what}"));
        if let Some(model) = &self.model {
            model.borrow_mut().fail(what);
        }
    }

    /// Makes a change of the map.
    pub(crate) fn commit(&mut self, change: Incremental) {
        self.note(format_args!("map {}", change.epoch));
        let now = self.now();
        self.planted.before_change(self.groups());
        self.cluster.commit(now, change);
        let groups = self.groups();
        self.planted.after_change(&mut self.cluster.store, self.pool, groups);
        self.settle();
    }

    /// Placement groups of the pool.
    pub(crate) fn groups(&self) -> usize {
        self.cluster.monitor.map.map().pool(self.pool).map_or(0, |pool| pool.pg_num as usize)
    }

    pub(crate) fn start_osd(&mut self, osd: OsdId) {
        let state = self.osds.entry(osd).or_default();
        state.instance += 1;
        (state.runs, state.takes) = (true, 10);
        let addr = EntityAddr::msgr2(Place::Osd(osd).addr(), state.instance);
        let now = self.now();
        self.note(format_args!("osd.{osd} starts"));
        self.cluster.start_osd(now, osd, addr);
        self.settle();
    }

    /// Kills an OSD: what it has not committed is lost. Its clients' connections are reset, unless the whole host dies.
    pub(crate) fn stop_osd(&mut self, osd: OsdId, silently: bool) {
        self.note(format_args!("osd.{osd} dies"));
        self.osds.entry(osd).or_default().runs = false;
        self.cluster.stop_osd(osd);
        let place = Place::Osd(osd);
        let lines: Vec<_> =
            self.servers.iter().filter(|(_, s)| s.place == place).map(|(line, _)| *line).collect();
        for line in lines {
            if let Some(server) = self.servers.get_mut(&line) {
                server.waiting = 0;
            }
            self.forget(line);
            if !silently {
                let latency = self.latency();
                self.after(latency, Event::Over(line, End::Reset));
            }
        }
    }

    pub(crate) fn latency(&mut self) -> Millis {
        match self.random.within(0..20) {
            0 => self.random.within(1..100),
            _ => self.random.within(1..4),
        }
    }

    /// The cluster fences a client, if it knows where that is.
    pub(crate) fn fence(&mut self, client: usize) -> bool {
        let Some(addr) = self.addrs.get(&client).copied() else { return false };
        self.note(format_args!("client {client} is fenced"));
        let until = UTime { sec: (BEGIN + 3600) as u32, nsec: 0 };
        let change = self.cluster.monitor.map.blocklist(addr, Some(until));
        self.fences.insert(client, Fence { epoch: change.epoch, known: None });
        if let Some(model) = &self.model {
            model.borrow_mut().fence(client);
        }
        self.commit(change);
        true
    }
}

/// Drives the world until it is dropped: takes what clients have written, and lets happen what is due.
pub(crate) async fn drive(world: Rc<RefCell<World>>) {
    let network = Arc::clone(&world.borrow().network);
    loop {
        let next = {
            let mut world = world.borrow_mut();
            world.turn();
            let millis = world.events.first_key_value().map_or(0, |((due, _), _)| *due);
            world.origin + Duration::from_millis(millis)
        };
        tokio::select! {
            biased;
            () = network.changed.notified() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}
