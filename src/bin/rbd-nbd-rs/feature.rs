//! `feature`: switches features of an image.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::{Image, Maintenance, OpenOptions};
use proto::rbd::Features;

use crate::spec::ImageArgs;

/// Switches features of an image on and off.
#[derive(clap::Subcommand, Clone, Debug)]
pub(crate) enum Feature {
    /// Enables features.
    Enable(Which),
    /// Disables features.
    Disable(Which),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Which {
    #[command(flatten)]
    image: ImageArgs,
    /// exclusive-lock, object-map, fast-diff; deep-flatten can only be disabled.
    #[arg(value_name = "FEATURES", value_delimiter = ',')]
    features: Vec<Features>,
}

impl Feature {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (which, enable) = match self {
            Self::Enable(which) => (which, true),
            Self::Disable(which) => (which, false),
        };
        if which.features.is_empty() {
            return Err(Error::new(Kind::Invalid, "at least one feature name must be specified"));
        }
        let features = which.features.iter().fold(Features::default(), |all, some| all | *some);
        let spec = which.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let image = Image::open(&pool, &spec.image, &OpenOptions::default()).await?;
        let update = Maintenance::UpdateFeatures { features: features.0, enable };
        let done = image.maintain(&update, &mut |_, _| {}).await;
        image.close().await;
        done
    }
}
