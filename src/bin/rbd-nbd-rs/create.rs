//! `create`: makes an image.

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::admin::{self, CreateOptions};
use proto::rbd::Features;

use crate::size;
use crate::spec::ImageArgs;

/// Creates an empty image.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    image: ImageArgs,
    /// Image size (in M/G/T; M if there is no unit).
    #[arg(short, long, value_parser = size::image)]
    size: u64,
    /// Object size in B/K/M, between 4K and 32M; rounded to a power of two.
    #[arg(long, value_name = "SIZE", value_parser = size::object, conflicts_with = "order")]
    object_size: Option<u8>,
    /// Object size as a power of two.
    #[arg(long, value_parser = clap::value_parser!(u8).range(12..=25))]
    order: Option<u8>,
    /// Image features, separated by commas.
    #[arg(long = "image-feature", value_name = "FEATURES")]
    features: Vec<Features>,
    /// Stripe unit in B/K/M.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    stripe_unit: Option<u64>,
    /// Stripe count.
    #[arg(long, value_name = "COUNT")]
    stripe_count: Option<u64>,
    /// Pool for the image's data.
    #[arg(long, value_name = "POOL")]
    data_pool: Option<String>,
    /// Show no progress (there is none).
    #[arg(long, hide = true)]
    no_progress: bool,
}

impl Create {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let defaults = &cluster.config().rbd;
        let features = match self.features.as_slice() {
            [] => admin::supported(defaults.features),
            given => given.iter().fold(Features::default(), |all, some| all | *some),
        };
        let striping_given = self.stripe_unit.is_some() || self.stripe_count.is_some();
        let (stripe_unit, stripe_count) = match striping_given {
            true => (self.stripe_unit.unwrap_or(0), self.stripe_count.unwrap_or(0)),
            false => (defaults.stripe_unit, defaults.stripe_count),
        };
        let data_pool = match self.data_pool.as_ref().or(defaults.data_pool.as_ref()) {
            Some(name) => Some(cluster.pool(name).await?),
            None => None,
        };
        let options = CreateOptions {
            size: self.size,
            order: self.object_size.or(self.order).unwrap_or(defaults.order),
            stripe_unit,
            stripe_count,
            features,
            data_pool,
        };
        let pool = spec.open_pool(cluster).await?;
        admin::create(&pool, &spec.image, &options).await.map(drop)
    }
}
