//! `create`: makes an image.

use std::collections::BTreeMap;

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::Image;
use ceph_native::image::admin::{self, CreateOptions};
use ceph_native::image::transfer::{CHUNK, Writer};
use proto::rbd::Features;

use crate::import::make;
use crate::progress::Progress;
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
    #[command(flatten)]
    new: NewImage,
    /// Write zeros to all of it, so that its space is taken.
    #[arg(long)]
    thick_provision: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// What a new image is to be like.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NewImage {
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
    /// Image format: only 2 is built.
    #[arg(long, value_name = "FORMAT", default_value_t = 2)]
    image_format: u8,
    /// Shared by several clients: without an exclusive lock and what needs one.
    #[arg(long)]
    image_shared: bool,
}

/// What an image of that size is like where nobody says otherwise.
pub(crate) async fn defaults(cluster: &Cluster, size: u64) -> Result<CreateOptions> {
    let config = cluster.config();
    let defaults = &config.rbd;
    let data_pool = match &defaults.data_pool {
        Some(name) => Some(cluster.pool(name).await?),
        None => None,
    };
    Ok(CreateOptions {
        size,
        order: defaults.order,
        stripe_unit: defaults.stripe_unit,
        stripe_count: defaults.stripe_count,
        features: admin::supported(defaults.features),
        data_pool,
        metadata: BTreeMap::new(),
    })
}

/// What images cannot have that several clients write to at the same time (`RBD_FEATURES_SINGLE_CLIENT`).
const SINGLE_CLIENT: Features = Features(
    Features::EXCLUSIVE_LOCK.0
        | Features::OBJECT_MAP.0
        | Features::FAST_DIFF.0
        | Features::JOURNALING.0,
);

impl NewImage {
    /// What was asked for, and the rest as it is otherwise.
    pub(crate) async fn options(
        &self,
        cluster: &Cluster,
        otherwise: CreateOptions,
    ) -> Result<CreateOptions> {
        if self.image_format != 2 {
            let what = format!("images of format {} cannot be made", self.image_format);
            return Err(Error::new(Kind::Unsupported, what).with_hint("--image-format 2"));
        }
        let mut options = otherwise;
        if let Some(order) = self.object_size.or(self.order) {
            options.order = order;
        }
        if !self.features.is_empty() {
            options.features =
                self.features.iter().fold(Features::default(), |all, some| all | *some);
        }
        if self.image_shared {
            options.features = options.features - SINGLE_CLIENT;
        }
        if self.stripe_unit.is_some() || self.stripe_count.is_some() {
            options.stripe_unit = self.stripe_unit.unwrap_or(0);
            options.stripe_count = self.stripe_count.unwrap_or(0);
        }
        if let Some(name) = &self.data_pool {
            options.data_pool = Some(cluster.pool(name).await?);
        }
        Ok(options)
    }
}

impl Create {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let options = self.new.options(cluster, defaults(cluster, self.size).await?).await?;
        if self.thick_provision {
            return make(cluster, &spec, &options, async |image| self.fill(image).await).await;
        }
        let pool = spec.open_pool(cluster).await?;
        admin::create(&pool, &spec.image, &options).await.map(drop)
    }

    async fn fill(&self, image: &Image) -> Result<()> {
        let progress = Progress::new("Thick provisioning", !self.no_progress);
        let zeros = Bytes::from(vec![0; CHUNK as usize]);
        let mut writer = Writer::new(image);
        let mut offset = 0;
        while offset < self.size {
            let length = CHUNK.min(self.size - offset);
            writer.write(offset, zeros.slice(..length as usize)).await?;
            offset += length;
            progress.set(offset, self.size);
        }
        writer.finish().await?;
        progress.finish();
        Ok(())
    }
}
