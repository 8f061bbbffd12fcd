//! `rm`: removes an image with all its data.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Kind, Result};
use ceph_native::image::admin;

use crate::progress::Progress;
use crate::spec::ImageArgs;

/// Deletes an image, or moves it to the trash where `rbd_move_to_trash_on_remove` says so.
///
/// That is read from the pool's settings (`config pool set`), the command line, the environment and ceph.conf, in this
/// order; not from the monitors (`ceph config set`).
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
        if let Some(delay) = admin::trash_delay(&pool).await? {
            match admin::move_to_trash(&pool, &spec.image, delay).await {
                // Of an image that is only half there, or half gone, there is nothing to keep.
                Err(error) if error.kind() == Kind::NotFound => {}
                moved => return moved,
            }
        }
        let progress = Progress::new("Removing image", !self.no_progress);
        admin::remove(&pool, &spec.image, &mut |done, total| progress.set(done, total)).await?;
        progress.finish();
        Ok(())
    }
}
