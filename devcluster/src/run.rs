//! A cluster in a thread of its own, and what one can do to it from outside.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use proto::cephx::keyring::{Entry, Keyring};
use proto::cephx::server::{KeyServer, Policy};
use proto::cephx::{Entity, Key, KeyType};
use proto::msgr::auth::{ConnectionMode, method};
use proto::types::{EntityAddr, EntityAddrs, Entropy, Epoch, Fsid, OsdId, UTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::{Cluster, Daemon};
use crate::disk::{self, Disk};
use crate::mon::Monitor;
use crate::mon::map::{ClusterMap, NewPool};
use crate::net::{self, Shared, World};
use crate::store::Store;

/// A pool that a cluster begins with.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Its name.
    pub name: String,
    /// Placement groups.
    pub pg_num: u32,
    /// Copies that it says it keeps.
    pub size: u8,
}

impl PoolOptions {
    /// A pool of 32 placement groups and one copy.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), pg_num: 32, size: 1 }
    }
}

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many OSDs.
    pub osds: u32,
    /// Pools to create if they are not there.
    pub pools: Vec<PoolOptions>,
    /// Where everything lasts; in memory only if there is nothing.
    pub data: Option<PathBuf>,
    /// Whether clients have to say who they are (cephx).
    pub auth: bool,
    /// The type of keys that are made.
    pub key_type: KeyType,
    /// Clients besides `client.admin` that get a key: names without `client.`.
    pub clients: Vec<String>,
    /// Connection modes that the monitor takes, preferred first.
    pub mon_modes: Vec<ConnectionMode>,
    /// Connection modes that OSDs take, preferred first.
    pub osd_modes: Vec<ConnectionMode>,
    /// The address to listen on.
    pub bind: IpAddr,
    /// The monitor's port; OSDs have the ones after it. 0 is any free ones.
    pub port: u16,
}

impl Default for Options {
    /// One OSD, a pool `rbd`, in memory, cephx, modes as Ceph's defaults, any free ports on loopback.
    fn default() -> Self {
        Self {
            osds: 1,
            pools: vec![PoolOptions::new("rbd")],
            data: None,
            auth: true,
            key_type: KeyType::Aes,
            clients: Vec::new(),
            mon_modes: vec![ConnectionMode::Secure, ConnectionMode::Crc],
            osd_modes: vec![ConnectionMode::Crc, ConnectionMode::Secure],
            bind: Ipv4Addr::LOCALHOST.into(),
            port: 0,
        }
    }
}

type Job = Box<dyn FnOnce(Shared) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A running cluster. Dropping it stops it.
pub struct DevCluster {
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
    options: Options,
    monitor: SocketAddr,
    fsid: Fsid,
    keyring: Keyring,
}

impl DevCluster {
    /// Starts a cluster and waits until all its OSDs are up.
    ///
    /// # Errors
    /// If a port is taken, or the data folder cannot be used.
    pub async fn start(options: Options) -> io::Result<Self> {
        let (jobs, queue) = mpsc::unbounded_channel();
        let (ready, started) = oneshot::channel();
        let thread_options = options.clone();
        let thread = std::thread::Builder::new()
            .name("devcluster".to_owned())
            .spawn(move || run(&thread_options, queue, ready))?;
        let ended = |_| io::Error::other("the cluster's thread has ended");
        let (monitor, fsid, keyring) = started.await.map_err(ended)??;
        let thread = Some(thread);
        Ok(Self { jobs: Some(jobs), thread, options, monitor, fsid, keyring })
    }

    /// Where the monitor listens.
    pub fn monitor(&self) -> SocketAddr {
        self.monitor
    }

    /// The cluster's identity.
    pub fn fsid(&self) -> Fsid {
        self.fsid
    }

    /// The key of a client, by its name without `client.`.
    pub fn key(&self, client: &str) -> Option<&Key> {
        self.keyring.key(&Entity::client(client))
    }

    /// A `ceph.conf` for a keyring at that path.
    pub fn conf(&self, keyring: &Path) -> String {
        let auth = if self.options.auth { "cephx" } else { "none" };
        let modes = |modes: &[ConnectionMode]| {
            let names = modes.iter().map(|mode| match mode {
                ConnectionMode::Crc => "crc",
                ConnectionMode::Secure => "secure",
            });
            names.collect::<Vec<_>>().join(" ")
        };
        format!(
            "[global]\nfsid = {}\nmon host = [v2:{}/0]\nkeyring = {}\nauth cluster required = {auth}\n\
             auth service required = {auth}\nauth client required = {auth}\nms mon client mode = {}\n\
             ms client mode = {}\n",
            self.fsid,
            self.monitor,
            keyring.display(),
            modes(&self.options.mon_modes),
            modes(&self.options.osd_modes),
        )
    }

    /// The keys of all clients, as a keyring file.
    pub fn keyring(&self) -> String {
        keyring_text(&self.keyring)
    }

    /// Writes `ceph.conf` and `keyring` (for its owner only) into a folder. Returns the path of the first.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_conf(&self, folder: &Path) -> io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let keyring = folder.join("keyring");
        disk::replace(&keyring, self.keyring().as_bytes())?;
        let conf = folder.join("ceph.conf");
        std::fs::write(&conf, self.conf(&keyring))?;
        Ok(conf)
    }

    /// Stops the cluster, as a crash would: nothing is flushed, since everything that was acknowledged lasts already.
    pub async fn stop(mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // The thread ends within moments of its queue; waiting for it does not hold up much else.
            let _ = thread.join();
        }
    }

    /// The newest map's epoch.
    pub async fn epoch(&self) -> Epoch {
        self.with(|world| world.cluster.monitor.map.view.epoch).await
    }

    /// Kills an OSD: its connections end. With `mark_down`, the map says so at once; otherwise clients only see that
    /// nobody answers.
    pub async fn stop_osd(&self, osd: OsdId, mark_down: bool) {
        self.with(move |world| {
            world.stop_listening(Daemon::Osd(osd));
            world.cluster.stop_osd(osd);
            if mark_down {
                mark(world, osd, false);
            }
        })
        .await;
    }

    /// Starts an OSD again, as another instance, at the same port if there is a fixed one.
    ///
    /// # Errors
    /// If its port is taken.
    pub async fn start_osd(&self, osd: OsdId) -> io::Result<()> {
        let at = SocketAddr::new(self.options.bind, osd_port(self.options.port, osd));
        self.call(move |world| Box::pin(async move { net::start_osd(&world, osd, at).await })).await
    }

    /// Marks an OSD down although it runs. It does not notice and does not come up again.
    pub async fn mark_down(&self, osd: OsdId) {
        self.with(move |world| mark(world, osd, false)).await;
    }

    /// Marks an OSD that runs up again, at the address where it listens.
    pub async fn mark_up(&self, osd: OsdId) {
        self.with(move |world| mark(world, osd, true)).await;
    }

    /// Marks an OSD in or out.
    pub async fn mark_in(&self, osd: OsdId, is_in: bool) {
        self.with(move |world| {
            let now = world.now();
            let change = world.cluster.monitor.map.osd_in(osd, is_in);
            world.cluster.commit(now, change);
            world.settle(None);
        })
        .await;
    }

    /// Makes a map of the next epoch that changes nothing.
    pub async fn bump_map(&self) {
        self.with(|world| {
            let now = world.now();
            let change = world.cluster.monitor.map.change();
            world.cluster.commit(now, change);
            world.settle(None);
        })
        .await;
    }

    /// Ends all connections of a daemon, or of all daemons. Returns how many there were.
    pub async fn drop_connections(&self, of: Option<Daemon>) -> usize {
        self.with(move |world| world.drop_connections(of)).await
    }

    /// Lets a daemon neither read nor write any more, or lets it go on.
    pub async fn freeze(&self, daemon: Daemon, freeze: bool) {
        self.with(move |world| world.freeze(daemon, freeze)).await;
    }

    /// Cuts an instance off until a time, or lets it in again.
    pub async fn blocklist(&self, addr: EntityAddr, until: Option<UTime>) {
        self.with(move |world| {
            let now = world.now();
            let change = world.cluster.monitor.map.blocklist(addr, until);
            world.cluster.commit(now, change);
            world.settle(None);
        })
        .await;
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> T {
        self.call(move |world| Box::pin(async move { work(&mut world.borrow_mut()) })).await
    }

    /// Runs something in the cluster's thread.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(Shared) -> Pin<Box<dyn Future<Output = T>>> + Send + 'static,
    ) -> T {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |world| {
            Box::pin(async move {
                let _ = done.send(work(world).await);
            })
        });
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
        #[allow(
            clippy::expect_used,
            reason = "the thread lives as long as this value does, unless it has panicked"
        )]
        result.await.expect("the cluster's thread has panicked")
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn mark(world: &mut World, osd: OsdId, up: bool) {
    let now = world.now();
    let map = &world.cluster.monitor.map;
    let change = match world.addr(Daemon::Osd(osd)).filter(|_| up) {
        Some(addr) => Some(map.osd_up(osd, EntityAddrs(vec![addr]))),
        None => map.osd_down(osd),
    };
    if let Some(change) = change {
        world.cluster.commit(now, change);
    }
    world.settle(None);
}

fn osd_port(mon_port: u16, osd: OsdId) -> u16 {
    if mon_port == 0 { 0 } else { mon_port + 1 + osd.0 as u16 }
}

type Started = io::Result<(SocketAddr, Fsid, Keyring)>;

/// The thread.
fn run(
    options: &Options,
    mut queue: mpsc::UnboundedReceiver<Job>,
    ready: oneshot::Sender<Started>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match start(options).await {
            Ok((world, started)) => {
                let _ = ready.send(Ok(started));
                tokio::task::spawn_local(net::tick(Rc::clone(&world)));
                while let Some(job) = queue.recv().await {
                    job(Rc::clone(&world)).await;
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    });
}

async fn start(options: &Options) -> io::Result<(Shared, (SocketAddr, Fsid, Keyring))> {
    let now = UTime::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let mut store = Store::new(options.data.is_some());
    let disk = match &options.data {
        Some(folder) => Some(Disk::open(folder, &mut store)?),
        None => None,
    };
    let saved = |name: &str| disk.as_ref().map_or(Ok(None), |disk| disk.load(name));

    let keyring = keyring(options, saved("keyring")?, now)?;
    let runs = saved("runs")?.and_then(|runs| String::from_utf8(runs).ok()?.trim().parse().ok());
    let runs = runs.unwrap_or(0u64) + 1;
    let map = match saved("osdmap")? {
        Some(map) => ClusterMap::load(&Bytes::from(map)).map_err(invalid)?,
        None => {
            let mut fsid = [0; 16];
            OsEntropy.fill(&mut fsid);
            fsid[6] = fsid[6] & 0x0f | 0x40;
            fsid[8] = fsid[8] & 0x3f | 0x80;
            ClusterMap::first(Fsid(fsid), options.osds, now)
        }
    };
    if let Some(disk) = &disk {
        disk.save("keyring", keyring_text(&keyring).as_bytes())?;
        disk.save("runs", format!("{runs}\n").as_bytes())?;
    }

    let listener = TcpListener::bind(SocketAddr::new(options.bind, options.port)).await?;
    let addr = EntityAddr::msgr2(listener.local_addr()?, 0);
    let fsid = map.map().fsid;
    let monitor = Monitor::new(map, &[EntityAddrs(vec![addr])]);
    let policy = Policy {
        methods: vec![if options.auth { method::CEPHX } else { method::NONE }],
        service_keys: options.key_type,
        ..Policy::default()
    };
    // Global ids are never used again, not even by another run: what was answered is remembered by them.
    let first_global_id = 4096 + (runs << 24);
    let keys = KeyServer::new(keyring.clone(), policy, first_global_id, now, Box::new(OsEntropy));
    let keys = Arc::new(Mutex::new(keys));
    let cluster = Cluster::new(monitor, store, disk, keys, Box::new(OsEntropy));
    let (mon_modes, osd_modes) = (options.mon_modes.clone(), options.osd_modes.clone());
    let world = Rc::new(std::cell::RefCell::new(World::new(cluster, mon_modes, osd_modes)));
    create_pools(&mut world.borrow_mut(), &options.pools);
    let osds = world.borrow().cluster.monitor.map.map().max_osd() as i32;
    for osd in (0..osds).map(OsdId) {
        let at = SocketAddr::new(options.bind, osd_port(options.port, osd));
        net::start_osd(&world, osd, at).await?;
    }
    let at = listener.local_addr()?;
    net::listen(&world, Daemon::Monitor, listener, addr);
    Ok((world, (at, fsid, keyring)))
}

fn create_pools(world: &mut World, pools: &[PoolOptions]) {
    for PoolOptions { name, pg_num, size } in pools {
        let now = world.now();
        let new = NewPool { name, pg_num: *pg_num, size: *size, application: Some("rbd") };
        if let Some((_, change)) = world.cluster.monitor.map.create_pool(&new, now.wall) {
            world.cluster.commit(now, change);
        }
    }
    world.settle(None);
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The keys there were, and new ones for clients that have none.
fn keyring(options: &Options, saved: Option<Vec<u8>>, now: UTime) -> io::Result<Keyring> {
    let mut keyring = match saved {
        Some(saved) => Keyring::parse(&String::from_utf8_lossy(&saved)).map_err(invalid)?,
        None => Keyring::default(),
    };
    for client in ["admin"].into_iter().chain(options.clients.iter().map(String::as_str)) {
        keyring.entries.entry(Entity::client(client)).or_insert_with(|| Entry {
            key: Key::generate(options.key_type, now, &mut OsEntropy),
            caps: ["mon", "osd", "mgr", "mds"]
                .into_iter()
                .map(|service| (service.to_owned(), "allow *".to_owned()))
                .collect(),
        });
    }
    Ok(keyring)
}

fn keyring_text(keyring: &Keyring) -> String {
    let entry = |(entity, entry): (&Entity, &Entry)| {
        let caps: String = (entry.caps.iter())
            .map(|(service, caps)| format!("\tcaps {service} = \"{caps}\"\n"))
            .collect();
        format!("[{entity}]\n\tkey = {}\n{caps}", entry.key.to_base64())
    };
    keyring.entries.iter().map(entry).collect()
}

/// The operating system's random bytes.
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        // Without randomness there can be no keys; there is no such system that this could run on.
        if let Err(error) = getrandom::fill(bytes) {
            tracing::error!(%error, "the operating system gives no random bytes");
            std::process::abort();
        }
    }
}
