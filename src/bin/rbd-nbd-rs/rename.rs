//! `rename`: gives an image another name.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::Maintenance;

use crate::snap::maintained;
use crate::spec::PairArgs;

/// Renames an image within its pool.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Rename {
    #[command(flatten)]
    images: PairArgs,
}

impl Rename {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (source, dest) = self.images.pair()?;
        let (source, dest) = (source.without_snap()?, dest.without_snap()?.with_image()?);
        let config = cluster.config();
        let source_pool = source.pool.as_ref().unwrap_or(&config.rbd.pool);
        let elsewhere = dest.pool.as_ref().is_some_and(|pool| pool != source_pool)
            || (dest.pool.is_some() && dest.namespace != source.namespace);
        if elsewhere {
            let what = "mv/rename across pools or namespaces not supported";
            return Err(Error::new(Kind::Invalid, what));
        }
        let image = source.open(cluster, false).await?;
        maintained(image, Maintenance::Rename { name: dest.image }).await
    }
}
