//! `clone` and `flatten`: images that show a snapshot, and how they come to be on their own.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Context as _, Error, Kind, Result};
use ceph_native::image::admin::{self, CloneFormat};
use ceph_native::image::{Image, Maintenance, OpenOptions, Version};
use ceph_native::pool::Pool;
use proto::types::SnapId;

use crate::create::{NewImage, defaults};
use crate::progress::Progress;
use crate::snap::closed;
use crate::spec::{ImageArgs, PairArgs, Spec};

/// Clones a snapshot into a new image, which shows it until it is written to.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Clone {
    #[command(flatten)]
    images: PairArgs,
    /// Snapshot id, instead of a name.
    #[arg(long, value_name = "ID")]
    snap_id: Option<u64>,
    #[command(flatten)]
    new: NewImage,
}

/// Fills a clone with its parent's data, and makes it independent.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Flatten {
    #[command(flatten)]
    image: ImageArgs,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

impl Clone {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (source, dest) = self.images.pair()?;
        let dest = dest.without_snap()?.with_image()?;
        let pool = dest.open_pool(cluster).await?;
        let parent = self.parent(cluster, source).await?;
        let done = async {
            let like = admin::clone_like(&parent, defaults(cluster, 0).await?);
            let options = self.new.options(cluster, like).await?;
            let format = format(cluster, &pool)?;
            admin::clone(&parent, &pool, &dest.image, &options, format).await
        };
        let done = done.await;
        closed(parent, done).await
    }
}

impl Clone {
    async fn parent(&self, cluster: &Cluster, source: Spec) -> Result<Image> {
        let parent = match (self.snap_id, &source.snap) {
            (Some(_), Some(_)) => {
                let what = "trying to access snapshot using both name and id.";
                return Err(Error::new(Kind::Invalid, what));
            }
            (Some(id), None) => {
                let pool = source.open_pool(cluster).await?;
                let version = Version::SnapshotId(SnapId(id));
                let options = OpenOptions { read_only: true, version, ..OpenOptions::default() };
                Image::open(&pool, &source.image, &options).await
            }
            (None, _) => source.with_snap()?.open(cluster, true).await,
        };
        parent.context("failed to open parent image")
    }
}

fn format(cluster: &Cluster, pool: &Pool) -> Result<CloneFormat> {
    match cluster.config().rbd.clone_format.as_str() {
        "1" => Ok(CloneFormat::V1),
        "2" => Ok(CloneFormat::V2),
        "auto" => Ok(CloneFormat::of_cluster(pool)),
        other => {
            let what = format!("rbd_default_clone_format is 1, 2 or auto, not {other}");
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

impl Flatten {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let image = self.image.spec()?.open(cluster, false).await?;
        let progress = Progress::new("Image flatten", !self.no_progress);
        let mut tell = |done, total| progress.set(done, total);
        let done = image.maintain(&Maintenance::Flatten, &mut tell).await;
        closed(image, done).await?;
        progress.finish();
        Ok(())
    }
}
