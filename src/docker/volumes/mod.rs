//! What Docker can do with volumes: each call is bounded in time, and one volume at a time waits for itself only.

mod attach;
mod cinder;
mod cinder_attach;
mod cinder_copies;
pub(super) mod copies;
mod create;
mod flatten;
mod recover;
mod status;
mod verbs;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use self::flatten::Flatteners;
pub use self::status::{Usage, Volume};
use super::cinder::Clouds;
use super::journal::{self, Journal};
use super::mapper::Mapper;
use super::options::from_map;
use super::settings::Settings;
use super::store::{self, Found, Store};
use crate::config::Args;
use crate::error::{Error, Kind, Result};

/// The volumes, as this host sees them.
#[derive(Debug)]
pub struct Volumes {
    settings: Settings,
    store: Store,
    journal: Journal,
    mapper: Mapper,
    clouds: Clouds,
    host_id: String,
    boot: String,
    /// Who is at work on a volume holds its lock.
    busy: Locks,
    /// Who asks the cluster about a volume does; the one of the empty name is for all of them.
    asking: Locks,
    flatteners: Flatteners,
    /// What is mounted and Cinder shows so, as far as this process knows.
    settled: Mutex<HashSet<String>>,
    /// What a container here has though it is another's by now, of which was told.
    lost: Mutex<HashSet<String>>,
}

/// A lock for each name.
#[derive(Debug, Default)]
struct Locks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Locks {
    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only those that somebody holds or waits for need to be kept.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.to_owned()).or_default())
    }

    fn all(&self) -> Vec<Arc<tokio::sync::Mutex<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Volumes {
    /// Reads the journal. Nothing asks the cluster before [`Volumes::run`].
    ///
    /// # Errors
    /// Whatever keeps the journal from being read.
    pub fn open(settings: Settings) -> Result<Arc<Self>> {
        let journal = Journal::open(&settings.state)?;
        // Of a plugin that was killed while it made a file system, which is made anew or was finished.
        let scratch = std::fs::read_dir(settings.state.join("scratch"));
        for left in scratch.into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(left.path());
        }
        let host_id = journal::host_id(&settings.state)?;
        let ceph = ceph_words(&settings.ceph);
        let mapper = Mapper::new(settings.mapper.clone(), ceph, settings.work);
        Ok(Arc::new(Self {
            store: Store::new(settings.ceph.clone()),
            journal,
            mapper,
            clouds: Clouds::new(settings.own_cloud.clone(), settings.cloud.clone()),
            host_id,
            boot: journal::boot(),
            busy: Locks::default(),
            asking: Locks::default(),
            flatteners: Flatteners::default(),
            settled: Mutex::default(),
            lost: Mutex::default(),
            settings,
        }))
    }

    /// Cleans up after a crash or a reboot, and keeps up the connection to the cluster, for ever.
    pub async fn run(self: &Arc<Self>) {
        tokio::join!(self.store.stay_connected(), self.stay_tidy());
    }

    /// Makes a volume. One that is there, and as it was asked for, is success.
    ///
    /// # Errors
    /// Options that make no sense; a volume of that name that is otherwise; whatever keeps it from being made.
    pub async fn create(
        self: &Arc<Self>,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<()> {
        // The name, too, before anything waits for the cluster.
        let options = from_map(options)?;
        super::names::image_name(name)?;
        let (this, owned) = (Arc::clone(self), name.to_owned());
        self.work(name, "creating", async move { this.create_now(&owned, options).await }).await
    }

    /// Removes a volume and its image; one that was adopted is only given back. One that is not there is success.
    ///
    /// # Errors
    /// [`Kind::Busy`] while it is in use anywhere, with the host; whatever keeps it from being removed.
    pub async fn remove(self: &Arc<Self>, name: &str) -> Result<()> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        self.work(name, "removing", async move { this.remove_now(&owned).await }).await
    }

    /// Mounts a volume for a user, and says where.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Busy`] while it is mounted on another host, with its name; whatever keeps it from
    /// being mapped, checked or mounted.
    pub async fn mount(self: &Arc<Self>, name: &str, user: &str) -> Result<PathBuf> {
        let (this, owned, user) = (Arc::clone(self), name.to_owned(), user.to_owned());
        let mounted = async move { this.mount_now(&owned, &user).await };
        self.work(name, "mounting", mounted).await
    }

    /// Ends the use of a volume by a user, and unmounts it if that was the last. A user that is not known is success.
    ///
    /// # Errors
    /// [`Kind::Busy`] while somebody on this host is in it; whatever keeps it from being unmapped.
    pub async fn unmount(self: &Arc<Self>, name: &str, user: &str) -> Result<()> {
        let (this, owned, user) = (Arc::clone(self), name.to_owned(), user.to_owned());
        let unmounted = async move { this.unmount_now(&owned, &user).await };
        self.work(name, "unmounting", unmounted).await
    }

    /// Does something with a volume that only one can do at a time. It goes on when nobody waits for it any more, but
    /// not beyond its time.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        doing: &'static str,
        job: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.work_within(name, doing, self.settings.work, job).await
    }

    /// The same, with a time of its own.
    async fn work_within<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        doing: &'static str,
        limit: Duration,
        job: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let lock = self.busy.of(name);
        let (deadline, limit) = (Instant::now() + limit, limit.as_secs());
        let task = tokio::spawn(async move {
            let late = |what: &str| Err(Error::new(Kind::TimedOut, format!("{what} {limit} s")));
            let Ok(_alone) = timeout_at(deadline, lock.lock_owned()).await else {
                return late("another request for it has been at work for");
            };
            match timeout_at(deadline, job).await {
                Ok(done) => done,
                Err(_) => late("it was given up after"),
            }
        });
        let done = match task.await {
            Ok(done) => done,
            Err(error) => {
                Err(Error::new(Kind::Closed, "it failed unexpectedly").with_source(error))
            }
        };
        match &done {
            Ok(_) => tracing::info!(volume = name, "{doing}: done"),
            Err(error) => tracing::warn!(volume = name, %error, "{doing}: failed"),
        }
        done.map_err(|error| error.context(format!("{doing} volume {name}"))).map_err(|error| {
            match error.kind() {
                // OpenStack's say what they wait for.
                Kind::TimedOut | Kind::Unreachable => error.or_hint(|| self.state_of_cluster()),
                _ => error,
            }
        })
    }

    /// Returns when nothing is at work on any volume. What is made independent of its parent is left for later.
    pub async fn idle(&self) {
        self.flatteners.stop().await;
        for lock in self.busy.all() {
            drop(lock.lock().await);
        }
    }

    /// What may be the reason that something took too long.
    fn state_of_cluster(&self) -> String {
        match self.store.connected() {
            true => "the cluster does not answer, or not in time".to_owned(),
            false => format!("no cluster: {}", self.store.trouble()),
        }
    }

    /// The volume of that name, as the cluster has it.
    async fn find(&self, name: &str) -> Result<Option<Found>> {
        let mut likely: Vec<_> =
            self.journal.known(name).map(|known| known.place).into_iter().collect();
        let default = self.default_place(name).await?;
        if !likely.contains(&default) {
            likely.push(default);
        }
        let found = self.store.find(name, &likely).await?;
        match &found {
            Some(found) => self.journal.learn(found)?,
            None => self.journal.forget(name)?,
        }
        Ok(found)
    }

    async fn default_place(&self, name: &str) -> Result<store::Place> {
        let cluster = self.store.cluster().await?;
        store::place(name, &self.settings.volumes, &cluster.config().rbd.pool)
    }

    /// The volume of that name, which must be there.
    async fn find_existing(&self, name: &str) -> Result<Found> {
        let missing = || Error::new(Kind::NotFound, format!("there is no volume {name}"));
        self.find(name).await?.ok_or_else(missing)
    }
}

/// Options for Ceph, as words of a command line, each with its value: flags take no word of their own for it.
fn ceph_words(args: &Args) -> Vec<String> {
    let options = args.options.iter().map(|(name, value)| (name.as_str(), value));
    let named = [("conf", &args.conf), ("cluster", &args.cluster), ("name", &args.name)];
    let named = named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    named.chain(options).map(|(name, value)| format!("--{name}={value}")).collect()
}

fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string()
}
