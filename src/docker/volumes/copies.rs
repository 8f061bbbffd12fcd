//! Volumes as they were and volumes made of others: snapshots, going back to them, clones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::rbd::cls::SnapshotNamespace;

use super::Volumes;
use crate::docker::filesystem as fs;
use crate::docker::names::image_name;
use crate::docker::options::VolumeOptions;
use crate::docker::store::{self, Found, Place, State};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::admin::{self, CloneFormat, CreateOptions};
use crate::image::header::{self, ParentLink};
use crate::image::{Header, Image, Maintenance, OpenOptions, Version};
use crate::pool::Pool;

/// What snapshots are called that were taken to be cloned.
const FOR_CLONE: &str = "ceph-native-clone-of-";

/// How old one of these is, in seconds, that nobody is about to clone any more: no call takes so long.
const STALE: u32 = 3600;

/// How often is looked whether a clone is one by now.
const PAUSE: Duration = Duration::from_millis(200);

/// How long going back to a snapshot may take.
pub(super) const RESTORE: Duration = Duration::from_secs(7 * 86_400);

const ENOSYS: i32 = 38;

/// How many times, until its making counts as cut short.
const PATIENCE: u32 = 25;

/// What a clone is made of.
#[derive(Debug)]
struct Source {
    pool: Pool,
    image: String,
    /// The snapshot that was named, if one was.
    snap: Option<String>,
    /// Where it is mounted on this host, if it is a volume that is.
    mountpoint: Option<PathBuf>,
    /// How much of it has a file system; 0 if that is not known.
    filled: u64,
}

impl Volumes {
    /// Takes a snapshot of a volume; says how.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if there is one of that name; whatever keeps it from being taken.
    pub async fn snapshot(self: &Arc<Self>, name: &str, snap: &str) -> Result<String> {
        let (this, owned, snap) = (Arc::clone(self), name.to_owned(), snap.to_owned());
        let taken = async move {
            let found = this.find_existing(&owned).await?;
            must_be_whole(&found)?;
            if let Some(of) = &found.description.cinder {
                this.snapshot_in_cinder(&owned, of, &snap).await?;
                return this.what_was_taken(&found, &snap).await;
            }
            let image = this.open_image(&found).await?;
            let taken = this.take_snapshot(&found.place, &image, &snap, this.path(&owned)).await;
            image.close().await;
            taken?;
            this.what_was_taken(&found, &snap).await
        };
        self.work(name, "taking a snapshot of", taken).await
    }

    async fn what_was_taken(&self, found: &Found, snap: &str) -> Result<String> {
        Ok(match self.store.holder(found).await? {
            Some(holder) if holder.host_id != self.host_id => {
                let host = holder.host;
                format!("{snap} has what host {host} had written, if not yet what it has in memory")
            }
            _ => format!("{snap} has all that was written before"),
        })
    }

    /// Removes a snapshot of a volume.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Busy`] if there are clones of it.
    pub async fn remove_snapshot(self: &Arc<Self>, name: &str, snap: &str) -> Result<String> {
        let (this, owned, snap) = (Arc::clone(self), name.to_owned(), snap.to_owned());
        let removed = async move {
            let found = this.find_existing(&owned).await?;
            if let Some(of) = &found.description.cinder {
                this.remove_snapshot_in_cinder(of, &snap).await?;
                return Ok(format!("{snap} is gone"));
            }
            let image = this.open_image(&found).await?;
            let removed = drop_snapshot(&image, &snap).await;
            image.close().await;
            removed.map(|()| format!("{snap} is gone"))
        };
        self.work(name, "removing a snapshot of", removed).await
    }

    /// Makes a new volume of what another one holds, or held at a snapshot.
    ///
    /// # Errors
    /// As [`Volumes::create`] with the option `from`.
    pub async fn clone_to(self: &Arc<Self>, name: &str, new: &str) -> Result<String> {
        let options = BTreeMap::from([("from".to_owned(), name.to_owned())]);
        self.create(new, &options).await?;
        Ok(format!("{new} is a clone of {name}"))
    }

    /// Brings a volume that is mounted nowhere back to a snapshot.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Busy`] while it is mounted anywhere; whatever keeps it from being brought back:
    /// it cannot be mounted until it has been.
    pub async fn restore(self: &Arc<Self>, name: &str, snap: &str) -> Result<String> {
        let (this, owned, snap) = (Arc::clone(self), name.to_owned(), snap.to_owned());
        let restored = async move { this.restore_now(&owned, &snap).await };
        // It looks at every object: that takes as long as it takes, and cut short the volume could not be used.
        self.work_within(name, "restoring", RESTORE, restored).await
    }

    async fn restore_now(&self, name: &str, snap: &str) -> Result<String> {
        if self.journal.attached(name).is_some() {
            return Err(Error::new(Kind::Busy, "it is mounted on this host"));
        }
        let mut found = self.find_existing(name).await?;
        if found.description.state == State::Formatting {
            return Err(Error::new(Kind::Busy, "it is being made"));
        }
        self.take(&found).await?;
        let restored = async {
            self.must_be_unused(&found).await?;
            if let Some(of) = found.description.cinder.clone() {
                return self.restore_in_cinder(&mut found, &of, snap).await;
            }
            let image = self.open_image(&found).await?;
            let restored = async {
                admin::user_snapshot(&image, snap).await?;
                // Half of it would be a file system of two times.
                found.description.state = found.description.state.restoring();
                self.store.describe(&found).await?;
                admin::rollback(&image, snap, &mut |_, _| {}).await?;
                found.restored();
                self.store.describe(&found).await
            };
            let restored = restored.await;
            image.close().await;
            restored
        };
        let restored = restored.await;
        self.give_back(&found).await;
        restored.map(|()| format!("{name} is what it was at {snap}"))
    }

    /// Makes the image of a new volume as a clone.
    pub(super) async fn make_clone(
        &self,
        mut found: Found,
        options: &VolumeOptions,
        like: CreateOptions,
    ) -> Result<Found> {
        let from = options.from.as_deref().unwrap_or_default();
        let source = self.source(from).await.context(format!("option from={from}"))?;
        let pool = self.store.pool(&found.place).await?;
        let head = Image::open(&source.pool, &source.image, &OpenOptions::default()).await?;
        drop_stale(&head).await;
        // One of its own goes with the clone; one that was named stays.
        let now = crate::cluster::wall_clock();
        let own = format!("{FOR_CLONE}{}.{}.{}", image_name(&found.name)?, now.sec, now.nsec);
        let snap = source.snap.clone().unwrap_or_else(|| own.clone());
        let cloned = async {
            if source.snap.is_none() {
                let place = Place::new(source.pool.name(), source.pool.namespace(), &source.image);
                self.take_snapshot(&place, &head, &own, source.mountpoint).await?;
            }
            let format = CloneFormat::of_cluster(&pool);
            if format == CloneFormat::V1 {
                protect(&head, &snap).await?;
            }
            let at =
                OpenOptions { version: Version::Snapshot(snap.clone()), ..OpenOptions::default() };
            let parent = Image::open(&source.pool, &source.image, &at).await?;
            let made = async {
                let like = CreateOptions {
                    order: options.order.unwrap_or_else(|| parent.header().layout.order()),
                    features: match options.features {
                        Some(_) => like.features,
                        None => admin::clone_like(&parent, like.clone()).features,
                    },
                    ..like
                };
                // What its image has grown by since it was last mounted is filled when the clone is first mounted.
                found.description.size = source.filled.min(parent.size());
                found.description.options.size =
                    Some(options.size.unwrap_or_else(|| parent.size()));
                if options.size.is_some_and(|size| size < parent.size()) {
                    let what = format!("option size: {from} has {} bytes", parent.size());
                    return Err(Error::new(Kind::Invalid, what));
                }
                let metadata = store::description_of_clone(&found.description)?;
                let like = CreateOptions { metadata, ..like };
                admin::clone(&parent, &pool, &found.place.image, &like, format).await
            };
            let made = made.await;
            parent.close().await;
            made
        };
        let cloned = cloned.await;
        // With clones of the second version it stays, out of sight, for as long as there are any.
        if source.snap.is_none()
            && (cloned.is_err() || CloneFormat::of_cluster(&pool) == CloneFormat::V2)
        {
            let _ = drop_snapshot(&head, &own).await;
        }
        head.close().await;
        cloned?;
        let missing = || Error::new(Kind::NotFound, "it was removed as soon as it was there");
        self.store.find_at(&found.place).await?.ok_or_else(missing)
    }

    /// Removes the snapshot that was taken for a clone alone, if there is one: it is of no use any more.
    pub(super) async fn forget_parent(&self, found: &Found, link: &ParentLink) -> Result<()> {
        let pool = self.store.cluster().await?.pool_by_id(link.parent.pool).await?;
        let pool = pool.with_namespace(&link.parent.namespace);
        let options = OpenOptions::default();
        if let Ok(head) = Image::open_by_id(&pool, &link.parent.image_id, &options).await {
            let snapshot = header::snapshot(&pool, &link.parent.image_id, link.parent.snap).await;
            let own = snapshot.ok().filter(|taken| taken.name.starts_with(FOR_CLONE));
            if let Some(own) = own
                && let Err(error) = drop_snapshot(&head, &own.name).await
            {
                tracing::debug!(volume = found.name, %error, "the snapshot that it was made of");
            }
            head.close().await;
        }
        Ok(())
    }

    /// `VOLUME`, `VOLUME@SNAPSHOT`, or the same with an image as `POOL/[NAMESPACE/]IMAGE`.
    async fn source(&self, from: &str) -> Result<Source> {
        let (whole, split) = ((from, None), from.rsplit_once('@'));
        let split = split.map(|(base, snap)| (base, Some(snap.to_owned())));
        let ways: Vec<_> = [Some(whole), split].into_iter().flatten().collect();
        for (base, snap) in &ways {
            if let Some(found) = self.find(base).await? {
                must_be_cephs(&found)?;
                must_be_whole(&found)?;
                // At a snapshot, its file system may not have filled it.
                let filled = if snap.is_some() { 0 } else { found.description.size };
                let place = found.place;
                let (pool, mountpoint) = (self.store.pool(&place).await?, self.path(base));
                let (image, snap) = (place.image, snap.clone());
                return Ok(Source { pool, image, snap, mountpoint, filled });
            }
        }
        // Names of images hold no @.
        let (base, snap) = ways.last().cloned().unwrap_or((from, None));
        let place = match *base.split('/').collect::<Vec<_>>() {
            [pool, image] => Place::new(pool, "", image),
            [pool, namespace, image] => Place::new(pool, namespace, image),
            _ => return Err(Error::new(Kind::NotFound, format!("there is no volume {base}"))),
        };
        let pool = self.store.pool(&place).await?;
        Ok(Source { pool, image: place.image, snap, mountpoint: None, filled: u64::MAX })
    }

    pub(super) async fn open_image(&self, found: &Found) -> Result<Image> {
        let pool = self.store.pool(&found.place).await?;
        Image::open(&pool, &found.place.image, &OpenOptions::default()).await
    }

    /// Takes a snapshot, of what is in memory here, too.
    async fn take_snapshot(
        &self,
        place: &Place,
        image: &Image,
        snap: &str,
        mountpoint: Option<PathBuf>,
    ) -> Result<()> {
        if let Some(mountpoint) = mountpoint {
            fs::sync_apart(&mountpoint, self.settings.work).await?;
        }
        let (namespace, name) = (SnapshotNamespace::User, snap.to_owned());
        let create = Maintenance::SnapCreate { namespace, name, flags: 0 };
        image.maintain(&create, &mut |_, _| {}).await.map_err(|error| match error.kind() {
            // Not the kind that says that a volume is there.
            Kind::Exists => {
                Error::new(Kind::Invalid, format!("there is a snapshot {snap} already"))
            }
            _ => error,
        })?;
        // Another host may have begun to bring it back to another one since it was looked at.
        let found = self.store.find_at(place).await;
        let whole = found.and_then(|found| found.as_ref().map_or(Ok(()), must_be_whole));
        if whole.is_err() {
            drop_snapshot(image, snap).await?;
        }
        whole
    }
}

/// Refuses a volume that Cinder keeps: a clone that it does not know of would be in its way.
fn must_be_cephs(found: &Found) -> Result<()> {
    match &found.description.cinder {
        None => Ok(()),
        Some(_) => {
            let what = "it is Cinder's, and so is what is made of it";
            Err(Error::new(Kind::Unsupported, what).with_hint("leave backend=rbd out"))
        }
    }
}

/// Refuses a volume whose content is not of one time.
pub(super) fn must_be_whole(found: &Found) -> Result<()> {
    match found.description.state {
        State::Formatting | State::Restoring | State::RestoringNew => {
            let what = "it is being made, or brought back to a snapshot";
            Err(Error::new(Kind::Busy, what))
        }
        State::New | State::Ready => Ok(()),
    }
}

/// Removes a snapshot, and its protection, which clones of the first version take, before.
async fn drop_snapshot(image: &Image, snap: &str) -> Result<()> {
    admin::user_snapshot(image, snap).await?;
    let (namespace, name) = (SnapshotNamespace::User, snap.to_owned());
    let unprotect = Maintenance::SnapUnprotect { namespace, name };
    match image.maintain(&unprotect, &mut |_, _| {}).await {
        // It was not protected.
        Err(error) if error.kind() == Kind::Invalid => {}
        // It cannot be: without layering there are no clones.
        Err(error) if error.kind() == Kind::Os(ENOSYS) => {}
        done => done?,
    }
    let (namespace, name) = (SnapshotNamespace::User, snap.to_owned());
    image.maintain(&Maintenance::SnapRemove { namespace, name }, &mut |_, _| {}).await
}

/// Removes snapshots that were taken to be cloned and have no clones: making those was cut short, or they went through
/// the trash. What cannot be removed stays.
pub(in crate::docker) async fn drop_stale(image: &Image) {
    let now = crate::cluster::wall_clock().sec;
    for snap in image.header().snap_context.snaps.clone() {
        let Ok(taken) = header::snapshot(image.pool(), image.id(), snap).await else { continue };
        if taken.namespace == SnapshotNamespace::User
            && taken_to_clone(&taken.name).is_some_and(|then| now.saturating_sub(then) > STALE)
            && let Err(error) = drop_snapshot(image, &taken.name).await
        {
            tracing::debug!(snapshot = taken.name, %error, "it was taken for a clone");
        }
    }
}

/// When a snapshot was taken to be cloned, if it was.
fn taken_to_clone(snap: &str) -> Option<u32> {
    let (_, when) = snap.strip_prefix(FOR_CLONE)?.rsplit_once('.')?.0.rsplit_once('.')?;
    when.parse().ok()
}

/// Protects a snapshot, unless it is.
async fn protect(image: &Image, snap: &str) -> Result<()> {
    admin::user_snapshot(image, snap).await?;
    let (namespace, name) = (SnapshotNamespace::User, snap.to_owned());
    let protect = Maintenance::SnapProtect { namespace, name };
    match image.maintain(&protect, &mut |_, _| {}).await {
        Err(error) if error.kind() == Kind::Busy => Ok(()),
        done => done,
    }
}

/// Waits until an image that is to be a clone is one: whoever makes it may be at it. Without its parent it would be a
/// new image, and be taken for one.
pub(super) async fn must_be_clone(pool: &Pool, found: &Found) -> Result<()> {
    let Some(from) = &found.description.options.from else { return Ok(()) };
    // Cinder has made it, of what it was to be, before it was described.
    if found.description.cinder.is_some() {
        return Ok(());
    }
    for _ in 0..PATIENCE {
        if Header::read(pool, &found.id).await?.parent.is_some() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    let what = format!("it was to be a clone of {from}, which was cut short");
    Err(Error::new(Kind::Corrupt, what).with_hint("remove it, and make it again"))
}

/// Gives a clone the size that it is to have.
pub(super) async fn grow_clone(found: &Found, image: &Image) -> Result<()> {
    match found.description.options.size {
        Some(size) if found.description.options.from.is_some() && size > image.size() => {
            let resize = Maintenance::Resize { size, may_shrink: false };
            image.maintain(&resize, &mut |_, _| {}).await
        }
        _ => Ok(()),
    }
}
