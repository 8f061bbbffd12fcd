//! `snap`: snapshots of an image.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, Details, Snapshot};
use ceph_native::image::header::{self, image_id};
use ceph_native::image::{Image, Maintenance, OpenOptions};
use clap::Subcommand;
use proto::rbd::Features;
use proto::rbd::cls::{SnapshotInfo, SnapshotNamespace};
use proto::rbd::notify::snap_create;
use proto::types::{SnapId, UTime};

use crate::output::{Format, Side, Tree, local_time, print, table};
use crate::progress::Progress;
use crate::size::Bytes;
use crate::spec::{ImageArgs, PairArgs, SnapArgs, Spec};

/// Snapshot commands.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Snap {
    /// Takes a snapshot.
    #[command(visible_alias = "add")]
    Create(Create),
    /// Lists the snapshots of an image.
    #[command(name = "ls", visible_alias = "list")]
    List(List),
    /// Deletes a snapshot.
    #[command(name = "rm", visible_alias = "remove")]
    Remove(Remove),
    /// Deletes all unprotected snapshots.
    Purge(Purge),
    /// Renames a snapshot.
    Rename(Rename),
    /// Brings an image back to what it was at a snapshot.
    #[command(visible_alias = "revert")]
    Rollback(Rollback),
    /// Prevents a snapshot from being deleted.
    Protect(Protect),
    /// Allows a snapshot to be deleted.
    Unprotect(Protect),
    /// Limits the number of snapshots.
    #[command(subcommand)]
    Limit(Limit),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    snapshot: SnapArgs,
    /// Do not have writers pause while the snapshot is taken.
    #[arg(long)]
    skip_quiesce: bool,
    /// Take it even if one of them cannot pause.
    #[arg(long)]
    ignore_quiesce_error: bool,
    /// Show no progress (there is none).
    #[arg(long, hide = true)]
    no_progress: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    image: ImageArgs,
    /// Image id, instead of a name.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
    /// Show snapshots from all namespaces.
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Remove {
    #[command(flatten)]
    snapshot: SnapArgs,
    /// Image id, instead of a name.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
    /// Snapshot id, instead of a name.
    #[arg(long, value_name = "ID")]
    snap_id: Option<u64>,
    /// Flatten its clones, and unprotect it, if need be.
    #[arg(long)]
    force: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Purge {
    #[command(flatten)]
    image: ImageArgs,
    /// Image id, instead of a name.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Rename {
    #[command(flatten)]
    snapshots: PairArgs,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Rollback {
    #[command(flatten)]
    snapshot: SnapArgs,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Protect {
    #[command(flatten)]
    snapshot: SnapArgs,
    /// Image id, instead of a name.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Limit {
    /// Limits the number of snapshots of an image.
    Set(SetLimit),
    /// Ends the limit.
    Clear(ClearLimit),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SetLimit {
    #[command(flatten)]
    image: ImageArgs,
    /// How many there may be.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ClearLimit {
    #[command(flatten)]
    image: ImageArgs,
}

impl Snap {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Create(create) => {
                let spec = create.snapshot.snapshot()?;
                let (image, name) = head(cluster, spec).await?;
                let namespace = SnapshotNamespace::User;
                let flag = |set: bool, flag| if set { flag } else { 0 };
                let flags = flag(create.skip_quiesce, snap_create::SKIP_QUIESCE)
                    | flag(create.ignore_quiesce_error, snap_create::IGNORE_QUIESCE_ERROR);
                maintained(image, Maintenance::SnapCreate { namespace, name, flags }).await
            }
            Self::List(list) => list.run(cluster).await,
            Self::Remove(remove) => remove.run(cluster).await,
            Self::Purge(purge) => purge.run(cluster).await,
            Self::Rename(rename) => rename.run(cluster).await,
            Self::Rollback(rollback) => {
                let spec = rollback.snapshot.snapshot()?;
                let (image, name) = head(cluster, spec).await?;
                let progress = Progress::new("Rolling back to snapshot", !rollback.no_progress);
                let mut tell = |done, total| progress.set(done, total);
                let done = admin::rollback(&image, &name, &mut tell).await;
                closed(image, done).await?;
                progress.finish();
                Ok(())
            }
            Self::Protect(protect) => {
                let (image, name) = protect.open(cluster).await?;
                let namespace = SnapshotNamespace::User;
                maintained(image, Maintenance::SnapProtect { namespace, name }).await
            }
            Self::Unprotect(protect) => {
                let (image, name) = protect.open(cluster).await?;
                let namespace = SnapshotNamespace::User;
                maintained(image, Maintenance::SnapUnprotect { namespace, name }).await
            }
            Self::Limit(Limit::Set(set)) => {
                let limit = set
                    .limit
                    .ok_or_else(|| Error::new(Kind::Os(ERANGE), "must specify --limit <num>"))?;
                set_limit(cluster, &set.image, Some(limit)).await
            }
            Self::Limit(Limit::Clear(clear)) => set_limit(cluster, &clear.image, None).await,
        }
    }
}

/// What `rbd` exits with when the limit is missing.
const ERANGE: i32 = 34;

async fn set_limit(cluster: &Cluster, image: &ImageArgs, limit: Option<u64>) -> Result<()> {
    let image = image.spec()?.open(cluster, false).await?;
    let done = admin::set_snapshot_limit(&image, limit).await;
    closed(image, done).await
}

/// The image of a snapshot that is to be worked on, and the snapshot's name.
async fn head(cluster: &Cluster, mut spec: Spec) -> Result<(Image, String)> {
    let name = spec.snap.take().unwrap_or_default();
    Ok((spec.open(cluster, false).await?, name))
}

/// Has the owner of the image's lock do something, be it us, and closes the image.
pub(crate) async fn maintained(image: Image, what: Maintenance) -> Result<()> {
    let done = image.maintain(&what, &mut |_, _| {}).await;
    closed(image, done).await
}

/// Removes a snapshot, whoever has to do that.
async fn remove(image: &Image, info: &SnapshotInfo) -> Result<()> {
    let (namespace, name) = (info.namespace.clone(), info.name.clone());
    image.maintain(&Maintenance::SnapRemove { namespace, name }, &mut |_, _| {}).await
}

/// Closes an image, whatever came of what was done with it.
pub(crate) async fn closed<T>(image: Image, done: Result<T>) -> Result<T> {
    image.close().await;
    done
}

/// Opens an image for changes by its id, if one is given, or else by its name.
async fn by_id_or_name(cluster: &Cluster, spec: Spec, image_id: Option<&str>) -> Result<Image> {
    match image_id {
        Some(id) => {
            let pool = spec.open_pool(cluster).await?;
            Image::open_by_id(&pool, id, &OpenOptions::default()).await
        }
        None => Spec { snap: None, ..spec }.with_image()?.open(cluster, false).await,
    }
}

impl Protect {
    async fn open(&self, cluster: &Cluster) -> Result<(Image, String)> {
        let mut spec = self.snapshot.spec()?.with_snap()?;
        let name = spec.snap.take().unwrap_or_default();
        Ok((by_id_or_name(cluster, spec, self.image_id.as_deref()).await?, name))
    }
}

impl Remove {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.snapshot.spec()?;
        let name = spec.snap.clone();
        let image = by_id_or_name(cluster, spec, self.image_id.as_deref()).await?;
        let done = self.remove(&image, name).await;
        closed(image, done).await
    }

    async fn remove(&self, image: &Image, name: Option<String>) -> Result<()> {
        let snapshot = match (self.snap_id, name) {
            (Some(_), Some(_)) => {
                let what = "trying to access snapshot using both name and id.";
                return Err(Error::new(Kind::Invalid, what));
            }
            (Some(id), None) => header::snapshot(image.pool(), image.id(), SnapId(id)).await?,
            (None, None) => {
                return Err(Error::new(Kind::Invalid, "snapshot name was not specified"));
            }
            (None, Some(name)) => admin::user_snapshot(image, &name).await?,
        };
        if self.force {
            self.free(image, &snapshot).await?;
        }
        remove(image, &snapshot).await
    }

    /// Has nothing depend on it any more (`librbd/internal.cc`: `flatten_children`, then `snap_unprotect`).
    async fn free(&self, image: &Image, snapshot: &SnapshotInfo) -> Result<()> {
        let pool = image.pool();
        let clones = admin::children(pool, image.id(), &[snapshot.id]).await?;
        let progress = Progress::new("Removing snap", !self.no_progress);
        for (nth, clone) in (0..).zip(&clones) {
            let in_pool = pool.cluster().pool(&clone.pool).await?.with_namespace(&clone.namespace);
            let child = Image::open_by_id(&in_pool, &clone.id, &OpenOptions::default()).await?;
            let mut tell =
                |done, total| progress.set_part((nth, clones.len() as u64), (done, total));
            let flattened = flatten_whole(&child, &mut tell).await;
            closed(child, flattened).await?;
        }
        progress.finish();
        let details = Details::read(pool, image.id()).await?;
        let snapshots = details.all_snapshots(pool).await?;
        let protected = |other: &Snapshot| other.info.id == snapshot.id && other.protected;
        if snapshots.iter().any(protected) {
            let (namespace, name) = (snapshot.namespace.clone(), snapshot.name.clone());
            let unprotect = Maintenance::SnapUnprotect { namespace, name };
            image.maintain(&unprotect, &mut |_, _| {}).await?;
        }
        Ok(())
    }
}

/// Flattens an image, unless its snapshots would depend on the parent afterwards, too.
async fn flatten_whole(image: &Image, progress: admin::Progress<'_>) -> Result<()> {
    let header = image.header();
    let deep = header.features.contains(Features::DEEP_FLATTEN);
    if !deep && !header.snap_context.snaps.is_empty() {
        let what = format!("snapshots of its clone {} depend on it", image.spec());
        return Err(Error::new(Kind::Busy, what).with_hint("remove these first"));
    }
    image.maintain(&Maintenance::Flatten, progress).await
}

impl Purge {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = match self.image_id {
            Some(_) => self.image.spec_or_pool()?,
            None => self.image.spec()?,
        };
        let image = by_id_or_name(cluster, spec, self.image_id.as_deref()).await?;
        let done = self.purge(&image).await;
        closed(image, done).await
    }

    async fn purge(&self, image: &Image) -> Result<()> {
        let details = Details::read(image.pool(), image.id()).await?;
        let snapshots = details.snapshots(image.pool()).await?;
        let progress = Progress::new("Removing all snapshots", !self.no_progress);
        let (protected, free): (Vec<_>, Vec<_>) =
            snapshots.iter().partition(|snapshot| snapshot.protected);
        if !protected.is_empty() {
            print(&kept(&protected))?;
        }
        for (done, snapshot) in (1..).zip(&free) {
            remove(image, &snapshot.info).await?;
            progress.set(done, snapshots.len() as u64);
        }
        if protected.is_empty() {
            progress.finish();
        }
        Ok(())
    }
}

/// As `rbd` says it.
fn kept(protected: &[&Snapshot]) -> String {
    let names: Vec<_> = protected.iter().map(|snapshot| snapshot.info.name.as_str()).collect();
    let is = if names.len() == 1 { "is" } else { "are" };
    format!(
        "rbd: error removing snapshot(s) '{}', which {is} protected - these must be unprotected with `rbd snap \
         unprotect`.\n",
        names.join(",")
    )
}

impl Rename {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let (source, dest) = self.snapshots.pair()?;
        let (source, dest) = (source.with_snap()?, dest.with_snap()?);
        let default = cluster.config().rbd.pool.clone();
        let pool = |spec: &Spec| spec.pool.clone().unwrap_or_else(|| default.clone());
        let same_pool = dest.pool.is_none() || pool(&source) == pool(&dest);
        if !same_pool || (dest.pool.is_some() && source.namespace != dest.namespace) {
            let what = "source and destination pool must be the same";
            return Err(Error::new(Kind::Invalid, what));
        }
        if dest.image != source.image {
            let what = "source and destination image name must be the same";
            return Err(Error::new(Kind::Invalid, what));
        }
        let (image, name) = head(cluster, source).await?;
        let new_name = dest.snap.unwrap_or_default();
        let done = async {
            let snap = admin::user_snapshot(&image, &name).await?.id;
            let rename = Maintenance::SnapRename { snap, name: new_name };
            image.maintain(&rename, &mut |_, _| {}).await
        };
        let done = done.await;
        closed(image, done).await
    }
}

/// A snapshot as it is listed.
struct Line {
    snapshot: Snapshot,
    /// What it is for.
    purpose: Purpose,
}

enum Purpose {
    User,
    Group { pool: String, group: String, snapshot: String },
    Trash { original_name: String },
    Mirror,
}

impl Purpose {
    fn name(&self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group { .. } => "group",
            Self::Trash { .. } => "trash",
            Self::Mirror => "mirror",
        }
    }
}

impl List {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = match self.image_id {
            Some(_) => self.image.spec_or_pool()?,
            None => self.image.spec()?,
        };
        let pool = spec.open_pool(cluster).await?;
        let id = match self.image_id {
            Some(id) => id,
            None => image_id(&pool, &spec.image).await?,
        };
        let details = Details::read(&pool, &id).await?;
        let snapshots = match self.all {
            true => details.all_snapshots(&pool).await?,
            false => details.snapshots(&pool).await?,
        };
        let mut lines = Vec::new();
        for snapshot in snapshots {
            let purpose = match &snapshot.info.namespace {
                SnapshotNamespace::User => Purpose::User,
                SnapshotNamespace::Trash { original_name } => {
                    Purpose::Trash { original_name: original_name.clone() }
                }
                SnapshotNamespace::Group { pool, group_id, snapshot_id } => {
                    let in_pool = cluster.pool_by_id(*pool).await?.with_namespace(&spec.namespace);
                    let names = admin::group_names(&in_pool, group_id, snapshot_id).await?;
                    let pool = in_pool.name().to_owned();
                    Purpose::Group { pool, group: names.0, snapshot: names.1 }
                }
                SnapshotNamespace::Other { .. } => Purpose::Mirror,
            };
            lines.push(Line { snapshot, purpose });
        }
        self.format.print(
            "snapshots",
            || Tree::list("snapshot", lines.iter().map(|line| line.tree(self.all))),
            || plain(&lines, self.all),
        )
    }
}

impl Line {
    fn time(&self) -> String {
        match self.snapshot.info.timestamp {
            UTime { sec: 0, .. } => String::new(),
            time => local_time(time),
        }
    }

    fn tree(&self, all: bool) -> Tree {
        let info = &self.snapshot.info;
        let mut fields = vec![
            ("id", info.id.0.into()),
            ("name", info.name.clone().into()),
            ("size", info.image_size.into()),
            ("protected", self.snapshot.protected.to_string().into()),
            ("timestamp", self.time().into()),
        ];
        if all {
            let mut purpose = vec![("type", self.purpose.name().into())];
            match &self.purpose {
                Purpose::Group { pool, group, snapshot } => purpose.extend([
                    ("pool", pool.clone().into()),
                    ("group", group.clone().into()),
                    ("group snap", snapshot.clone().into()),
                ]),
                Purpose::Trash { original_name } => {
                    purpose.push(("original_name", original_name.clone().into()));
                }
                Purpose::User | Purpose::Mirror => {}
            }
            fields.push(("namespace", Tree::Object(purpose)));
        }
        Tree::Object(fields)
    }

    fn cells(&self, all: bool) -> Vec<String> {
        let info = &self.snapshot.info;
        let mut cells = vec![
            info.id.to_string(),
            info.name.clone(),
            Bytes(info.image_size).to_string(),
            if self.snapshot.protected { "yes" } else { "" }.to_owned(),
            self.time(),
        ];
        if all {
            let name = self.purpose.name();
            cells.push(match &self.purpose {
                Purpose::Group { pool, group, snapshot } => {
                    format!("{name} ({pool}/{group}@{snapshot})")
                }
                Purpose::Trash { original_name } => format!("{name} ({original_name})"),
                Purpose::User | Purpose::Mirror => name.to_owned(),
            });
        }
        cells
    }
}

fn plain(lines: &[Line], all: bool) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut columns = vec![
        ("SNAPID", Side::Right),
        ("NAME", Side::Left),
        ("SIZE", Side::Right),
        ("PROTECTED", Side::Left),
        ("TIMESTAMP", Side::Right),
    ];
    if all {
        columns.push(("NAMESPACE", Side::Left));
    }
    table(&columns, &lines.iter().map(|line| line.cells(all)).collect::<Vec<_>>())
}
