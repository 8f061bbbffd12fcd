//! `clone` and `flatten`: images that show a snapshot, and how they come to be on their own.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::Maintenance;
use ceph_native::image::admin::{self, CloneFormat};
use ceph_native::pool::Pool;

use crate::create::{NewImage, defaults};
use crate::progress::Progress;
use crate::snap::closed;
use crate::spec::{ImageArgs, PairArgs};

/// Clones a snapshot into a new image, which shows it until it is written to.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Clone {
    #[command(flatten)]
    images: PairArgs,
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
        let (source, dest) = (source.with_snap()?, dest.without_snap()?.with_image()?);
        let pool = dest.open_pool(cluster).await?;
        let parent = source.open(cluster, true).await?;
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
