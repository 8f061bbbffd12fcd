//! `object-map`: makes the object map of an image anew, or compares it with the objects.

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::{Image, Maintenance, OpenOptions, admin};

use crate::progress::Progress;
use crate::spec::ImageArgs;

/// Makes the object map of an image anew, or compares it with the objects.
#[derive(clap::Subcommand, Clone, Debug)]
pub(crate) enum ObjectMap {
    /// Verifies the object maps of an image and of its snapshots; what is wrong is marked as invalid.
    Check(Which),
    /// Rebuilds the object maps of an image and of its snapshots.
    Rebuild(Which),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Which {
    #[command(flatten)]
    image: ImageArgs,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

impl ObjectMap {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (which, rebuild) = match self {
            Self::Check(which) => (which, false),
            Self::Rebuild(which) => (which, true),
        };
        let spec = which.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let image = Image::open(&pool, &spec.image, &OpenOptions::default()).await?;
        let doing = if rebuild { "Object Map Rebuild" } else { "Object Map Check" };
        let progress = Progress::new(doing, !which.no_progress);
        let mut tell = |done, total| progress.set(done, total);
        let done = match rebuild {
            true => image.maintain(&Maintenance::RebuildObjectMap, &mut tell).await,
            // What is found to be wrong is told by the image's flags.
            false => admin::check_object_map(&image, &mut tell).await.map(drop),
        };
        image.close().await;
        done?;
        progress.finish();
        Ok(())
    }
}
