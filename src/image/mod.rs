//! RBD images.

pub mod admin;
mod copyup;
pub mod header;
pub mod io;
mod journal;
mod live;
mod lock;
mod maintain;
mod object_map;
mod parent;
mod pending;
mod quiesce;
mod settings;
pub mod transfer;
mod watch;

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use proto::rbd::Features;
use proto::rbd::layout::Layout;
use proto::types::SnapId;

pub use self::header::Header;
use self::header::ParentLink;
pub use proto::rbd::cls::SnapshotNamespace;
pub use proto::rbd::notify::Maintenance;

pub use self::io::{Completion, Extent, Io, Outcome, Queue, Segment};
use self::live::{Current, Live};
pub use self::lock::Locked;
use self::lock::{Keeper, Lock};
use self::maintain::Requests;
use self::object_map::Remaking;
use self::parent::Parent;
use self::quiesce::Quiescing;
pub use self::quiesce::{Pauses, Pausing};
use self::settings::Settings;
use self::watch::{Refreshes, Watcher};
use crate::cluster::{Budget, Cluster};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::Pool;

/// Discards are rounded inwards to whole multiples of this many bytes of an object (librbd's
/// `rbd_discard_granularity_bytes`): freeing less gains nothing on the OSD and costs a write.
const DISCARD_GRANULARITY: u64 = 64 << 10;

/// What all users of an image may have in flight: as much as one NBD connection, so that no image of a process takes
/// all that the process may have.
const REQUESTS_IN_FLIGHT: u64 = 512;
const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// How long writes under way may keep a change of the image waiting.
const PAUSE: Duration = Duration::from_secs(25);

/// How deep clones of clones may go. Ceph's kernel client reads 16.
const PARENTS: usize = 64;

/// Features with which an image can be written here.
pub(crate) const WRITABLE: Features = Features(
    Features::LAYERING.0
        | Features::STRIPING.0
        | Features::DATA_POOL.0
        | Features::EXCLUSIVE_LOCK.0
        | Features::OBJECT_MAP.0
        | Features::FAST_DIFF.0
        | Features::DEEP_FLATTEN.0
        | Features::JOURNALING.0
        | Features::OPERATIONS.0,
);

/// Features without which reading is still right: they are about who writes, and what else a write has to update.
const READABLE: Features = Features(WRITABLE.0 | Features::NON_PRIMARY.0);

/// A future of much code, behind a pointer: that code is compiled with the library, and not once more with each program
/// that awaits it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Which version of an image is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The present.
    #[default]
    Head,
    /// A user's snapshot, by name.
    Snapshot(String),
    /// Any snapshot, by number.
    SnapshotId(SnapId),
}

/// How an image is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Refuse writes. Snapshots always do.
    pub read_only: bool,
    /// Which version.
    pub version: Version,
    /// Take the exclusive lock at once, and keep it whoever asks. Fails if its owner does the same.
    pub exclusive: bool,
    /// Let others see that it is in use, and follow what they change, though it is opened for reading only (librbd does
    /// neither). Who may not write to the cluster goes without.
    pub watched: bool,
}

/// An open image. Cheap to clone.
///
/// Futures that are dropped: [`Image::open`] and [`Image::refresh`] leave nothing behind. What was submitted to a
/// [`Queue`] and that is dropped may be done or not. What [`Image::maintain`] began may be done in part; it is finished
/// by doing it again. [`Image::close`] is to be waited for: without it, the exclusive lock may stay, and who takes it
/// from a dead owner fences that client off.
#[derive(Clone)]
pub struct Image(Arc<Open>);

/// What goes when nobody uses the image any more, and the watch with it.
struct Open {
    inner: Arc<Inner>,
    tasks: Mutex<Option<Tasks>>,
}

/// What goes on while the image is open.
struct Tasks {
    watcher: Watcher,
    /// If it is open for writing.
    keeper: Option<Keeper>,
}

impl Open {
    fn tasks(&self) -> MutexGuard<'_, Option<Tasks>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Open {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// The image as its users and the task that watches it share it.
struct Inner {
    pool: Pool,
    data_pool: Pool,
    name: String,
    id: String,
    /// Neither this nor the next ever changes.
    layout: Layout,
    object_prefix: String,
    current: Current,
    lock: Lock,
    refreshes: Refreshes,
    requests: Requests,
    remaking: Remaking,
    /// Held by whoever does something that is recorded in the journal before it is done, and by whoever replays that.
    operations: tokio::sync::Mutex<()>,
    quiescing: Quiescing,
    /// For those who only have what they share with it.
    open: OnceLock<Weak<Open>>,
    read_snap: SnapId,
    read_only: bool,
    /// Whether what its objects do not have is looked for in its parent.
    follows_parent: bool,
    /// What all its users may have in flight.
    budget: Budget,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("spec", &self.spec()).finish_non_exhaustive()
    }
}

impl Image {
    /// Opens an image by its name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such image or snapshot; [`Kind::Unsupported`] if it needs something that is
    /// not built yet, with the feature's name.
    pub async fn open(pool: &Pool, name: &str, options: &OpenOptions) -> Result<Self> {
        let id = header::image_id(pool, name).await?;
        Self::open_boxed(pool, name.to_owned(), id, options, Some(0)).await
    }

    /// Opens an image by its id, be it in the trash.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub async fn open_by_id(pool: &Pool, id: &str, options: &OpenOptions) -> Result<Self> {
        let name = header::image_name(pool, id).await?;
        Self::open_boxed(pool, name, id.to_owned(), options, Some(0)).await
    }

    /// Opens an image that is about to go, or to be put away: it may have lost its name, and its parent.
    pub(crate) async fn open_to_remove(pool: &Pool, id: &str) -> Result<Self> {
        let name = match header::image_name(pool, id).await {
            Err(error) if error.kind() == Kind::NotFound => id.to_owned(),
            name => name?,
        };
        Self::open_boxed(pool, name, id.to_owned(), &OpenOptions::default(), None).await
    }

    fn open_boxed<'a>(
        pool: &'a Pool,
        name: String,
        id: String,
        options: &'a OpenOptions,
        depth: Option<usize>,
    ) -> Boxed<'a, Self> {
        Box::pin(Self::open_with(pool, name, id, options, depth))
    }

    /// Opens an image that is a clone of a clone, `depth` times; without its parent, if there is none.
    async fn open_with(
        pool: &Pool,
        name: String,
        id: String,
        options: &OpenOptions,
        depth: Option<usize>,
    ) -> Result<Self> {
        let spec = header::spec(pool, &name);
        let opening = format!("image {spec}");
        let header = Header::read(pool, &id).await.context(&opening)?;
        let snapshot =
            find_snapshot(pool, &id, &header, &options.version).await.context(&opening)?;
        let read_only = options.read_only || snapshot.is_some();
        let (read_snap, size) = match &snapshot {
            Some(snapshot) => (snapshot.id, snapshot.image_size),
            None => (SnapId::HEAD, header.size),
        };

        check_features(&spec, header.features, read_only)?;
        if options.exclusive && read_only {
            let what = format!("{opening} is open for reading only: it takes no exclusive lock");
            return Err(Error::new(Kind::ReadOnly, what).with_hint("leave out --exclusive"));
        }

        let link = match &snapshot {
            None => header.parent.clone(),
            Some(snapshot) if header.features.contains(Features::LAYERING) => {
                header::parent(pool, &id, snapshot.id).await.context(&opening)?
            }
            Some(_) => None,
        };
        let parent = match (link.filter(|link| link.overlap > 0), depth) {
            (Some(link), Some(depth)) => {
                Some(Arc::new(Parent::open(pool, &link, depth).await.context(&opening)?))
            }
            _ => None,
        };
        let data_pool = match header.data_pool {
            Some(id) => pool
                .cluster()
                .pool_by_id(id)
                .await
                .context(format!("{opening}: data pool"))?
                .with_namespace(pool.namespace()),
            None => pool.clone(),
        };
        let settings = Settings::read(pool, &id).await.context(&opening)?;
        if !read_only {
            settings.warn(&spec);
        }
        let mut live = Live::new(header, size, parent);
        live.settings = Arc::new(settings);
        let inner = Arc::new(Inner {
            pool: pool.clone(),
            data_pool,
            name,
            id,
            layout: live.header.layout,
            object_prefix: live.header.object_prefix.clone(),
            current: Current::new(live),
            lock: Lock::default(),
            refreshes: Refreshes::default(),
            requests: Requests::default(),
            remaking: Remaking::default(),
            operations: tokio::sync::Mutex::default(),
            quiescing: Quiescing::default(),
            open: OnceLock::new(),
            read_snap,
            read_only,
            follows_parent: depth.is_some(),
            budget: Budget::new(REQUESTS_IN_FLIGHT, BYTES_IN_FLIGHT),
        });
        let image = Self(Arc::new(Open { inner, tasks: Mutex::default() }));
        let _ = image.0.open.set(Arc::downgrade(&image.0));
        if !read_only || options.watched && snapshot.is_none() {
            match image.watch().await {
                // A key with `profile rbd-read-only` reads as ever.
                Err(error) if read_only && error.kind() == Kind::PermissionDenied => {
                    tracing::debug!(image = image.spec(), %error, "in use unseen by others");
                }
                watched => watched.context(&opening)?,
            }
        }
        if options.exclusive
            && let Err(error) = image.lock_exclusively().await
        {
            image.close().await;
            return Err(error);
        }
        Ok(image)
    }

    /// Lets others know that the image is in use, and finds out what they change.
    async fn watch(&self) -> Result<()> {
        let header = proto::rbd::names::header(&self.0.id);
        let watch = self.0.pool.watch(&header).await.map_err(|error| match error.kind() {
            Kind::PermissionDenied => error.with_hint("--read-only needs no permission to write"),
            _ => error,
        })?;
        self.0.lock.watching(Some(watch.cookie()));
        let watcher = Watcher::spawn(Arc::clone(&self.0.inner), watch);
        // What has changed before it was watched.
        if let Err(error) = self.refresh().await {
            watcher.close().await;
            return Err(error);
        }
        let keeper = (!self.0.read_only).then(|| Keeper::spawn(Arc::clone(&self.0.inner)));
        *self.0.tasks() = Some(Tasks { watcher, keeper });
        Ok(())
    }

    async fn lock_exclusively(&self) -> Result<()> {
        if !self.header().features.contains(Features::EXCLUSIVE_LOCK) {
            let what = format!("image {} has no exclusive-lock feature", self.spec());
            let hint = format!("`rbd-nbd-rs feature enable {} exclusive-lock`", self.spec());
            return Err(Error::new(Kind::Invalid, what).with_hint(hint));
        }
        self.0.inner.lock_exclusively().await
    }

    /// Reads the header again. Returns when everything that is submitted from now on heeds it, and everything that was
    /// submitted before is complete. Settings that cannot be read within seconds stay as they are. Snapshots do not
    /// change.
    ///
    /// # Errors
    /// Whatever keeps the header from being read; [`Kind::TimedOut`] if writes under way do not end.
    pub async fn refresh(&self) -> Result<()> {
        self.0.refresh().await
    }

    /// Gives the exclusive lock back and ends the watch on the image, so that others see at once that it is not in use.
    /// For the last one who uses it: without the watch, changes by others go unnoticed. Not cancel-safe.
    pub async fn close(self) {
        let tasks = self.0.tasks().take();
        if let Some(Tasks { watcher, keeper }) = tasks {
            if let Some(keeper) = keeper {
                keeper.close().await;
            }
            watcher.close().await;
        }
    }

    /// The image as people write it: `pool/namespace/name`.
    pub fn spec(&self) -> String {
        self.0.spec()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The pool of its header.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// The pool of its data.
    pub fn data_pool(&self) -> &Pool {
        &self.0.data_pool
    }

    /// The cluster it is on.
    pub fn cluster(&self) -> &Cluster {
        self.0.pool.cluster()
    }

    /// What its header says, as far as is known.
    pub fn header(&self) -> Arc<Header> {
        Arc::clone(&self.0.current.get().header)
    }

    /// Its size, or that of the snapshot, in bytes. Others may change it while it is open.
    pub fn size(&self) -> u64 {
        self.0.current.get().size
    }

    /// Whether writes are refused: because it was opened so, or because others made it something that cannot be written
    /// here.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only || self.0.current.get().refusal.is_some()
    }

    /// Who has its exclusive lock, as far as is known without asking.
    pub fn locked(&self) -> Locked {
        match self.header().features.contains(Features::EXCLUSIVE_LOCK) {
            true => self.0.lock.tell(),
            false => Locked::Never,
        }
    }

    /// What its users have in flight: requests, and the bytes that these carry or ask for.
    pub fn in_flight(&self) -> (u64, u64) {
        self.0.budget.in_flight()
    }

    /// A way to read and write it, for one user.
    pub fn queue(&self) -> Queue {
        Queue::new(self.clone())
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    fn object_prefix(&self) -> &str {
        &self.0.object_prefix
    }

    /// What an OSD answered about an object.
    fn object_error(&self, object: &[u8], errno: i32) -> Error {
        let (pool, object) = (self.data_pool().name(), String::from_utf8_lossy(object));
        Error::from_errno(errno, format!("{}: object {pool}/{object}", self.spec()))
    }

    fn read_snap(&self) -> SnapId {
        self.0.read_snap
    }

    /// Freeing less than this many bytes, or what is not aligned to it, is not asked of the cluster.
    pub(crate) fn discard_granularity(&self) -> u64 {
        DISCARD_GRANULARITY.min(self.layout().object_size())
    }

    /// Refuses what cannot be done with this image.
    fn check(&self, live: &Live, io: &Io) -> Result<()> {
        let (offset, length, changes) = match io {
            Io::Flush => return Ok(()),
            Io::Read { offset, length } | Io::Extents { offset, length } => {
                (*offset, *length, false)
            }
            Io::Write { offset, data } => (*offset, data.len() as u64, true),
            Io::Discard { offset, length } | Io::WriteZeroes { offset, length, .. } => {
                (*offset, *length, true)
            }
        };
        if changes && self.0.read_only {
            let what = format!("image {} is open for reading only", self.spec());
            return Err(Error::new(Kind::ReadOnly, what));
        }
        if changes && let Some(denied) = &live.denied {
            let what = format!("image {}: {}", self.spec(), denied.why);
            return Err(Error::new(denied.kind, what));
        }
        if changes && let Some(refusal) = &live.refusal {
            let what = format!("image {} can no longer be written to", self.spec());
            return Err(Error::new(refusal.kind, format!("{what}: {}", refusal.why)));
        }
        if offset.checked_add(length).is_none_or(|end| end > live.size) {
            let (spec, size) = (self.spec(), live.size);
            return Err(Error::new(
                Kind::Invalid,
                format!("image {spec}: {length} bytes at {offset} are beyond its end ({size})"),
            ));
        }
        Ok(())
    }
}

impl Parent {
    /// Opens the parent of an image in `pool`, which is a clone of a clone, `depth` times.
    async fn open(pool: &Pool, link: &ParentLink, depth: usize) -> Result<Self> {
        let parent = &link.parent;
        if depth >= PARENTS {
            let what = format!("more than {PARENTS} clones of clones of clones");
            return Err(Error::new(Kind::Unsupported, what).with_hint("flatten some of them"));
        }
        let pool = pool.cluster().pool_by_id(parent.pool).await?.with_namespace(&parent.namespace);
        let name = header::image_name(&pool, &parent.image_id).await?;
        let version = Version::SnapshotId(parent.snap);
        let options = OpenOptions { read_only: true, version, ..OpenOptions::default() };
        let id = parent.image_id.clone();
        let image = Image::open_boxed(&pool, name, id, &options, Some(depth + 1)).await?;
        Ok(Self { image, link: link.clone() })
    }
}

/// Finds the snapshot that is to be opened; `None` for the head.
async fn find_snapshot(
    pool: &Pool,
    id: &str,
    header: &Header,
    version: &Version,
) -> Result<Option<proto::rbd::cls::SnapshotInfo>> {
    match version {
        Version::Head => Ok(None),
        Version::SnapshotId(snap) if !header.snap_context.snaps.contains(snap) => {
            Err(Error::new(Kind::NotFound, format!("there is no snapshot with the id {snap}")))
        }
        Version::SnapshotId(snap) => header::snapshot(pool, id, *snap).await.map(Some),
        Version::Snapshot(name) => {
            for snap in &header.snap_context.snaps {
                let snapshot = header::snapshot(pool, id, *snap).await?;
                if snapshot.namespace == SnapshotNamespace::User && snapshot.name == *name {
                    return Ok(Some(snapshot));
                }
            }
            Err(Error::new(Kind::NotFound, format!("there is no snapshot {name}")))
        }
    }
}

/// Refuses an image that could not be read rightly, or whose other users would not see what is written here.
fn check_features(spec: &str, features: Features, read_only: bool) -> Result<()> {
    let refuse = |what: String| Error::new(Kind::Unsupported, format!("image {spec} {what}"));
    let unreadable = Features(features.0 & !READABLE.0);
    if !unreadable.is_empty() {
        return Err(refuse(format!("has features that are not built yet: {unreadable}")));
    }
    let unwritable = Features(features.0 & !WRITABLE.0);
    if read_only || unwritable.is_empty() {
        return Ok(());
    }
    Err(refuse(format!(
        "has features that a writer must keep up, which is not built yet: {unwritable}"
    ))
    .with_hint(format!("open it with --read-only, or `rbd feature disable {spec} {unwritable}`")))
}
