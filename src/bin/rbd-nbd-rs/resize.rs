//! `resize`: gives an image another size.

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::{Image, Maintenance, OpenOptions};

use crate::map::Growing;
use crate::progress::Progress;
use crate::size;
use crate::spec::{ImageArgs, Spec};

/// Resizes (expands or shrinks) an image.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Resize {
    #[command(flatten)]
    image: ImageArgs,
    /// Image size (in M/G/T; M if there is no unit).
    #[arg(short, long, value_parser = size::image)]
    size: u64,
    /// Permit shrinking, which loses what is beyond the new end.
    #[arg(long)]
    allow_shrink: bool,
    /// Have the file system fill it that is mounted on this host from the device that `map` has made of it.
    #[arg(long, conflicts_with = "allow_shrink")]
    grow_fs: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

impl Resize {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let named = Spec { pool: Some(pool.name().to_owned()), ..spec.clone() };
        let growing = self.grow_fs.then(|| Growing::find(&named)).transpose()?;
        let image = Image::open(&pool, &spec.image, &OpenOptions::default()).await?;
        let progress = Progress::new("Resizing image", !self.no_progress);
        let mut tell = |done, total| progress.set(done, total);
        let resize = Maintenance::Resize { size: self.size, may_shrink: self.allow_shrink };
        let resized = image.maintain(&resize, &mut tell).await;
        image.close().await;
        resized?;
        progress.finish();
        growing.map_or(Ok(()), |growing| growing.grow(self.size))
    }
}
