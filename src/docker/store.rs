//! Volumes as the cluster has them: images whose metadata describe them, and a lock on each that is mounted somewhere.
//!
//! An image is a volume if its metadata have a [`Description`]. It is there from the moment the image is, in state
//! `formatting`, so that a creation that was cut short is known for what it is. The host that mounts a volume takes an
//! advisory lock on the image's header, whose cookie is the host's id: unlike the lock of the exclusive-lock feature it
//! is not given up on request, and it stays when the host dies, until somebody fences it.

mod flattening;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use proto::msg::watch::Watcher;
use proto::rbd::cls::lock::{self, BreakLock, Locker, LockerInfo};
use proto::rbd::cls::{
    GetMetadata, GetObjectPrefix, ListNamespaces, Method, RemoveMetadata, SetMetadata, TrashImage,
    TrashSource,
};
use proto::rbd::names;
use proto::types::EntityAddr;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::flattening::{Clients, Flattening};
use self::flattening::{FLATTEN, flattening_of};
use super::cinder::InCinder;
use super::names::{image_name, volume_name};
use super::options::{FsType, VolumeOptions};
use super::volumes::copies::drop_stale;
use crate::cluster::Cluster;
use crate::config::{Args, Config, Process};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::header::image_id;
use crate::image::{Image, OpenOptions, admin};
use crate::pool::{Op, Pool};

/// The metadata that makes an image a volume.
const DESCRIPTION: &str = "ceph-native.volume";

/// The metadata about where it is mounted.
const MOUNT: &str = "ceph-native.mount";

/// What the metadata about a host begin with that has it mounted for reading only; the host's id follows.
const READER: &str = "ceph-native.reader.";

/// The lock of the host that has it mounted.
const LOCK: &str = "ceph-native.mount";

/// How many images are looked at at a time.
const AT_ONCE: usize = 32;

/// How long to wait before the cluster is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Entries of a list that are asked for at a time.
const PAGE: u64 = 1024;

/// How far the making of a volume has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The image is there; its file system may not be.
    #[default]
    Formatting,
    /// The file system is there and has not been mounted yet.
    New,
    /// It is what it is to be.
    Ready,
    /// It is being brought back to a snapshot, or that was cut short.
    Restoring,
    /// The same, and it has not been mounted yet.
    RestoringNew,
}

impl State {
    /// What it is while it is brought back to a snapshot.
    pub(crate) fn restoring(self) -> Self {
        match self {
            Self::New | Self::RestoringNew => Self::RestoringNew,
            _ => Self::Restoring,
        }
    }

    /// What it is after that.
    pub(crate) fn restored(self) -> Self {
        match self {
            Self::New | Self::RestoringNew => Self::New,
            _ => Self::Ready,
        }
    }

    /// Whether its content may be of two times.
    pub(crate) fn is_restoring(self) -> bool {
        matches!(self, Self::Restoring | Self::RestoringNew)
    }
}

/// What makes an image a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Description {
    /// The volume's name.
    pub name: String,
    /// How far it has come.
    pub state: State,
    /// Whether the image was there before the volume, and stays when the volume goes.
    pub adopted: bool,
    /// Its file system.
    pub fstype: FsType,
    /// The size that the file system was made for or grown to; 0 if it comes from a snapshot and has not been mounted
    /// since.
    pub size: u64,
    /// What it was asked to be, with the defaults of then.
    pub options: VolumeOptions,
    /// When it was made.
    pub created: String,
    /// On which host.
    pub host: String,
    /// Where it is in OpenStack, if Cinder has made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cinder: Option<InCinder>,
}

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The pool.
    pub pool: String,
    /// The namespace in it; empty for the pool's own.
    pub namespace: String,
    /// The image.
    pub image: String,
}

impl Place {
    /// A place.
    pub fn new(pool: &str, namespace: &str, image: &str) -> Self {
        let owned = str::to_owned;
        Self { pool: owned(pool), namespace: owned(namespace), image: owned(image) }
    }

    /// As people and programs write it: `pool/namespace/image`.
    pub fn spec(&self) -> String {
        match self.namespace.as_str() {
            "" => format!("{}/{}", self.pool, self.image),
            namespace => format!("{}/{namespace}/{}", self.pool, self.image),
        }
    }
}

/// A volume that there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its image.
    pub place: Place,
    /// The image's id.
    pub id: String,
    /// What it is.
    pub description: Description,
    /// How far it is on the way from a clone to an image of its own, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flattening: Option<Flattening>,
}

impl Found {
    /// Notes that it is what it was at a snapshot: as new as before, with a file system of whatever size it had then.
    pub(crate) fn restored(&mut self) {
        self.description.size = 0;
        self.description.state = self.description.state.restored();
    }
}

/// Who has a volume mounted: what the lock and the metadata say.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The host's id.
    pub host_id: String,
    /// The host's name.
    pub host: String,
    /// The addresses of the clients that carry the data, once there are any.
    pub addresses: Vec<String>,
    /// The address of the client that took the lock.
    taken_from: String,
    locker: Locker,
}

/// Where a volume is mounted, as its metadata say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Mount {
    host_id: String,
    /// Of the clients that carry its data.
    addresses: Vec<String>,
}

/// Where a volume is mounted for reading only, as its metadata say. It takes no lock: that a reader is there is said by
/// its watch alone, and this only says whose that is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Reader {
    host: String,
    /// Of the clients that carry its data.
    addresses: Vec<String>,
}

/// The cluster, or what there is of it.
#[derive(Debug)]
pub struct Store {
    ceph: Args,
    cluster: watch::Sender<Option<Cluster>>,
    /// Why it is away.
    trouble: Mutex<String>,
}

impl Store {
    /// A store that is not connected yet.
    pub fn new(ceph: Args) -> Self {
        let trouble = Mutex::new("it has not answered yet".to_owned());
        Self { ceph, cluster: watch::Sender::new(None), trouble }
    }

    /// Connects, and connects again when this client is no longer wanted. For a task of its own.
    pub async fn stay_connected(&self) {
        loop {
            let fenced = self.cluster.borrow().as_ref().is_some_and(Cluster::is_fenced);
            if fenced {
                tracing::warn!("the cluster has fenced the plugin's client: connecting anew");
                self.cluster.send_replace(None);
            }
            if self.cluster.borrow().is_none() {
                match self.connect().await {
                    Ok(cluster) => {
                        tracing::info!(fsid = %cluster.fsid(), "connected");
                        self.cluster.send_replace(Some(cluster));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the cluster cannot be reached");
                        *self.trouble.lock().unwrap_or_else(|error| error.into_inner()) =
                            error.to_string();
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Connects once.
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    pub async fn connect(&self) -> Result<Cluster> {
        let config = Config::load(&self.ceph, &Process)
            .map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
        Cluster::connect(config).await
    }

    /// Whether there is a client of the cluster. The cluster may have gone away since.
    pub fn connected(&self) -> bool {
        self.cluster.borrow().is_some()
    }

    /// Why there is no cluster.
    pub fn trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(|error| error.into_inner()).clone()
    }

    /// The cluster, as soon as there is one.
    ///
    /// # Errors
    /// None but an end of this program.
    pub async fn cluster(&self) -> Result<Cluster> {
        let mut cluster = self.cluster.subscribe();
        let there = cluster.wait_for(Option::is_some).await.ok().and_then(|there| there.clone());
        there.ok_or_else(|| Error::new(Kind::Closed, "the plugin is ending"))
    }

    /// The pool and namespace of an image.
    ///
    /// # Errors
    /// [`Kind::NotFound`], with its name.
    pub async fn pool(&self, place: &Place) -> Result<Pool> {
        Ok(self.cluster().await?.pool(&place.pool).await?.with_namespace(&place.namespace))
    }

    /// All volumes of the cluster: of every pool that is for RBD and that we may read, and every namespace in it.
    ///
    /// # Errors
    /// Whatever keeps them from being read, but for pools that are not for us.
    pub async fn list(&self) -> Result<Vec<Found>> {
        let cluster = self.cluster().await?;
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for pool in pools(&cluster).await? {
            let images = match admin::list(&pool).await {
                Ok(images) => images,
                Err(error) if error.kind() == Kind::PermissionDenied => continue,
                Err(error) => return Err(error.context(format!("pool {}", pool.name()))),
            };
            let mut looking = JoinSet::new();
            let mut volumes = Vec::new();
            for (image, id) in images {
                if looking.len() >= AT_ONCE {
                    volumes.extend(joined(looking.join_next().await)?);
                }
                let pool = pool.clone();
                looking.spawn(async move {
                    match look(&pool, image, id).await {
                        // A namespace or image that is not for us.
                        Err(error) if error.kind() == Kind::PermissionDenied => Ok(None),
                        Err(error) if error.kind() == Kind::Corrupt => {
                            tracing::warn!(%error, "left alone");
                            Ok(None)
                        }
                        volume => volume,
                    }
                });
            }
            while let Some(volume) = looking.join_next().await {
                volumes.extend(joined(Some(volume))?);
            }
            for volume in volumes {
                if let Some(first) = found.get(&volume.name) {
                    let (name, first, second) =
                        (&volume.name, first.place.spec(), volume.place.spec());
                    tracing::warn!(volume = name, first, second, "two images have one name");
                    continue;
                }
                found.insert(volume.name.clone(), volume);
            }
        }
        Ok(found.into_values().collect())
    }

    /// Finds a volume: where it was last, or is by default, or anywhere.
    ///
    /// # Errors
    /// Whatever keeps it from being looked for.
    pub async fn find(&self, name: &str, likely: &[Place]) -> Result<Option<Found>> {
        for place in likely {
            let found = self.find_at(place).await?;
            if let Some(found) = found.filter(|found| found.name == name) {
                return Ok(Some(found));
            }
        }
        Ok(self.list().await?.into_iter().find(|found| found.name == name))
    }

    /// The volume whose image is there; `None` if there is no image, or it is not a volume.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if its description makes no sense; whatever keeps it from being looked at.
    pub async fn find_at(&self, place: &Place) -> Result<Option<Found>> {
        let pool = match self.pool(place).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            pool => pool?,
        };
        match image_id(&pool, &place.image).await {
            Ok(id) => look(&pool, place.image.clone(), id).await,
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes down what a volume is.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    pub async fn describe(&self, found: &Found) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let values = description(&found.description)?;
        pool.call(&names::header(&found.id), &SetMetadata { values }).await.map(drop)
    }

    /// Writes down what a volume is that may be a copy of another: what has come along from that goes.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    pub async fn describe_copy(&self, found: &Found) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let values = description_of_clone(&found.description)?;
        pool.call(&names::header(&found.id), &SetMetadata { values }).await.map(drop)
    }

    /// Makes an image of a volume just an image again.
    ///
    /// # Errors
    /// Whatever keeps its metadata from being removed.
    pub async fn disown(&self, found: &Found) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let notes = admin::Notes::Image(&found.id).list(&pool).await?;
        // Of hosts that died while they read it.
        let readers = notes.into_keys().filter(|name| name.starts_with(READER));
        for name in readers.chain([MOUNT, FLATTEN, DESCRIPTION].map(str::to_owned)) {
            let remove = RemoveMetadata { name };
            gone_is_fine(pool.call(&names::header(&found.id), &remove).await)?;
        }
        Ok(())
    }

    /// Removes images for good that were volumes, that this plugin put in the trash, and whose time there is over.
    ///
    /// # Errors
    /// Whatever keeps them from being looked for.
    pub async fn empty_trash(&self) -> Result<()> {
        for pool in pools(&self.cluster().await?).await? {
            let trash = match admin::list_trash(&pool).await {
                Err(error) if error.kind() == Kind::PermissionDenied => continue,
                trash => trash?,
            };
            let now = crate::cluster::wall_clock();
            for (id, image) in trash.into_iter().filter(|(_, image)| image.deferred_until <= now) {
                match description_of(&pool, &image.name, &id).await {
                    Ok(Some(description)) if is_ours_to_remove(&image, &description) => {}
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(image = image.name, %error, "left in the trash");
                        continue;
                    }
                }
                // Those that were too new when it was put there.
                if let Ok(image) = Image::open_by_id(&pool, &id, &OpenOptions::default()).await {
                    drop_stale(&image).await;
                    image.close().await;
                }
                match admin::remove_from_trash(&pool, &id, false, &mut |_, _| {}).await {
                    Ok(()) => tracing::info!(image = image.name, "removed from the trash"),
                    // Another host was faster, or it has clones.
                    Err(error) => tracing::debug!(image = image.name, %error, "stays in the trash"),
                }
            }
        }
        Ok(())
    }

    /// Who has the volume open.
    ///
    /// # Errors
    /// Whatever keeps it from being found out.
    pub async fn watchers(&self, found: &Found) -> Result<Vec<Watcher>> {
        let pool = self.pool(&found.place).await?;
        pool.watchers(&names::header(&found.id)).await
    }

    /// Which host has the volume mounted.
    ///
    /// # Errors
    /// Whatever keeps it from being found out.
    pub async fn holder(&self, found: &Found) -> Result<Option<Holder>> {
        let pool = self.pool(&found.place).await?;
        let header = names::header(&found.id);
        let info = lock::GetInfo { name: LOCK.to_owned() };
        let state = match pool.call(&header, &info).await {
            Ok(state) => state,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((locker, info)) = state.lockers.into_iter().next() else { return Ok(None) };
        let get = GetMetadata { name: MOUNT.to_owned() };
        let mount: Mount = match pool.call(&header, &get).await {
            // What cannot be read was not written by us, and there is nothing to fence.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == Kind::NotFound => Mount::default(),
            Err(error) => return Err(error),
        };
        Ok(Some(Holder::new(locker, &info, mount)))
    }

    /// Takes the lock of a volume for this host; says whether it did.
    ///
    /// # Errors
    /// Whatever keeps it from being taken.
    pub async fn lock(&self, found: &Found, host_id: &str, host: &str) -> Result<bool> {
        let pool = self.pool(&found.place).await?;
        let lock = lock::Lock {
            name: LOCK.to_owned(),
            kind: lock::EXCLUSIVE,
            cookie: host_id.to_owned(),
            tag: String::new(),
            description: host.to_owned(),
            duration: proto::types::UTime::default(),
            flags: 0,
        };
        // A lock would make the header of an image anew that was just removed.
        let ops = vec![call(&GetObjectPrefix {}), call(&lock)];
        match pool.operate_write(&names::header(&found.id), ops).await {
            Ok(_) => Ok(true),
            // Ours already.
            Err(error) if error.kind() == Kind::Exists => Ok(true),
            Err(error) if error.kind() == Kind::Busy => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the lock of a volume from a host. It must be this one, or one that is fenced.
    ///
    /// # Errors
    /// Whatever keeps it from being taken; that the host does not have it any more is none.
    pub async fn unlock(&self, found: &Found, holder: &Holder) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let header = names::header(&found.id);
        let remove = RemoveMetadata { name: MOUNT.to_owned() };
        gone_is_fine(pool.call(&header, &remove).await)?;
        let unlock = BreakLock {
            name: LOCK.to_owned(),
            client: holder.locker.client,
            cookie: holder.locker.cookie.clone(),
        };
        gone_is_fine(pool.call(&header, &unlock).await)
    }

    /// Writes down which clients carry the data of a volume that is mounted here. It is only written while the lock is
    /// this client's: whoever breaks that finds the clients, or they never come to write.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the lock is not ours any more; whatever keeps it from being written.
    pub async fn note_mount(
        &self,
        found: &Found,
        host_id: &str,
        clients: &[Watcher],
    ) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let addresses = clients.iter().map(|client| admin::address_text(&client.addr)).collect();
        let mount = Mount { host_id: host_id.to_owned(), addresses };
        let assert = lock::AssertLocked {
            name: LOCK.to_owned(),
            kind: lock::EXCLUSIVE,
            cookie: host_id.to_owned(),
            tag: String::new(),
        };
        let values = BTreeMap::from([(MOUNT.to_owned(), json(&mount)?)]);
        let ops = vec![call(&assert), call(&SetMetadata { values })];
        pool.operate_write(&names::header(&found.id), ops).await.map(drop)
    }

    /// Writes down which clients carry the data of a volume that is mounted here for reading only.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    pub async fn note_reader(
        &self,
        found: &Found,
        host_id: &str,
        host: &str,
        clients: &[Watcher],
    ) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let addresses = clients.iter().map(|client| admin::address_text(&client.addr)).collect();
        let reader = Reader { host: host.to_owned(), addresses };
        let values = BTreeMap::from([(format!("{READER}{host_id}"), json(&reader)?)]);
        pool.call(&names::header(&found.id), &SetMetadata { values }).await.map(drop)
    }

    /// Forgets that a volume is mounted here for reading only.
    ///
    /// # Errors
    /// Whatever keeps it from being forgotten.
    pub async fn forget_reader(&self, found: &Found, host_id: &str) -> Result<()> {
        let pool = self.pool(&found.place).await?;
        let remove = RemoveMetadata { name: format!("{READER}{host_id}") };
        gone_is_fine(pool.call(&names::header(&found.id), &remove).await)
    }

    /// The hosts that have noted that they have a volume mounted for reading only, by the addresses of their clients.
    /// Notes of hosts that died stay: they tell nothing of who has no watch.
    ///
    /// # Errors
    /// Whatever keeps them from being read.
    pub async fn readers(&self, found: &Found) -> Result<BTreeMap<String, String>> {
        let pool = self.pool(&found.place).await?;
        let mut hosts = BTreeMap::new();
        for (name, text) in admin::Notes::Image(&found.id).list(&pool).await? {
            // What cannot be read was not written by us.
            if name.starts_with(READER)
                && let Ok(reader) = serde_json::from_slice::<Reader>(&text)
            {
                let addresses = reader.addresses.into_iter();
                hosts.extend(addresses.map(|address| (address, reader.host.clone())));
            }
        }
        Ok(hosts)
    }

    /// Fences clients: after this, nothing that they send is applied any more.
    ///
    /// # Errors
    /// Whatever keeps them from being fenced.
    pub async fn fence(&self, addresses: &[String]) -> Result<()> {
        let cluster = self.cluster().await?;
        for address in addresses {
            let command = serde_json::json!({
                "prefix": "osd blocklist",
                "blocklistop": "add",
                "addr": address,
            });
            cluster.command(command.to_string()).await.context(format!("fencing {address}"))?;
            tracing::warn!(address, "fenced");
        }
        // What is sent from now on is sent under a map that has them: the OSDs know it before they look at that.
        cluster.refresh_map().await?;
        if let Some(epoch) = cluster.with_map(|map| map.epoch) {
            cluster.set_barrier(epoch);
        }
        Ok(())
    }
}

impl Holder {
    fn new(locker: Locker, info: &LockerInfo, mount: Mount) -> Self {
        let host_id = locker.cookie.clone();
        // Metadata of another mount are of no use.
        let addresses = match mount.host_id == host_id {
            true => mount.addresses,
            false => Vec::new(),
        };
        let taken_from = admin::address_text(&info.addr);
        Self { host: info.description.clone(), host_id, addresses, taken_from, locker }
    }

    /// What has to be fenced before the lock is broken. As long as no client carries data, that is whoever would
    /// say so.
    pub fn to_fence(&self) -> &[String] {
        match self.addresses.is_empty() {
            true => std::slice::from_ref(&self.taken_from),
            false => &self.addresses,
        }
    }

    /// Whether one of its clients has the volume open.
    pub fn watches(&self, watchers: &[Watcher]) -> bool {
        let is = |addr: &EntityAddr| self.addresses.contains(&admin::address_text(addr));
        watchers.iter().any(|watcher| is(&watcher.addr))
    }
}

/// The metadata that make an image a volume.
///
/// # Errors
/// None that is known.
pub fn description(description: &Description) -> Result<BTreeMap<String, Bytes>> {
    Ok(BTreeMap::from([(DESCRIPTION.to_owned(), json(description)?)]))
}

/// The same for a clone, which would get those of its parent otherwise.
///
/// # Errors
/// None that is known.
pub fn description_of_clone(of: &Description) -> Result<BTreeMap<String, Bytes>> {
    let mut notes = description(of)?;
    notes.insert(MOUNT.to_owned(), json(&Mount::default())?);
    let wanted = of.options.flatten == Some(true) && of.cinder.is_none();
    let flattening = Flattening { wanted, host: of.host.clone(), percent: 0 };
    notes.insert(FLATTEN.to_owned(), json(&flattening)?);
    Ok(notes)
}

/// Where the image of a volume is made, or looked for first.
///
/// # Errors
/// [`Kind::Invalid`] for names that cannot be.
pub fn place(name: &str, options: &VolumeOptions, default_pool: &str) -> Result<Place> {
    let pool = options.pool.as_deref().unwrap_or(default_pool);
    let namespace = options.namespace.as_deref().unwrap_or_default();
    Ok(match &options.image {
        Some(image) => Place::new(pool, namespace, image),
        None => Place::new(pool, namespace, &image_name(name)?),
    })
}

/// Every pool that is for RBD, and every namespace in them.
async fn pools(cluster: &Cluster) -> Result<Vec<Pool>> {
    let ids = cluster.with_map(|map| {
        let for_rbd = map.pools.iter().filter(|(_, pool)| pool.applications.contains_key("rbd"));
        for_rbd.map(|(id, _)| *id).collect::<Vec<_>>()
    });
    let mut pools = Vec::new();
    for id in ids.unwrap_or_default() {
        let pool = cluster.pool_by_id(id).await?;
        let mut after = String::new();
        loop {
            let list = ListNamespaces { after: after.clone(), max: PAGE };
            let names = match pool.call(names::NAMESPACES, &list).await {
                Ok(names) => names,
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::PermissionDenied) => {
                    break;
                }
                Err(error) => return Err(error),
            };
            pools.extend(names.iter().map(|name| pool.with_namespace(name)));
            match names.last() {
                Some(last) if names.len() as u64 == PAGE => after.clone_from(last),
                _ => break,
            }
        }
        pools.push(pool);
    }
    Ok(pools)
}

/// What an image says about itself.
async fn description_of(pool: &Pool, image: &str, id: &str) -> Result<Option<Description>> {
    let get = GetMetadata { name: DESCRIPTION.to_owned() };
    let text = match pool.call(&names::header(id), &get).await {
        Ok(text) => text,
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // It may be of a newer version: it is not for us to say that there is none.
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let what = format!("image {image}: its description as a volume makes no sense");
        Error::new(Kind::Corrupt, what).with_source(error)
    })
}

/// Whether an image is in the trash because its volume was removed with `delete-delay`. Descriptions travel with what
/// is copied from a volume, and whoever moves an image to the trash by hand means to keep it there: only the time that
/// we gave it tells.
fn is_ours_to_remove(image: &TrashImage, description: &Description) -> bool {
    let delay = u64::from(image.deferred_until.sec.saturating_sub(image.deleted.sec));
    image.source == TrashSource::USER
        && !description.adopted
        && description.cinder.is_none()
        && volume_name(&image.name).as_ref() == Some(&description.name)
        && description.options.delete_delay == Some(delay)
        && delay > 0
}

/// The volume that an image is; `None` if it is none.
async fn look(pool: &Pool, image: String, id: String) -> Result<Option<Found>> {
    let Some(description) = description_of(pool, &image, &id).await? else { return Ok(None) };
    // `rbd cp` and `rbd rename` take metadata along: what they make is not the volume.
    let own = match (&description.cinder, description.adopted) {
        (Some(cinder), _) => cinder.image == image,
        (None, true) => description.options.image.as_ref() == Some(&image),
        (None, false) => volume_name(&image).as_ref() == Some(&description.name),
    };
    if !own {
        return Ok(None);
    }
    let place = Place::new(pool.name(), pool.namespace(), &image);
    let flattening = match description.options.flatten {
        Some(true) => flattening_of(pool, &id).await?,
        _ => None,
    };
    Ok(Some(Found { name: description.name.clone(), place, id, description, flattening }))
}

type Looked = std::result::Result<Result<Option<Found>>, tokio::task::JoinError>;

fn joined(looked: Option<Looked>) -> Result<Option<Found>> {
    match looked {
        None => Ok(None),
        Some(Ok(found)) => found,
        Some(Err(error)) => Err(Error::new(Kind::Closed, "looking at images").with_source(error)),
    }
}

fn call<M: Method>(method: &M) -> Op {
    Op::call(M::CLASS, M::NAME, method.input())
}

fn json(content: &impl Serialize) -> Result<Bytes> {
    let text = serde_json::to_vec(content);
    text.map(Bytes::from)
        .map_err(|error| Error::new(Kind::Invalid, "cannot be written as JSON").with_source(error))
}

fn gone_is_fine<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}
