//! `rm`: removes an image with all its data.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Kind, Result};
use ceph_native::image::admin;

use crate::progress::Progress;
use crate::spec::ImageArgs;

/// Deletes an image, or moves it to the trash where `rbd_move_to_trash_on_remove` says so, or where
/// `rbd_move_parent_to_trash_on_remove` does and clones hang on snapshots of it that were removed.
///
/// These are read from the pool's settings (`config pool set`), the command line, the environment, ceph.conf and the
/// monitors' configuration (`ceph config`), in this order.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Remove {
    #[command(flatten)]
    image: ImageArgs,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

impl Remove {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let settings = admin::on_remove(&pool).await?;
        if let Some(delay) = settings.keep {
            match admin::move_to_trash(&pool, &spec.image, delay).await {
                // Of an image that is only half there, or half gone, there is nothing to keep.
                Err(error) if error.kind() == Kind::NotFound => {}
                moved => return moved,
            }
        }
        if settings.keep_parents && admin::keep_for_clones(&pool, &spec.image).await? {
            return Ok(());
        }
        let progress = Progress::new("Removing image", !self.no_progress);
        admin::remove(&pool, &spec.image, &mut |done, total| progress.set(done, total)).await?;
        progress.finish();
        Ok(())
    }
}
