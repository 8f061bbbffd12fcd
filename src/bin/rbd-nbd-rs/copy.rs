//! `cp`: copies an image.

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::admin::{self, CreateOptions};

use crate::create::{NewImage, defaults};
use crate::progress::Progress;
use crate::size;
use crate::snap::closed;
use crate::spec::PairArgs;

/// Copies an image or a snapshot to a new image.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Copy {
    #[command(flatten)]
    images: PairArgs,
    #[command(flatten)]
    new: NewImage,
    /// Blocks of that size that are zeros are not written.
    #[arg(long, value_name = "SIZE", value_parser = size::block, default_value = "4K")]
    sparse_size: u64,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

impl Copy {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (source, dest) = self.images.pair()?;
        let dest = dest.without_snap()?.with_image()?;
        let pool = dest.open_pool(cluster).await?;
        let image = source.open(cluster, true).await?;
        let done = async {
            let data_pool = defaults(cluster, 0).await?.data_pool;
            let like = CreateOptions { data_pool, ..admin::like(&image) };
            let options = self.new.options(cluster, like).await?;
            let progress = Progress::new("Image copy", !self.no_progress);
            let mut tell = |done, total| progress.set(done, total);
            let sparse = self.sparse_size as usize;
            admin::copy(&image, &pool, &dest.image, &options, sparse, &mut tell).await?;
            progress.finish();
            Ok(())
        };
        let done = done.await;
        closed(image, done).await
    }
}
